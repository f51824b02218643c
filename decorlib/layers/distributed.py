"""Means over the samples of all processes of torch.distributed."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn


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


def gathered(layer: nn.Module) -> bool:
    """Whether the R that a layer holds now is what FSDP2 (fully_shard) put together for a forward.

    It looks like any Parameter, and what is written to it is dropped when the shards take its place again. torch tells
    nobody by a public name; this is for an R that was not seen before, and for processes that have loaded FSDP2.
    """
    states = sys.modules.get("torch.distributed._composable_state")
    if "torch.distributed.fsdp" not in sys.modules or states is None:
        return False
    for reference in list(states._module_state_mapping.values()):
        for group in getattr(reference(), "_fsdp_param_groups", ()):
            if any(one._module_info.module is layer for one in group.fsdp_params):
                return True
    return False
