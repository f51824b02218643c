"""What :func:`decorlib.train` refuses: steps that change nothing, a wrong owner of parameters, losses that blew up."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from decorlib.layers.checks import called
from decorlib.layers.memory import NonFiniteInput
from decorlib.layers.models import decor_modules
from decorlib.layers.steps import Learner, frozen, learners
from decorlib.layers.unmoved import SilentNoOp
from decorlib.optim import DecorOptimizer, OptimizerOfR, is_plain_sgd
from decorlib.training.history import Epoch, History


class NoOpWatch:
    """Takes decorrelation steps, and notices layers whose R stays as it was, to the bit, at a positive rate."""

    def __init__(self, owner: OptimizerOfR, allow_no_op: bool):
        self.owner, self.allowed = owner, allow_no_op
        self.members: list[Learner] = [learner for group in owner.learners for learner in group]
        self.layers = {member.name: member.layer for member in self.members}
        self.before = {} if allow_no_op else {n: layer.weight.detach().clone() for n, layer in self.layers.items()}
        self.learning: set[str] = set()
        self.checks = 0

    def step(self) -> dict[str, Tensor | None]:
        """A step of the optimizer of R, and its losses."""
        if not self.allowed and len(self.learning) < len(self.layers):
            # An R of one entry is not expected to: it can reach its fixed point to the bit, and rightly stay there.
            self.learning |= {
                member.name
                for member in self.members
                if member.layer.due and member.layer.weight.shape[-1] > 1 and member.idle(skip_unreached=True) is None
            }
        with self.owner.unwatched():
            self.owner.step()
        if self.checks == 0:
            self.check("the first step")
        return self.owner.losses

    def check(self, when: str) -> None:
        """Raise where no R moved although some should have, warn where one did not."""
        rates = [group["lr"] for group in self.owner.param_groups]
        rate = "auto" if "auto" in rates else max(rates, default=0.0)
        if self.allowed or not self.learning or not (rate == "auto" or rate > 0):
            return
        still = sorted(n for n in self.learning if torch.equal(self.before[n], self.layers[n].weight))
        moved = len(self.learning) > len(still)
        for name, layer in self.layers.items():
            self.before[name].copy_(layer.weight.detach())  # into the same memory: a fresh D x D costs a step's time
        self.learning, self.checks = set(), self.checks + 1
        if not still:
            return
        without = [name for name in getattr(self.owner, "without_gradient", []) if name in still]
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


# ------------------------------------------------------------------------------------------------------- ownership


def check_ownership(model: nn.Module, optimizer, decor_optimizer) -> None:
    """Raise unless every parameter has one owner, the right one."""
    members = learners(model)
    decor = {id(p): member.name for member in members for p in member.parameters}
    groups = [] if optimizer is None else optimizer.param_groups
    mine = [decor[id(p)] for group in groups for p in group["params"] if id(p) in decor]
    if mine:
        raise ValueError(
            f"optimizer also owns R of {sorted(set(mine))}: it would step R by its own rule as soon as a gradient is "
            "set. Build it over bp_parameters(model)"
        )
    if decor_optimizer is None:
        return
    parameters = _owned(decor_optimizer)
    others = sum(id(p) not in decor for p in parameters)
    if others:
        raise ValueError(f"decor_optimizer also owns {others} plain weights: build it over decor_parameters(model)")
    if not decor:
        raise ValueError("decor_optimizer is given, but the model has no decorrelation layer: see decorlib.decorrelate")
    owned = {id(p) for p in parameters}
    still = frozen(model)
    learning = [member for member in members if member.layer.learning and member.name not in still]
    missing = sorted({member.name for member in learning for p in member.parameters if id(p) not in owned})
    if missing:
        raise ValueError(f"no optimizer owns R of {missing}: build decor_optimizer over decor_parameters(model)")
    for group in decor_optimizer.param_groups:
        if group["lr"] != "auto" and group["lr"] < 0:  # "auto" comes from the curvature, which is positive
            raise ValueError(f"the decorrelation rate is {group['lr']}; it must be at least 0")


def owner_of_R(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    max_step: float | None,
    in_place: bool | None,
    preserve_function: bool = False,
) -> OptimizerOfR | None:
    """The optimizer of R that is given, or one around a torch optimizer over :func:`decor_parameters`."""
    if optimizer is None:
        return None
    if _is_ours(optimizer):
        if max_step is not None or in_place is not None or preserve_function:
            raise ValueError(
                f"max_step={max_step}, in_place={in_place} and preserve_function={preserve_function} are for a torch "
                f"optimizer over decor_parameters; give max_step to {type(optimizer).__name__} instead, and "
                "preserve_function"
            )
        return optimizer
    in_place = is_plain_sgd(optimizer) if in_place is None else in_place
    if in_place and not is_plain_sgd(optimizer):
        raise ValueError(
            "in_place=True takes plain SGD steps, and none that hooks wait for; decor_optimizer is "
            f"{optimizer}: use in_place=False"
        )
    options = {"max_step": max_step, "preserve_function": preserve_function, "in_place": in_place}
    return DecorOptimizer(model, optimizer, **options)


def _owned(optimizer) -> list[nn.Parameter]:
    if _is_ours(optimizer):
        return [p for group in optimizer.learners for member in group for p in member.parameters]
    return [p for group in optimizer.param_groups for p in group["params"]]


def _is_ours(optimizer) -> bool:
    return getattr(type(optimizer), "owns_R", False)  # not by its class, which is another one after a reload


# ------------------------------------------------------------------------------------------------------ divergence


def not_finite(row: Epoch) -> str:
    """Which losses are NaN or infinite, as the subject of a sentence; "" where none is."""
    losses = {"the task loss": row.loss}
    losses |= {f"the decorrelation loss of layer '{name}'": loss for name, loss in row.decor_losses.items()}
    broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
    return " and ".join(broken) + (" is" if len(broken) == 1 else " are") if broken else ""


def cause_of(error: NonFiniteInput, model: nn.Module, epoch: int) -> str:
    """Why a layer was given NaN or infinity in the middle of a run; raises where the data are to blame."""
    if not bool(error.inputs.isfinite().all()):
        raise ValueError(f"batch {error.batch} of epoch {epoch} holds NaN or infinity: clean the data") from error
    where = next((name for name, layer in decor_modules(model) if layer is error.layer), "?")
    what = str(error).removeprefix(called(error.layer))  # it may have its name already
    return f"batch {error.batch}: layer '{where}': {what}"


def diverged(history: History, epoch: int, cause: str) -> History:
    """The history, marked as ended."""
    history.status, history.cause, history.diverged_at = "diverged", cause, epoch
    return history
