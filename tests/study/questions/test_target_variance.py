"""The fixed point laws of notebook 03, and what the corrected rule and the missing target do."""

import math

import pytest
import torch

from decorlib.rules.catalogue import make_rule
from decorlib.rules.moments import Moments
from decorlib.rules.rules import KappaRule, SeedRule
from decorlib.study.experiments import scales
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.gaussians import covariance, states_of
from decorlib.study.questions.variance import target_variance

S = covariance(6, seed=1)


@pytest.mark.parametrize("target", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_the_2024_rule_settles_where_the_law_says(target, eta):
    found = target_variance.settle(SeedRule(target, eta), S, steps=2500)
    torch.testing.assert_close(found, torch.full_like(found, target / (1 + eta * target)), rtol=1e-3, atol=0)


def test_the_law_holds_per_feature():
    targets = torch.linspace(0.25, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(
        target_variance.settle(SeedRule(targets), S), target_variance.settles_at(targets), rtol=1e-3, atol=0
    )
    own = target_variance.settle(SeedRule("input"), S)
    torch.testing.assert_close(own, target_variance.settles_at(S.diagonal()), rtol=1e-3, atol=0)


@pytest.mark.parametrize("target", [0.5, 4.0])
def test_the_corrected_rule_and_kappa_reach_their_target(target):
    for rule in (target_variance.CorrectedSeedRule(target, eta=2.0), KappaRule(variance=target)):
        found = target_variance.settle(rule, S, steps=3000)
        torch.testing.assert_close(found, torch.full_like(found, target), rtol=1e-3, atol=0)


@pytest.mark.parametrize("target", [None, 2.0])
def test_the_corrected_direction_is_its_literal_equation(target):
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    R = torch.eye(6, dtype=torch.float64) + 0.1 * x[:6]
    y = x @ R.T
    X = y.T @ y / 9
    C = X - torch.diag(X.diagonal())
    N = torch.eye(6, dtype=torch.float64) if target is None else torch.diag(target / X.diagonal())
    literal = R - N @ (torch.eye(6, dtype=torch.float64) - 0.7 * C) @ R
    found = target_variance.CorrectedSeedRule(target, eta=0.7).direction(Moments.of(y), R)
    torch.testing.assert_close(found, literal, rtol=1e-12, atol=1e-12)


def test_the_setting_undoes_the_law():
    for wanted in (0.1, 0.5, 0.9):
        assert target_variance.settles_at(target_variance.setting_for(wanted)) == pytest.approx(wanted)
    assert target_variance.setting_for(3.0, eta=0.0) == 3.0
    for wanted in (1.0, 0.0, -1.0):
        with pytest.raises(ValueError, match="smaller eta"):
            target_variance.setting_for(wanted)


def test_small_batches_settle_higher_by_the_law():
    found = float(target_variance.settle_in_batches(SeedRule(1.0), S, batch=8, steps=1500).mean())
    population, batches = target_variance.settles_at(1.0), target_variance.settles_at(1.0, batch=8)
    assert abs(found - batches) < 0.25 * (batches - population)
    with pytest.raises(ValueError, match="3 samples"):
        target_variance.settles_at(1.0, batch=2)


def test_without_a_target_R_shrinks_as_predicted_and_still_decorrelates():
    rows = target_variance.collapse(S, lr=0.01, steps=1000, rows=5)
    assert [row["step"] for row in rows][-1] == 1000
    for row in rows:
        assert row["norm"] == pytest.approx(row["predicted_norm"], rel=5e-3)
    assert rows[-1]["norm"] < 0.5 * rows[0]["norm"]
    assert rows[-1]["cosine"] < 0.2 * rows[0]["cosine"]
    assert rows[-1]["variance"] == pytest.approx(rows[-1]["late_law"], rel=0.2)


def test_untargeted_halves_its_error_with_the_rate():
    errors = []
    for lr in (0.02, 0.01):
        x, R = states_of(S), torch.eye(6, dtype=torch.float64)
        for _ in range(round(1 / lr)):
            R = target_variance.step(SeedRule(None), R, x, lr)
        errors.append(float((R - target_variance.untargeted(S, eta=1.0, lr=lr, step=round(1 / lr))).norm()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_steps_to_settle_is_the_measured_time_constant():
    # Near the fixed point the distance in log v falls to 1/e: one feature, started 1% above.
    lr, start = 0.001, 0.5 * 1.01
    x, R = torch.ones(1, 1, dtype=torch.float64), torch.full((1, 1), math.sqrt(start), dtype=torch.float64)
    for _ in range(round(target_variance.steps_to_settle(1.0, lr))):
        R = target_variance.step(SeedRule(1.0), R, x, lr)
    assert math.log(float(R**2) / 0.5) / math.log(1.01) == pytest.approx(1 / math.e, rel=0.01)


def test_arms_differ_in_the_target_alone_and_get_equal_products_of_rate_and_target():
    arms = target_variance.arms([0.5, 4.0], Experiment(epochs=3))
    assert list(arms) == ["no target", "target 0.5", "target 4", "input's own", "kappa (reaches 1)"]
    assert [dict(arm.rule_options)["variance"] for arm in arms.values()] == [None, 0.5, 4.0, "input", 1.0]
    assert len({arm.but(rule="notebook", rule_options=()) for arm in arms.values()}) == 1
    rates = {name: these["decor_lr"] for name, these in target_variance.rates(arms, [1e-5, 1e-4], 2.0).items()}
    assert rates["no target"] == rates["kappa (reaches 1)"] == [1e-5, 1e-4]
    assert rates["target 4"] == [2.5e-6, 2.5e-5]
    assert rates["target 0.5"] == [2e-5, 2e-4]
    assert rates["input's own"] == [5e-6, 5e-5]


def test_an_arm_without_a_target_learns_from_covariances_alone():
    """The 2024 rule: dR = X R, n = 1. Kappa: dR = C R."""
    y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X, R = y.T @ y / 50, torch.eye(4, dtype=torch.float64)
    C = X - X.diagonal().diag()
    specs = scales.BASES["2024 rule"], scales.BASES["kappa"]
    arms = [target_variance.untargeted_arm(spec) for spec in specs]
    directions = [make_rule(arm.rule, **dict(arm.rule_options)).direction(Moments.of(y, y), R) for arm in arms]
    assert torch.allclose(directions[0], X)
    assert torch.allclose(directions[1], C)
    assert [arm.but(rule_options=spec.rule_options) for arm, spec in zip(arms, specs, strict=True)] == list(specs)
