"""History: what a training run saw, one row per epoch, in true per-batch means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Epoch:
    """One epoch. Losses are means over batches; ``decor_losses`` has one per layer, over the batches that learned.

    Args:
        epoch: 0 for a pass that only measures, before any step.
        seconds: wall-clock of the training steps, evaluation excluded.
        batches: steps in the epoch.
        loss: mean of the task loss over batches.
        decor_losses: by layer, mean of the reported decorrelation loss over the batches where the layer learned.
        metrics: whatever the caller's ``evaluate`` returned after the epoch.
    """

    epoch: int
    seconds: float
    batches: int
    loss: float
    decor_losses: dict[str, float]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def decor_loss(self) -> float:
        """Sum over layers."""
        return sum(self.decor_losses.values(), 0.0)


@dataclass
class History:
    """The epochs of a run and how it ended.

    Args:
        epochs: in order.
        status: ``"finished"``, or ``"diverged"`` with ``cause`` and the epoch that ``diverged_at`` names.
    """

    epochs: list[Epoch] = field(default_factory=list)
    status: Literal["finished", "diverged"] = "finished"
    cause: str | None = None
    diverged_at: int | None = None

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, index: int) -> Epoch:
        return self.epochs[index]

    def rows(self) -> list[dict]:
        """One plain dict per epoch, for a data frame or a JSON file; a value that is not finite becomes None."""
        rows = []
        for epoch in self.epochs:
            row = asdict(epoch) | {"decor_loss": epoch.decor_loss}
            layers, metrics = row.pop("decor_losses"), row.pop("metrics")
            row |= {f"decor_loss/{name or 'model'}": value for name, value in layers.items()} | metrics
            rows.append({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
        return rows

    def as_printed_in_2024(self) -> list[dict[str, float | int]]:
        """The 2024 notebook's accounting of the same numbers: its two quirks and nothing else.

        "bp loss" is the sum over n batches divided by n - 1 (the last index), "decorrelation loss" the sum over batches
        and layers. Of a constant loss of 1.0 in 15 batches it makes 1.071429 and 15.
        """
        return [
            {
                "epoch": e.epoch,
                "bp_loss": e.loss * e.batches / (e.batches - 1) if e.batches > 1 else math.inf,
                "decorrelation_loss": e.decor_loss * e.batches,
            }
            for e in self.epochs
        ]

    def lines_printed_in_2024(self) -> list[str]:
        """The lines that the 2024 notebook prints."""
        return [
            f"epoch {row['epoch']:<3}\ttime:{e.seconds:.3f} s\tbp loss: {row['bp_loss']:3f}"
            f"\tdecorrelation loss: {row['decorrelation_loss']:3f}"
            for e, row in zip(self.epochs, self.as_printed_in_2024(), strict=True)
        ]


def summarise(epoch: int, seconds: float, losses: list[Tensor], decor_losses: list[dict[str, Tensor | None]]) -> Epoch:
    """Read the device once: means over the batches, per layer over the batches where it learned."""
    by_layer: dict[str, list[Tensor]] = {}
    for step in decor_losses:
        for name, loss in step.items():
            if loss is not None:
                by_layer.setdefault(name, []).append(loss)
    # float64: a sum over an epoch of float32 losses would lose the digits that runs are compared in
    means = {name: float(torch.stack(values).double().mean()) for name, values in by_layer.items()}
    return Epoch(epoch, seconds, len(losses), float(torch.stack(losses).double().mean()), means)


def continued(history: History | None) -> History:
    """A copy to go on with, or a new one."""
    if history is None:
        return History()
    if history.status == "diverged":
        raise ValueError(
            f"history diverged in epoch {history.diverged_at}: there is nothing to continue. Restore a checkpoint from "
            "before, and pass the history saved with it"
        )
    return History(list(history))


def steps_of(history: History) -> Iterator[int]:
    """Cumulative number of steps after each epoch, for plots against steps."""
    total = 0
    for row in history:
        total += row.batches if row.epoch > 0 else 0
        yield total
