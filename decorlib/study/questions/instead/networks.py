"""The networks of the comparison: an MLP, a ConvNet and a small vision transformer, with every kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decorlib.layers import DecorConv2d, DecorLinear
from decorlib.rules.rules import KappaRule
from decorlib.rules.whitening import ExactWhitening
from decorlib.study.experiments.networks import CONVNET
from decorlib.study.questions.instead.whiteners import DeconvolvedConv2d, DeconvolvedLinear, IterNorm

SIDE = 28  # pixels of an image's side
HIDDEN = (256, 256)
PATCH, WIDTH, HEADS, BLOCKS = 7, 48, 4, 2  # pixels of a patch's side; features of a token; heads; blocks
KINDS = ("plain", "BatchNorm", "IterNorm", "deconvolution", "R", "exact whitening")
NETWORKS = ("mlp", "convnet", "transformer")
NORMALISATIONS = ("BatchNorm", "IterNorm")


class Block(nn.Module):
    """Pre-norm attention and a perceptron of twice the width; (B, T, D) -> (B, T, D)."""

    def __init__(self, linear: Callable[[int, int], nn.Module]):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH)
        self.up, self.down = linear(WIDTH, 2 * WIDTH), linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before(x)).unflatten(-1, (3, HEADS, -1)).movedim(2, 0).transpose(2, 3)
        x = x + self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Transformer(nn.Module):
    """A vision transformer on patches of 7 x 7 pixels, read out from the mean token; (B, 784) -> (B, classes)."""

    def __init__(
        self,
        classes: int,
        first: Callable[[int, int], nn.Module],
        linear: Callable[[int, int], nn.Module],
    ):
        super().__init__()
        self.embedding = first(PATCH**2, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block(linear) for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x.unflatten(1, (1, SIDE, SIDE)), PATCH, stride=PATCH).mT
        tokens = self.blocks(self.embedding(patches) + self.position)
        return self.head(self.norm(tokens).mean(1))


def network(spec, classes: int = 10) -> nn.Module:
    """The network of a specification (``peers.Peer``); arms of one seed start with equal weights.

    R and exact whitening stand in front of all layers but the first, as in notebook 07; network deconvolution in front
    of every layer and the normalisations before each nonlinearity, as their papers have them.
    """
    torch.manual_seed(spec.seed)
    if spec.network == "transformer":
        if spec.layers in NORMALISATIONS:
            raise ValueError(f"layers = {spec.layers!r} has no place in a transformer, which has LayerNorm")
        return Transformer(classes, _linear(spec, first=True), _linear(spec))
    return _mlp(spec, classes) if spec.network == "mlp" else _convnet(spec, classes)


def _options(spec) -> dict:
    rule = KappaRule(kappa=0.5)
    if spec.layers == "exact whitening":
        rule = ExactWhitening(kind="cholesky", shrinkage=spec.shrinkage)
    return {"rule": rule, "center": "batch", "update_every": spec.update_every}


def _linear(spec, first: bool = False) -> Callable[[int, int], nn.Module]:
    if spec.layers == "deconvolution":
        return DeconvolvedLinear
    if spec.layers in ("R", "exact whitening") and not first:
        return lambda D, M: DecorLinear(D, M, **_options(spec))
    return nn.Linear


def _norm(spec, features: int, maps: bool = False) -> list[nn.Module]:
    if spec.layers == "BatchNorm":
        return [nn.BatchNorm2d(features) if maps else nn.BatchNorm1d(features)]
    return [IterNorm(features)] if spec.layers == "IterNorm" else []


def _mlp(spec, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = (SIDE**2, *HIDDEN, classes)
    for depth, (D, M) in enumerate(pairwise(widths)):
        layers.append(_linear(spec, first=depth == 0)(D, M))
        if depth < len(HIDDEN):
            layers += [*_norm(spec, M), nn.LeakyReLU()]
    return nn.Sequential(*layers)


def _convnet(spec, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, SIDE, SIDE))]
    side = SIDE
    for depth, (C, M) in enumerate(CONVNET):
        geometry = {"kernel_size": 3, "stride": 2, "padding": 1}
        if spec.layers == "deconvolution":
            layers.append(DeconvolvedConv2d(C, M, **geometry))
        elif spec.layers in ("R", "exact whitening") and depth > 0:
            # A tenth of the positions tell enough of patches (notebook 06).
            draws = {"fraction": 0.1, "generator": torch.Generator().manual_seed(spec.seed)}
            layers.append(DecorConv2d(C, M, **geometry, **_options(spec), **draws))
        else:
            layers.append(nn.Conv2d(C, M, **geometry))
        layers += [*_norm(spec, M, maps=True), nn.LeakyReLU()]
        side = (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), _linear(spec)(side**2 * CONVNET[-1][1], classes))
