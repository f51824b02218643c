"""Rates chosen by successive halving: many short tries, the better half of them longer, the last at full length.

Every arm begins with as many tries and, where its grid stays, ends with as many of full length. Where an arm's best
rate is the smallest or the largest that was tried for it, its grid moves there and is halved again: a wider one might
have served it better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from decorlib.study.experiments import side_by_side
from decorlib.study.experiments.arms import check_equal_tries, edges, grid, listed, numeric, rank, rates_per_arm, tried
from decorlib.study.experiments.experiment import Experiment

ROUNDS = (1 / 8, 1 / 4, 1 / 2, 1)
MOVING = ("lr", "decor_lr")  # rates; a shrinkage or an option has a range of its own
MOST_MOVES = 3
EIGHTHS = 8  # of an epoch: how finely a length is cut


def halve(
    arms: Mapping[str, Experiment],
    rates: Mapping[str, Any],
    seeds: Iterable[int],
    metric: str = "test_accuracy",
    *,
    rounds: Sequence[float] = ROUNDS,
    keep: float = 1 / 2,
    move: bool | int = True,
    quiet: bool = False,
    desc: str = "halving",
    **engine: Any,
) -> tuple[dict[str, Experiment], pd.DataFrame]:
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
        quiet: do not print moves, edges and divergences. Default: False.
        desc: text before the progress bar. Default: "halving".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        The arms with their best rates and ``split="test"`` (where the arm's is "both": "both"), and a table of all
        tries: arm, part, epochs, rates, mean, lowest and highest over seeds (missing where any diverged), diverged
        seeds, moved (how often the grid had, when the try was run), chosen, edge.

    Raises:
        ValueError: arms with unequal numbers of tries, fewer than two seeds, rounds that do not rise to 1, an unknown
            field.
    """
    seeds, rounds, moves = listed(seeds), list(rounds), MOST_MOVES if move is True else int(move)
    if not arms or len(seeds) < 2:
        raise ValueError(f"{len(arms)} arms and {len(seeds)} seeds: give at least one arm and two seeds")
    if rounds != sorted(set(rounds)) or rounds[-1:] != [1] or not rounds[0] > 0:
        raise ValueError(f"rounds are {rounds}: parts of the full length, above 0, each longer, the last one 1")
    if not 0 < keep < 1:
        raise ValueError(f"keep is {keep}; it must be between 0 and 1")
    if moves < 0:
        raise ValueError(f"move is {move}; it must be at least 0")
    grids = rates_per_arm(arms, rates)
    check_equal_tries({name: len(grid(arm, **grids[name])) for name, arm in arms.items()})

    run = _remembering(desc, engine)
    seen = {name: {field: list(values) for field, values in own.items()} for name, own in grids.items()}
    rows: dict[str, list[dict]] = {name: [] for name in arms}
    best: dict[str, dict] = {}
    moving = dict(grids)
    for moved in range(moves + 1):
        found = _halved({n: arms[n] for n in moving}, moving, seen, seeds, metric, rounds, keep, run)
        for name, new in found.items():
            known = {_key(row, grids[name]) for row in rows[name]}
            rows[name] += [row | {"moved": moved} for row in new if _key(row, grids[name]) not in known]
            full = [row for row in rows[name] if row["part"] == 1]
            best[name] = min(full, key=lambda row, name=name: rank(row, seen[name], metric))
        if moved == moves:
            break
        moving = {name: there for name in moving if (there := _moved(moving[name], seen[name], best[name]))}
        for name, there in moving.items():
            for field, values in there.items():
                seen[name][field] = _union(seen[name][field], values)
        if not moving:
            break

    chosen = {}
    for name, row in best.items():
        row |= {"chosen": True, "edge": edges(row, seen[name])}
        split = "both" if arms[name].split == "both" else "test"
        chosen[name] = arms[name].but(split=split, **{field: row[field] for field in grids[name]})
        if not quiet:
            _say(name, rows[name], row)
    return chosen, numeric(pd.DataFrame([row for own in rows.values() for row in own]), (metric, "lowest", "highest"))


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


# ---------------------------------------------------------------------------------------------------------- internals


def _remembering(desc: str, engine: Mapping[str, Any]) -> Callable[[list[Experiment], str], list[dict]]:
    """A sweep that runs no experiment twice."""
    known: dict[Experiment, dict] = {}

    def run(specs: list[Experiment], what: str) -> list[dict]:
        new = [spec for spec in dict.fromkeys(specs) if spec not in known]
        if new:
            known.update(zip(new, side_by_side.sweep(new, desc=f"{desc}, {what}", **engine), strict=True))
        return [known[spec] for spec in specs]

    return run


def _halved(arms, grids, seen, seeds, metric, rounds, keep, run) -> dict[str, list[dict]]:
    """The tries of one halving of each arm, round by round."""
    alive = {name: grid(arm.but(split="validation", evaluate_every=0), **grids[name]) for name, arm in arms.items()}
    rows: dict[str, list[dict]] = {name: [] for name in arms}
    for part in rounds:
        tries = {name: [grid(shortened(s, part), seed=seeds) for s in specs] for name, specs in alive.items()}
        records = iter(
            run([s for these in tries.values() for group in these for s in group], f"{part:g} of the length")
        )
        for name, these in tries.items():
            results = [
                {"arm": name, "part": part, "epochs": group[0].epochs}
                | tried(name, spec, grids[name], [next(records) for _ in group], metric)
                for spec, group in zip(alive[name], these, strict=True)
            ]
            rows[name] += results
            order = sorted(range(len(results)), key=lambda i: rank(results[i], seen[name], metric))
            left = set(order[: max(1, int(keep * len(order)))])
            alive[name] = [spec for i, spec in enumerate(alive[name]) if i in left]  # in the order of the grid
    return rows


def _key(row: Mapping, fields: Iterable[str]) -> str:
    return repr([row[name] for name in ("part", *fields)])


def _moved(values: Mapping[str, list], seen: Mapping[str, list], best: Mapping) -> dict[str, list] | None:
    """The grid moved by half its width where the best rate is on an edge of all that were tried; None where none is."""
    there = {}
    for field in MOVING:
        tried_ = sorted(set(seen.get(field, [])))
        if len(tried_) > 1 and tried_[0] > 0 and best[field] in (tried_[0], tried_[-1]):
            there[field] = moved_grid(values[field], up=best[field] == tried_[-1], seen=tried_)
    return {field: there.get(field, own) for field, own in values.items()} if there else None


def moved_grid(values: Sequence[float], up: bool, seen: Sequence[float] = ()) -> list[float]:
    """As many rates, half of them beyond the end that was tried so far, in the ratio of the two at that end.

    Args:
        values: the grid.
        up: towards larger rates.
        seen: all that were tried. Default: only the grid.

    Example::

        >>> moved_grid([1.0, 2.0, 4.0, 8.0], up=True)
        [4.0, 8.0, 16.0, 32.0]
    """
    count, known = len(values), sorted({*values, *seen})
    known = known if up else known[::-1]
    ratio = known[-1] / known[-2]
    new = [known[-1] * ratio**k for k in range(1, count // 2 + 1)]
    return sorted(known[len(known) - (count - len(new)) :] + new)


def _union(a: list, b: list) -> list:
    return [*a, *(value for value in b if value not in a)]


def _say(name: str, rows: Sequence[Mapping], best: Mapping) -> None:
    """What a reader of the choice has to know: how often the grid moved, an edge, divergences; nothing else."""
    moved, diverged = max(row["moved"] for row in rows), sum(row["diverged"] > 0 for row in rows)
    said = [f"its grid moved {moved} times"] * (moved > 0)
    said += [f"the best try is on the edge of the grid: {best['edge']}"] * bool(best["edge"])
    said += [f"{diverged} of {len(rows)} tries diverged"] * (diverged > 0)
    if said:
        print(f"{name}: {'; '.join(said)}")
