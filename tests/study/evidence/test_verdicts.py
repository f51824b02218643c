"""Verdicts say what was tested, hold together, and are cautious as a family."""

import json
import math

import pytest
import scipy.stats

from decorlib.study.evidence import answers
from decorlib.study.evidence.stats import Interval, interval, paired
from decorlib.study.evidence.verdicts import Verdict, family

FIELDS = {
    "hypothesis": "variance",
    "claim": "the 2024 rule misses its target",
    "criterion": "interval of v - s2 excludes 0",
    "estimate": -0.5,
    "low": -0.6,
    "high": -0.4,
    "n": 5,
    "unit": "",
    "p_value": 0.001,
    "outcome": "supported",
    "explains_failed_run": "no",
    "evidence": "a control in which the update works decorrelates",
    "remedy": "aim at s2 / (1 - eta s2)",
    "margin": 0.1,
    "better": "lower",
    "scale": "1,000 digits",
    "schedule": "constant",
    "control": "the corrected rule",
    "tolerance": None,
    "ratio": False,
    "left_out": 0,
    "unsaid": "",
}


def test_it_survives_a_record():
    verdict = Verdict(**FIELDS)
    assert verdict.as_dict() == FIELDS
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict
    assert verdict.numbers == "-0.5 [-0.6, -0.4], n = 5, p = 0.001"
    assert str(verdict) == "variance: supported (-0.5 [-0.6, -0.4], n = 5, p = 0.001)"


def test_the_outcome_is_computed():
    words = {"hypothesis": "gain", "claim": "decorrelation helps", "criterion": "a - b > 0"}
    better, worse = [0.98, 0.97, 0.985, 0.99], [0.96, 0.955, 0.97, 0.965]
    found = paired(better, worse)
    verdict = Verdict.from_interval(found, **words, better="higher", unit="points")
    assert verdict.outcome == "supported"
    assert (verdict.estimate, verdict.low, verdict.high, verdict.n) == (found.estimate, found.low, found.high, 4)
    assert verdict.p_value == pytest.approx(found.p_value / 2)  # one-sided, of a margin of 0
    assert verdict.numbers.startswith("0.0188 points [")
    assert Verdict.from_interval(paired(worse, better), **words, better="higher").outcome == "refuted"
    assert Verdict.from_interval(found, **words, better="higher", margin=0.02).outcome == "undecided"
    tiny = Verdict.from_interval(interval([1.0, 1.0, 1.0]), **words, better="higher")
    assert tiny.numbers.endswith("p < 0.001")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"claim": " "}, "claim is empty"),
        ({"criterion": ""}, "criterion is empty"),
        ({"evidence": ""}, "evidence is empty"),
        ({"estimate": math.nan}, "is not finite"),
        ({"high": math.inf}, "is not finite"),
        ({"estimate": 0.0}, r"estimate = 0.0 is outside its interval \[-0.6, -0.4\]"),
        ({"n": 0}, "n = 0 must be at least 1"),
        ({"p_value": 1.2}, "p_value = 1.2"),
        ({"margin": -0.1}, "margin = -0.1 must be at least 0"),
    ],
)
def test_what_does_not_hold_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Verdict(**{**FIELDS, **change})


@pytest.mark.parametrize("change", [{"outcome": "proven"}, {"explains_failed_run": "maybe"}])
def test_words_outside_the_lists_are_refused(change):
    verdict = Verdict(**FIELDS)
    for name, value in change.items():
        object.__setattr__(verdict, name, value)  # past the type checks that only tests have
    with pytest.raises(ValueError, match=next(iter(change))):
        verdict.__post_init__()


def test_a_dict_that_is_no_verdict():
    with pytest.raises(ValueError, match=r"missing \['remedy'\], unknown \['help'\]"):
        Verdict.from_dict({**{k: v for k, v in FIELDS.items() if k != "remedy"}, "help": ""})


def of(values, name="h", margin=0.1, better="higher"):
    words = {"hypothesis": name, "claim": "it helps", "criterion": "beyond the margin"}
    return Verdict.from_interval(interval(values), **words, better=better, margin=margin)


SEVEN = [0.9, 1.1, 1.0, 0.95, 1.05, 1.02, 0.98]


@pytest.mark.parametrize(
    ("shift", "outcome"), [(0.0, "supported"), (-1.0, "refuted"), (-2.0, "harmful"), (-0.9, "undecided")]
)
def test_a_family_of_one_says_what_the_verdict_says(shift, outcome):
    verdict = of([x + shift for x in SEVEN])
    (answer,) = family([verdict])
    assert verdict.outcome == answer.outcome == outcome
    assert answer.interval.low == pytest.approx(verdict.low)
    assert answer.p_value == pytest.approx(verdict.p_value)
    assert (answer.seeds is None) == (outcome != "undecided") or shift == -0.9  # on the margin no n decides


def test_many_questions_at_once_need_more():
    close = [0.12, 0.35, 0.2, 0.15, 0.3, 0.25]
    assert family([of(close)])[0].outcome == "supported"
    rows = family([of(close), *(of([(x - 1) / 4 for x in SEVEN], f"other {i}") for i in range(9))])
    assert rows[0].outcome == "undecided"
    assert rows[0].seeds > 6
    assert rows[0].p_value == pytest.approx(10 * rows[0].verdict.p_value)
    assert rows[0].interval.low < rows[0].verdict.low
    assert [row.outcome for row in rows[1:]] == ["refuted"] * 9


def test_holm_supports_where_bonferroni_cannot_yet():
    """The second smallest p is multiplied by one less: 0.02 of two questions is 0.02 after the first is supported."""
    sure = of(SEVEN, "sure")
    p = 0.02
    error = 1.0
    at = 0.1 + float(scipy.stats.t.isf(p, 6)) * error
    half = float(scipy.stats.t.ppf(0.975, 6)) * error
    fields = {**FIELDS, "hypothesis": "close", "estimate": at, "low": at - half, "high": at + half, "n": 7}
    close = Verdict(**{**fields, "better": "higher", "p_value": p})
    rows = family([sure, close])
    assert rows[1].p_value == pytest.approx(0.02)
    assert [row.outcome for row in rows] == ["supported", "supported"]
    assert family([close, close])[0].outcome == "undecided"


def test_what_was_not_tested_does_not_count_in_the_family():
    alone = Verdict(**{**FIELDS, "p_value": None})
    rows = family([alone, of(SEVEN)])
    assert (rows[0].outcome, rows[0].p_value, rows[0].interval.low) == ("supported", None, -0.6)
    assert rows[1].interval.low == pytest.approx(rows[1].verdict.low)
    assert family([]) == []


def test_a_verdict_of_format_1_is_understood():
    """Margin and direction stood in the criterion, p was of no effect, what did not decide was inconclusive."""
    new = {"remedy", "margin", "better", "scale", "schedule", "control", "tolerance"}
    old = {k: v for k, v in FIELDS.items() if k not in new} | {"cure": "c", "outcome": "inconclusive"}
    verdict = Verdict.from_dict({**old, "criterion": "test loss lower by more than 0.01 nats, 95% interval"})
    assert (verdict.margin, verdict.better, verdict.remedy, verdict.outcome) == (0.01, "lower", "c", "supported")
    verdict = Verdict.from_dict({**old, "criterion": "95% interval above 0.005; refuted below"})
    assert (verdict.margin, verdict.better, verdict.outcome) == (0.005, "higher", "harmful")
    assert verdict.p_value > 0.99
    untested = Verdict.from_dict({**old, "p_value": None})
    assert (untested.margin, untested.outcome) == (0.0, "undecided")


def test_the_tolerance_of_another_run_is_below_the_margin():
    assert of(SEVEN, margin=0.1).agrees_within == 0.025
    bound = of(SEVEN, margin=0.0)
    assert bound.agrees_within == (bound.high - bound.low) / 4
    assert Verdict(**{**FIELDS, "tolerance": 0.3}).agrees_within == 0.3


def test_a_ratio_is_decided_in_logarithms_and_told_as_a_ratio():
    """Seconds to a level over a control's: 0.5 and 0.6 of them, twice; a factor of 1.25 is what counts."""
    found = paired([math.log(x) for x in (0.5, 0.6, 0.5, 0.6)], [0.0] * 4)
    about = {"hypothesis": "time", "claim": "c", "criterion": "d", "unit": "of the seconds"}
    verdict = Verdict.from_interval(found, better="lower", margin=math.log(1.25), ratio=True, **about)
    assert verdict.outcome == "supported"
    assert f"{math.sqrt(0.3):.3g} of the seconds [" in str(verdict)
    assert verdict.told(verdict.interval) == pytest.approx(
        tuple(map(math.exp, (found.estimate, found.low, found.high)))
    )
    (answer,) = family([verdict])
    assert answers.effect(answer).startswith("0.55 of the seconds [")
    assert Verdict.from_dict(verdict.as_dict()) == verdict
    older = {name: value for name, value in verdict.as_dict().items() if name != "ratio"}
    assert Verdict.from_dict(older).ratio is False  # of a record from before there were any


def test_pairs_left_out_since_runs_diverged_leave_it_undecided():
    """Six of ten pairs are far beyond the margin; four of the arm's runs diverged."""
    found = Interval(0.01, 0.008, 0.012, 6, 1e-5)
    about = {"claim": "c", "criterion": "k", "better": "higher", "margin": 0.002}
    whole = Verdict.from_interval(found, hypothesis="whole", **about)
    some = Verdict.from_interval(found, hypothesis="some", left_out=4, **about)
    assert (whole.outcome, some.outcome) == ("supported", "undecided")
    answers = family([whole, some])
    assert [answer.outcome for answer in answers] == ["supported", "undecided"]
    assert answers[1].seeds is None
    assert Verdict.from_dict(some.as_dict()) == some
    before = {name: value for name, value in whole.as_dict().items() if name != "left_out"}
    assert Verdict.from_dict(before) == whole  # of a record that was made before there was this field


def test_numbers_that_are_not_about_the_claim_leave_it_undecided_in_a_family_too():
    """All pairs are there and far beyond the margin, by something else than what the claim names."""
    found = Interval(0.01, 0.008, 0.012, 6, 1e-5)
    about = {"claim": "c", "criterion": "k", "better": "higher", "margin": 0.002}
    whole = Verdict.from_interval(found, hypothesis="whole", **about)
    still = Verdict.from_interval(found, hypothesis="still", unsaid="R stayed", **about)
    assert (whole.outcome, still.outcome) == ("supported", "undecided")
    both = family([whole, still])
    assert [(answer.outcome, answer.seeds) for answer in both] == [("supported", None), ("undecided", None)]
    assert answers.outcome(both[1]) == "undecided (R stayed)"
    assert Verdict.from_dict(still.as_dict()) == still
    before = {name: value for name, value in whole.as_dict().items() if name != "unsaid"}
    assert Verdict.from_dict(before) == whole  # of a record that was made before there was this field
