"""Memory formats of images: the output of a layer lies in memory as that of torch's layer does.

What comes next may depend on it: ``view`` raises on one format and not on the other, and convolutions take the format
of their input.
"""

from __future__ import annotations

import torch
from torch import Tensor

# By the number of dimensions; torch takes a sequence (N, C, L) for an image (N, C, 1, L).
_LAST = {3: torch.channels_last, 4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> bool:
    """Whether torch takes these strides (N, C, H, W) for channels_last, as its suggest_memory_format does.

    Images of one channel or of one pixel are contiguous in both formats, and only their strides tell.
    """
    x = x.unsqueeze(2) if x.dim() == 3 else x
    least = 0
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        size, stride = x.shape[axis], x.stride(axis)
        if size == 0 or stride < least or (axis == 1 and stride == 0) or (axis == 0 and least == x.stride(1)):
            return False
        least = stride * size if size > 1 else stride
    return True


def layout_of(x: Tensor, *others: Tensor) -> torch.memory_format:
    """The memory format of x; channels last where any of the others is."""
    return _LAST[x.dim()] if any(map(channels_last, (x, *others))) else torch.contiguous_format


def in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """x (N, C, H, W) in a memory format, by all of its strides: contiguous() looks at fewer of them."""
    if x.dim() == 3:
        return in_layout(x.unsqueeze(2), layout).squeeze(2)
    if channels_last(x) is (layout is not torch.contiguous_format) and x.is_contiguous(memory_format=layout):
        return x
    return x.clone(memory_format=layout)


def shaped_like(weight: Tensor, fused: Tensor) -> Tensor:
    """A fused weight in the shape and the memory format of the plain one, which decides on that of the output."""
    return in_layout(fused.reshape(weight.shape), layout_of(weight))
