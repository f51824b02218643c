"""Looks for steps of R that change nothing: that of 2024 went unnoticed for 20 epochs."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

EVERY = 100  # steps between two looks: a look copies R and compares, so that this is what it costs


class SilentNoOp(RuntimeError):
    """A decorrelation step with a positive rate left every R as it was."""


@dataclass
class _Record:
    """What is known of a layer: the smallest rate tried, and the steps since it was last looked at."""

    rate: float
    steps: int = 0
    warned: bool = False
    said_written: bool = False


_records: weakref.WeakKeyDictionary[nn.Module, _Record] = weakref.WeakKeyDictionary()


class Look:
    """Whether the R of some layers move in a step: at a layer's first, at every 100th, and at rates not tried before.

    A rate counts as tried down to half of the smallest one that R was looked at with. An R of one entry is not looked
    at: it can reach its fixed point to the bit, and rightly stay there.

    Args:
        steps: (name, layer, rate) of the layers that are about to step; those of rate 0 or None are left out.
        look: False: at none of them, where the caller looks itself; only that one was written to is said.
    """

    def __init__(self, steps: Sequence[tuple[str, nn.Module, float | None]], look: bool):
        self.looked: list[tuple[str, nn.Module, float, Tensor]] = []
        self.all = True  # whether every R that should move is looked at
        _say_written(steps)
        for name, layer, rate in steps if look else ():  # each copies an R
            if not rate or layer.weight.shape[-1] == 1:
                continue
            record = _records.get(layer)
            if record is None or rate < record.rate / 2 or record.steps + 1 >= EVERY:
                self.looked.append((name, layer, rate, layer.weight.detach().clone()))
            else:
                record.steps += 1
                self.all = False

    def refuse_unmoved(self) -> None:
        """After the step: raise where every R is still the identity, warn once of one that no longer moves."""
        still, untouched = [], self.all
        for name, layer, rate, before in self.looked:
            R = layer.weight.detach()
            never_moved = _is_identity(R)
            untouched &= never_moved
            record = _records.get(layer)
            # The zeros of the identity take up changes of any size, which no y ever shows. At a usual rate changes of
            # that size mean a rule that is content.
            lost = never_moved and rate < 1e3 * torch.finfo(R.dtype).eps
            if lost or torch.equal(R, before):
                still.append((name, layer, rate))
            elif record is None:
                _records[layer] = _Record(rate)
            else:
                record.rate, record.steps = min(rate, record.rate), 0
            layer._trust.left = _bits(R)
        if not still:
            return
        names, rate = sorted(name for name, *_ in still), max(rate for *_, rate in still)
        if untouched:
            raise SilentNoOp(
                f"the decorrelation step at rate {rate} left every R unchanged (layers {names}): the rate is lost in "
                "rounding, or the layers see only zeros. Raise the rate; where an R is meant to stand still set "
                "layer.learning = False. If library code was edited, restart the kernel"
            )
        fresh = []
        for name, layer, rate in still:
            record = _records.setdefault(layer, _Record(rate))
            record.rate, record.steps = min(rate, record.rate), 0
            if not record.warned:
                record.warned = True
                fresh.append(name)
        if fresh:
            warnings.warn(
                f"R of {sorted(fresh)} did not move in a step of rate {rate}: the rate is lost in rounding, the layer "
                "sees only zeros, or R has converged to the last bit",
                RuntimeWarning,
                stacklevel=4,
            )


def _say_written(steps: Sequence[tuple[str, nn.Module, float | None]]) -> None:
    """Warn once of an R that is another than its last step left, where that one was looked at."""
    written = []
    for name, layer, _ in steps:
        left, layer._trust.left = getattr(layer._trust, "left", None), None
        record = _records.get(layer)
        if left is None or record is None or record.said_written or left == _bits(layer.weight):
            continue
        record.said_written = True
        written.append(name)
    if written:
        warnings.warn(
            f"R of {sorted(written)} was written to since its last step, and not by an optimizer of R: a loop over "
            "model.parameters() that clips, decays or disturbs weights does so to R, too, which then does not keep "
            "what it learns. Let it go over decorlib.bp_parameters(model), which leaves R out; an R that is set on "
            "purpose is taken from layer.set_weight(R)",
            RuntimeWarning,
            stacklevel=5,
        )


def _bits(R: Tensor) -> int:
    """The sum of the bit patterns of R, a number in place of a copy: exact, in whatever order it is taken."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[R.itemsize]
    return int(R.detach().contiguous().view(whole).sum())


def _is_identity(R: Tensor) -> bool:
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return bool((R - eye).abs().max() <= torch.finfo(R.dtype).eps)
