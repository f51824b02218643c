"""Numbers over seeds: paired differences, Student-t intervals, Holm's correction, the decision they lead to, and power.

The seed is the unit: each run of an arm is paired with the run of the other arm that has the same seed (same initial
weights, same batches), because seeds differ more from each other than arms do. Student-t, not a percentile
bootstrap: of 5 values the bootstrap's nominal 95 % interval covers the mean in about 83 % of the cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

Outcome = Literal["supported", "refuted", "harmful", "undecided"]
WORST_FIRST: tuple[Outcome, ...] = ("harmful", "refuted", "undecided", "supported")  # the order they are told in


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


def decide(
    interval: Interval, *, better: Literal["higher", "lower"], margin: float = 0.0, left_out: int = 0
) -> Outcome:
    """What an interval says about the claim "the value is higher than margin" (or "lower than -margin").

    * *supported*: the whole interval is beyond the margin;
    * *refuted*: it lies inside -margin to margin, which is evidence that nothing is there that counts. Where the margin
      is 0 (a bound that is met or missed) there is no such inside: the whole interval is on the wrong side;
    * *harmful*: the whole interval is beyond the margin on the wrong side;
    * *undecided*: a margin is inside the interval; or pairs were left out since a run diverged: what is left is a
      selection.

    Args:
        interval: of a difference, or of what else the claim is about.
        better: direction of the claim.
        margin: smallest effect that counts, not negative. Default: 0. For a ratio pass its logarithms' interval.
        left_out: pairs that the interval lacks. Default: 0.

    Raises:
        ValueError: unknown direction or negative margin.
    """
    low, high = _oriented(better, margin, interval.low, interval.high)
    if left_out:
        return "undecided"
    if low > margin:
        return "supported"
    if high < -margin:
        return "harmful" if margin > 0 else "refuted"
    return "refuted" if -margin < low and high < margin else "undecided"


def beyond(interval: Interval, *, better: Literal["higher", "lower"], margin: float, level: float = 0.95) -> float:
    """One-sided p-value of "the effect is not beyond the margin": P(T > (estimate - margin) / (s / sqrt(n))).

    It is at most (1 - level) / 2 exactly where the two-sided interval of that level lies beyond the margin.

    Args:
        interval: Student-t, from :func:`interval` or :func:`paired`.
        better: direction of the claim.
        margin: smallest effect that counts, not negative.
        level: that of the interval. Default: 0.95.
    """
    at, _ = _oriented(better, margin, interval.estimate, interval.estimate)
    error = standard_error(interval, level)
    if error == 0:
        return 0.0 if at > margin else 1.0
    return float(stats.t.sf((at - margin) / error, interval.n - 1))


def simultaneous(interval: Interval, family: int, level: float = 0.95) -> Interval:
    """The interval at Bonferroni's level 1 - (1 - level) / family: all of a family's hold together with `level`.

    Args:
        interval: Student-t, of the level given.
        family: number of intervals.
        level: of the interval, and of the family as a whole. Default: 0.95.

    Raises:
        ValueError: a family of fewer than one.
    """
    if family < 1:
        raise ValueError(f"family = {family} must be at least 1, the number of intervals that are to hold together")
    error = standard_error(interval, level)
    if error == 0:
        return interval
    half = float(stats.t.isf((1 - level) / 2 / family, interval.n - 1)) * error
    return replace(interval, low=interval.estimate - half, high=interval.estimate + half)


def standard_error(interval: Interval, level: float = 0.95) -> float:
    """s / sqrt(n) of a Student-t interval, from its width; 0 where it has none."""
    if interval.n < 2:
        return 0.0
    return (interval.high - interval.low) / 2 / float(stats.t.ppf(0.5 + level / 2, interval.n - 1))


def seeds_to_decide(
    interval: Interval, *, margin: float, family: int = 1, level: float = 0.95, power: float = 0.8
) -> int | None:
    """Seeds with which the present estimate and spread would decide, with the power asked for.

    The smallest n with P(T'(n - 1, d sqrt(n)) > t(1 - alpha, n - 1)) >= power, T' noncentral t: a one-sided test
    against the margin nearer to the estimate, d = abs(abs(estimate) - margin) / s away, at
    alpha = (1 - level) / 2 / family.
    None where no number of seeds that fits into a study does (more than 100,000): the estimate lies on the margin.

    Args:
        interval: Student-t, of the level given, one per row.
        margin: smallest effect that counts, not negative.
        family: rows that are decided together (Bonferroni). Default: 1.
        level: of the interval, and of the family. Default: 0.95.
        power: probability of a decision. Default: 0.8.
    """
    spread = standard_error(interval, level) * math.sqrt(interval.n)
    if spread == 0:
        return None
    away = abs(abs(interval.estimate) - margin) / spread
    alpha, test = (1 - level) / 2 / family, TTestPower()

    def enough(n: int) -> bool:
        return float(test.power(away, n, alpha, alternative="larger")) >= power

    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if low > 100_000:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _oriented(better: str, margin: float, low: float, high: float) -> tuple[float, float]:
    """Both ends, with the claim's direction upwards."""
    if better not in ("higher", "lower"):
        raise ValueError(f"better = {better!r} must be 'higher' or 'lower'")
    if not margin >= 0:
        raise ValueError(f"margin = {margin} must not be negative; the direction is said by better")
    return (low, high) if better == "higher" else (-high, -low)


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
