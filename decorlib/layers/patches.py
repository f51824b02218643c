"""The patches that a kernel sees, of sequences, images and volumes, laid out as by torch.nn.functional.unfold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def positions(
    size: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]
) -> tuple[int, ...]:
    """How many positions a kernel has along each dimension of an input of this size, padding included."""
    along = zip(size, kernel, dilation, stride, strict=True)
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, d, s in along)


CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Seen(NamedTuple):
    """The part of a kernel that falls on the input at one position or more; all others only ever see padding."""

    taps: tuple[slice, ...]  # along each dimension of the kernel
    around: tuple[int, ...]  # the padding that this part needs (negative: what it passes by), as F.pad takes it

    @property
    def kernel(self) -> tuple[int, ...]:
        """The size of the part."""
        return tuple(taps.stop - taps.start for taps in self.taps)

    def of(self, columns: Tensor, kernel: Sequence[int]) -> Tensor:
        """The part of (..., C * kernel) that belongs to it, (..., C * part)."""
        split = columns.unflatten(-1, (-1, *kernel))
        return split[(..., *self.taps)].flatten(-1 - len(self.taps))


def seen(
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
) -> Seen | None:
    """Which taps of a kernel ever fall on an input of this size, between these paddings; None: each of them, or none.

    On a map of 1 x 1 with a padding of 1 that is one of nine: what is multiplied by zeros need not be.
    """
    taps, around = [], []
    for n, k, d, s, left, right in zip(size, kernel, dilation, stride, before, after, strict=True):
        count = (n + left + right - d * (k - 1) - 1) // s + 1
        fall = []
        for tap in range(k):
            first = max(0, -((tap * d - left) // s))  # the first position at which it is not before the input
            if first < count and first * s + tap * d - left < n:
                fall.append(tap)
        if not fall:
            return None
        start, stop = fall[0], fall[-1] + 1
        taps.append(slice(start, stop))
        begin = left - start * d
        around = [begin, (count - 1) * s + d * (stop - start - 1) + 1 - begin - n, *around]  # the last dimension first
    part = Seen(tuple(taps), tuple(around))
    return None if part.kernel == tuple(kernel) else part


def unfolded(x: Tensor, kernel: Sequence[int], dilation: Sequence[int], stride: Sequence[int]) -> Tensor:
    """All patches (N, positions, C * kernel) of x (N, C, *size), channels first and then the kernel."""
    rank = len(kernel)
    if all(k == 1 for k in kernel):  # no patches, but pixels
        return x[(..., *(slice(None, None, s) for s in stride))].flatten(2).transpose(1, 2)
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
