"""Did this run find what was found before? Records against records: values, verdicts, tables and sentences.

``make reproduce`` ends with it: the new records against the ones committed (``git HEAD``), or, without git,
against those that lay there before the run. ``made_by`` (machine, time, versions) is never compared. Each number
agrees by the rule that the *committed* record holds for it (:mod:`decorlib.study.evidence.agreement`): a run cannot
widen its own. Seconds are compared as ratios, or not at all, and the text says how many were not.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from decorlib.study.evidence.agreement import Rule, agree, same_cell, same_text
from decorlib.study.evidence.provenance import ROOT, NoGit, git
from decorlib.study.evidence.records import Record, RecordDamaged, load_records
from decorlib.study.evidence.verdicts import Verdict

COLUMNS = ["notebook", "what", "old", "new", "allowed", "result"]
AGREES = ("within", "not compared")
OLD_FORMAT = "other, but judged by the new tolerance"


@dataclass
class Comparison:
    """Outcome of :func:`compare`: one row per number or sentence, and what happened to the verdicts."""

    rows: pd.DataFrame
    verdicts: list[str] = field(default_factory=list)  # one sentence per verdict that is no longer the same
    notes: list[str] = field(default_factory=list)

    @property
    def outside(self) -> int:
        """What moved by more than its tolerance, appeared, vanished or diverged."""
        return int((~self.rows["result"].isin((*AGREES, OLD_FORMAT))).sum()) if len(self.rows) else 0

    @property
    def failed(self) -> bool:
        """Whether this run found something else: a number or a sentence outside its tolerance, or another verdict."""
        return bool(self.verdicts) or self.outside > 0

    def text(self) -> str:
        """The comparison for a terminal: what does not agree line by line, what does as counts."""
        parts = list(self.notes)
        if len(self.rows):
            counts = Counter(self.rows["result"])
            other = self.rows[~self.rows["result"].isin(AGREES)]
            if len(other):
                parts.append(other.to_string(index=False, na_rep="-", float_format=lambda x: f"{x:.6g}"))
            compared = len(self.rows) - counts["not compared"]
            parts.append(f"{compared} values compared, {self.outside} outside their tolerance")
            parts.append(f"{counts['not compared']} not compared: seconds of one machine, and what follows from others")
        else:
            parts.append("no values to compare")
        parts += [f"VERDICT CHANGED: {sentence}" for sentence in self.verdicts] or ["no verdict changed"]
        return "\n".join(parts)


class _Pair:
    """Two records of one notebook, and the rows that their comparison gives."""

    def __init__(self, old: Record, new: Record):
        self.old, self.new, self.rows = old, new, []
        self.formats = old.format != new.format

    def row(self, what: str, old, new, rule: Rule | str, result: str) -> None:
        if self.formats and result == "OUTSIDE":
            result = OLD_FORMAT
        allowed = rule if isinstance(rule, str) else " ".join(f"{k} {v:g}" for k, v in (rule or {}).items())
        self.rows.append([self.old.notebook, what, old, new, allowed, result])

    def number(self, what: str, old: float | None, new: float | None, rule: Rule) -> None:
        """One number; a missing one diverged."""
        if old is None or new is None:
            result = "within" if old is new else ("diverged" if new is None else "no longer diverged")
        elif rule is None:
            result = "not compared"
        else:
            result = "within" if agree(old, new, rule) else "OUTSIDE"
        self.row(what, old, new, rule, result)

    def values(self) -> None:
        before = {kept["name"]: kept for kept in self.old.values}
        after = {kept["name"]: kept for kept in self.new.values}
        for name in [*after, *(name for name in before if name not in after)]:
            a, b = before.get(name), after.get(name)
            if a is None or b is None:
                x, y = (None if kept is None else kept["value"] for kept in (a, b))
                gone = "OUTSIDE" if self.formats else ("new" if a is None else "gone")
                self.row(name, x, y, "", gone)
            else:
                self.number(name, a["value"], b["value"], _rule(b if self.formats else a))

    def verdicts(self) -> list[str]:
        """The verdicts' numbers; returned are the sentences on those whose answer changed."""
        changed, after = [], {v["hypothesis"]: v for v in self.new.verdicts}
        for content in self.old.verdicts:
            name = content["hypothesis"]
            if name not in after:
                changed.append(f"{self.old.notebook} {name}: was {content['outcome']}, now gone")
                continue
            try:
                a, b = Verdict.from_dict(content), Verdict.from_dict(after[name])
            except ValueError as error:
                changed.append(f"{self.old.notebook} {name}: {error}")
                continue
            judge = b if self.formats else a
            rule = {"within": judge.agrees_within}
            for key in ("estimate", "low", "high"):
                self.number(f"verdict {name}: {key}", getattr(a, key), getattr(b, key), rule)
            if not _in_the_middle(b):
                middle = (b.low + b.high) / 2
                self.row(f"verdict {name}: middle of its interval", middle, b.estimate, "equal", "OUTSIDE")
            self.row(f"verdict {name}: n", a.n, b.n, "equal", "within" if a.n == b.n else "OUTSIDE")
            for key in ("outcome", "explains_failed_run"):
                if getattr(a, key) != getattr(b, key):
                    said = f"{self.old.notebook} {name}: {key} was {getattr(a, key)}, now {getattr(b, key)}"
                    changed.append(said)
        return changed

    def tables(self) -> None:
        for name in [*self.new.tables, *(name for name in self.old.tables if name not in self.new.tables)]:
            a, b = self.old.tables.get(name), self.new.tables.get(name)
            if a is None or b is None:
                result = "OUTSIDE" if self.formats else ("new" if a is None else "gone")
                self.row(f"table {name}", a and len(a["rows"]), b and len(b["rows"]), "rows", result)
            elif a["columns"] != b["columns"] or len(a["rows"]) != len(b["rows"]):
                shapes = [f"{len(t['rows'])} rows of {len(t['columns'])} columns" for t in (a, b)]
                self.row(f"table {name}", *shapes, "equal", "OUTSIDE")
            else:
                rules = (b if self.formats else a).get("agrees", {})
                for j, column in enumerate(a["columns"]):
                    cells = [(x[j], y[j]) for x, y in zip(a["rows"], b["rows"], strict=True)]
                    self.column(f"table {name}: {column}", cells, rules.get(column))

    def column(self, what: str, cells: list[tuple], rule: Rule) -> None:
        """A column: one row, of the first cell that does not agree."""
        if rule is None:
            self.row(what, None, None, "", "not compared")
            return
        wrong = [(i, x, y) for i, (x, y) in enumerate(cells) if not same_cell(x, y, rule)]
        where = f" (row {wrong[0][0] + 1}; {len(wrong)} of {len(cells)})" if wrong else ""
        old, new = wrong[0][1:] if wrong else (None, None)
        self.row(what + where, old, new, rule, "OUTSIDE" if wrong else "within")

    def sentences(self) -> None:
        if self.formats:
            return
        for i, (a, b) in enumerate(zip(self.old.came_out, self.new.came_out, strict=False), 1):
            same = same_text(a, b, self.old.came_out_agrees)
            self.row(f"what came out, {i}", a, b, self.old.came_out_agrees or "words", "within" if same else "OUTSIDE")
        if len(self.old.came_out) != len(self.new.came_out):
            self.row("what came out", len(self.old.came_out), len(self.new.came_out), "equal", "OUTSIDE")


def _rule(kept: dict) -> Rule:
    """The rule of a value; in a record of format 1 its tolerance was relative, and absolute from 0."""
    if "agrees" in kept:
        return kept["agrees"]
    return {"within": kept["tolerance"] * (abs(kept["value"] or 0.0) or 1.0)}


def _in_the_middle(verdict: Verdict) -> bool:
    """A Student-t interval is symmetric: an estimate elsewhere was edited, or the interval is that of another."""
    return abs(verdict.estimate - (verdict.low + verdict.high) / 2) <= 1e-6 * max(verdict.high - verdict.low, 1e-12)


def compare(old: dict[str, Record], new: dict[str, Record]) -> Comparison:
    """Compare two sets of records by notebook number.

    A notebook that is only in one of them is noted, and its numbers are not judged. A verdict counts as changed
    when its outcome or its answer about the failed run differs, or when it is gone. Where the formats of the two
    differ, the old one's tolerances were relative and its tables had none: the new record's are used, what lies outside
    is shown and a note says so, without failing.

    Args:
        old: the records compared with.
        new: those of now.
    """
    rows, changed, notes = [], [], []
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            notes.append(f"{name}: {'first' if name in new else 'no new'} record")
            continue
        a, b = old[name], new[name]
        pair = _Pair(a, b)
        if pair.formats:
            text = f"{name}: formats {a.format} and {b.format}: judged by the new record's tolerances, without failing"
            notes.append(text)
        if a.parameters != b.parameters:
            keys = sorted(k for k in {*a.parameters, *b.parameters} if a.parameters.get(k) != b.parameters.get(k))
            notes.append(f"{name}: other parameters than before ({', '.join(keys)})")
        pair.values()
        pair.tables()
        said = pair.verdicts()
        if pair.formats:
            notes += [f"across formats: {sentence}" for sentence in said]
        else:
            changed += said
        pair.sentences()
        rows += pair.rows
    return Comparison(pd.DataFrame(rows, columns=COLUMNS), changed, notes)


def read_committed(root: Path = ROOT, folder: str = "results/records", commit: str = "HEAD") -> dict[str, Record]:
    """Records at a commit.

    Args:
        root: the clone.
        folder: of the records, from its root.
        commit: which. Default: HEAD.

    Raises:
        NoGit: there is no git, no such commit, or git refuses; with its reason.
    """
    records = {}
    for name in git("ls-tree", "--name-only", commit, f"{folder}/", root=root).splitlines():
        if Path(name).suffix == ".json" and Path(name).stem.isdigit():
            records[Path(name).stem] = Record.parse(git("show", f"{commit}:{name}", root=root), f"{name} at {commit}")
    return records


def computed_with(record: Record) -> str:
    """The processor that a record was made on, and what it multiplied with, where that is said."""
    machine = record.made_by["machine"]
    return ", ".join(str(machine[key]) for key in ("cpu", "products") if machine.get(key))


def made_elsewhere(old: dict[str, Record], new: dict[str, Record]) -> list[str]:
    """A note for each two processors that the same notebooks of two sets of records were made on."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for number in sorted(old.keys() & new.keys()):
        both = computed_with(old[number]), computed_with(new[number])
        if both[0] != both[1]:
            pairs.setdefault(both, []).append(number)
    return [
        f"{', '.join(numbers)}: committed from {there}, made on {here}; training amplifies how their sums round, and a "
        "choice of rates may tip: how far such records lie apart is in docs/numbers.md, 'Whole records'"
        for (there, here), numbers in pairs.items()
    ]


def main(root: Path = ROOT) -> int:
    """``python -m decorlib.study.evidence.compare``: the working tree's records against the committed ones."""
    try:
        old, new = read_committed(root), load_records(root / "results" / "records")
    except RecordDamaged as error:
        print(error, file=sys.stderr)
        return 1
    except NoGit as error:
        print(f"nothing to compare with: git cannot say what is committed: {error}", file=sys.stderr)
        return 2
    result = compare(old, new)
    print(result.text())
    return 3 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
