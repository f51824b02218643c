"""Which torch optimizers can step R, and which of them take plain gradient steps."""

from __future__ import annotations

import inspect
import warnings

import torch

#: Those whose step is in proportion to the gradient. The others divide it by a size of its own.
PROPORTIONAL = (torch.optim.SGD, torch.optim.ASGD)


def refuse_kind(optimizer: torch.optim.Optimizer) -> None:
    """Raise for an optimizer that cannot step R; warn of a bound that its steps do not keep."""
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"{kind.__name__} evaluates a loss again and again in a step; the direction of R has none")
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError("maximize=True moves R away from decorrelated states: leave it out")
    bounds = [group["max_step"] for group in optimizer.param_groups if group.get("max_step") is not None]
    if bounds and kind.__module__.startswith("torch.optim") and not issubclass(kind, PROPORTIONAL):
        warnings.warn(
            f"max_step={bounds[0]} makes the gradient of R shorter, and {kind.__name__} divides that by its own size, "
            "so that its steps are as long as without: bound them by lr, or use decorlib.DecorSGD",
            RuntimeWarning,
            stacklevel=4,
        )


def is_plain_sgd(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all that its step does is p <- p - lr * gradient, and nobody waits for it."""
    extras = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return (
        type(optimizer) is torch.optim.SGD
        and not any(group[name] for group in optimizer.param_groups for name in extras)
        and not (optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)  # they want every step
    )
