"""Statistics against hand calculation, scipy's own test, published examples, and simulated coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from decorlib.study.evidence.stats import (
    Interval,
    beyond,
    decide,
    holm,
    interval,
    paired,
    ratio,
    seeds_to_decide,
    simultaneous,
)

t_quantile = scipy.stats.t.ppf


def test_interval_by_hand():
    # mean 3, s = sqrt(2.5), s / sqrt(5) = sqrt(0.5); t(0.975, 4) = 2.776445
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.estimate == 3.0
    assert found.high - 3 == pytest.approx(2.776445 * math.sqrt(0.5), rel=1e-6)
    assert 3 - found.low == pytest.approx(found.high - 3)
    assert found.n == 5
    # t^2 = 9 / 0.5 = 18; with 4 degrees of freedom p = 1 - t / sqrt(4 + t^2) (1 + 2 / (4 + t^2))
    assert found.p_value == pytest.approx(1 - math.sqrt(18 / 22) * (1 + 2 / 22))
    assert str(found) == "3 [1.037, 4.963], n = 5"


def test_a_wider_level_and_another_null():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    wide = interval(values, level=0.99)
    assert wide.high - 3 == pytest.approx(4.604095 * math.sqrt(0.5), rel=1e-6)
    assert interval(values, null=3.0).p_value == pytest.approx(1.0)
    low = interval(values).low
    assert interval(values, null=low).p_value == pytest.approx(0.05)  # interval and test say the same


def test_paired_is_scipys_paired_test():
    rng = np.random.default_rng(0)
    b = rng.normal(size=7)
    a = b + rng.normal(0.5, 0.3, size=7)
    found, reference = paired(a.tolist(), b.tolist()), scipy.stats.ttest_rel(a, b)
    assert found.estimate == pytest.approx(np.mean(a - b))
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_pairing_removes_what_seeds_share():
    seeds = [1.0, 50.0, -30.0, 7.0]
    found = paired([s + d for s, d in zip(seeds, [1.0, 2.0, 1.0, 2.0], strict=True)], seeds)
    assert found.estimate == 1.5
    assert found.high < 2.5
    assert paired(seeds, [s + 1.0 for s in seeds]).estimate == -1.0  # a - b


def test_ratio_is_geometric():
    found = ratio([2.0, 8.0], [1.0, 1.0])
    assert found.estimate == pytest.approx(4.0)  # not the arithmetic 5
    assert found.low * found.high == pytest.approx(16.0)
    inverse = ratio([1.0, 1.0], [2.0, 8.0])
    assert (inverse.low, inverse.high) == pytest.approx((1 / found.high, 1 / found.low))
    assert inverse.p_value == pytest.approx(found.p_value)


@pytest.mark.parametrize(("value", "p"), [(0.5, 0.0), (0.0, 1.0)])
def test_equal_values_have_no_spread(value, p):
    assert interval([value] * 5) == Interval(value, value, value, 5, p)


@pytest.mark.parametrize(("n", "shift"), [(3, 0.0), (5, 2.0), (10, -1.0)])
def test_coverage(n, shift):
    rng = np.random.default_rng(n)
    trials = 4000
    found = [interval(x.tolist()) for x in rng.normal(shift, 1.7, size=(trials, n))]
    covered = np.mean([i.low <= shift <= i.high for i in found])
    assert abs(covered - 0.95) < 3.5 * math.sqrt(0.95 * 0.05 / trials)


def test_false_alarms_of_the_paired_test():
    rng = np.random.default_rng(1)
    p = [paired(*(row.tolist() for row in pair)).p_value for pair in rng.normal(size=(2000, 2, 5))]
    assert abs(np.mean(np.array(p) < 0.05) - 0.05) < 3.5 * math.sqrt(0.05 * 0.95 / 2000)


def test_holm_by_hand():
    # sorted 0.005 0.01 0.03 0.04 times 4 3 2 1 = 0.02 0.03 0.06 0.04, then never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("low", "high", "better", "margin", "outcome"),
    [
        (0.1, 0.5, "higher", 0.0, "supported"),
        (-0.5, -0.1, "higher", 0.0, "refuted"),
        (-0.1, 0.5, "higher", 0.0, "undecided"),
        (0.1, 0.5, "lower", 0.0, "refuted"),
        (-0.5, -0.1, "lower", 0.0, "supported"),
        (0.1, 0.5, "higher", 0.05, "supported"),
        (0.1, 0.5, "higher", 0.3, "undecided"),
        (0.1, 0.5, "higher", 0.6, "refuted"),  # an effect, but smaller than claimed
        (-0.5, -0.1, "lower", 0.6, "refuted"),
        (-0.5, -0.3, "lower", 0.2, "supported"),
        (0.0, 0.5, "higher", 0.0, "undecided"),
        (-0.5, -0.3, "higher", 0.2, "harmful"),  # an effect that counts, on the wrong side
        (0.3, 0.5, "lower", 0.2, "harmful"),
        (-0.5, 0.1, "higher", 0.2, "undecided"),  # no gain that counts, but perhaps harm
        (-0.1, 0.1, "higher", 0.2, "refuted"),
        (-0.2, 0.1, "higher", 0.2, "undecided"),  # on the margin is not inside
    ],
)
def test_decide(low, high, better, margin, outcome):
    assert decide(Interval((low + high) / 2, low, high, 5, 0.5), better=better, margin=margin) == outcome


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([1.0]), "run at least 2 seeds"),
        (lambda: interval([]), "run at least 2 seeds"),
        (lambda: interval([1.0, float("nan")]), r"values\[1\] is nan: a run that diverged"),
        (lambda: interval([1.0, 2.0], level=95.0), "level = 95.0 must be between 0 and 1"),
        (lambda: paired([1.0, 2.0], [1.0, 2.0, 3.0]), "a has 2 values and b has 3"),
        (lambda: paired([1.0, 2.0], [1.0, float("inf")]), r"b\[1\] is inf"),
        (lambda: ratio([1.0, 0.0], [1.0, 2.0]), "needs positive values"),
        (lambda: holm([0.1, 1.5]), "between 0 and 1"),
        (lambda: decide(Interval(1.0, 0.0, 2.0, 5, 0.1), better="higher", margin=-1.0), "must not be negative"),
    ],
)
def test_what_has_no_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_value_that_is_not_there_is_never_dropped():
    from decorlib.study.evidence import stats

    with pytest.raises(ValueError, match=r"a\[1\] is None.*leave out its pair and say how many"):
        stats._checked([1.0, None], "a")


def slow_t_tail(t, df, steps=400_000, far=400.0):
    """P(T > t) as a sum over the density, t >= 0; nothing but the definition."""
    c = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    x = t + (np.arange(steps) + 0.5) * (far - t) / steps
    return float((c * (1 + x**2 / df) ** (-(df + 1) / 2)).sum() * (far - t) / steps)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_beyond_is_the_tail_of_t_against_the_margin(margin):
    values = [0.9, 1.4, 0.2, 1.1, 0.6]
    found = interval(values)
    t = (np.mean(values) - margin) / (np.std(values, ddof=1) / math.sqrt(5))
    assert beyond(found, better="higher", margin=margin) == pytest.approx(slow_t_tail(t, 4), rel=1e-3)
    mirrored = interval([-v for v in values])
    assert beyond(mirrored, better="lower", margin=margin) == beyond(found, better="higher", margin=margin)
    assert beyond(mirrored, better="higher", margin=margin) > 0.9


def test_beyond_and_the_interval_say_the_same():
    """One-sided p is 0.025 exactly where the end of the 95% interval is on the margin."""
    found = interval([2.9, 3.4, 2.2, 3.1, 2.6])
    assert beyond(found, better="higher", margin=found.low) == pytest.approx(0.025)
    wide = simultaneous(found, 10)
    assert beyond(found, better="higher", margin=wide.low) == pytest.approx(0.0025)
    assert simultaneous(found, 1).low == pytest.approx(found.low)
    same = interval([1.0, 1.0, 1.0])
    assert simultaneous(same, 10) == same
    assert beyond(same, better="higher", margin=0.5) == 0.0
    assert beyond(same, better="higher", margin=1.0) == 1.0


def test_seeds_to_decide_have_the_power_that_they_promise():
    """Against draws: at the n that is named 80% of the studies decide, well below it fewer do."""
    rng, mean, spread, margin = np.random.default_rng(0), 1.0, 0.8, 0.3
    pilot = Interval(mean, mean - 0.5, mean + 0.5, 6, 0.5)
    pilot = replace(pilot, low=mean - half(spread, 6), high=mean + half(spread, 6))
    n = seeds_to_decide(pilot, margin=margin)
    assert decided(rng, mean, spread, margin, n) == pytest.approx(0.8, abs=0.05)
    assert decided(rng, mean, spread, margin, n - 4) < 0.75
    assert seeds_to_decide(pilot, margin=margin, family=10) > n
    assert seeds_to_decide(replace(pilot, estimate=0.3, low=0.3 - 1, high=0.3 + 1), margin=0.3) is None  # on the margin
    assert seeds_to_decide(interval([1.0, 1.0]), margin=0.1) is None


def half(spread, n):
    return float(t_quantile(0.975, n - 1)) * spread / math.sqrt(n)


def decided(rng, mean, spread, margin, n, studies=4000):
    x = rng.normal(mean, spread, (studies, n))
    low = x.mean(1) - float(t_quantile(0.975, n - 1)) * x.std(1, ddof=1) / math.sqrt(n)
    return float((low > margin).mean())
