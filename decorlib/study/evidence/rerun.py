"""How far whole records lie apart that the same study left on two processors: ``docs/numbers.md``, *Whole records*.

Run as ``python -m decorlib.study.evidence.rerun OLD NEW`` with two commits, which writes the page's table.
"""

from __future__ import annotations

import sys
from pathlib import Path

from decorlib.study.evidence.compare import compare, computed_with, read_committed
from decorlib.study.evidence.markers import between
from decorlib.study.evidence.provenance import ROOT, NoGit, git
from decorlib.study.evidence.records import Record, write_atomic

PAGE = ROOT / "docs" / "numbers.md"
NAME, COMMAND = "rerun", "python -m decorlib.study.evidence.rerun"


def table(old: dict[str, Record], new: dict[str, Record]) -> str:
    """One row for each verdict that both have, and the counts of all values that ``make reproduce`` compares.

    Args:
        old: records by notebook.
        new: the same, of the other processor.
    """
    both = sorted(n for n in old.keys() & new.keys() if computed_with(old[n]) != computed_with(new[n]))
    result = compare({n: old[n] for n in both}, {n: new[n] for n in both})
    compared = int((result.rows["result"] != "not compared").sum())
    lines = [
        "| Notebook | Hypothesis | There | Here | Estimates apart, in half widths of the interval there |",
        "|---|---|---|---|---|",
    ]
    shifts = []
    for number in both:
        theirs = {verdict["hypothesis"]: verdict for verdict in old[number].verdicts}
        for here in new[number].verdicts:
            there = theirs.get(here["hypothesis"])
            if there is None or there["n"] == 1:  # a single run has no interval
                continue
            shifts.append(abs(here["estimate"] - there["estimate"]) / ((there["high"] - there["low"]) / 2))
            lines.append(f"| {number} | {here['hypothesis']} | {told(there)} | {told(here)} | {shifts[-1]:.2f} |")
    there, here = (", ".join(sorted({computed_with(records[n]) for n in both})) for records in (old, new))
    lines += [
        "",
        f"There: {there}. Here: {here}. Of {compared} values compared {result.outside} lie outside their tolerance; of "
        f"{len(shifts)} verdicts {len(result.verdicts)} change their outcome; of their estimates "
        f"{sum(s > 1 for s in shifts)} leave the interval there.",
    ]
    return "\n".join([*lines, ""])


def told(verdict: dict) -> str:
    """Outcome, estimate and interval in a cell of the table."""
    return "{outcome}, {estimate:.3g} [{low:.3g}, {high:.3g}], n = {n}".format(**verdict)


def in_page(text: str, made: str, commits: tuple[str, str]) -> str:
    """The page with the table between its markers made anew; they name the commits.

    Raises:
        ValueError: the page has no such markers.
    """
    return between(text, NAME, made, by=f"written by `{COMMAND} {' '.join(commits)}`")


def main(arguments: list[str] | None = None, page: Path = PAGE, root: Path = ROOT) -> int:
    """Write the table of the records of two commits."""
    commits = sys.argv[1:] if arguments is None else arguments
    if len(commits) != 2:
        print("rerun: give two commits, such as 944dbb6 HEAD", file=sys.stderr)
        return 2
    try:
        commits = [git("rev-parse", "--short=7", "--verify", f"{commit}^{{commit}}", root=root) for commit in commits]
        made = table(*(read_committed(root, commit=commit) for commit in commits))
    except NoGit as error:
        print(f"rerun: no records at {' or '.join(commits)}: {error}", file=sys.stderr)
        return 2
    write_atomic(page, in_page(page.read_text(encoding="utf-8"), made, tuple(commits)).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
