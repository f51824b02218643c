"""The paragraph with which README and the landing page open: does decorrelation help, over what, and when not?

It is made of the rows of the protocol (tables ``protocol`` and ``time to levels`` of the record of notebook 07), of the
full and of the longer study; where both made a comparison, the less favourable one is told.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record
from decorlib.study.evidence.shared import of_row, points
from decorlib.study.evidence.stats import WORST_FIRST

NOTEBOOK = "07"
WORDS = {"refuted": "no different by as much as counts", "supported": "better", "harmful": "worse"}
EXPECTED = "BatchNorm"  # the control that most readers have already
FEW = 3  # pairs of runs, below which a ratio's interval says nothing
ADVICE = ("10", "11")  # what one would use instead; where it pays
COST = "08"
# What the names in the rows mean, for a reader who has opened no notebook; told where they stand in one.
MEANINGS = {
    "inputs in [0, 1]": "the scale of the pixels",
    "demeaned, every layer": "the mean taken from what enters each layer",
    "BatchNorm": "before each nonlinearity, on demeaned inputs",
    "kappa": "R learned by the kappa rule from centred inputs",
    "deeper layers": "R in every layer but the first",
    "function preserved": "after a step of R the weights take up what it changed",
    "cosine to zero": "the weights' learning rate falls along a cosine to 0",
    "equal seconds": "as many epochs as fit into the same time",
    "equal epochs": "as many passes over the data",
}
TIMED = {"network": "MLP", "data": "MNIST", "measure": "seconds"}  # whose seconds to a level are told


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
    """The paragraph and the numbers under it, in Markdown; empty where no record has such rows.

    Args:
        records: by notebook.
        root: the clone, for the longer study.
        escaped: text of records made safe for the page that it is for. Default: as it is
    """
    rows = comparisons(records, root)
    if rows.empty:
        return ""
    made = studies(records, root)
    margin, told = made[0].parameters["margin"], made[-1].frame("protocol")
    networks, data, controls = (list(dict.fromkeys(told[name])) for name in ("network", "data", "control"))
    text = (
        f"**Does decorrelation help?** {escaped(lead(rows))} Networks with a learned R "
        f"({escaped(', '.join(networks))}; {escaped(', '.join(data))}) were compared with {len(controls)} controls "
        f"without it ({escaped('; '.join(controls))}), each tuned by as many tries. Of "
        f"{len(rows)} comparisons: {counted(rows)}. "
        f"What counts is a difference of {100 * margin:g} percentage points of test accuracy."
    )
    lines = [f"least favourable: {escaped(one(rows.iloc[0]))}"]
    own = rows[rows["control"] == EXPECTED]
    if len(own):
        low, high = 100 * own["estimate"].min(), 100 * own["estimate"].max()
        lines.append(f"over {escaped(EXPECTED)}: {low:+.2f} to {high:+.2f} points; of {len(own)}: {counted(own)}")
    lines.append(f"most favourable: {escaped(one(rows.iloc[-1]))}")
    lines += [escaped(sentence) for sentence in seconds(records, root)]
    factor = made[-1].parameters.get("factor")
    tail = (
        "In brackets are 95% intervals that hold together for all rows of a study; n is the number of pairs of runs, "
        "with R and without, that start from the same random seed. With R the best of its arms stands, picked on "
        "validation images."
    )
    fewer = f"Seconds count as fewer below {1 / factor:g} of the control's." if factor else ""
    told_last = (tail, fewer, meanings(rows, escaped))
    return "\n".join([text, "", *(f"* {line}" for line in lines), "", " ".join(filter(None, told_last))])


def meanings(rows: pd.DataFrame, escaped: Callable[[str], str] = str) -> str:
    """What the names of arms, controls, schedules and budgets in the rows mean, in one sentence."""
    names = [str(name) for column in ("control", "arm", "schedule", "budget") for name in rows[column].unique()]
    said = [f"*{escaped(name)}*, {meaning}" for name, meaning in MEANINGS.items() if any(name in n for n in names)]
    return f"The names: {'; '.join(said)}." if said else ""


def lead(rows: pd.DataFrame) -> str:
    """The answer in a few words; it is no before it is yes, and says over which controls."""
    better = (rows["outcome"] == "supported").groupby(rows["control"], sort=False).agg(["sum", "size"])
    if not better["sum"].any():
        return "No gain was shown."
    if (better["sum"] == better["size"]).all():
        return "Yes."
    none, some = better[better["sum"] == 0], better[better["sum"] > 0]
    gains = ", ".join(
        f"over {control} in {row['sum']} of {row['size']} comparisons" for control, row in some.iterrows()
    )
    if none.empty:
        return f"In some cases: {gains}."
    return f"No gain was shown over {' or '.join(none.index)} (0 of {none['size'].sum()} comparisons); {gains}."


def counted(rows: pd.DataFrame) -> str:
    """How many rows have each outcome, the worst first."""
    return ", ".join(f"{n} {word(name)}" for name in WORST_FIRST if (n := int((rows["outcome"] == name).sum())))


def advice(records: dict[str, Record], escaped: Callable[[str], str] = str) -> str:
    """Should a reader use it? What notebooks 10 and 11 found, when not to use it first; empty without their records."""
    told = [(number, records[number].came_out) for number in ADVICE if number in records and records[number].came_out]
    if not told:
        return ""
    lines = [f"* {escaped(said[place])} (notebook {number})" for place in (0, 1) for number, said in told]
    return "\n".join(["**Should you use it?** Every case is on the page *Should I use it?* of the report.", "", *lines])


def cost(records: dict[str, Record], escaped: Callable[[str], str] = str) -> str:
    """What does a step cost? What notebook 08 found, the dearest first; empty without its record."""
    if COST not in records or not records[COST].came_out:
        return ""
    return f"**What does it cost?** {escaped(' '.join(records[COST].came_out))} (notebook {COST})"


def one(row: pd.Series) -> str:
    """A row in a few words, with its numbers."""
    where = f"{row['network']} on {row['data']}, rate {row['schedule']}, {row['budget']}"
    return f"{where}, '{row['arm']}' minus {row['control']}: {points(of_row(row))} ({row['outcome']})"


def word(outcome: str) -> str:
    """An outcome in a word, with what it means."""
    return f"{outcome} ({WORDS[outcome]})" if outcome in WORDS else outcome


def seconds(records: dict[str, Record], root: Path = ROOT) -> list[str]:
    """Seconds to a level over each control's (:data:`TIMED`): a sentence for each schedule, of the longest study."""
    for record in reversed(studies(records, root)):
        frame = record.frame("time to levels")
        for name, value in TIMED.items():
            frame = frame[frame[name] == value]
        if len(frame):
            return [timed(schedule, own) for schedule, own in frame.groupby("schedule", sort=False)]
    return []


def timed(schedule: str, rows: pd.DataFrame) -> str:
    """The ratios at the highest level at which most are known, the least favourable first."""
    where = f"seconds of training, {TIMED['network']} on {TIMED['data']}, rate {schedule}"
    known = rows[rows["n"] >= FEW].groupby("level", sort=False).size()
    if known.empty:
        lowest = rows["level"].iloc[0]
        return (
            f"{where}: too few pairs of runs pass a validation accuracy of {lowest}, the lowest level, to tell a ratio"
        )
    level = known[known == known.max()].index[-1]
    shown = rows[rows["level"] == level].sort_values("estimate", ascending=False)
    return f"{where}, to a validation accuracy of {level}: {'; '.join(ratio(row) for _, row in shown.iterrows())}"


def ratio(row: pd.Series) -> str:
    """A time over a control's, with its interval; runs that never got there are counted."""
    arm, control = row["of"] - row["arm never"], row["of"] - row["control never"]
    there = f"of {row['of']} runs each {arm} get there with R, {control} with {row['control']}"
    if pd.isna(row["estimate"]):
        return f"over {row['control']} not known ({there})"
    numbers = f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['control']}'s"
    missing = row["arm never"] or row["control never"]
    return f"{numbers} (n = {row['n']}, {row['outcome']}{'; ' + there if missing else ''})"
