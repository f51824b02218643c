"""Who steps R, in what order, and how far: the loop of 2024 with its calls in other orders, and what no rate can mend.

Two things make R diverge, and they are not the same:

* a step that is too long: the largest mode of X overshoots where lr * lambda_max > 2. A bound on the step remedies it.
* the 2024 rule's normaliser: n = t / v grows without bound where v falls, and what R holds in directions that carry no
  variance grows by lr (n - 1) per step. That is the rule's own flow, not an error of its steps: it depends on
  lr * steps, so a smaller rate, a bound or a schedule only moves it. For K copies of one feature see :func:`copies`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from decorlib.data import inputs
from decorlib.layers import bp_parameters, decor_modules, decor_parameters
from decorlib.layers.memory import NonFiniteInput
from decorlib.rules.rules import SeedRule
from decorlib.study.experiments.experiment import Experiment, arrays, build, measure
from decorlib.study.experiments.gaussians import step
from decorlib.study.sweeps.runs import sweep

ORDERS = ("as in 2024", "update before step", "gradient not cleared", "own optimizers")


@dataclass(frozen=True)
class Order:
    """One run of the 2024 notebook's explicit loop, with its calls in a given order.

    Args:
        order: one of :data:`ORDERS`.

            * ``"as in 2024"``: Adam owns all parameters; zero_grad, backward, Adam's step, update, R's step.
            * ``"update before step"``: the same, but update() comes before Adam's step, which then steps R too.
            * ``"gradient not cleared"``: as in 2024, but zero_grad reaches the weights only, so that Adam finds
              R's gradient of the batch before.
            * ``"own optimizers"``: Adam owns the weights only; update() before its step does no harm.
        lr: rate of Adam.
        decor_lr: rate of R's own SGD.
        epochs, train_size, batch_size, seed: as in :class:`Experiment`.
    """

    order: str = ORDERS[0]
    lr: float = 1e-3
    decor_lr: float = 1e-5
    epochs: int = 10
    train_size: int = 1000
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}; allowed: {', '.join(ORDERS)}")


def learn_in_order(spec: Order) -> dict:
    """Train the 2024 notebook's two-layer network by an explicit loop and say who moved R how far.

    Returns:
        ``moved_by_adam`` and ``moved_by_own``: root mean square change of the first R per step, over all steps;
        ``epochs``: mean task and decorrelation loss; ``status``; ``final``: as in :func:`experiments.run`.
    """
    experiment = Experiment(
        train_size=spec.train_size, rule_options=(("variance", 1.0),), batch_size=spec.batch_size, seed=spec.seed
    )
    x, t, z, u = arrays(experiment)
    model = build(experiment, x.shape[1])
    batches = inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    owned = bp_parameters(model) if spec.order == "own optimizers" else model.parameters()
    adam = torch.optim.Adam(owned, lr=spec.lr)
    sgd = torch.optim.SGD(decor_parameters(model), lr=spec.decor_lr)
    moved: dict[str, list[Tensor]] = {"adam": [], "own": []}
    epochs: list[dict] = []
    for epoch in range(1, spec.epochs + 1):
        try:
            row = _epoch(spec.order, model, batches, adam, sgd, moved)
        except NonFiniteInput:
            row = {"loss": float("nan")}
        if not all(abs(value) < float("inf") for value in row.values()):
            return {"status": "diverged", "diverged_at": epoch, "epochs": epochs, "final": {}, **_moved(moved)}
        epochs.append({"epoch": epoch, **row})
    model.eval()
    found = measure(model, x, t, z, u)
    return {"status": "finished", "diverged_at": None, "epochs": epochs, "final": found, **_moved(moved)}


def _epoch(order: str, model: nn.Module, batches, adam, sgd, moved: dict[str, list[Tensor]]) -> dict[str, float]:
    """One pass of the explicit loop; the order of the calls below is the whole difference."""
    R = next(iter(decor_parameters(model)))
    update_first = order in ("update before step", "own optimizers")
    losses, decor_losses = [], []
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(images), labels)
        if order == "gradient not cleared":
            for weight in bp_parameters(model):
                weight.grad = None
        else:
            adam.zero_grad()
        loss.backward()
        if update_first:
            decor_losses.append(_update(model))
        moved["adam"].append(_distance(R, adam.step))
        if not update_first:
            decor_losses.append(_update(model))
        moved["own"].append(_distance(R, sgd.step))
        losses.append(loss.detach())
    return {"loss": float(torch.stack(losses).mean()), "decor_loss": float(torch.stack(decor_losses).mean())}


def _update(model: nn.Module) -> Tensor:
    """Set the gradients of every R layer by layer: ``decor_update`` would refuse the orders that go wrong."""
    return sum(layer.update() for _, layer in decor_modules(model))


def compare_orders(seeds: Iterable[int], epochs: int) -> tuple[pd.DataFrame, dict[str, list]]:
    """Every order of calls with every seed.

    Returns:
        One row per run (order, seed, moved by adam, moved by own, test accuracy, correlation), and by order the epochs
        of its runs, for an exact comparison.
    """
    specs = [Order(order, epochs=epochs, seed=seed) for order in ORDERS for seed in seeds]
    rows, by_order = [], {order: [] for order in ORDERS}
    for spec, record in zip(specs, sweep(specs, learn_in_order, desc="orders of calls"), strict=True):
        final = {name.replace("_", " "): record["final"].get(name) for name in ("test_accuracy", "correlation")}
        moved = {f"moved by {who}": record[f"moved_by_{who}"] for who in ("adam", "own")}
        rows.append({"order": spec.order, "seed": spec.seed, **moved, **final})
        by_order[spec.order].append(record["epochs"])
    return pd.DataFrame(rows), by_order


def _distance(R: Tensor, move: Callable[[], object]) -> Tensor:
    before = R.detach().clone()
    move()
    return (R.detach() - before).square().mean().sqrt()


def _moved(moved: dict[str, list[Tensor]]) -> dict[str, float]:
    means = {f"moved_by_{who}": float(torch.stack(values).nanmean()) for who, values in moved.items()}
    return {who: value if abs(value) < float("inf") else None for who, value in means.items()}


# ------------------------------------------------------------------------ what grows with lr * steps, at every rate


def copies(K: int, *, lr: float, steps: int, target: float = 1.0, eta: float = 1.0) -> dict[str, float]:
    """K copies of one feature of variance 1 under the 2024 rule: what R holds between them grows, at every rate.

    The copies cannot be decorrelated; their variance settles at v = t / (1 + eta t K), where n = 1 + eta t K. The
    differences between copies carry no variance, so nothing limits R there: it grows by 1 + lr (n - 1) per step, in
    the end by exp(eta t K lr steps).

    Returns:
        ``variance`` reached and ``settles_at``; ``growth`` of R on differences over the second half of the steps, per
        unit of lr * steps (its logarithm), and ``predicted`` for it: eta t K.
    """
    if K < 2 or steps < 2:
        raise ValueError(f"K is {K} and steps is {steps}; two copies and two steps are the least that has a difference")
    x = torch.ones(1, K, dtype=torch.float64)
    R = torch.eye(K, dtype=torch.float64)
    between = torch.zeros(K, dtype=torch.float64)
    between[0], between[1] = 1.0, -1.0
    rule, sizes = SeedRule(target, eta), []
    for _ in range(steps):
        sizes.append(float((R @ between).norm()))
        R = step(rule, R, x, lr)
    half = steps // 2
    grown = torch.tensor(float((R @ between).norm()) / sizes[half]).log()
    return {
        "variance": float((x @ R.mT).square().mean()),
        "settles_at": target / (1 + eta * target * K),
        "growth": float(grown) / (lr * (steps - half)),
        "predicted": eta * target * K,
    }


def turn(record: dict, value: str = "decor_loss") -> dict:
    """Where a run that decorrelated begins to undo it: the epoch of the lowest loss, and how far it rose since.

    Returns:
        ``turns in epoch``, ``last / lowest loss`` (inf where the run diverged), ``status``.
    """
    rows = record["epochs"]
    if not rows:
        return {"turns in epoch": 0, "last / lowest loss": float("inf"), "status": record["status"]}
    lowest = min(rows, key=lambda row: row[value])
    rise = rows[-1][value] / lowest[value] if record["status"] == "finished" else float("inf")
    return {"turns in epoch": lowest["epoch"], "last / lowest loss": rise, "status": record["status"]}


# ------------------------------------------------------------------------------------------------- arms of notebook 04

#: A usual rate of each optimizer of the weights, as a multiple of Adam's.
SCALE = {"adam": 1, "sgd": 10, "momentum": 3}

#: The same for R, as a multiple of SGD's: momentum 0.9 lengthens its steps tenfold.
SCALE_OF_R = {"sgd": 1, "momentum": 0.1, "adam": 1}


def arms_of_R(base: Experiment) -> dict[str, Experiment]:
    """R by plain SGD, momentum 0.9, Adam, and SGD with a cosine or a drop by 10 at half time."""
    kinds = {kind: base.but(decor_optimizer=kind) for kind in ("momentum", "adam")}
    return {"SGD": base} | kinds | {kind: base.but(decor_schedule=kind) for kind in ("cosine", "drop")}


def arms_of_weights(base: Experiment, kinds: Iterable[str], decor_lr: float) -> dict[str, Experiment]:
    """Each optimizer of the weights, R learned at one rate, and as a plain network."""
    sides = {"R learned": base.but(decor_lr=decor_lr), "plain": base.but(rule=None, rule_options=())}
    return {f"{kind}, {side}": arm.but(optimizer=kind) for kind in kinds for side, arm in sides.items()}


def remedies(middle: Experiment) -> dict[str, Experiment]:
    """A run of R that undoes itself, and what might help: six times R's optimizer, three times the rule."""
    small_rows = (("variance", 1.0), ("dead_variance", 0.1))
    return {
        "plain SGD": middle,
        "bounded steps": middle.but(max_step=0.5),
        "cosine": middle.but(decor_schedule="cosine"),
        "drop": middle.but(decor_schedule="drop"),
        "momentum, rate / 10": middle.but(decor_optimizer="momentum", decor_lr=middle.decor_lr / 10),
        "Adam": middle.but(decor_optimizer="adam"),
        "rows with v < 0.1 not normalised": middle.but(rule_options=small_rows),
        "no target": middle.but(rule_options=()),
        "kappa, demeaned": middle.but(rule="kappa", rule_options=(), layer_options=(("center", "batch"),)),
    }


def rates(
    of_R: Mapping[str, Experiment],
    of_weights: Mapping[str, Experiment],
    decor_lrs: Iterable[float],
    lrs: Iterable[float],
) -> dict[str, dict[str, list[float]]]:
    """What is tried for each arm: rates of R for its optimizers, rates of the weights for theirs, scaled by kind."""
    decor_lrs, lrs = list(decor_lrs), list(lrs)
    tried = {k: {"decor_lr": [SCALE_OF_R[arm.decor_optimizer] * r for r in decor_lrs]} for k, arm in of_R.items()}
    return tried | {k: {"lr": [SCALE[arm.optimizer] * r for r in lrs]} for k, arm in of_weights.items()}


def long_arms(alone: Experiment, rates: Iterable[float], epochs: Iterable[int]) -> dict[str, Experiment]:
    """R alone at several rates, each for its number of epochs."""
    pairs = zip(rates, epochs, strict=True)
    return {f"rate {rate:g}": alone.but(decor_lr=rate, epochs=n) for rate, n in pairs}


def overshoots(beyond: Experiment) -> dict[str, Experiment]:
    """No target, so that nothing grows, at a rate beyond 2 / lambda_max; without and with a bound on the steps."""
    return {f"max_step {bound}": beyond.but(rule_options=(), max_step=bound) for bound in (None, 1.0)}


def spacings(base: Experiment, every: Iterable[int], sizes: Iterable[int]) -> dict[str, Experiment]:
    """Updates at every n-th step at n times the rate; batches of B at a rate proportional to B: equal rate x epochs."""
    spaced = {f"every {n}": base.but(decor_lr=n * base.decor_lr, layer_options=(("update_every", n),)) for n in every}
    return spaced | {f"B = {B}": base.but(decor_lr=base.decor_lr * B / base.batch_size, batch_size=B) for B in sizes}
