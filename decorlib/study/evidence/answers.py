"""The answer sheet: every verdict of every record, one row each, for notebook 09, the README and the report alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from decorlib._io.files import written_atomically
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record
from decorlib.study.evidence.verdicts import Verdict, family

START = re.compile(r"(<!-- answers:[^\n]*-->\n).*?(<!-- /answers -->)", re.S)
OUTCOME = {"supported": "yes", "refuted": "no", "inconclusive": "inconclusive"}


def rows(records: dict[str, Record]) -> list[dict[str, str]]:
    """One row per verdict, in the order of the notebooks; p-values corrected by Holm over all of them."""
    where = [(notebook, verdict) for notebook, record in sorted(records.items()) for verdict in record.verdicts]
    corrected = family(Verdict.from_dict(verdict) for _, verdict in where)
    return [
        {
            "hypothesis": verdict.hypothesis,
            "claim tested": verdict.claim,
            "broke run 3?": verdict.explains_failed_run or "–",
            "supported?": OUTCOME[verdict.outcome],
            "effect [95% interval]": effect(verdict),
            "cure": verdict.cure,
            "notebook": notebook,
        }
        for (notebook, _), verdict in zip(where, corrected, strict=True)
    ]


def effect(verdict: Verdict) -> str:
    """Estimate with its interval and n, as text; a number that was not estimated over seeds stands alone."""
    if verdict.low == verdict.high:
        return f"{verdict.estimate:.2g} {verdict.unit}"
    return f"{verdict.estimate:.2g} {verdict.unit} [{verdict.low:.2g}, {verdict.high:.2g}], n = {verdict.n}"


def markdown(records: dict[str, Record], link: Callable[[str], str]) -> str:
    """The rows as a Markdown table; ``link`` gives what the last column says for a notebook's number."""
    table = rows(records)
    if not table:
        return "No notebook has written a verdict yet: `make reproduce` does.\n"
    names = list(table[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in table:
        cells = (*list(row.values())[:-1], link(row["notebook"]))
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def longer(root: Path = ROOT) -> str:
    """What the committed records of longer studies decided, one sentence each; empty where there are none.

    They stand beside the table and not in it: a longer run of a question is no further question.
    """
    sentences = []
    for path in sorted((root / EXTENDED / "records").glob("[0-9][0-9].json")):
        record = Record.load(path)
        verdicts = "; ".join(str(Verdict.from_dict(verdict)) for verdict in record.verdicts)
        sentences.append(
            f"The longer study of notebook {record.notebook} (seeds: {record.parameters['seeds']}), by its own "
            f"criteria: {verdicts}."
        )
    return " ".join(sentences)


def in_readme(records: dict[str, Record], text: str, notebooks: Path = ROOT / "notebooks") -> str:
    """README's text with the table between its markers made anew.

    Raises:
        ValueError: the markers are not there.
    """
    if not START.search(text):
        raise ValueError("README.md has no lines `<!-- answers: ... -->` and `<!-- /answers -->` to write between")

    def link(notebook: str) -> str:
        path = next(notebooks.glob(f"{notebook}_*.ipynb"), None)
        return notebook if path is None else f"[{notebook}](notebooks/{path.name})"

    below = longer(notebooks.parent)
    table = markdown(records, link) + (f"\n{below}\n" if below else "")
    return START.sub(lambda found: found[1] + "\n" + table + "\n" + found[2], text)


def write_readme(records: dict[str, Record], path: Path = ROOT / "README.md") -> bool:
    """Write the table into README; True where that changed it."""
    old = path.read_text(encoding="utf-8")
    new = in_readme(records, old)
    if new == old:
        return False
    with written_atomically(path) as file:
        file.write(new.encode())
    return True
