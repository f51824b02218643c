"""What a decorrelation step is compared with: closures that take one step each, for :mod:`decorlib.study.timing`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from decorlib.decorrelation import Decorrelation


def decorrelation_step(features: int, batch: int, lr: float = 1e-6, **options) -> Callable[[], object]:
    """Forward, update and plain SGD step of one Decorrelation layer, as the trainer takes it, loss included."""
    layer = Decorrelation(features, **({"variance": 1.0} | options))
    x = _inputs(features, batch)

    def step() -> None:
        layer(x)
        layer.step(lr)

    return step


def dense_step(features: int, batch: int, lr: float = 1e-6) -> Callable[[], object]:
    """The same step of the seed's rule as its equations are written: C in full, C R as one D x D x D product, loss from C."""
    R = torch.eye(features)
    eye = torch.eye(features)
    x = _inputs(features, batch)

    def step() -> torch.Tensor:
        nonlocal R
        y = x @ R.T
        C = y.T @ y / batch
        v = C.diagonal()
        n = torch.where(v < 1e-8, torch.ones_like(v), 1 / v)
        loss = (C - eye).square().mean()
        R = R - lr * (R - n[:, None] * ((eye - C) @ R))
        return loss

    return step


def linear_step(features: int, batch: int, outputs: int | None = None, lr: float = 1e-6) -> Callable[[], object]:
    """Forward, backward and SGD step of a plain nn.Linear, its input a leaf that needs no gradient."""
    layer = nn.Linear(features, outputs or features)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    x = _inputs(features, batch)

    def step() -> None:
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()

    return step


def _inputs(features: int, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, features, generator=generator)
