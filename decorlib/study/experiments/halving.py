"""Rates chosen by successive halving: many short tries, the better half of them longer, the last at full length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from decorlib.study.experiments import tuning
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.grids import grids_of

ROUNDS = (1 / 8, 1 / 4, 1 / 2, 1)
MOST_MOVES = 3
EIGHTHS = 8  # of an epoch: how finely a length is cut


def halve(
    arms: Mapping[Any, Experiment],
    rates: Mapping[Any, Any],
    seeds: Iterable[int],
    metric: str = "test_accuracy",
    *,
    rounds: Sequence[float] = ROUNDS,
    keep: float = 1 / 2,
    move: bool | int = True,
    alone: bool = False,
    quiet: bool = False,
    desc: str = "halving",
    **engine: Any,
) -> tuple[dict[Any, Experiment], pd.DataFrame]:
    """Choose each arm's rates on the validation split by successive halving, with as many tries for every arm.

    A try is one combination of rates, run with every seed. In each round those that are left run for a part of the
    arm's epochs, from new weights; a schedule anneals over the part (take ``lr_schedule="cosine_steps"``, which can).
    The best in the order of :func:`arms.tune` (fewest diverged seeds, then the mean of the metric, then smaller rates)
    go on. The choice is among all tries of full length.

    Where a chosen ``lr`` or ``decor_lr`` is the smallest or the largest of all that were tried for its arm, that grid
    moves there by half its width, in equal ratios, and is halved again, until none is or it has moved three times.
    Tries that were run are not run again.

    Args:
        arms: name -> specification, with any split and seed.
        rates: field -> values for all arms, or arm -> such a mapping, as for :func:`arms.tune`. A field of two values
            has nothing but edges: give three or more, or one.
        seeds: of the tries, at least two; use others for the comparison.
        metric: measurement to choose by, on the validation split; higher is better where it ends in "accuracy", else
            lower. Default: "test_accuracy", which there is of validation images.
        rounds: parts of the epochs, rising to 1; cut to eighths of an epoch.
            Default: 1/8, 1/4, 1/2, 1.
        keep: part of the tries that go on, rounded down, at least one. Default: 1/2.
        move: how often a grid may move; True: three times, False: never. Default: True.
        alone: in place of the whole grid, what lies beside the best try, one rate changed by one step, is tried in
            full length where it was not tried yet (:class:`tuning.Moves`). Default: False.
        quiet: do not print moves and edges. Default: False.
        desc: text before the progress bar. Default: "halving".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        The arms with their best rates and ``split="test"`` (where the arm's is "both": "both"), and a table of all
        tries: arm, part, epochs, rates, mean, lowest and highest over seeds (missing where any diverged), diverged
        seeds, chosen, edge, moved (how often the grid had, when the try was run).

    Raises:
        ValueError: arms with unequal numbers of tries, fewer than two seeds, rounds that do not rise to 1, an unknown
            field.
    """
    seeds = list(seeds)
    if len(seeds) < 2:
        raise ValueError(f"{len(arms)} arms and {len(seeds)} seeds: give at least one arm and two seeds")
    tested = {name: arm.but(split="both" if arm.split == "both" else "test") for name, arm in arms.items()}
    moves = tuning.Moves(MOST_MOVES if move is True else int(move), alone=alone)
    options = {"rounds": rounds, "keep": keep, "moves": moves, "trial": _trial, "quiet": quiet, "desc": desc}
    best, tries = tuning.choose(tested, rates, seeds, metric, **options, **engine)
    grids = grids_of(arms, rates)
    rows = [(row["part"], best[arm := row["arm"]].but(**row[list(grids[arm])])) for _, row in tries.iterrows()]
    tries.insert(2, "epochs", [shortened(spec, part).epochs for part, spec in rows])
    return best, tries


def shortened(spec: Experiment, part: float) -> Experiment:
    """The experiment for a part of its epochs, cut to eighths of an epoch, or to as many parts as it has batches."""
    batches = (spec.train_size or 50_000) // spec.batch_size
    cut = EIGHTHS
    while cut > max(1, batches):
        cut //= 2
    return spec if part == 1 else spec.but(epochs=whole(max(1, round(cut * part * spec.epochs)) / cut))


def whole(epochs: float) -> int | float:
    """A whole number of epochs as an integer, so that equal experiments are written alike."""
    return int(epochs) if epochs == int(epochs) else epochs


def _trial(spec: Experiment, part: float) -> Experiment:
    return shortened(spec.but(split="validation", evaluate_every=0), part)
