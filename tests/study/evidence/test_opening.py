"""The paragraph that opens README: the least favourable comparison of two studies first, and every control."""

import pandas as pd
import pytest

from decorlib.study.evidence import answers, opening, to_levels
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, Record, load_records

COLUMNS = ("network", "data", "schedule", "budget", "arm", "control", "estimate", "low", "high", "n", "outcome")
ROWS = [
    ("MLP", "MNIST", "constant", "equal seconds", "kappa", "BatchNorm", 0.004, 0.003, 0.005, 5, "supported"),
    ("MLP", "MNIST", "cosine to zero", "equal seconds", "kappa", "BatchNorm", -0.005, -0.007, -0.003, 5, "harmful"),
    ("MLP", "MNIST", "constant", "equal seconds", "kappa", "inputs in [0, 1]", 0.001, 0.0001, 0.0019, 5, "refuted"),
    ("ConvNet", "MNIST", "constant", "equal epochs", "kappa", "inputs in [0, 1]", None, None, None, 0, "undecided"),
]
TIMES = [
    ("MLP", "MNIST", "constant", "equal seconds", "kappa", "BatchNorm", 0.7, 0.6, 0.8, 5, "supported"),
    (
        "MLP",
        "MNIST",
        "constant",
        "equal seconds",
        "kappa",
        "inputs in [0, 1]",
        None,
        None,
        None,
        0,
        "only R gets there",
    ),
]


COUNTS = "of more than 0.2 percentage points of test accuracy was shown"


def record(rows=ROWS, times=TIMES, never=((0, 0), (1, 5)), levels="98.0%", **parameters):
    made = Record("07", question="Is there a gain?", parameters={"margin": 0.002} | parameters)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    key = frame["network"] + ", " + frame["data"] + ", " + frame["schedule"] + ", " + frame["budget"]
    frame.insert(0, "comparison", key + ": minus " + frame["control"])
    made.table("protocol", frame, 0.001)
    frame = pd.DataFrame(times, columns=COLUMNS).assign(measure="seconds", level=levels, of=5)
    frame["arm never"], frame["control never"] = ([pair[i] for pair in never] for i in (0, 1))
    made.table("time to levels", frame, skip=("*",))
    return made


@pytest.fixture
def nowhere(tmp_path):
    return tmp_path


def test_the_least_favourable_stands_first_and_every_control_is_told(nowhere):
    text = answers.plain({"07": record(seeds=5)}, nowhere)
    assert text.startswith(
        "**Does decorrelation help?** Hardly. No gain of more than 0.2 percentage points of test accuracy was shown "
        "over 'inputs in [0, 1]' (0 of 1 comparisons); one was over 'BatchNorm' in 1 of 2. Networks with a learned R "
        "(MLP, ConvNet; MNIST; small ones) were compared with 2 controls without it (BatchNorm; inputs in [0, 1]). "
    )
    counts = "1 harmful (worse), 1 refuted (a difference that counts is ruled out), 1 supported (better)"
    lines = [line for line in text.splitlines() if line.startswith("* ")]
    assert lines == [
        f"* full run, 5 random seeds: of 3 comparisons {counts}",
        "* least favourable: MLP on MNIST, rate cosine to zero, equal seconds, 'kappa' minus BatchNorm: "
        "-0.50 points [-0.70, -0.30], n = 5 (harmful)",
        "* over BatchNorm, all studies: -0.50 to +0.40 points; of 2 comparisons 1 harmful (worse), "
        "1 supported (better)",
        "* most favourable: MLP on MNIST, rate constant, equal seconds, 'kappa' minus BatchNorm: "
        "+0.40 points [0.30, 0.50], n = 5 (supported)",
        "* seconds of training, MLP on MNIST, rate constant, to a validation accuracy of 98.0%: 0.70 [0.60, 0.80] of "
        "BatchNorm's (n = 5, supported); over inputs in [0, 1] not known (of 5 runs each 4 get there "
        "with R, 0 with inputs in [0, 1])",
    ]


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (["harmful", "undecided", "refuted"], f"No gain {COUNTS}."),
        (
            ["harmful", "undecided", "supported"],
            f"Hardly. No gain {COUNTS} over 'BatchNorm' (0 of 2 comparisons); "
            "one was over 'inputs in [0, 1]' in 1 of 1.",
        ),
        (
            ["supported", "undecided", "supported"],
            f"In some comparisons. A gain {COUNTS}: one was over 'BatchNorm' in 1 of 2; "
            "one was over 'inputs in [0, 1]' in 1 of 1.",
        ),
        (["supported"] * 3, "Yes."),
    ],
)
def test_the_answer_is_no_before_it_is_yes(nowhere, outcomes, words):
    rows = [(*row[:-1], outcome) for row, outcome in zip(ROWS, outcomes, strict=False)]
    assert answers.plain({"07": record(rows)}, nowhere).startswith(f"**Does decorrelation help?** {words} Networks")


def test_seconds_are_told_at_the_highest_level_where_most_ratios_are_known_the_slowest_first(nowhere):
    known = {"BatchNorm": 1.2, "inputs in [0, 1]": 1.4}
    times = [(*TIMES[0][:5], control, ratio, 0.5, 3.0, 5, "refuted") for control, ratio in known.items()]
    higher = [(*TIMES[0][:5], control, None, None, None, 2, "undecided") for control in known]
    made = record(
        times=times + higher, never=((0, 0), (0, 0), (3, 3), (3, 3)), levels=["97.5%", "97.5%", "98.0%", "98.0%"]
    )
    [line] = to_levels.seconds(opening.studies({"07": made}, nowhere))
    assert line == (
        "seconds of training, MLP on MNIST, rate constant, to a validation accuracy of 97.5%: 1.40 [0.50, 3.00] of "
        "inputs in [0, 1]'s (n = 5, refuted); 1.20 [0.50, 3.00] of BatchNorm's (n = 5, refuted)"
    )
    made = record(times=higher, never=((3, 3), (3, 3)))
    [line] = to_levels.seconds(opening.studies({"07": made}, nowhere))
    assert line.endswith("too few pairs of runs pass a validation accuracy of 98.0%, the lowest level, to tell a ratio")


def test_seconds_are_told_where_r_is_slowest_and_where_it_is_quickest(nowhere):
    """Of all data sets and schedules; and that at a higher level a control gets there where R does not."""
    cases = {("MNIST", "constant"): 0.9, ("MNIST", "cosine to zero"): 1.3, ("Fashion-MNIST", "constant"): 1.0}
    times, never, levels = [], [], []
    for (data, schedule), estimate in cases.items():
        for level, missing in (("97.5%", (0, 0)), ("98.2%", (5, 2))):
            n = 5 - max(missing)
            key = ("MLP", data, schedule, "equal seconds", "kappa", "BatchNorm")
            times.append((*key, estimate if n >= 3 else None, 0.5, 3.0, n, "undecided"))
            never.append(missing)
            levels.append(level)
    slowest, quickest = to_levels.seconds(
        opening.studies({"07": record(times=times, never=never, levels=levels)}, nowhere)
    )
    assert slowest == (
        "seconds of training, MLP on MNIST, rate cosine to zero, to a validation accuracy of 97.5%: 1.30 [0.50, "
        "3.00] of BatchNorm's (n = 5, undecided); to 98.2%: 0 of 5 runs with R, 3 with BatchNorm (slowest of 3 cases)"
    )
    assert quickest.startswith(
        "seconds of training, MLP on MNIST, rate constant, to a validation accuracy of 97.5%: 0.90"
    )
    assert quickest.endswith("(quickest of 3 cases)")


def test_the_size_of_the_networks_is_that_of_the_record(nowhere):
    text = opening.paragraph({"07": record(images=[0, 4000], epochs=[4, 3])}, nowhere)
    assert "MLP: 50,000 images, 4 epochs; ConvNet: 4,000 images, 3 epochs" in text


def test_of_two_studies_the_less_favourable_is_told(nowhere, monkeypatch):
    folder = nowhere / EXTENDED
    monkeypatch.setenv("DECORLIB_RESULTS", str(folder))
    worse = [(*ROWS[0][:6], -0.009, -0.010, -0.008, 10, "harmful"), (*ROWS[1][:6], 0.0, -0.001, 0.001, 10, "refuted")]
    record(worse).write()
    rows = opening.comparisons({"07": record()}, nowhere)
    assert rows["estimate"].tolist() == [-0.009, -0.005, 0.001]
    text = answers.plain({"07": record()}, nowhere)
    assert "-0.90 points [-1.00, -0.80], n = 10 (harmful); in the other study +0.40 points [0.30, 0.50], n = 5" in text
    assert text.index("* longer study") < text.index("* full run") < text.index("* least favourable")
    alone = answers.plain({}, nowhere)
    assert "-0.90 points" in alone
    assert "* longer study, " in alone
    assert "full run" not in alone


def test_without_rows_of_the_protocol_nothing_is_said(nowhere):
    assert answers.plain({}, nowhere) == ""
    assert answers.plain({"07": Record("07", question="Is there a gain?")}, nowhere) == ""


def test_readme_opens_with_the_least_favourable_row_of_the_committed_records():
    rows = opening.comparisons(load_records())
    worst = rows.loc[rows["estimate"].idxmin()]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index(opening.one(worst)) < text.index("most favourable:", text.index(opening.one(worst)))


def test_every_name_that_stands_in_a_row_is_explained_and_no_other(nowhere):
    text = answers.plain({"07": record()}, nowhere)
    said = text[text.index("The names: ") :]
    for name in ("BatchNorm", "inputs in [0, 1]", "kappa", "cosine to zero", "equal seconds"):
        assert f"*{name}*, {opening.MEANINGS[name]}" in said
    assert "demeaned, every layer" not in said
    assert "function preserved" not in said


def test_what_counts_as_fewer_seconds_is_told_where_the_record_says(nowhere):
    assert "count as fewer" not in answers.plain({"07": record()}, nowhere)
    assert "Seconds count as fewer below 0.8 of the control's; *refuted*: they are not, or by less." in answers.plain(
        {"07": record(factor=1.25)}, nowhere
    )


def test_the_names_of_the_committed_records_are_all_explained():
    rows = opening.comparisons(load_records())
    for column, more in (("control", ()), ("schedule", ("constant",)), ("budget", ())):
        assert set(rows[column]) <= {*opening.MEANINGS, *more}
    parts = {part for arm in rows["arm"] for part in arm.split(", ")}
    assert parts <= set(opening.MEANINGS)


def test_advice_tells_when_not_to_use_it_first(nowhere):
    """After the paragraph, a line for each sentence of notebooks 10 and 11; without them nothing."""
    instead, where = (Record(number, question="What then?", parameters={}) for number in ("10", "11"))
    assert opening.advice({"10": instead}, "should.md", nowhere) == ""
    instead.sentences("Do not use it when Muon is at hand.", "Use it under Adam.")
    where.sentences("Not where batches are large.", "Where they are small.")
    text = answers.plain({"07": record(), "10": instead, "11": where}, nowhere)
    assert text.startswith("**Does decorrelation help?**")
    assert text.endswith(
        "**Should you use it?** Every case is on the page [*Should I use it?*](should.md) of the report.\n\n"
        "* Do not use it when Muon is at hand. (notebook 10)\n"
        "* Not where batches are large. (notebook 11)\n* Use it under Adam. (notebook 10)\n"
        "* Where they are small. (notebook 11)"
    )


def test_advice_is_that_of_the_longer_study_where_there_is_one(nowhere, monkeypatch):
    monkeypatch.setenv("DECORLIB_RESULTS", str(nowhere / EXTENDED))
    longer, full = (Record("10", question="What then?", parameters=p) for p in ({"lengths": [1600, 8, 3, 1, 5]}, {}))
    longer.sentences("Do not use it for MLPs.", "Use it nowhere.")
    longer.write()
    full.sentences("Do not use it when Muon is at hand.", "Use it under Adam.")
    text = opening.advice({"10": full}, "should.md", nowhere)
    size = (
        "; a run takes as long as this many steps of Adam: "
        "MLP 1,600, MLP on the second data set 8, ConvNet 3, transformer 1"
    )
    assert "* Do not use it for MLPs. (notebook 10, longer study)\n" in text
    assert f"* Use it nowhere. (notebook 10, longer study{size})" in text
    assert "Muon" not in text


def on_all_digits(nowhere, monkeypatch, rows):
    """A longer study of notebook 06, written where ``nowhere`` is the clone."""
    monkeypatch.setenv("DECORLIB_RESULTS", str(nowhere / EXTENDED))
    made = Record("06", question="How does it convolve?", parameters={"controlled": [0, 2, 18, 3, 6]})
    made.table(opening.ON_ALL_TABLE, record(rows).frame("protocol"), 0.001)
    made.write()


def test_a_convnet_on_all_digits_counts_among_the_comparisons(nowhere, monkeypatch):
    """Beside, not in place of, the same comparison on fewer digits; where R gains over no control, it says so."""
    where = ("ConvNet", "MNIST", "constant", "equal epochs", "kappa")
    on_all_digits(nowhere, monkeypatch, [(*where, "BatchNorm", -0.006, -0.007, -0.005, 18, "harmful")])
    rows = opening.comparisons({"07": record([*ROWS[:3], (*where, "BatchNorm", 0.0, -1, 1, 5, "undecided")])}, nowhere)
    assert rows["estimate"].tolist() == [-0.006, -0.005, 0.0, 0.001, 0.004]
    assert rows["notebook"].tolist() == ["06", "07", "07", "07", "07"]
    text = answers.plain({"07": record(seeds=5)}, nowhere)
    assert "At equal epochs, where nothing is paid for R, it gains over 'BatchNorm' in 0 of 1. " in text
    lines = [line for line in text.splitlines() if line.startswith("* ")]
    assert lines[0] == (
        "* ConvNet on all 50,000 digits (notebook 06), 18 random seeds: of 1 comparisons 1 harmful (worse)"
    )
    assert lines[2].startswith("* least favourable: ConvNet on MNIST (all digits), rate constant, equal epochs")
    assert answers.plain({}, nowhere) == ""  # there is nothing that it could stand beside


def test_where_r_gains_all_the_same_is_told_after_the_answer(nowhere):
    map_ = Record("11", question="Where does it pay?", parameters={"margin": 0.002})
    cells = [("batch size 8", 0.02, 0.01, 0.03), ("width 32", -0.02, -0.03, -0.01), ("width 512", 0.0, -0.1, 0.1)]
    lines = [(f"{cell}, minus BatchNorm", *numbers, 10, 0.01, True) for cell, *numbers in cells]
    lines.append(("batch size 8, minus alone", 0.5, 0.4, 0.6, 10, 0.01, False))  # not the better control
    map_.table("gains", pd.DataFrame(lines, columns=["cell", "estimate", "low", "high", "n", "p", "best"]), 0.001)
    text = answers.plain({"07": record(), "11": map_}, nowhere)
    said = "it gains over the better of BatchNorm and demeaning in 1 of 3 cases and loses in 1 (notebook 11). Networks"
    assert text.index("**Does decorrelation help?** Hardly.") < text.index(said)


def test_many_comparisons_in_one_sentence():
    rows = record([*ROWS[:3], ROWS[1]]).frame("protocol")
    assert opening.in_one(rows, "Two networks") == (
        "Two networks, R minus each control, 4 comparisons (2 harmful, 1 refuted, 1 supported): least favourable MLP "
        "on MNIST, rate cosine to zero, equal seconds, 'kappa' minus BatchNorm: -0.50 points [-0.70, -0.30], n = 5 "
        "(harmful)."
    )


def test_the_cost_of_a_step_is_told_last(nowhere):
    costs = Record("08", question="What does it cost?", parameters={})
    assert opening.cost({"08": costs}) == ""
    costs.sentences("A narrow layer costs 9 plain steps.", "A wide one 2.")
    text = answers.plain({"07": record(), "08": costs}, nowhere)
    assert text.endswith("**What does it cost?** A narrow layer costs 9 plain steps. A wide one 2. (notebook 08)")


def test_sentences_stand_apart_where_safe_text_loses_its_ends(nowhere):
    text = opening.paragraph({"07": record()}, nowhere, escaped=str.strip)
    assert text == opening.paragraph({"07": record()}, nowhere)
    assert ".With" not in text


def test_equal_seconds_are_answered_before_equal_epochs(nowhere):
    free = [tuple("equal epochs" if v == "equal seconds" else v for v in row) for row in ROWS]
    free = [(*row[:-1], "supported") for row in free]
    paid = [(*row[:-1], "undecided") for row in ROWS]
    text = answers.plain({"07": record(paid + free)}, nowhere)
    assert text.startswith(
        "**Does decorrelation help?** No gain of more than 0.2 percentage points of test accuracy was shown at equal "
        "seconds. At equal epochs, where nothing is paid for R, it gains over 'BatchNorm' in 2 of 2; "
        "over 'inputs in [0, 1]' in 1 of 1. "
    )


def test_a_ratio_of_two_pairs_is_not_told():
    numbers = {"estimate": 0.9, "low": 1e-9, "high": 1e9, "n": 2, "of": 5, "arm never": 0, "control never": 3}
    row = pd.Series(numbers | {"control": "C", "outcome": "undecided"}, dtype=object)
    assert to_levels.ratio(row) == "over C not known (of 5 runs each 5 get there with R, 2 with C)"
