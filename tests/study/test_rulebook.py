import math

import pandas as pd
import pytest
import torch

from decorlib import RULES
from decorlib.study import following, gaussians, rulebook
from decorlib.study.experiments import Experiment
from decorlib.study.following import Edge, Follow, follow


def test_every_rule_of_the_library_is_an_arm():
    assert {arm.rule for arm in rulebook.ARMS.values()} == set(RULES)
    assert {dict(a.options)["kind"] for a in rulebook.ARMS.values() if a.exact} == {"zca", "pca", "cholesky"}


def test_following_a_gaussian_gives_the_steps_of_the_rule_alone():
    spec = Follow("kappa", (("kappa", 0.3),), lr=0.02, steps=20, points=3, features=5, batch_size=7)
    record = follow(spec)
    S, generator = gaussians.covariance(5, 30.0, spec.seed), torch.Generator().manual_seed(spec.seed)
    R = torch.eye(5, dtype=torch.float64)
    for _ in range(20):
        R = gaussians.step(rulebook.make_rule("kappa", kappa=0.3), R, gaussians.draws(S, 7, generator), 0.02)
    expected = gaussians.yardsticks(R @ S @ R.T)
    assert record["status"] == "finished"
    assert record["final"]["cosine"] == pytest.approx(expected["cosine"], rel=1e-10)
    assert record["final"]["condition"] == pytest.approx(expected["condition"], rel=1e-10)
    assert record["curve"][0]["cosine"] == pytest.approx(gaussians.yardsticks(S)["cosine"])
    assert [row["step"] for row in record["curve"]] == [0, *sorted(following.measured_steps(20, 3))]


def test_following_digits_starts_where_the_data_are():
    raw, demeaned = (follow(Follow("plain", data="digits", demean_inputs=d, lr=1e-5, steps=2)) for d in (False, True))
    assert raw["curve"][0]["cosine"] > 0.6 > 0.2 > demeaned["curve"][0]["cosine"]
    assert raw["curve"][0]["mean"] > 1
    assert demeaned["curve"][0]["mean"] < 1e-5
    assert raw["final"]["cosine"] < raw["curve"][0]["cosine"]
    assert raw["final"]["condition"] is None  # 1,000 digits have constant pixels


def test_a_rate_beyond_the_edge_is_recorded_as_diverged():
    record = follow(Follow("whitening", lr=50.0, steps=100))
    assert record["status"] == "diverged"
    assert 1 <= record["diverged_at"] <= 100
    assert record["final"] == {}
    assert not following.stable(record)
    assert not following.useful(record)


def test_refused_specifications():
    with pytest.raises(ValueError, match="'cifar'"):
        Follow(data="cifar")
    with pytest.raises(ValueError, match="steps is 0"):
        Follow(steps=0)


def test_an_edge_has_prediction_and_measurement():
    found = following.edge(Edge("whitening", features=8, condition=100.0, steps=100, seed=3))
    assert found["measured"] == pytest.approx(min(1, found["predicted"]), rel=0.05)


def fake(lr, cosine, variance=1.0, status="finished"):
    curve = [{"step": 0, "cosine": 0.8, "largest_variance": 2.0}, {"step": 5, "cosine": 0.6, "largest_variance": 2.0}]
    final = {} if status == "diverged" else {"step": 10, "cosine": cosine, "largest_variance": variance}
    return {"status": status, "curve": [*curve, *([final] if final else [])], "final": final}


def test_ranges_from_records_made_by_hand():
    rates, shrinkages = [1e-4, 1e-3, 1e-2, 1e-1], [0.1, 0.2, 0.3, 0.4]
    named = rulebook.tries(Follow(), rates, shrinkages)
    outcomes = [fake(0, 0.7), fake(0, 0.3), fake(0, 0.35), fake(0, 0, status="diverged")]
    records = [outcomes[i % 4] for i in range(len(named))]
    table = rulebook.ranges(named, records)
    assert (table["tries"] == 4).all()  # the same budget for every arm
    row = table.loc["kappa 0.5"]
    assert (row["stable"], row["useful"], row["best"], row["left"]) == (3, 2, 1, 0.3)
    assert row["decades"] == pytest.approx(1.0)  # from 1e-3, useful, to 1e-2, stable
    assert math.isnan(table.loc["exact ZCA", "decades"])
    best = rulebook.best_tries(named, table)
    assert best["kappa 0.5"].lr == 1e-3
    assert dict(best["exact PCA"].rule_options)["shrinkage"] == 0.2
    assert rulebook.ranges(named, [fake(0, 0.3, variance=21.0)] * len(named))["stable"].sum() == 0  # blown up
    with pytest.raises(ValueError, match="as many tries"):
        rulebook.tries(Follow(), rates, [0.1])


def test_steps_to_a_target():
    assert following.steps_to(fake(0, 0.3), 0.6) == 5
    assert following.steps_to(fake(0, 0.3), 0.1) is None


def test_network_tries_are_fractions_of_the_largest_stable_rate():
    largest = {name: 10.0 for name, arm in rulebook.ARMS.items() if not arm.exact}
    arms, rates = rulebook.network_tries(Experiment(), largest, [0.1, 0.01], [0.2, 0.4])
    assert rates["whitening"] == {"decor_lr": [1.0, 0.1]}
    assert [dict(o)["shrinkage"] for o in rates["exact ZCA"]["rule_options"]] == [0.2, 0.4]
    assert dict(arms["exact ZCA"].layer_options) == {"update_every": rulebook.REFRESH}
    assert arms["whitening"].layer_options == ()


def test_comparisons_are_paired_and_corrected():
    wide = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.1, 2.1, 3.2], "c": [1.0, 2.0, None]})
    table = rulebook.with_holm(rulebook.compared(wide, "a", "raw")).set_index("arm")
    assert table.loc["b", "estimate"] == pytest.approx(0.4 / 3)
    assert table.loc["b", "Holm p"] == pytest.approx(table.loc["b", "p"])  # the only one with a test
    assert table.loc["c", "n"] == 0
    assert math.isnan(table.loc["c", "Holm p"])


@pytest.mark.parametrize("name", rulebook.ARMS)
def test_the_accident_stops_every_rule_and_nothing_else_does(name):
    assert rulebook.stands_still(rulebook.ARMS[name], accident=True)
    assert not rulebook.stands_still(rulebook.ARMS[name], accident=False)
