"""The rows of ``docs/protocol.md``: an arm with an R against each control, in accuracy and in time, one family each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from decorlib.study.evidence.stats import Interval, interval, paired
from decorlib.study.evidence.verdicts import Verdict, family
from decorlib.study.questions.gain.comparison import Compared, curves
from decorlib.study.questions.gain.plan import CONTROLS, LEVELS, Setting

IN_A_ROW = 3  # measurements whose mean has to be above a level
MEASURES = {"epochs": "equal epochs", "seconds": "equal seconds"}  # under which budget each is told


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        setting: where.
        budget: what was equal.
        arm: with an R.
        control: without.
        measure: "test accuracy", or "epochs" or "seconds" to a level.
        level: of validation accuracy; None for test accuracy.
        effect: paired by seed: difference of accuracies, or of logarithms of times; None where fewer than two pairs are
            whole.
        missing: runs of the arm, and of the control, that diverged or never got there; their pairs are left out.
        runs: of each.
        soon: pairs of which one run was there before the first mean of three, so that when cannot be told; left out.
    """

    setting: Setting
    budget: str
    arm: str
    control: str
    measure: str
    level: float | None
    effect: Interval | None
    missing: tuple[int, int]
    runs: int
    soon: int = 0

    @property
    def key(self) -> str:
        """What tells it from all other rows of its table."""
        level = "" if self.level is None else f", {self.measure} to {100 * self.level:.1f}%"
        word = "minus" if self.level is None else "over"
        return f"{self.setting}, {self.budget}{level}: {word} {self.control}"

    def verdict(self, margin: float, factor: float) -> Verdict | None:
        """Decided by its own interval against the margin of its measure; None where it has none.

        Args:
            margin: of test accuracy.
            factor: of times.
        """
        if self.effect is None:
            return None
        if self.level is None:
            about = {"margin": margin, "better": "higher", "unit": "of test accuracy"}
            about["left_out"] = self.runs - self.effect.n
            claim = f"'{self.arm}' gains over {margin:g} of test accuracy"
        else:
            about = {"margin": math.log(factor), "better": "lower", "unit": f"of the {self.measure}", "ratio": True}
            about["tolerance"] = 0.9 * math.log(factor)  # seconds of two runs may differ, but by less than decides
            claim = f"'{self.arm}' needs less than 1/{factor:g} of the {self.measure} to {100 * self.level:.1f}%"
        return Verdict.from_interval(
            self.effect,
            hypothesis=self.key,
            claim=f"{claim} ({self.key})",
            criterion="paired by seed, 95% interval beyond the margin; refuted inside it on both sides",
            **about,
        )


def accuracies(found: Compared) -> list[Row]:
    """Final accuracy on the test set: ours minus each control, under both budgets."""
    rows = []
    for budget in found.tables:
        wide = found.endings(budget)
        for control in CONTROLS:
            pairs = wide[[found.ours, control]].dropna()
            effect = paired(*(pairs[name].tolist() for name in pairs)) if len(pairs) > 1 else None
            missing = tuple(int(wide[name].isna().sum()) for name in pairs)
            rows.append(
                Row(found.setting, budget, found.ours, control, "test accuracy", None, effect, missing, len(wide))
            )
    return rows


def passed(curve: pd.DataFrame, level: float) -> tuple[float, float]:
    """Epochs and seconds at which the mean of three measurements in a row passes a level, so that no lucky one counts.

    It stands at the third of them; between the last mean that is not above the level and the first that is, the time is
    interpolated, since measurements are a part of an epoch apart. Infinite where no mean is above it; NaN where the
    first mean is, since when that was cannot be told.

    Args:
        curve: of one run, in order: columns epoch, seconds, accuracy. A last measurement that is closer to the one
            before than the others are does not count: it would have a run pass sooner for ending there.
        level: in [0, 1].
    """
    gaps = curve["epoch"].diff()
    if len(curve) > 2 and gaps.iloc[-1] < gaps.iloc[1] - 1e-9:
        curve = curve.iloc[:-1]
    means = curve["accuracy"].rolling(IN_A_ROW).mean().tolist()
    first = next((i for i, mean in enumerate(means) if mean > level), None)
    if first is None:
        return math.inf, math.inf
    if first < IN_A_ROW:
        return math.nan, math.nan
    before, now = (curve[["epoch", "seconds"]].iloc[i] for i in (first - 1, first))
    now = before + (now - before) * (level - means[first - 1]) / (means[first] - means[first - 1])
    return float(now["epoch"]), float(now["seconds"])


def times(found: Compared, cost: pd.DataFrame, levels: Mapping[str, Sequence[float]] = LEVELS) -> list[Row]:
    """Epochs (in runs of equal epochs) and seconds (of equal seconds) to each level: ours over each control, as logs.

    Args:
        found: of a setting.
        cost: of its network (:func:`decorlib.study.questions.gain.plan.costs`).
        levels: by data set.
    """
    rows = []
    for measure, budget in MEASURES.items():
        runs = dict(iter(curves(found, cost, budget).groupby(["arm", "seed"])))
        seeds = found.endings(budget).index
        for level in levels[found.setting.data]:
            # A run that diverged before its first measurement has no curve.
            reached = {
                arm: [
                    passed(runs[arm, s], level)[measure == "seconds"] if (arm, s) in runs else math.inf for s in seeds
                ]
                for arm in (found.ours, *CONTROLS)
            }
            for control in CONTROLS:
                both = list(zip(reached[found.ours], reached[control], strict=True))
                logs = [math.log(a / b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
                missing = tuple(sum(math.isinf(t) for t in column) for column in zip(*both, strict=True))
                effect = interval(logs) if len(logs) > 1 else None
                soon = sum(math.isnan(a) or math.isnan(b) for a, b in both)
                counts = (effect, missing, len(seeds), soon)
                rows.append(Row(found.setting, budget, found.ours, control, measure, level, *counts))
    return rows


def table(rows: Sequence[Row], margin: float, factor: float) -> pd.DataFrame:
    """One line per row, decided as one family: estimate, simultaneous 95% interval, n, outcome, n that would decide.

    Times are told as ratios. Where runs diverged or never got there, the numbers are of the whole pairs, and no outcome
    but "undecided" is drawn from them; where none of one arm's got there, the outcome says which arm does.

    Args:
        rows: all of a question.
        margin: of test accuracy.
        factor: of times.
    """
    verdicts = [row.verdict(margin, factor) for row in rows]
    answers = iter(family([verdict for verdict in verdicts if verdict is not None]))
    lines = []
    for row, verdict in zip(rows, verdicts, strict=True):
        answer = None if verdict is None else next(answers)
        numbers = dict.fromkeys(("estimate", "low", "high"))
        if answer is not None:
            told = math.exp if row.level is not None else float
            numbers = {name: told(getattr(answer.interval, name)) for name in numbers}
        lines.append(
            {
                "comparison": row.key,
                **asdict(row.setting),
                **{"budget": row.budget, "arm": row.arm, "control": row.control},
                **({} if row.level is None else {"measure": row.measure, "level": f"{100 * row.level:.1f}%"}),
                **numbers,
                "n": 0 if row.effect is None else row.effect.n,
                "left out": row.runs - (0 if row.effect is None else row.effect.n),
                "outcome": _outcome(row, answer),
                "n to decide": "-" if answer is None or answer.seeds is None else str(answer.seeds),
                "p": None if answer is None else answer.p_value,
            }
        )
        if row.level is not None:
            lines[-1] |= {"arm never": row.missing[0], "control never": row.missing[1], "soon": row.soon}
            lines[-1]["of"] = row.runs
    return pd.DataFrame(lines)


def _outcome(row: Row, answer) -> str:
    if answer is not None and not any(row.missing) and not row.soon:
        return answer.outcome
    if row.soon:
        return "undecided"
    ours, theirs = (missing < row.runs for missing in row.missing)
    if row.level is None or (ours and theirs):
        return "undecided"
    return "only R gets there" if ours else "only the control gets there" if theirs else "neither gets there"


def least(rows: Iterable[Row]) -> Row | None:
    """The least favourable by its estimate: what is told first; None where none has one."""
    return min((row for row in rows if row.effect is not None), key=_favour, default=None)


def most(rows: Iterable[Row]) -> Row | None:
    """The most favourable by its estimate; None where none has one."""
    return max((row for row in rows if row.effect is not None), key=_favour, default=None)


def _favour(row: Row) -> float:
    return row.effect.estimate if row.level is None else -row.effect.estimate
