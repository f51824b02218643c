"""One hypothesis at every scale, by a sweep whose results are a function of the specification: no training."""

import math

import pandas as pd
import pytest

from decorlib.study.evidence.agreement import CHOSEN
from decorlib.study.evidence.figures import use_style
from decorlib.study.evidence.records import Record
from decorlib.study.evidence.stats import paired, simultaneous
from decorlib.study.evidence.verdicts import Verdict
from decorlib.study.experiments import scales, side_by_side
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.scales import BASES, Pair, Scale

RATES = {"lr": [1e-3, 2e-3, 4e-3], "decor_lr": [1e-5, 1e-4, 1e-3]}
BEST = {"lr": 2e-3, "decor_lr": 1e-4}  # of every arm that does not say otherwise
GAIN = {1000: 0.0, 10_000: 0.01, 60_000: 0.02}  # of the treated arm, by digits


def wobble(seed: int) -> float:
    return 1e-4 * math.sin(7 * seed)


def result(spec: Experiment, best=BEST, lost=()) -> dict:
    """Loss grows with the distance from the best rates; accuracy by what is treated, and by chance."""
    if (spec.pixels, spec.seed) in lost:
        return {"status": "diverged", "diverged_at": 1, "final": {}, "epochs": []}
    loss = sum(abs(math.log(getattr(spec, field) / rate)) for field, rate in best.items())
    treated = spec.pixels == "lively"
    accuracy = 0.9 + treated * (GAIN[spec.train_size] + wobble(spec.seed))
    final = {"test_loss": loss + 0.1, "test_accuracy": accuracy}
    return {"status": "finished", "diverged_at": None, "final": final, "epochs": [final | {"epoch": 1}]}


@pytest.fixture
def fake(monkeypatch):
    """Install a result; what was asked for is listed."""
    asked = []

    def install(function=result):
        def sweep(specs, **options):
            asked.extend(specs)
            return [function(spec) for spec in specs]

        monkeypatch.setattr(side_by_side, "sweep", sweep)
        return asked

    return install


def found(scale=((1000, 10, 4), (10_000, 2, 5)), treated=None, **options):
    options = {"tuning_seeds": [1000, 1001], "margin": 0.002} | options
    pairs = scales.by_rule({"pixels": "lively"} if treated is None else treated)
    return scales.compare(pairs, [Scale(*one) for one in scale], RATES, **options)


class TestCompare:
    def test_a_row_for_every_cell_with_the_paired_effect(self, fake):
        fake()
        table = found().table
        assert list(table.index) == [
            scales.name(digits, rule) for digits in (1000, 10_000) for rule in ("2024 rule", "kappa")
        ]
        for digits, n in ((1000, 4), (10_000, 5)):
            row, chance = table.loc[f"{digits:,} digits, kappa"], [wobble(seed) for seed in range(n)]
            expected = paired([GAIN[digits] + c for c in chance], [0.0] * n)
            together = simultaneous(expected, 4)
            assert row["estimate"] == pytest.approx(expected.estimate)
            assert [row["low"], row["high"], row["p"]] == pytest.approx([expected.low, expected.high, expected.p_value])
            assert [row["low, all"], row["high, all"]] == pytest.approx([together.low, together.high])
            assert (row["digits"], row["with"], row["n"], row["seeds"]) == (digits, "kappa", n, n)
            assert row["diverged"] == "none"
        assert table["outcome"].tolist() == ["refuted", "refuted", "supported", "supported"]

    def test_the_outcome_is_that_of_all_intervals_together(self, fake, monkeypatch):
        """Beyond the margin by itself, not together with three others."""
        fake()
        chance = [wobble(seed) for seed in range(5)]
        by_itself = paired([GAIN[10_000] + c for c in chance], [0.0] * 5)
        margin = (by_itself.low + simultaneous(by_itself, 4).low) / 2
        rows = found(margin=margin).table
        assert rows.loc["10,000 digits, kappa", "low"] > margin
        assert rows.loc["10,000 digits, kappa", "outcome"] == "undecided"
        assert rows.loc["10,000 digits, kappa", "n to decide"] > 5

    def test_a_loss_is_harmful(self, fake):
        fake(lambda spec: result(spec.but(pixels="all" if spec.pixels == "lively" else "lively")))
        assert found().table["outcome"].tolist() == ["refuted", "refuted", "harmful", "harmful"]

    def test_arms_of_a_cell_share_digits_epochs_and_seeds_and_are_tried_as_often(self, fake):
        asked = fake()
        found()
        for digits, epochs in ((1000, 10), (10_000, 2)):
            here = [spec for spec in asked if spec.train_size == digits]
            assert {spec.epochs for spec in here} == {epochs}
            for rule in ("notebook", "kappa"):
                tried = [s for s in here if s.rule == rule and s.split == "validation"]
                assert {s.seed for s in tried} == {1000, 1001}
                counts = [sum(s.pixels == pixels for s in tried) for pixels in ("all", "lively")]
                assert counts == [18, 18]
                compared = [s for s in here if s.rule == rule and s.split == "test"]
                seeds = [[s.seed for s in compared if s.pixels == pixels] for pixels in ("all", "lively")]
                assert seeds[0] == seeds[1] == list(range(4 if digits == 1000 else 5))
                assert {(s.lr, s.decor_lr) for s in compared} == {(2e-3, 1e-4)}

    def test_controls_of_different_questions_are_the_same_runs(self, fake):
        """So that five notebooks share them in the cache."""
        asked = fake()
        found()
        mine = {spec for spec in asked if spec.pixels == "all"}
        asked.clear()
        found(treated={"scaling": "raw"})
        assert mine == {spec for spec in asked if spec.scaling == "notebook"}

    def test_a_diverged_run_is_said_and_decides_nothing(self, fake):
        fake(lambda spec: result(spec, lost=[("lively", 2)]))
        row = found().table.loc["10,000 digits, kappa"]
        assert row["n"] == 4
        assert row["seeds"] == 5
        assert row["diverged"] == "1 of 5 treated"
        assert row["outcome"] == "undecided"
        assert row["estimate"] == pytest.approx(0.01 + sum(wobble(s) for s in (0, 1, 3, 4)) / 4)

    def test_where_nothing_is_left_there_is_no_interval(self, fake):
        fake(lambda spec: result(spec, lost=[("lively", seed) for seed in range(5)]))
        all_lost = found()
        row = all_lost.table.loc["10,000 digits, kappa"]
        assert math.isnan(row["estimate"])
        assert row["outcome"] == "undecided"
        with pytest.raises(ValueError, match="5 of 5 treated, which leaves no interval"):
            all_lost.interval("10,000 digits, kappa")

    def test_interval_of_a_cell(self, fake):
        fake()
        both = found()
        row, interval = both.table.loc["1,000 digits, kappa"], both.interval("1,000 digits, kappa")
        assert [interval.estimate, interval.low, interval.high] == pytest.approx(
            [row["estimate"], row["low"], row["high"]]
        )
        with pytest.raises(ValueError, match="no cell '60,000 digits, kappa'"):
            both.interval("60,000 digits, kappa")

    def test_what_is_shown_is_in_points(self, fake):
        fake()
        both = found()
        shown = both.shown.loc["10,000 digits, kappa"]
        assert shown["estimate"] == round(100 * both.table.loc["10,000 digits, kappa", "estimate"], 2)
        assert shown["rates of treated"] == "lr 0.002, decor_lr 0.0001"
        assert "treated" not in both.shown

    def test_of_several_alternatives_the_best_by_validation_is_compared(self, fake):
        alternatives = {"Adam": {"decor_optimizer": "adam"}, "cosine": {"decor_schedule": "cosine"}}

        def worse(spec):
            outcome = result(spec)
            outcome["final"]["test_loss"] += spec.decor_schedule is None and spec.decor_optimizer == "adam"
            return outcome

        asked = fake(worse)
        both = found(treated=alternatives)
        assert set(both.table["treated"]) == set(both.shown["treated"]) == {"cosine"}
        compared = [spec for spec in asked if spec.split == "test"]
        assert "adam" not in {spec.decor_optimizer for spec in compared}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tuning_seeds": [3]}, r"tuning_seeds = \[3\] has \[3\]"),
            ({"scale": ((1000, 1, 2), (1000, 2, 2))}, "would be one row"),
            ({"scale": ()}, "nothing to compare"),
            ({"moves": -1}, "moves = -1 must be at least 0"),
        ],
    )
    def test_what_cannot_be_compared_is_refused_before_anything_runs(self, fake, options, message):
        asked = fake()
        with pytest.raises(ValueError, match=message):
            found(**options)
        assert not asked


def test_a_list_of_parameters_becomes_scales():
    assert Scale.listed([1000, 10, 8, 10_000, 2, 6]) == [Scale(1000, 10, 8), Scale(10_000, 2, 6)]
    for wrong in ([1000, 10], []):
        with pytest.raises(ValueError, match="digits, epochs and seeds of each scale"):
            Scale.listed(wrong)
    with pytest.raises(ValueError, match="seeds = 1 must be at least 2"):
        Scale.listed([1000, 10, 1])


def test_grids_are_evenly_spaced_and_share_their_middle():
    one, three = scales.grid(1), scales.grid(3)
    for field, values in three.items():
        assert one[field] == values[1:2]
        assert values[1] / values[0] == pytest.approx(values[2] / values[1], rel=0.12)
    with pytest.raises(ValueError, match="tries = 2 must be 1 or 3"):
        scales.grid(2)


def test_the_row_of_the_answer_table_is_the_largest_scale_with_the_first_pair(fake):
    fake()
    both = found()
    assert both.primary == "10,000 digits, 2024 rule"
    assert both.about == {
        "scale": "10,000 digits, 784-100-10, 2 epochs",
        "schedule": "constant",
        "left_out": 0,
        "better": "higher",
        "margin": 0.002,
        "unit": "test accuracy",
    }
    verdict = Verdict.from_interval(
        both.interval(both.primary), hypothesis="h", claim="it helps", criterion=both.decides, **both.about
    )
    assert verdict.outcome == "supported"
    assert found(scale=((60_000, 1, 3),)).about["scale"] == "60,000 digits, 784-100-10, 1 epoch"


def test_the_table_is_kept_in_a_record_and_compared(fake):
    """An estimate that moves by half the margin is another result, a tenth of it is not."""
    fake()
    both = found()
    record = Record("01", question="Does it help?")
    record.table("at every scale", both.table, **both.agrees)
    agrees = record.tables["at every scale"]["agrees"]
    assert agrees["estimate"] == {"within": 0.0005}
    assert agrees["n to decide"] is None
    assert agrees["n"] == CHOSEN


def test_pairs_by_rule_take_changes_and_functions():
    changes, functions = scales.by_rule({"scaling": "raw"}), scales.by_rule(lambda spec: spec.but(scaling="raw"))
    assert changes == functions
    assert changes["kappa"] == Pair(BASES["kappa"], {"treated": BASES["kappa"].but(scaling="raw")})
    moved = scales.by_rule({"scaling": "raw"}, control={"demean_inputs": True})
    assert moved["2024 rule"].control == BASES["2024 rule"].but(demean_inputs=True)


def test_the_figure_shows_every_seed(fake):
    fake()
    use_style()
    both = found()
    fig, alt = both.draw("dropped minus not")
    ax = fig.axes[0]
    dots = [len(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"]
    assert dots == [4, 4, 5, 5]
    for cell, row in both.table.iterrows():
        assert f"{cell} {100 * row['estimate']:+.2f} ({row['outcome']})" in alt


def test_a_whole_comparison_of_small_networks(tmp_path):
    """No fake: the treated arm equals its control, so that every difference is exactly zero."""
    tiny = {"hidden": (8,)}
    pairs = {"kappa": Pair(BASES["kappa"].but(**tiny), {"treated": BASES["kappa"].but(**tiny)})}
    both = scales.compare(
        pairs,
        [Scale(256, 1, 2)],
        {"lr": [1e-3], "decor_lr": [1e-4]},
        tuning_seeds=[9],
        margin=0.002,
        engine="serial",
        cache=tmp_path,
    )
    assert both.differences == {"256 digits, kappa": [0.0, 0.0]}
    assert both.table["outcome"].tolist() == ["refuted"]
    assert isinstance(both.table, pd.DataFrame)
