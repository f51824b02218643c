"""Centring: the mean of a batch, over all processes, and the running mean that stands for it in evaluation.

One module for everything that subtracts a mean: layers with ``center=...``, and the study's networks that only demean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from decorlib.layers.distributed import distributed, pooled_mean

CENTERS = (None, "batch", "running", "bias")


def check_count(center: str, count: int) -> None:
    """Raise ValueError where the mean of so few samples would leave nothing of them."""
    if center == "batch" and count < 2 and not distributed():
        raise ValueError(
            f"center='batch' needs at least 2 samples in training, got {count}: use center='running', "
            "a larger batch, or drop_last=True"
        )


def over_processes(batch_mean: Tensor, count: int, process_group=None) -> Tensor:
    """The mean over the samples of all processes, differentiable; the same one where there is one process."""
    return pooled_mean(batch_mean, count, process_group) if distributed() else batch_mean


@torch.no_grad()
def follow(
    running_mean: Tensor, batch_mean: Tensor, momentum: float | None, num_batches_tracked: Tensor | None = None
) -> None:
    """Move a running mean in place, as :class:`torch.nn.BatchNorm1d` does.

    Args:
        running_mean: (D), moved by ``momentum`` of the way to the batch mean.
        batch_mean: (D).
        momentum: weight of the batch mean; None for the plain average of all batches, which ``num_batches_tracked``
            counts.
        num_batches_tracked: counter of batches, raised by 1. Default: none is kept.
    """
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    weight = (1 / num_batches_tracked).to(running_mean) if momentum is None else momentum
    running_mean.lerp_(batch_mean.detach().to(running_mean), weight)
