"""Rates by successive halving, as many tries for every arm; beyond a best rate on an edge of its grid one more each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from decorlib.study.experiments import tuning
from decorlib.study.questions.instead.peers import Peer, run
from decorlib.study.sweeps.runs import sweep

ROUNDS = (1 / 8, 1 / 2, 1)
METRIC = "validation_accuracy"


def choose(
    made: Mapping[Any, Peer],
    grids: Mapping[Any, Mapping[str, Sequence[float]]],
    seeds: Iterable[int],
    rounds: Sequence[float] = ROUNDS,
    keep: float = 1 / 3,
    moves: int = 8,
    desc: str = "tries",
) -> tuple[dict[Any, Peer], pd.DataFrame]:
    """:func:`decorlib.study.experiments.tuning.choose` for these runs.

    A part is one of an arm's steps. Where the chosen value is the smallest or the largest of its field, one more beyond
    it is run at full length.

    Args:
        made: arm -> specification.
        grids: arm -> field -> values, equally many combinations for every arm.
        seeds: of the tries; use others for the comparison.
        rounds: parts of the steps, rising to 1. Default: 1/8, 1/2, 1.
        keep: part of the tries that go on, at least one. Default: 1/3.
        moves: how often at most a grid moves. Default: 8.
        desc: text before the progress bar.
    """
    options = {"moves": tuning.Moves(moves, alone=True), "trial": _trial, "sweep": in_a_row, "quiet": True}
    return tuning.choose(made, grids, seeds, METRIC, rounds=rounds, keep=keep, desc=desc, **options)


def in_a_row(specs: Sequence[Peer], desc: str) -> list[dict]:
    """The records of runs, in their order; those that read the same arrays run in a row, the long ones first."""
    return sweep(specs, run, desc=desc, order=lambda spec: (spec.data, spec.seed, -spec.steps))


def _trial(spec: Peer, part: float) -> Peer:
    """Measured at its end only: nothing looks at the curves of tries."""
    steps = max(1, round(part * spec.steps))
    return spec.but(steps=steps, points=min(spec.points, steps), curve=False)
