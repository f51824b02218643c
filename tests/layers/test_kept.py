"""What training keeps beyond the plain layer, in bytes that torch holds: R, a batch of sampled states, nothing else."""

import math
import re
from pathlib import Path

import pytest
import torch
from living import Living
from torch import nn

from decorlib import (
    DecorConv1d,
    DecorConv2d,
    DecorConv3d,
    DecorConvTranspose2d,
    DecorLinear,
    DecorMultiheadAttention,
    ExactWhitening,
    KappaRule,
    decor_modules,
    decor_step,
)

F = 4  # bytes of a float32
COUNT = 8  # num_updates
LOSS = F  # of the last step
DOCS = Path(__file__).parents[2] / "docs" / "use.md"


def call(layer, x):
    return layer(x)


def on_itself(layer, x):
    return layer(x, x, x)[0]


def training(make, shape, run):
    """Bytes of the layer when it is built, before backward, after it, and after the step of R."""
    with Living() as living:
        torch.manual_seed(0)
        layer = make()
        built = living.bytes()
        x = torch.randn(*shape, requires_grad=True)
        others = living.bytes() - built
        out = run(layer, x)
        found = [built, living.bytes() - others - F * out.numel()]
        out.sum().backward()
        x.grad = None
        del out
        for p in layer.parameters():
            p.grad = None
        found.append(living.bytes() - others)
        if any(True for _ in decor_modules(layer)):
            decor_step(layer, 1e-4)
        found.append(living.bytes() - others)
    return found


def more(plain, ours, shape, run=call):
    """The same of a layer beyond those of the plain one."""
    pairs = zip(training(plain, shape, run), training(ours, shape, run), strict=True)
    return [b - a for a, b in pairs]


KAPPA = {"rule": KappaRule()}


@pytest.mark.parametrize("fraction", [1.0, 0.25])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("center", [None, "batch", "running"])
def test_a_linear_layer_keeps_r_and_the_states_of_its_sample(center, fused, fraction):
    B, D, M = 64, 100, 20
    options = {"center": center, "fraction": fraction, "fuse": fused, **KAPPA}
    built, forward, backward, stepped = more(lambda: nn.Linear(D, M), lambda: DecorLinear(D, M, **options), (B, D))
    of_r = F * D * D + COUNT
    means = 0 if center is None else F * D + COUNT
    states = F * D * round(fraction * B)
    assert built == of_r + means
    # center="running" keeps the mean of each batch and the one that it subtracted, for checkpoints, until the next.
    passes = 2 * F * D if center == "running" else 0
    assert backward == of_r + means + states + passes
    assert stepped == of_r + means + LOSS + passes
    if center is None:  # for backward: W R where it is composed; else all states in the place of the inputs
        extra = F * M * D if fused else 0 if fraction == 1 else F * D * B
        assert forward == backward + extra


@pytest.mark.parametrize("fraction", [1.0, 0.125])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize(
    ("plain", "ours", "size"),
    [(nn.Conv1d, DecorConv1d, (12,)), (nn.Conv2d, DecorConv2d, (6, 6)), (nn.Conv3d, DecorConv3d, (4, 4, 4))],
)
def test_a_convolution_keeps_those_of_its_positions(plain, ours, size, span, fraction):
    N, C, M, k = 8, 4, 16, 3
    made = more(
        lambda: plain(C, M, k, padding=1),
        lambda: ours(C, M, k, padding=1, span=span, fraction=fraction, **KAPPA),
        (N, C, *size),
    )
    D = C * k ** len(size) if span == "patch" else C
    assert made[0] == F * D * D + COUNT
    assert made[2] == made[0] + F * D * round(fraction * N * math.prod(size))
    assert made[3] == made[0] + LOSS


def test_a_transposed_convolution_keeps_those_of_its_pixels():
    made = more(
        lambda: nn.ConvTranspose2d(4, 16, 3), lambda: DecorConvTranspose2d(4, 16, 3, groups=1, **KAPPA), (8, 4, 5, 5)
    )
    of_r = F * 4 * 4 + COUNT
    assert made[0] == of_r
    assert made[2:] == [of_r + F * 4 * 8 * 25, of_r + LOSS]


@pytest.mark.parametrize(("inputs", "count"), [("self", 1), ("memory", 2), ("separate", 3)])
def test_attention_keeps_those_of_each_input_and_of_its_output(inputs, count):
    E, shape = 32, (10, 8, 32)
    made = more(
        lambda: nn.MultiheadAttention(E, 4),
        lambda: DecorMultiheadAttention(E, 4, inputs=inputs, **KAPPA),
        shape,
        on_itself,
    )
    of_r = (count + 1) * (F * E * E + COUNT)
    assert made[0] == of_r
    assert made[2:] == [of_r + (count + 1) * F * math.prod(shape), of_r + (count + 1) * LOSS]


def test_a_rule_that_reads_the_inputs_keeps_no_copy_of_them():
    """What the caller holds anyway is kept by reference, and freed with the batch."""
    made = more(lambda: nn.Linear(100, 20), lambda: DecorLinear(100, 20, rule=ExactWhitening()), (64, 100))
    of_r = F * 100 * 100 + COUNT
    assert made[2:] == [of_r + F * 64 * 100, of_r + LOSS]


def test_the_numbers_in_the_docs_are_these():
    B, text = 64, DOCS.read_text(encoding="utf-8")
    for D, M, fraction in ((784, 100, 1.0), (784, 100, 0.25)):
        made = more(lambda: nn.Linear(D, M), lambda: DecorLinear(D, M, fraction=fraction, **KAPPA), (B, D))  # noqa: B023
        row = next(
            line for line in text.splitlines() if line.startswith(f"| `Linear({D}, {M})`, fraction {fraction:g} ")
        )
        assert [int(cell.replace(",", "")) for cell in re.findall(r"[\d,]{4,}", row.split("|", 2)[2])] == [
            made[3] - LOSS,
            made[2] - made[0],
        ]
