import math

import pandas as pd
import pytest
import torch

from decorlib import RULES
from decorlib.rules.catalogue import ALIASES
from decorlib.study.experiments import gaussians
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.rules import comparison, tracking
from decorlib.study.questions.rules.tracking import Edge, Track, track


def test_every_rule_of_the_library_is_an_arm():
    assert {ALIASES.get(arm.rule, arm.rule) for arm in comparison.ARMS.values()} == set(RULES)
    assert {dict(a.options)["kind"] for a in comparison.ARMS.values() if a.exact} == {"zca", "pca", "cholesky"}


def test_following_a_gaussian_gives_the_steps_of_the_rule_alone():
    spec = Track("kappa", (("kappa", 0.3),), lr=0.02, steps=20, points=3, features=5, batch_size=7)
    record = track(spec)
    S, generator = gaussians.covariance(5, 30.0, spec.seed), torch.Generator().manual_seed(spec.seed)
    R = torch.eye(5, dtype=torch.float64)
    for _ in range(20):
        R = gaussians.step(comparison.make_rule("kappa", kappa=0.3), R, gaussians.draws(S, 7, generator), 0.02)
    expected = gaussians.whiteness(R @ S @ R.T)
    assert record["status"] == "finished"
    assert record["final"]["cosine"] == pytest.approx(expected["cosine"], rel=1e-10)
    assert record["final"]["condition"] == pytest.approx(expected["condition"], rel=1e-10)
    assert record["curve"][0]["cosine"] == pytest.approx(gaussians.whiteness(S)["cosine"])
    assert [row["step"] for row in record["curve"]] == [0, *sorted(tracking.measured_steps(20, 3))]


def test_following_digits_starts_where_the_data_are():
    raw, demeaned = (track(Track("plain", data="digits", demean_inputs=d, lr=1e-5, steps=2)) for d in (False, True))
    assert raw["curve"][0]["cosine"] > 0.6 > 0.2 > demeaned["curve"][0]["cosine"]
    assert raw["curve"][0]["mean"] > 1
    assert demeaned["curve"][0]["mean"] < 1e-5
    assert raw["final"]["cosine"] < raw["curve"][0]["cosine"]
    assert raw["final"]["condition"] is None  # 1,000 digits have constant pixels


def test_a_rate_beyond_the_edge_is_recorded_as_diverged():
    record = track(Track("whitening", lr=50.0, steps=100))
    assert record["status"] == "diverged"
    assert 1 <= record["diverged_at"] <= 100
    assert record["final"] == {}
    assert not tracking.stable(record)
    assert not tracking.useful(record)


def test_refused_specifications():
    with pytest.raises(ValueError, match="'cifar'"):
        Track(data="cifar")
    with pytest.raises(ValueError, match="steps is 0"):
        Track(steps=0)


def test_an_edge_has_prediction_and_measurement():
    found = tracking.edge(Edge("whitening", features=8, condition=100.0, steps=100, seed=3))
    assert found["measured"] == pytest.approx(min(1, found["predicted"]), rel=0.05)


def fake(lr, cosine, variance=1.0, status="finished"):
    curve = [{"step": 0, "cosine": 0.8, "largest_variance": 2.0}, {"step": 5, "cosine": 0.6, "largest_variance": 2.0}]
    final = {} if status == "diverged" else {"step": 10, "cosine": cosine, "largest_variance": variance}
    return {"status": status, "curve": [*curve, *([final] if final else [])], "final": final}


def test_ranges_from_records_made_by_hand():
    rates, shrinkages = [1e-4, 1e-3, 1e-2, 1e-1], [0.1, 0.2, 0.3, 0.4]
    named = comparison.tries(Track(), rates, shrinkages)
    outcomes = [fake(0, 0.7), fake(0, 0.3), fake(0, 0.35), fake(0, 0, status="diverged")]
    records = [outcomes[i % 4] for i in range(len(named))]
    table = comparison.ranges(named, records)
    assert (table["tries"] == 4).all()  # the same budget for every arm
    row = table.loc["kappa 0.5"]
    assert (row["stable"], row["useful"], row["best"], row["left"]) == (3, 2, 1, 0.3)
    assert row["decades"] == pytest.approx(1.0)  # from 1e-3, useful, to 1e-2, stable
    assert math.isnan(table.loc["exact ZCA", "decades"])
    best = comparison.best_tries(named, table)
    assert best["kappa 0.5"].lr == 1e-3
    assert dict(best["exact PCA"].rule_options)["shrinkage"] == 0.2
    assert comparison.ranges(named, [fake(0, 0.3, variance=21.0)] * len(named))["stable"].sum() == 0  # blown up
    with pytest.raises(ValueError, match="as many tries"):
        comparison.tries(Track(), rates, [0.1])


def test_what_it_costs_to_reach_a_target():
    named = [("2024 rule", Track(seed=1)), ("whitening", Track(seed=1))]
    table = comparison.curves(
        named, [fake(0, 0.3), fake(0, 0.7)], {"GFLOP": {"2024 rule": (1.0, 2.0), "whitening": (1.0, 3.0)}}
    )
    assert table["GFLOP"].tolist() == [0, 10, 20, 0, 15, 30]
    found = comparison.reached(table, 0.6, ["step", "GFLOP"]).set_index("arm")
    assert (found.loc["2024 rule", "step"], found.loc["2024 rule", "GFLOP"]) == (5, 10)
    never = comparison.reached(table, 0.5, ["step"]).set_index("arm")
    assert never.loc["2024 rule", "step"] == 10
    assert math.isnan(never.loc["whitening", "step"])


def test_finals_leave_diverged_runs_in_the_table():
    named = [("2024 rule", Track(seed=1)), ("2024 rule", Track(seed=2))]
    table = comparison.finals(named, [fake(0, 0.3), fake(0, 0, status="diverged")])
    assert table["status"].tolist() == ["finished", "diverged"]
    assert table["cosine"].notna().tolist() == [True, False]


def test_network_tries_are_fractions_of_the_largest_stable_rate():
    largest = {name: 10.0 for name, arm in comparison.ARMS.items() if not arm.exact}
    arms, rates = comparison.network_tries(Experiment(), largest, [0.1, 0.01], [0.2, 0.4])
    assert rates["whitening"] == {"decor_lr": [1.0, 0.1]}
    assert [dict(o)["shrinkage"] for o in rates["exact ZCA"]["rule_options"]] == [0.2, 0.4]
    assert dict(arms["exact ZCA"].layer_options) == {"update_every": comparison.REFRESH}
    assert arms["whitening"].layer_options == ()


def test_comparisons_are_paired_and_corrected():
    wide = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.1, 2.1, 3.2], "c": [1.0, 2.0, None]})
    table = comparison.with_holm(comparison.compared(wide, "a", "raw")).set_index("arm")
    assert table.loc["b", "estimate"] == pytest.approx(0.4 / 3)
    assert table.loc["b", "Holm p"] == pytest.approx(table.loc["b", "p"])  # the only one with a test
    assert table.loc["c", "n"] == 0
    assert math.isnan(table.loc["c", "Holm p"])


@pytest.mark.parametrize("name", comparison.ARMS)
def test_an_update_without_a_gradient_stops_every_rule_and_nothing_else_does(name):
    assert comparison.stands_still(comparison.ARMS[name], unmoved=True)
    assert not comparison.stands_still(comparison.ARMS[name], unmoved=False)


def test_recommendation_never_takes_what_is_not_useful_everywhere():
    losses = {"2024 rule": 0.1, "whitening": 0.2, "kappa 0.5": 0.3, "exact ZCA": 0.0}
    tuning = pd.DataFrame([{"arm": n, "chosen": True, "test_loss": l} for n, l in losses.items()])
    everywhere = pd.DataFrame({"useful": [1, 1, 1, 1]}, index=list(losses)).reindex(comparison.ARMS, fill_value=0)
    found = comparison.recommend({"a": tuning, "b": tuning}, {"a": everywhere, "b": everywhere}, "test_loss")
    assert found == "whitening"
    elsewhere = everywhere.copy()
    elsewhere.loc["whitening", "useful"] = 0
    assert comparison.recommend({"a": tuning}, {"a": everywhere, "b": elsewhere}, "test_loss") == "kappa 0.5"
    with pytest.raises(ValueError, match="no rule is useful"):
        comparison.recommend({"a": tuning}, {"a": everywhere * 0}, "test_loss")


def test_run_all_keeps_settings_and_order(monkeypatch):
    monkeypatch.setattr(comparison, "sweep", lambda specs, function, **_: [{"seed": spec.seed} for spec in specs])
    best = {"2024 rule": Track("notebook"), "whitening": Track("whitening")}
    named = {"a": comparison.over_seeds(best, [1, 2]), "b": comparison.over_seeds(best, [3])}
    found = comparison.run_all(named)
    assert {setting: [r["seed"] for r in records] for setting, records in found.items()} == {
        "a": [1, 2, 1, 2],
        "b": [3, 3],
    }
    assert [name for name, _ in named["a"]] == ["2024 rule", "2024 rule", "whitening", "whitening"]


def test_spent_counts_the_steps_that_learn():
    assert comparison.spent(comparison.ARMS["whitening"], 7, 1.0, 5.0) == 35
    assert comparison.spent(comparison.ARMS["exact ZCA"], 1, 1.0, 5.0) == 5
    assert comparison.spent(comparison.ARMS["exact ZCA"], 11, 1.0, 5.0) == 2 * 5 + 9


def test_costs_of_a_step_for_every_arm():
    work, seconds = comparison.step_flops(8, 12), comparison.step_seconds(2, 8, 12)
    assert set(work) == set(seconds) == set(comparison.ARMS)
    assert all(idle < learning for idle, learning in work.values())
    assert len({idle for idle, _ in seconds.values()}) == 1
    assert all(learning > 0 for _, learning in seconds.values())


def test_work_table_is_the_counts():
    table = comparison.work_table(64, (784, 100, 10))
    assert table.loc["2024 rule", "transform"] == pytest.approx(2 * 64 * 784**2 / 1e9)
    assert (table["R alone"] - table["transform"] - table["learning"]).abs().max() < 1e-12
    assert table.loc["Foldiak", "learning"] > 10 * table.loc["kappa 0.5", "learning"]
