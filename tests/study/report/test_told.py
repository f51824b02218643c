"""What `make reproduce` says at the end of a line and of a run."""

import pandas as pd
import pytest
from small_report import verdict

from decorlib.study.evidence.records import Record
from decorlib.study.report import told


def test_the_tables_of_a_record_and_a_line_for_its_verdict():
    record = Record("00", "Why?", {})
    frame = pd.DataFrame({"epoch": [0, 1], "printed": [106.561, 92.459], "relative difference": [1.25e-7, 3e-8]})
    record.table("run 1", frame, tolerance=1e-5)
    record.table("long", pd.DataFrame({"x": range(told.MAX_ROWS + 3)}))
    record.verdict(verdict())
    text = told.tables_and_verdicts(record)
    assert "00  run 1\n epoch  printed  relative difference\n     0  106.561             1.25e-07" in text
    assert "(3 more rows in the record)" in text
    assert text.splitlines()[-1] == "00  VERDICT it helps | a lot: supported (it helps | a lot)"


def records(**seconds):
    found = {}
    for number, value in seconds.items():
        number = number.removeprefix("n")
        found[number] = Record(number, "Why?", {})
        found[number].made_by = {"seconds": value}
    return found


def test_the_time_left_is_that_of_the_last_time_at_the_pace_of_this_machine():
    left = told.TimeLeft(["00", "01", "02", "03", "04"], records(n00=10, n01=540, n02=300, n04=600))
    # Twice as slow; but ten seconds are little beside the minute that is taken as told: 80 / 70. 03 is unknown.
    assert left.after("00", 20.0, ran=True) == " (1 of 5; at most about 27 min left)"
    assert left.after("01", 0.1, ran=False) == " (2 of 5; at most about 17 min left)"
    assert left.after("02", 600.0, ran=True) == " (3 of 5; at most about 18 min left)"  # 680 / 370 x 600 s
    assert left.after("03", 1.0, ran=True) == " (4 of 5; at most about 18 min left)"
    assert left.after("04", 1.0, ran=True) == ""


def test_one_notebook_alone_says_nothing_of_others():
    assert told.TimeLeft(["00"], {}).after("00", 1.0, ran=True) == ""


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (119, "119 s"), (121, "2 min"), (3600, "60 min")])
def test_durations(seconds, said):
    assert told.duration(seconds) == said
