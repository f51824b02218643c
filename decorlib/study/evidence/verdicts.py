"""What a notebook claims, with the numbers that decide it."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from decorlib.study.evidence.stats import Interval, Outcome, beyond, decide, holm, seeds_to_decide, simultaneous

OUTCOMES = ("supported", "refuted", "harmful", "undecided")
EXPLANATIONS = ("yes", "no", "partly", None)
LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """One hypothesis, settled or not: the claim, the criterion written before the runs, the numbers, the answer.

    Args:
        hypothesis: short name, such as "variance".
        claim: the sentence that was tested, said so that "supported" means that it holds; without a negation.
        criterion: what would decide it, as it stands in the title cell.
        estimate: effect over seeds, in `unit`.
        low: lower end of its 95 % interval.
        high: upper end.
        n: seeds (pairs).
        unit: of the estimate; "" where it has none.
        p_value: one-sided, of "the effect is not beyond the margin", before correction over the family; None where
            nothing was tested.
        outcome: "supported", "refuted" (evidence of absence), "harmful" or "undecided"; of this question alone.
        explains_failed_run: question (a), is it why run 3 failed: "yes", "no", "partly"; None where it is not asked.
        evidence: what that answer rests on.
        remedy: what helps, in one sentence; "" where nothing has to be mended.
        margin: smallest effect that counts, in `unit`; 0 where the estimate is the distance to a bound. Default: 0.
        better: direction in which the claim says the estimate lies. Default: "higher".
        scale: how large the study is: images, network, length. Default: "".
        schedule: of the rates, "constant" or what else. Default: "".
        control: what it is compared with. Default: "".
        tolerance: largest absolute change of estimate, low and high with which another run agrees. Default: ``None``,
            a quarter of the margin; where that is 0, a quarter of the interval's width.
        ratio: estimate, low, high, margin and tolerance are natural logarithms of ratios, which are what is told.
            Default: False.
        left_out: pairs that are not in the estimate since a run diverged; where there are any, nothing but "undecided"
            is drawn from the others. Default: 0.
        unsaid: why the numbers, whole as they are, are not about the claim (an R that stayed at the identity); then
            nothing but "undecided" is drawn from them. Default: "", they are.

    Raises:
        ValueError: naming the field and what it may hold; also an estimate outside its interval.
    """

    hypothesis: str
    claim: str
    criterion: str
    estimate: float
    low: float
    high: float
    n: int
    unit: str
    p_value: float | None
    outcome: Outcome
    explains_failed_run: Literal["yes", "no", "partly"] | None
    evidence: str
    remedy: str
    margin: float = 0.0
    better: Literal["higher", "lower"] = "higher"
    scale: str = ""
    schedule: str = ""
    control: str = ""
    tolerance: float | None = None
    ratio: bool = False
    left_out: int = 0
    unsaid: str = ""

    def __post_init__(self):
        for name in ("hypothesis", "claim", "criterion"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; a verdict says what was tested and what decides")
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome = {self.outcome!r} must be one of {', '.join(OUTCOMES)}")
        if self.explains_failed_run not in EXPLANATIONS:
            raise ValueError(f"explains_failed_run = {self.explains_failed_run!r} must be yes, no, partly or None")
        if self.explains_failed_run is not None and not self.evidence.strip():
            raise ValueError("evidence is empty; say what the answer about the failed run rests on")
        if not all(map(math.isfinite, (self.estimate, self.low, self.high))):
            raise ValueError(f"estimate = {self.estimate} in [{self.low}, {self.high}] is not finite")
        if not self.low <= self.estimate <= self.high:
            raise ValueError(f"estimate = {self.estimate} is outside its interval [{self.low}, {self.high}]")
        if self.n < 1:
            raise ValueError(f"n = {self.n} must be at least 1")
        if self.p_value is not None and not 0 <= self.p_value <= 1:
            raise ValueError(f"p_value = {self.p_value} must be between 0 and 1")
        if not self.margin >= 0 or self.better not in ("higher", "lower"):
            raise ValueError(f"margin = {self.margin} must be at least 0, better = {self.better!r} higher or lower")

    @classmethod
    def from_interval(
        cls,
        interval: Interval,
        *,
        hypothesis: str,
        claim: str,
        criterion: str,
        better: Literal["higher", "lower"],
        margin: float = 0.0,
        unit: str = "",
        explains_failed_run: Literal["yes", "no", "partly"] | None = None,
        evidence: str = "",
        remedy: str = "",
        **about: Any,
    ) -> "Verdict":
        """A verdict whose outcome and p-value are computed (:mod:`decorlib.study.evidence.stats`), not typed.

        Args:
            interval: from :func:`decorlib.study.evidence.stats.paired`, or of one sample.
            hypothesis: as in the class, as all that follow.
            claim: the sentence tested.
            criterion: what decides it.
            better: direction in which the claim says the estimate lies.
            margin: smallest effect that counts. Default: 0.
            unit: of the estimate. Default: "".
            explains_failed_run: answer to question (a). Default: None.
            evidence: what that rests on. Default: "".
            remedy: what helps. Default: "".
            about: scale, schedule, control, tolerance, ratio, left_out, unsaid.
        """
        whole = {name: about[name] for name in ("left_out", "unsaid") if name in about}
        return cls(
            **{**asdict(interval), "p_value": beyond(interval, better=better, margin=margin)},
            hypothesis=hypothesis,
            claim=claim,
            criterion=criterion,
            unit=unit,
            outcome=_decided(interval, better, margin, **whole),
            explains_failed_run=explains_failed_run,
            evidence=evidence,
            remedy=remedy,
            margin=margin,
            better=better,
            **about,
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Verdict":
        """The verdict that :meth:`as_dict` wrote, checked again; one of a record of format 1 is understood too.

        Raises:
            ValueError: fields are missing or unknown.
        """
        content = _of_format_1(content) if "cure" in content else content
        content = {"ratio": False, "left_out": 0, "unsaid": "", **content}
        names = {field.name for field in fields(cls)}
        if names != set(content):
            missing, unknown = sorted(names - set(content)), sorted(set(content) - names)
            raise ValueError(f"this is not a verdict: missing {missing}, unknown {unknown}")
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        """Plain dict, for a record."""
        return asdict(self)

    @property
    def interval(self) -> Interval:
        """Its estimate with the 95 % interval."""
        return Interval(self.estimate, self.low, self.high, self.n, 1.0 if self.p_value is None else self.p_value)

    @property
    def agrees_within(self) -> float:
        """Largest absolute change of estimate, low and high with which another run agrees."""
        return self.tolerance if self.tolerance is not None else (self.margin or self.high - self.low) / 4

    @property
    def numbers(self) -> str:
        """Estimate, interval, n and p-value in one short string, for a table or a sentence."""
        unit = f" {self.unit}" if self.unit else ""
        p = "" if self.p_value is None else f", p {'< 0.001' if self.p_value < 0.001 else f'= {self.p_value:.2g}'}"
        estimate, low, high = self.told(self.interval)
        return f"{estimate:.3g}{unit} [{low:.3g}, {high:.3g}], n = {self.n}{p}"

    def told(self, interval: Interval) -> tuple[float, float, float]:
        """Estimate, low and high of an interval of this verdict as they are told: of logarithms, the ratios."""
        numbers = interval.estimate, interval.low, interval.high
        return tuple(map(math.exp, numbers)) if self.ratio else numbers

    def __str__(self) -> str:
        return f"{self.hypothesis}: {self.outcome} ({self.numbers})"


def _decided(
    interval: Interval, better: Literal["higher", "lower"], margin: float, left_out: int = 0, unsaid: str = ""
) -> Outcome:
    """What an interval says about a claim that it may not be about."""
    return "undecided" if unsaid else decide(interval, better=better, margin=margin, left_out=left_out)


def _of_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """A verdict as records held it before they held margins: those stood in the criterion, p was of "no effect"."""
    content = {**content, "remedy": content["cure"]}
    del content["cure"]
    said = re.search(r"(?:above|higher by more than|lower by more than) ([\d.]+\d)", content.get("criterion", ""))
    content["margin"] = float(said[1]) if said else 0.0
    content["better"] = "lower" if said and "lower" in said[0] else "higher"
    content |= {"scale": "", "schedule": "", "control": "", "tolerance": None}
    if content.get("p_value") is not None and content.get("n", 0) > 1:
        found = Interval(content["estimate"], content["low"], content["high"], content["n"], 1.0)
        how = {"better": content["better"], "margin": content["margin"]}
        content["p_value"], content["outcome"] = beyond(found, **how), decide(found, **how)
    return {**content, "outcome": {"inconclusive": "undecided"}.get(content["outcome"], content["outcome"])}


@dataclass(frozen=True)
class Answer:
    """A verdict as one of a family: what it says where all are asked at once.

    Args:
        verdict: the verdict, its own p-value and 95 % interval untouched.
        outcome: in the family.
        interval: simultaneous: all of a family's hold together with 95 %.
        p_value: Holm's adjusted one-sided p of "not beyond the margin"; None where nothing was tested.
        seeds: that would decide with a power of 80 % at the present estimate and spread; None where it is decided.
    """

    verdict: Verdict
    outcome: Outcome
    interval: Interval
    p_value: float | None
    seeds: int | None


def family(verdicts: Iterable[Verdict], level: float = LEVEL) -> list[Answer]:
    """What the verdicts say together.

    Many tests make false discoveries. *Supported* needs Holm's adjusted one-sided p at most (1 - level) / 2, which is
    what a two-sided interval of `level` beyond the margin means for one question alone. *Refuted* and *harmful* need
    the simultaneous interval (Bonferroni) inside the margin, or beyond it on the wrong side. The rest is *undecided*.
    A verdict without a p-value was decided otherwise, by its criterion; it does not count in the family.

    Args:
        verdicts: all of the family, no more and no fewer.
        level: confidence of the family as a whole. Default: 0.95.
    """
    verdicts = list(verdicts)
    tested = [i for i, verdict in enumerate(verdicts) if verdict.p_value is not None]
    adjusted = dict(zip(tested, holm([verdicts[i].p_value for i in tested]), strict=True))
    answers = []
    for i, verdict in enumerate(verdicts):
        if i not in adjusted:
            answers.append(Answer(verdict, verdict.outcome, verdict.interval, None, None))
            continue
        wide = simultaneous(verdict.interval, len(tested), level)
        outcome = _decided(wide, verdict.better, verdict.margin, verdict.left_out, verdict.unsaid)
        seeds = None
        # Neither p nor more seeds make up for runs that diverge, or for numbers that are about something else.
        if outcome == "undecided" and not verdict.left_out and not verdict.unsaid:
            if adjusted[i] <= (1 - level) / 2:
                outcome = "supported"
            else:
                seeds = seeds_to_decide(verdict.interval, margin=verdict.margin, family=len(tested), level=level)
        answers.append(Answer(verdict, outcome, replace(wide, p_value=adjusted[i]), adjusted[i], seeds))
    return answers
