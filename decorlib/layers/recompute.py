"""Activation checkpointing: a forward that is computed again inside backward is not a second forward.

:func:`torch.utils.checkpoint.checkpoint` drops what a part of the model has computed and calls it again, on the same
inputs, when backward gets there. The second call must give what the first one gave, so that gradients are those of the
loss; and it has seen no new batch, so it moves no running mean and is not learned from again.
"""

from __future__ import annotations

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
