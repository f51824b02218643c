"""From executed notebooks and records to pages."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat import v4
from small_report import ROOT, figure, put_results

import decorlib
import decorlib.study
from decorlib.study.evidence import answers
from decorlib.study.evidence.records import load_records
from decorlib.study.report import api_pages, build, freshness, generated, pages, search
from decorlib.study.report.pages import ReportError


def test_every_figure_keeps_its_own_text_and_code_is_folded(png):
    cell = v4.new_code_cell("x", outputs=[figure(png, "One."), figure(png, "Two.")], execution_count=1)
    made = pages.prepare(v4.new_notebook(cells=[cell]), "n")
    assert [c.metadata["mystnb"]["image"]["alt"] for c in made.cells] == ["One.", "Two."]
    assert [c.metadata["tags"] for c in made.cells] == [["hide-input"], ["remove-input"]]
    assert cell.metadata == {}  # the source of the page is a copy


def test_a_figure_without_text_and_an_error_are_refused(png):
    cell = v4.new_code_cell("x", outputs=[figure(png, alt=None)])
    with pytest.raises(ReportError, match="n, cell 1 shows a figure without alternative text"):
        pages.prepare(v4.new_notebook(cells=[cell]), "n")
    cell = v4.new_code_cell("x", outputs=[v4.new_output("error", ename="E", evalue="e", traceback=[])])
    with pytest.raises(ReportError, match="cell 1 holds an error"):
        pages.prepare(v4.new_notebook(cells=[cell]), "n")


def code(source, *outputs, tags=()):
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def printed(text, name="stdout"):
    return v4.new_output("stream", name=name, text=text)


def test_code_that_shows_nothing_folds_together_with_what_comes_below_it(png):
    cells = [
        code("seeds = 5", tags=["parameters"]),
        code("import x", printed("50%", name="stderr")),
        code("print(1)", printed("1")),
        code("y = 2"),
        v4.new_markdown_cell("## Next"),
        code("z = 3"),
    ]
    made = pages.prepare(v4.new_notebook(cells=cells), "n")
    assert [c.source for c in made.cells] == ["seeds = 5\n\nimport x\n\nprint(1)", "y = 2", "## Next", "z = 3"]
    assert made.cells[0].outputs == [printed("1")]
    assert cells[0].source == "seeds = 5"


def test_what_is_wide_gets_the_full_width(png):
    def table(columns):
        row = "<tr>" + "<td>1</td>" * columns + "</tr>"
        return v4.new_output("display_data", data={"text/html": f"<table>{row}</table>"})

    large = figure(png)
    large.metadata["image/png"]["width"] = pages.WIDTH + 1
    cells = [code("x", out) for out in (table(pages.COLUMNS), table(pages.COLUMNS + 1), figure(png), large)]
    made = pages.prepare(v4.new_notebook(cells=cells), "n")
    assert ["full-width" in c.metadata["tags"] for c in made.cells] == [False, True, False, True]


def test_the_answer_stands_above_the_question():
    title = (
        "# 03 · Why?\n\n**Question.** Why?\n\n<!-- came out: written -->\n**What came out.** So.\n<!-- /came out -->"
    )
    row = {
        **{"hypothesis": "time", "claim": "it is *fast*", "scale": "small", "schedule": "–", "control": "none"},
        **{"outcome": "refuted" + answers.OTHERWISE, "effect [95%], n": "2 epochs [1, 3], n = 5", "notebook": "03"},
    }
    made = pages.answer_first(title, [row])
    head, came, verdict, line, question = made.split("\n\n")
    assert (head, came, question) == ("# 03 · Why?", "**What came out.** So.", "**Question.** Why?")
    assert "[answer table](../index.md)" in verdict
    assert line == (
        "* *time*: **refuted**; other runs of ours say otherwise (below the answer table). "
        "Claim: it is \\*fast\\*. Found: 2 epochs \\[1, 3\\], n = 5 (small; none)"
    )
    assert pages.answer_first("# 03 · Why?\n\n**Question.** Why?", []) == "# 03 · Why?\n\n**Question.** Why?"


def test_outcomes_behind_a_title_are_those_of_the_table(tmp_path, monkeypatch, png):
    """A notebook's own verdict may be firmer, and would contradict the table above it."""
    results = put_results(tmp_path, monkeypatch, png)
    executed = pages.read(results)
    made = {name: nbformat.read(path, as_version=4) for name, path in executed.items()}
    table = [{**row, "outcome": "undecided"} for row in answers.rows(load_records(results / "records"), tmp_path)]
    assert ": undecided</small>" in generated.gallery(made, executed, table, tmp_path)


def test_the_figure_of_the_landing_page_says_how_to_read_it(tmp_path, monkeypatch, png):
    executed = pages.read(put_results(tmp_path, monkeypatch, png))
    made = {name: nbformat.read(path, as_version=4) for name, path in executed.items()}
    text = generated.headline(made, executed, tmp_path)
    assert generated.HOW_TO_READ in text
    assert text.endswith("From [07 · Why?](notebooks/07_why.ipynb).\n")
    other = {"00": made["07"]}
    assert generated.HOW_TO_READ not in generated.headline(other, {"00": executed["07"]}, tmp_path)


def test_long_names_break_at_their_strokes():
    name = '<code class="docutils literal notranslate"><span class="pre">{}</span></code>'
    made = build.long_names(name.format("test_peft.py::test_that") + name.format("short"))
    assert made == name.format("test_<wbr>peft.<wbr>py::<wbr>test_<wbr>that") + name.format("short")


def test_the_search_quotes_what_the_article_says():
    page = (
        '<nav>Not this</nav><article><section id="a"><h1>Title<a class="headerlink" href="#a">#</a></h1>'
        "<p>One &lt;b&gt;<br>and <math><mi>R</mi>\n<mi>x</mi></math>.</p><details><summary>Show the code</summary>"
        "<pre>code</pre></details><script>not_this()</script></section></article><p>Nor this</p>"
    )
    assert search.text_of(page) == '<section id="a">Title One &lt;b&gt; and Rx. code </section>'


def test_a_search_page_that_has_changed_is_an_error(tmp_path):
    search.write(tmp_path)  # no search page: nothing to be done
    page = tmp_path / "search.html"
    page.write_text('<script src="_static/searchtools.js"></script>')
    (tmp_path / "use.html").write_text("<article>How</article>")
    search.write(tmp_path)
    assert page.read_text().index(search.SCRIPT) < page.read_text().index("searchtools")
    assert '"use": "<div role=\\"main\\">How<\\/div>"' in (tmp_path / search.SCRIPT).read_text()
    page.write_text("<script></script>")
    with pytest.raises(ValueError, match="Sphinx's search has changed"):
        search.write(tmp_path)


@pytest.mark.parametrize(
    ("link", "mended"),
    [
        ("[a](01_there.ipynb)", "[a](01_there.ipynb)"),
        ("[a](02_not_yet.ipynb)", "a"),
        ("[a](../decorlib/rules/rules.py)", "[a](../api/decorlib.rules.rules.md)"),
        ("[a](../tests/reference.py#L3)", '<a href="../../../tests/reference.py#L3">a</a>'),
        ("[a](https://example.org)", "[a](https://example.org)"),
        ("[a](#design)", "[a](#design)"),
        ("![a](x.png)", "![a](x.png)"),
    ],
)
def test_links(link, mended):
    assert pages.mend_links(link, {"01_there.ipynb"}, "../../..") == mended


def test_only_whole_sets_are_shown(tmp_path, monkeypatch, png):
    results = put_results(tmp_path, monkeypatch, png)
    record = results / "records" / "07.json"
    record.write_text(record.read_text().replace("Why?", "Who?"))
    path = results / "notebooks" / "07_why.ipynb"
    with pytest.raises(ReportError, match=r"07_why.ipynb and records/07.json are not from the same run.*ONLY=07"):
        pages.check_set(results, path, nbformat.read(path, as_version=4))


def test_icons_that_no_page_uses_are_taken_out():
    script = (
        'var i={"arrow-up":[384,512,[8593],"f062","M1"],bars:[1,2,[],"f0c9",["M2","M3"]],x:[1,2,["a"],"f00d","M4"]};'
    )
    assert build.keep_icons(script, {"bars"}) == 'var i={bars:[1,2,[],"f0c9",["M2","M3"]],};'
    assert build.keep_icons(script, {"bars", "arrow-up", "x"}) == script


@pytest.mark.parametrize(
    ("html", "message"),
    [
        ('<script src="https://example.org/x.js"></script>', "from the network"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "from the network"),
        ('<img src="a.png">', "no alternative text"),
        ('<img src="a.png" alt="">', "no alternative text"),
        ('<img src="b.png" alt="x">', "b.png is not there"),
        ("<code>/home/someone/x.py</code>", "names /home/someone, a folder of this machine"),
        ("x" * (build.PAGE_LIMIT + 1), "MB with its images"),
    ],
)
def test_pages_are_checked(tmp_path, html, message):
    (tmp_path / "a.png").write_text("x")
    page = tmp_path / "index.html"
    page.write_text('<a href="https://example.org">a link is no resource</a><img src="a.png" alt="x">')
    build.check(tmp_path, Path("/home/someone"))
    page.write_text(html)
    with pytest.raises(ReportError, match=message):
        build.check(tmp_path, Path("/home/someone"))


def test_the_whole_report(tmp_path, monkeypatch, png, capsys):
    results = put_results(tmp_path, monkeypatch, png)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.setattr(freshness, "PACKAGE", tmp_path / "docs")  # somebody may edit decorlib while this runs
    assert build.build(tmp_path, results, tmp_path / "build"), capsys.readouterr().err
    site = results / "report"
    index = (site / "index.html").read_text(encoding="utf-8")
    assert "0.5 epochs [0.25, 0.75], n = 5" in index
    assert 'href="../records/07.json"' in index
    assert 'href="notebooks/07_why.html"' in index
    assert (site / "../records/07.json").exists()
    assert 'alt="A line."' in index  # headline and thumbnail
    assert "It *needs* 2 epochs. A gain: &lt;yes&gt;." in index  # the computed answer, as text
    page = (site / "notebooks" / "07_why.html").read_text(encoding="utf-8")
    assert 'href="../index.html"><span class="std std-doc">answer table' in page  # the verdict's way to the table
    assert page.count('alt="A line."') == page.count('alt="Another line."') == 1
    assert "<details" in page
    assert page.count("<math") == 2
    assert "\\frac" not in page
    assert "next rules" in re.sub(r"<[^>]*>", "", page).replace("\n", " ") or ">rules<" in page
    made_by = json.loads((results / "records" / "07.json").read_text())["made_by"]
    for text in (made_by["started"], made_by["machine"]["cpu"], next(iter(made_by["data"].values()))[:12]):
        assert text in page
    api = (site / "api" / "decorlib.rules.rules.html").read_text(encoding="utf-8")
    assert "SeedRule" in api
    page_of_names = (site / "api.html").read_text(encoding="utf-8")
    assert {f"decorlib.{name}" for name in decorlib.__all__} <= set(re.findall(r'id="([\w.]+)"', page_of_names))
    for path in (site / "api.html", site / "internals.html", *(site / "api").glob("*.html")):
        text = re.sub(r"<[^>]*>", "", path.read_text(encoding="utf-8"))
        assert not re.findall(r":(?:class|func|meth|mod|attr|obj|math|exc|data):`", text), path.name
        assert "TypeAliasForwardRef" not in text, path.name
    # formulas below each other in the words about a module keep their lines
    assert re.search(r"<pre>(<[^>]*>)*X = &lt;y y'&gt;  second moment.*\n.*v_i = X_ii", api)
    assert (site / "searchindex.js").exists()
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size < 0.4 * build.SITE_LIMIT  # most of it are the API's pages and the theme; a notebook adds 0.5 MB

    # nothing changed: nothing built; a formula that cannot be shown: the old report stays
    assert build.build(tmp_path, results, tmp_path / "build")
    assert "report: nothing to be done" in capsys.readouterr().out
    before = freshness.digests(site)
    put_results(tmp_path, monkeypatch, png, formula=r"$\nosuchcommand$")
    assert not build.build(tmp_path, results, tmp_path / "build")
    assert "cannot show the formula" in capsys.readouterr().err
    assert freshness.digests(site) == before


def test_everything_that_the_report_is_made_of_makes_it_anew(tmp_path):
    """The longer study's records, too: their verdicts stand below the table of answers."""
    results = tmp_path / "results"
    inputs = [
        tmp_path / "docs" / "index.md",
        results / "notebooks" / "07_why.ipynb",
        results / "records" / "07.json",
        results / "extended" / "records" / "07.json",
    ]
    for path in inputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    before = build.state(tmp_path, results)
    for path in inputs:
        path.write_text("2")
        assert build.state(tmp_path, results) != before, path
        path.write_text("1")
    assert build.state(tmp_path, results) == before


def test_modules_with_a_page_exist_and_the_core_has_one_each():
    found = pages.modules()
    assert len(found) == len(set(found))
    assert {"decorlib.rules.rules", "decorlib.layers.decorrelation", "decorlib.training.train"} <= set(found)
    missing = [name for name in pages.STUDY if f"decorlib.study.{name}" not in found]
    assert not missing, "renamed?"


def test_an_unknown_profile_is_refused_in_makes_words(capsys):
    assert build.main(["--profile", "foo"]) == 2
    assert capsys.readouterr().err == "report: PROFILE=foo: there are quick, full, extended\n"


@pytest.mark.parametrize(("page", "least"), [("use.md", 3), ("index.md", 1)])
def test_blocks_of_the_pages_for_users_run(page, least, capsys):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= least
    namespace: dict = {}
    with torch.random.fork_rng():
        for block in blocks:
            exec(compile(block, f"docs/{page}", "exec"), namespace)
    assert ("2 layers decorrelated" in capsys.readouterr().out) == (page == "use.md")
    assert not any("decorrelation" in name for name, _ in namespace["plain"].named_modules())


def test_the_landing_page_says_what_made_the_records(tmp_path, monkeypatch, png):
    results = put_results(tmp_path, monkeypatch, png)
    records = load_records(results / "records")
    assert generated.site_foot({}) == ""
    records["07"].made_by["machine"]["cpu"] = "<fast & new>"
    records["07"].made_by["seconds"] = 90.0
    foot = generated.site_foot(records)
    assert "&lt;fast &amp; new&gt;" in foot
    assert "1.5 min for 1 notebook, without runs that were stored already</p>" in foot
    assert f"torch {records['07'].made_by['versions']['torch']}" in foot


def test_every_public_name_has_a_section_and_a_line():
    found = api_pages.sections(*api_pages.facades())
    names = [full for section in found.values() for full, _ in section]
    ours = [f"{facade.__name__}.{name}" for facade in (decorlib, decorlib.study) for name in facade.__all__]
    assert sorted(names) == sorted(ours)
    lines = {full: api_pages.first_line(full, value) for section in found.values() for full, value in section}
    assert [full for full, line in lines.items() if len(line) < 10 or ":`" in line] == []
    assert lines["decorlib.SeedRule"] == "another name for `NotebookRule`"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("What :func:`decorlib.decorrelate` would do.", "What `decorlib.decorrelate` would do."),
        ("See :class:`~decorlib.layers.Decorrelation`.", "See `Decorrelation`."),
        ("As :py:meth:`this <decorlib.Rule.loss>`, ``x`` too.", "As `decorlib.Rule.loss`, `x` too."),
    ],
)
def test_roles_become_code_in_a_line(text, shown):
    assert api_pages.as_markdown(text) == shown


def test_the_page_of_history_shows_what_a_step_cost_before(tmp_path):
    """Read from what `make before` wrote; the plain step, which is 1 by definition, is left out."""
    assert "make before" in generated.before_and_now(tmp_path)
    steps = [("plain", 1.0, 1.0), ("R <everywhere>", 5.04, 4.5)]
    rows = [
        {"workload": "MLP", "step": step, "threads": 2, "of plain, before": before, "of plain, now": now}
        | {"milliseconds, now over before": 0.875, "rounds": {"before": [{}] * 3, "now": [{}] * 3}}
        for step, before, now in steps
    ]
    made = {"commit": "0123456789abcdef", "machine": {"cpu": "A processor"}, "versions": {"torch": "2.14.1"}}
    file = tmp_path / "results" / "benchmarks" / "before_46d481b.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"before": "46d481b", "made_by": made, "rows": rows}))
    told = generated.before_and_now(tmp_path)
    assert "`46d481b` beside `0123456`, medians of 3 rounds" in told
    assert "not counted" in told
    assert told.count("<tr>") == 2  # its head and one row
    for cell in ("R &lt;everywhere&gt;", ">5.04<", ">4.50<", ">0.88<", "MLP; 2 thread(s)"):
        assert cell in told
