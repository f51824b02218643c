"""The page of promises names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "promises.md"
ID = re.compile(r"`([\w/]+\.py)::(\w+)`")


def missing(text):
    """Names on the page that are no test: the file is not there, or holds no such function."""
    found = []
    for file, name in ID.findall(text):
        path = TESTS / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.walk(tree)):
            found.append(f"{file}::{name}")
    return found


def test_every_test_that_the_page_names_exists():
    text = PAGE.read_text(encoding="utf-8")
    assert missing(text) == []
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| Promise")]
    assert len(rows) > 20
    assert [row for row in rows if not ID.search(row)] == [], "a promise that no test keeps"


def test_a_name_that_is_gone_is_noticed():
    assert missing("`test_promises.py::test_gone`, `gone.py::test_a`") == [
        "test_promises.py::test_gone",
        "gone.py::test_a",
    ]
