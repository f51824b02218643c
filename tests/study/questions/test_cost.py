"""What notebook 08 counts: memory that a call holds, numbers that a step moves, steps that compute the same."""

import pytest
import torch
from torch import nn

from decorlib import DecorLinear
from decorlib.study.questions.cost import layer_cost


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
