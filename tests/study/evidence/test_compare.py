import subprocess

import pytest

from decorlib.study.evidence import compare
from decorlib.study.evidence.records import Record


def record(value=1.0, tolerance=0.02, outcome="supported", explains="no", number="03", **parameters):
    made = Record(number, "why?", parameters)
    made.value("x", value, tolerance=tolerance)
    made.verdict({"hypothesis": "h", "outcome": outcome, "explains_failed_run": explains})
    return {number: made}


@pytest.mark.parametrize(
    ("old", "new", "result"),
    [
        (1.0, 1.0, "within"),
        (1.0, 1.019, "within"),
        (1.0, 1.021, "OUTSIDE"),
        (-1.0, -1.03, "OUTSIDE"),
        (0.0, 0.01, "within"),  # from zero the change is absolute
        (0.0, 0.03, "OUTSIDE"),
        (1.0, float("nan"), "diverged"),
        (float("inf"), 1.0, "no longer diverged"),
        (float("nan"), float("nan"), "within"),
    ],
)
def test_a_value(old, new, result):
    found = compare.compare(record(old), record(new))
    assert list(found.rows["result"]) == [result]
    assert found.outside == (result != "within")
    assert found.verdicts == []


def test_a_run_cannot_widen_its_own_tolerance():
    found = compare.compare(record(1.0, tolerance=0.01), record(1.5, tolerance=10.0))
    assert list(found.rows["result"]) == ["OUTSIDE"]


def test_new_and_vanished_values():
    old, new = record(), record()
    old["03"].value("only old", 1)
    new["03"].value("only new", 1)
    rows = compare.compare(old, new).rows.set_index("value")["result"]
    assert rows.to_dict() == {"x": "within", "only new": "new", "only old": "gone"}


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
    assert f"VERDICT CHANGED: {sentence}" in found.text()


def test_a_verdict_that_is_gone_counts_as_changed():
    new = record()
    new["03"].verdicts.clear()
    assert compare.compare(record(), new).verdicts == ["03 h: was supported, now gone"]


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
    record(outcome="refuted")["03"].write()
    assert compare.main(tmp_path) == 3
    assert "now refuted" in capsys.readouterr().out
    path = tmp_path / "results" / "records" / "03.json"
    path.write_text(path.read_text().replace("refuted", "supported"))
    assert compare.main(tmp_path) == 1  # edited by hand: the checksum does not fit
