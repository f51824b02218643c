"""Where a part of a kernel only ever sees padding: the same numbers as with whole patches, for less work."""

import copy
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from decorlib import DecorConv1d, DecorConv2d, DecorConv3d, KappaRule, NotebookRule
from decorlib.layers import conv_part
from decorlib.layers.patches import seen

LAYERS = {1: DecorConv1d, 2: DecorConv2d, 3: DecorConv3d}


def convolution(rank, *shape, **options):
    torch.manual_seed(0)
    layer = LAYERS[rank](2, 3, *shape, rule=KappaRule(kappa=0.5), dtype=torch.float64, **options)
    layer.decorrelation.weight.data += 0.3 * torch.randn_like(layer.decorrelation.weight)
    return layer


def trained(layer, x):
    """Output, gradients, and what R learns."""
    z = layer(x)
    gradients = torch.autograd.grad(z.square().sum(), (x, layer.weight, layer.bias))
    loss = layer.step(1e-2)
    return [z, *gradients, layer.decorrelation.weight.detach().clone(), loss]


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_part_of_the_kernel_gives_what_all_of_it_gives(rank, fuse, fraction, monkeypatch):
    parts, whole = 0, conv_part.seen_part
    for n, k, padding, stride, dilation in itertools.product((1, 2, 3), (2, 3), (1, 2, "same"), (1, 3), (1, 2)):
        if padding == "same" and (stride > 1 or k == 2):  # refused, or warned of, by torch
            continue
        if padding != "same" and n + 2 * padding < dilation * (k - 1) + 1:  # a kernel larger than its input
            continue
        for center, decor_bias in ((None, False), ("batch", True)):
            options = {"center": center, "decor_bias": decor_bias, "fuse": fuse, "fraction": fraction}
            layer = convolution(rank, k, stride, padding, dilation, **options)
            x = torch.randn(4, 2, *[n] * rank, dtype=torch.float64, requires_grad=True)
            part = whole(layer, x)
            if part is None:
                continue
            parts += 1
            slow = copy.deepcopy(layer)
            torch.manual_seed(1)
            fast = trained(layer, x)
            with monkeypatch.context() as patched:
                patched.setattr(conv_part, "seen_part", lambda layer, x: None)
                torch.manual_seed(1)
                torch.testing.assert_close(fast, trained(slow, x))
    assert parts >= 20


def test_the_part_is_that_of_every_position_visited():
    sizes = itertools.product((1, 2, 3, 5), (1, 2, 3, 4), (1, 2), (1, 2, 3), (0, 1, 2, 3), (0, 1, 3))
    for n, k, d, s, left, right in sizes:
        if n + left + right < d * (k - 1) + 1:
            continue
        starts = range(0, n + left + right - d * (k - 1), s)
        fall = [tap for tap in range(k) if any(left <= start + tap * d < left + n for start in starts)]
        part = seen((n,), (k,), (d,), (s,), (left,), (right,))
        if not fall or (fall[0], fall[-1]) == (0, k - 1):
            assert part is None
        else:
            assert part.taps == (slice(fall[0], fall[-1] + 1),)


@pytest.mark.parametrize(
    "options",
    [{"center": "running"}, {"groups": 2}, {"padding_mode": "replicate"}, {"rule": NotebookRule(variance="input")}],
)
def test_what_may_see_the_rest_of_the_kernel_takes_whole_patches(options):
    x = torch.randn(4, 2, 1, 1)
    layer = DecorConv2d(2, 4, 3, padding=1, **options)
    assert conv_part.seen_part(layer, x) is None
    assert conv_part.seen_part(DecorConv2d(2, 4, 3, padding=1), x).kernel == (1, 1)
    centred = DecorConv2d(2, 4, 3, padding=1, center="batch")
    assert conv_part.seen_part(centred, x) is not None
    assert conv_part.seen_part(centred.eval(), x) is None  # its running mean may come of larger images


def test_a_map_of_one_pixel_costs_a_ninth():
    layer = DecorConv2d(16, 64, 3, padding=1, fuse=False)
    layer.learning = False
    counted = {}
    for size in (1, 3):
        x = torch.randn(4, 16, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x)
        counted[size] = counter.get_total_flops()
    D = 16 * 9
    assert counted[1] == 2 * 4 * D * 16 + 2 * 4 * D * 64  # R of one tap; W
    assert counted[3] == 2 * 4 * 9 * (D * D + D * 64)


@pytest.mark.parametrize("fuse", [True, False])
def test_its_gradients_are_those_of_finite_differences(fuse):
    layer = convolution(2, 3, padding=1, center="batch", decor_bias=True, fuse=fuse)
    x = torch.randn(3, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert conv_part.seen_part(layer, x) is not None
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))
