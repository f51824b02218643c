"""The training loop, with its steps in the open."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from decorlib.layers.memory import NonFiniteInput
from decorlib.layers.models import decor_measure
from decorlib.layers.preserve import LostFunction
from decorlib.training.guards import NoOpWatch, cause_of, check_ownership, diverged, not_finite, owner_of_R
from decorlib.training.history import Epoch, History, continued, summarise


def one_pass(
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer | None,
    learn: Callable[[], dict[str, Tensor | None]] | None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> tuple[list[Tensor], list[dict[str, Tensor | None]]]:
    """One pass over the batches: forward and loss, backward, optimizer step, decorrelation step.

    Args:
        batches: yields (inputs, targets).
        loss_of: (inputs, targets) -> task loss.
        optimizer: of the weights; None: nothing is backpropagated.
        learn: takes the decorrelation step (or only measures) and returns its losses; None: no R learns.
        backward: of the loss. Default: its own.

    Returns:
        Task losses and decorrelation losses, step by step, on the device.

    Raises:
        NonFiniteInput: from a layer; it then has ``batch`` and ``inputs``.
    """
    losses, decor_losses = [], []
    for batch, (inputs, targets) in enumerate(batches):
        try:
            loss = loss_of(inputs, targets)
        except NonFiniteInput as error:
            error.batch, error.inputs = batch, inputs
            raise
        if optimizer is not None:
            optimizer.zero_grad()
            backward(loss)
            optimizer.step()
        if learn is not None:
            decor_losses.append(learn())
        losses.append(loss.detach())
    if not losses:
        raise ValueError("train_loader gave no batch: fewer samples than batch_size with drop_last=True?")
    return losses, decor_losses


def train(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    train_loader: Iterable,
    *,
    epochs: int,
    optimizer: torch.optim.Optimizer | None,
    decor_optimizer: torch.optim.Optimizer | None = None,
    device: torch.device | str | None = None,
    measure_first: bool = False,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    scheduler=None,
    decor_scheduler=None,
    max_step: float | None = None,
    allow_no_op: bool = False,
    in_place: bool | None = None,
    preserve_function: bool = False,
    history: History | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    r"""Train weights by backpropagation and R by its rule, side by side.

    Each step is that of :func:`one_pass`: forward, task loss, backward, optimizer step, decorrelation step. Nothing is
    hidden in ``forward``; the two loops are short enough to copy and change.

    A run whose losses stop being finite ends at the end of that epoch, with ``history.status == "diverged"`` and the
    cause beside it: a result, not a crash. Losses stay on the device until the epoch's end, so a GPU is never waited
    for inside the loop.

    Args:
        model: any model; layers of :mod:`decorlib.layers` in it learn R, the rest trains as always.
        loss_fn: (outputs, targets) -> scalar.
        train_loader: yields (inputs, targets).
        epochs: passes over the loader, at least 0.
        optimizer: over the weights; must not hold any of :func:`decor_parameters`. None for a model that has no
            weights: nothing is backpropagated.
        decor_optimizer: a :class:`decorlib.DecorSGD` or :class:`decorlib.DecorOptimizer`, or any torch optimizer over
            :func:`decor_parameters` and nothing else; None leaves every R as it is and measures nothing. Frozen layers
            and those with ``learning = False`` need no owner.
        device: where batches are moved. Default: where the model is.
        measure_first: begin with a pass that measures and does not step, as epoch 0. Default: False.
        evaluate: called after each epoch with the model in evaluation mode; its dict lands in the history.
        scheduler: of ``optimizer``, stepped once per epoch.
        decor_scheduler: of ``decor_optimizer``, likewise.
        max_step: bound on rate times curvature of each decorrelation step, for a torch optimizer; see
            :meth:`Decorrelation.update`.
        allow_no_op: accept decorrelation steps that change nothing. Default: False, they raise.
        in_place: take the steps of a torch optimizer without a gradient in between (as :func:`decor_step`), the same
            but for rounding. Only plain SGD without hooks can. Default: None, where it can.
        preserve_function: of a torch optimizer: after each step of R the weights take up what R has changed, see
            :class:`decorlib.DecorSGD`. A run whose R becomes singular ends as one that diverged. Default: False.
        history: of the run that this one continues, whose model, optimizers and generators were restored: epochs are
            counted on from its last to ``epochs`` in all. It is not changed. Default: a new run.
        on_epoch: called with each finished epoch (printing, progress).

    Returns:
        A :class:`History` with one row per epoch, those of ``history`` among them.

    Raises:
        ValueError: an optimizer that owns what is not its own, a negative rate, an empty loader, NaN in the data, a
            ``history`` that diverged.
        SilentNoOp: a decorrelation step at a positive rate that changed no R, at the first step or over an epoch.
        RuntimeError: a decorrelation layer that the forward never reaches; the message names it.

    Example::

        >>> history = train(model, nn.CrossEntropyLoss(), loader, epochs=10,
        ...                 optimizer=torch.optim.Adam(bp_parameters(model), lr=1e-3),
        ...                 decor_optimizer=DecorSGD(model, lr=1e-4))
    """
    if epochs < 0:
        raise ValueError(f"epochs is {epochs}; it must be at least 0")
    check_ownership(model, optimizer, decor_optimizer)
    owner = owner_of_R(model, decor_optimizer, max_step, in_place, preserve_function)
    watch = None if owner is None else NoOpWatch(owner, allow_no_op)
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    history = continued(history)
    first = history[-1].epoch + 1 if len(history) else 0 if measure_first else 1

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return loss_fn(model(inputs), targets)

    model.train()
    for epoch in range(first, epochs + 1):
        start, stepping = time.perf_counter(), epoch > 0
        learn = None if watch is None else watch.step if stepping else partial(decor_measure, model)
        try:
            found = one_pass(on(device, train_loader), loss_of, optimizer if stepping else None, learn)
        except NonFiniteInput as error:
            return diverged(history, epoch, cause_of(error, model, epoch))
        except LostFunction as error:
            return diverged(history, epoch, str(error))
        row = summarise(epoch, time.perf_counter() - start if stepping else 0.0, *found)
        if broken := not_finite(row):
            return diverged(history, epoch, f"{broken} not finite over epoch {epoch}")
        if evaluate is not None:
            model.eval()
            row.metrics.update(evaluate(model))
            model.train()
        history.epochs.append(row)
        if stepping:
            if watch is not None:
                watch.check(f"epoch {epoch}")
            for schedule in (scheduler, decor_scheduler):
                if schedule is not None:
                    schedule.step()
        if on_epoch is not None:  # last, so that a checkpoint saved here holds all of the epoch
            on_epoch(row)
    return history


def on(device: torch.device | str, batches: Iterable) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches, moved to a device."""
    for inputs, targets in batches:
        yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
