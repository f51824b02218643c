"""The form of the notebooks (what they print is checked by nbval, see `make test`)."""

import ast
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from decorlib.study.report import notebooks

ROOT = Path(__file__).resolve().parents[1]
SOURCES = notebooks.find(ROOT / "notebooks")
LABELS = ("Question.", "What the 2024 notebook shows.", "What would decide it.", "Runs in")
MAX_LINES = 15

every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path.stem)


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """Everything that is wrong with the form of a notebook, one sentence each."""
    found = []
    title = notebook.cells[0]
    if title.cell_type != "markdown" or not re.match(r"# \d\d · .+", title.source):
        found.append("the first cell is not a title `# NN · The question`")
    found += [f"the title cell lacks **{label}**" for label in LABELS if f"**{label}" not in title.source]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    try:
        notebooks.defaults(notebook)
    except notebooks.BadParameters as error:
        found.append(str(error))
    compared = 0
    for index, cell in enumerate(notebook.cells, 1):
        here = f"cell {index}"
        if not set(cell.metadata) <= {"tags", "mystnb", "jupyter"}:
            found.append(f"{here} has metadata {sorted(cell.metadata)}; run `make refresh`")
        if cell.cell_type != "code":
            continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if not lines:
            found.append(f"{here} is empty")
            continue
        if len(lines) > MAX_LINES:
            found.append(f"{here} has {len(lines)} lines, more than {MAX_LINES}: move logic into decorlib")
        if lines[-1].rstrip().endswith(";"):
            found.append(f"{here} ends with `;`, which nbval reports as a missing output; write `_ = ...`")
        if re.search(r"^\s*[!%]|sys\.path|subprocess|os\.system", cell.source, re.M):
            found.append(f"{here} calls a shell, uses magic or touches sys.path")
        if re.search(r"^\s*class ", cell.source, re.M):
            found.append(f"{here} defines a class; it belongs into decorlib")
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"{here} holds an error")
        if cell.execution_count is None:
            found.append(f"{here} was not executed; run `make refresh`")
        if cell.outputs and "nbval-ignore-output" not in cell.metadata.get("tags", []):
            compared += 1
        for output in cell.outputs:
            data = output.get("data", {})
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if "image/png" in data and not alt:
                found.append(f"{here} shows a figure without alternative text; use show(fig, alt=...)")
    if compared < 3:
        found.append(f"nbval compares only {compared} cells; at least 3 must print something checked")
    return found


@every_notebook
def test_form(source):
    assert not problems(source.read())


def missing(notebook: nbformat.NotebookNode) -> list[str]:
    """Names that the cells ask of decorlib's modules and that are not there (nbval would say so after minutes)."""
    tree = ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    modules, found = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "decorlib":
            for alias in node.names:
                scope: dict = {}
                try:
                    exec(f"from {node.module} import {alias.name} as it", scope)  # as Python finds it, submodules too
                except ImportError:
                    found.append(f"{node.module}.{alias.name}")
                    continue
                if isinstance(scope["it"], ModuleType):
                    modules[alias.asname or alias.name] = scope["it"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            module = modules[node.value.id]
            if not hasattr(module, node.attr):
                found.append(f"{module.__name__}.{node.attr}")
    return found


@every_notebook
def test_asks_for_nothing_that_is_not_there(source):
    assert not missing(source.read())


def test_a_name_that_was_taken_away_is_found():
    cells = [
        "from decorlib.study.evidence import opening, nowhere",
        "print(opening.ORDER, opening.paragraph)\nopening = 1",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    assert missing(notebook) == ["decorlib.study.evidence.nowhere", "decorlib.study.evidence.opening.ORDER"]


@every_notebook
def test_is_stored_without_volatile_metadata(source):
    """Written as `make refresh` writes it: a second refresh gives no diff."""
    again = nbformat.writes(notebooks.normalise(source.read())).rstrip("\n") + "\n"
    assert source.path.read_text(encoding="utf-8") == again, "run `make refresh`"


@every_notebook
@pytest.mark.parametrize("profile", notebooks.PROFILES)
def test_parameter_files_name_parameters_of_the_notebook(source, profile):
    notebooks.parameters(source, profile)


def test_no_parameter_file_without_notebook():
    numbers = {source.number for source in SOURCES}
    assert {path.name[:2] for path in (ROOT / "notebooks" / "params").glob("*.yaml")} <= numbers


def test_every_notebook_has_a_number_and_words():
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == {s.path.name for s in SOURCES}


def good() -> nbformat.NotebookNode:
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# 01 · Why?\n\n" + "\n".join(f"**{label}** x" for label in LABELS))]
    cells.append(v4.new_code_cell("seeds = 3", metadata={"tags": ["parameters"]}, execution_count=1))
    for count in (2, 3, 4):
        output = v4.new_output("stream", name="stdout", text="3\n")
        cells.append(v4.new_code_cell("print(seeds)", outputs=[output], execution_count=count))
    return v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "P"}})


def test_a_good_notebook_has_no_problems():
    assert problems(good()) == []


def plant_title(nb):
    nb.cells[0].source = nb.cells[0].source.replace("01 · ", "")


def plant_label(nb):
    nb.cells[0].source = nb.cells[0].source.replace("**Question.**", "")


def plant_kernel(nb):
    nb.metadata.kernelspec.name = "my-env"


def plant_second_parameters(nb):
    nb.cells[2].metadata["tags"] = ["parameters"]


def plant_metadata(nb):
    nb.cells[2].metadata["execution"] = {"iopub.execute_input": "now"}


def plant_long(nb):
    nb.cells[2].source = "\n".join(["x = 1"] * (MAX_LINES + 1))


def plant_semicolon(nb):
    nb.cells[2].source = "seeds;"


def plant_shell(nb):
    nb.cells[2].source = "!ls"


def plant_path(nb):
    nb.cells[2].source = "import sys\nsys.path.append('..')"


def plant_class(nb):
    nb.cells[2].source = "class Net:\n    pass"


def plant_error(nb):
    nb.cells[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="e", traceback=[])]


def plant_not_executed(nb):
    nb.cells[2].execution_count = None


def plant_nothing_compared(nb):
    nb.cells[2].metadata["tags"] = ["nbval-ignore-output"]


def plant_figure_without_alt(nb):
    nb.cells[2].outputs = [nbformat.v4.new_output("display_data", data={"image/png": "aaaa"})]


@pytest.mark.parametrize("plant", [f for name, f in sorted(globals().items()) if name.startswith("plant_")])
def test_a_planted_flaw_is_found(plant):
    notebook = good()
    plant(notebook)
    assert len(problems(notebook)) == 1
