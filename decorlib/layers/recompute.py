"""Activation checkpointing: a forward that is computed again inside backward is not a second forward.

:func:`torch.utils.checkpoint.checkpoint` drops what a part of the model has computed and calls it again, on the same
inputs, when backward gets there. The second call must give what the first one gave, so that gradients are those of the
loss; and it has seen no new batch, so it moves no running mean and is not learned from again.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

#: Forwards between two updates whose means are kept for a recomputation; 2 D numbers each.
KEPT = 256


@dataclass
class Pass:
    """The mean of the batch that a forward saw, the one that it subtracted, and whether it was computed again."""

    batch_mean: Tensor
    subtracted: Tensor
    again: bool = False


def recomputing() -> bool:
    """Whether this code runs inside a backward pass of the calling thread."""
    # torch.utils.checkpoint itself asks this; there is no public name for it.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def first_pass() -> bool:
    """Whether this code runs without gradients in the forward of an autograd.Function that will be differentiated.

    Reentrant checkpointing (``use_reentrant=True``, and its likes in other libraries) is one: its first pass is without
    gradients, and is trained on all the same.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "forward" and frame.f_code.co_varnames[:1] == ("ctx",):
            ctx = frame.f_locals["ctx"]
            if isinstance(ctx, torch.autograd.function.FunctionCtx):
                return bool(ctx.next_functions)
        frame = frame.f_back
    return False


def _called_again() -> bool:
    """Whether an operation of compiled code runs in a compiled forward that checkpointing calls a second time.

    A checkpoint inside of what is compiled is a part of its backward, where torch.utils.checkpoint calls nothing.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        frame = frame.f_back
    return frame is not None


def compiled_around_checkpoint() -> bool:
    """Whether this code, which torch.compile could not trace, runs in a checkpoint inside of what it compiles.

    The parts that it could trace are then compiled at first and not when they are computed again, and
    torch.utils.checkpoint takes what one pass saves for what the other one saved, by their order.
    """
    frame = sys._getframe() if "torch._dynamo" in sys.modules else None
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        if _runs_compiled(frame):
            return False
        frame = frame.f_back
    while frame is not None and not _runs_compiled(frame):
        frame = frame.f_back
    return frame is not None


compiled_around_checkpoint._torchdynamo_disable = True  # what torch.compiler.disable sets, without importing a compiler


def _runs_compiled(frame) -> bool:
    # Not of what torch.compiler.disable has wrapped.
    return frame.f_globals.get("__name__") == "torch._dynamo.eval_frame" and frame.f_code.co_name == "compile_wrapper"


@torch.library.custom_op("decorlib::at_first", mutates_args=(), schema="(Tensor then, Tensor again) -> Tensor")
def at_first(then: Tensor, again: Tensor) -> Tensor:
    """A copy of ``then``; of ``again`` in a compiled forward that is computed again, which tracing cannot tell."""
    return (again if _called_again() else then).clone()


@torch.library.custom_op("decorlib::only_once", mutates_args=(), schema="(Tensor x) -> Tensor")
def only_once(x: Tensor) -> Tensor:
    """A copy; an error in a compiled forward that is computed again and would not give what it gave before."""
    if _called_again():
        raise RuntimeError(
            "a compiled forward of a decorrelation layer is computed again in backward (activation checkpointing), "
            "where it would subtract another running mean, or count its batch twice (center='running', "
            "accumulate=True): compile what calls checkpoint, and not what it is called with; or leave one of them out"
        )
    return x.clone()


@at_first.register_fake
def _shape_at_first(then: Tensor, again: Tensor) -> Tensor:
    return torch.empty_like(then)


@only_once.register_fake
def _shape_once(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _refuse_transforms() -> None:
    """Raise RuntimeError inside torch.func's transforms, where a batch is not there to be looked at and kept."""
    if torch._C._functorch.peek_interpreter_stack() is not None:  # no public name for this either
        raise RuntimeError(
            "a training forward of a decorrelation layer keeps its batch, which torch.func.vmap and grad do not allow: "
            "call model.eval() first, or fuse the model"
        )


class Passes:
    """The training forwards of one layer since R last moved: what a recomputation of one of them must use again."""

    def __init__(self):
        self.means: deque[Pass] = deque(maxlen=KEPT)
        self.version: int | None = None
        self.masked = self.over = False

    def begin(self, R: Tensor, masked: bool) -> None:
        """Note a forward, or check that it can be computed again."""
        _refuse_transforms()
        version = None if R.is_inference() else R._version
        if recomputing():
            if self.version is not None and version != self.version:
                raise RuntimeError(
                    "R has moved between a forward and its recomputation in backward (activation checkpointing), so "
                    "gradients would be those of another function: call backward() before the step of R"
                )
            if self.masked and not masked:
                raise RuntimeError(
                    "a forward with a padding_mask is computed again in backward (activation checkpointing) without "
                    "it: call backward() inside `with padding(...)`, too"
                )
            return
        if self.over:
            self.clear()
        self.version, self.masked = version, masked

    def add(self, batch_mean: Tensor, subtracted: Tensor) -> None:
        """Keep the mean that a forward subtracted, by the mean of the batch that it saw."""
        self.means.append(Pass(batch_mean.detach(), subtracted.detach()))

    def subtracted(self, batch_mean: Tensor) -> Tensor:
        """The mean that the first pass over this batch subtracted.

        Raises:
            RuntimeError: there was no such pass; or several saw the same batch and subtracted different means, and
                more than one of them may be the one that is computed again.
        """
        if not self.means:
            raise RuntimeError(
                "a training forward is computed inside backward() that was not there before it: with "
                "center='running' only activation checkpointing may do that"
            )
        if len(self.means) == 1:
            self.means[0].again = True
            return self.means[0].subtracted
        batch_means = torch.stack([one.batch_mean for one in self.means])
        # The nearest, not the equal one: on some devices sums are not the same to the bit when they are taken again.
        nearest = batch_means[(batch_means - batch_mean.detach()).abs().sum(1).argmin()]
        same = torch.isclose(batch_means, nearest).all(1).tolist()
        candidates = [one for one, is_same in zip(self.means, same, strict=True) if is_same]
        left = [one for one in candidates if not one.again]
        if len(left) != 1 and any(not torch.equal(one.subtracted, candidates[0].subtracted) for one in candidates):
            raise RuntimeError(
                f"{len(candidates)} forwards since the last update of R saw the same batch and subtracted different "
                "running means, and which of them is computed again in backward (activation checkpointing) cannot be "
                "told: call backward() after each forward, give both as one batch, or use center='batch'"
            )
        chosen = left[0] if left else candidates[0]
        chosen.again = True
        return chosen.subtracted

    def end(self) -> None:
        """An update has used these forwards. Backward may still be to come, so the next forward forgets them."""
        self.over = True

    def clear(self) -> None:
        """Forget all."""
        self.means.clear()
        self.version, self.masked, self.over = None, False, False
