"""The answer sheet: every verdict of every record, one row each, for notebook 09, the README and the report alike.

Above it stands one paragraph in plain words, in the notebooks' first cells two sentences each. All of it is made from
records, and written between markers, so that nobody types a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat

from decorlib._io.files import written_atomically
from decorlib.study.evidence import opening, shared
from decorlib.study.evidence.markers import between
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import Record, load_extended
from decorlib.study.evidence.shared import Shared
from decorlib.study.evidence.verdicts import Answer, Verdict, family

CAME_OUT = re.compile(r"\n*<!-- came out:[^\n]*-->\n(.*?)\n?<!-- /came out -->", re.S)
MANY = 500  # seeds; of more, the number is that of a spread known from a few, and nobody will run them
IN_REPORT = "results/report/should.html"  # from README
OTHERWISE = "; other runs say otherwise, see below"


def answered(records: dict[str, Record]) -> list[tuple[str, Answer]]:
    """Every verdict with its notebook's number, decided as one family."""
    where = [(notebook, verdict) for notebook, record in sorted(records.items()) for verdict in record.verdicts]
    return list(zip([n for n, _ in where], family(Verdict.from_dict(v) for _, v in where), strict=True))


def rows(records: dict[str, Record], root: Path = ROOT) -> list[dict[str, str]]:
    """One row per verdict, in the order of the notebooks; an outcome says where other runs say something else."""
    elsewhere = shared.read(records, root)
    return [
        {
            "hypothesis": answer.verdict.hypothesis,
            "claim": answer.verdict.claim,
            "scale": answer.verdict.scale or "–",
            "schedule": answer.verdict.schedule or "–",
            "control": answer.verdict.control or "–",
            "outcome": outcome(answer) + (OTHERWISE if disagreeing(answer, elsewhere) else ""),
            "effect [95% simultaneous interval], n": effect(answer),
            "p": probability(answer.p_value),
            "remedy": answer.verdict.remedy or "–",
            "notebook": notebook,
        }
        for notebook, answer in answered(records)
    ]


def contradictions(records: dict[str, Record], root: Path = ROOT) -> list[tuple[str, str]]:
    """Rows that other comparisons of the records contradict: the hypothesis, and a sentence with all of them."""
    elsewhere, found = shared.read(records, root), []
    for _, answer in answered(records):
        others = disagreeing(answer, elsewhere)
        if others:
            found.append(
                (answer.verdict.hypothesis, f"{answer.outcome} here, but " + "; ".join(map(str, others)) + ".")
            )
    return found


def disagreeing(answer: Answer, elsewhere: Sequence[Shared]) -> list[Shared]:
    """The comparisons that bear on a row and say something else than its outcome."""
    about = [found for found in elsewhere if found.hypothesis == answer.verdict.hypothesis]
    return [found for found in about if found.outcome != answer.outcome]


def outcome(answer: Answer) -> str:
    """The outcome in a word or two, with the seeds that would decide."""
    if answer.outcome != "undecided":
        return answer.outcome
    if answer.verdict.unsaid:
        return f"undecided ({answer.verdict.unsaid})"
    if left_out := answer.verdict.left_out:
        return f"undecided ({left_out} of {left_out + answer.verdict.n} pairs left out: runs diverged)"
    if answer.seeds and answer.seeds > MANY:
        return f"undecided (n > {MANY} would decide)"
    return "undecided" + (f" (n = {answer.seeds} would decide)" if answer.seeds else "")


def effect(answer: Answer) -> str:
    """Estimate with its simultaneous interval and n; a number that was not estimated over seeds stands alone."""
    verdict, n = answer.verdict, answer.interval.n
    estimate, low, high = verdict.told(answer.interval)
    if low == high:
        return f"{estimate:.2g} {verdict.unit}"
    return f"{estimate:.2g} {verdict.unit} [{low:.2g}, {high:.2g}], n = {n}"


def probability(p: float | None) -> str:
    """A p-value in a few characters."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def markdown(records: dict[str, Record], link: Callable[[str], str], root: Path = ROOT) -> str:
    """The rows as a Markdown table; ``link`` gives what the last column says for a notebook's number."""
    table = rows(records, root)
    if not table:
        return "No notebook has written a verdict yet: `make reproduce` does.\n"
    names = list(table[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in table:
        cells = (*list(row.values())[:-1], link(row["notebook"]))
        lines.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def below(records: dict[str, Record], root: Path = ROOT, escaped: Callable[[str], str] = str) -> str:
    """What stands under the table, in Markdown: the run that failed, and where other runs contradict a row.

    Args:
        records: by notebook.
        root: the clone.
        escaped: text of records made safe for the page that it is for. Default: as it is
    """
    parts = [escaped(failed_run(records))] if failed_run(records) else []
    if found := contradictions(records, root):
        lines = [f"* *{escaped(hypothesis)}*: {escaped(sentence)}" for hypothesis, sentence in found]
        head = "**Where our own other runs say otherwise** (each interval 95%, by itself):"
        parts.append(head + "\n\n" + "\n".join(lines))
    if records and (open_ones := shared.waiting(root)):
        parts.append(
            "**Not run yet**, of the longer study (`make reproduce PROFILE=extended`): "
            f"{len(open_ones)} of the comparisons that bear on these rows, {waiting_for(open_ones)}."
        )
    return "".join(f"\n{part}\n" for part in parts)


def waiting_for(comparisons: Sequence[tuple[str, str]]) -> str:
    """What is still to be compared, by the notebook that will."""
    notebooks = sorted({notebook for notebook, _ in comparisons})
    return f"those of notebook{'s' * (len(notebooks) > 1)} {', '.join(notebooks)}"


def failed_run(records: dict[str, Record]) -> str:
    """Which of the suspects broke run 3 of the 2024 notebook, in two sentences; empty where no record says."""
    said: dict[str, list[str]] = {"yes": [], "partly": [], "no": []}
    for _, answer in answered(records):
        if answer.verdict.explains_failed_run:
            said[answer.verdict.explains_failed_run].append(answer.verdict.hypothesis)
    words = {"yes": "what broke it", "partly": "what had a part", "no": "what did not break it"}
    told = [f"{words[key]}: {', '.join(names)}" for key, names in said.items() if names]
    return f"Run 3 is the 2024 notebook's third, which did not decorrelate; {'; '.join(told)}." if told else ""


def plain(
    records: dict[str, Record], root: Path = ROOT, escaped: Callable[[str], str] = str, page: str = "should.md"
) -> str:
    """Does it help, over what, when not, at what cost? The least favourable first; empty without records.

    Args:
        records: by notebook.
        root: the clone.
        escaped: text of records made safe for the page that it is for. Default: as it is
        page: where the decision table is. Default: beside the pages of the report
    """
    parts = (
        opening.paragraph(records, root, escaped),
        opening.advice(records, page, root, escaped),
        opening.cost(records, escaped),
    )
    return "\n\n".join(part for part in parts if part)


def in_readme(records: dict[str, Record], text: str, notebooks: Path = ROOT / "notebooks") -> str:
    """README's text with the paragraph and the table between their markers made anew.

    Raises:
        ValueError: the markers are not there.
    """

    def link(notebook: str) -> str:
        path = next(notebooks.glob(f"{notebook}_*.ipynb"), None)
        return notebook if path is None else f"[{notebook}](notebooks/{path.name})"

    root = notebooks.parent
    table = markdown(records, link, root) + below(records, root)
    text = between(text, "answers", f"\n{table}\n", where="README.md")
    if "<!-- opening:" not in text:
        return text
    return between(text, "opening", f"\n{plain(records, root, page=IN_REPORT)}\n\n", where="README.md")


def in_title(record: Record | None, text: str, longer: Record | None = None) -> str:
    """The source of a notebook's first cell with what came out, as its records say it, at its end: the longest first.

    Args:
        record: of the run.
        text: of the cell.
        longer: of the longer study, whose sentences stand first and once. Default: None, there is none.
    """
    text = CAME_OUT.sub("", text)
    if record is None or not record.came_out:
        return text
    head = "<!-- came out: written by `make reproduce` from the records -->"
    told = " ".join(record.came_out)
    if longer is not None and longer.came_out:
        others = " ".join(sentence for sentence in record.came_out if sentence not in longer.came_out)
        told = f"*In the longer study:* {' '.join(longer.came_out)}" + (
            f" *In the full run:* {others}" if others else ""
        )
    return f"{text}\n\n{head}\n**What came out.** {told}\n<!-- /came out -->"


def write_titles(records: dict[str, Record], notebooks: Path = ROOT / "notebooks", root: Path = ROOT) -> list[str]:
    """Write what came out into the first cells of the notebooks; returned are the numbers of those that changed.

    Args:
        records: by notebook.
        notebooks: their folder, of sources or of what was executed.
        root: the clone, for the longer studies.
    """
    changed = []
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        number = path.name[:2]
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0]
        new = in_title(records.get(number), title.source, load_extended(number, root))
        if new != title.source:
            title.source = new
            with written_atomically(path) as file:
                file.write((nbformat.writes(notebook).rstrip("\n") + "\n").encode())
            changed.append(number)
    return changed


def write_readme(records: dict[str, Record], path: Path = ROOT / "README.md") -> bool:
    """Write paragraph and table into README; True where that changed it."""
    old = path.read_text(encoding="utf-8")
    new = in_readme(records, old, path.parent / "notebooks")
    if new == old:
        return False
    with written_atomically(path) as file:
        file.write(new.encode())
    return True
