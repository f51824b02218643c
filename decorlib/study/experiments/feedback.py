"""Feedback alignment: the error goes back through fixed random matrices instead of the transposed weights.

For a layer a = W y, y what enters it (R x where it is decorrelated), and h = f(a), with delta = dL/da:

* backpropagation sends W' delta back to y;
* **feedback alignment** (Lillicrap et al. 2016) sends B' delta, B of the shape of W, drawn once and never learned;
* **direct feedback alignment** (Nokland 2016) sends B' e from the error e of the scores straight to h of each hidden
  layer; nothing passes from layer to layer.

Everything else, f, BatchNorm, demeaning, and R as in Ahmad 2024 (arXiv 2407.10780), has its exact derivative.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.study.experiments.networks import blocks, linear_of


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, W: Tensor, b: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(y, B)
        return F.linear(y, W, b)

    @staticmethod
    def backward(ctx: Any, *delta: Tensor):
        y, B = ctx.saved_tensors
        back = delta[0] @ B if ctx.needs_input_grad[0] else None
        return back, delta[0].mT @ y, delta[0].sum(0), None


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, B: tuple[Tensor, ...], *hidden: Tensor) -> Tensor:
        ctx.feedback = B
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *e: Tensor):
        return e[0], None, *(e[0] @ matrix for matrix in ctx.feedback)


def linear(y: Tensor, W: Tensor, b: Tensor, B: Tensor) -> Tensor:
    r"""y W' + b, whose error goes back to y through B.

    .. math:: \delta_W = \delta^\top y, \quad \delta_b = \sum \delta, \quad \delta_y = \delta B

    Shape: y (batch, D), W and B (M, D), b (M) -> (batch, M).
    """
    return _Linear.apply(y, W, b, B)


def directly(scores: Tensor, hidden: list[Tensor], B: list[Tensor]) -> Tensor:
    r"""The scores, whose error e goes to each hidden layer through a matrix of its own, and on to the last layer.

    .. math:: \delta_{h_l} = e B_l

    Shape: scores (batch, K), hidden (batch, M_l) each, B (K, M_l) each -> (batch, K).
    """
    return _Scores.apply(scores, tuple(B), *hidden)


def draw(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A feedback matrix (rows, columns), from the distribution of the first weights of ``nn.Linear(columns, rows)``."""
    return (2 * torch.rand(rows, columns, generator=generator) - 1) / math.sqrt(columns)


class FeedbackAlignment(nn.Module):
    """A network that learns by feedback alignment; in evaluation the network itself.

    Args:
        network: of linear and decorrelated linear layers, normalisations and elementwise nonlinearities, in a row.
        generator: of the feedback matrices; the global one is left alone, so that weights are those of other arms.

    Shape: (batch, D) -> (batch, K).
    """

    def __init__(self, network: nn.Sequential, generator: torch.Generator):
        super().__init__()
        self.network, self.blocks = network, blocks(network)
        for depth, layer in enumerate(map(linear_of, self.blocks)):
            self.register_buffer(f"B{depth}", draw(layer.out_features, layer.in_features, generator))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.network(x)
        for depth, block in enumerate(self.blocks):
            B = getattr(self, f"B{depth}")
            for step in block:
                x = linear(x, step.weight, step.bias, B) if isinstance(step, nn.Linear) else step(x)
        return x


class DirectFeedback(nn.Module):
    """A network that learns by direct feedback alignment; in evaluation the network itself.

    Args:
        network: as of :class:`FeedbackAlignment`.
        generator: likewise.

    Shape: (batch, D) -> (batch, K).
    """

    def __init__(self, network: nn.Sequential, generator: torch.Generator):
        super().__init__()
        self.network, self.blocks = network, blocks(network)
        widths = [linear_of(block).out_features for block in self.blocks]
        for depth, width in enumerate(widths[:-1]):
            self.register_buffer(f"B{depth}", draw(widths[-1], width, generator))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.network(x)
        hidden = []
        for block in self.blocks:
            x = x.detach()  # nothing passes from layer to layer
            for step in block:
                x = F.linear(x, step.weight, step.bias) if isinstance(step, nn.Linear) else step(x)
            hidden.append(x)
        return directly(x, hidden[:-1], [getattr(self, f"B{depth}") for depth in range(len(hidden) - 1)])
