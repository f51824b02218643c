"""The decision table "Should I use it?": every case that notebooks 07, 10 and 11 compared, and what follows from each.

A case is a network, data, optimizer and budget; its number is the gain of the arm with R over what one would use in its
place: in 07 the least favourable of its three controls, in 10 the best peer and in 11 the better control, the last two
picked on validation images. Intervals are simultaneous over the rows of their notebook.
"""

from dataclasses import dataclass

import pandas as pd

from decorlib.study.evidence.records import Record
from decorlib.study.evidence.shared import points
from decorlib.study.evidence.stats import Interval, decide

ORDER = ("harmful", "refuted", "undecided", "supported")
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
        told = (self.case, self.compared, points(self.gain), f"{FOLLOWS[self.outcome]} ({self.outcome})", self.notebook)
        return dict(zip(COLUMNS, told, strict=True))


def cases(records: dict[str, Record]) -> list[Case]:
    """All cases of the records there are, the least favourable outcome first and within it the smallest gain."""
    found = []
    for number, (table, read) in SOURCES.items():
        if number in records and table in records[number].tables:
            record = records[number]
            found += [read(row, record) for _, row in chosen(record.frame(table)).iterrows()]
    return sorted(found, key=lambda one: (ORDER.index(one.outcome), one.gain.estimate))


def chosen(frame: pd.DataFrame) -> pd.DataFrame:
    """The row of each case: where a case has several controls, the one that was picked, or the least favourable."""
    if "best" in frame:
        return frame[frame["best"]]
    if "control" in frame and "budget" in frame:
        # An outcome weighs more than an estimate: the smallest one may be the least certain.
        known = frame.dropna(subset=["estimate"]).assign(rank=frame["outcome"].map(ORDER.index))
        return known.sort_values(["rank", "estimate"]).drop_duplicates(["network", "data", "schedule", "budget"])
    return frame


def _gain(row: pd.Series) -> Interval:
    return Interval(row["estimate"], row["low"], row["high"], int(row["n"]), 1.0)


def _of_gain(row: pd.Series, record: Record) -> Case:
    case = f"{row['network']} on {row['data']}, Adam, rate {row['schedule']}, {row['budget']}"
    return Case(case, f"'{row['arm']}' minus {row['control']}", _gain(row), row["outcome"], record.notebook)


def _of_instead(row: pd.Series, record: Record) -> Case:
    case = f"{row['cell']} rate, equal time"
    return Case(case, f"'{row['ours']}' minus '{row['peer']}'", _gain(row), row["outcome"], record.notebook)


def _of_where(row: pd.Series, record: Record) -> Case:
    cell, control = row["cell"].split(", minus ")
    case = f"MLP, {cell}, Adam, equal epochs"
    gain = _gain(row)
    outcome = decide(gain, better="higher", margin=record.parameters["margin"])
    return Case(case, f"R in the deeper layers minus {control}", gain, outcome, record.notebook)


# notebook -> its table of cases, and how a row of it is read
SOURCES = {
    "07": ("protocol", _of_gain),
    "10": ("against the best peer", _of_instead),
    "11": ("gains", _of_where),
}
