"""What a notebook claims, with the numbers that decide it."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from decorlib.study.evidence.stats import Interval, Outcome, decide, holm

OUTCOMES = ("supported", "refuted", "inconclusive")
EXPLANATIONS = ("yes", "no", "partly", None)


@dataclass(frozen=True)
class Verdict:
    """One hypothesis, settled or not: the claim, the criterion written before the runs, the numbers, the answer.

    Args:
        hypothesis: short name, such as "variance".
        claim: the sentence that was tested.
        criterion: what would decide it, as it stands in the title cell.
        estimate: effect over seeds, in `unit`.
        low: lower end of its 95 % interval.
        high: upper end.
        n: seeds (pairs).
        unit: of the estimate; "" where it has none.
        p_value: two-sided, of "no effect", before correction over the family; None where nothing was tested.
        outcome: "supported", "refuted" or "inconclusive".
        explains_failed_run: question (a), is it why run 3 failed: "yes", "no", "partly"; None where it is not asked.
        evidence: what that answer rests on.
        cure: what helps, in one sentence; "" where there is nothing to cure.

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
    cure: str

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
        cure: str = "",
    ) -> "Verdict":
        """A verdict whose outcome is computed by :func:`decorlib.study.evidence.stats.decide`, not typed.

        Args:
            interval: from :func:`decorlib.study.evidence.stats.paired` or its relatives.
            hypothesis: as in the class, as all that follow but better and margin.
            claim: the sentence tested.
            criterion: what decides it.
            better: direction in which the claim says the estimate lies.
            margin: smallest effect that counts. Default: 0.
            unit: of the estimate. Default: "".
            explains_failed_run: answer to question (a). Default: None.
            evidence: what that rests on. Default: "".
            cure: what helps. Default: "".
        """
        return cls(
            **asdict(interval),
            hypothesis=hypothesis,
            claim=claim,
            criterion=criterion,
            unit=unit,
            outcome=decide(interval, better=better, margin=margin),
            explains_failed_run=explains_failed_run,
            evidence=evidence,
            cure=cure,
        )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Verdict":
        """The verdict that :meth:`as_dict` wrote, checked again.

        Raises:
            ValueError: fields are missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if names != set(content):
            missing, unknown = sorted(names - set(content)), sorted(set(content) - names)
            raise ValueError(f"this is not a verdict: missing {missing}, unknown {unknown}")
        return cls(**content)

    def as_dict(self) -> dict[str, Any]:
        """Plain dict, for a record."""
        return asdict(self)

    @property
    def numbers(self) -> str:
        """Estimate, interval, n and p-value in one short string, for a table or a sentence."""
        unit = f" {self.unit}" if self.unit else ""
        p = "" if self.p_value is None else f", p {'< 0.001' if self.p_value < 0.001 else f'= {self.p_value:.2g}'}"
        return f"{self.estimate:.3g}{unit} [{self.low:.3g}, {self.high:.3g}], n = {self.n}{p}"

    def __str__(self) -> str:
        return f"{self.hypothesis}: {self.outcome} ({self.numbers})"


def family(verdicts: Iterable[Verdict], level: float = 0.95) -> list[Verdict]:
    """The verdicts with p-values corrected by Holm over the family; support that does not survive is inconclusive.

    Many tests make false discoveries, so only "supported" can change. "Refuted" rests on an interval that ends before
    the margin, which may well hold 0 and have a large p-value. A verdict without one does not count in the family.

    Args:
        verdicts: all of the family, no more and no fewer.
        level: confidence of the family as a whole. Default: 0.95.
    """
    verdicts = list(verdicts)
    tested = [i for i, verdict in enumerate(verdicts) if verdict.p_value is not None]
    for i, p in zip(tested, holm([verdicts[i].p_value for i in tested]), strict=True):
        lost = verdicts[i].outcome == "supported" and p > 1 - level
        verdicts[i] = replace(verdicts[i], p_value=p, outcome="inconclusive" if lost else verdicts[i].outcome)
    return verdicts
