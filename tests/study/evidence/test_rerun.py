"""Whole records of two processors: which are set side by side, how far apart they are, and what make reproduce says."""

import pytest

from decorlib.study.evidence import compare, rerun
from decorlib.study.evidence.provenance import NoGit
from decorlib.study.evidence.records import Record
from decorlib.study.evidence.stats import Interval
from decorlib.study.evidence.verdicts import Verdict

MARK, END = "<!-- rerun: written by `python -m decorlib.study.evidence.rerun", "<!-- /rerun -->"


def record(number, estimate, half, *, cpu="one", products=None):
    interval = Interval(estimate, estimate - half, estimate + half, 5, 0.5)
    told = {"claim": "c", "criterion": "c", "evidence": "runs", "remedy": "", "unit": "accuracy"}
    verdict = Verdict.from_interval(interval, hypothesis="h", margin=0.002, better="higher", **told)
    made = Record(number, question="q?", parameters={"seeds": 5})
    made.verdict(verdict)
    made.made_by = {"machine": {"cpu": cpu} | ({"products": products} if products else {})}
    return made


def test_only_records_of_two_kinds_of_machine_are_set_side_by_side():
    old = {"01": record("01", 0.004, 0.001), "02": record("02", 0.004, 0.001)}
    new = {"01": record("01", 0.004, 0.001), "02": record("02", 0.0045, 0.001, products="AVX")}
    made = rerun.table(old, new)
    assert "| 02 | h |" in made
    assert "| 01 |" not in made
    assert "| 0.50 |" in made  # (0.0045 - 0.004) / 0.001
    assert "There: one. Here: one, AVX." in made
    assert "of 1 verdicts 0 change their outcome; of their estimates 0 leave the interval there" in made


def test_an_estimate_outside_and_an_outcome_that_changes_are_counted():
    made = rerun.table({"01": record("01", 0.004, 0.001)}, {"01": record("01", 0.0, 0.003, cpu="two")})
    assert "supported, 0.004 [0.003, 0.005], n = 5 | undecided, 0 [-0.003, 0.003], n = 5 | 4.00 |" in made
    assert "of 1 verdicts 1 change their outcome; of their estimates 1 leave the interval there" in made


def test_reproduce_names_the_two_processors_once_for_all_notebooks():
    old = {n: record(n, 0.004, 0.001) for n in ("01", "02", "03")}
    new = {"01": old["01"], "02": record("02", 0, 0.1, cpu="two"), "03": record("03", 0, 0.1, cpu="two")}
    (note,) = compare.made_elsewhere(old, new)
    assert note.startswith("02, 03: committed from one, made on two; ")
    assert compare.made_elsewhere(old, old) == []


def test_the_page_keeps_what_is_around_the_table_and_names_the_commits():
    page = f"before\n{MARK} a b` -->\nold\n{END}\nafter"
    assert rerun.in_page(page, "new\n", ("c", "d")) == f"before\n{MARK} c d` -->\nnew\n{END}\nafter"
    with pytest.raises(ValueError, match="has no lines"):
        rerun.in_page("nothing", "new", ("c", "d"))


def test_two_commits_are_asked_for(capsys):
    assert rerun.main([]) == 2
    assert "two commits" in capsys.readouterr().err


def test_the_page_has_the_table_of_its_two_commits():
    text = rerun.PAGE.read_text(encoding="utf-8")
    commits = tuple(text.split(MARK, 1)[1].split("`", 1)[0].split())
    try:
        records = [compare.read_committed(commit=commit) for commit in commits]
    except NoGit as reason:
        pytest.skip(f"the history is not here: {reason}")
    assert rerun.in_page(text, rerun.table(*records), commits) == text


def test_a_commit_that_is_none_is_named_and_the_page_stays(tmp_path, capsys):
    page = tmp_path / "numbers.md"
    page.write_text(f"{MARK} a b` -->\n{END}")
    assert rerun.main(["no-such-commit", "HEAD"], page=page) == 2
    assert "no-such-commit" in capsys.readouterr().err
    assert page.read_text() == f"{MARK} a b` -->\n{END}"
