"""One learning step of several layers at once: all of them or none, and never one that changes nothing unnoticed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from decorlib.layers.checks import called, check_max_step
from decorlib.layers.checks import frozen as rests
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.options import Bound
from decorlib.layers.pending import refuse_unstepped
from decorlib.layers.step import prepared, wait, waits
from decorlib.layers.unmoved import Look

#: The loss of each layer's last step that learned, for :func:`decorlib.layers.summary`.
last_losses: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()


class Learner(NamedTuple):
    """A layer that holds R, and the name that errors give it."""

    name: str
    layer: Decorrelation

    @property
    def parameters(self) -> list[nn.Parameter]:
        """R, and b_R where there is one."""
        return [p for p in (self.layer.weight, self.layer.bias) if p is not None]

    def idle(self, skip_unreached: bool = False) -> str | None:
        """Why the layer sits out a step, or None; one without a batch only where asked to, else its update raises."""
        reason = self.layer.idle_reason()
        if reason is None and skip_unreached and self.layer.due and len(self.layer.memory) == 0:
            return "it has seen no batch since its last step"
        return reason

    def named(self, call: Callable, *arguments):
        """The call's result; an error names this layer."""
        try:
            return call(*arguments)
        except (RuntimeError, ValueError) as error:
            kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
            what = str(error).removeprefix(called(self.layer))  # it may have its name already
            raise kind(f"layer '{self.name}': {what}") from error


def is_decorrelation(module) -> bool:
    """Whether a module holds an R, found by what it is: after a reload of the library its class is another one."""
    return getattr(type(module), "holds_R", False)


def learners(model: nn.Module) -> list[Learner]:
    """Every layer of the model that holds an R, each once, in the order of ``named_modules``."""
    found = [Learner(name, module) for name, module in model.named_modules() if is_decorrelation(module)]
    for name, layer in found:
        if layer.name is None:  # what its own warnings call it
            layer.name = name
    return found


def frozen(model: nn.Module) -> set[str]:
    """Names of the layers whose weights are all frozen: their R will stand still, else their outputs would change."""
    trains: dict[int, list[bool]] = {}
    for module in model.modules():
        inner = getattr(module, "decorrelation", None)
        if is_decorrelation(inner) and not is_decorrelation(module):
            trains.setdefault(id(inner), []).append(not rests(module, False))
        for inner in getattr(module, "decorrelations", {}).values():  # of attention
            trains.setdefault(id(inner), []).append(any(W.requires_grad for W in module._weights()))
    return {name for name, layer in learners(model) if not any(trains.get(id(layer), [True]))}


def learners_of(model: nn.Module) -> list[Learner]:
    """:func:`learners`, of which there must be one."""
    found = learners(model)
    if not found:
        raise ValueError(
            f"this {type(model).__name__} has no decorrelation layer: convert it with decorlib.decorrelate(model), or "
            "build it of DecorLinear and its relatives"
        )
    return found


def check_rate(lr, members: Sequence[Learner] = (), allow_zero: bool = False) -> float | str:
    """The rate as a number, if it is one that R can step by, or ``"auto"``."""
    if isinstance(lr, str):
        if lr == "auto":
            return lr
        raise ValueError(f"lr is {lr!r}; allowed: a finite number above 0, and 'auto' (from the rule's curvature)")
    if lr is None or isinstance(lr, bool) or (isinstance(lr, Tensor) and lr.numel() != 1):
        raise ValueError(f"lr is {lr!r}; it must be one number, finite and above 0, or 'auto'")
    value = float(lr)
    if 0 < value < math.inf or (allow_zero and value == 0):
        return value
    whose = f"the rate of R of layers {[member.name for member in members]}" if members else "lr"
    raise ValueError(
        f"{whose} is {value}; it must be a finite number {'of at least' if allow_zero else 'above'} 0. A rate of 0 "
        "leaves R as it is and a negative one moves it the wrong way: to stop learning R set layer.learning = False"
    )


def learn(
    members: Sequence[Learner],
    rates: Sequence[float | str | None],
    bounds: Sequence[Bound],
    take: Callable[[list], None],
    *,
    skip_unreached: bool = False,
    look: bool = True,
    gradient: bool = False,
) -> dict[str, Tensor | None]:
    """One step of all layers that can learn, or of none where one of them cannot; losses by layer name.

    Frozen layers, those with ``learning=False`` and those in evaluation mode are skipped, with a loss of None.

    Args:
        members: the layers.
        rates: of each; ``"auto"``: from the curvature of its rule; None where the step is somebody else's.
        bounds: ``max_step`` of each.
        take: commits the list of prepared steps, e.g. :func:`in_place`; what it does cannot fail half-way.
        skip_unreached: also skip layers without a new batch, instead of raising.
        look: raise :class:`SilentNoOp` where no R moves.
        gradient: ``take`` asks for the directions of the steps, so that nothing is solved for a step in place.

    Raises:
        RuntimeError: no layer can learn, or one has no batch; the message names it.
        ValueError: a bound that is no number above 0.
    """
    losses: dict[str, Tensor | None] = {member.name: None for member in members}
    for member, bound in zip(members, bounds, strict=True):
        if bound is not None:  # also where this step only counts: a wrong one is found when it is set, not steps later
            member.named(check_max_step, bound)
    if _all_wait(members):
        return losses
    reasons = [member.idle(skip_unreached) for member in members]
    active = [
        (member, lr, bound)
        for member, lr, bound, reason in zip(members, rates, bounds, reasons, strict=True)
        if reason is None
    ]
    if not active:
        raise _nobody(members, reasons)
    steps = [
        member.named(prepared, member.layer, lr, bound, member.layer._is_turn(), gradient)
        for member, lr, bound in active
    ]
    refuse_unstepped(p for member in members for p in member.parameters)
    watched = Look(
        [(m.name, m.layer, s.rate) for (m, _, _), s in zip(active, steps, strict=True) if s.loss is not None], look
    )
    take(steps)
    if look:
        watched.refuse_unmoved()
    for member in members:  # an empty batch excuses one step; without any batch at the next one an error says so
        if not len(member.layer.memory):
            member.layer.memory.empty = False
    for (member, _, _), step in zip(active, steps, strict=True):
        losses[member.name] = step.loss
        if step.loss is not None:
            last_losses[member.layer] = step.loss
    return losses


def _all_wait(members: Sequence[Learner]) -> bool:
    """Whether this is a step between updates of all layers, which only counts: then it has done so."""
    if not members or not all(waits(member.layer) for member in members):
        return False
    for member in members:
        wait(member.layer)
    return True


def counted(groups: Sequence[dict], found: Sequence[Sequence[Learner]]) -> dict[str, Tensor | None] | None:
    """The losses of a step that only counts (none), once it has; None, and nothing done, where it is another.

    Args:
        groups: of an optimizer of R, with rates and bounds that may be none.
        found: the layers of each.
    """
    if not all(type(group["lr"]) is float and 0 < group["lr"] < math.inf for group in groups):
        return None
    if any(
        (bound := group.get("max_step")) is not None and not (type(bound) is float and bound > 0) for group in groups
    ):
        return None
    members = [member for one in found for member in one]
    return {member.name: None for member in members} if _all_wait(members) else None


def measure(members: Sequence[Learner]) -> dict[str, Tensor | None]:
    """The losses that :func:`learn` would report, without learning."""
    reasons = [member.idle() for member in members]
    if all(reasons):
        raise _nobody(members, reasons)
    return {
        member.name: member.named(member.layer.measure) if reason is None else None
        for member, reason in zip(members, reasons, strict=True)
    }


def in_place(steps: Iterable) -> None:
    """Plain gradient steps, with no gradient in between."""
    for step in steps:
        step.commit_in_place()


def as_gradients(steps: Iterable) -> None:
    """Into ``.grad``, for an optimizer to step."""
    steps = list(steps)
    for step in steps:  # all that may fail, before the first gradient is set
        step.direct()
    for step in steps:
        step.commit_gradient()


def _nobody(members: Sequence[Learner], reasons: Sequence[str | None]) -> RuntimeError:
    why = "; ".join(f"layer '{m.name}': {reason}" for m, reason in zip(members, reasons, strict=True))
    way_out = (
        "" if any(m.layer.training for m in members) else ". Statistics come from training: call model.train() first"
    )
    return RuntimeError(f"no layer learns: {why}{way_out}")
