"""Grids of rates: their combinations, their edges, and what lies beyond or beside a value.

An *edge* is the smallest or the largest of what was tried: a wider grid might have served better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from typing import Any

MOVING = ("lr", "decor_lr", "damping")  # rates; an option has a range of its own
SHARES = ("shrinkage",)  # parts, between 0 and 1, of which s / (1 - s) moves as a rate does


def combinations(values: Mapping[str, Iterable]) -> list[dict[str, Any]]:
    """Every combination of the listed values of fields, the last field changing fastest."""
    listed = {field: list(these) for field, these in values.items()}
    if empty := [field for field, these in listed.items() if not these]:
        raise ValueError(f"no value is given for {', '.join(empty)}: the grid would be empty")
    return [dict(zip(listed, these, strict=True)) for these in product(*listed.values())]


def check_fields(spec: Any, names: Iterable[str]) -> None:
    """Raise where a specification has no such field."""
    kind, known = type(spec).__name__, [field.name for field in fields(spec)]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: no such field of {kind}; it has {', '.join(known)}")


def grids_of(arms: Mapping[Any, Any], rates: Mapping[Any, Any]) -> dict[Any, dict[str, list]]:
    """The grid of each arm, where rates are given for all of them or for each."""
    by_arm = bool(rates) and all(isinstance(value, Mapping) for value in rates.values())
    if by_arm and set(rates) != set(arms):
        raise ValueError(f"rates are given for {', '.join(rates)}, but the arms are {', '.join(arms)}")
    grids = {name: {field: list(v) for field, v in (rates[name] if by_arm else rates).items()} for name in arms}
    for name, grid in grids.items():
        check_fields(arms[name], grid)
    return grids


def edge(value: Any, seen: Iterable) -> str:
    """Which edge of what was tried a value lies on: "smallest", "largest", or "" for none, as where it stood alone."""
    known = numbers(seen)
    if len(set(known)) < 2 or value not in (min(known), max(known)):
        return ""
    return "smallest" if value == min(known) else "largest"


def numbers(values: Iterable) -> list:
    """Those that have a size, without names and switches."""
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def moved_grid(values: Sequence[float], up: bool, seen: Sequence[float] = (), digits: int | None = None) -> list[float]:
    """As many rates, half of them, at least one, beyond the end that was tried so far, in the ratio of the two there.

    Args:
        values: the grid.
        up: towards larger rates.
        seen: all that were tried. Default: only the grid.
        digits: of the new ones. Default: all.

    Example::

        >>> moved_grid([1.0, 2.0, 4.0, 8.0], up=True)
        [4.0, 8.0, 16.0, 32.0]
    """
    known = sorted({*values, *seen}, reverse=not up)
    ratio, beyond = known[-1] / known[-2], max(1, len(values) // 2)
    new = [known[-1] * ratio**k for k in range(1, beyond + 1)]
    if digits is not None:
        new = [float(f"{rate:.{digits}g}") for rate in new]
    return sorted(known[len(known) - (len(values) - beyond) :] + new)


def moved_parts(
    values: Sequence[float], up: bool, seen: Sequence[float] = (), digits: int | None = None
) -> list[float]:
    """:func:`moved_grid` of parts s between 0 and 1, by s / (1 - s): beyond 0.8 and 0.9 comes 0.947.

    Args:
        values: the grid.
        up: towards 1.
        seen: all that were tried. Default: only the grid.
        digits: of s / (1 - s) of the new ones. Default: all.
    """
    known = {value / (1 - value): value for value in (*values, *seen)}
    moved = moved_grid([v / (1 - v) for v in values], up, [v / (1 - v) for v in seen], digits)
    return [known.get(odds, odds / (1 + odds)) for odds in moved]


def can_move(field: str, seen: Sequence[float]) -> bool:
    """Whether there is anything beyond the edges of what was tried of a field."""
    return min(seen) > 0 and (field in MOVING or (field in SHARES and max(seen) < 1))


def beyond(field: str, values: Sequence[float], up: bool, seen: Sequence[float], digits: int | None = None) -> list:
    """The grid ``values`` of a field as it is after a move; see :func:`moved_grid` and :func:`moved_parts`."""
    return (moved_parts if field in SHARES else moved_grid)(values, up, seen, digits)


def neighbour(field: str, value: float, up: bool, seen: Sequence[float]) -> float | None:
    """The next value of a field that was tried anywhere, or else the one beyond; None where there is none.

    Args:
        field: name of the rate or part.
        value: one of ``seen``.
        up: towards larger ones.
        seen: all values of the field that were tried, beside whatever.
    """
    there = [v for v in seen if (v > value if up else v < value)]
    if there:
        return min(there) if up else max(there)
    if len(set(seen)) < 2 or not can_move(field, seen):
        return None
    return next(v for v in beyond(field, [value], up, seen) if v not in seen)
