"""README says what the records say, and its code runs."""

import re
from pathlib import Path

import pytest
import torch

from decorlib.study.evidence import answers
from decorlib.study.evidence.records import load_records

README = Path(__file__).resolve().parents[1] / "README.md"


def test_answer_table_is_that_of_the_records():
    text = README.read_text(encoding="utf-8")
    assert answers.in_readme(load_records(), text) == text, "run `make reproduce`: it writes the table"


def test_a_changed_verdict_is_noticed(tmp_path):
    text = README.read_text(encoding="utf-8")
    changed = re.sub(r"\| (yes|no|inconclusive) \|", "| maybe |", text, count=1)
    assert changed != text, "README shows no verdict"
    assert answers.in_readme(load_records(), changed) != changed


def test_markers_are_needed():
    with pytest.raises(ValueError, match="answers"):
        answers.in_readme({}, "no markers here")


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert blocks
    for block in blocks:
        torch.manual_seed(0)
        namespace: dict = {}
        exec(compile(block, str(README), "exec"), namespace)
        if "plain" in namespace:
            x = torch.randn(2, 3, 32, 32)
            with torch.no_grad():
                assert torch.allclose(namespace["plain"](x), namespace["model"](x), atol=1e-4)
