"""A small ConvNet on digits, plain and decorrelated: its arms, a look inside trained ones, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from decorlib import metrics
from decorlib.data import inputs
from decorlib.layers import DecorConv2d, DecorLinear, bp_parameters, decor_parameters
from decorlib.rules.moments import Moments
from decorlib.rules.rules import KappaRule
from decorlib.study.experiments import flops, timing
from decorlib.study.experiments.experiment import OPTIMIZERS, Experiment, arrays, build
from decorlib.study.experiments.flops import Flops
from decorlib.study.experiments.measuring import outputs
from decorlib.study.questions.convolution.patches import patches, whole
from decorlib.study.questions.convolution.sampling_positions import border_effect
from decorlib.training.train import train

CENTRED = (("center", "batch"),)
NEVER = 10**9  # an update_every that leaves R at the identity
TUNING_SEED = 1000  # of all tries; none of the seeds that are compared
#: Rates of docs/protocol.md, question 6, in the units of notebook 07: a ConvNet's weights take twice these, an R that
#: learns at every 25th step ten times.
WEIGHTS, OF_R = (2e-3, 4e-3, 8e-3), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)


def designs(base: Experiment, longer: int) -> dict[str, Experiment]:
    """The arms: plain, plain for longer, BatchNorm, demeaned with R = I, R over patches, R over channels.

    Args:
        base: data, epochs, rates.
        longer: how many times the epochs the second arm gets.
    """
    plain = base.but(model="convnet", rule=None, rule_options=(), layer_options=())
    decorrelated = plain.but(rule="kappa", rule_options=(("kappa", 0.5),))
    return {
        "plain": plain,
        "plain, longer": plain.but(epochs=longer * base.epochs),
        "BatchNorm": plain.but(normalisation="batch"),
        "demeaned": decorrelated.but(layer_options=(*CENTRED, ("update_every", NEVER)), decor_lr=0.0),
        "patches": decorrelated.but(layer_options=CENTRED),
        "channels": decorrelated.but(layer_options=(*CENTRED, ("span", "channel"))),
    }


def controlled_rates(weights: int, of_R: int) -> tuple[list[float], list[float]]:
    """So many rates of the weights and of R for the comparison with three controls, from the middle of the protocol's.

    Raises:
        ValueError: fewer than one, or more than three and six.
    """
    for name, count, there in (("weights", weights, WEIGHTS), ("R", of_R, OF_R)):
        if not 1 <= count <= len(there):
            raise ValueError(f"{count} rates of {name}; allowed: 1 to {len(there)}, those of docs/protocol.md")
    return tuple(
        list(there[(len(there) - count) // 2 :][:count]) for count, there in ((weights, WEIGHTS), (of_R, OF_R))
    )


# --------------------------------------------------------------------------------------------------- a look inside


def look(spec: Experiment) -> dict:
    """Train a ConvNet as :func:`decorlib.study.experiments.experiment.run` does, and look inside.

    A ``fraction`` among the layer options is here one of *positions*: the read-out, which has none, uses all its rows.

    Returns:
        status, test accuracy and loss; per convolution the RMS correlation of its patches and of its states and what
        the border does to its statistics, on 300 test images; the first convolution's effective filters (W R).
    """
    if (spec.model, spec.optimizer, spec.decor_optimizer, spec.decor_schedule) != ("convnet", "adam", "sgd", None):
        raise ValueError(f"look() knows model='convnet' with Adam on W and plain SGD on R, not {spec}")
    x, t, z, u = arrays(spec)
    model = build(spec, x.shape[1])
    for layer in model:
        if isinstance(layer, DecorLinear):
            layer.decorrelation.fraction = 1.0
    R = list(decor_parameters(model))
    history = train(
        model,
        nn.functional.cross_entropy,
        inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed)),
        epochs=spec.epochs,
        optimizer=OPTIMIZERS[spec.optimizer](list(bp_parameters(model)), lr=spec.lr),
        decor_optimizer=torch.optim.SGD(R, lr=spec.decor_lr) if R else None,
        max_step=spec.max_step,
        allow_no_op=spec.decor_lr == 0,
    )
    if history.status != "finished":
        return {"status": history.status, "cause": history.cause, "final": {}, "layers": [], "filters": []}
    model.eval()
    with torch.no_grad():
        scores = outputs(model, z)
        found = inside(model, z[:300])
    final = {
        "test_accuracy": float((scores.argmax(1) == u).double().mean()),
        "test_loss": float(nn.functional.cross_entropy(scores.double(), u)),
    }
    return {"status": "finished", "cause": "", "final": final, "layers": found, "filters": effective(model).tolist()}


@torch.no_grad()
def inside(model: nn.Sequential, x: Tensor) -> list[dict]:
    """Per (square) convolution: correlation of the patches that it sees and of its states, and border effects."""
    rows = []
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            geometry = layer.kernel_size[0], layer.padding[0], layer.stride[0]
            p = patches(x, *geometry).flatten(0, 1)
            y = p @ whole(layer).double().T if isinstance(layer, DecorConv2d) else p
            row = {
                "features": p.shape[1],
                "patches": metrics.mean_correlation(p),
                "states": metrics.mean_correlation(y),
            }
            rows.append(row | border_effect(x, *geometry))
        x = layer(x)
    return rows


def effective(model: nn.Sequential) -> Tensor:
    """The first convolution's filters as the image meets them, W R or W, (filters, kh, kw)."""
    first = next(layer for layer in model if isinstance(layer, nn.Conv2d))
    weight = first.fused()[0] if isinstance(first, DecorConv2d) else first.weight
    return weight.detach()[:, 0]


def mean_share(filters: Sequence | Tensor) -> float:
    """Share of the filters' energy in their mean, averaged over filters: 1 a blur, 0 a contrast, 1 / taps by chance."""
    w = torch.as_tensor(filters, dtype=torch.float64).flatten(1)
    return float((w.sum(1).square() / (w.shape[1] * w.square().sum(1))).mean())


def alike(a: Sequence | Tensor, b: Sequence | Tensor) -> float:
    """Median cosine between the filters of two networks, one by one."""
    first, second = (torch.as_tensor(w, dtype=torch.float64).flatten(1) for w in (a, b))
    return float(nn.functional.cosine_similarity(first, second, dim=1).median())


def layer_table(specs: Sequence[Experiment], records: Sequence[Mapping], names: Sequence[str]) -> pd.DataFrame:
    """One row per run and convolution of :func:`look`: arm, seed, layer (from 1) and what was found there."""
    return pd.DataFrame(
        [
            {"arm": name, "seed": spec.seed, "layer": depth, **row}
            for name, spec, record in zip(names, specs, records, strict=True)
            for depth, row in enumerate(record["layers"], 1)
        ]
    )


# ----------------------------------------------------------------------------------------------------------- its cost


def variants(channels: int, size: int, batch: int) -> dict[str, Callable[[], object]]:
    """One step each of a 3 x 3 convolution amid a network, channels to channels: forward, backward, R's step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, size, size, generator=generator).requires_grad_()
    layers = {name: _layer(channels, options) for name, options in VARIANTS.items()}
    with torch.no_grad():
        g = torch.randn(layers["plain"](x).shape, generator=generator)

    def step(layer: nn.Conv2d) -> Callable[[], object]:
        def call() -> None:
            x.grad = None
            layer.zero_grad()
            layer(x).backward(g)
            if isinstance(layer, DecorConv2d):
                layer.step(1e-6)

        return call

    return {name: step(layer) for name, layer in layers.items()}


VARIANTS: dict[str, dict | None] = {
    "plain": None,
    "channels": {"span": "channel"},
    "patches, 1% of positions": {"fraction": 0.01},
    "patches, 10% of positions": {"fraction": 0.1},
    "patches": {},
}


def _layer(channels: int, options: dict | None) -> nn.Conv2d:
    torch.manual_seed(0)
    if options is None:
        return nn.Conv2d(channels, channels, 3, padding=1)
    return DecorConv2d(channels, channels, 3, padding=1, rule=KappaRule(), **options)


def work(variant: str, channels: int, size: int, batch: int) -> Flops:
    """Counted work of that step (products only), in the form that DecorConv2d picks by shape."""
    M, D, taps, sites = channels, 9 * channels, 9, batch * size**2
    conv = Flops(forward=2 * sites * D * M, backward=4 * sites * D * M)
    if (options := VARIANTS[variant]) is None:
        return conv
    fraction = options.get("fraction", 1.0)
    outputs, width = (M * taps, M) if options.get("span") == "channel" else (M, D)
    n = sites if fraction == 1 else max(1, round(fraction * sites))
    learns = flops.learning(KappaRule(), n, width)
    if 2 * outputs + fraction * sites < 2 * sites:  # (W R) is composed, and y computed for the sampled positions
        product = 2 * outputs * width**2
        return conv + learns + Flops(forward=product, backward=product, statistics=2 * n * width**2)
    return conv + learns + Flops(forward=2 * sites * width**2, backward=2 * sites * width**2)


def cost_table(channels: Sequence[int], size: int, batch: int, repeats: int) -> pd.DataFrame:
    """Per number of channels and variant: median seconds, ratio to plain turn by turn, and the ratio that work asks."""
    rows = []
    for c in channels:
        seconds = timing.take_turns(variants(c, size, batch), repeats=repeats, warmup=1)
        plain = work("plain", c, size, batch).total
        for name, median in timing.medians(seconds).items():
            asked = work(name, c, size, batch).total / plain
            measured = timing.ratio(seconds, name, "plain")
            rows.append({"channels": c, "variant": name, "ms": 1e3 * median, "measured": measured, "counted": asked})
    return pd.DataFrame(rows)


def forms_table(features: int, counts: Sequence[int], repeats: int) -> pd.DataFrame:
    """A step of R from n positions with X factored, dense, and as the shape chooses: milliseconds and counted GFLOP."""
    rows, rule = [], KappaRule()
    for n in counts:
        y = torch.randn(n, features, generator=torch.Generator().manual_seed(0))
        R = torch.eye(features)
        calls = {
            name: lambda y=y, R=R, dense=dense: rule.step_(Moments.of(y, dense=dense), R, 1e-6)
            for name, dense in (("factored", False), ("dense", True))
        }
        medians = timing.medians(timing.take_turns(calls, repeats=repeats, warmup=1))
        asked = {"factored": 4 * n * features**2, "dense": 2 * n * features**2 + 2 * features**3}
        rows += [{"positions": n, "form": f, "ms": 1e3 * s, "GFLOP": asked[f] / 1e9} for f, s in medians.items()]
    return pd.DataFrame(rows)


def crossing(table: pd.DataFrame, column: str = "ms") -> float | None:
    """Positions at which both forms cost the same, interpolated on log scales; None where they do not cross once."""
    wide = table.pivot(index="positions", columns="form", values=column)
    gap = (wide["factored"] / wide["dense"]).map(lambda r: float(torch.tensor(r).log()))
    signs = [i for i in range(len(gap) - 1) if (gap.iloc[i] < 0) != (gap.iloc[i + 1] < 0)]
    if len(signs) != 1:
        return None
    i = signs[0]
    a, b = (float(torch.tensor(float(n)).log()) for n in gap.index[i : i + 2])
    share = gap.iloc[i] / (gap.iloc[i] - gap.iloc[i + 1])
    return float(torch.tensor(a + share * (b - a)).exp())
