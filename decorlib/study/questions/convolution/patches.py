"""Decorrelation of patches: DecorConv2d against its definition, and what R learns on patches of digits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from decorlib import metrics
from decorlib.layers import DecorConv2d
from decorlib.rules.catalogue import make_rule
from decorlib.rules.rules import KappaRule
from decorlib.rules.whitening import zca
from decorlib.study.experiments.experiment import Experiment, arrays

# ------------------------------------------------------------------------------------------------- by its definition

GEOMETRIES: dict[str, dict] = {
    "patches": {},
    "stride 2": {"stride": 2},
    "padding 1": {"padding": 1},
    "dilation 2": {"dilation": 2},
    "2 groups": {"groups": 2},
    "all of these": {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    "channels": {"span": "channel"},
    "channels, all of these": {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "span": "channel"},
}


def whole(layer: DecorConv2d) -> Tensor:
    """R as one matrix over whole patches: block-diagonal over groups, with ``span="channel"`` the same for each tap."""
    taps = math.prod(layer.kernel_size) if layer.span == "channel" else 1
    return torch.block_diag(*(torch.kron(R, torch.eye(taps, dtype=R.dtype)) for R in _each(layer)))


def definition(layer: DecorConv2d, x: Tensor) -> Tensor:
    """What the layer should do to x (N, C, H, W), one matrix at a time: unfold, times R, 1 x 1 convolution.

    Zero padding; no centring, no b_R.
    """
    y = whole(layer) @ F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    size = [
        (length + 2 * pad - r - 1) // step + 1
        for length, pad, r, step in zip(x.shape[2:], layer.padding, reach, layer.stride, strict=True)
    ]
    return F.conv2d(y.unflatten(2, size), layer.weight.flatten(1)[:, :, None, None], layer.bias, groups=layer.groups)


def stepped(layer: DecorConv2d, x: Tensor, lr: float) -> Tensor:
    """R after a step of the kappa rule, as its equation is written: R - lr [(1 - k) C + k (diag X - 1)] R, by group."""
    geometry = layer.kernel_size, layer.dilation, layer.padding, layer.stride
    rows = x.movedim(1, -1) if layer.span == "channel" else F.unfold(x, *geometry).transpose(1, 2)
    rows, kappa, found = rows.flatten(0, -2), layer.decorrelation.rule.kappa, []
    for R, part in zip(_each(layer), rows.chunk(layer.groups, 1), strict=True):
        y = part @ R.T
        X = y.T @ y / len(y)
        V = torch.diag(X.diagonal())
        found.append(R - lr * ((1 - kappa) * (X - V) + kappa * (V - torch.eye(len(V), dtype=V.dtype))) @ R)
    return torch.stack(found).view_as(layer.decorrelation.weight)


def against_definition(seed: int = 0, lr: float = 0.1) -> pd.DataFrame:
    """Largest absolute difference between layer and definition by geometry: output, gradients of W and x, R's step.

    Random images, weights and R in float64; the larger of the layer's two forms, (W R) and R-then-W.
    """
    rows = {}
    for name, options in GEOMETRIES.items():
        generator = torch.Generator().manual_seed(seed)
        found = [_differences(options, fuse, lr, generator) for fuse in (True, False)]
        rows[name] = {key: max(one[key] for one in found) for key in found[0]}
    return pd.DataFrame(rows).T


def _differences(options: dict, fuse: bool, lr: float, generator: torch.Generator) -> dict[str, float]:
    layer = DecorConv2d(4, 6, 3, **options, fuse=fuse, rule=KappaRule(kappa=0.3), dtype=torch.float64)
    R = layer.decorrelation.weight
    R.data += 0.3 * torch.randn(R.shape, dtype=R.dtype, generator=generator)
    layer.weight.data = torch.randn(layer.weight.shape, dtype=R.dtype, generator=generator)
    x = torch.randn(3, 4, 9, 8, dtype=R.dtype, generator=generator, requires_grad=True)
    out, expected = layer(x), definition(layer, x)
    weights = torch.randn(out.shape, dtype=R.dtype, generator=generator)
    ours = torch.autograd.grad((out * weights).sum(), (layer.weight, x))
    theirs = torch.autograd.grad((expected * weights).sum(), (layer.weight, x))
    after = stepped(layer, x.detach(), lr)
    layer.step(lr)
    pairs = {"output": (out, expected), "gradient of W": (ours[0], theirs[0]), "gradient of x": (ours[1], theirs[1])}
    return {
        name: float((a - b).detach().abs().max()) for name, (a, b) in {**pairs, "R after a step": (R, after)}.items()
    }


def _each(layer: DecorConv2d) -> Tensor:
    """R of every group, (groups, D, D)."""
    R = layer.decorrelation.weight
    return R.view(layer.groups, *R.shape[-2:])


# --------------------------------------------------------------------------------------------- what R learns on digits


@dataclass(frozen=True)
class Patches:
    """R of one DecorConv2d learned on patches of MNIST, demeaned (running mean), from R = I.

    Args:
        rule, rule_options: as in :class:`decorlib.study.experiments.experiment.Experiment`.
        scaling: of the digits.
        kernel: side of a patch.
        lr: rate of R.
        max_step: bound on rate times curvature. 1 would set the largest mode to zero at the first step.
        steps: of R, each on 64 images.
        fraction: of the positions in them.
        train_size: images learned on; as many others are measured on.
        seed: draws images, batches and positions.
    """

    rule: str = "kappa"
    rule_options: tuple[tuple[str, object], ...] = ()
    scaling: str = "standard"
    kernel: int = 7
    lr: float = 0.3
    max_step: float = 0.5
    steps: int = 120
    fraction: float = 0.05
    train_size: int = 600
    seed: int = 0


def digits(scaling: str, count: int, seed: int = 0, split: str = "validation") -> tuple[Tensor, Tensor]:
    """Training and held-out images (N, 1, 28, 28), float32, scaled."""
    x, _, z, _ = arrays(Experiment(train_size=count, scaling=scaling, seed=seed, split=split))
    return x.unflatten(1, (1, 28, 28)), z.unflatten(1, (1, 28, 28))


def patches(x: Tensor, kernel: int, padding: int = 0, stride: int = 1) -> Tensor:
    """All patches of all images, (N, positions, D), float64, laid out as by :func:`torch.nn.functional.unfold`."""
    return F.unfold(x.double(), kernel, padding=padding, stride=stride).transpose(1, 2)


def learn(spec: Patches) -> dict:
    """The learned R, the exact ZCA matrix of the same training patches, and held-out spectra before, after and exact.

    ``cosine`` is that of each row of R with the same row of the ZCA matrix (no sign or order is searched for).
    """
    x, z = digits(spec.scaling, spec.train_size, spec.seed)
    generator = torch.Generator().manual_seed(spec.seed)
    rule = make_rule(spec.rule, **dict(spec.rule_options))
    options = {"center": "running", "momentum": None, "fraction": spec.fraction, "generator": generator}
    layer = DecorConv2d(1, 1, spec.kernel, rule=rule, **options)
    with torch.no_grad():
        for _ in range(spec.steps):
            layer(x[torch.randperm(len(x), generator=generator)[:64]])
            layer.step(spec.lr, spec.max_step)
    # Every third position: neighbours say nearly the same.
    seen, held = (patches(part[: spec.train_size], spec.kernel)[:, ::3].flatten(0, 1) for part in (x, z))
    exact = zca(metrics.second_moment(seen, centred=True))
    R = layer.decorrelation.weight.double()
    states = {"before": held, "after": held @ R.T, "exact": held @ exact.T}
    return {
        "R": R.tolist(),
        "zca": exact.tolist(),
        "cosine": F.cosine_similarity(R, exact, dim=1).tolist(),
        "spectrum": {name: metrics.spectrum(y, centred=True).tolist() for name, y in states.items()},
        "correlation": {name: metrics.mean_correlation(y) for name, y in states.items()},
    }
