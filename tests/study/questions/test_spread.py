"""The measured spread of checked numbers, and the page that states it beside the tolerances."""

import json
import re
import tomllib

import pytest
import torch
from packaging.requirements import Requirement

from decorlib.study.evidence import provenance
from decorlib.study.evidence.records import load_records
from decorlib.study.experiments import notebook_2024
from decorlib.study.questions.answers import spread

MEASURED = json.loads(spread.MEASURED.read_text(encoding="utf-8"))


def made(torch="1", threads=1, instructions="A", **values):
    return {"torch": torch, "threads": threads, "instructions": instructions, "cpu": "c", "values": values}


def test_the_page_says_what_was_measured():
    text = spread.PAGE.read_text(encoding="utf-8")
    again = spread.in_page(text, spread.table(MEASURED, load_records()))
    assert again == text, "call `python -m decorlib.study.questions.answers.spread table`"


def test_every_tolerance_is_ten_times_the_spread_it_has_to_cover():
    records = load_records()
    names = list(MEASURED[0]["values"])
    assert sum(name.startswith(notebook_2024.RUNS) for name in names) == 5
    assert len(names) >= 15
    for name in names:
        tolerance, _ = spread.tolerance_of(name, records)
        assert spread.spread(MEASURED, name) <= tolerance / 10, name


def test_the_lowest_and_the_locked_release_were_measured_with_one_and_two_threads():
    project = tomllib.loads((provenance.ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "torch")
    locked = re.search(r"^torch==([\d.]+)", (provenance.ROOT / "requirements.lock").read_text(), re.M).group(1)
    lowest = next(iter(wanted.specifier)).version
    measured = {(m["torch"].partition("+")[0], m["threads"]) for m in MEASURED}
    for threads in spread.THREADS:
        assert (locked, threads) in measured
        assert any(release.startswith(f"{lowest}.") and t == threads for release, t in measured)


def test_the_seeds_values_are_those_that_its_document_holds():
    for m in MEASURED:
        for run in notebook_2024.RUNS:
            for key in ("bp_loss", "decorrelation_loss"):
                printed = [row[key] for row in notebook_2024.printed(run) if row.get(key) is not None]
                if any(printed):
                    assert m["values"][f"{run}, {key}"] == pytest.approx(printed, rel=1e-5)


def test_differences_and_spreads():
    assert spread.difference([1.0, 0.0, -2.0], [1.0, 0.0, -2.0]) == 0
    assert spread.difference([1.0, 4.0], [1.0, 5.0]) == pytest.approx(0.2)
    measured = [made(x=[1.0]), made(threads=2, x=[1.1]), made("2", x=[2.0]), made("2", 2, x=[2.0])]
    assert spread.spread(measured, "x", "threads") == pytest.approx(1 - 1 / 1.1)
    assert spread.spread(measured, "x", "torch") == pytest.approx(0.5)
    assert spread.spread(measured, "x", "instructions") is None
    assert spread.spread(measured, "x") == pytest.approx(0.5)


def test_what_is_computed_twice_must_be_equal_to_the_bit():
    calls = []

    def drifts():
        calls.append(torch.get_num_threads())
        return {"still": [1.0], "moves": [1.0 + len(calls) * 2**-52]}

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match=r"not the same to the bit: \['moves'\]"):
        spread.measure(drifts)
    assert calls == [1, 1]
    assert torch.get_num_threads() == before
    found = spread.measure(lambda: {"x": [float(torch.get_num_threads())]})
    assert [m["values"]["x"] for m in found] == [[1.0], [2.0]]


def test_a_small_measurement_is_written_once_and_becomes_a_table(tmp_path, monkeypatch, capsys):
    arms = {"backpropagation": spread.SMALL.but(rule=None, train_size=64, epochs=1, hidden=(4,))}
    monkeypatch.setattr(
        spread, "measure", lambda real=spread.measure: real(lambda: spread.record_values(arms, seeds=1))
    )
    file, page = tmp_path / "numbers.json", tmp_path / "numbers.md"
    start = "<!-- spread: written by `python -m decorlib.study.questions.answers.spread table` -->"
    page.write_text(f"before\n{start}\nold\n<!-- /spread -->\nafter\n")
    where = ["--file", str(file), "--page", str(page)]
    assert spread.main(["table", *where]) == 1
    assert "call `measure` first" in capsys.readouterr().err
    assert spread.main(["measure", *where]) == 0
    assert spread.main(["measure", *where]) == 0  # the same environment counts once
    assert [m["threads"] for m in json.loads(file.read_text())] == [1, 2]
    assert spread.main(["table", *where]) == 0
    text = page.read_text()
    found = re.match(r"(?s)before\n.*\| test accuracy, backpropagation \| ([\d.]+) \| record 01 \|.*\nafter\n$", text)
    assert 0 < float(found[1]) < 0.005  # below the margin of the row that it decides
    assert "old" not in text
    assert spread.main(["clear", *where]) == 0
    assert not file.exists()
    with pytest.raises(ValueError, match="the page has no lines"):
        spread.in_page("nothing", "x")
