"""What notebook 08 counts: memory that a call holds, numbers that a step moves, steps that compute the same."""

import pytest
import torch
from torch import nn

from decorlib import DecorLinear, KappaRule
from decorlib.rules import work
from decorlib.rules.moments import Moments
from decorlib.study.experiments import flops
from decorlib.study.questions.cost import instead, layer_cost


def test_memory_is_counted_at_its_peak_and_without_what_was_there_before():
    kept = torch.zeros(1000)

    def call():
        first = kept + 1
        second = first.view(10, 100) + 1  # a view holds nothing of its own
        del first
        third = torch.zeros(100)
        kept.add_(1)
        return second.sum() + third.sum()

    assert layer_cost.peak_bytes(call) in range(4 * 2000, 4 * 2000 + 16)


def test_memory_of_a_step_is_three_batches_for_ours_and_four_R_for_the_dense_form():
    D, B = 256, 16
    held = {name: layer_cost.peak_bytes(call) / 4 for name, call in layer_cost.parts(D, B).items()}
    assert held["whole step"] == pytest.approx(3 * B * D, rel=0.1)
    assert held["dense step, as written"] == pytest.approx(4 * D**2, rel=0.1)
    assert held["plain linear step"] == pytest.approx(D**2, rel=0.1)


def test_numbers_moved_are_those_of_the_pieces():
    moved = layer_cost.floats_moved(100, 20)
    assert moved["forward"] == 100 * 100 + 2 * 20 * 100
    assert moved["update"] == 5 * 100**2 + 6 * 20 * 100
    assert moved["whole step"] == sum(moved[name] for name in ("forward", "loss", "update")) + 2 * 20 * 100
    assert moved["dense step, as written"] - moved["dense step, rows scaled"] == 2 * 100**2
    # passes over R: forward, C, its division, two differences, square and mean, rows, product, and three for the step
    assert layer_cost.floats_moved(1000, 1)["dense step, rows scaled"] // 1000**2 == 1 + 1 + 2 + 6 + 3 + 2 + 3 + 8


def test_steps_of_a_layer_learn_what_their_settings_say(monkeypatch):
    made = []
    init = DecorLinear.__init__
    monkeypatch.setattr(DecorLinear, "__init__", lambda self, *a, **k: (init(self, *a, **k), made.append(self))[0])
    steps = layer_cost.layer_steps(12, 5, 8, {"every step": {}, "update_every=3": {"update_every": 3}})
    assert list(steps) == ["plain", "every step", "update_every=3"]
    before = [(layer.weight.detach().clone(), layer.decorrelation.weight.clone()) for layer in made]
    for call in steps.values():
        call()
    for layer, (W, R) in zip(made, before, strict=True):
        assert not torch.equal(layer.weight, W)
        assert not torch.equal(layer.decorrelation.weight, R)
    R = [layer.decorrelation.weight.clone() for layer in made]
    for call in steps.values():
        call()
    moved = [not torch.equal(layer.decorrelation.weight, old) for layer, old in zip(made, R, strict=True)]
    assert moved == [True, False]


def test_the_dense_step_is_the_step_of_the_layer():
    torch.manual_seed(0)
    x, R, eye = torch.randn(16, 6), torch.eye(6) + 0.1 * torch.randn(6, 6), torch.eye(6)
    layer = DecorLinear(6, 3, variance=1.0).decorrelation
    nn.init.zeros_(layer.weight).add_(R)
    layer(x)
    loss = layer.step(0.05)
    for literal in (True, False):
        stepped, theirs = layer_cost.dense_update(R, x, eye, 0.05, literal)
        torch.testing.assert_close(stepped, layer.weight.data)
        torch.testing.assert_close(theirs, loss)


def test_every_arm_of_what_one_would_take_instead_steps_and_its_work_is_counted():
    arms = instead.arms(batch=16)
    assert set(arms) - {"SOAP"} == set(instead.work(batch=16))
    for step in arms.values():
        step()
        step()
    assert next(iter(arms)) == "plain"
    assert ("SOAP" in arms) != ("SOAP" in instead.missing())


def test_counted_work_of_a_plain_step_is_what_torch_counts():
    assert instead.counted_by_torch(instead.arms(batch=16)["plain"]) == instead.work(batch=16)["plain"]


def test_between_updates_torch_counts_the_work_that_we_count_too():
    step = instead.arms(batch=16)["R, every 25th"]
    step()  # the first one learns
    D, every = 256, 10**9
    expected = flops.mlp(None, 16, instead.WIDTHS).total
    for M in instead.WIDTHS[2:]:
        layer = work.decor_linear(KappaRule(), 16, D, M, update_every=every)
        expected += layer.total - work.linear(16, D, M).total
    assert instead.counted_by_torch(step) == round(expected)


def test_torch_counts_nothing_for_the_product_that_is_added_to_R_in_place():
    D, B = 32, 8
    R, y = torch.eye(D), torch.randn(B, D)
    moments = Moments.of(y)
    seen = instead.counted_by_torch(lambda: KappaRule().step_(moments, R, 1e-3))
    assert seen == 2 * B * D**2  # Y R, and not Y'(Y R)
    assert work.learning(KappaRule(), B, D).update + work.learning(KappaRule(), B, D).statistics == 2 * seen


def test_guards_can_be_left_out_for_a_comparison_and_are_back_after_it():
    layer = DecorLinear(4, 3, center="batch")
    bad = torch.full((8, 4), float("nan"))
    with instead.unguarded():
        layer(bad)
    layer.decorrelation.running_mean.zero_()
    with pytest.raises(ValueError, match="NaN"):
        layer(bad)
    assert len(instead.guards(repeats=1, batch=8, calls=2)) == 1
