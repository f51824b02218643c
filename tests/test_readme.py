"""README says what the records say, and its code runs."""

import re
from pathlib import Path

import pytest
import torch

from decorlib.study.evidence import answers
from decorlib.study.evidence.records import Record, load_extended, load_records
from decorlib.study.report import notebooks

README = Path(__file__).resolve().parents[1] / "README.md"


def test_answer_table_is_that_of_the_records():
    text = README.read_text(encoding="utf-8")
    assert answers.in_readme(load_records(), text) == text, "run `make reproduce`: it writes the table"


def test_a_changed_verdict_is_noticed(tmp_path):
    text = README.read_text(encoding="utf-8")
    changed = re.sub(r"\| (supported|refuted|harmful|undecided)\b", "| maybe", text, count=1)
    assert changed != text, "README shows no verdict"
    assert answers.in_readme(load_records(), changed) != changed


def test_a_changed_opening_is_noticed():
    text = README.read_text(encoding="utf-8")
    changed = text.replace("**Does decorrelation help?**", "**It helps.**")
    assert changed != text, "README does not open with the answer"
    assert answers.in_readme(load_records(), changed) == text


def test_first_cells_say_what_came_out():
    """Two sentences of the record of the full run, where `make reproduce` has written any."""
    records = load_records()
    for source in notebooks.find(README.parent / "notebooks"):
        title = source.read().cells[0].source
        longer = load_extended(source.number)
        assert answers.in_title(records.get(source.number), title, longer) == title, "`make reproduce` writes them"


def test_what_came_out_replaces_what_came_out_before():
    record = Record("03", "why?")
    assert answers.in_title(record, "# 03 · Why?") == "# 03 · Why?"
    record.sentences("It costs 3 steps.", "It gains 0.2 points.")
    first = answers.in_title(record, "# 03 · Why?\n\n**Runs in** a minute.")
    assert first.endswith("**What came out.** It costs 3 steps. It gains 0.2 points.\n<!-- /came out -->")
    record.sentences("It costs 4 steps.", "It gains nothing.")
    second = answers.in_title(record, first)
    assert second.count("What came out") == 1
    assert "It costs 4 steps. It gains nothing." in second
    assert answers.CAME_OUT.sub("", second) == "# 03 · Why?\n\n**Runs in** a minute."


def test_the_longer_study_stands_before_the_full_run_and_nothing_twice():
    record, longer = Record("03", "why?"), Record("03", "why?")
    record.sentences("It costs 3 steps.", "It gains 0.2 points.")
    longer.sentences("It costs 3 steps.", "It gains 0.5 points.")
    text = answers.in_title(record, "# 03 · Why?", longer)
    said = "*In the longer study:* It costs 3 steps. It gains 0.5 points. *In the full run:* It gains 0.2 points."
    assert f"**What came out.** {said}\n<!-- /came out -->" in text
    assert answers.CAME_OUT.sub("", text) == "# 03 · Why?"
    assert "full run:" not in answers.in_title(record, text, record)


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
