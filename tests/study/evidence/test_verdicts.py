"""Verdicts say what was tested, hold together, and are cautious as a family."""

import json
import math

import pytest

from decorlib.study.evidence.stats import interval, paired
from decorlib.study.evidence.verdicts import Verdict, family

FIELDS = {
    "hypothesis": "variance",
    "claim": "the seed's rule misses its target",
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
    "cure": "aim at s2 / (1 - eta s2)",
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
    assert verdict.p_value == found.p_value
    assert verdict.numbers.startswith("0.0188 points [")
    assert Verdict.from_interval(paired(worse, better), **words, better="higher").outcome == "refuted"
    assert Verdict.from_interval(found, **words, better="higher", margin=0.02).outcome == "inconclusive"
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
    with pytest.raises(ValueError, match=r"missing \['cure'\], unknown \['remedy'\]"):
        Verdict.from_dict({**{k: v for k, v in FIELDS.items() if k != "cure"}, "remedy": ""})


def test_a_family_is_corrected_towards_caution():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None}
    verdicts = [Verdict(**{**FIELDS, "hypothesis": name, "p_value": value}) for name, value in p.items()]
    corrected = family(verdicts)
    assert [v.p_value for v in corrected[:4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [v.outcome for v in corrected] == ["supported", "inconclusive", "inconclusive", "supported", "supported"]
    assert corrected[4] == verdicts[4]
    refuted = Verdict(**{**FIELDS, "outcome": "refuted", "p_value": 0.9})
    assert family([refuted]) == [refuted]
    assert family([]) == []
