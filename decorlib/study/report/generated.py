"""The parts of the report that are made from records and executed notebooks: tables, thumbnails, provenance."""

import hashlib
import html
import io
import json
import re
from base64 import b64decode
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image

from decorlib.study.evidence import advice, answers
from decorlib.study.evidence.records import Record

THUMBNAIL = 320  # pixels wide
FOOT = "## Where this comes from"
HEADLINE = "07"  # whose first figure stands on the landing page
HOW_TO_READ = (
    "How to read it: each mark is one comparison, the test accuracy of networks with R minus that of the control, in "
    "percentage points; its bar is the interval. Right of the black line R is better, left of it worse; inside the "
    "grey band the difference is too little to count. Marks stand together that share network, data, schedule and arm."
)
SETTING, SETTING_NAME = ("scale", "schedule", "control"), "scale; schedule; control"  # columns that become one


def plain_markdown(text: str) -> str:
    """Markdown that shows `text` as it is, on one line: no HTML, link, formula or role comes out of data."""
    return re.sub(r"([\\`*_{}\[\]()#+!|$~^:-])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def alternative(text: str) -> str:
    """Alternative text as the option of a directive: one line, nothing that ends it."""
    return " ".join(text.split()).replace('"', "'").replace("{", "(").replace("}", ")")


def provenance_lines(record: Record | None, path: Path, to_root: str, results: str) -> str:
    """The foot of a notebook's page: what made it, and the files behind it."""
    source = f'<a href="{to_root}/notebooks/{path.name}">notebook</a>'
    executed = f'<a href="{results}/notebooks/{path.name}">executed notebook</a>'
    if record is None:
        return f"{FOOT}\n\nThis notebook wrote no record. Files: {source} · {executed}.\n"
    made = record.made_by
    esc = html.escape  # names, versions and parameters are data: they must not become part of the page
    versions = " · ".join(f"{name} {value}" for name, value in sorted(made["versions"].items()))
    code = (
        f"commit <code>{esc(made['commit'][:12])}</code>"
        if made["commit"]
        else esc(made.get("no_commit") or "not under git")
    )
    code += " with local changes" if made["modified"] else ""
    sums = ", ".join(f"{esc(name)} <code>{esc(value[:12])}</code>" for name, value in sorted(made["data"].items()))
    machine = made["machine"]
    parameters = ", ".join(f"{key} = {value}" for key, value in sorted(record.parameters.items()))
    rows = [
        ("Code", code),
        ("Versions", esc(versions)),
        ("Data (sha256)", sums),
        ("Machine", esc(f"{machine['device']}, {machine['cpu']}, {machine['cores']} cores, {machine['platform']}")),
        (
            "Run",
            f"{esc(made['started'])}, {made['seconds']:g} s until the record was written, "
            "without runs that were stored already",
        ),
        ("Parameters", esc(parameters) or "–"),
        ("Files", f'{source} · {executed} · <a href="{results}/records/{record.notebook}.json">record</a>'),
    ]
    lines = [f"<tr><td>{name}</td><td>{' '.join(value.split())}</td></tr>" for name, value in rows]
    table = "\n".join(['<table class="table"><tbody>', *lines, "</tbody></table>"])
    return f"{FOOT}\n\n::::{{container}} provenance\n```{{raw}} html\n{table}\n```\n::::\n"


def site_foot(records: dict[str, Record]) -> str:
    """One line for the landing page: what made all the records together.

    Not for every page: a new record would change them all.
    """
    made = [record.made_by for record in records.values()]
    if not made:
        return ""

    def each(values) -> str:
        return html.escape(", ".join(sorted({str(value) for value in values})))

    commits = each((m["commit"] or "no git")[:12] + (" with local changes" if m["modified"] else "") for m in made)
    versions = "; ".join(f"{name} {each(m['versions'][name] for m in made)}" for name in ("python", "torch", "numpy"))
    data = hashlib.sha256("".join(f"{k}{v}" for m in made[:1] for k, v in sorted(m["data"].items())).encode())
    machine = each(f"{m['machine']['device']}, {m['machine']['cpu']}, {m['machine']['cores']} cores" for m in made)
    minutes = sum(m["seconds"] for m in made) / 60
    parts = (
        f"Records: commit {commits}",
        versions,
        f"data {data.hexdigest()[:12]}",
        machine,
        f"{minutes:.1f} min for {len(made)} {'notebook' if len(made) == 1 else 'notebooks'}, "
        "without runs that were stored already",
    )
    return f'```{{raw}} html\n<p class="made-by">{" · ".join(parts)}</p>\n```\n'


def answer_table(records: dict[str, Record], pages: dict[str, Path], results: str, root: Path) -> str:
    """The answer sheet, each row with its notebook's page and its record.

    As HTML, because each cell carries the name of its column (:func:`_table`). Seven columns where the
    README has ten, so that the whole table fits a window of 1280 pixels: the way to the evidence stands below the
    hypothesis; scale, schedule and control are one.
    """
    rows = answers.rows(records, root)
    if not rows:
        return answers.markdown(records, str, root)

    names = [name for name in rows[0] if name not in (*SETTING, "notebook")]
    names.insert(2, SETTING_NAME)
    filled = []
    for row in rows:
        notebook = row["notebook"]
        row = {**row, SETTING_NAME: "; ".join(row[name] for name in SETTING if row[name] != "–")}
        cells = {name: html.escape(str(row[name])) for name in names}
        record = f'<a href="{results}/records/{notebook}.json">record</a>'
        cells["hypothesis"] += f" <small>({_page(notebook, pages)}, {record})</small>"
        filled.append(cells)
    return _table(filled)


def verdict_line(row: dict[str, str]) -> str:
    """A row of the answer sheet in one line of Markdown: what it says of which claim, and by how much."""
    text = {name: plain_markdown(value) for name, value in row.items()}
    effect = text[next(name for name in row if name.startswith("effect"))]
    said = row["outcome"].removesuffix(answers.OTHERWISE)
    more = "; other runs of ours say otherwise (below the answer table)" if said != row["outcome"] else ""
    settings = plain_markdown("; ".join(row[name] for name in SETTING if row[name] != "–"))
    found = f"Claim: {text['claim']}. Found: {effect} ({settings})"
    return f"*{text['hypothesis']}*: **{plain_markdown(said)}**{more}. {found}"


def below_answers(records: dict[str, Record], root: Path) -> str:
    """What stands under the table: the run that failed, and where other runs contradict a row."""
    return answers.below(records, root, plain_markdown)


def opening(records: dict[str, Record], root: Path) -> str:
    """The paragraph with which the landing page opens; nothing where no record can say."""
    text = answers.plain(records, root, plain_markdown)
    return text and text + "\n"


def decisions(records: dict[str, Record], pages: dict[str, Path], root: Path) -> str:
    """The decision table of the page "Should I use it?", each row with a way to its notebook."""
    rows = [case.cells() for case in advice.cases(records, root)]
    if not rows:
        return "No record of notebooks 07, 10 or 11 is there yet.\n"
    filled = [{name: html.escape(text) for name, text in row.items()} for row in rows]
    for cells in filled:
        cells["notebook"] = _page(cells["notebook"], pages)
    return _table(filled)


def before_and_now(root: Path) -> str:
    """Steps of older commits beside those of the one that measured them (``make before``), a table for each file."""
    told = []
    for file in sorted((root / "results" / "benchmarks").glob("before_*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        made, rows = found["made_by"], [row for row in found["rows"] if row["step"] != "plain"]
        cells = [
            {
                "workload": f"{row['workload']}; {row['threads']} thread(s)",
                "step": row["step"],
                "of a plain step, before": f"{row['of plain, before']:.2f}",
                "now": f"{row['of plain, now']:.2f}",
                "operations": f"{row['counted']:.2f}" if row.get("counted") else "not counted",
                "seconds, now over before": f"{row['milliseconds, now over before']:.2f}",
            }
            for row in rows
        ]
        now, rounds = made["commit"] or "", len(rows[0]["rounds"]["now"])
        told.append(
            f"`{found['before']}` beside `{now[:7]}`, medians of {rounds} rounds of processes in turn, "
            f"{made['machine']['cpu']}, torch {made['versions']['torch']}:\n\n"
            + _table([{name: html.escape(text) for name, text in row.items()} for row in cells])
        )
    return "\n".join(told) or "Not measured: `make before`.\n"


def _page(notebook: str, pages: dict[str, Path]) -> str:
    """A notebook's number, as a link where it has a page."""
    if notebook not in pages:
        return notebook
    return f'<a href="notebooks/{pages[notebook].with_suffix(".html").name}">{notebook}</a>'


def _table(rows: list[dict[str, str]]) -> str:
    """Rows of safe HTML as a table; each cell carries the name of its column: on a phone a row becomes a card."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in rows[0])
    label = "<td data-label="
    lines = [
        "<tr>" + "".join(f'{label}"{html.escape(name)}">{cell}</td>' for name, cell in row.items()) + "</tr>"
        for row in rows
    ]
    opened = ['<table class="answers table">', f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    return "```{raw} html\n" + "\n".join([*opened, *lines, "</tbody></table>"]) + "\n```\n"


def first_figure(notebook: NotebookNode) -> tuple[bytes, str] | None:
    """PNG and alternative text of the first figure of a notebook."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                return b64decode(output.data["image/png"]), output.metadata["image/png"]["alt"]
    return None


def thumbnail(png: bytes) -> bytes:
    """A small version of a figure."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.quantize(64, dither=0).save(out, format="png", optimize=True)
    return out.getvalue()


def title_of(notebook: NotebookNode) -> str:
    """First heading of a notebook without its `#`."""
    match = re.search(r"^# (.+)$", notebook.cells[0].source if notebook.cells else "", re.M)
    return match.group(1).strip() if match else "untitled"


def gallery(
    notebooks: dict[str, NotebookNode], pages: dict[str, Path], table: list[dict[str, str]], folder: Path
) -> str:
    """One line with a thumbnail per notebook and its outcomes in the answer table; thumbnails go into `folder`."""
    lines = []
    for name, notebook in sorted(notebooks.items()):
        figure = first_figure(notebook)
        image = ""
        if figure:
            target = folder / "thumbnails" / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(thumbnail(figure[0]))
            alt = alternative(figure[1])
            image = f":::{{image}} thumbnails/{name}.png\n:alt: {alt}\n:width: 160px\n:class: thumbnail\n:::\n"
        own = [row for row in table if row["notebook"] == name]
        outcomes = [f"{row['hypothesis']}: {row['outcome'].removesuffix(answers.OTHERWISE)}" for row in own]
        text = f"[{title_of(notebook)}](notebooks/{pages[name].name})"
        text += f"<br><small>{plain_markdown('; '.join(outcomes))}</small>" if outcomes else ""
        lines.append(f"::::{{container}} gallery-line\n{image}\n{text}\n::::\n")
    return "\n".join(lines) or "No notebook has been run yet.\n"


def headline(notebooks: dict[str, NotebookNode], pages: dict[str, Path], folder: Path) -> str:
    """The figure of notebook 07, the comparison that matters most; without it 00's, the failed run explained.

    Under it stands how to read it, for a reader who has opened no notebook.
    """
    for name in [HEADLINE, *sorted(notebooks)]:
        figure = first_figure(notebooks[name]) if name in notebooks else None
        if figure:
            (folder / "headline.png").write_bytes(figure[0])
            source = f"From [{title_of(notebooks[name])}](notebooks/{pages[name].name})."
            read = f"{HOW_TO_READ} {source}" if name == HEADLINE else source
            return f":::{{image}} headline.png\n:alt: {alternative(figure[1])}\n:class: headline\n:::\n\n{read}\n"
    return ""


def plain_answer(records: dict[str, Record]) -> str:
    """The answer in sentences that notebook 07 computed, for where it has no rows of the protocol; else nothing."""
    record = records.get(HEADLINE)
    if record is None or "answer" not in record.tables:
        return ""
    return "\n" + plain_markdown(" ".join(record.frame("answer").iloc[:, 0])) + "\n"
