"""DecorConv1d and DecorConv3d beside torch's, and beside a reference that visits every patch. (2d: test_conv.py.)"""

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from reference import convolved_patches
from torch import nn

from decorlib import DecorConv1d, DecorConv2d, DecorConv3d, KappaRule, NonFiniteInput, decorrelate, fuse

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
OURS = {1: DecorConv1d, 2: DecorConv2d, 3: DecorConv3d}
SIZE = {1: (9,), 2: (6, 7), 3: (4, 5, 6)}
# rank, kernel, stride, padding, dilation, padding mode; 2 is here so that the three are held to the same reference
GEOMETRIES = [
    (1, 3, 1, 0, 1, "zeros"),
    (1, 1, 2, 0, 1, "zeros"),
    (1, 4, 2, 2, 2, "zeros"),
    (1, 3, 1, "same", 2, "zeros"),
    (1, 2, 1, "valid", 1, "zeros"),
    (1, 3, 1, 2, 1, "reflect"),
    (1, 3, 2, 1, 1, "replicate"),
    (1, 3, 1, "same", 1, "circular"),
    (2, (3, 2), (2, 1), (1, 2), 1, "zeros"),
    (3, 3, 1, 0, 1, "zeros"),
    (3, 1, 1, 0, 1, "zeros"),
    (3, (1, 2, 3), (1, 2, 1), (0, 1, 2), (1, 1, 2), "zeros"),
    (3, (3, 1, 3), 1, "same", 1, "zeros"),
    (3, (2, 2, 3), 2, (1, 0, 1), 1, "reflect"),
    (3, (1, 3, 2), 1, (0, 1, 1), 1, "replicate"),
    (3, (2, 3, 1), 1, "valid", 1, "circular"),
]
CHANNELS = [(4, 6, 1), (4, 6, 2), (4, 4, 4)]  # plain, grouped, depthwise
CENTRES = [(None, False, True), ("running", True, False), ("batch", True, True)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def conv_of(geometry, channels=(4, 6, 1), *, bias=True, dtype=torch.float64, **options):
    rank, kernel, stride, padding, dilation, mode = geometry
    torch.manual_seed(3)
    options.setdefault("rule", KappaRule(kappa=0.3))
    layer = OURS[rank](
        channels[0], channels[1], kernel, stride, padding, dilation, channels[2], bias, mode, dtype=dtype, **options
    )
    inner = layer.decorrelation
    inner.weight.data += 0.3 * draw(*inner.weight.shape, seed=7)
    if inner.bias is not None:
        inner.bias.data += draw(inner.in_features, seed=8)
    if inner.running_mean is not None:
        inner.running_mean += draw(inner.in_features, seed=9)
    return layer


def beside_reference(layer, x, mean=None):
    """The slow version, on the input as torch pads it."""
    around, mode = layer._reversed_padding_repeated_twice, {"zeros": "constant"}.get(layer.padding_mode)
    x = F.pad(x, around, mode=mode or layer.padding_mode) if any(around) else x
    inner = layer.decorrelation
    return convolved_patches(
        x, inner.weight.reshape(layer.groups, *inner.weight.shape[-2:]), inner.bias, mean, layer.weight, layer.bias,
        layer.stride, layer.dilation, layer.groups, layer.span,
    )  # fmt: skip


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("span", ["patch", "channel"])
def test_at_the_start_it_is_the_plain_layer(geometry, channels, span):
    (rank, kernel, stride, padding, dilation, mode), (c_in, c_out, groups) = geometry, channels
    arguments = (c_in, c_out, kernel, stride, padding, dilation, groups, True, mode)  # torch's order
    torch.manual_seed(1)
    plain = PLAIN[rank](*arguments)
    torch.manual_seed(1)
    layer = OURS[rank](*arguments, span=span, fuse=True)
    assert torch.equal(plain.weight, layer.weight)
    assert torch.equal(plain.bias, layer.bias)
    x = draw(3, c_in, *SIZE[rank], dtype=torch.float32)
    for fused, close in [(True, 1e-6), (False, 1e-5), (None, 1e-5)]:
        layer.fuse = fused
        for training in (True, False):
            torch.testing.assert_close(layer.train(training)(x), plain(x), rtol=0, atol=close)
        torch.testing.assert_close(layer(x[0]), plain(x[0]), rtol=0, atol=close)  # without a batch dimension


@pytest.mark.parametrize(("center", "decor_bias", "bias"), CENTRES)
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_fused_is_unfused_is_the_reference(geometry, channels, span, center, decor_bias, bias):
    results = []
    for way in ("fused", "unfused", "reference"):
        layer = conv_of(
            geometry, channels, span=span, center=center, decor_bias=decor_bias, bias=bias, fuse=way == "fused"
        ).eval()
        x = draw(2, channels[0], *SIZE[geometry[0]]).requires_grad_()
        mean = layer.decorrelation.running_mean
        out = beside_reference(layer, x, mean) if way == "reference" else layer(x)
        out.backward(draw(*out.shape, seed=5))
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad if bias else None])
    torch.testing.assert_close(results[0], results[2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[1], results[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("center", [None, "running", "batch"])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", [GEOMETRIES[2], GEOMETRIES[5], GEOMETRIES[11]])
def test_in_training_fused_is_unfused_and_both_learn_the_same(geometry, channels, span, center):
    results = []
    for fused in (True, False):
        layer = conv_of(geometry, channels, span=span, center=center, decor_bias=True, fuse=fused)
        x = draw(3, channels[0], *SIZE[geometry[0]]).requires_grad_()
        out = layer(x)
        out.backward(draw(*out.shape, seed=5))
        loss, inner = layer.update(), layer.decorrelation
        learned = [inner.weight.grad, inner.bias.grad, inner.running_mean]
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad, loss, *learned])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("geometry", [GEOMETRIES[3], GEOMETRIES[11], GEOMETRIES[12]])
def test_sampled_patches_are_patches_of_the_input(geometry, span):
    """Drawing nearly all of them gives all of them in another order; drawing half gives half of them."""
    rows = []
    for fraction, fused in [(1.0, False), (1 - 1e-9, True), (0.5, True), (0.5, False)]:
        generator = torch.Generator().manual_seed(4)
        layer = conv_of(geometry, (4, 6, 2), span=span, fuse=fused, fraction=fraction, generator=generator)
        layer(draw(3, 4, *SIZE[geometry[0]]))
        rows.append(layer.decorrelation.memory.batches[0].y)
    everything, shuffled, *halves = rows
    order = lambda t: torch.stack(sorted(t.round(decimals=9), key=lambda row: row.tolist()))  # noqa: E731
    torch.testing.assert_close(order(shuffled), order(everything), rtol=0, atol=1e-8)
    for half in halves:
        assert len(half) == round(len(everything) / 2)
        nearest = torch.cdist(half, everything).min(1)
        assert nearest.values.max() < 1e-6
        assert len(set(nearest.indices.tolist())) == len(half)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("geometry", [(1, 2, 1, 1, 1, "zeros"), (3, (1, 2, 2), 1, (0, 1, 0), 1, "zeros")])
def test_gradcheck(geometry, span, fused):
    layer = conv_of(geometry, (2, 3, 1), span=span, fuse=fused, center="batch", decor_bias=True)
    start = layer.decorrelation.running_mean.clone()
    layer.decorrelation.learning = False  # hundreds of forwards, and no update

    def out(x, weight, bias):
        layer.decorrelation.running_mean.copy_(start)
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (draw(2, 2, *[3, 2, 3][: geometry[0]]), layer.weight.detach(), layer.bias.detach())
    assert torch.autograd.gradcheck(out, tuple(t.clone().requires_grad_() for t in inputs))


@pytest.mark.parametrize(("center", "decor_bias", "bias"), CENTRES)
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("geometry", [GEOMETRIES[2], GEOMETRIES[5], GEOMETRIES[11], GEOMETRIES[15]])
def test_a_model_becomes_decorrelated_and_plain_again(geometry, span, center, decor_bias, bias):
    """Also at the borders, where a mean meets what was padded, and through a file."""
    rank, kernel, stride, padding, dilation, mode = geometry
    torch.manual_seed(2)
    plain = PLAIN[rank](4, 6, kernel, stride, padding, dilation, 2, bias, mode, dtype=torch.float64)
    model, x = nn.Sequential(plain, nn.Tanh()), draw(3, 4, *SIZE[rank]) + 1
    before = model(x)
    options = {"sample_input": x} if center else {}
    decorrelate(model, span=span, center=center, decor_bias=decor_bias, **options)
    assert type(model[0]) is OURS[rank]
    torch.testing.assert_close(model.eval()(x), before, rtol=0, atol=1e-12)
    model.train()
    for _ in range(3):
        model(x).square().sum().backward()
        model[0].step(0.05)
    after = model.eval()(x)
    assert (after - before).abs().max() > 1e-3
    back = fuse(model, sample_input=x)
    assert type(back[0]) is PLAIN[rank]
    assert vars(back[0]).keys() == vars(PLAIN[rank](4, 6, kernel)).keys()
    torch.testing.assert_close(back(x), after, rtol=0, atol=1e-12)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = nn.Sequential(
        PLAIN[rank](4, 6, kernel, stride, padding, dilation, 2, bool(center) or bias, mode), nn.Tanh()
    )
    other = other.double()
    if center:
        with pytest.warns(UserWarning, match="subtracts the mean"):
            decorrelate(other, span=span, center=center, decor_bias=decor_bias)
    else:
        decorrelate(other, span=span, decor_bias=decor_bias)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.eval()(x), after)
    assert torch.equal(copy.deepcopy(model)(x), after)


LAYOUTS = {
    "contiguous": lambda *size: draw(*size),
    "channels last": lambda n, c, *size: draw(n, *size, c).movedim(-1, 1),
    "a slice": lambda *size: draw(*size[:-1], size[-1] + 2)[..., 1:-1],
    "permuted": lambda n, c, *size: draw(*size, c, n).movedim(-1, 0).movedim(-1, 1),
}


@pytest.mark.parametrize("of_weights", ["contiguous", "channels last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rank", "dtype"), [(1, torch.float32), (1, torch.float64), (3, torch.float64)])
def test_outputs_lie_in_memory_as_those_of_the_plain_layer(rank, dtype, layout, of_weights):
    sizes = [(2, 4, 4, 6, 5), (1, 4, 3, 3, 3), (1, 2, 1, 1, 1)]
    forms = [(True, None), (False, None), (False, "running")]
    for size, kernel, groups, (fused, center) in itertools.product(sizes, [1, 3], [1, 2], forms):
        size = size[: 2 + rank]
        for span in ("patch", "channel"):
            geometry = {"padding": kernel // 2, "groups": groups, "dtype": dtype}
            one = PLAIN[rank](size[1], 4, kernel, **geometry)
            other = OURS[rank](size[1], 4, kernel, **geometry, span=span, fuse=fused, center=center)
            if of_weights == "channels last" and rank == 3:
                one, other = (layer.to(memory_format=torch.channels_last_3d) for layer in (one, other))
            x = LAYOUTS[layout](*size).to(dtype)
            case = size, kernel, groups, fused, center, span
            assert other(x).stride() == one(x).stride(), case
            assert other.eval()(x).stride() == one(x).stride(), case


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("span", ["patch", "channel"])
def test_bad_inputs_are_named_and_leave_the_state_as_it_was(span, rank):
    layer = conv_of((rank, 3, 1, 0, 1, "zeros"), span=span, center="running")
    size, names = SIZE[rank], {1: "L", 3: "D, H, W"}[rank]
    layer(draw(2, 4, *size))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    nan = draw(2, 4, *size)
    nan[1, 0, 1] = float("nan")
    for x, error, message in [
        (nan, NonFiniteInput, "NaN or infinity"),
        (draw(2, 3, *size), ValueError, rf"does not fit: \(4, {names}\)"),
        (draw(4), ValueError, rf"\(4,\) does not fit: \(4, {names}\)"),
        (torch.ones(2, 4, *size, dtype=torch.uint8), ValueError, "uint8.*floating"),
    ]:
        with pytest.raises(error, match=message):
            layer(x)
        for key, value in layer.state_dict().items():
            assert torch.equal(before[key], value), (message, key)
    assert layer(draw(0, 4, *size)).shape[0] == 0  # an empty batch passes
