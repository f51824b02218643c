"""The paragraph with which README and the landing page open: does decorrelation help, over what, and when not?

It is made of the rows of the protocol (tables ``protocol`` and ``time to levels`` of the record of notebook 07), of the
full and of the longer study; where both made a comparison, the less favourable one is told. The longer study of
notebook 06 adds those of a ConvNet on all digits.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from decorlib.study.evidence import to_levels
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import Record, load_extended
from decorlib.study.evidence.shared import of_row, outcome_of_row, points
from decorlib.study.evidence.stats import WORST_FIRST

NOTEBOOK = "07"
WORDS = {"refuted": "a difference that counts is ruled out", "supported": "better", "harmful": "worse"}
EXPECTED = "BatchNorm"  # the control that most readers have already
ALL = 50_000  # training images of both data sets but those of validation
ON_ALL, ON_ALL_TABLE = "06", "against three controls, all digits"  # question 6 of the protocol, in the longer study
ADVICE = ("10", "11")  # what one would use instead; where it pays
# Whose steps the parameter `lengths` of 10 has.
LENGTHS = ("MLP", "MLP on the second data set", "ConvNet", "transformer")
WHERE, COST = "11", "08"
# What the names in the rows mean, for a reader who has opened no notebook; told where they stand in one.
MEANINGS = {
    "inputs in [0, 1]": "the scale of the pixels",
    "demeaned, every layer": "the mean taken from what enters each layer",
    "BatchNorm": "before each nonlinearity, on demeaned inputs",
    "kappa": "R learned by the kappa rule from centred inputs",
    "deeper layers": "R in every layer but the first",
    "every layer": "in the first layer, too",
    "function preserved": "after a step of R the weights are corrected so that the network computes what it did",
    "cosine to zero": "the weights' learning rate falls along a cosine to 0",
    "equal seconds": "as many epochs as fit into the same time",
    "equal epochs": "as many passes over the data",
}


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
        f"({escaped(', '.join(networks))}; {escaped(', '.join(data))}; {size(made[-1])}{smaller(made)}) were compared "
        f"with {len(controls)} controls without it ({escaped('; '.join(controls))}). Every network got equally many "
        "tries of its learning rates, and more where the best lay at the edge of what had been tried."
    )
    lines = [f"{name}: {found}" for name, found in by_study(made, records.get(NOTEBOOK), *on_all_digits(root))]
    lines.append(f"least favourable: {escaped(one(rows.iloc[0]))}{escaped(otherwise(rows.iloc[0], made))}")
    own = rows[rows["control"] == EXPECTED]
    if len(own):
        low, high = 100 * own["estimate"].min(), 100 * own["estimate"].max()
        lines.append(
            f"over {escaped(EXPECTED)}, all studies: {low:+.2f} to {high:+.2f} points; of {len(own)} comparisons "
            f"{counted(own)}"
        )
    lines.append(f"most favourable: {escaped(one(rows.iloc[-1]))}")
    lines += [escaped(sentence) for sentence in to_levels.seconds(made)]
    factor = made[-1].parameters.get("factor")
    tail = (
        "In brackets are 95% intervals that hold together for all rows of their study; n is the number of pairs of "
        "runs, with R and without, that start from the same random seed. *Undecided*: the interval allows more than "
        "one answer, or a run did not get there. Of the networks with R, the one that was best on "
        f"validation images is compared. What counts is a difference of more than {100 * margin:g} points."
    )
    twice = "Where the full run and the longer study made the same comparison, the less favourable of the two is told."
    fewer = (
        f"Seconds count as fewer below {1 / factor:g} of the control's; *refuted*: they are not, or by less."
        if factor
        else ""
    )
    told_last = (tail, twice if len(made) > 1 else "", fewer, meanings(rows, escaped))
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
    outcomes = [outcome_of_row(row, margin) for _, row in best.iterrows()]
    gained, lost = outcomes.count("supported"), outcomes.count("harmful")
    return (
        f" On smaller tasks, and at equal epochs, where the dearer steps of R are free, it gains over the better of "
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


def smaller(made: list[Record]) -> str:
    """That the shorter study of two has fewer data sets, where it has; else nothing."""
    data = [list(dict.fromkeys(record.frame("protocol")["data"])) for record in made]
    return f"; in the full run {', '.join(data[0])} alone, with fewer" if len(data) > 1 and data[0] != data[-1] else ""


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
    """The answer in a few words, at equal seconds first: at equal epochs nothing is paid for R."""
    paid, free = (rows[(rows["budget"] == "equal epochs") == epochs] for epochs in (False, True))
    if paid.empty or free.empty:
        return _lead(rows, margin)
    gains = "; ".join(over_each(gained(free)))
    return f"{_lead(paid, margin, ' at equal seconds')} At equal epochs, where nothing is paid for R, it gains {gains}."


def _lead(rows: pd.DataFrame, margin: float, budget: str = "") -> str:
    """It is no before it is yes, and says over which controls."""
    shown = f"of more than {100 * margin:g} percentage points of test accuracy was shown{budget}"
    better = gained(rows)
    if not better["sum"].any():
        return f"No gain {shown}."
    if (better["sum"] == better["size"]).all():
        return "Yes."
    none, some = better[better["sum"] == 0], better[better["sum"] > 0]
    gains = "; ".join(f"one was {over}" for over in over_each(some))
    if none.empty:
        return f"In some comparisons. A gain {shown}: {gains}."
    without, count = " or over ".join(f"'{control}'" for control in none.index), none["size"].sum()
    return f"Hardly. No gain {shown} over {without} (0 of {count} comparisons); {gains}."


def gained(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each control the comparisons in which R gains ("sum"), and all of them ("size")."""
    return (rows["outcome"] == "supported").groupby(rows["control"], sort=False).agg(["sum", "size"])


def over_each(better: pd.DataFrame) -> list[str]:
    """:func:`gained` in words, a control each."""
    return [f"over '{control}' in {row['sum']} of {row['size']}" for control, row in better.iterrows()]


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
    return f"; a run takes as long as this many steps of Adam: {told}" if told else ""


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
