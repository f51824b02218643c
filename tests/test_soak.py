"""The soak itself: it passes where all is well, and says so where something was lost. Half an hour of it: soak.py."""

import json
import shutil
import signal

import pytest
import soak

from decorlib.study.sweeps import identity, runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A soak's folder in which every run is in both caches, the reference and the one that suffers."""
    folder = tmp_path_factory.mktemp("soak")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECORLIB_PROGRESS", "off")
        # long enough, each, for a strike after 0.02 s to find one under way
        patch.setattr(soak, "SPECS", [soak.BASE.but(seed=seed, train_size=256, epochs=10) for seed in range(6)])
        runs.sweep(soak.SPECS, soak.experiment.run, engine="serial", cache=folder / "reference")
        shutil.copytree(folder / "reference", folder / "cache")
        yield folder


@pytest.fixture
def few(trained, monkeypatch):
    # A shell's background job ignores Ctrl-C, and so does Python in it: then there would be nothing to interrupt.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setenv("DECORLIB_PROGRESS", "off")
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def work(few, trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    made = soak.Soak(tmp_path, seed=1, jobs=1)
    assert len(soak.entries(made.cache)) == len(soak.SPECS)
    return made


@pytest.mark.parametrize("fault", [fault for fault in soak.FAULTS if fault != "worker killed"])
def test_a_round_with_each_fault_loses_nothing(fault, work, monkeypatch):
    monkeypatch.setattr(soak, "FAULTS", (fault,))
    monkeypatch.setattr(work.draw, "uniform", lambda low, high: 0.02)
    choice = work.draw.choice
    monkeypatch.setattr(work.draw, "choice", lambda options: "serial" if "serial" in options else choice(options))
    for played in range(40):  # a strike may come a moment after the sweep's end: then it had nothing to strike
        if played >= 4 and (fault == "nothing" or work.found.noticed[fault]):
            break
        work.round()
    assert work.found.wrong == []
    assert work.found.runs >= 8
    if fault != "nothing":
        assert work.found.noticed[fault] >= 1


@pytest.mark.slow
def test_a_short_soak_with_everything(few, tmp_path):
    found = soak.soak(0.75, seed=3, jobs=1, folder=tmp_path)
    assert found.wrong == []
    assert len(found.memory) >= 3
    assert "wrong: 0" in soak.summary(found)


def test_another_record_a_lost_and_a_changed_entry_are_seen(work):
    records = runs.sweep(soak.SPECS, soak.experiment.run, engine="serial", cache=work.cache)
    whole = soak.entries(work.cache)

    def seen(records=records):
        work.found.wrong.clear()
        work.check("nothing", list(range(6)), records, dict(whole), [], [])
        return work.found.wrong

    assert seen() == []
    other = json.loads(json.dumps(records))
    other[2]["final"]["test_loss"] *= 1 + 1e-15
    assert "another record" in seen(other)[0]
    path = sorted(whole)[0]
    path.unlink()
    assert seen() == [f"nothing: entry {path.name} changed or vanished"]
    path.write_bytes(whole[path][:-1] + b" ")
    with pytest.warns(UserWarning, match="is damaged"):
        assert any("is not whole" in line for line in seen())
    path.write_bytes(whole[path])
    stray = path.with_name(".x.partial")
    stray.touch()
    assert seen() == ["nothing: .x.partial was left"]


def test_damage_that_nobody_names_is_seen(work):
    whole = soak.entries(work.cache)
    path = sorted(whole)[0]
    work.check("bit flipped", list(range(6)), [json.loads(b)["record"] for b in order(work, whole)], {}, [path], [])
    assert work.found.wrong == [f"bit flipped: {path.name} was used or replaced without a word"]


def order(work, whole):
    """Contents of the entries in the order of the specifications."""
    by_spec = {json.dumps(json.loads(b)["spec"], sort_keys=True): b for b in whole.values()}
    return [by_spec[json.dumps(json.loads(json.dumps(identity.spec_dict(s))), sort_keys=True)] for s in soak.SPECS]


def test_a_fault_that_was_never_there_is_seen():
    found = soak.Found()
    found.rounds.update({"Ctrl-C, serial": 15, "Ctrl-C, local": 6, "bit flipped, serial": 30, "nothing, local": 40})
    found.noticed["bit flipped"] = 1
    assert found.never_noticed() == ["Ctrl-C: not once noticed in 21 rounds"]
    assert found.never_noticed(enough=22) == []


def test_the_slope_of_the_memory():
    found = soak.Found(memory=[(m, 100.0 + (50 if m < 3 else 0) + 2 * m + (-1) ** m * 0.1) for m in range(12)])
    slope, error = found.slope()
    assert slope == pytest.approx(2, abs=0.05)
    assert 0 < error < 0.05
    assert soak.resident() > 10
