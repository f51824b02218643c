import math

import pytest
import torch

from decorlib import metrics
from decorlib.rules.catalogue import make_rule
from decorlib.rules.whitening import zca
from decorlib.study.experiments import gaussians

S = gaussians.covariance(6, 20.0, seed=3)


def test_covariance_has_the_condition_and_trace_asked_for_and_unequal_features():
    values = torch.linalg.eigvalsh(S)
    assert float(values[-1] / values[0]) == pytest.approx(20, rel=1e-9)
    assert float(S.trace()) == pytest.approx(6, rel=1e-12)
    assert float(S.diagonal().max() / S.diagonal().min()) > 1.5
    assert not torch.equal(S, gaussians.covariance(6, 20.0, seed=4))
    with pytest.raises(ValueError, match=r"condition 0\.5"):
        gaussians.covariance(6, 0.5)


def test_states_are_the_population_and_draws_come_near_it():
    x = gaussians.states_of(S)
    assert torch.allclose(x.T @ x / len(x), S, atol=1e-13)
    mean = torch.arange(6.0, dtype=torch.float64)
    z = gaussians.draws(S, 50_000, torch.Generator().manual_seed(0), mean)
    assert torch.allclose(torch.cov(z.T), S, atol=0.05)
    assert torch.allclose(z.mean(0), mean, atol=0.03)


def test_whiteness_by_hand():
    X = torch.tensor([[4.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = gaussians.whiteness(X)  # the third feature is dead
    assert found["cosine"] == pytest.approx(0.5)  # 1 / sqrt(4 x 1)
    assert found["off_diagonal"] == pytest.approx(2 / 17)
    assert found["variance_error"] == pytest.approx(1.5)
    assert found["largest_variance"] == 4
    assert found["condition"] == pytest.approx((5 + math.sqrt(13)) / (5 - math.sqrt(13)))
    assert gaussians.whiteness(X, condition=False)["condition"] is None
    assert gaussians.whiteness(torch.ones(2, 2) * 1.0)["condition"] is None  # singular


def test_cosine_is_the_one_of_metrics_and_does_not_know_the_scale():
    x = gaussians.draws(S, 40, torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 6, dtype=torch.float64)
    found = gaussians.whiteness(x.T @ x / 40)["cosine"]
    assert found == pytest.approx(metrics.mean_correlation(x, centred=False), rel=1e-10)


def test_exact_whitening_leaves_nothing():
    R = zca(S)
    found = gaussians.whiteness(R @ S @ R.mT)
    assert found["cosine"] < 1e-13
    assert found["variance_error"] < 1e-13
    assert found["condition"] == pytest.approx(1, abs=1e-12)


def test_whitening_rule_ends_at_the_exact_matrix():
    path = gaussians.trajectory(make_rule("whitening"), S, 0.1, 400)
    assert gaussians.whiteness(path[-1])["cosine"] < 1e-10
    assert len(gaussians.trajectory(make_rule("whitening"), S, 5.0, 400)) < 400  # blows up, and ends there


@pytest.mark.parametrize(("name", "equivariant"), [("kappa", True), ("plain", True), ("kappa_columns", False)])
def test_equivariance_tells_rows_from_columns(name, equivariant):
    options = {} if name == "plain" else {"kappa": 0.3}
    difference = gaussians.equivariance(make_rule(name, **options), S, gaussians.mixing(6, seed=5), 0.02, 200)
    assert (difference < 1e-11) if equivariant else (difference > 1e-3)


def test_edge_of_the_whitening_rule_is_where_the_formula_says():
    S = gaussians.covariance(8, 100.0)
    rule, largest = make_rule("whitening"), float(torch.linalg.eigvalsh(S)[-1])
    assert gaussians.predicted_edge(rule, S) == pytest.approx(2 / (largest - 1), rel=1e-9)
    assert largest > 3  # else the fixed point has its own bound, rate 1, and it comes first
    assert gaussians.largest_stable(rule, S, 200) == pytest.approx(min(1, 2 / (largest - 1)), rel=0.05)


@pytest.mark.parametrize("length", [0.5, 3.0])
def test_whitened_mean_is_what_remains_of_it(length):
    mean = length * torch.linspace(-1, 1, 6, dtype=torch.float64)
    R = zca(S + torch.outer(mean, mean))
    predicted = gaussians.whitened_mean(S, mean)
    assert float((R @ mean).square().sum()) == pytest.approx(predicted, rel=1e-10)
    s = float(mean @ torch.linalg.solve(S, mean))
    assert float(torch.linalg.eigvalsh(R @ S @ R.mT)[0]) == pytest.approx(1 / (1 + s), rel=1e-10)


@pytest.mark.parametrize(("name", "reaches"), [("whitening", True), ("plain", False)])
def test_remaining_mean_is_predicted_for_rules_that_whiten_only(name, reaches):
    mean = torch.linspace(-1, 1, 6, dtype=torch.float64)
    found = gaussians.remaining_means(make_rule(name), S, [mean, 2 * mean])
    predicted = [gaussians.whitened_mean(S, mean), gaussians.whitened_mean(S, 2 * mean)]
    assert (found == pytest.approx(predicted, rel=1e-6)) == reaches
