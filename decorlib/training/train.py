"""The training loop, with its steps in the open, and the seed's call on top of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from decorlib.layers.memory import NonFiniteInput
from decorlib.layers.models import (
    bp_parameters,
    decor_measure,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_update,
)
from decorlib.training.history import Epoch, History


class SilentNoOp(RuntimeError):
    """A decorrelation step with a positive rate left every R as it was."""


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
    history: History | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    r"""Train weights by backpropagation and R by its rule, side by side.

    Each step: forward, task loss, backward, optimizer step, decorrelation update, decorrelation step. Nothing is hidden
    in ``forward``; the loop below is short enough to copy and change.

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
        decor_optimizer: over :func:`decor_parameters`, and nothing else; None leaves every R as it is and measures
            nothing.
        device: where batches are moved. Default: where the model is.
        measure_first: begin with a pass that measures and does not step, as epoch 0. Default: False.
        evaluate: called after each epoch with the model in evaluation mode; its dict lands in the history.
        scheduler: of ``optimizer``, stepped once per epoch.
        decor_scheduler: of ``decor_optimizer``, likewise.
        max_step: bound on rate times curvature of each decorrelation step; see :meth:`Decorrelation.update`.
        allow_no_op: accept decorrelation steps that change nothing. Default: False, they raise.
        in_place: take the steps of R without a gradient in between (:func:`decor_step`), the same but for rounding.
            Only plain SGD without hooks can. Default: None, where it can.
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
        ...                 decor_optimizer=torch.optim.SGD(decor_parameters(model), lr=1e-4))
    """
    if epochs < 0:
        raise ValueError(f"epochs is {epochs}; it must be at least 0")
    _check_ownership(model, optimizer, decor_optimizer)
    plain = decor_optimizer is not None and _is_plain_sgd(decor_optimizer)
    if in_place and not plain:
        raise ValueError(
            "in_place=True takes plain SGD steps, and none that hooks wait for; decor_optimizer is "
            f"{decor_optimizer}: use in_place=False"
        )
    in_place = plain if in_place is None else in_place
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    watch = None if decor_optimizer is None or allow_no_op else _NoOpWatch(model, decor_optimizer, in_place)
    history = _continued(history)
    first = history[-1].epoch + 1 if len(history) else 0 if measure_first else 1
    model.train()
    for epoch in range(first, epochs + 1):
        stepping = epoch > 0
        start, losses, decor_losses = time.perf_counter(), [], []
        for batch, (inputs, targets) in enumerate(train_loader):
            inputs, targets = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            try:
                loss = loss_fn(model(inputs), targets)
            except NonFiniteInput as error:
                if bool(inputs.isfinite().all()):  # the data are fine: the run has blown up on the way here
                    where = next((name for name, layer in decor_modules(model) if layer is error.layer), "?")
                    return _diverged(history, epoch, f"batch {batch}: layer '{where}': {error}")
                raise ValueError(f"batch {batch} of epoch {epoch} holds NaN or infinity: clean the data") from error
            if stepping and optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if decor_optimizer is not None:
                if watch is not None and stepping:
                    watch.expect()
                if not stepping:
                    decor_losses.append(decor_measure(model))
                elif in_place:
                    decor_losses.append(decor_step(model, _rate(decor_optimizer), max_step))
                else:
                    decor_losses.append(decor_update(model, _rate(decor_optimizer), max_step))
                    decor_optimizer.step()
                if watch is not None and watch.checks == 0:
                    watch.check("the first step")
            losses.append(loss.detach())
        if not losses:
            raise ValueError("train_loader gave no batch: fewer samples than batch_size with drop_last=True?")
        seconds = time.perf_counter() - start if stepping else 0.0
        row = summarise(epoch, seconds, losses, decor_losses)
        if broken := not_finite(row):
            return _diverged(history, epoch, f"{broken} not finite over epoch {epoch}")
        if evaluate is not None:
            model.eval()
            row.metrics.update(evaluate(model))
            model.train()
        history.epochs.append(row)
        if watch is not None and stepping:
            watch.check(f"epoch {epoch}")
        if in_place and stepping:
            decor_optimizer.step()  # there is no gradient: this only tells its schedule that steps were taken
        for schedule in (scheduler, decor_scheduler):
            if schedule is not None and stepping:
                schedule.step()
        if on_epoch is not None:  # last, so that a checkpoint saved here holds all of the epoch
            on_epoch(row)
    return history


def decor_train(
    args, model: nn.Module, lossfun, train_loader, device, *, verbose: bool = True, allow_no_op: bool = False
) -> History:
    """The seed notebook's call: Adam on the weights, plain SGD on R, an epoch 0 that measures, its printed lines.

    Prints in the seed's accounting (see :meth:`History.as_seed_printed`); returns true per-batch means.

    Args:
        args: a namespace with ``lr`` (rate of the weights), ``epochs``, and the rate of R: ``decor_lr``, or where that
            does not exist ``eta``, as in the seed. There ``eta`` means a rate; in a layer it is a weight of the rule.
        model: a model with decorrelation layers.
        lossfun: (outputs, targets) -> scalar.
        train_loader: yields (inputs, targets).
        device: where model and batches are moved.
        verbose: print the seed's lines. Default: True.
        allow_no_op: accept steps of R that change nothing, which is what the seed's third run did. Default: False.
    """
    rate = _checked_rate("decor_lr" if hasattr(args, "decor_lr") else "eta", getattr(args, "decor_lr", None), args)
    weights_rate = _checked_rate("lr", None, args)
    model = model.to(device)
    weights = list(bp_parameters(model))
    printed = History()

    def show(row: Epoch) -> None:
        printed.epochs[:] = [row]
        if verbose:
            print(*printed.seed_lines())

    history = train(
        model,
        lossfun,
        train_loader,
        epochs=args.epochs,
        optimizer=torch.optim.Adam(weights, lr=weights_rate) if weights else None,
        decor_optimizer=torch.optim.SGD(decor_parameters(model), lr=rate),
        device=device,
        measure_first=True,
        allow_no_op=allow_no_op,
        in_place=False,  # update, then step, as the seed does it
        on_epoch=show,
    )
    if history.status == "diverged":
        warnings.warn(
            f"diverged in epoch {history.diverged_at}: {history.cause}. Lower the rates, or centre the inputs",
            RuntimeWarning,
            stacklevel=2,
        )
    return history


# ---------------------------------------------------------------------------------------------------------- internals


class _NoOpWatch:
    """Notices layers whose R stays as it was, to the bit, over decorrelation steps at a positive rate."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, in_place: bool):
        self.layers, self.optimizer, self.in_place = dict(decor_modules(model)), optimizer, in_place
        self.before = {name: layer.weight.detach().clone() for name, layer in self.layers.items()}
        self.learning, self.checks = set(), 0

    def expect(self) -> None:
        """Before an update: the layers that ``update_every`` lets learn in it ought to move.

        An R of one entry is not expected to: it can reach its fixed point to the bit, and rightly stay there.
        """
        if len(self.learning) < len(self.layers):
            self.learning |= {n for n, layer in self.layers.items() if layer.due and layer.weight.shape[-1] > 1}

    def check(self, when: str) -> None:
        """Raise where no R moved although some should have, warn where one did not."""
        rate = max((group["lr"] for group in self.optimizer.param_groups), default=0.0)
        if not self.learning or not rate > 0:
            return
        still = sorted(n for n in self.learning if torch.equal(self.before[n], self.layers[n].weight))
        moved = len(self.learning) > len(still)
        for name, layer in self.layers.items():
            self.before[name].copy_(layer.weight.detach())  # into the same memory: a fresh D x D costs a step's time
        self.learning, self.checks = set(), self.checks + 1
        if not still:
            return
        without = [] if self.in_place else [name for name in still if self.layers[name].weight.grad is None]
        reason = f"update() left no gradient on {without}" if without else f"a rate of {rate} is lost in rounding"
        if moved:  # a layer that sees only zeros may rightly stand still
            warnings.warn(
                f"{when}: R of {still} did not move: {reason}, or the layer sees only zeros",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        raise SilentNoOp(
            f"{when}: the decorrelation step at rate {rate} left every R unchanged (layers {still}): {reason}. "
            "Restart the kernel if library code was edited, check that decor_optimizer holds decor_parameters(model), "
            "or pass allow_no_op=True if R is meant to stand still"
        )


def _continued(history: History | None) -> History:
    """A copy to go on with, or a new one."""
    if history is None:
        return History()
    if history.status == "diverged":
        raise ValueError(
            f"history diverged in epoch {history.diverged_at}: there is nothing to continue. Restore a checkpoint from "
            "before, and pass the history saved with it"
        )
    return History(list(history))


def _check_ownership(model, optimizer, decor_optimizer) -> None:
    decor = {id(p): name for name, layer in decor_modules(model) for p in layer.parameters(recurse=False)}
    groups = [] if optimizer is None else optimizer.param_groups
    mine = [decor[id(p)] for group in groups for p in group["params"] if id(p) in decor]
    if mine:
        raise ValueError(
            f"optimizer also owns R of {sorted(set(mine))}: it would step R by its own rule as soon as a gradient is "
            "set. Build it over bp_parameters(model)"
        )
    if decor_optimizer is None:
        return
    groups = decor_optimizer.param_groups
    others = sum(id(p) not in decor for group in groups for p in group["params"])
    if others:
        raise ValueError(f"decor_optimizer also owns {others} plain weights: build it over decor_parameters(model)")
    if not decor:
        raise ValueError("decor_optimizer is given, but the model has no decorrelation layer: see decorlib.decorrelate")
    owned = {id(p) for group in groups for p in group["params"]}
    missing = sorted({name for i, name in decor.items() if i not in owned})
    if missing:
        raise ValueError(f"no optimizer owns R of {missing}: build decor_optimizer over decor_parameters(model)")
    for group in groups:
        if group["lr"] < 0:
            raise ValueError(f"the decorrelation rate is {group['lr']}; it must be at least 0")


def _checked_rate(name: str, value, args) -> float:
    value = getattr(args, name) if value is None else value
    if not (isinstance(value, int | float) and 0 <= value < float("inf")):
        raise ValueError(f"args.{name} is {value!r}; it must be a finite number, at least 0")
    return value


def _is_plain_sgd(optimizer: torch.optim.Optimizer) -> bool:
    extras = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return (
        type(optimizer) is torch.optim.SGD
        and len(optimizer.param_groups) == 1
        and not any(optimizer.param_groups[0][name] for name in extras)
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)  # they want every step
    )


def _rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def summarise(epoch: int, seconds: float, losses: list[Tensor], decor_losses: list[dict]) -> Epoch:
    """Read the device once: means over the batches, per layer over the batches where it learned."""
    by_layer: dict[str, list[Tensor]] = {}
    for step in decor_losses:
        for name, loss in step.items():
            if loss is not None:
                by_layer.setdefault(name, []).append(loss)
    # float64: a sum over an epoch of float32 losses would lose the digits that runs are compared in
    means = {name: float(torch.stack(values).double().mean()) for name, values in by_layer.items()}
    return Epoch(epoch, seconds, len(losses), float(torch.stack(losses).double().mean()), means)


def not_finite(row: Epoch) -> str:
    """Which losses are NaN or infinite, as the subject of a sentence; "" where none is."""
    losses = {"the task loss": row.loss}
    losses |= {f"the decorrelation loss of layer '{name}'": loss for name, loss in row.decor_losses.items()}
    broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
    return " and ".join(broken) + (" is" if len(broken) == 1 else " are") if broken else ""


def _diverged(history: History, epoch: int, cause: str) -> History:
    history.status, history.cause, history.diverged_at = "diverged", cause, epoch
    return history


def steps_of(history: History) -> Iterator[int]:
    """Cumulative number of steps after each epoch, for plots against steps."""
    total = 0
    for row in history:
        total += row.batches if row.epoch > 0 else 0
        yield total
