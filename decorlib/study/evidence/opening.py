"""The paragraph with which README and the landing page open: does decorrelation help, over what, and when not?

It is made of the rows of the protocol (tables ``protocol`` and ``time to levels`` of the record of notebook 07), of the
full and of the longer study; where both made a comparison, the less favourable one is told.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record
from decorlib.study.evidence.shared import points
from decorlib.study.evidence.stats import Interval

NOTEBOOK = "07"
ORDER = ("harmful", "refuted", "undecided", "supported")  # in which outcomes are told
WORDS = {"refuted": "no different by as much as counts", "supported": "better", "harmful": "worse"}
ADVICE = ("10", "11")  # what one would use instead; where it pays
TOLD = "98.0%"  # of the levels, the one that the paragraph tells, of an MLP on MNIST


def studies(records: dict[str, Record], root: Path = ROOT) -> list[Record]:
    """The records that have rows of the protocol: of these records, and of the longer study."""
    longer = root / EXTENDED / "records" / f"{NOTEBOOK}.json"
    both = [records.get(NOTEBOOK), Record.load(longer) if longer.exists() else None]
    return [record for record in both if record is not None and "protocol" in record.tables]


def comparisons(records: dict[str, Record], root: Path = ROOT) -> pd.DataFrame:
    """The rows of the protocol, each once, the less favourable of two studies; the least favourable first."""
    frames = [record.frame("protocol") for record in studies(records, root)]
    if not frames:
        return pd.DataFrame()
    rows = pd.concat(frames, ignore_index=True).dropna(subset=["estimate"])
    return rows.sort_values("estimate", kind="stable").drop_duplicates("comparison").reset_index(drop=True)


def paragraph(records: dict[str, Record], root: Path = ROOT, escaped: Callable[[str], str] = str) -> str:
    """The paragraph, in Markdown; empty where no record has such rows.

    Args:
        records: by notebook.
        root: the clone, for the longer study.
        escaped: text of records made safe for the page that it is for. Default: as it is
    """
    rows = comparisons(records, root)
    if rows.empty:
        return ""
    first, last = rows.iloc[0], rows.iloc[-1]
    margin = studies(records, root)[0].parameters["margin"]
    text = f"**Does decorrelation help?** Least favourable comparison first: {escaped(one(first))}. "
    for control, own in rows.groupby("control", sort=False):
        counts = [f"{word(name)} in {n}" for name in ORDER if (n := int((own["outcome"] == name).sum()))]
        text += f"Against **{escaped(control)}** a network with a learned R is {', '.join(counts)} of {len(own)} "
        low, high = 100 * own["estimate"].min(), 100 * own["estimate"].max()
        text += f"comparisons ({low:+.2f} to {high:+.2f} points). "
    text += f"The most favourable: {escaped(one(last))}."
    # Parts are joined here: text that is made safe for a page may lose the space at its end.
    tail = (
        "With R the best of its arms stands, picked on validation images; each arm and each control had as many tries. "
        "A comparison is a network, data set, schedule of rates and budget (equal seconds or equal epochs). Intervals "
        "are 95%, simultaneous over all rows of a study; "
        f"{100 * margin:g} points of test accuracy are what counts."
    )
    return " ".join(part for part in (text, escaped(seconds(records, root)).strip(), tail) if part)


def advice(records: dict[str, Record], escaped: Callable[[str], str] = str) -> str:
    """Should a reader use it? What notebooks 10 and 11 found, when not to use it first; empty without their records."""
    told = [(number, records[number].came_out) for number in ADVICE if number in records and records[number].came_out]
    if not told:
        return ""
    lines = [f"{escaped(worse)} {escaped(better)} (notebook {number})" for number, (worse, better) in told]
    return "**Should you use it?** " + " ".join(lines)


def one(row: pd.Series) -> str:
    """A row in a few words, with its numbers."""
    found = Interval(row["estimate"], row["low"], row["high"], int(row["n"]), 1.0)
    where = f"{row['network']} on {row['data']}, rate {row['schedule']}, {row['budget']}"
    return f"{where}, '{row['arm']}' minus {row['control']}: {points(found)} ({row['outcome']})"


def word(outcome: str) -> str:
    """An outcome in a word, with what it means."""
    return f"{outcome} ({WORDS[outcome]})" if outcome in WORDS else outcome


def seconds(records: dict[str, Record], root: Path = ROOT) -> str:
    """Seconds of an MLP to 98.0% on MNIST, over each control's, a sentence for each schedule; of the longest study."""
    for record in reversed(studies(records, root)):
        frame = record.frame("time to levels")
        asked = {"network": "MLP", "data": "MNIST", "measure": "seconds", "level": TOLD}
        for name, value in asked.items():
            frame = frame[frame[name] == value]
        if len(frame):
            return "".join(
                f"To {TOLD} (MLP on MNIST, rate {schedule}) it needs {'; '.join(ratio(r) for _, r in own.iterrows())}. "
                for schedule, own in frame.groupby("schedule", sort=False)
            )
    return ""


def ratio(row: pd.Series) -> str:
    """A time over a control's, with its interval; runs that never got there are counted."""
    arm, control = row["of"] - row["arm never"], row["of"] - row["control never"]
    there = f"of {row['of']} runs each {arm} get there with R, {control} with {row['control']}"
    if pd.isna(row["estimate"]):
        return f"of {row['control']}'s {row['measure']} a part that is not known ({there})"
    numbers = f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['control']}'s {row['measure']}"
    missing = row["arm never"] or row["control never"]
    return f"{numbers} (n = {row['n']}, {row['outcome']}{'; ' + there if missing else ''})"
