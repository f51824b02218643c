"""The decision table "Should I use it?": every case that notebooks 07, 10 and 11 compared, and what follows from each.

A case is a network, data, optimizer and budget; its number is the gain of the arm with R over what one would use in
its place: in 07, of the full and of the longer study, the least favourable of its three controls (with those of 06 on
all digits), in 10 the best peer and in 11 the better control, the last two picked on validation images. Of 10 and 11 a
case is that of the longer study where there is one. Intervals are simultaneous over the rows of their study.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from decorlib.study.evidence.opening import comparisons
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import Record, load_extended
from decorlib.study.evidence.shared import of_row, outcome_of_row, points
from decorlib.study.evidence.stats import WORST_FIRST, Interval

FOLLOWS = {
    "harmful": "do not",
    "refuted": "makes no difference that counts: take the cheaper one",
    "undecided": "not decided",
    "supported": "use it",
}
COLUMNS = ("your case", "with R, minus", "gain in test accuracy [95%], n", "so", "notebook")


@dataclass(frozen=True)
class Case:
    """One case: what the reader has, what was compared, what came out."""

    case: str
    compared: str
    gain: Interval
    outcome: str
    notebook: str

    def cells(self) -> dict[str, str]:
        """Its row of the table."""
        so = FOLLOWS[self.outcome] + (f" ({self.outcome})" if self.outcome != "undecided" else "")
        told = (self.case, self.compared, points(self.gain), so, self.notebook)
        return dict(zip(COLUMNS, told, strict=True))


def cases(records: dict[str, Record], root: Path = ROOT) -> list[Case]:
    """All cases of the records there are, the least favourable outcome first and within it the smallest gain."""
    found = [_of_gain(row) for _, row in _least_of_each(comparisons(records, root)).iterrows()]
    for number, table, read in (("10", "against the best peer", _of_instead), ("11", "gains", _of_where)):
        told = set()
        for where, record in ((", longer study", load_extended(number, root)), ("", records.get(number))):
            if record is None or table not in record.tables:
                continue
            own = [case for _, row in record.frame(table).iterrows() if (case := read(row, record)) is not None]
            found += [replace(case, case=case.case + where) for case in own if case.case not in told]
            told |= {case.case for case in own}
    return sorted(found, key=lambda one: (WORST_FIRST.index(one.outcome), one.gain.estimate))


def _least_of_each(rows: pd.DataFrame) -> pd.DataFrame:
    """The least favourable control of each network, data, schedule and budget."""
    if rows.empty:
        return rows
    # An outcome weighs more than an estimate: the smallest one may be the least certain.
    ranked = rows.assign(rank=rows["outcome"].map(WORST_FIRST.index)).sort_values(["rank", "estimate"])
    return ranked.drop_duplicates(["network", "data", "schedule", "budget"])


def _of_gain(row: pd.Series) -> Case:
    case = f"{row['network']} on {row['data']}, Adam, rate {row['schedule']}, {row['budget']}"
    return Case(case, f"'{row['arm']}' minus {row['control']}", of_row(row), row["outcome"], row["notebook"])


def _of_instead(row: pd.Series, record: Record) -> Case:
    case = f"{row['cell']} rate, equal time"
    return Case(case, f"'{row['ours']}' minus '{row['peer']}'", of_row(row), row["outcome"], record.notebook)


def _of_where(row: pd.Series, record: Record) -> Case | None:
    if not row["best"]:  # the control that was not picked
        return None
    cell, control = row["cell"].split(", minus ")
    outcome = outcome_of_row(row, record.parameters["margin"])
    compared = f"R in the deeper layers minus {control}"
    return Case(f"MLP, {cell}, Adam, equal epochs", compared, of_row(row), outcome, record.notebook)
