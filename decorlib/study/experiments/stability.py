"""The largest rate at which something is stable: a bracket, bisection on a logarithmic scale; and what stable means.

A trial is a function of the rate that says whether it went well, for example R followed for some steps. What is asked
of a trial differs: :func:`still_decorrelates` looks at where it ends, :func:`bounded` at a loss on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

BLOWN_UP = 1e3  # a loss is bounded up to so many times its value at R = I


def largest_stable(
    stable: Callable[[float], bool], start: float, tolerance: float, top: float = math.inf
) -> tuple[float, float]:
    """The largest stable rate and the smallest unstable one, closer together than the tolerance.

    Args:
        stable: whether a rate is.
        start: the first one tried.
        tolerance: relative width of the bracket at which the search ends.
        top: a rate above this one is not tried: if the one before is stable, both ends are `top`. Default: none.
    """
    low, high = bracket(stable, start, top=top)
    return (low, high) if high <= low else bisect(stable, low, high, tolerance)


def bracket(
    stable: Callable[[float], bool], start: float, factor: float = 4.0, top: float = math.inf
) -> tuple[float, float]:
    """A stable rate and an unstable one, at most ``factor`` apart; (top, top) where all rates up to there are stable.

    Raises:
        RuntimeError: all or none of the rates within 40 factors of the start are stable.
    """
    rate, ok = start, stable(start)
    for _ in range(40):
        other = rate * factor if ok else rate / factor
        if ok and other > top:
            return top, top
        if stable(other) != ok:
            return (rate, other) if ok else (other, rate)
        rate = other
    raise RuntimeError(f"rates from {start:g} to {rate:g} are all {'stable' if ok else 'unstable'}")


def bisect(stable: Callable[[float], bool], low: float, high: float, tolerance: float) -> tuple[float, float]:
    """Narrow a bracket, stable below and unstable above, to high <= low (1 + tolerance); on a logarithmic scale."""
    if not (0 < low < high and tolerance > 0):
        raise ValueError(
            f"low = {low}, high = {high}, tolerance = {tolerance}: 0 < low < high and tolerance > 0 needed"
        )
    while high > low * (1 + tolerance):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low, high


def still_decorrelates(first: Mapping[str, float | int], last: Mapping[str, float | int]) -> bool:
    """Less correlated than at the start, and no variance above ten times what it had to be.

    Args:
        first: :func:`decorlib.study.experiments.gaussians.whiteness` at the start.
        last: the same at the end.
    """
    return last["cosine"] <= first["cosine"] and last["largest_variance"] <= 10 * max(1.0, first["largest_variance"])


def bounded(losses: Iterable[float], start: float) -> bool:
    """Whether every loss is finite and at most :data:`BLOWN_UP` times that at R = I; reads no further than it must."""
    return all(loss <= BLOWN_UP * start for loss in losses)  # NaN is not
