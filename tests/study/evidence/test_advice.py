"""The decision table: every case once, the least favourable first, its outcome as its notebook decides it."""

import pandas as pd
import pytest

from decorlib.study.evidence import advice
from decorlib.study.evidence.records import EXTENDED, Record, load_extended, load_records

PROTOCOL = ("network", "data", "schedule", "budget", "arm", "control", "estimate", "low", "high", "n", "outcome")
WHERE = ["MLP", "MNIST", "constant", "equal seconds", "kappa"]


def gain(rows):
    made = Record("07", question="Is there a gain?", parameters={"margin": 0.002})
    frame = pd.DataFrame(rows, columns=PROTOCOL)
    frame.insert(0, "comparison", frame["network"] + ", minus " + frame["control"])
    made.table("protocol", frame, 0.001)
    return made


def instead(outcome="supported"):
    made = Record("10", question="What would you use instead?", parameters={"margin": 0.002})
    row = {"cell": "ConvNet, MNIST, annealed", "ours": "R", "peer": "Muon", "estimate": 0.04, "low": 0.01, "high": 0.07}
    made.table("against the best peer", pd.DataFrame([row | {"n": 10, "left out": 0, "outcome": outcome}]), 0.001)
    return made


def where(margin=0.002):
    made = Record("11", question="Where does it pay?", parameters={"margin": margin})
    rows = [
        ("batch size 8, minus BatchNorm", 0.01, 0.004, 0.016, 5, True),
        ("batch size 8, minus demeaned, every layer", -0.2, -0.3, -0.1, 5, False),
        ("width 32, minus demeaned, every layer", -0.02, -0.03, -0.01, 5, True),
    ]
    made.table("gains", pd.DataFrame(rows, columns=["cell", "estimate", "low", "high", "n", "best"]), 0.001)
    return made


def test_of_three_controls_the_worst_outcome_is_told_and_then_the_smallest_gain(tmp_path):
    rows = [
        (*WHERE, "BatchNorm", -0.010, -0.030, 0.010, 5, "undecided"),
        (*WHERE, "demeaned, every layer", -0.005, -0.007, -0.003, 5, "harmful"),
        (*WHERE, "inputs in [0, 1]", 0.004, 0.003, 0.005, 5, "supported"),
        ("ConvNet", *WHERE[1:], "BatchNorm", 0.004, 0.003, 0.005, 5, "supported"),
        ("ConvNet", *WHERE[1:], "inputs in [0, 1]", None, None, None, 0, "undecided"),
    ]
    told = [case.cells() for case in advice.cases({"07": gain(rows)}, tmp_path)]
    assert [row["with R, minus"] for row in told] == ["'kappa' minus demeaned, every layer", "'kappa' minus BatchNorm"]
    assert [row["so"] for row in told] == ["do not (harmful)", "use it (supported)"]
    assert told[0]["your case"] == "MLP on MNIST, Adam, rate constant, equal seconds"
    assert told[0]["gain in test accuracy [95%], n"] == "-0.50 points [-0.70, -0.30], n = 5"


def test_cases_of_all_notebooks_stand_in_one_order_with_the_picked_control(tmp_path):
    found = advice.cases({"10": instead(), "11": where()}, tmp_path)
    assert [(case.notebook, case.outcome) for case in found] == [
        ("11", "harmful"),
        ("11", "supported"),
        ("10", "supported"),
    ]
    assert found[0].compared == "R in the deeper layers minus demeaned, every layer"
    assert found[1].compared == "R in the deeper layers minus BatchNorm"
    assert found[2].cells()["your case"] == "ConvNet, MNIST, annealed rate, equal time"


@pytest.mark.parametrize(("margin", "outcome"), [(0.002, "supported"), (0.005, "undecided"), (0.05, "refuted")])
def test_the_margin_of_the_record_decides(margin, outcome, tmp_path):
    [case] = [
        case for case in advice.cases({"11": where(margin)}, tmp_path) if case.case.startswith("MLP, batch size 8")
    ]
    assert case.outcome == outcome


def test_cases_of_the_longer_study_are_there_too(tmp_path, monkeypatch):
    folder = tmp_path / EXTENDED
    monkeypatch.setenv("DECORLIB_RESULTS", str(folder))
    gain([(*WHERE, "BatchNorm", 0.004, 0.003, 0.005, 10, "supported")]).write()  # the same one, more favourable
    full = gain([(*WHERE, "BatchNorm", -0.005, -0.007, -0.003, 5, "harmful")])
    found = advice.cases({"07": full}, tmp_path)
    assert [(case.gain.n, case.outcome) for case in found] == [(5, "harmful")]
    gain([("ConvNet", *WHERE[1:], "BatchNorm", 0.004, 0.003, 0.005, 10, "supported")]).write()
    assert [(case.gain.n, case.outcome) for case in advice.cases({"07": full}, tmp_path)] == [
        (5, "harmful"),
        (10, "supported"),
    ]


def test_of_10_and_11_the_longer_study_stands_for_the_same_case_and_says_that_it_does(tmp_path, monkeypatch):
    monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path / EXTENDED))
    instead("undecided").write()
    found = advice.cases({"10": instead(), "11": where()}, tmp_path)
    assert [(case.case, case.outcome) for case in found if case.notebook == "10"] == [
        ("ConvNet, MNIST, annealed rate, equal time, longer study", "undecided")
    ]
    assert len([case for case in found if case.notebook == "11"]) == 2


def test_without_records_there_is_no_case_and_the_committed_ones_have_every_cell_of_11(tmp_path):
    assert advice.cases({}, tmp_path) == []
    records = load_records()
    both = [record for record in (records["11"], load_extended("11")) if record is not None]
    told = [case for case in advice.cases(records) if case.notebook == "11"]
    assert len(told) == len({cell.split(", minus ")[0] for record in both for cell in record.frame("gains")["cell"]})
