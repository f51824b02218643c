"""The patches that a kernel sees, of sequences, images and volumes, laid out as by torch.nn.functional.unfold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def positions(
    size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> tuple[int, ...]:
    """How many positions a kernel has along each dimension of an input of this size, padding included."""
    along = zip(size, kernel, dilation, stride, strict=True)
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, d, s in along)


def unfolded(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """All patches (N, positions, C * kernel) of x (N, C, *size), channels first and then the kernel."""
    rank = len(kernel)
    if rank == 2:  # torch's own, which there is for images alone
        return F.unfold(x, tuple(kernel), tuple(dilation), 0, tuple(stride)).transpose(1, 2)
    windows = x
    for i, (k, d, s) in enumerate(zip(kernel, dilation, stride, strict=True)):
        windows = windows.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d]
    # (N, C, *positions, *kernel) -> (N, *positions, C, *kernel)
    return windows.movedim(1, 1 + rank).flatten(1 + rank).flatten(1, rank)


def at_positions(
    x: Tensor, chosen: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> Tensor:
    """The patches (n, C * kernel) of x (N, C, *size) at some positions, counted through all inputs."""
    rank, size = len(kernel), positions(x.shape[2:], kernel, dilation, stride)
    sample, position = chosen // math.prod(size), chosen % math.prod(size)
    index = [sample.reshape(-1, *[1] * rank), slice(None)]
    for i in range(rank):
        start = position // math.prod(size[i + 1 :]) % size[i] * stride[i]
        taps = start[:, None] + torch.arange(kernel[i], device=x.device) * dilation[i]
        shape = [1] * rank
        shape[i] = kernel[i]
        index.append(taps.reshape(-1, *shape))
    # An index before the channels and one behind them put the channels last: (n, *kernel, C) -> (n, C, *kernel).
    return x[tuple(index)].movedim(-1, 1).flatten(1)
