"""Rates chosen on validation images, in the same way for every arm: :func:`choose`, and the words that it is told in.

A *try* is one combination of an arm's rates, run with every seed. In a *round* the tries that are left run for a *part*
of their arm's length; by their *rank* (fewest diverged seeds, then the best mean, then the smaller rates) the better
ones go on. The last round is of full length, and the choice is among its tries. A chosen rate that is the smallest or
the largest that was tried lies on an *edge*: a wider grid might have served its arm better. So the grid *moves* there,
and its tries begin anew; or it stays, and what lies *beside* the best try is tried, too (:class:`Moves`).

:func:`decorlib.study.experiments.arms.tune` is one round and no moves,
:func:`decorlib.study.experiments.halving.halve` has several of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from decorlib.study.experiments import side_by_side
from decorlib.study.experiments.grids import beyond, can_move, combinations, edge, grids_of, neighbour, numbers


@dataclass(frozen=True)
class Moves:
    """How grids move: half of the rates go beyond the edge, in the ratio of the two at it, the other half stays there.

    Args:
        times: how often, at most. Default: 0, grids stay.
        alone: the grid stays where it is. Neighbours of the best try, one rate changed by one step, that were not tried
            yet run in full length, and an edge is one beside the chosen values of the other rates. Default: False, all
            of it moves, from the first round.
        forget: what a grid left behind is no more in the table, nor does it count for an edge. Default: False.
        digits: of new rates, as somebody would type them: rounding must not make another run of one. Default: all.
    """

    times: int = 0
    alone: bool = False
    forget: bool = False
    digits: int | None = None

    def __post_init__(self):
        if self.times < 0:
            raise ValueError(f"moves = {self.times} must be at least 0, which leaves the grids where they are")
        if self.alone and self.forget:
            raise ValueError("alone and forget exclude each other: a single try has no edge but that of all before")


STAY = Moves()


def on_validation(spec: Any, part: float) -> Any:
    """The try of an :class:`~decorlib.study.experiments.experiment.Experiment` in a single round, of full length."""
    if part != 1:
        raise ValueError(f"rounds have a part of {part:g}: tell by trial= what that is, as halving.halve does")
    return spec.but(split="validation")


def choose(
    arms: Mapping[Any, Any],
    rates: Mapping[Any, Any],
    seeds: Iterable[int],
    metric: str,
    *,
    rounds: Sequence[float] = (1,),
    keep: float = 1 / 2,
    moves: Moves = STAY,
    trial: Callable[[Any, float], Any] = on_validation,
    sweep: Callable[..., list[dict]] | None = None,
    quiet: bool = False,
    desc: str = "tuning",
    **engine: Any,
) -> tuple[dict[Any, Any], pd.DataFrame]:
    """Every arm with the rates that were best on validation images, and a table of all tries.

    Every arm begins with as many tries and, where its grid stays, ends with as many of full length. Where an arm has
    one try only, that runs in full length alone. No specification runs twice.

    Args:
        arms: name -> specification, a frozen dataclass with a ``seed`` and ``but``.
        rates: field -> values for all arms, or arm -> such a mapping.
        seeds: of the tries; use others for the comparison.
        metric: measurement to choose by; higher is better where it ends in "accuracy", else lower.
        rounds: parts of the full length, rising to 1. Default: 1, a single round.
        keep: part of the tries that go on to the next round, rounded down, at least one. Default: 1/2.
        moves: of grids whose best rate is on an edge. Default: none.
        trial: an arm with rates, and a part of its length -> what is run. Default: :func:`on_validation`.
        sweep: specifications, ``desc`` and ``engine`` -> records. Default: that of
            :mod:`~decorlib.study.experiments.side_by_side`.
        quiet: do not print moves and edges. Default: False.
        desc: text before the progress bar. Default: "tuning".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        The arms with their rates, and a row for each try of each length: arm, part, rates; mean of the metric, lowest
        and highest over seeds (missing where any diverged); diverged seeds, chosen, edge, moved (how often the grid
        had, when the try was run).

    Raises:
        ValueError: no arm or seed, unequal numbers of tries, an unknown field; rounds that do not rise to 1, or that
            ``trial`` cannot tell the parts of.
    """
    seeds, rounds = [int(seed) for seed in seeds], list(rounds)
    if not arms or not seeds:
        raise ValueError(f"{len(arms)} arms and {len(seeds)} seeds: give at least one of each")
    if rounds != sorted(set(rounds)) or rounds[-1:] != [1] or not rounds[0] > 0:
        raise ValueError(f"rounds are {rounds}: give parts that rise to 1, the full length")
    if not 0 < keep < 1:
        raise ValueError(f"keep is {keep}; it must be between 0 and 1")
    tuned = [_Arm(name, arms[name], grid, metric, moves.alone) for name, grid in grids_of(arms, rates).items()]
    counts = {arm.name: len(arm.left) for arm in tuned}
    if len(set(counts.values())) > 1:
        raise ValueError(f"arms get unequal numbers of tries, {counts}: give each as many, or it is not a fair choice")
    if set(counts.values()) == {1}:
        rounds = [1]  # nothing to choose from

    run = _remembering(sweep or side_by_side.sweep, engine)
    waiting, moved = tuned, 0
    while waiting:
        for part in [1] if moved and moves.alone else rounds:
            specs = [trial(spec, part).but(seed=seed) for arm in waiting for spec in arm.left for seed in seeds]
            records = iter(run(specs, f"{desc}, {part:g} of the length" if len(rounds) > 1 else desc))
            for arm in waiting:
                arm.end_round(part, moved, [[next(records) for _ in seeds] for _ in arm.left], keep)
        waiting = [arm for arm in waiting if moved < moves.times and arm.move(moves)]
        moved += 1
    chosen = {arm.name: arm.spec.but(**arm.settle(quiet)) for arm in tuned}
    return chosen, pd.DataFrame([row for arm in tuned for row in arm.rows])


def rank(row: Mapping, seen: Mapping[str, list], metric: str) -> tuple:
    """What tries are ordered by, the best first; names among the rates count by their place in the list."""
    value = float("inf") if row["diverged"] else -row[metric] if metric.endswith("accuracy") else row[metric]
    sizes = (row[f] if isinstance(row[f], int | float) else values.index(row[f]) for f, values in seen.items())
    return row["diverged"], value, *sizes


# ---------------------------------------------------------------------------------------------------------- internals


class _Arm:
    """An arm while its rates are chosen.

    Args:
        name, spec: of the arm.
        grid: field -> values, as it is now.
        metric: measurement to choose by.
        alone: of :class:`Moves`.

    ``seen`` has the values of which the smallest and the largest are edges, ``left`` the tries of the next round.
    """

    def __init__(self, name: Any, spec: Any, grid: dict[str, list], metric: str, alone: bool):
        self.name, self.spec, self.metric, self.alone = name, spec, metric, alone
        self.seen: dict[str, list] = grid
        self.rows: list[dict] = []
        self._begin(grid)

    def _begin(self, grid: dict[str, list]) -> None:
        self.grid, self.left = grid, [self.spec.but(**values) for values in combinations(grid)]

    def _rank(self, row: Mapping) -> tuple:
        return rank(row, self.seen, self.metric)

    @property
    def best(self) -> dict:
        """The row of the best try of full length."""
        return min((row for row in self.rows if row["part"] == 1), key=self._rank)

    def end_round(self, part: float, moved: int, records: Sequence[Sequence[Mapping]], keep: float) -> None:
        """Note what is new, and leave the better tries, in the order of the grid."""
        rows = [self._row(spec, part, moved, own) for spec, own in zip(self.left, records, strict=True)]
        known = [self._key(row) for row in self.rows]
        self.rows += [row for row in rows if self._key(row) not in known]
        order = sorted(range(len(rows)), key=lambda i: self._rank(rows[i]))
        self.left = [self.left[i] for i in sorted(order[: max(1, int(keep * len(order)))])]

    def _row(self, spec: Any, part: float, moved: int, records: Sequence[Mapping]) -> dict:
        values = [record["final"].get(self.metric) for record in records]
        diverged = sum(record["status"] == "diverged" for record in records)
        if not diverged and None in values:
            measured = ", ".join(records[0]["final"])
            raise ValueError(f"the runs do not measure {self.metric!r}; they measure {measured}")
        numbers = (float("nan"),) * 3 if diverged else (sum(values) / len(values), min(values), max(values))
        row = {"arm": self.name, "part": part} | {field: getattr(spec, field) for field in self.grid}
        row |= zip((self.metric, "lowest", "highest"), numbers, strict=True)
        return row | {"diverged": diverged, "chosen": False, "edge": "", "moved": moved}

    def _key(self, row: Mapping) -> str:
        return repr([row[name] for name in ("part", *self.grid)])

    def move(self, moves: Moves) -> bool:
        """Move the grid where the best try is on an edge; whether it is."""
        if self.alone:
            return self._look_beside()
        there = {
            field: beyond(field, self.grid[field], end == "largest", numbers(self.seen[field]), moves.digits)
            for field, end in self._edges(self.best).items()
            if can_move(field, numbers(self.seen[field]))
        }
        if not there:
            return False
        self._begin(self.grid | there)
        if moves.forget:
            self.seen, self.rows = self.grid, []
        else:
            self.seen = {f: [*seen, *(v for v in self.grid[f] if v not in seen)] for f, seen in self.seen.items()}
        return True

    def _look_beside(self) -> bool:
        """Leave the neighbours of the best try that were not tried yet; whether there are any."""
        best, new = self.best, []
        for field in self.grid:
            tried, everywhere = self._beside(best, field), numbers(self.seen[field])
            for up in (False, True):
                outermost = tried and best[field] == (max(tried) if up else min(tried))
                if outermost and (value := neighbour(field, best[field], up, everywhere)) is not None:
                    new.append({name: best[name] for name in self.grid} | {field: value})
        self.left = [self.spec.but(**values) for values in new]
        self.seen = {f: [*seen, *{v[f]: 0 for v in new if v[f] not in seen}] for f, seen in self.seen.items()}
        return bool(new)

    def _beside(self, row: Mapping, field: str) -> list:
        """What was tried of a field while the others were as in a row."""
        others = [name for name in self.grid if name != field]
        return numbers({r[field]: 0 for r in self.rows if all(r[name] == row[name] for name in others)})

    def _tried(self, row: Mapping, field: str) -> list:
        """The values of a field among which that of a row may lie on an edge."""
        return self._beside(row, field) if self.alone else numbers(self.seen[field])

    def _edges(self, row: Mapping) -> dict[str, str]:
        ends = {field: edge(row[field], self._tried(row, field)) for field in self.grid}
        lonely = [f for f in self.grid if len(self._tried(row, f)) == 1 < len(numbers(self.seen[f]))]
        return {field: end for field, end in (ends | dict.fromkeys(lonely, "only one")).items() if end}

    def settle(self, quiet: bool) -> dict[str, Any]:
        """Mark the best try, say what a reader of the choice has to know, and return its rates."""
        best, moved = self.best, max(row["moved"] for row in self.rows)
        told = (f"{f} = {best[f]:g} is the {e} of {len(self._tried(best, f))}" for f, e in self._edges(best).items())
        best |= {"chosen": True, "edge": "; ".join(told)}
        said = [f"its grid moved {moved} times"] * (moved > 0)
        said += [f"the best try is on the edge of the grid: {best['edge']}"] * bool(best["edge"])
        if said and not quiet:
            print(f"{self.name}: {'; '.join(said)}")
        return {field: best[field] for field in self.grid}


def _remembering(sweep: Callable[..., list[dict]], engine: Mapping[str, Any]) -> Callable[[list, str], list[dict]]:
    """A sweep that runs no specification twice."""
    known: dict[Any, dict] = {}

    def run(specs: list, desc: str) -> list[dict]:
        if new := [spec for spec in dict.fromkeys(specs) if spec not in known]:
            known.update(zip(new, sweep(new, desc=desc, **engine), strict=True))
        return [known[spec] for spec in specs]

    return run
