"""The paragraph with which README and the landing page open: does decorrelation help, over what, and when not?

It is made of the rows of the protocol (tables ``protocol`` and ``time to levels`` of the record of notebook 07), of the
full and of the longer study; where both made a comparison, the less favourable one is told. The longer study of
notebook 06 adds those of a ConvNet on all digits.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import Record, load_extended
from decorlib.study.evidence.shared import of_row, points
from decorlib.study.evidence.stats import WORST_FIRST, decide

NOTEBOOK = "07"
WORDS = {"refuted": "no different by as much as counts", "supported": "better", "harmful": "worse"}
EXPECTED = "BatchNorm"  # the control that most readers have already
ALL = 50_000  # training images of both data sets but those of validation
FEW = 3  # pairs of runs, below which a ratio's interval says nothing
ON_ALL, ON_ALL_TABLE = "06", "against three controls, all digits"  # question 6 of the protocol, in the longer study
ADVICE = ("10", "11")  # what one would use instead; where it pays
LENGTHS = ("MLP", "second data set", "ConvNet", "transformer")  # whose steps the parameter `lengths` of 10 has
WHERE, COST = "11", "08"
# What the names in the rows mean, for a reader who has opened no notebook; told where they stand in one.
MEANINGS = {
    "inputs in [0, 1]": "the scale of the pixels",
    "demeaned, every layer": "the mean taken from what enters each layer",
    "BatchNorm": "before each nonlinearity, on demeaned inputs",
    "kappa": "R learned by the kappa rule from centred inputs",
    "deeper layers": "R in every layer but the first",
    "every layer": "R in the first layer, too; of a control, the mean taken in each",
    "function preserved": "after a step of R the weights take up what it changed",
    "cosine to zero": "the weights' learning rate falls along a cosine to 0",
    "equal seconds": "as many epochs as fit into the same time",
    "equal epochs": "as many passes over the data",
}
TIMED = {"network": "MLP", "measure": "seconds"}  # whose seconds to a level are told


def studies(records: dict[str, Record], root: Path = ROOT) -> list[Record]:
    """The records that have rows of the protocol: of these records, and of the longer study."""
    both = [records.get(NOTEBOOK), load_extended(NOTEBOOK, root)]
    return [record for record in both if record is not None and "protocol" in record.tables]


def on_all_digits(root: Path = ROOT) -> tuple[pd.DataFrame, int]:
    """The comparisons of a ConvNet on all digits, and random seeds of each; none of them where they were not run."""
    record = load_extended(ON_ALL, root)
    if record is None or ON_ALL_TABLE not in record.tables:
        return pd.DataFrame(), 0
    rows = record.frame(ON_ALL_TABLE)
    rows = rows.assign(comparison="all digits, " + rows["comparison"], data=rows["data"] + " (all digits)")
    return rows.assign(notebook=ON_ALL), record.parameters["controlled"][2]


def comparisons(records: dict[str, Record], root: Path = ROOT) -> pd.DataFrame:
    """The rows of the protocol, each once, the less favourable of two studies; the least favourable first."""
    frames = [record.frame("protocol").assign(notebook=NOTEBOOK) for record in studies(records, root)]
    if not frames:
        return pd.DataFrame()
    rows = pd.concat([*frames, on_all_digits(root)[0]], ignore_index=True).dropna(subset=["estimate"])
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
        f"**Does decorrelation help?** {escaped(lead(rows, margin))}{elsewhere(records, root)} "
        "Networks with a learned R "
        f"({escaped(', '.join(networks))}; {escaped(', '.join(data))}; {size(made[-1])}) were compared with "
        f"{len(controls)} controls without it ({escaped('; '.join(controls))}). The rates of each came from a grid of "
        "as many tries, which moved on where the best lay on its edge."
    )
    lines = [f"{name}: {found}" for name, found in by_study(made, records.get(NOTEBOOK), *on_all_digits(root))]
    lines.append(f"least favourable: {escaped(one(rows.iloc[0]))}{escaped(otherwise(rows.iloc[0], made))}")
    own = rows[rows["control"] == EXPECTED]
    if len(own):
        low, high = 100 * own["estimate"].min(), 100 * own["estimate"].max()
        lines.append(f"over {escaped(EXPECTED)}: {low:+.2f} to {high:+.2f} points; of {len(own)}: {counted(own)}")
    lines.append(f"most favourable: {escaped(one(rows.iloc[-1]))}")
    lines += [escaped(sentence) for sentence in seconds(records, root)]
    factor = made[-1].parameters.get("factor")
    tail = (
        "In brackets are 95% intervals that hold together for all rows of their study; n is the number of pairs of "
        "runs, with R and without, that start from the same random seed. With R the best of its arms stands, picked on "
        "validation images. Where both studies made a comparison, the less favourable of the two is told."
    )
    fewer = (
        f"Seconds count as fewer below {1 / factor:g} of the control's: *refuted* is faster by less, or not at all."
        if factor
        else ""
    )
    told_last = (tail, fewer, meanings(rows, escaped))
    return "\n".join([text, "", *(f"* {line}" for line in lines), "", " ".join(filter(None, told_last))])


def elsewhere(records: dict[str, Record], root: Path = ROOT) -> str:
    """Where R gains all the same: the counts of notebook 11's map, of its longest study; empty without its record."""
    longer = load_extended(WHERE, root)
    record, study = (longer, ", longer study") if longer is not None else (records.get(WHERE), "")
    if record is None or "gains" not in record.tables:
        return ""
    rows = record.frame("gains")
    best = rows[rows["best"]]
    margin = record.parameters["margin"]
    outcomes = [decide(of_row(row), better="higher", margin=margin) for _, row in best.iterrows()]
    gained, lost = outcomes.count("supported"), outcomes.count("harmful")
    return (
        f" On smaller tasks at equal epochs, which hide that a step with R is dearer, it gains over the better of "
        f"BatchNorm and demeaning in {gained} of {len(best)} cases and loses in {lost} (notebook {WHERE}{study})."
    )


def meanings(rows: pd.DataFrame, escaped: Callable[[str], str] = str) -> str:
    """What the names of arms, controls, schedules and budgets in the rows mean, in one sentence."""
    names = [str(name) for column in ("control", "arm", "schedule", "budget") for name in rows[column].unique()]
    said = [f"*{escaped(name)}*, {meaning}" for name, meaning in MEANINGS.items() if any(name in n for n in names)]
    return f"The names: {'; '.join(said)}." if said else ""


def size(record: Record) -> str:
    """How large runs were: images (0 means all but those of validation) and epochs of plain backpropagation."""
    networks = list(dict.fromkeys(record.frame("protocol")["network"]))
    images, epochs = (record.parameters.get(name, []) for name in ("images", "epochs"))
    if len(images) != len(networks) or len(epochs) != len(networks):
        return "small ones"
    told = zip(networks, images, epochs, strict=True)
    return "; ".join(f"{name}: {n or ALL:,} images, {e} epochs" for name, n, e in told)


def by_study(made: list[Record], full: Record | None, on_all: pd.DataFrame, seeds: int) -> list[tuple[str, str]]:
    """Each study, the longest first, and how its comparisons came out."""
    told = [
        (
            f"{'full run' if record is full else 'longer study'}, {record.parameters.get('seeds', '?')} random seeds",
            record.frame("protocol"),
        )
        for record in reversed(made)
    ]
    if len(on_all):
        told.insert(0, (f"ConvNet on all {ALL:,} digits (notebook {ON_ALL}), {seeds} random seeds", on_all))
    known = [(name, rows.dropna(subset=["estimate"])) for name, rows in told]
    return [(name, f"of {len(rows)} comparisons {counted(rows)}") for name, rows in known]


def otherwise(row: pd.Series, made: list[Record]) -> str:
    """What the other study found in the comparison of a row, where there is one that made it."""
    for record in made:
        frame = record.frame("protocol")
        same = frame[(frame["comparison"] == row["comparison"]) & (frame["estimate"] != row["estimate"])]
        if len(same.dropna(subset=["estimate"])):
            other = same.iloc[0]
            return f"; in the other study {points(of_row(other))} ({other['outcome']})"
    return ""


def lead(rows: pd.DataFrame, margin: float) -> str:
    """The answer in a few words; it is no before it is yes, and says over which controls."""
    shown = f"of more than {100 * margin:g} percentage points of test accuracy was shown"
    better = (rows["outcome"] == "supported").groupby(rows["control"], sort=False).agg(["sum", "size"])
    if not better["sum"].any():
        return f"No gain {shown}."
    if (better["sum"] == better["size"]).all():
        return "Yes."
    none, some = better[better["sum"] == 0], better[better["sum"] > 0]
    gains = "; ".join(f"one was over '{control}' in {row['sum']} of {row['size']}" for control, row in some.iterrows())
    if none.empty:
        return f"In some comparisons. A gain {shown}: {gains}."
    without, count = " or over ".join(f"'{control}'" for control in none.index), none["size"].sum()
    return f"Hardly. No gain {shown} over {without} (0 of {count} comparisons); {gains}."


def counted(rows: pd.DataFrame) -> str:
    """How many rows have each outcome, the worst first."""
    return ", ".join(f"{n} {word(name)}" for name in WORST_FIRST if (n := int((rows["outcome"] == name).sum())))


def advice(records: dict[str, Record], page: str, root: Path = ROOT, escaped: Callable[[str], str] = str) -> str:
    """Should a reader use it? What the longest studies of notebooks 10 and 11 found, when not to use it first.

    Empty without their records.

    Args:
        records: by notebook.
        page: where the decision table is, from where this is read.
        root: the clone, for the longer studies.
        escaped: text of records made safe for the page that it is for. Default: as it is
    """
    told = []
    for number in ADVICE:
        longer, full = load_extended(number, root), records.get(number)
        if longer is not None and longer.came_out:
            told.append((f"notebook {number}, longer study", length(longer), longer.came_out))
        elif full is not None and full.came_out:
            told.append((f"notebook {number}", length(full), full.came_out))
    if not told:
        return ""
    lines = [f"* {escaped(said[0])} ({where})" for where, _, said in told]
    lines += [f"* {escaped(said[1])} ({where}{long})" for where, long, said in told]
    head = f"**Should you use it?** Every case is on the page [*Should I use it?*]({page}) of the report."
    return "\n".join([head, "", *lines])


def length(record: Record) -> str:
    """How long the runs of notebook 10 are; empty for a record that has no such lengths."""
    steps = record.parameters.get("lengths", [])[: len(LENGTHS)]
    told = ", ".join(f"{name} {n:,}" for name, n in zip(LENGTHS, steps, strict=False))
    return f"; each run as long as so many steps of Adam: {told}" if told else ""


def cost(records: dict[str, Record], escaped: Callable[[str], str] = str) -> str:
    """What does a step cost? What notebook 08 found, the dearest first; empty without its record."""
    if COST not in records or not records[COST].came_out:
        return ""
    return f"**What does it cost?** {escaped(' '.join(records[COST].came_out))} (notebook {COST})"


def one(row: pd.Series) -> str:
    """A row in a few words, with its numbers."""
    where = f"{row['network']} on {row['data']}, rate {row['schedule']}, {row['budget']}"
    return f"{where}, '{row['arm']}' minus {row['control']}: {points(of_row(row))} ({row['outcome']})"


def in_one(rows: pd.DataFrame, where: str) -> str:
    """How often R gains over the controls, and the least favourable comparison, in one sentence.

    Args:
        rows: of the protocol, each with an estimate.
        where: network and images, which begin the sentence.
    """
    counts = ", ".join(f"{n} {name}" for name in WORST_FIRST if (n := (rows["outcome"] == name).sum()))
    worst = rows.sort_values("estimate", kind="stable").iloc[0]
    return f"{where}, R minus each control, {len(rows)} comparisons ({counts}): least favourable {one(worst)}."


def word(outcome: str) -> str:
    """An outcome in a word, with what it means."""
    return f"{outcome} ({WORDS[outcome]})" if outcome in WORDS else outcome


def seconds(records: dict[str, Record], root: Path = ROOT) -> list[str]:
    """Seconds to a level over each control's, of the longest study: where R is slowest, and where quickest."""
    for record in reversed(studies(records, root)):
        frame = record.frame("time to levels")
        for name, value in TIMED.items():
            frame = frame[frame[name] == value]
        cases = [own for _, own in frame.groupby(["data", "schedule"], sort=False)]
        if cases:
            known = sorted((case for case in cases if len(at_level(case))), key=_slowest, reverse=True)
            if len(known) < 2:
                return [timed(case) for case in known or cases[:1]]
            ends = (("slowest", known[0]), ("quickest", known[-1]))
            return [f"{timed(case)} ({name} of {len(cases)} cases)" for name, case in ends]
    return []


def at_level(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the highest level at which most ratios are known, the least favourable first; none, where none is."""
    known = rows[rows["n"] >= FEW].groupby("level", sort=False).size()
    if known.empty:
        return rows.iloc[:0]
    level = known[known == known.max()].index[-1]
    return rows[rows["level"] == level].sort_values("estimate", ascending=False)


def _slowest(rows: pd.DataFrame) -> float:
    return at_level(rows)["estimate"].max()


def timed(rows: pd.DataFrame) -> str:
    """The ratios at a level; and at the highest level of all, where more runs of a control get there than with R."""
    first, shown = rows.iloc[0], at_level(rows)
    where = f"seconds of training, {TIMED['network']} on {first['data']}, rate {first['schedule']}"
    if shown.empty:
        lowest = first["level"]
        return (
            f"{where}: too few pairs of runs pass a validation accuracy of {lowest}, the lowest level, to tell a ratio"
        )
    level, top = shown["level"].iloc[0], rows[rows["level"] == rows["level"].iloc[-1]]
    text = f"{where}, to a validation accuracy of {level}: {'; '.join(ratio(row) for _, row in shown.iterrows())}"
    behind = top[top["control never"] < top["arm never"]]
    if level == top["level"].iloc[0] or behind.empty:
        return text
    reached = ", ".join(f"{row['of'] - row['control never']} with {row['control']}" for _, row in behind.iterrows())
    with_R = behind["of"].iloc[0] - behind["arm never"].iloc[0]
    return f"{text}; to {top['level'].iloc[0]}: {with_R} of {behind['of'].iloc[0]} runs with R, {reached}"


def ratio(row: pd.Series) -> str:
    """A time over a control's, with its interval; runs that never got there are counted."""
    arm, control = row["of"] - row["arm never"], row["of"] - row["control never"]
    there = f"of {row['of']} runs each {arm} get there with R, {control} with {row['control']}"
    if pd.isna(row["estimate"]):
        return f"over {row['control']} not known ({there})"
    numbers = f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['control']}'s"
    missing = row["arm never"] or row["control never"]
    return f"{numbers} (n = {row['n']}, {row['outcome']}{'; ' + there if missing else ''})"
