"""The gradients that ``decor_update`` leaves in ``.grad`` until an optimizer steps them, and who may touch them.

Between ``decor_update(model)`` and its optimizer's ``step()`` the gradient of R lies where everything that walks
``model.parameters()`` finds it: clipping, loss scaling, ``zero_grad``, another optimizer. None of that is meant for R.
Torch's hooks of every optimizer and the version counters of tensors make such a touch an error before a step is taken.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

WAY_OUT = (
    "Give R an optimizer of its own that leaves nothing in .grad: decorlib.DecorSGD(model, lr), or "
    "decorlib.DecorOptimizer for other kinds; or call decor_step(model, lr)"
)
_SAMPLES = 256


class LostGradient(RuntimeError):
    """A gradient that ``decor_update`` had set was changed, dropped, or stepped by the wrong optimizer."""


@dataclass
class _Pending:
    """A gradient that waits for its optimizer."""

    layer: str
    model: weakref.ref[nn.Module]
    parameter: weakref.ref[nn.Parameter]
    gradient: Tensor
    version: int
    values: Tensor | None  # some of the gradient's: loss scaling divides it without a word to the version counter
    written: int
    sample: Tensor
    rate: float | None  # that the gradient was made for, where it depends on it

    def touched(self) -> str | None:
        """What happened to the gradient since it was set, or None."""
        parameter = self.parameter()
        if parameter.grad is None:
            return "set to None (by zero_grad?)"
        if parameter.grad is not self.gradient:
            return "replaced by another tensor"
        same = self.values is None or torch.equal(_bits(_sample(self.gradient)), _bits(self.values))
        if _version(self.gradient) != self.version or not same:
            return "changed in place (clipped, unscaled or zeroed?)"
        return None

    def moved(self) -> bool:
        """Whether the parameter has been written to since: a step that somebody took by hand."""
        parameter = self.parameter()
        return _version(parameter) != self.written or not torch.equal(_sample(parameter), self.sample)


_pending: dict[int, _Pending] = {}
_known: weakref.WeakValueDictionary[int, nn.Parameter] = weakref.WeakValueDictionary()  # every R and b_R seen here


def expect_step(
    model: nn.Module, named: Iterable[tuple[str, nn.Parameter]], rates: Mapping[str, float | None] | None = None
) -> None:
    """Remember the gradients of these (layer, parameter) of a model until an optimizer has stepped them.

    ``rates``: by layer, where the gradient depends on the rate of the step, that which it was made for.
    """
    for layer, parameter in named:
        gradient = parameter.grad
        # On a GPU reading values back means waiting for it: at the first step only, which is scaled if any is.
        read = parameter.device.type == "cpu" or id(parameter) not in _known
        _known[id(parameter)] = parameter
        if gradient is not None:
            _pending[id(parameter)] = _Pending(
                layer,
                weakref.ref(model),
                weakref.ref(parameter),
                gradient,
                _version(gradient),
                _sample(gradient) if read else None,
                _version(parameter),
                _sample(parameter),
                (rates or {}).get(layer),
            )


def refuse_unstepped(parameters: Iterable[nn.Parameter]) -> None:
    """Raise where a gradient of an earlier ``decor_update`` is still waiting, or got lost on the way to its step."""
    if not _pending:
        return
    _forget_the_dead()
    mine = [_pending[id(p)] for p in parameters if id(p) in _pending]
    _refuse_touched(mine)
    waiting = [one for one in mine if not one.moved()]
    _drop(mine)
    if waiting:
        raise LostGradient(
            f"the gradient of R that the last decor_update set was never stepped (layers {_names(waiting)}): call "
            f"step() of the optimizer of R after each decor_update. {WAY_OUT}"
        )


def _before_any_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    if not _pending or getattr(type(optimizer), "owns_R", False):  # ours look for themselves
        return
    _forget_the_dead()
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    mine = [_pending[id(p)] for p in owned if id(p) in _pending]
    # Clipping that counted R has spoiled the weights' gradients too: say so before they are stepped.
    touched = [one for one in _pending.values() if one.touched()]
    _refuse_touched([one for one in touched if _shares_parameters(owned, one.model())])
    if not mine:
        return
    others = sum(id(p) not in _known for p in owned)
    kind, problem = type(optimizer).__name__, None
    if others:
        problem = f"{kind} is about to step R of layers {_names(mine)}, but it also owns {others} plain weights"
    elif getattr(optimizer, "grad_scale", None) is not None:
        problem = f"a GradScaler is about to divide the gradient of R of layers {_names(mine)} by the scale of the loss"
    elif (other := _other_rate(optimizer)) is not None:
        one, rate = other
        problem = (
            f"decor_update was told that the step of layer '{one.layer}' is of rate {one.rate}, which its gradient "
            f"depends on, and {kind} is about to step by {rate}: give decor_update the rate of the optimizer "
            "(optimizer.param_groups[0]['lr'], which schedules change)"
        )
    if problem:
        _drop(mine)
        raise LostGradient(f"{problem}: R has one owner, and its gradient comes from no loss. {WAY_OUT}")


def _other_rate(optimizer: torch.optim.Optimizer) -> tuple[_Pending, float] | None:
    """A gradient that was made for another rate than the one that it is about to be stepped by, and that one."""
    for group in optimizer.param_groups:
        for one in (_pending[id(p)] for p in group["params"] if id(p) in _pending):
            if one.rate is not None and not math.isclose(one.rate, rate := float(group["lr"]), rel_tol=1e-6):
                return one, rate
    return None


def _after_any_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    if _pending:
        _drop([_pending[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in _pending])


def watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether anybody waits for a step of one of ours: a gradient of decor_update, a hook, a profiler."""
    hooks = len(_global_optimizer_pre_hooks) + len(_global_optimizer_post_hooks)
    return bool(
        _pending
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or hooks > len(_handles)
        or torch.autograd._profiler_enabled()
    )


def _refuse_touched(pending: list[_Pending]) -> None:
    touched = {one.layer: what for one in pending if (what := one.touched())}
    if touched:
        _drop(pending)
        how = sorted(set(touched.values()))
        raise LostGradient(
            f"between decor_update and its step the gradient of R was {' or '.join(how)} (layers {sorted(touched)}); "
            f"it is no gradient of the loss, and nothing but its optimizer may touch it. {WAY_OUT}"
        )


def _shares_parameters(owned: list[Tensor], model: nn.Module | None) -> bool:
    ids = {id(p) for p in owned}
    return model is not None and any(id(p) in ids for p in model.parameters())


def _drop(pending: list[_Pending]) -> None:
    """Take the gradients away: nothing that walks ``parameters()`` is to find them any more."""
    for one in pending:
        parameter = one.parameter()
        if parameter is not None:
            parameter.grad = None
            _pending.pop(id(parameter), None)


def _forget_the_dead() -> None:
    for key in [key for key, one in _pending.items() if one.parameter() is None]:
        del _pending[key]


def _names(pending: list[_Pending]) -> list[str]:
    return sorted({one.layer for one in pending})


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _bits(sample: Tensor) -> Tensor:
    return sample.view(torch.uint8)  # NaN is not equal to itself


def _sample(tensor: Tensor) -> Tensor:
    """Some entries, spread over rows and columns: writing through ``.data`` leaves the version counter as it was."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLES) | 1].clone()


# A reload of this module (%autoreload) must not leave two sets of hooks.
for _handle in globals().get("_handles", ()):
    _handle.remove()
_handles = (register_optimizer_step_pre_hook(_before_any_step), register_optimizer_step_post_hook(_after_any_step))
