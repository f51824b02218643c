"""summary(model): a row per layer, with what it holds, what it last reported, and its counted cost."""

import pytest
import torch
from torch import nn

from decorlib import (
    DecorConv2d,
    DecorLinear,
    DecorMultiheadAttention,
    Decorrelation,
    DecorSGD,
    KappaRule,
    Rule,
    decorrelate,
    summary,
)
from decorlib.rules import work


def test_it_has_a_row_per_layer_with_its_last_loss():
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(784, 256, rule=KappaRule(), decor_bias=True), nn.ReLU(), DecorLinear(256, 10))
    before = summary(model)
    assert [row.loss for row in before] == [None, None]
    optimizer = DecorSGD(model[0], lr=1e-3)
    model(torch.randn(64, 784))
    optimizer.step()
    first, second = summary(model)
    assert (first.name, first.features, first.groups, first.numbers) == ("0.decorrelation", 784, 1, 784**2 + 784)
    assert first.loss == float(optimizer.losses["decorrelation"])
    assert second.loss is None
    text = str(summary(model))
    assert "0.decorrelation" in text
    assert "615,440" in text
    assert "x plain" in text


@pytest.mark.parametrize("options", [{}, {"update_every": 10}, {"fraction": 0.1}])
def test_the_cost_of_a_linear_layer_is_that_of_its_operations(options):
    rule = KappaRule()
    (row,) = summary(DecorLinear(784, 256, rule=rule, **options), rows=128)
    ours, plain = work.decor_linear(rule, 128, 784, 256, **options), work.linear(128, 784, 256)
    assert row.cost == pytest.approx(ours.total / plain.total)


@pytest.mark.parametrize("span", ["patch", "channel"])
def test_rows_are_counted_from_a_sample(span):
    convolution = decorrelate(nn.Sequential(nn.Conv2d(4, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 5)), span=span)
    convolution.train()
    first, last = summary(convolution, torch.randn(16, 4, 8, 8))
    assert (first.rows, last.rows) == (16 * 9, 16)
    assert convolution.training
    pixels, features = (16 * 64, 4) if span == "channel" else (16 * 9, 36)
    width = 8 * 36 // features
    plain = work.linear(16 * 9, 36, 8).total
    extra = work.decor_linear(KappaRule(), pixels, features, width).total
    extra -= work.linear(pixels, features, width).total
    assert first.cost == pytest.approx((plain + extra) / plain)


def test_groups_share_the_work():
    grouped = decorrelate(nn.Sequential(nn.Conv2d(8, 8, 3, groups=4, padding=1)))
    (row,) = summary(grouped, torch.randn(2, 8, 4, 4))
    assert (row.features, row.groups, row.numbers) == (18, 4, 4 * 18**2)
    plain = 4 * work.linear(32, 18, 2).total
    assert row.cost == pytest.approx(4 * work.decor_linear(KappaRule(), 32, 18, 2).total / plain)


class Own(Rule):
    """A rule whose work is not counted."""


def test_what_has_no_plain_layer_or_a_rule_of_ones_own_has_no_cost():
    assert [row.cost for row in summary(nn.Sequential(Decorrelation(3), DecorLinear(3, 2, rule=Own())))] == [None, None]
    with pytest.raises(ValueError, match="no decorrelation layer"):
        summary(nn.Linear(2, 2))


@pytest.mark.parametrize("inputs", ["self", "memory", "separate"])
def test_attention_has_the_cost_of_its_projections(inputs):
    """Each W R is composed, at 2 M D^2 forward and again backward; what R learns is paid for each R."""
    E, rows, rule = 8, 5 * 4, KappaRule()
    x = torch.randn(5, 4, E)
    layer = DecorMultiheadAttention(E, 2, inputs=inputs, rule=rule, batch_first=True)
    found = {row.name: row for row in summary(layer, (x, x, x))}
    readers = {
        "self": {"input": 3},
        "memory": {"query": 1, "memory": 2},
        "separate": {"query": 1, "key": 1, "value": 1},
    }
    for name, count in readers[inputs].items():
        M = count * E
        plain = 3 * 2 * rows * M * E
        ours = plain + 2 * (2 * M * E**2) + 2 * rows * E**2 + work.learning(rule, rows, E).total
        row = found[f"decorrelations.{name}"]
        assert row.rows == rows
        assert row.cost == pytest.approx(ours / plain)
    # torch's attention has the identity where its output projection was, forward and backward to its input.
    plain = work.linear(rows, E, E).total
    ours = work.decor_linear(rule, rows, E, E).total + 2 * 2 * rows * E**2
    assert found["out_proj.decorrelation"].cost == pytest.approx(ours / plain)


def test_an_image_without_a_batch_dimension_is_one_image():
    convolution = nn.Sequential(DecorConv2d(3, 4, 3), nn.ReLU(), DecorConv2d(4, 2, 2, span="channel"))
    one, batched = (summary(convolution, torch.randn(*shape)) for shape in ((3, 8, 8), (1, 3, 8, 8)))
    assert [(row.rows, row.cost) for row in one] == [(row.rows, row.cost) for row in batched]
    assert one.layers[0].rows == 36
