"""Pages of the report: executed notebooks made ready for Sphinx, and the parts that are generated from records.

Everything here turns something that exists into text. Numbers come from records; what does not exist yet is left
out, so the report can be built from the first notebook on.
"""

import copy
import os
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode, v4

from decorlib.study.evidence import answers
from decorlib.study.evidence.answers import CAME_OUT
from decorlib.study.evidence.records import load_records
from decorlib.study.report import generated
from decorlib.study.report.freshness import PACKAGE, digests

COLUMNS, WIDTH = 7, 760  # of a table, and of a figure in pixels: what is more is wide


class ReportError(RuntimeError):
    """Something that must not be in a report; the message says where it is and what to do."""


def check_set(results: Path, path: Path, notebook: NotebookNode) -> None:
    """Refuse an executed notebook whose record or figures are not those that it made."""
    made = notebook.metadata.get("decorlib", {}).get("outputs", {})
    number = path.name[:2]
    for name, digest in made.items():
        found = results / name
        if not found.exists() or digests(found.parent).get(found.name) != digest:
            raise ReportError(f"{path.name} and {name} are not from the same run; run `make reproduce ONLY={number}`")


def split_figures(cell: NotebookNode) -> list[NotebookNode]:
    """One figure a cell: myst-nb has one alternative text per cell, so each further figure gets its own."""
    parts, figures = [copy.deepcopy(cell)], 0
    parts[0].outputs = []
    for output in cell.outputs:
        if "image/png" in output.get("data", {}):
            figures += 1
            if figures > 1:
                name = f"{cell['id']}-{figures}"  # myst-nb drops a cell without source, so it says something
                extra = v4.new_code_cell("# figure", id=name, metadata={"tags": ["remove-input"]})
                parts.append(extra)
        parts[-1].outputs.append(copy.deepcopy(output))
    return parts


def prepare(notebook: NotebookNode, name: str) -> NotebookNode:
    """An executed notebook for myst-nb: code folded, every figure with its alternative text, room for what is wide.

    Raises:
        ReportError: a figure has no alternative text, or a cell failed.
    """
    cells = []
    for index, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            cells.append(copy.deepcopy(cell))
            continue
        for part in split_figures(cell):
            tags = part.metadata.setdefault("tags", [])
            if "remove-input" not in tags and "hide-input" not in tags:
                tags.append("hide-input")
            for output in part.outputs:
                if output.output_type == "error":
                    raise ReportError(f"{name}, cell {index} holds an error; run it again")
                if any(kind.startswith("image/") for kind in output.get("data", {})):
                    described = output.get("metadata", {}).get("image/png", {})
                    if not described.get("alt"):
                        raise ReportError(
                            f"{name}, cell {index} shows a figure without alternative text; "
                            "use show(fig, alt=...), and close figures that are not shown"
                        )
                    image = {"alt": described["alt"]}
                    if "width" in described:
                        image["width"] = f"{described['width']}px"  # CSS shrinks it to the column
                    part.metadata["mystnb"] = {"image": image}
            if _is_wide(part):
                tags.append("full-width")
            cells.append(part)
    made = v4.new_notebook(cells=one_fold(cells), metadata=notebook.metadata)
    made.metadata.pop("decorlib", None)
    return made


def _is_wide(cell: NotebookNode) -> bool:
    """Whether an output needs more than the column of text: the theme then gives it the place of the contents, too."""
    for output in cell.outputs:
        table = output.get("data", {}).get("text/html", "")
        columns = (len(re.findall(r"<t[dh]\b", row)) for row in re.split(r"<tr\b", table))
        if max(columns) > COLUMNS or output.get("metadata", {}).get("image/png", {}).get("width", 0) > WIDTH:
            return True
    return False


def one_fold(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Code cells that show nothing, folded together with the code cell below them: no bars above bars."""
    made: list[NotebookNode] = []
    for cell in cells:
        before = made[-1] if made else None
        if (
            before is not None
            and all(c.cell_type == "code" and _folded(c) for c in (before, cell))
            and not _shows(before)
        ):
            cell = copy.deepcopy(cell)
            cell.source = f"{before.source}\n\n{cell.source}"
            made.pop()
        made.append(cell)
    return made


def _folded(cell: NotebookNode) -> bool:
    return "hide-input" in cell.metadata.get("tags", [])


def _shows(cell: NotebookNode) -> bool:
    """Whether a reader sees an output of a cell; what went to stderr (progress) is left out of the page."""
    return any(output.get("name") != "stderr" for output in cell.outputs)


def answer_first(title: str, verdicts: list[dict[str, str]]) -> str:
    """A notebook's first cell with its answer above its question: what came out, then each verdict with its numbers.

    Args:
        title: the cell's text.
        verdicts: rows of the answer table that are this notebook's (:func:`decorlib.study.evidence.answers.rows`).
    """
    heading, _, rest = title.partition("\n")
    came_out = CAME_OUT.search(rest)
    parts = [heading]
    if came_out:
        parts.append(came_out.group(1))
    if verdicts:
        parts.append("**Verdict**, decided together with all other rows of the [answer table](../index.md):")
        parts.append("\n".join(f"* {generated.verdict_line(row)}" for row in verdicts))
    return "\n\n".join([*parts, CAME_OUT.sub("", rest).strip()]).rstrip()


def mend_links(text: str, known: set[str], to_root: str) -> str:
    """Relative links of a notebook, for a page that lies elsewhere.

    Notebooks that are not there yet become plain text; modules point to their page; other files of the
    repository are reached through `to_root`, the way from the page to the clone.
    """

    def replace(match: re.Match) -> str:
        label, target = match.group(1), match.group(2)
        if re.match(r"[a-z]+:|#|/", target):
            return match.group(0)
        path, _, anchor = target.partition("#")
        if path.endswith(".ipynb") and "/" not in path:
            return match.group(0) if path in known else label
        path = path.removeprefix("../")
        if path.endswith(".py") and module_name(path) in modules():
            return f"[{label}](../api/{module_name(path)}.md)"
        return f'<a href="{to_root}/{path}{"#" + anchor if anchor else ""}">{label}</a>'

    return re.sub(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)", replace, text)


def module_name(path: str) -> str:
    """Dotted name of a module from its path in the repository."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


# Of the study, what notebooks and a command line use; its other modules are how that is done.
STUDY = (
    *("sweeps.runs", "sweeps.progress"),
    *(f"evidence.{name}" for name in ("provenance", "figures", "records", "stats", "verdicts", "compare")),
    *("report.reproduce", "report.build"),
)


def modules() -> list[str]:
    """Dotted names of the modules that get an API page: those of the core, room by room, then the study's public ones.

    A package is shown by its modules: what its ``__init__`` hands on would be there twice.
    """
    paths = [path.relative_to(PACKAGE).with_suffix("") for path in sorted(PACKAGE.rglob("[a-z]*.py"))]
    core = [path for path in paths if path.parts[0] != "study"]
    study = [f"study.{name}" for name in STUDY if (PACKAGE / "study" / f"{name.replace('.', '/')}.py").exists()]
    return [f"decorlib.{name}" for name in (*(".".join(path.parts) for path in core), *study)]


def way(start: Path, end: Path) -> str:
    """Relative way from a folder to another, as in a link."""
    return Path(os.path.relpath(end, start)).as_posix()


def read(results: Path) -> dict[str, Path]:
    """Executed notebooks of a results folder by number."""
    return {path.name[:2]: path for path in sorted((results / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def write_sources(root: Path, results: Path, target: Path) -> int:
    """Write all generated pages into `target`, a copy of docs/; return the number of notebooks."""
    site = results / "report"
    executed = read(results)
    notebooks = {name: nbformat.read(path, as_version=4) for name, path in executed.items()}
    records = load_records(results / "records")
    folder = target / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    known = {path.name for path in executed.values()}
    to_root, to_results = way(site / "notebooks", root), way(site / "notebooks", results)
    table = answers.rows(records, root)
    for name, path in executed.items():
        check_set(results, path, notebooks[name])
        page = prepare(notebooks[name], path.name)
        for cell in page.cells:
            if cell.cell_type == "markdown":
                cell.source = mend_links(cell.source, known, to_root)
        if page.cells and page.cells[0].cell_type == "markdown":
            page.cells[0].source = answer_first(page.cells[0].source, [row for row in table if row["notebook"] == name])
        foot = generated.provenance_lines(records.get(name), path, to_root, to_results)
        page.cells.append(v4.new_markdown_cell(foot, id="provenance"))
        (folder / path.name).write_text(nbformat.writes(page) + "\n", encoding="utf-8")
    texts = {
        "opening.md": generated.opening(records, root) or generated.plain_answer(records),
        "answers.md": generated.answer_table(records, executed, way(site, results), root)
        + generated.below_answers(records, root),
        "decisions.md": generated.decisions(records, executed, root),
        "before.md": generated.before_and_now(root),
        "gallery.md": generated.gallery(notebooks, executed, table, target),
        "headline.md": generated.headline(notebooks, executed, target),
        "foot.md": generated.site_foot(records),
        "contents.md": toctree([f"notebooks/{path.stem}" for path in executed.values()], "Notebooks"),
    }
    for name, text in texts.items():
        (target / "_generated").mkdir(exist_ok=True)
        (target / "_generated" / name).write_text(text, encoding="utf-8")
    return len(executed)


def toctree(entries: list[str], caption: str) -> str:
    """A Sphinx toctree; nothing where there are no entries."""
    if not entries:
        return ""
    head = "```{toctree}\n:hidden:\n:maxdepth: 1\n" + (f":caption: {caption}\n" if caption else "")
    return head + "\n" + "\n".join(entries) + "\n```\n"
