"""What the records say elsewhere about a row of the answer table: comparisons that more than one study makes.

Which they are is data, ``docs/shared.yaml``; their numbers are computed from the records and the stored runs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from decorlib.study.evidence.compare import computed_with
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record, load_records
from decorlib.study.evidence.stats import Interval, Outcome, decide, paired
from decorlib.study.evidence.verdicts import Verdict

REGISTRY = Path("docs") / "shared.yaml"
ELSEWHERE = Path("results") / "elsewhere"  # records of earlier commits on other processors, a folder each


@dataclass(frozen=True)
class Shared:
    """One comparison: where it stands, what it is, what it found and what that means by its margin.

    Args:
        hypothesis: the row that it bears on.
        notebook: whose record has it.
        where: "" for the full study, "longer study" (``results/extended``), or another processor and its commit.
        what: the comparison in words.
        interval: 95 %, of this comparison alone.
        margin: smallest effect that counts.
        unit: "" for test accuracy, which is told in points.
        left_out: pairs that the interval lacks since runs diverged.
        verdict: of the longer study, where the comparison is the same claim there; it then says outcome and numbers.
    """

    hypothesis: str
    notebook: str
    where: str
    what: str
    interval: Interval
    margin: float
    unit: str
    left_out: int = 0
    verdict: Verdict | None = None

    @property
    def outcome(self) -> Outcome:
        """By its own 95 % interval; undecided where pairs are left out since runs diverged."""
        if self.verdict is not None:
            return self.verdict.outcome
        return decide(self.interval, better="higher", margin=self.margin, left_out=self.left_out)

    @property
    def numbers(self) -> str:
        """Estimate, interval and n; accuracies in points."""
        found = self.interval
        if self.verdict is not None and self.verdict.ratio:
            return self.verdict.numbers
        if self.unit:
            return f"{found.estimate:.2g} {self.unit} [{found.low:.2g}, {found.high:.2g}], n = {found.n}"
        return points(found)

    def __str__(self) -> str:
        where = f", {self.where}" if self.where else ""
        return f"{self.what} ({self.notebook}{where}): {self.numbers}, {self.outcome}"


def points(found: Interval) -> str:
    """An accuracy's difference as percentage points."""
    low, high = (100 * end for end in (found.low, found.high))
    return f"{100 * found.estimate:+.2f} points [{low:.2f}, {high:.2f}], n = {found.n}"


def of_row(row: Mapping | pd.Series) -> Interval:
    """The interval that a row of a table holds in its columns estimate, low, high, n and, where it is there, p."""
    return Interval(row["estimate"], row["low"], row["high"], int(row["n"]), row.get("p", 1.0))


def outcome_of_row(row: Mapping | pd.Series, margin: float) -> Outcome:
    """What the interval of a row says about a gain beyond the margin."""
    return decide(of_row(row), better="higher", margin=margin)


def read(records: dict[str, Record], root: Path = ROOT) -> list[Shared]:
    """Every comparison of the registry that these records, or those of the longer studies, hold.

    Args:
        records: by notebook, loaded from a folder.
        root: the clone, for the registry and the longer studies.
    """
    registry = _registry(root)
    studies = [("", records), ("longer study", load_records(root / EXTENDED / "records"))]
    for folder in sorted((root / ELSEWHERE).glob("*")):
        studies += [(_processor(record), {number: record}) for number, record in load_records(folder).items()]
    found = []
    for hypothesis, entries in registry.items():
        for entry in entries:
            for where, among in studies:
                record = among.get(entry["record"])
                if record is None or ("verdict" in entry and not where):
                    continue
                interval = find(record, entry)
                # The longer study runs what the full run has, too: told twice, it would look like two findings.
                twice = where and interval == find(records.get(entry["record"]), entry)
                if interval is not None and not twice:
                    about = (entry["what"], interval, entry["margin"], entry.get("unit", ""))
                    more = (_left_out(record, entry), _verdict(record, entry))
                    found.append(Shared(hypothesis, record.notebook, where, *about, *more))
    return found


def waiting(root: Path = ROOT) -> list[tuple[str, str]]:
    """What of the registry only the longer study compares, where it has no record: notebook, and in words."""
    longer = load_records(root / EXTENDED / "records")
    return [
        (entry["record"], entry["what"])
        for entries in _registry(root).values()
        for entry in entries
        if entry.get("study") == "longer" and entry["record"] not in longer
    ]


def _registry(root: Path) -> dict[str, list[dict]]:
    path = root / REGISTRY
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def _processor(record: Record) -> str:
    return f"on {computed_with(record)} at commit {record.made_by['commit'][:7]}"


def find(record: Record | None, entry: dict) -> Interval | None:
    """The numbers of one entry of the registry in a record; None where it does not have them."""
    if record is None:
        return None
    if "verdict" in entry:
        verdict = _verdict(record, entry)
        return None if verdict is None else verdict.interval
    if "arms" in entry:
        ended = by_arm(record, entry["where"]) if "endings" in record.tables else {}
        pair = [ended.get(arm) for arm in entry["arms"]]
        return None if None in pair or any(x is None for arm in pair for x in arm) else paired(*pair)
    if entry["table"] not in record.tables:
        return None
    told = _row(record, entry)
    if told is None or pd.isna(told["estimate"]):  # every pair of runs had one that diverged
        return None
    return Interval(told["estimate"], told["low"], told["high"], int(told["n"]), told["p"])


def _row(record: Record, entry: dict) -> dict | None:
    """The row of a table that an entry names."""
    frame = record.frame(entry["table"])
    rows = (dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False))
    return next((told for told in rows if re.fullmatch(entry["row"], str(next(iter(told.values()))))), None)


def _left_out(record: Record, entry: dict) -> int:
    """Pairs that a row of a table lacks, where the table says how many there were."""
    told = _row(record, entry) if "table" in entry else None
    if told is None:
        return 0
    return int(told["left out"]) if "left out" in told else int(told.get("seeds", told["n"]) - told["n"])


def _verdict(record: Record, entry: dict) -> Verdict | None:
    about = entry.get("verdict")
    return next((Verdict.from_dict(v) for v in record.verdicts if v["hypothesis"] == about), None)


def by_arm(record: Record, where: str, value: str = "test_accuracy") -> dict[str, list[float | None]]:
    """What each arm's runs ended with, by seed: of the lines of the table ``endings`` with that ``where``."""
    frame = record.frame("endings")
    own = frame[frame["where"] == where].sort_values("seed")
    return {arm: [None if pd.isna(x) else x for x in part[value]] for arm, part in own.groupby("arm", sort=False)}
