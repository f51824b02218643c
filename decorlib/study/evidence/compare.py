"""Did this run find what was found before? Records against records, value by value, with their tolerances.

``make reproduce`` ends with it: the new records against the ones committed (``git HEAD``), or, without git,
against those that lay there before the run. ``made_by`` (machine, time, versions) is never compared.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from decorlib.study.evidence.provenance import ROOT, NoGit, git
from decorlib.study.evidence.records import Record, RecordDamaged

COLUMNS = ["notebook", "value", "old", "new", "change", "tolerance", "result"]


@dataclass
class Comparison:
    """Outcome of :func:`compare`: one row per value, and what happened to the verdicts."""

    rows: pd.DataFrame
    verdicts: list[str] = field(default_factory=list)  # one sentence per verdict that is no longer the same
    notes: list[str] = field(default_factory=list)

    @property
    def outside(self) -> int:
        """Values that moved by more than their tolerance, appeared, vanished or diverged."""
        return int((self.rows["result"] != "within").sum()) if len(self.rows) else 0

    def text(self) -> str:
        """The comparison for a terminal."""
        parts = list(self.notes)
        if len(self.rows):
            parts.append(self.rows.to_string(index=False, na_rep="-", float_format=lambda x: f"{x:.6g}"))
            parts.append(f"{len(self.rows)} values compared, {self.outside} outside their tolerance")
        else:
            parts.append("no values to compare")
        parts += [f"VERDICT CHANGED: {sentence}" for sentence in self.verdicts] or ["no verdict changed"]
        return "\n".join(parts)


def relative_change(old: float | int | None, new: float | int | None) -> float | None:
    """(new - old) / abs(old); from an old value of zero, the absolute change; None where one is missing."""
    if old is None or new is None:
        return None
    return (new - old) / abs(old) if old != 0 else float(new)


def _compare_values(number: str, old: Record, new: Record) -> list[list]:
    before = {kept["name"]: kept for kept in old.values}
    after = {kept["name"]: kept for kept in new.values}
    rows = []
    for name in [*after, *(name for name in before if name not in after)]:
        a, b = before.get(name), after.get(name)
        x, y = (None if kept is None else kept["value"] for kept in (a, b))
        # The committed tolerance decides: a run must not be able to widen its own.
        tolerance = (a or b)["tolerance"]
        change = relative_change(x, y)
        if a is None or b is None:
            result = "new" if a is None else "gone"
        elif x is None or y is None:
            result = "within" if x is y else ("diverged" if y is None else "no longer diverged")
        else:
            result = "within" if abs(change) <= tolerance else "OUTSIDE"
        rows.append([number, name, x, y, change, tolerance, result])
    return rows


def compare(old: dict[str, Record], new: dict[str, Record]) -> Comparison:
    """Compare two sets of records by notebook number.

    A notebook that is only in one of them is noted, and its values are not judged. A verdict counts as changed
    when its outcome or its answer about the failed run differs, or when it is gone.

    Args:
        old: the records compared with.
        new: those of now.
    """
    rows, changed, notes = [], [], []
    for number in sorted({*old, *new}):
        if number not in old or number not in new:
            notes.append(f"{number}: {'first' if number in new else 'no new'} record")
            continue
        a, b = old[number], new[number]
        if a.parameters != b.parameters:
            keys = sorted(k for k in {*a.parameters, *b.parameters} if a.parameters.get(k) != b.parameters.get(k))
            notes.append(f"{number}: other parameters than before ({', '.join(keys)})")
        rows += _compare_values(number, a, b)
        after = {v["hypothesis"]: v for v in b.verdicts}
        for verdict in a.verdicts:
            name = verdict["hypothesis"]
            if name not in after:
                changed.append(f"{number} {name}: was {verdict['outcome']}, now gone")
                continue
            for key in ("outcome", "explains_failed_run"):
                if verdict.get(key) != after[name].get(key):
                    changed.append(f"{number} {name}: {key} was {verdict.get(key)}, now {after[name].get(key)}")
    return Comparison(pd.DataFrame(rows, columns=COLUMNS), changed, notes)


def read_folder(folder: Path) -> dict[str, Record]:
    """Records in a folder; damaged ones raise."""
    return {path.stem: Record.load(path) for path in sorted(Path(folder).glob("[0-9][0-9].json"))}


def read_committed(root: Path = ROOT, folder: str = "results/records") -> dict[str, Record]:
    """Records at git HEAD.

    Raises:
        NoGit: there is no git, no commit, or git refuses; with its reason.
    """
    records = {}
    for name in git("ls-tree", "--name-only", "HEAD", f"{folder}/", root=root).splitlines():
        if Path(name).suffix == ".json" and Path(name).stem.isdigit():
            records[Path(name).stem] = Record.parse(git("show", f"HEAD:{name}", root=root), f"{name} at HEAD")
    return records


def main(root: Path = ROOT) -> int:
    """``python -m decorlib.study.evidence.compare``: the working tree's records against the committed ones."""
    try:
        old, new = read_committed(root), read_folder(root / "results" / "records")
    except RecordDamaged as error:
        print(error, file=sys.stderr)
        return 1
    except NoGit as error:
        print(f"nothing to compare with: git cannot say what is committed: {error}", file=sys.stderr)
        return 2
    result = compare(old, new)
    print(result.text())
    return 3 if result.verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
