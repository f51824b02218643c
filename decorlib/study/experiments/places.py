"""Arms of several places, such as a network and a schedule each, with their rates chosen at once.

The tries of a round have to end before the next one begins, and in late rounds they are few. One place after the other
would leave processes idle at the end of every round of each; at once, a round is one for all of them. What is tried and
chosen in a place is the same either way, since no arm depends on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd


def run_in_groups(
    groups: Mapping[Any, Sequence[Any]], run: Callable[[list], list[dict]]
) -> dict[Any, tuple[Sequence[Any], list[dict]]]:
    """For each group its specifications and their records, of one call of ``run`` for all groups."""
    records = iter(run([spec for specs in groups.values() for spec in specs]))
    return {key: (specs, [next(records) for _ in specs]) for key, specs in groups.items()}


def choose_in_places(
    choose: Callable[..., tuple[dict[Any, Any], pd.DataFrame]],
    arms: Mapping[Any, Mapping[str, Any]],
    rates: Mapping[Any, Mapping[str, Mapping[str, list]]],
    seeds: Iterable[int],
    *options: Any,
    **named: Any,
) -> dict[Any, tuple[dict[str, Any], pd.DataFrame]]:
    """For each place what ``choose(arms, rates, seeds)`` returns there, of one call for all places.

    Args:
        choose: such as :func:`decorlib.study.experiments.halving.halve`.
        arms: place -> arm -> specification.
        rates: place -> arm -> field -> values, as many tries for every arm of every place.
        seeds: of the tries.
        *options: further arguments of ``choose``.
        **named: likewise.
    """
    flat = {(place, arm): spec for place, own in arms.items() for arm, spec in own.items()}
    grids = {(place, arm): rates[place][arm] for place, arm in flat}
    best, tries = choose(flat, grids, seeds, *options, **named)
    fields = {field for grid in grids.values() for field in grid}
    found = {}
    for place, own in arms.items():
        here = tries[[place == where for where, _ in tries["arm"]]].reset_index(drop=True)
        foreign = fields - {field for arm in own for field in rates[place][arm]}
        here = here.drop(columns=sorted(foreign)).assign(arm=[arm for _, arm in here["arm"]])
        found[place] = {arm: best[place, arm] for arm in own}, here
    return found
