"""Whatever text data, parameters and records hold, the report shows it as text and executes nothing of it."""

from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from nbformat import v4
from small_report import figure, put_results

from decorlib.study.evidence.records import Record, dumps
from decorlib.study.report import build, freshness, generated, notebooks

EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">x</a>',
    "[x](javascript:alert(1)) ![x](javascript:alert(1)) <javascript:alert(1)>",
    "</td></tr></table></div></article><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "```\n<script>alert(1)</script>\n```",
    ":::\n<iframe src='javascript:alert(1)'></iframe>\n::::",
    "{raw}`<script>` $\\href{javascript:alert(1)}{x}$ %}{{ 1 }} | \\",
)
ALL = " ".join(EVIL)


class Text(HTMLParser):
    """What a reader sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_data(self, data):
        self.seen.append(data)


def shown(path):
    parser = Text()
    parser.feed(path.read_text(encoding="utf-8"))
    return " ".join("".join(parser.seen).split())


def poison(content, text):
    """Every string of a record is `text`, but those that the format needs."""
    if isinstance(content, dict):
        kept = ("outcome", "better", "explains_failed_run", "notebook", "sha256", "status", "file")
        return {k: v if k in kept else poison(v, text) for k, v in content.items()}
    if isinstance(content, list):
        return [poison(item, text) for item in content]
    return text if isinstance(content, str) else content


def rewrite(results, change):
    """Edit the executed notebook, as somebody or something did who was not `make reproduce`."""
    (path,) = (results / "notebooks").glob("*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    notebook.metadata["decorlib"]["outputs"] = {
        f"records/{name}": value for name, value in freshness.digests(results / "records").items()
    }
    notebooks.write(notebook, path)


def test_the_report_shows_markup_in_data_as_text(tmp_path, monkeypatch, small_docs, png, capsys):
    results = put_results(tmp_path, monkeypatch, png)
    path = results / "records" / "07.json"
    content = poison(Record.load(path).content(), ALL)
    content["parameters"] = {ALL: ALL}
    content["made_by"]["versions"] |= {"python": ALL, "torch": ALL, "numpy": ALL, EVIL[0]: ALL}
    content["made_by"]["data"] = {ALL: EVIL[0][:12]}
    record = Record("07", ALL)
    for name in ("parameters", "values", "tables", "verdicts", "made_by"):
        setattr(record, name, content[name])
    path.write_text(dumps(record.content()), encoding="utf-8")

    def outputs(notebook):
        frame = pd.DataFrame({ALL: [ALL]}, index=pd.Index([ALL], name=ALL))
        table = v4.new_output("execute_result", data={"text/html": frame.to_html(), "text/plain": ALL})
        notebook.cells[1].outputs = [v4.new_output("stream", text=ALL), table, figure(png, ALL)]
        notebook.cells[1].source = f"parameter = {ALL!r}"

    rewrite(results, outputs)
    assert build.build(tmp_path, results, tmp_path / "build"), capsys.readouterr().err
    site = results / "report"
    found = {page.name: build.active(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert {"index.html", "07_why.html"} <= set(found)
    assert all(offences == [] for offences in found.values()), found
    texts = {"index.html": 8, "07_why.html": 10}  # answers and foot; provenance, code, outputs and foot
    for name, times in texts.items():
        (page,) = site.rglob(name)
        seen = shown(page)
        assert seen.count("<script>alert(1)</script>") >= times, f"{name} does not show the text that it was given"
        assert seen.count('<a href="javascript:alert(1)">x</a>') >= times // 2


def test_a_page_that_would_execute_something_is_refused(tmp_path, monkeypatch, small_docs, png, capsys):
    results = put_results(tmp_path, monkeypatch, png, formula="text")
    assert build.build(tmp_path, results, tmp_path / "build"), capsys.readouterr().err
    before = freshness.digests(results / "report")
    (good,) = (results / "notebooks").glob("*.ipynb")
    plain = good.read_bytes()

    def in_markdown(notebook):
        notebook.cells.append(v4.new_markdown_cell("<script>alert(1)</script>", id="z"))

    def in_output(notebook):
        evil = v4.new_output("display_data", data={"text/html": EVIL[1], "text/plain": "x"})
        notebook.cells.append(v4.new_code_cell("evil", id="z", outputs=[evil], execution_count=2))

    for add in (in_markdown, in_output):
        good.write_bytes(plain)
        rewrite(results, add)
        capsys.readouterr()
        assert not build.build(tmp_path, results, tmp_path / "build")
        assert "07_why.html has active content, <" in capsys.readouterr().err
        assert freshness.digests(results / "report") == before


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<script>theme</script><article><p>text</p></article><form></form>", 0),
        ("<article><script>x</script></article>", 1),
        ('<article><iframe srcdoc="x"></iframe></article>', 2),
        ("<article><svg/onload=alert(1)></svg></article>", 2),
        ("<p onclick=x>", 1),
        ("<IMG SRC=x OnError=alert(1)>", 1),
        ('<a href="java\nscript:alert(1)">', 1),
        ('<a href=" &#106;avascript:alert(1)">', 1),
        ('<a href="data:text/html,x">', 1),
        ("<p>&lt;script&gt; javascript:alert(1) onclick=x</p>", 0),
        ('<a href="https://example.org/javascript:x">', 0),
    ],
)
def test_active_content_is_found(html, found):
    assert len(build.active(html)) == found


@pytest.mark.parametrize("text", EVIL)
def test_plain_markdown_is_one_line_without_html(text):
    made = generated.plain_markdown(text)
    assert "\n" not in made
    assert "<" not in made
    assert "](" not in made
