"""Rates chosen from grids that move: no chosen rate is left on an edge, and each arm chooses among as many tries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from decorlib.study.experiments import arms
from decorlib.study.experiments.experiment import Experiment


def tune(
    specs: Mapping[str, Experiment],
    rates: Mapping[str, Sequence[float]],
    seeds: Iterable[int],
    moves: int = 3,
    *,
    desc: str = "tuning",
    **engine,
) -> tuple[dict[str, Experiment], pd.DataFrame, dict[str, int]]:
    """:func:`decorlib.study.experiments.arms.tune`, again and again with the grids of those arms that chose an edge.

    All arms start from the same grid. Where an arm chose the edge of its grid, that grid goes one step further
    and drops its other end, so that it holds as many tries as before, most of them in the cache. What an arm chooses in
    the end is the best of its last grid.

    Args:
        specs: name -> specification.
        rates: field -> values, evenly spaced on a log scale. A field with one value has no edge.
        seeds: of the tries.
        moves: of each grid, at most. Default: 3.
        desc: text before the progress bar. Default: "tuning".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        The arms with their rates, the tries of the last grids, and how often each grid moved.
    """
    if moves < 0:
        raise ValueError(f"moves = {moves} must be at least 0, which leaves the grids where they are")
    seeds = list(seeds)
    grids = {name: {field: list(values) for field, values in rates.items()} for name in specs}
    moved, best, tables, waiting = dict.fromkeys(specs, 0), {}, {}, list(specs)
    while waiting:
        these = {name: specs[name] for name in waiting}
        found, tries = arms.tune(these, {n: grids[n] for n in these}, seeds, quiet=True, desc=desc, **engine)
        for name in waiting:
            best[name], tables[name] = found[name], tries[tries["arm"] == name]
        waiting = [name for name in waiting if moved[name] < moves and (tables[name]["edge"] != "").any()]
        for name in waiting:
            grids[name] = {field: further(values, getattr(best[name], field)) for field, values in grids[name].items()}
            moved[name] += 1
    return best, pd.concat([tables[name] for name in specs], ignore_index=True), moved


def further(values: Sequence[float], chosen: float) -> list[float]:
    """The grid one step further where the chosen value is its first or last; as it is where it is neither, or alone."""
    values = sorted(values)
    if len(values) < 2 or chosen not in (values[0], values[-1]):
        return values
    if chosen == values[0]:
        return [_typed(values[0] ** 2 / values[1]), *values[:-1]]
    return [*values[1:], _typed(values[-1] ** 2 / values[-2])]


def _typed(rate: float) -> float:
    """With three digits, as somebody would type it: rounding must not make another run of it."""
    return float(f"{rate:.3g}")
