import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from decorlib.study.evidence import records
from decorlib.study.evidence.records import Record, RecordDamaged, load_extended, load_records


def verdict(hypothesis="h", outcome="supported", **more):
    return {"hypothesis": hypothesis, "outcome": outcome, "explains_failed_run": None, **more}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path))
    return tmp_path


def full_record() -> Record:
    record = Record("03", "Does it help?", {"seeds": (0, 1), "rate": np.float64(0.1)})
    record.value("loss", torch.tensor(0.1), unit="nats", tolerance=0.01)
    record.value("gone", float("nan"), tolerance=0.02)
    record.table("rates", pd.DataFrame({"arm": ["a", "b"], "rate": [0.1, math.inf]}), tolerance=0.01)
    record.sentences("It costs 3 steps.", "It gains 0.2 points.")
    record.verdict(verdict())
    record.runs([{"seed": 0, "loss": [1.0, float("inf")]}])
    return record


def test_what_is_written_is_read(results):
    path = full_record().write()
    assert path == results / "records" / "03.json"
    read = Record.load(path)
    assert read.parameters == {"seeds": [0, 1], "rate": 0.1}
    assert read.values[0]["value"] == torch.tensor(0.1).item()
    assert read.values[1] == {
        **{"name": "gone", "value": None, "unit": ""},
        **{"agrees": {"within": 0.02}, "status": "diverged"},
    }
    assert read.tables["rates"]["rows"] == [["a", 0.1], ["b", None]]
    assert list(read.frame("rates").columns) == ["arm", "rate"]
    assert read.came_out == ["It costs 3 steps.", "It gains 0.2 points."]
    assert read.verdicts == [verdict()]
    assert read.load_runs() == [{"seed": 0, "loss": [1.0, None]}]
    assert read.made_by["versions"]["torch"] == torch.__version__.split("+")[0] or read.made_by["versions"]["torch"]
    assert set(read.made_by["data"]) == {
        f"{part}-{kind}-ubyte.xz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
    }


def test_file_is_strict_sorted_json(results):
    text = full_record().write().read_text()

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert list(content) == sorted(content)
    assert text.endswith("}\n")


def test_equal_findings_give_equal_bytes_but_for_made_by(results):
    one = json.loads(full_record().write().read_text())
    two = json.loads(full_record().write().read_text())
    for content in (one, two):
        content.pop("made_by")
        content.pop("sha256")
    assert one == two


def test_large_runs_are_compressed_and_reproducible(results, monkeypatch):
    monkeypatch.setattr(records, "GZIP_FROM", 10)
    path = full_record().write()
    compressed = path.parent / "03.runs.json.gz"
    first = compressed.read_bytes()
    full_record().write()
    assert compressed.read_bytes() == first
    assert Record.load(path).load_runs()[0]["seed"] == 0


def test_outside_a_full_run_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert full_record().write() is None
    assert "not written" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_no_partial_file_is_left_when_writing_fails(results, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        full_record().write()
    assert not [path for path in results.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"supported"', '"refuted"'),
        lambda text: text.replace('"format": 2', '"format": 1'),
        lambda text: "[]",
        lambda text: "",
        lambda text: text.replace('"sha256"', '"sum"'),
    ],
)
def test_damage_is_noticed_and_named(results, damage):
    path = full_record().write()
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordDamaged, match=r"03\.json"):
        Record.load(path)


def test_damaged_bytes_and_damaged_runs(results):
    path = full_record().write()
    runs = path.parent / "03.runs.json"
    runs.write_text(runs.read_text().replace("0", "1"))
    with pytest.raises(RecordDamaged, match=r"runs\.json is damaged"):
        Record.load(path).load_runs()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordDamaged, match="not text"):
        Record.load(path)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="two digits"):
        Record("3", "why?")
    with pytest.raises(ValueError, match="question is empty"):
        Record("03", " ")
    record = Record("03", "why?")
    record.value("x", 1, tolerance=0)
    with pytest.raises(ValueError, match="already a value 'x'"):
        record.value("x", 2, tolerance=0)
    with pytest.raises(TypeError, match="must be a number"):
        record.value("y", "fast", tolerance=0)
    with pytest.raises(ValueError, match="tolerance"):
        record.value("z", 1, tolerance=float("nan"))
    with pytest.raises(ValueError, match="needs a tolerance, absolute and in its unit, or timing=True"):
        record.value("z", 1)
    with pytest.raises(ValueError, match="not both"):
        record.value("z", 1, tolerance=0.1, timing=True)
    with pytest.raises(ValueError, match="whole sentences"):
        record.sentences("no sentence", "Yes.")
    with pytest.raises(TypeError, match=r"parameters\['model'\] is a Linear"):
        Record("03", "why?", {"model": torch.nn.Linear(1, 1)})
    record.verdict(verdict())
    with pytest.raises(ValueError, match="already has a verdict"):
        record.verdict(verdict())
    with pytest.raises(KeyError, match="no table 'rates'"):
        record.frame("rates")


def test_load_records(results, monkeypatch):
    for number in ("01", "03", "09"):
        Record(number, "why?").write()
    assert list(load_records(results / "records")) == ["01", "03", "09"]
    monkeypatch.setenv("DECORLIB_RECORDS", str(results / "records"))
    assert list(load_records(before="09")) == ["01", "03"]
    assert list(load_records(without="03")) == ["01", "09"]
    assert load_records(results / "nowhere") == {}


def test_load_extended(results, monkeypatch):
    """The committed record of the longer run; none where there is none, and none in that run itself."""
    Record("03", "why?").write()
    root = results.parent / "clone"
    monkeypatch.setattr("decorlib.study.evidence.provenance.ROOT", root)
    assert load_extended("03") is None
    folder = root / "results" / "extended" / "records"
    folder.mkdir(parents=True)
    (folder / "03.json").write_bytes((results / "records" / "03.json").read_bytes())
    assert load_extended("03").notebook == "03"
    monkeypatch.setenv("DECORLIB_RECORDS", str(folder))
    assert load_extended("03") is None
