"""The call of the 2024 notebook: its arguments, its order of steps, its printed lines."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from decorlib.layers.models import bp_parameters, decor_parameters
from decorlib.training.history import Epoch, History
from decorlib.training.train import train


def decor_train(
    args, model: nn.Module, lossfun, train_loader, device, *, verbose: bool = True, allow_no_op: bool = False
) -> History:
    """The 2024 notebook's call: Adam on the weights, plain SGD on R, an epoch 0 that measures, its printed lines.

    Prints in that notebook's accounting (see :meth:`History.as_printed_in_2024`); returns true per-batch means.

    Args:
        args: a namespace with ``lr`` (rate of the weights), ``epochs``, and the rate of R: ``decor_lr``, or where that
            does not exist ``eta``, as in the notebook. There ``eta`` means a rate; in a layer it weighs the rule.
        model: a model with decorrelation layers.
        lossfun: (outputs, targets) -> scalar.
        train_loader: yields (inputs, targets).
        device: where model and batches are moved.
        verbose: print the notebook's lines. Default: True.
        allow_no_op: accept steps of R that change nothing, which is what the notebook's third run did. Default: False.
    """
    rate = _checked_rate("decor_lr" if hasattr(args, "decor_lr") else "eta", getattr(args, "decor_lr", None), args)
    weights_rate = _checked_rate("lr", None, args)
    model = model.to(device)
    weights = list(bp_parameters(model))
    printed = History()

    def show(row: Epoch) -> None:
        printed.epochs[:] = [row]
        if verbose:
            print(*printed.lines_printed_in_2024())

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
        in_place=False,  # update, then step, as the notebook does it
        on_epoch=show,
    )
    if history.status == "diverged":
        warnings.warn(
            f"diverged in epoch {history.diverged_at}: {history.cause}. Lower the rates, or centre the inputs",
            RuntimeWarning,
            stacklevel=2,
        )
    return history


def _checked_rate(name: str, value, args) -> float:
    value = getattr(args, name) if value is None else value
    if not (isinstance(value, int | float) and 0 <= value < float("inf")):
        raise ValueError(f"args.{name} is {value!r}; it must be a finite number, at least 0")
    return value
