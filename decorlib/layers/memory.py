"""What a Decorrelation keeps of a training batch until its next update: which samples, checked, detached."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from decorlib.rules.rules import Rule

EMPTY = "an empty batch has no statistics: skip it, or use model.eval() to pass it through"


class NonFiniteInput(ValueError):
    """A layer was given NaN or infinity; ``layer`` is the :class:`~decorlib.layers.Decorrelation` that noticed."""

    layer: Remembering | None = None


class Remembering(nn.Module):
    """The memory of a :class:`~decorlib.layers.Decorrelation`: the states of the last forward, or of several."""

    in_features: int
    rule: Rule
    fraction: float
    accumulate: bool
    generator: torch.Generator | None
    padding_mask: Tensor | None
    _states: list[tuple[Tensor, Tensor | None]]
    _calls: int

    def transform(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """y for x."""
        raise NotImplementedError

    def remember(self, x: Tensor, mean: Tensor | None, y: Tensor | None = None) -> None:
        """Keep (a sample of) a batch's states for ``update()``; y is computed for the sample where it is not given."""
        real = self.real_rows(x)
        x = x.detach().reshape(-1, self.in_features)
        y = None if y is None else y.detach().reshape(-1, self.in_features)
        chosen = self.sample(x.shape[0], x.device, real)
        if chosen is not None:
            x, y = x[chosen], None if y is None else y[chosen]
        self.remember_samples(x, mean, y)

    @torch.no_grad()
    def remember_samples(self, x: Tensor, mean: Tensor | None, y: Tensor | None = None) -> None:
        """``remember`` for samples (n, D) that are already chosen."""
        if x.shape[0] == 0:
            raise ValueError(EMPTY)
        if y is None:
            y = self.transform(x, mean)
        self._check_finite(x, "input", witness=y)
        inputs = None
        if self.rule.reads is not None:
            inputs = x if self.rule.reads == "raw input" or mean is None else x - mean.detach()
        if not self.accumulate:
            self._states.clear()
        self._states.append((y, inputs))

    def _check_finite(self, x: Tensor, what: str, witness: Tensor | None = None) -> None:
        # One number finds any NaN or inf. Only where reading it back is free: a GPU would have to be waited for. What
        # x does to y shows in y, which the processor has just written and still holds; x it would have to fetch again.
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return
        flat = (x if witness is None else witness).detach().reshape(-1)
        if math.isfinite(float(flat.dot(flat))):  # of a sum or a norm, the quickest
            return
        if not bool(x.isfinite().all()):
            error = NonFiniteInput(
                f"{what} of shape {tuple(x.shape)} holds NaN or infinity: check the data and the rates"
            )
            error.layer = self
            raise error

    def real_rows(self, x: Tensor) -> Tensor | None:
        """Which rows of x (*, D) are no padding, (rows,); None where all count."""
        mask = self.padding_mask
        if mask is None or (x.dim() == 2 and x.shape[0] != mask.numel() and x.shape[0] in mask.shape):
            return None  # a row per sequence (a head on pooled tokens): none is padding
        if x.shape[:-1] != mask.shape and x.shape[:-1] != (mask.numel(),):
            raise ValueError(
                f"padding_mask of shape {tuple(mask.shape)} does not fit an input of shape {tuple(x.shape)}: its "
                f"tokens need the shape {tuple(x.shape[:-1])}; for (tokens, batch) use padding(..., batch_first=False)"
            )
        return ~mask.reshape(-1).to(x.device)

    def sample(self, count: int, device, real: Tensor | None = None) -> Tensor | None:
        """Indices of the samples that the statistics use, out of those that are ``real``; None for all."""
        candidates = None if real is None else real.nonzero().squeeze(1)
        count = count if candidates is None else candidates.numel()
        if self.fraction == 1 or count == 0:
            return candidates
        size = max(1, round(self.fraction * count))
        where = device if self.generator is None else self.generator.device
        chosen = torch.randperm(count, generator=self.generator, device=where)[:size].to(device)
        return chosen if candidates is None else candidates[chosen]

    def nothing_remembered(self, what: str = "update()") -> str:
        """Why there is no batch to learn from."""
        if not self.training:
            return f"{what} in evaluation mode: statistics come from training forwards; call model.train() first"
        if self._calls:
            return (
                f"{what} without a new training forward since the last one: its statistics would be stale; run a "
                f"training forward before each {what}"
            )
        return f"{what} before any training forward: the layer was never reached; is it used in the model's forward?"


def concatenated(states: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Several forwards as one batch."""
    ys, xs = zip(*states, strict=True)
    return torch.cat(ys), None if xs[0] is None else torch.cat(xs)
