"""Means over the samples of all processes of torch.distributed."""

from __future__ import annotations

import torch
from torch import Tensor


def distributed() -> bool:
    """Whether there are other processes to pool with."""
    dist = torch.distributed
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def pooled_mean(mean: Tensor, count: int, group) -> Tensor:
    """Mean over the samples of all processes; differentiable."""
    import torch.distributed.nn.functional as differentiable

    total = torch.cat([mean * count, mean.new_tensor([count])])
    total = differentiable.all_reduce(total, group=group or torch.distributed.group.WORLD)
    return total[:-1] / total[-1]
