"""A convolution on small maps, of whose kernel a part falls on the input and the rest only ever sees padding.

Padding with zeros makes entries of a patch that are zero at every position. What R has for them need not be multiplied:
on a map of 1 x 1 under a kernel of 3 x 3, which is where deep networks end, one column in nine counts. All else is as
in :mod:`decorlib.layers.conv`, whose way over whole patches is the slow reference.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers.distributed import distributed
from decorlib.layers.layout import in_layout, layout_of
from decorlib.layers.patches import CONVOLVE, Seen, seen, unfolded


def seen_part(layer: nn.Module, x: Tensor) -> Seen | None:
    """The part of a layer's kernel that R has to multiply for images x; None: all of it."""
    d, around = layer.decorrelation, layer._reversed_padding_repeated_twice
    if not any(around) or layer.padding_mode != "zeros" or layer.groups > 1 or x.numel() == 0:
        return None
    # What a running mean has for the rest, or other processes, may come of larger images.
    if d.center is not None and (not d.training or d.center != "batch" or distributed()):
        return None
    if d.due and (d.rule.reads is not None or d.padding_mask is not None):  # whole patches are kept
        return None
    before, after = around[::2][::-1], around[1::2][::-1]  # of the last dimension first
    return seen(x.shape[2:], layer.kernel_size, layer.dilation, layer.stride, before, after)


def fused_output(layer: nn.Module, x: Tensor, part: Seen, mean: Tensor | None) -> Tensor:
    """The output by (W R) of the part alone."""
    d, rows = layer.decorrelation, layer.weight.flatten(1)
    if d.due:
        d.remember_samples(layer.patches(x), mean)
    R, mean, b = _columns(layer, part, mean)
    weight = rows @ R
    shifts = [] if b is None else [(b, rows)]
    bias = layer.shifted_bias(shifts if mean is None else [*shifts, (-mean, weight)])
    kernel = in_layout(weight.unflatten(1, (-1, *part.kernel)), layout_of(layer.weight))
    return CONVOLVE[len(part.kernel)](F.pad(x, part.around), kernel, bias, layer.stride, 0, layer.dilation)


def states(layer: nn.Module, x: Tensor, part: Seen, mean: Tensor | None) -> Tensor:
    """The decorrelated states (N, positions, D), all of them, by the part of R; remembered where they are due."""
    d = layer.decorrelation
    R, mean, b = _columns(layer, part, mean)
    patches = unfolded(F.pad(x, part.around), part.kernel, layer.dilation, layer.stride)
    y = F.linear(patches if mean is None else patches - mean, R, b)
    if d.due:
        inputs, rows = patches.detach().flatten(0, 1), y.detach().flatten(0, 1)
        chosen = d.sample(rows.shape[0], x.device)
        d.remember_samples(*((inputs, None, rows) if chosen is None else (inputs[chosen], None, rows[chosen])))
    return y


def _columns(layer: nn.Module, part: Seen, mean: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of R and of the mean what belongs to the part; and b_R."""
    d, dtype, kernel = layer.decorrelation, layer.weight.dtype, layer.kernel_size
    R, b = part.of(d.weight.detach().to(dtype), kernel), d.bias
    return R, None if mean is None else part.of(mean.to(dtype), kernel), None if b is None else b.detach().to(dtype)
