"""Numbers over seeds: paired differences, Student-t intervals, Holm's correction, and the decision they lead to.

The seed is the unit: each run of an arm is paired with the run of the other arm that has the same seed (same initial
weights, same batches), because seeds differ more from each other than arms do. Student-t, not a percentile
bootstrap: of 5 values the bootstrap's nominal 95 % interval covers the mean in about 83 % of the cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

Outcome = Literal["supported", "refuted", "inconclusive"]


@dataclass(frozen=True)
class Interval:
    """An estimate over `n` seeds, its confidence interval, and the p-value of "there is no effect".

    Args:
        estimate: mean, or ratio.
        low: lower end of the interval.
        high: upper end.
        n: number of values, or pairs.
        p_value: two-sided, of the hypothesis that the true value is 0 (for :func:`ratio`: 1), or the `null` given.
    """

    estimate: float
    low: float
    high: float
    n: int
    p_value: float

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}], n = {self.n}"


def interval(values: Sequence[float], level: float = 0.95, null: float = 0.0) -> Interval:
    """Mean with its Student-t interval: mean +- t s / sqrt(n), with s from n - 1 and t from n - 1 degrees of freedom.

    Args:
        values: one per seed.
        level: confidence. Default: 0.95.
        null: the value that the p-value tests. Default: 0.

    Raises:
        ValueError: fewer than two values, one that is None or not finite, or a level outside (0, 1).
    """
    x = _checked(values, "values")
    n = len(x)
    if n < 2:
        raise ValueError(f"{n} value(s) have no spread, so no interval; run at least 2 seeds, better 5")
    if not 0 < level < 1:
        raise ValueError(f"level = {level} must be between 0 and 1, such as 0.95")
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(n)
    if error <= abs(mean) * 1e-15:  # equal values: the limit of the t statistic is 0/0 or infinite
        return Interval(mean, mean, mean, n, 1.0 if math.isclose(mean, null, rel_tol=1e-15) else 0.0)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean - null) / error, n - 1))
    return Interval(mean, mean - half, mean + half, n, p_value)


def paired(a: Sequence[float], b: Sequence[float], level: float = 0.95, null: float = 0.0) -> Interval:
    """Mean of the differences a - b, seed by seed, with its Student-t interval.

    Args:
        a: one value per seed.
        b: of the other arm, the same seeds in the same order.
        level: confidence. Default: 0.95.
        null: difference that the p-value tests. Default: 0.

    Raises:
        ValueError: different lengths, or as for :func:`interval`.

    Example::

        >>> paired([0.98, 0.97, 0.99], [0.96, 0.96, 0.97]).estimate
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    _same_length(a, b)
    return interval((a - b).tolist(), level, null)


def ratio(a: Sequence[float], b: Sequence[float], level: float = 0.95, null: float = 1.0) -> Interval:
    """Geometric mean of a / b, seed by seed; interval and p-value from the differences of the logarithms.

    Args:
        a: one positive value per seed, such as seconds to a target.
        b: of the other arm, the same seeds in the same order.
        level: confidence. Default: 0.95.
        null: ratio that the p-value tests. Default: 1.

    Raises:
        ValueError: a value that is not positive, or as for :func:`paired`.
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    _same_length(a, b)
    if not (a > 0).all() or not (b > 0).all() or not null > 0:
        raise ValueError(f"a ratio needs positive values, got a = {a.tolist()}, b = {b.tolist()}, null = {null}")
    logs = interval((np.log(a) - np.log(b)).tolist(), level, math.log(null))
    return Interval(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high), logs.n, logs.p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: each may be compared with the level of the whole family.

    Args:
        p_values: of all hypotheses of the family.

    Raises:
        ValueError: a value outside [0, 1], or None: correct over the hypotheses that have a test.
    """
    p = _checked(p_values, "p_values")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values = {p.tolist()} must be between 0 and 1")
    return multipletests(p, method="holm")[1].tolist() if len(p) else []


def decide(interval: Interval, *, better: Literal["higher", "lower"], margin: float = 0.0) -> Outcome:
    """What an interval says about the claim "the value is higher than margin" (or "lower than -margin").

    Supported where the whole interval is beyond the margin, refuted where it is wholly on this side of it, and
    inconclusive where the margin is inside.

    Args:
        interval: of a difference, or of what else the claim is about.
        better: direction of the claim.
        margin: smallest effect that counts, not negative. Default: 0. For a ratio pass its logarithms' interval.

    Raises:
        ValueError: unknown direction or negative margin.
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better = {better!r} must be 'higher' or 'lower'")
    if not margin >= 0:
        raise ValueError(f"margin = {margin} must not be negative; the direction is said by better")
    low, high = (interval.low, interval.high) if better == "higher" else (-interval.high, -interval.low)
    return "supported" if low > margin else "refuted" if high < margin else "inconclusive"


def _checked(values: Sequence[float | None], name: str) -> np.ndarray:
    for i, value in enumerate(values):
        if value is None or not math.isfinite(value):
            raise ValueError(
                f"{name}[{i}] is {value}: a run that diverged or never got there has no number; leave out its pair and "
                "say how many were left out, or compare how many got there"
            )
    return np.asarray(values, dtype=np.float64)


def _same_length(a: np.ndarray, b: np.ndarray) -> None:
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b has {len(b)}; a pair is the same seed in both arms")
