"""Records against records: what moves by more than its tolerance is told, and nothing slips through."""

import copy
import subprocess

import pandas as pd
import pytest

from decorlib.study.evidence import compare
from decorlib.study.evidence.records import Record

VERDICT = {
    **{"hypothesis": "h", "claim": "it helps", "criterion": "above 0.4", "evidence": "runs", "remedy": ""},
    **{
        "estimate": 1.0,
        "low": 0.5,
        "high": 1.5,
        "n": 5,
        "unit": "",
        "p_value": 0.01,
        "margin": 0.4,
        "better": "higher",
    },
    **{"scale": "", "schedule": "", "control": "", "tolerance": None},
    **{"outcome": "supported", "explains_failed_run": "no"},
}


def record(value=1.0, tolerance=0.02, outcome="supported", explains="no", number="03", table=(), came=(), **parameters):
    made = Record(number, "why?", parameters)
    made.value("x", value, tolerance=tolerance)
    for name, (frame, options) in dict(table).items():
        made.table(name, frame, **options)
    if came:
        made.sentences(*came)
    made.verdict(VERDICT | {"outcome": outcome, "explains_failed_run": explains})
    return {number: made}


@pytest.fixture
def results_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path))


def in_a_table(*sentences):
    """Two records compared that have a sentence each, in a table."""
    tables = [{"answer": (pd.DataFrame({"sentence": [text]}), {})} for text in sentences]
    return compare.compare(*(record(table=table) for table in tables))


def results(found, what):
    return [r for w, r in zip(found.rows["what"], found.rows["result"], strict=True) if w.startswith(what)]


@pytest.mark.parametrize(
    ("old", "new", "result"),
    [
        (1.0, 1.0, "within"),
        (1.0, 1.019, "within"),
        (1.0, 1.021, "OUTSIDE"),
        (-1.0, -1.03, "OUTSIDE"),
        (100.0, 100.03, "OUTSIDE"),  # absolute, in the value's unit
        (0.0, 0.01, "within"),
        (0.0, 0.03, "OUTSIDE"),
        (1.0, float("nan"), "diverged"),
        (float("inf"), 1.0, "no longer diverged"),
        (float("nan"), float("nan"), "within"),
    ],
)
def test_a_value(old, new, result):
    found = compare.compare(record(old), record(new))
    assert results(found, "x") == [result]
    assert found.outside == (result != "within")
    assert found.failed == (result != "within")
    assert found.verdicts == []


@pytest.mark.parametrize(("new", "result"), [(2.4, "within"), (2.6, "OUTSIDE"), (1.7, "within"), (1.5, "OUTSIDE")])
def test_timings_are_compared_as_ratios(new, result):
    old, now = record(), record()
    old["03"].value("step / plain step", 2.0, timing=True)
    now["03"].value("step / plain step", new, timing=True)
    assert results(compare.compare(old, now), "step") == [result]


def test_a_run_cannot_widen_its_own_tolerance():
    found = compare.compare(record(1.0, tolerance=0.01), record(1.5, tolerance=10.0))
    assert results(found, "x") == ["OUTSIDE"]


def test_new_and_vanished_values():
    old, new = record(), record()
    old["03"].value("only old", 1, tolerance=0)
    new["03"].value("only new", 1, tolerance=0)
    rows = compare.compare(old, new).rows.set_index("what")["result"]
    assert (rows["x"], rows["only new"], rows["only old"]) == ("within", "new", "gone")


FRAME = pd.DataFrame(
    {"arm": ["a", "b"], "accuracy": [0.9, 0.8], "runs": [5, 5], "lr": [1e-3, 2e-3], "ms": [1.0, 2.0], "p": [0.1, 0.2]}
)
RULES = {"tolerance": 0.01, "skip": ("ms",)}


@pytest.mark.parametrize(
    ("column", "cell", "result"),
    [
        ("accuracy", 0.795, "within"),
        ("accuracy", 0.78, "OUTSIDE"),
        ("accuracy", None, "OUTSIDE"),
        ("arm", "c", "OUTSIDE"),
        ("runs", 4, "OUTSIDE"),  # counts are equal or not
        ("lr", 1e-3, "OUTSIDE"),  # so are chosen rates, however small
        ("ms", 9.0, "not compared"),
        ("p", 0.9, "not compared"),
    ],
)
def test_a_cell_of_a_table(column, cell, result):
    frame = FRAME.astype(object)
    frame.loc[1, column] = cell
    found = compare.compare(record(table={"t": (FRAME, RULES)}), record(table={"t": (frame, RULES)}))
    assert results(found, f"table t: {column}") == [result]
    assert found.failed == (result == "OUTSIDE")
    assert "2 not compared" in found.text()


def test_another_shape_and_a_lost_table():
    old = record(table={"t": (FRAME, RULES)})
    assert results(compare.compare(old, record(table={"t": (FRAME[:1], RULES)})), "table t") == ["OUTSIDE"]
    assert results(compare.compare(old, record()), "table t") == ["gone"]


def test_measured_numbers_need_a_word_on_how_they_are_compared():
    with pytest.raises(ValueError, match="column 'accuracy' of table 't' holds measured numbers"):
        Record("03", "why?").table("t", FRAME, tolerance={"ms": 0.1})
    with pytest.raises(ValueError, match=r"no columns \['seconds'\]"):
        Record("03", "why?").table("t", FRAME, skip=("seconds",))


@pytest.mark.parametrize(
    ("new", "same"),
    [
        ("It needs 2 epochs and 9.9 s where others need 6.5 and 8.1 s: met. It gains +0.15 points.", True),
        ("It needs 3 epochs and 3.4 s where others need 6.5 and 6.3 s: met. It gains +0.14 points.", False),
        ("It needs 2 epochs and 3.4 s where others need 6.5 and 6.3 s: not met. It gains +0.14 points.", False),
        ("It needs 2 epochs and 3.4 s where others need 6.5 and 6.3 s: met. It gains -0.14 points.", False),
        ("All is well.", False),
    ],
)
def test_sentences_are_compared_apart_from_seconds(new, same):
    old = "It needs 2 epochs and 3.4 s where others need 6.5 and 6.3 s: met. It gains +0.14 points."
    assert in_a_table(old, new).failed != same
    assert compare.compare(record(came=(old, "Yes.")), record(came=(new, "Yes."))).failed != same


@pytest.mark.parametrize(
    ("new", "same"),
    [
        ("MLP, equal seconds, seconds to 98.0%: 1.09 [1.00, 1.20] of BatchNorm's (n = 5, refuted).", True),
        ("MLP, equal seconds, seconds to 98.0%: 1.21 [1.00, 1.20] of BatchNorm's (n = 5, refuted).", False),
        ("MLP, equal seconds, seconds to 98.0%: 0.96 [0.88, 1.05] of BatchNorm's (n = 4, refuted).", False),
        ("MLP, equal seconds, seconds to 98.0%: 0.96 [0.88, 1.05] of BatchNorm's (n = 5, undecided).", False),
        ("MLP, equal seconds, seconds to 97.5%: 0.96 [0.88, 1.05] of BatchNorm's (n = 5, refuted).", False),
        ("MLP, equal epochs, seconds to 98.0%: 0.96 [0.88, 1.05] of BatchNorm's (n = 5, refuted).", False),
    ],
)
def test_sentences_of_seconds_to_a_level_are_compared_as_ratios(new, same):
    old = "MLP, equal seconds, seconds to 98.0%: 0.96 [0.88, 1.05] of BatchNorm's (n = 5, refuted)."
    assert in_a_table(old, new).failed != same


@pytest.mark.parametrize(
    ("new", "same"),
    [
        ("With 784 inputs R costs 6.1 [5.9, 6.3], n = 5 plain steps.", True),
        ("With 784 inputs R costs 6.4 [5.9, 6.3], n = 5 plain steps.", False),  # 1.28 times as much
        ("With 784 inputs R costs 5.0 [4.8, 5.2], n = 6 plain steps.", False),  # a count
        ("With 100 inputs R costs 5.0 [4.8, 5.2], n = 5 plain steps.", False),
        ("With 784 inputs R saves 5.0 [4.8, 5.2], n = 5 plain steps.", False),
    ],
)
@pytest.mark.usefixtures("results_folder")
def test_sentences_of_timings_are_compared_as_ratios(new, same):
    old = "With 784 inputs R costs 5.0 [4.8, 5.2], n = 5 plain steps."
    told = record(), record()
    told[0]["03"].sentences(old, "Yes.", timing=True)
    told[1]["03"].sentences(new, "Yes.")  # the committed record's rule counts, not the new one's
    committed = {"03": Record.load(told[0]["03"].write())}
    assert compare.compare(committed, told[1]).failed != same
    assert compare.compare(record(came=(old, "Yes.")), told[1]).failed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"outcome": "refuted"}, "03 h: outcome was supported, now refuted"),
        ({"explains": "yes"}, "03 h: explains_failed_run was no, now yes"),
    ],
)
def test_a_changed_verdict(change, sentence):
    found = compare.compare(record(), record(**change))
    assert found.verdicts == [sentence]
    assert found.failed
    assert f"VERDICT CHANGED: {sentence}" in found.text()


@pytest.mark.parametrize(
    ("change", "caught"),
    [
        ({"estimate": 1.05, "low": 0.55, "high": 1.55}, 0),
        ({"estimate": 1.2, "low": 0.7, "high": 1.7}, 3),  # a quarter of the margin is allowed
        ({"high": 1.7}, 2),  # and then the estimate is not in the middle
        ({"estimate": 0.95}, 1),
        ({"n": 4}, 1),
    ],
)
def test_the_numbers_of_a_verdict(change, caught):
    new = record()
    new["03"].verdicts[0] |= change
    found = compare.compare(record(), new)
    assert found.outside == caught
    assert found.verdicts == []


def test_a_verdict_that_does_not_hold_together_counts_as_changed():
    new = record()
    new["03"].verdicts[0]["estimate"] = -1.0
    (said,) = compare.compare(record(), new).verdicts
    assert "estimate = -1.0 is outside its interval" in said


def test_a_verdict_that_is_gone_counts_as_changed():
    new = record()
    new["03"].verdicts.clear()
    assert compare.compare(record(), new).verdicts == ["03 h: was supported, now gone"]


def test_across_formats_nothing_fails_and_a_note_says_so():
    """The records from before tolerances were absolute are the last that this is needed for."""
    old, new = record(1.0, table={"t": (FRAME, RULES)}), record(9.0, outcome="refuted", table={"t": (FRAME, RULES)})
    old["03"].format = 1
    old["03"].values[0] = {"name": "x", "value": 1.0, "unit": "", "tolerance": 0.02, "status": "finite"}
    del old["03"].tables["t"]["agrees"]
    found = compare.compare(old, new)
    assert not found.failed
    assert results(found, "x") == [compare.OLD_FORMAT]
    assert found.notes[0] == "03: formats 1 and 2: judged by the new record's tolerances, without failing"
    assert "across formats: 03 h: outcome was supported, now refuted" in found.notes
    again = copy.deepcopy(old)
    assert not compare.compare(old, again).failed
    again["03"].values[0]["value"] = 1.03
    assert compare.compare(old, again).failed


def test_first_and_missing_records_are_noted_not_judged():
    found = compare.compare(record(number="01"), record(number="02"))
    assert found.notes == ["01: no new record", "02: first record"]
    assert found.outside == 0
    assert "no values to compare" in found.text()


def test_other_parameters_are_named():
    found = compare.compare(record(seeds=3, rate=1), record(seeds=5, rate=1))
    assert found.notes == ["03: other parameters than before (seeds)"]


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments], check=True)


def test_against_the_committed_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path / "results"))
    assert compare.main(tmp_path) == 2
    assert "git cannot say what is committed: fatal: not a git repository" in capsys.readouterr().err
    git(tmp_path, "init", "-q")
    record()["03"].write()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "results")
    assert compare.main(tmp_path) == 0
    record(2.0)["03"].write()
    assert compare.main(tmp_path) == 3  # no verdict changed, but a value did
    record(outcome="refuted")["03"].write()
    assert compare.main(tmp_path) == 3
    assert "now refuted" in capsys.readouterr().out
    path = tmp_path / "results" / "records" / "03.json"
    path.write_text(path.read_text().replace("refuted", "supported"))
    assert compare.main(tmp_path) == 1  # edited by hand: the checksum does not fit
