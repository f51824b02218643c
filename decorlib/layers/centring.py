"""Centring: the mean of a batch, over all processes, and the running mean that stands for it in evaluation.

One module for everything that subtracts a mean: layers with ``center=...``, and the study's networks that only demean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decorlib.layers import memory, operations
from decorlib.layers.distributed import distributed, pooled_mean
from decorlib.layers.recompute import at_first, only_once, recomputing


def check_count(center: str, count: int) -> None:
    """Raise ValueError where the mean of so few samples would leave nothing of them."""
    if center == "batch" and count < 2 and not distributed():
        raise ValueError(
            f"center='batch' needs at least 2 samples in training, got {count}: use center='running', "
            "a larger batch, or drop_last=True"
        )


def evaluation_mean(layer: nn.Module) -> Tensor | None:
    """What a Decorrelation subtracts in evaluation: a ``center`` that was set to None later leaves its mean behind."""
    return None if layer.center is None else layer.running_mean


def over_processes(batch_mean: Tensor, count: int, process_group=None) -> Tensor:
    """The mean over the samples of all processes, differentiable; the same one where there is one process."""
    return pooled_mean(batch_mean, count, process_group) if distributed() else batch_mean


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
    if torch.compiler.is_compiling():
        return _follow_compiled(running_mean, batch_mean, momentum, num_batches_tracked)
    if num_batches_tracked is not None:
        num_batches_tracked.add_(1)
    # Nothing here needs a gradient; to say so (torch.no_grad) would cost more than to do it.
    weight = (1 / num_batches_tracked).to(running_mean) if momentum is None else momentum
    running_mean.lerp_(batch_mean.detach().to(running_mean), weight)


def _follow_compiled(running_mean, batch_mean, momentum, num_batches_tracked) -> None:
    """The same in code that does not know whether it is a forward or its recomputation, in which nothing moves."""
    if num_batches_tracked is not None:
        num_batches_tracked.copy_(at_first(num_batches_tracked + 1, num_batches_tracked))
    weight = (1 / num_batches_tracked).to(running_mean) if momentum is None else momentum
    moved = running_mean.lerp(batch_mean.detach().to(running_mean), weight)
    running_mean.copy_(at_first(moved, running_mean))


def tracked_plainly(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor | None:
    """The same as :func:`tracked` for nearly all training forwards, in a tenth of the time, and with a promise.

    The promise: the mean is that of all rows of x (*, D), without a gradient, and a product of x and ``weight`` may go
    through :mod:`decorlib.layers.operations`. None where anything is out of the ordinary, and then nothing has changed.
    """
    of = layer.__dict__  # a module looks for its attributes in four places
    if not (of["center"] == "batch" and of["training"] and of["groups"] == 1 and of["_padding_mask"] is None):
        return None
    if of["momentum"] is None or layer.sharers > 1 or not operations.eager(x, weight) or distributed():
        return None
    running_mean = of["_buffers"]["running_mean"]
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if rows.shape[0] < 2 or running_mean.dtype != x.dtype:
        return None
    mean = rows.detach().mean(0)
    memory.check_finite(layer, mean, "a batch mean")
    if not recomputing():
        of["_buffers"]["num_batches_tracked"].add_(1)
        running_mean.lerp_(mean, of["momentum"])
    return mean


def tracked(layer: nn.Module, mean_of, count: int) -> Tensor:
    """The mean that a layer subtracts in training; its running mean follows.

    A forward that is computed again inside backward subtracts what it subtracted before, and moves nothing; an empty
    one moves nothing either.

    Args:
        layer: a :class:`~decorlib.layers.Decorrelation` with ``center="batch"`` or ``"running"``.
        mean_of: the mean of the batch in the given dtype, (D).
        count: samples in the batch.
    """
    if memory.nothing(layer, count):
        return layer.running_mean
    check_count(layer.center, count)
    batch_mean, again = mean_of(layer.running_mean.dtype), recomputing()
    memory.check_finite(layer, batch_mean, "a batch mean")  # before it can poison the running mean
    if again and layer.center == "running":
        return layer._passes.subtracted(batch_mean)
    pooled = over_processes(batch_mean, count, layer.process_group)
    if not again:
        follow(layer.running_mean, pooled, layer.momentum, layer.num_batches_tracked)
    if layer.center == "batch":
        return pooled
    if torch.compiler.is_compiling():
        return only_once(layer.running_mean)
    mean = layer.running_mean.clone()  # the buffer will have moved on by the time backward reads it
    if not again:
        layer._passes.add(batch_mean, mean)
    return mean
