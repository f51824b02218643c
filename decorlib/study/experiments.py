"""One experiment: a frozen specification of plain values -> a record of plain values.

Every training run of the notebooks is an :class:`Experiment`; what two arms do not say differently is equal between
them: with the same seed they get the same digits, the same initial weights and the same order of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from decorlib import datasets, inputs, metrics
from decorlib.catalogue import make_rule
from decorlib.history import History
from decorlib.layers import DecorConv2d, DecorLinear, Decorrelation, bp_parameters, decor_modules, decor_parameters
from decorlib.train import train


@dataclass(frozen=True)
class Experiment:
    """What one run does. Every field has a unit or a set of values; ``run(Experiment(...))`` does it.

    Args:
        data: ``"mnist"`` or ``"fashion_mnist"``.
        train_size: training images, drawn by ``subset_seed``; 0: all that ``split`` leaves.
        subset_seed: which images; the seed notebook's are 42. None: the run's own seed.
        split: ``"test"`` evaluates on the test set; ``"validation"`` on 10,000 training images that are not trained on.
        scaling: one of :data:`decorlib.inputs.SCALINGS`.
        pixels: ``"all"``; ``"alive"`` drops those constant in the training images; ``"lively"`` those that differ from
            their usual value in fewer than 1% of them.
        jitter: standard deviation of fixed Gaussian noise added to the training inputs, in scaled units.
        demean_inputs: subtract the training mean of each input, once.
        whiten_inputs: multiply the (demeaned) inputs by their ZCA matrix, once.
        shrinkage: of the moment that this matrix comes from, towards its mean variance, in [0, 1].
        model: ``"decorrelation"`` (R alone), ``"mlp"`` or ``"convnet"``.
        hidden: widths of the MLP's hidden layers.
        normalisation: None or ``"batch"`` (BatchNorm before each nonlinearity).
        rule: a key of :data:`decorlib.RULES`; None: a plain network.
        rule_options: hyperparameters of the rule, as (name, value) pairs.
        layer_options: further options of the layers (center, momentum, update_every, fraction, ...), likewise.
        decorrelated: ``"all"`` layers, only the ``"first"``, or only the ``"deeper"`` ones.
        lr, optimizer: rate and kind of the weights' optimizer: ``"adam"``, ``"sgd"``, ``"momentum"`` (0.9).
        decor_lr, decor_optimizer: the same for R.
        decor_schedule: None, ``"cosine"`` to zero, or ``"drop"`` (by 10 at half the epochs).
        max_step: bound on rate times curvature of R's steps, or None.
        batch_size, epochs, seed: as everywhere.
        evaluate_every: epochs between evaluations; 0: only at the end.
        measures: ``"all"``, or only the ``"task"``: accuracy and loss, nothing about correlations.
    """

    data: str = "mnist"
    train_size: int = 1000
    subset_seed: int | None = None
    split: str = "test"
    scaling: str = "seed"
    pixels: str = "all"
    jitter: float = 0.0
    demean_inputs: bool = False
    whiten_inputs: bool = False
    shrinkage: float = 0.01
    model: str = "mlp"
    hidden: tuple[int, ...] = (100,)
    normalisation: str | None = None
    rule: str | None = "seed"
    rule_options: tuple[tuple[str, object], ...] = ()
    layer_options: tuple[tuple[str, object], ...] = ()
    decorrelated: str = "all"
    lr: float = 1e-3
    optimizer: str = "adam"
    decor_lr: float = 1e-5
    decor_optimizer: str = "sgd"
    decor_schedule: str | None = None
    max_step: float | None = None
    batch_size: int = 64
    epochs: int = 10
    seed: int = 0
    evaluate_every: int = 0
    measures: str = "all"

    def __post_init__(self):
        allowed = {
            "split": ("test", "validation"),
            "scaling": inputs.SCALINGS,
            "pixels": ("all", "alive", "lively"),
            "model": ("decorrelation", "mlp", "convnet"),
            "normalisation": (None, "batch"),
            "decorrelated": ("all", "first", "deeper"),
            "optimizer": tuple(OPTIMIZERS),
            "decor_optimizer": tuple(OPTIMIZERS),
            "decor_schedule": (None, "cosine", "drop"),
            "measures": ("all", "task"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(map(str, values))}")
        if self.model == "decorrelation" and self.rule is None:
            raise ValueError("model='decorrelation' has nothing to learn with rule=None")

    def but(self, **changes) -> Experiment:
        """The same experiment with some fields changed."""
        return replace(self, **changes)


VALIDATION = 10_000


@lru_cache(maxsize=4)
def _images(data: str) -> tuple[Tensor, ...]:
    load = {"mnist": datasets.mnist, "fashion_mnist": datasets.fashion_mnist}[data]
    return *inputs.tensors(load(train=True)), *inputs.tensors(load(train=False))


def arrays(spec: Experiment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, t) to train on and (x, t) to evaluate on, scaled and cleaned as the specification says."""
    images, targets, test_images, test_targets = _images(spec.data)
    order = np.random.RandomState(spec.seed if spec.subset_seed is None else spec.subset_seed).permutation(len(images))
    if spec.split == "validation":  # the last ones, so that a small training set is the same with and without it
        held_out, order = order[-VALIDATION:], order[:-VALIDATION]
        test_images, test_targets = images[held_out], targets[held_out]
    order = order[: spec.train_size or None]
    images, targets = images[order], targets[order]
    x, z = (inputs.scale(part, spec.scaling, reference=images).flatten(1) for part in (images, test_images))
    if spec.pixels != "all":
        keep = lively_pixels(images, at_least=1 if spec.pixels == "alive" else len(images) // 100)
        x, z = x[:, keep], z[:, keep]
    if spec.jitter:
        noise = torch.Generator().manual_seed(spec.seed)
        x = x + spec.jitter * torch.randn(x.shape, generator=noise)
    if spec.demean_inputs or spec.whiten_inputs:
        mean = x.mean(0)
        x, z = x - mean, z - mean
    if spec.whiten_inputs:
        from decorlib.statistics import second_moment
        from decorlib.whitening import shrink, zca

        # The product in float32, a fifth of the time: the shrinkage is far above what it rounds away.
        W = zca(shrink(second_moment(x).double(), spec.shrinkage)).float()
        x, z = x @ W.T, z @ W.T
    return x, targets, z, test_targets


PREPARATION = (
    *("data", "train_size", "subset_seed", "split", "scaling", "pixels", "jitter"),
    *("demean_inputs", "whiten_inputs", "shrinkage", "seed"),
)


def kept_arrays(spec: Experiment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`arrays`, the very same tensors again where the run before asked for them: read them, do not write."""
    return _arrays_once(Experiment(**{name: getattr(spec, name) for name in PREPARATION}))


@lru_cache(maxsize=2)  # 220 MB each, of all images
def _arrays_once(spec: Experiment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return arrays(spec)


def lively_pixels(images: Tensor, at_least: int = 1) -> Tensor:
    """Which pixels differ from their most common value in at least that many images; (N, H, W) -> bool (H W)."""
    flat = images.flatten(1)
    return (flat != flat.mode(0).values).sum(0) >= at_least


def build(spec: Experiment, features: int) -> nn.Module:
    """The model; plain and decorrelated arms of one seed start from equal weights."""
    torch.manual_seed(spec.seed)
    options = {} if spec.rule is None else _layer_options(spec)
    if spec.model == "decorrelation":
        return Decorrelation(features, **options)
    model = _mlp(spec, features, options) if spec.model == "mlp" else _convnet(spec, options)
    return model


def _layer_options(spec: Experiment) -> dict:
    # Statistics from a part of the batch draw from a generator of their own: other draws must not move with them.
    options = dict(spec.layer_options)
    if options.get("fraction", 1.0) != 1.0:
        options["generator"] = torch.Generator().manual_seed(spec.seed)
    return {"rule": make_rule(spec.rule, **dict(spec.rule_options)), **options}


def _decorrelates(spec: Experiment, depth: int) -> bool:
    return spec.rule is not None and {"all": True, "first": depth == 0, "deeper": depth > 0}[spec.decorrelated]


def _mlp(spec: Experiment, features: int, options: dict) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = (features, *spec.hidden, 10)
    for depth, (D, M) in enumerate(pairwise(widths)):
        layers.append(DecorLinear(D, M, **options) if _decorrelates(spec, depth) else nn.Linear(D, M))
        if depth < len(spec.hidden):
            layers += [nn.BatchNorm1d(M)] if spec.normalisation == "batch" else []
            layers.append(nn.LeakyReLU())
    return nn.Sequential(*layers)


def _convnet(spec: Experiment, options: dict) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for depth, (C, M) in enumerate(((1, 16), (16, 32), (32, 32))):
        geometry = {"kernel_size": 3, "stride": 2, "padding": 1}
        decorrelates = _decorrelates(spec, depth)
        layers.append(DecorConv2d(C, M, **geometry, **options) if decorrelates else nn.Conv2d(C, M, **geometry))
        layers += [nn.BatchNorm2d(M)] if spec.normalisation == "batch" else []
        layers.append(nn.LeakyReLU())
    linear = {k: v for k, v in options.items() if k != "span"}
    last = DecorLinear(512, 10, **linear) if _decorrelates(spec, 3) else nn.Linear(512, 10)
    return nn.Sequential(*layers, nn.Flatten(), last)


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, fused=True),  # one pass over the weights instead of ten
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


def run(spec: Experiment) -> dict:
    """Do the experiment and return its record: status, one row per epoch, final measurements, timings apart."""
    x, t, z, u = kept_arrays(spec)
    model = build(spec, x.shape[1])
    batches = inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    weights = list(bp_parameters(model))
    R = list(decor_parameters(model))
    decor = OPTIMIZERS[spec.decor_optimizer](R, lr=spec.decor_lr) if R else None

    history = train(
        model,
        nn.functional.cross_entropy if weights else lambda y, _: y.new_zeros(()),
        batches,
        epochs=spec.epochs,
        optimizer=OPTIMIZERS[spec.optimizer](weights, lr=spec.lr) if weights else None,
        decor_optimizer=decor,
        evaluate=evaluation(spec, x, t, z, u),
        decor_scheduler=None if decor is None else schedule(decor, spec),
        max_step=spec.max_step,
        allow_no_op=spec.decor_lr == 0,
    )
    return record(history)


def evaluation(spec: Experiment, x: Tensor, t: Tensor, z: Tensor, u: Tensor) -> Callable[[nn.Module], dict[str, float]]:
    """What the trainer calls after each epoch: :func:`measure`, where ``evaluate_every`` wants it and at the end."""
    epochs_done = 0

    def evaluate(model: nn.Module) -> dict[str, float]:
        nonlocal epochs_done
        epochs_done += 1
        last = epochs_done == spec.epochs
        wanted = last or (spec.evaluate_every and epochs_done % spec.evaluate_every == 0)
        return measure(model, x, t, z, u, spec.measures == "all") if wanted else {}

    return evaluate


def record(history: History) -> dict:
    """A history as the record of a run."""
    rows = history.rows()
    seconds = [row.pop("seconds") for row in rows]
    finished = history.status == "finished"
    return {
        "status": history.status,
        "diverged_at": history.diverged_at,
        "cause": history.cause,
        "epochs": rows,
        "final": rows[-1] if rows and finished else {},
        "timing": {"seconds": seconds, "threads": torch.get_num_threads()},
    }


def schedule(optimizer: torch.optim.Optimizer, spec: Experiment):
    """What anneals the rate of R, or None."""
    if spec.decor_schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(spec.epochs, 1))
    if spec.decor_schedule == "drop":
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(spec.epochs // 2, 1)], gamma=0.1)
    return None


@torch.no_grad()
def measure(
    model: nn.Module, x: Tensor, t: Tensor, z: Tensor, u: Tensor, correlations: bool = True
) -> dict[str, float]:
    """Accuracy and loss on held-out data and on the first 10,000 training images, and what is left of correlations."""
    found: dict[str, float] = {}
    if any(True for _ in bp_parameters(model)):
        for name, inputs_, targets in (("test", z, u), ("train", x[:VALIDATION], t[:VALIDATION])):
            outputs = torch.cat([model(part) for part in inputs_.split(2000)])
            found[f"{name}_accuracy"] = float((outputs.argmax(1) == targets).double().mean())
            found[f"{name}_loss"] = float(nn.functional.cross_entropy(outputs.double(), targets))
    first = next((layer for _, layer in decor_modules(model)), None)
    if correlations and first is not None and first.in_features == x.shape[1]:  # not a convolution's patches
        y = first(x[:2000]).double()
        found["correlation"] = metrics.mean_correlation(y)
        found["cosine"] = metrics.mean_correlation(y, centred=False)
        found["effective_rank"] = metrics.effective_rank(y)
        found["residual_mean"] = float(y.mean(0).square().mean().sqrt())
        found["residual_variance"] = float((y.square().mean(0) - 1).abs().mean())
    return found


def table(specs: list[Experiment], records: list[dict]) -> list[dict]:
    """One flat row per run: the fields that differ between the specifications, status and final measurements."""
    differing = [f.name for f in fields(Experiment) if len({getattr(s, f.name) for s in specs}) > 1]
    return [
        {name: asdict(spec)[name] for name in differing}
        | {"status": record["status"], "diverged_at": record["diverged_at"]}
        | {k: v for k, v in record["final"].items() if k != "batches"}
        for spec, record in zip(specs, records, strict=True)
    ]
