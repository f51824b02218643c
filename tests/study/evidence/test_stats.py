"""Statistics against hand calculation, scipy's own test, published examples, and simulated coverage."""

import math

import numpy as np
import pytest
import scipy.stats

from decorlib.study.evidence.stats import Interval, decide, holm, interval, paired, ratio


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
        (-0.1, 0.5, "higher", 0.0, "inconclusive"),
        (0.1, 0.5, "lower", 0.0, "refuted"),
        (-0.5, -0.1, "lower", 0.0, "supported"),
        (0.1, 0.5, "higher", 0.05, "supported"),
        (0.1, 0.5, "higher", 0.3, "inconclusive"),
        (0.1, 0.5, "higher", 0.6, "refuted"),  # an effect, but smaller than claimed
        (-0.5, -0.1, "lower", 0.6, "refuted"),
        (-0.5, -0.3, "lower", 0.2, "supported"),
        (0.0, 0.5, "higher", 0.0, "inconclusive"),
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
