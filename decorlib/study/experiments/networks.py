"""The networks of the experiments: an MLP and a ConvNet, plain, normalised or decorrelated, and R alone."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from decorlib.layers import DecorConv2d, DecorLinear, Decorrelation, centring
from decorlib.rules.catalogue import make_rule

BACKPROPAGATION = "backpropagation"


class Demean(nn.Module):
    """Subtracts the batch mean of each feature, in evaluation the running one: what ``center="batch"`` does without R.

    Of an image's channels, the mean over batch and positions, as BatchNorm's.

    Shape: (B, D) -> (B, D), or (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, features: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        if self.training:
            mean = x.mean([0, *range(2, x.dim())])
            centring.follow(self.running_mean, mean, self.momentum)
        return x - mean.view(-1, *[1] * (x.dim() - 2))


def build(spec, features: int) -> nn.Module:
    """The model; plain and decorrelated arms of one seed start from equal weights.

    Raises:
        ValueError: credit other than backpropagation's, which needs :func:`decorlib.study.experiments.credit.assign`.
    """
    if spec.credit != BACKPROPAGATION:
        raise ValueError(f"build() makes networks to backpropagate through; {spec.credit!r} is credit.assign()'s")
    torch.manual_seed(spec.seed)
    options = {} if spec.rule is None else _layer_options(spec)
    if spec.model == "decorrelation":
        return Decorrelation(features, **options)
    return _mlp(spec, features, options) if spec.model == "mlp" else _convnet(spec, options)


def _layer_options(spec) -> dict:
    # Statistics from a part of the batch draw from a generator of their own: other draws must not move with them.
    options = dict(spec.layer_options)
    if options.get("fraction", 1.0) != 1.0:
        options["generator"] = torch.Generator().manual_seed(spec.seed)
    return {"rule": make_rule(spec.rule, **dict(spec.rule_options)), **options}


CONVNET = ((1, 16), (16, 32), (32, 32))  # channels of the 3 x 3 convolutions of stride 2, each halving the image


def shapes(spec, features: int = 784) -> list[tuple[int, int, int, int, int]]:
    """(output positions, input pixels, input channels, kernel size, outputs) of each layer with weights, in order."""
    if spec.model != "convnet":
        return [(1, 1, D, 1, M) for D, M in pairwise((features, *spec.hidden, 10))]
    sides = [28]
    for _ in CONVNET:
        sides.append((sides[-1] + 1) // 2)
    layers = [(o**2, i**2, C, 9, M) for (C, M), (i, o) in zip(CONVNET, pairwise(sides), strict=True)]
    return [*layers, (1, 1, sides[-1] ** 2 * CONVNET[-1][1], 1, 10)]


def decorrelates(spec, depth: int) -> bool:
    """Whether the layer of that depth, counted from 0, has an R."""
    return spec.rule is not None and {"all": True, "first": depth == 0, "deeper": depth > 0}[spec.decorrelated]


def blocks(network: nn.Sequential) -> list[list[nn.Module]]:
    """The layers of an MLP: for each the modules that it is made of, in order, its nonlinearity last.

    A decorrelated linear layer is two of them: its R, and itself, which stands for its weights alone.
    """
    found: list[list[nn.Module]] = [[]]
    for module in network:
        found[-1] += [module.decorrelation, module] if isinstance(module, DecorLinear) else [module]
        if isinstance(module, nn.LeakyReLU):
            found.append([])
    return found


def linear_of(block: list[nn.Module]) -> nn.Linear:
    """The one module of a layer that holds its weights."""
    (layer,) = (module for module in block if isinstance(module, nn.Linear))
    return layer


def _mlp(spec, features: int, options: dict) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = (features, *spec.hidden, 10)
    for depth, (D, M) in enumerate(pairwise(widths)):
        if spec.normalisation == "mean" and depth > 0:
            layers.append(Demean(D))
        layers.append(DecorLinear(D, M, **options) if decorrelates(spec, depth) else nn.Linear(D, M))
        if depth < len(spec.hidden):
            layers += [nn.BatchNorm1d(M)] if spec.normalisation == "batch" else []
            layers.append(nn.LeakyReLU())
    return nn.Sequential(*layers)


def _convnet(spec, options: dict) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))]
    for depth, (C, M) in enumerate(CONVNET):
        geometry = {"kernel_size": 3, "stride": 2, "padding": 1}
        has_R = decorrelates(spec, depth)
        layers += [Demean(C)] if spec.normalisation == "mean" and depth > 0 else []
        layers.append(DecorConv2d(C, M, **geometry, **options) if has_R else nn.Conv2d(C, M, **geometry))
        layers += [nn.BatchNorm2d(M)] if spec.normalisation == "batch" else []
        layers.append(nn.LeakyReLU())
    linear = {k: v for k, v in options.items() if k != "span"}
    last = DecorLinear(512, 10, **linear) if decorrelates(spec, 3) else nn.Linear(512, 10)
    between = [nn.Flatten(), *([Demean(512)] if spec.normalisation == "mean" else [])]
    return nn.Sequential(*layers, *between, last)
