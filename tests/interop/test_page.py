"""The page "Beside other tools": every row names tests that exist, and every test has a row. Runs without the tools."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "beside.md").read_text()
# The callbacks and loops of these are in docs/use.md and docs/trainers.md.
LOOPS = {"test_lightning.py", "test_transformers_trainer.py", "test_accelerate.py", "test_examples.py"}
ELSEWHERE = {*LOOPS, Path(__file__).name}


def rows():
    """The table of tools: the cells of each row."""
    table = re.search(r"\| Tool \|.*?\n\|---.*?\n((?:\|.*\n)+)", PAGE).group(1)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def written():
    found = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.name not in ELSEWHERE:
            functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
            found |= {f"{path.name}::{f.name}" for f in functions if f.name.startswith("test_")}
    return found


def test_every_row_is_run_by_tests_that_exist_and_every_test_has_a_row():
    named = []
    for row in rows():
        assert len(row) == 5, row
        mine = re.findall(r"`(test_\w+\.py::test_\w+)`", row[-1])
        assert mine, row
        named += mine
    assert sorted(named) == sorted(written())


def test_every_locked_tool_has_a_row_or_a_test():
    import tomllib

    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["interop"]
    names = {line.split("==")[0].removesuffix("-for-pytorch") for line in extra}
    said = " ".join(row[0] for row in rows())
    assert {name for name in names if name not in said} <= {"lightning"}
