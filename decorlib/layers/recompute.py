"""Activation checkpointing: a forward that is computed again inside backward is not a second forward.

:func:`torch.utils.checkpoint.checkpoint` drops what a part of the model has computed and calls it again, on the same
inputs, when backward gets there. The second call must give what the first one gave, so that gradients are those of the
loss; and it has seen no new batch, so it moves no running mean and is not learned from again.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

#: Forwards between two updates whose means are kept for a recomputation; 2 D numbers each.
KEPT = 256


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
        self.means: deque[tuple[Tensor, Tensor]] = deque(maxlen=KEPT)
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
        self.means.append((batch_mean.detach(), subtracted.detach()))

    def subtracted(self, batch_mean: Tensor) -> Tensor:
        """The mean that the first pass over this batch subtracted."""
        if not self.means:
            raise RuntimeError(
                "a training forward is computed inside backward() that was not there before it: with "
                "center='running' only activation checkpointing may do that"
            )
        if len(self.means) == 1:
            return self.means[0][1]
        batch_means, subtracted = (torch.stack(parts) for parts in zip(*self.means, strict=True))
        # The nearest, not the equal one: on some devices sums are not the same to the bit when they are taken again.
        return subtracted[(batch_means - batch_mean.detach()).abs().sum(1).argmin()]

    def end(self) -> None:
        """An update has used these forwards. Backward may still be to come, so the next forward forgets them."""
        self.over = True

    def clear(self) -> None:
        """Forget all."""
        self.means.clear()
        self.version, self.masked, self.over = None, False, False
