"""The rate of R from the curvature of its rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decorlib import (
    RULES,
    Decorrelation,
    DecorSGD,
    KappaRule,
    NotebookRule,
    bp_parameters,
    decor_step,
    decorrelate,
    make_rule,
    suggest_rate,
    suggest_rates,
)
from decorlib.rules.moments import Moments
from decorlib.rules.rates import auto_rate, curvature


def correlated(rows=256, features=6, scale=1.0):
    torch.manual_seed(0)
    return scale * (torch.randn(rows, features) @ torch.randn(features, features))


def network():
    torch.manual_seed(1)
    return decorrelate(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), KappaRule(kappa=0.5))


def test_curvature_is_the_largest_eigenvalue_of_what_weighs_the_rows():
    y = correlated().double()
    X = y.T @ y / len(y)
    expected = torch.linalg.eigvalsh(X).max()
    # power iteration comes from below, and near
    assert 0.98 * expected <= curvature(KappaRule(kappa=0.0), Moments.of(y)) <= expected * (1 + 1e-9)
    half = curvature(KappaRule(kappa=0.5), Moments.of(y))
    assert torch.isclose(half, 0.5 * curvature(KappaRule(kappa=0.0), Moments.of(y)))
    rule = NotebookRule(variance=1.0)
    n = 1 / X.diagonal()
    expected = torch.linalg.eigvals(n[:, None] * X).abs().max()
    assert 0.95 * expected <= curvature(rule, Moments.of(y)) <= expected * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_decorrelates_at_any_scale_of_the_inputs_without_a_rate_to_tune(scale):
    layer, x = Decorrelation(6, rule=KappaRule(kappa=0.0)), correlated(scale=scale)
    first = None
    for _ in range(300):
        layer(x)
        loss = decor_step(layer, "auto")[""]
        first = loss if first is None else first
    assert loss < 1e-3 * first


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_stays_finite_at_its_own_rate(name):
    options = {"variance": 1.0} if name in ("notebook", "seed") else {}
    layer, x = Decorrelation(6, rule=make_rule(name, **options)), correlated()
    for _ in range(100):
        layer(x)
        decor_step(layer, "auto")
    assert bool(layer.weight.isfinite().all())
    assert layer.weight.abs().max() < 1e3


def test_the_optimizer_takes_the_same_steps():
    x, models = correlated(), [network(), network()]
    optimizer = DecorSGD(models[0], lr="auto")
    for _ in range(5):
        for model in models:
            model(x).sum().backward()
        optimizer.step()
        decor_step(models[1], "auto")
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_suggested_rates_are_those_that_auto_takes_first_and_the_model_is_left_as_it_was():
    model, x = network(), correlated()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    rates = suggest_rates(model, x)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert suggest_rate(model, x) == min(rates.values())
    twin = network()
    model(x)
    twin(x)
    decor_step(model, "auto")
    for name, layer in twin.named_modules():
        if name in rates:
            layer.step(rates[name])
            assert torch.equal(layer.weight, model.get_submodule(name).weight)
    assert len(list(bp_parameters(model))) == 4


def test_refusals_name_the_value_and_the_way_out():
    with pytest.raises(ValueError, match="'fast'; allowed"):
        decor_step(network(), "fast")
    layer = Decorrelation(6, rule=KappaRule())
    layer(torch.zeros(8, 6))
    with pytest.raises(ValueError, match="not all 0"):
        decor_step(layer, "auto")
    with pytest.raises(ValueError, match="step is 2"):
        auto_rate(KappaRule(), Moments.of(correlated()), step=2.0)
    model = network()
    with pytest.raises(ValueError, match="no decorrelation layer"):
        suggest_rate(nn.Linear(2, 2), correlated())
    for p in bp_parameters(model):
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no layer learns"):
        suggest_rate(model, correlated())
