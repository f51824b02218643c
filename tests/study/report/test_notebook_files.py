"""Parameters of notebooks and their form without volatile metadata."""

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from decorlib.study.evidence.provenance import ROOT
from decorlib.study.report import notebooks
from decorlib.study.report.notebooks import BadParameters


def suite(folder, cell="seeds = 3  # how many\nrate: float = 0.1\nname = 'a'\nwidths = [1, 2]", **params):
    (folder / "params").mkdir(parents=True, exist_ok=True)
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell, metadata={"tags": ["parameters"]})])
    nbformat.write(notebook, folder / "03_why_not.ipynb")
    for name, text in params.items():
        (folder / "params" / f"03{name.replace('_', '.')}.yaml").write_text(text)
    return notebooks.find(folder)[0]


def test_profiles_stack(tmp_path):
    source = suite(tmp_path, **{"": "seeds: 5\nrate: 1\n", "_extended": "seeds: 20\n"})
    assert notebooks.parameters(source, "quick") == {}
    assert notebooks.parameters(source, "full") == {"seeds": 5, "rate": 1}
    assert notebooks.parameters(source, "extended") == {"seeds": 20, "rate": 1}
    assert notebooks.parameters(source, "quick", seeds=7, device="cuda") == {"seeds": 7}  # it has no device


def test_seeds_becomes_a_list_where_the_notebook_has_a_list(tmp_path):
    source = suite(tmp_path, cell="seeds = (0, 1)\ndevice = 'cpu'")
    assert notebooks.parameters(source, "quick", seeds=3, device="cuda") == {"seeds": [0, 1, 2], "device": "cuda"}
    with pytest.raises(BadParameters, match="at least 1, got 0"):
        notebooks.parameters(source, "quick", seeds=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: 5", "unknown parameter 'sedes'; the notebook has seeds, rate, name, widths"),
        ("seeds: five", "seeds must be a number like 3, got 'five'"),
        ("seeds: true", "seeds must be a number"),
        ("rate: 1e-4", "rate must be a number.*YAML reads 1e-4 as text, write 1.0e-4"),
        ("name: 3", "name must be a text"),
        ("widths: 3", "widths must be a list of number"),
        ("widths: [[1]]", "allowed are numbers, text"),
        ("seeds: {a: 1}", "allowed are numbers, text"),
        ("name: 2020-01-01", "allowed are numbers, text"),
        ("rate: .nan", "numbers must be finite"),
        ("widths: [1, .inf]", r"widths\[1\] is a float \(inf\).*numbers must be finite"),
        ("- seeds", "must be lines of `name: value`"),
        ("a b: 1", "'a b' is not a parameter name"),
        ("seeds: !!python/object/apply:os.getcwd []", "not YAML with plain values"),
        ("seeds: [", "not YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    with pytest.raises(BadParameters, match=message):
        notebooks.parameters(suite(tmp_path, **{"": text}), "full")


def test_yaml_never_builds_objects(tmp_path):
    marker = tmp_path / "marker"
    source = suite(tmp_path, **{"": f"seeds: !!python/object/apply:os.mkdir ['{marker}']"})
    with pytest.raises(BadParameters):
        notebooks.parameters(source, "full")
    assert not marker.exists()


@pytest.mark.parametrize("cell", ["x = print()", "import os", "x, y = 1, 2", "x = y = 1", "x: int"])
def test_the_parameters_cell_only_assigns_plain_values(tmp_path, cell):
    with pytest.raises(BadParameters, match="line 1 of the parameters cell"):
        notebooks.parameters(suite(tmp_path, cell=cell), "quick")


def test_two_or_no_parameter_cells(tmp_path):
    notebook = suite(tmp_path).read()
    with pytest.raises(BadParameters, match="has 0 cells"):
        notebooks.defaults(v4.new_notebook())
    notebook.cells.append(notebook.cells[0])
    with pytest.raises(BadParameters, match="has 2 cells"):
        notebooks.defaults(notebook)


def test_find(tmp_path):
    for name in ("10_b.ipynb", "02_a.ipynb", "scratch.ipynb", "1_x.ipynb"):
        (tmp_path / name).write_text("{}")
    assert [s.number for s in notebooks.find(tmp_path)] == ["02", "10"]
    assert [s.number for s in notebooks.find(tmp_path, ["2"])] == ["02"]
    with pytest.raises(BadParameters, match="no notebook 07; there are 02, 10"):
        notebooks.find(tmp_path, ["7"])
    (tmp_path / "02_c.ipynb").write_text("{}")
    with pytest.raises(BadParameters, match="two notebooks have the number 02"):
        notebooks.find(tmp_path)


def test_normalise_removes_what_is_volatile_and_keeps_the_rest():
    output = v4.new_output
    cell = v4.new_code_cell("x", metadata={"tags": ["injected-parameters"], "papermill": {"duration": 1.0}})
    cell.outputs = [
        output("stream", name="stdout", text="kept 50%| looks like a bar\n"),
        output("stream", name="stderr", text=" 50%|##  | 1/2 [00:01<00:01,  1.0it/s]\nreal warning\n"),
        output("stream", name="stderr", text="/tmp/ipykernel_12/34.py:1: UserWarning: hm\n"),
        output("stream", name="stderr", text=f"{ROOT}/decorlib/a.py:1: UserWarning: hm\n"),
        output("stream", name="stderr", text="100%|####| 2/2 [00:01<00:00]\n"),
        output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "0%"}),
        output("display_data", data={"text/plain": "kept"}),
    ]
    old = v4.new_markdown_cell("written by a JupyterLab that knew no ids")
    del old["id"]
    notebook = v4.new_notebook()
    notebook.cells = [cell, old]
    notebook.metadata = nbformat.from_dict(
        {"papermill": {}, "widgets": {}, "language_info": {"name": "python", "version": "3.99"}}
    )
    notebooks.normalise(notebook)
    assert cell.metadata == {"tags": ["injected-parameters"]}
    assert cell.id == "injected-parameters"
    assert [o.get("text") or o.data["text/plain"] for o in cell.outputs] == [
        "kept 50%| looks like a bar\n",
        "real warning\n",
        "ipykernel/cell.py:1: UserWarning: hm\n",
        "decorlib/a.py:1: UserWarning: hm\n",
        "kept",
    ]
    assert notebook.cells[1].id == "cell-1"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    once = nbformat.writes(notebook)
    assert nbformat.writes(notebooks.normalise(notebook)) == once


def test_a_styled_table_is_the_same_in_every_run():
    def run():
        table = pd.DataFrame({"a": [1.0, 2.0]}).style.highlight_max()
        cell = v4.new_code_cell("table", id="c03")
        cell.outputs = [v4.new_output("execute_result", data={"text/html": table.to_html(), "text/plain": repr(table)})]
        return notebooks.normalise(v4.new_notebook(cells=[cell]))

    first, second = run(), run()
    assert nbformat.writes(first) == nbformat.writes(second)
    page = first.cells[0].outputs[0].data["text/html"]
    for part in ('<table id="T_c03_0">', "#T_c03_0_row1_col0 {", 'id="T_c03_0_row1_col0"'):
        assert part in page
