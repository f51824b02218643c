"""arms: grids, tables that keep diverged runs, and a choice of rates that is the same for all arms."""

import math

import pandas as pd
import pytest

from decorlib.study.experiments import arms, side_by_side
from decorlib.study.experiments.experiment import Experiment

BASE = Experiment(train_size=128, epochs=1, hidden=(8,))


def record(status="finished", **final):
    return {
        "status": status,
        "diverged_at": None if status == "finished" else 2,
        "final": final if status == "finished" else {},
        "epochs": [{"epoch": 1, "loss": 0.5}],
    }


@pytest.fixture
def fake(monkeypatch):
    """A sweep whose results are a function of the specification: no training."""
    asked = []

    def install(result):
        def sweep(specs, **options):
            asked.extend(specs)
            return [result(spec) for spec in specs]

        monkeypatch.setattr(side_by_side, "sweep", sweep)
        return asked

    return install


class TestGrid:
    def test_every_combination_last_fastest(self):
        specs = arms.grid(BASE, lr=[0.1, 0.2], seed=range(3))
        assert [(s.lr, s.seed) for s in specs] == [(lr, s) for lr in (0.1, 0.2) for s in range(3)]
        assert all(s.but(lr=BASE.lr, seed=BASE.seed) == BASE for s in specs)

    def test_unknown_field_is_named(self):
        with pytest.raises(ValueError, match="learning_rate: no such field"):
            arms.grid(BASE, learning_rate=[1])

    def test_empty_list_is_named(self):
        with pytest.raises(ValueError, match="no value is given for lr"):
            arms.grid(BASE, lr=[], seed=range(2))


class TestFrame:
    def test_differing_fields_options_and_finals(self):
        specs = [
            BASE.but(seed=s, rule_options=(("variance", 1.0), ("eta", eta)), layer_options=options)
            for s in (0, 1)
            for eta, options in ((1.0, ()), (2.0, (("center", "batch"),)))
        ]
        table = arms.frame(specs, [record(test_accuracy=0.1 * i, batches=3, epoch=1) for i in range(4)])
        assert list(table) == ["seed", "eta", "center", "status", "diverged_at", "test_accuracy"]
        assert table["eta"].tolist() == [1.0, 2.0, 1.0, 2.0]
        assert table["center"].tolist() == ["none", "batch"] * 2
        assert len(table.groupby("center")) == 2

    def test_diverged_runs_stay_with_missing_values(self):
        table = arms.frame([BASE, BASE.but(seed=1)], [record("diverged"), record(test_loss=2.0)], arm=["a", "b"])
        assert table["arm"].tolist() == ["a", "b"]
        assert math.isnan(table["test_loss"][0])
        assert table["test_loss"][1] == 2.0
        assert table["diverged_at"][0] == 2
        assert table["status"][0] == "diverged"
        assert table["test_loss"].dtype == float

    def test_option_with_the_name_of_a_field_says_whose_it_is(self):
        specs = [BASE.but(rule_options=(("optimizer", k),)) for k in ("x", "y")]
        assert "rule.optimizer" in arms.frame(specs, [record()] * 2)

    def test_one_name_per_specification(self):
        with pytest.raises(ValueError, match="1 names of arms for 2"):
            arms.frame([BASE, BASE], [record()] * 2, arm=["a"])

    def test_curves_have_a_row_per_epoch(self):
        table = arms.curves([BASE, BASE.but(seed=1)], [record(), record()], arm=["a", "a"])
        assert table[["arm", "seed", "epoch", "loss"]].values.tolist() == [["a", 0, 1, 0.5], ["a", 1, 1, 0.5]]


class TestCompare:
    def test_paired_by_seed_in_the_order_of_arms(self, fake):
        fake(lambda s: record(test_accuracy=s.lr + s.seed))
        table, records = arms.compare({"b": BASE.but(lr=0.5), "a": BASE.but(lr=0.25)}, range(3))
        wide = arms.by_seed(table, "test_accuracy")
        assert list(wide) == ["b", "a"]
        assert list(wide.index) == [0, 1, 2]
        assert len(records) == 6
        assert (wide["b"] - wide["a"]).tolist() == [0.25] * 3

    def test_one_seed_still_has_its_column(self, fake):
        fake(lambda s: record(test_accuracy=1.0))
        table, _ = arms.compare({"a": BASE, "b": BASE.but(lr=0.5)}, [7])
        assert table["seed"].tolist() == [7, 7]

    def test_missing_column_is_named(self):
        with pytest.raises(ValueError, match="no column arm, loss"):
            arms.by_seed(pd.DataFrame({"seed": [0]}), "loss")


class TestTune:
    def test_best_mean_over_seeds_on_validation_then_back_to_test(self, fake):
        asked = fake(lambda s: record(test_loss=abs(s.lr - {"notebook": 0.2, None: 0.3}[s.rule]) + 0.01 * s.seed))
        pair = {"a": BASE.but(seed=9), "b": BASE.but(rule=None)}
        best, tries = arms.tune(pair, {"lr": [0.1, 0.2, 0.3, 0.4]}, range(2), quiet=True)
        assert {name: (s.lr, s.split, s.seed) for name, s in best.items()} == {
            "a": (0.2, "test", 9),
            "b": (0.3, "test", 0),
        }
        assert {s.split for s in asked} == {"validation"}
        assert len(asked) == 16
        assert tries.groupby("arm").size().tolist() == [4, 4]
        assert tries[tries["chosen"]]["lr"].tolist() == [0.2, 0.3]
        row = tries[tries["chosen"]].iloc[0]
        assert (row["test_loss"], row["lowest"], row["highest"]) == pytest.approx((0.005, 0, 0.01))

    def test_accuracy_is_better_higher(self, fake):
        fake(lambda s: record(test_accuracy=s.lr))
        best, _ = arms.tune({"a": BASE}, {"lr": [0.1, 0.3, 0.2]}, [0], metric="test_accuracy", quiet=True)
        assert best["a"].lr == 0.3

    def test_diverged_is_worst_even_for_one_seed(self, fake):
        fake(lambda s: record("diverged") if s.lr == 0.2 and s.seed == 1 else record(test_loss=1 - s.lr))
        best, tries = arms.tune({"a": BASE}, {"lr": [0.1, 0.2]}, range(2), quiet=True)
        assert best["a"].lr == 0.1
        assert tries["diverged"].tolist() == [0, 1]
        assert math.isnan(tries["test_loss"][1])

    def test_all_diverged_takes_the_smallest_rate(self, fake):
        fake(lambda s: record("diverged"))
        best, tries = arms.tune({"a": BASE}, {"lr": [0.2, 0.1]}, [0], quiet=True)
        assert best["a"].lr == 0.1
        assert tries["diverged"].tolist() == [1, 1]

    def test_ties_go_to_the_smaller_rate(self, fake):
        fake(lambda s: record(test_loss=1.0))
        best, _ = arms.tune({"a": BASE}, {"lr": [0.3, 0.1, 0.2], "decor_lr": [1e-3, 1e-4]}, [0], quiet=True)
        assert (best["a"].lr, best["a"].decor_lr) == (0.1, 1e-4)

    def test_edge_is_printed(self, fake, capsys):
        fake(lambda s: record(test_loss=s.lr))
        arms.tune({"a": BASE}, {"lr": [0.1, 0.2, 0.3], "decor_lr": [1e-3]}, [0])
        assert "a: the best try is on the edge of the grid: lr = 0.1 is the smallest of 3" in capsys.readouterr().out

    def test_inner_best_is_silent(self, fake, capsys):
        fake(lambda s: record(test_loss=abs(s.lr - 0.2)))
        arms.tune({"a": BASE}, {"lr": [0.1, 0.2, 0.3]}, [0])
        assert capsys.readouterr().out == ""

    def test_rates_by_arm_with_equal_budget(self, fake):
        asked = fake(lambda s: record(test_loss=s.lr))
        rates = {"plain": {"lr": [0.1, 0.2, 0.3, 0.4]}, "decor": {"lr": [0.1, 0.2], "decor_lr": [1e-3, 1e-4]}}
        best, _ = arms.tune({"plain": BASE.but(rule=None), "decor": BASE}, rates, [0], quiet=True)
        assert best["decor"].decor_lr == 1e-4
        assert len(asked) == 8

    def test_unequal_budget_is_refused(self, fake):
        asked = fake(lambda s: record(test_loss=1.0))
        with pytest.raises(ValueError, match=r"unequal numbers of tries, \{'a': 2, 'b': 1\}"):
            arms.tune({"a": BASE, "b": BASE}, {"a": {"lr": [0.1, 0.2]}, "b": {"lr": [0.1]}}, [0])
        assert asked == []

    def test_unknown_metric_is_named(self, fake):
        fake(lambda s: record(test_loss=1.0))
        with pytest.raises(ValueError, match="do not measure 'f1'; they measure test_loss"):
            arms.tune({"a": BASE}, {"lr": [0.1]}, [0], metric="f1")

    def test_real_runs_of_one_seed_agree_between_arms_that_are_equal(self, tmp_path):
        best, tries = arms.tune(
            {"a": BASE, "b": BASE}, {"lr": [1e-4, 1e-3]}, [0], engine="serial", cache=tmp_path, quiet=True
        )
        assert best["a"] == best["b"]
        a, b = (tries[tries["arm"] == name]["test_loss"].tolist() for name in "ab")
        assert a == b
        assert a[0] != a[1]


class TestEffects:
    WIDE = pd.DataFrame({"a": [0.5, 0.7, 0.6], "b": [0.4, 0.5, 0.6], "c": [0.1, None, 0.1]})

    def test_difference_within_seeds(self):
        found = arms.effects(self.WIDE, {"a over b": ("a", "b")})
        assert found["a over b"].estimate == pytest.approx(0.1)
        assert found["a over b"].n == 3

    def test_a_diverged_arm_is_left_out(self):
        assert arms.effects(self.WIDE, {"x": ("a", "c")}) == {}

    def test_one_seed_has_no_interval(self):
        assert arms.effects(self.WIDE[:1], {"x": ("a", "b")}) == {}

    def test_table_corrects_over_its_rows(self):
        wide = pd.DataFrame({"a": [0.5, 0.7, 0.6], "b": [0.4, 0.5, 0.6], "d": [0.2, 0.2, 0.2]})
        table = arms.effect_table(arms.effects(wide, {"ab": ("a", "b"), "ad": ("a", "d")}))
        assert table.loc["ad", "p, Holm"] == pytest.approx(2 * table.loc["ad", "p"])
        assert table.loc["ab", "p, Holm"] == pytest.approx(table.loc["ab", "p"])

    def test_arm_table_counts_divergence_and_shows_rates(self, fake):
        fake(lambda s: record("diverged") if s.seed == 1 and s.lr == 0.5 else record(test_accuracy=s.lr))
        pair = {"a": BASE.but(lr=0.5), "plain": BASE.but(lr=0.25, rule=None)}
        found = arms.arm_table(arms.compare(pair, range(2))[0], "test_accuracy", pair)
        assert found.loc["a", ["rate of weights", "mean", "diverged"]].tolist() == [0.5, 0.5, 1]
        assert pd.isna(found.loc["plain", "rate of R"])


def test_spread_covers_the_range_and_a_little_more():
    rates = arms.spread([1e-3, 4e-3], 4)
    assert rates[0] == pytest.approx(1e-3 / 2**0.5)
    assert rates[-1] == pytest.approx(4e-3 * 2**0.5)
    assert rates[1] / rates[0] == pytest.approx(rates[3] / rates[2])
    assert arms.spread([1e-3, 4e-3], 5, beyond=2) == pytest.approx([0.5e-3, 1e-3, 2e-3, 4e-3, 8e-3])
    with pytest.raises(ValueError, match="positive rates"):
        arms.spread([0.0], 3)


def test_the_best_try_is_the_best_on_validation_among_those_named():
    tries = pd.DataFrame({"arm": list("aab"), "chosen": [True, False, True], "test_accuracy": [0.8, 0.99, 0.9]})
    assert arms.best_try(tries, ["a", "b"], "test_accuracy") == "b"
    assert arms.best_try(tries, ["a"], "test_accuracy") == "a"
    equal = tries.assign(test_accuracy=0.9)
    assert [arms.best_try(equal, named, "test_accuracy") for named in (["a", "b"], ["b", "a"])] == ["a", "b"]
    with pytest.raises(ValueError, match="none of c"):
        arms.best_try(tries, ["c"], "test_accuracy")


def test_groups_compared_at_once_are_those_compared_one_by_one(monkeypatch):
    asked = []

    def sweep(specs, **options):
        asked.append(specs)
        return [{"status": "finished", "diverged_at": None, "final": {"loss": s.lr + s.seed}} for s in specs]

    monkeypatch.setattr(side_by_side, "sweep", sweep)
    groups = {"few": ({"a": BASE, "b": BASE.but(lr=0.5)}, range(2)), ("many", 1): ({"b": BASE.but(epochs=3)}, range(3))}
    together = arms.compare_at_once(groups)
    assert list(together) == list(groups)
    assert [len(specs) for specs in asked] == [2 * 2 + 3]
    for key, (these, seeds) in groups.items():
        table, records = arms.compare(these, seeds)
        pd.testing.assert_frame_equal(together[key][0], table)
        assert together[key][1] == records


def test_a_table_is_shown_with_small_rates_and_whole_counts():
    rows = {
        "a": {
            "rate of weights": 1e-3,
            "rate of R": 1e-6,
            "mean": 0.912345,
            "lowest": 0.9,
            "highest": 1.0,
            "diverged": 0,
        },
        "b": {"rate of weights": 2e-3, "rate of R": None, "mean": float("nan"), "lowest": None, "highest": None},
    }
    told = arms.shown(pd.DataFrame(rows | {"b": rows["b"] | {"diverged": 2}}).T.rename_axis("arm"))
    assert told.loc["a"].tolist() == ["0.001", "1e-06", "0.9123", "0.9000", "1.0000", "0"]
    assert told.loc["b"].tolist() == ["0.002", "–", "–", "–", "–", "2"]
