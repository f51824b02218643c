"""Rates by successive halving, as many tries for every arm; beyond a best rate on an edge of its grid one more each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd

from decorlib.study.experiments.arms import check_equal_tries, in_order_of
from decorlib.study.questions.instead.peers import Peer, run
from decorlib.study.sweeps.runs import sweep

ROUNDS = (1 / 8, 1 / 2, 1)
MOST_MOVES = 3
MOVING = ("lr", "decor_lr", "damping")  # a shrinkage has a range of its own
METRIC = "validation_accuracy"


def choose(
    made: Mapping[Any, Peer],
    grids: Mapping[Any, Mapping[str, Sequence[float]]],
    seeds: Iterable[int],
    rounds: Sequence[float] = ROUNDS,
    keep: float = 1 / 3,
    moves: int = MOST_MOVES,
    desc: str = "tries",
) -> tuple[dict[Any, Peer], pd.DataFrame]:
    """Each arm with the rates that were best on validation images, and a table of all tries.

    A try is one combination, run with every seed. Those that are left run for a part of the arm's steps, the better
    ones (fewest diverged, then best mean accuracy) go on; the choice is among tries of full length. Where the chosen
    value is the smallest or the largest of its field, one more beyond it is run at full length, in the ratio of the
    grid, at most ``moves`` times.

    Args:
        made: arm -> specification.
        grids: arm -> field -> values, equally many combinations for every arm.
        seeds: of the tries; use others for the comparison.
        rounds: parts of the steps, rising to 1. Default: 1/8, 1/2, 1.
        keep: part of the tries that go on, at least one. Default: 1/3.
        moves: how often a grid may move. Default: 3.
        desc: text before the progress bar.

    Raises:
        ValueError: unequal numbers of tries, no seed, rounds that do not rise to 1.
    """
    seeds = list(seeds)
    counts = {name: len(_combinations(grids[name])) for name in made}
    check_equal_tries(counts)
    if not seeds or list(rounds) != sorted(set(rounds)) or rounds[-1] != 1:
        raise ValueError(f"seeds = {seeds}, rounds = {list(rounds)}: give a seed, and parts that rise to 1")
    if max(counts.values()) == 1:
        rounds = rounds[-1:]  # nothing to choose from
    alive = {name: _combinations(grids[name]) for name in made}
    rows: dict[Any, list[dict]] = {name: [] for name in made}
    for part in rounds:
        found = _results({n: (made[n], alive[n]) for n in made}, seeds, part, f"{desc}, {part:g} of the length")
        for name, results in found.items():
            rows[name] += [row | {"moved": 0} for row in results]
            left = sorted(results, key=_rank)[: max(1, int(keep * len(results)))]
            alive[name] = [tuple((f, row[f]) for f in grids[name]) for row in left]
    for moved in range(1, moves + 1):
        further = {name: more for name in made if (more := _beyond(rows[name], grids[name]))}
        if not further:
            break
        found = _results({n: (made[n], more) for n, more in further.items()}, seeds, 1, f"{desc}, grids moved")
        for name, results in found.items():
            rows[name] += [row | {"moved": moved} for row in results]
    chosen = {}
    for name, own in rows.items():
        best = min((row for row in own if row["part"] == 1), key=_rank)
        best |= {"chosen": True, "edge": ", ".join(field for field, _, _ in _edges(own, best, grids[name]))}
        chosen[name] = made[name].but(**{field: best[field] for field in grids[name]})
    table = pd.DataFrame([row for own in rows.values() for row in own])
    return chosen, table.fillna({"chosen": False, "edge": ""})


def by_seed(specs: Sequence[Peer], desc: str) -> list[dict]:
    """The records of runs, in their order; those of a seed run next to each other, since they read the same arrays."""
    return in_order_of([spec.seed for spec in specs], specs, lambda these: sweep(these, run, desc=desc))


def _combinations(grid: Mapping[str, Sequence[float]]) -> list[tuple[tuple[str, float], ...]]:
    return [tuple(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _results(jobs, seeds: list[int], part: float, desc: str) -> dict[Any, list[dict]]:
    """One row for each try of each arm, all run in one sweep."""
    tries = [(name, spec.but(**dict(values)), values) for name, (spec, all_) in jobs.items() for values in all_]
    # Measured at their end only: nothing looks at the curves of tries.
    specs = [_part_of(spec, part).but(seed=seed, curve=False) for _, spec, _ in tries for seed in seeds]
    records = iter(by_seed(specs, desc))
    found: dict[Any, list[dict]] = {name: [] for name in jobs}
    for name, _, values in tries:
        these = [next(records) for _ in seeds]
        scores = [record["final"].get(METRIC) for record in these]
        diverged = sum(record["status"] == "diverged" for record in these)
        mean = None if diverged else sum(scores) / len(scores)
        found[name].append({"arm": name, "part": part, **dict(values), METRIC: mean, "diverged": diverged})
    return found


def _part_of(spec: Peer, part: float) -> Peer:
    steps = max(1, round(part * spec.steps))
    return spec.but(steps=steps, points=min(spec.points, steps))


def _rank(row: Mapping) -> tuple:
    # Ties go to the smaller rate.
    return row["diverged"], -(row[METRIC] or 0.0), row["lr"]


def _edges(rows: list[dict], best: Mapping, grid: Mapping) -> list[tuple[str, float, float]]:
    """(field, best value, ratio beyond it) for each field whose best value is the smallest or largest tried."""
    found = []
    for field in grid:
        tried = sorted({row[field] for row in rows})
        if field in MOVING and len(tried) > 1 and best[field] in (tried[0], tried[-1]):
            up = best[field] == tried[-1]
            found.append((field, best[field], tried[-1] / tried[-2] if up else tried[0] / tried[1]))
    return found


def _beyond(rows: list[dict], grid: Mapping) -> list[tuple[tuple[str, float], ...]]:
    best = min((row for row in rows if row["part"] == 1), key=_rank)
    there = {field: value * ratio for field, value, ratio in _edges(rows, best, grid)}
    return [tuple((field, there.get(field, best[field])) for field in grid)] if there else []
