"""DecorConv2d and DecorConvTranspose2d beside torch's, and beside references that visit every patch or pixel."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from decorlib import DecorConv2d, DecorConvTranspose2d, KappaRule, NonFiniteInput, SeedRule

# kernel, stride, padding, dilation, padding mode: int and tuple, 'same' and 'valid', every mode
GEOMETRIES = [
    (3, 1, 0, 1, "zeros"),
    (1, 1, 0, 1, "zeros"),
    (1, 2, 0, 1, "zeros"),
    ((3, 2), (2, 1), (1, 2), 1, "zeros"),
    (3, 2, 1, 2, "zeros"),
    ((2, 3), 1, "same", (1, 2), "zeros"),
    (2, 1, "valid", 1, "zeros"),
    (3, 1, 1, 1, "reflect"),
    ((3, 2), 2, (2, 1), 1, "replicate"),
    (3, 1, (1, 2), 1, "circular"),
    (3, 1, "same", 1, "circular"),
]
CHANNELS = [(4, 6, 1), (4, 6, 2), (4, 4, 4)]  # plain, grouped, depthwise


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def scrambled(layer):
    """Random R, b_R and running mean."""
    inner = layer.decorrelation
    inner.weight.data += 0.3 * draw(*inner.weight.shape, seed=7)
    if inner.bias is not None:
        inner.bias.data += draw(inner.in_features, seed=8)
    if inner.running_mean is not None:
        inner.running_mean += draw(inner.in_features, seed=9)
    return layer


def conv_of(channels=(4, 6, 1), geometry=GEOMETRIES[0], *, dtype=torch.float64, **options):
    (c_in, c_out, groups), (kernel, stride, padding, dilation, mode) = channels, geometry
    torch.manual_seed(3)
    options.setdefault("rule", KappaRule(kappa=0.3))
    return scrambled(DecorConv2d(
        c_in, c_out, kernel, stride, padding, dilation, groups, options.pop("bias", True), mode, dtype=dtype, **options
    ))  # fmt: skip


def reference(layer, x, mean=None):
    """Pad, visit every patch of every group, subtract, multiply by R, add, multiply by W, add: one matrix at a time."""
    inner, groups = layer.decorrelation, layer.groups
    mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
    x = (
        F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        if any(layer._reversed_padding_repeated_twice)
        else x
    )
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    size = [
        (x.shape[2 + i] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1) // layer.stride[i] + 1 for i in range(2)
    ]
    patches = F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)  # (N, L, C taps)
    outs = []
    for g in range(groups):
        part = patches.chunk(groups, 2)[g]
        R = inner.weight if groups == 1 else inner.weight[g]
        b = None if inner.bias is None else inner.bias.chunk(groups)[g]
        m = None if mean is None else mean.chunk(groups)[g]
        if layer.span == "channel":  # the same matrix for every tap
            R = torch.kron(R, torch.eye(taps, dtype=R.dtype))
            b = None if b is None else b.repeat_interleave(taps)
            m = None if m is None else m.repeat_interleave(taps)
        y = (part if m is None else part - m) @ R.T
        y = y if b is None else y + b
        outs.append(y @ layer.weight.chunk(groups)[g].flatten(1).T)
    out = torch.cat(outs, 2)
    out = out if layer.bias is None else out + layer.bias
    return out.transpose(1, 2).reshape(len(x), -1, *size)


# ------------------------------------------------------------------------------------------------------ convolution


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("span", ["patch", "channel"])
def test_at_the_start_it_is_the_plain_layer(geometry, channels, span):
    (c_in, c_out, groups), (kernel, stride, padding, dilation, mode) = channels, geometry
    arguments = (c_in, c_out, kernel, stride, padding, dilation, groups, True, mode)  # torch's order
    torch.manual_seed(1)
    plain = nn.Conv2d(*arguments)
    torch.manual_seed(1)
    layer = DecorConv2d(*arguments, span=span, fuse=True)
    assert torch.equal(plain.weight, layer.weight)
    assert torch.equal(plain.bias, layer.bias)
    x = draw(3, c_in, 7, 8, dtype=torch.float32)
    for fuse, close in [(True, 1e-6), (False, 1e-5), (None, 1e-5)]:
        layer.fuse = fuse
        for mode in (True, False):
            torch.testing.assert_close(layer.train(mode)(x), plain(x), rtol=0, atol=close)
        torch.testing.assert_close(layer(x[0]), plain(x[0]), rtol=0, atol=close)  # without a batch dimension
    strided = draw(3, 7, 8, c_in, dtype=torch.float32).movedim(-1, 1)
    torch.testing.assert_close(layer(strided), plain(strided), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("center", "decor_bias", "bias"), [(None, False, True), ("running", True, False), ("batch", True, True)]
)
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_fused_is_unfused_is_the_reference(geometry, channels, span, center, decor_bias, bias):
    x, results = draw(3, channels[0], 7, 8), []
    for way in ("fused", "unfused", "reference"):
        layer = conv_of(
            channels, geometry, span=span, center=center, decor_bias=decor_bias, bias=bias, fuse=way == "fused"
        )
        x = draw(3, channels[0], 7, 8).requires_grad_()
        if way == "reference":
            layer.eval() if center == "batch" else layer
            out = reference(layer, x, layer.decorrelation.running_mean)
        else:
            out = layer.eval()(x)
        out.backward(draw(*out.shape, seed=5))
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad if bias else None])
    torch.testing.assert_close(results[0], results[2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[1], results[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("center", [None, "running", "batch"])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", [GEOMETRIES[3], GEOMETRIES[4], GEOMETRIES[9]])
def test_in_training_fused_is_unfused_and_both_learn_the_same(geometry, channels, span, center):
    results = []
    for fuse in (True, False):
        layer = conv_of(channels, geometry, span=span, center=center, decor_bias=True, fuse=fuse)
        x = draw(3, channels[0], 7, 8).requires_grad_()
        out = layer(x)
        out.backward(draw(*out.shape, seed=5))
        loss, inner = layer.update(), layer.decorrelation
        results.append(
            [
                out,
                x.grad,
                layer.weight.grad,
                layer.bias.grad,
                loss,
                inner.weight.grad,
                inner.bias.grad,
                inner.running_mean,
            ]
        )
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("center", [None, "batch"])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_statistics_are_those_of_the_patches_or_pixels(groups, span, center):
    layer = conv_of((4, 6, groups), (3, 2, 1, 1, "zeros"), span=span, center=center)
    before = None if center is None else layer.decorrelation.running_mean.clone()
    x = draw(3, 4, 7, 8) + 2
    layer(x)
    layer.update()
    rows = (
        F.unfold(F.pad(x, (1, 1, 1, 1)), 3, stride=2).transpose(1, 2).flatten(0, 1)
        if span == "patch"
        else x.movedim(1, -1).flatten(0, 2)
    )
    if center:
        torch.testing.assert_close(layer.decorrelation.running_mean, 0.9 * before + 0.1 * rows.mean(0))
        rows = rows - rows.mean(0)
    expected = []
    for g in range(groups):
        R = layer.decorrelation.weight if groups == 1 else layer.decorrelation.weight[g]
        y = rows.chunk(groups, 1)[g] @ R.T
        X = y.T @ y / len(y)
        off = X - torch.diag(X.diagonal())
        expected.append((0.7 * off + 0.3 * torch.diag(X.diagonal() - 1)) @ R)
    expected = expected[0] if groups == 1 else torch.stack(expected)
    torch.testing.assert_close(layer.decorrelation.weight.grad, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("geometry", [GEOMETRIES[5], GEOMETRIES[4], GEOMETRIES[8]])
def test_sampled_patches_are_patches_of_the_image(geometry, span, fuse):
    """All patches in another order give the same statistics; half of them give those of that half."""
    whole = conv_of((4, 6, 2), geometry, span=span, fuse=fuse)
    half = conv_of((4, 6, 2), geometry, span=span, fuse=fuse, fraction=0.5, generator=torch.Generator().manual_seed(4))
    every = conv_of(
        (4, 6, 2), geometry, span=span, fuse=fuse, fraction=1 - 1e-9, generator=torch.Generator().manual_seed(4)
    )
    x = draw(3, 4, 7, 8)
    for layer in (whole, half, every):
        layer(x)
    all_y, half_y, every_y = (layer.decorrelation.memory.batches[0].y for layer in (whole, half, every))
    assert len(half_y) == round(len(all_y) / 2)
    order = lambda rows: torch.stack(sorted(rows.round(decimals=9), key=lambda row: row.tolist()))  # noqa: E731
    torch.testing.assert_close(order(every_y), order(all_y), rtol=0, atol=1e-8)
    distances = torch.cdist(half_y, all_y).min(1)
    assert distances.values.max() < 1e-6  # each is one of them
    assert len(set(distances.indices.tolist())) == len(half_y)  # and none comes twice


@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("fuse", [True, False])
def test_a_small_fraction_still_takes_one_sample(span, fuse):
    layer = conv_of(span=span, fraction=1e-4, fuse=fuse)
    layer(draw(1, 4, 5, 5))
    assert len(layer.decorrelation.memory.batches[0].y) == 1
    assert layer.update().isfinite()


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("span", ["patch", "channel"])
def test_gradcheck(span, fuse):
    layer = conv_of((2, 3, 1), (2, 1, 1, 1, "zeros"), span=span, fuse=fuse, center="batch", decor_bias=True)
    start = layer.decorrelation.running_mean.clone()
    layer.decorrelation.learning = False  # hundreds of forwards, and no update

    def out(x, weight, bias):
        layer.decorrelation.running_mean.copy_(start)
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (draw(2, 2, 3, 3), layer.weight.detach(), layer.bias.detach())
    assert torch.autograd.gradcheck(out, tuple(t.clone().requires_grad_() for t in inputs))


@pytest.mark.parametrize("span", ["patch", "channel"])
def test_learning_decorrelates_what_the_kernel_sees(span):
    layer = DecorConv2d(3, 4, 3, padding=1, rule=KappaRule(), span=span, dtype=torch.float64)
    smooth = F.avg_pool2d(draw(16, 3, 12, 12), 3, 1) * 3 + draw(16, 1, 10, 10)
    losses = []
    for _ in range(150):
        layer(smooth)
        losses.append(float(layer.step(0.05)))
    assert losses[-1] < 0.02 * losses[0]


def test_rules_that_read_inputs_get_the_patches_that_r_multiplies():
    for fuse in (True, False):
        layer = conv_of((2, 3, 1), (2, 1, 0, 1, "zeros"), rule=SeedRule(variance="input"), center="batch", fuse=fuse)
        x = draw(4, 2, 5, 5) + 1
        layer(x)
        y, inputs = layer.decorrelation.memory.batches[0][:2]
        rows = F.unfold(x, 2).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(inputs, rows - rows.mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(y, inputs @ layer.decorrelation.weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("span", ["patch", "channel"])
def test_padding_is_centred_too_so_that_fusing_is_exact_at_borders(span):
    """A layer whose input is its mean everywhere, border included, gives the constant; zeros outside do not."""
    layer = DecorConv2d(2, 3, 3, padding=1, center="running", span=span, dtype=torch.float64).eval()
    layer.decorrelation.running_mean += 2.0
    out = layer(torch.full((1, 2, 5, 5), 2.0, dtype=torch.float64))
    inside = out[0, :, 1:-1, 1:-1]
    torch.testing.assert_close(inside, layer.bias[:, None, None].expand_as(inside), rtol=0, atol=1e-12)
    assert (out[0, :, 0] - layer.bias[:, None]).abs().max() > 0.1
    plain = F.conv2d(
        torch.full((1, 2, 5, 5), 2.0, dtype=torch.float64), *layer.fused(layer.decorrelation.running_mean), padding=1
    )
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("span", "fuse"), list(itertools.product(["patch", "channel"], [True, False])))
def test_half_precision_and_autocast(span, fuse, dtype):
    layer = conv_of(dtype=torch.float32, span=span, fuse=fuse, center="running", decor_bias=True)
    x = draw(2, 4, 6, 6, dtype=torch.float32)
    exact = layer.eval()(x)
    layer.train()
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x)
    before = layer.decorrelation.weight.clone()
    layer.step(1e-4)
    assert out.dtype == dtype
    assert layer.decorrelation.weight.dtype == torch.float32
    assert not torch.equal(before, layer.decorrelation.weight)
    layer = conv_of(dtype=torch.float32, span=span, fuse=fuse, center="running", decor_bias=True).to(dtype)
    half = layer.eval()(x.to(dtype))
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.2)
    layer.train()(x.to(dtype))
    before = layer.decorrelation.weight.clone()
    layer.step(1e-4)
    assert not torch.equal(before, layer.decorrelation.weight)


@pytest.mark.parametrize("span", ["patch", "channel"])
def test_bad_images_are_named_and_leave_the_state_as_it_was(span):
    layer = conv_of(span=span, center="running")
    layer(draw(2, 4, 6, 6))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    nan = draw(2, 4, 6, 6)
    nan[1, 0, 3, 3] = float("nan")
    for x, error, message in [
        (nan, NonFiniteInput, "NaN or infinity"),
        (draw(2, 3, 6, 6), ValueError, r"\(2, 3, 6, 6\) does not fit: \(4, H, W\)"),
        (draw(4, 6), ValueError, r"\(4, 6\) does not fit"),
        (torch.ones(2, 4, 6, 6, dtype=torch.uint8), ValueError, "uint8.*floating"),
    ]:
        with pytest.raises(error, match=message):
            layer(x)
        for key, value in layer.state_dict().items():
            assert torch.equal(before[key], value), (message, key)
    layer.update()
    with pytest.raises(ValueError, match=r"span is 'pixel'; allowed: 'patch'.*'channel'"):
        DecorConv2d(3, 4, 3, span="pixel")


LAYOUTS = {
    "contiguous": lambda *size: draw(*size),
    "channels_last": lambda *size: draw(*size).to(memory_format=torch.channels_last),
    "a slice": lambda n, c, h, w: draw(n, c, h, w + 2)[..., 1:-1],
    "permuted": lambda n, c, h, w: draw(w, c, n, h).permute(2, 1, 3, 0),
}


@pytest.mark.parametrize("of_weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_lie_in_memory_as_those_of_the_plain_layer(layout, of_weights):
    """So that a view() behind the layer works, and a convolution behind it takes the format that it would take."""
    convolutions = [(nn.Conv2d, DecorConv2d, {"span": span}) for span in ("patch", "channel")]
    forms = [(True, None), (False, None), (False, "running")]
    sizes = [(2, 4, 6, 5), (1, 4, 3, 3), (1, 2, 1, 1)]
    for size, kernel, groups, (fuse, center) in itertools.product(sizes, [1, 3], [1, 2], forms):
        for plain, ours, options in [*convolutions, (nn.ConvTranspose2d, DecorConvTranspose2d, {})]:
            geometry = {"padding": kernel // 2 if plain is nn.Conv2d else 0, "groups": groups, "dtype": torch.float64}
            one = plain(size[1], 4, kernel, **geometry).to(memory_format=of_weights)
            other = ours(size[1], 4, kernel, **geometry, **options, fuse=fuse, center=center)
            other = other.to(memory_format=of_weights)
            x = LAYOUTS[layout](*size)
            case = size, kernel, groups, fuse, center, ours
            assert other(x).stride() == one(x).stride(), case
            assert other.eval()(x).stride() == one(x).stride(), case


@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("center", [None, "running"])
@pytest.mark.parametrize("fuse", [True, False])
def test_an_empty_batch_of_images_passes_in_training(span, center, fuse):
    layer = conv_of(span=span, center=center, fuse=fuse)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    assert layer(draw(0, 4, 6, 6)).shape == (0, 6, 4, 4)
    assert layer.step(0.1) is None
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


# ------------------------------------------------------------------------------------------- transposed convolution

TRANSPOSED = [
    (3, 1, 0, 0, 1),
    (2, 2, 0, 0, 1),
    ((3, 2), (2, 1), (1, 0), (1, 0), 1),
    (3, 3, 1, 2, 2),
]


def transposed_of(channels=(4, 6, 1), geometry=TRANSPOSED[0], *, dtype=torch.float64, **options):
    (c_in, c_out, groups), (kernel, stride, padding, extra, dilation) = channels, geometry
    torch.manual_seed(3)
    bias = options.pop("bias", True)
    options.setdefault("rule", KappaRule(kappa=0.3))
    return scrambled(DecorConvTranspose2d(
        c_in, c_out, kernel, stride, padding, extra, groups, bias, dilation, dtype=dtype, **options
    ))  # fmt: skip


def transposed_reference(layer, x, mean=None):
    """Each pixel's y = R (x - mean) + b_R is multiplied by W and added where the kernel puts it, pixel by pixel."""
    inner, groups = layer.decorrelation, layer.groups
    n, _, height, width = x.shape
    k, s, p, d, e = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding
    size = [(x.shape[2 + i] - 1) * s[i] + d[i] * (k[i] - 1) + 1 + e[i] for i in range(2)]  # before padding is cut off
    out = torch.zeros(n, layer.out_channels, *size, dtype=x.dtype)
    R = inner.weight if groups == 1 else torch.block_diag(*inner.weight)
    for row, column in itertools.product(range(height), range(width)):
        y = x[:, :, row, column]
        y = (y if mean is None else y - mean) @ R.T
        y = y if inner.bias is None else y + inner.bias
        for i, j in itertools.product(range(k[0]), range(k[1])):
            spread = [part @ layer.weight.chunk(groups)[g][:, :, i, j] for g, part in enumerate(y.chunk(groups, 1))]
            out[:, :, row * s[0] + i * d[0], column * s[1] + j * d[1]] += torch.cat(spread, 1)
    out = out[:, :, p[0] : size[0] - p[0], p[1] : size[1] - p[1]]
    return out if layer.bias is None else out + layer.bias[:, None, None]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", TRANSPOSED)
def test_transposed_is_the_plain_layer_at_the_start(geometry, channels):
    (c_in, c_out, groups), (kernel, stride, padding, extra, dilation) = channels, geometry
    arguments = (c_in, c_out, kernel, stride, padding, extra, groups, True, dilation)  # torch's order
    torch.manual_seed(1)
    plain = nn.ConvTranspose2d(*arguments)
    torch.manual_seed(1)
    layer = DecorConvTranspose2d(*arguments)
    assert torch.equal(plain.weight, layer.weight)
    x = draw(2, c_in, 4, 5, dtype=torch.float32)
    for fuse in (True, False, None):
        layer.fuse = fuse
        for data in (x, x[0], x.movedim(1, -1).contiguous().movedim(-1, 1)):
            torch.testing.assert_close(layer(data), plain(data), rtol=0, atol=1e-6)
    if stride == 2:
        torch.testing.assert_close(layer(x, output_size=[9, 11]), plain(x, output_size=[9, 11]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("center", "decor_bias", "bias"), [(None, False, True), ("running", True, False), ("running", False, True)]
)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", TRANSPOSED)
def test_transposed_fused_is_unfused_is_the_reference(geometry, channels, center, decor_bias, bias):
    results = []
    for way in ("fused", "unfused", "reference"):
        layer = transposed_of(
            channels, geometry, center=center, decor_bias=decor_bias, bias=bias, fuse=way == "fused"
        ).eval()
        x = draw(2, channels[0], 4, 5).requires_grad_()
        out = transposed_reference(layer, x, layer.decorrelation.running_mean) if way == "reference" else layer(x)
        out.backward(draw(*out.shape, seed=5))
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad if bias else None])
    torch.testing.assert_close(results[0], results[2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[1], results[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_learns_from_its_pixels(groups, fuse):
    layer = transposed_of((4, 6, groups), center=None, fuse=fuse)
    x = draw(3, 4, 5, 4)
    layer(x).sum().backward()
    layer.update()
    rows, expected = x.movedim(1, -1).flatten(0, 2), []
    for g in range(groups):
        R = layer.decorrelation.weight if groups == 1 else layer.decorrelation.weight[g]
        y = rows.chunk(groups, 1)[g] @ R.T
        X = y.T @ y / len(y)
        off = X - torch.diag(X.diagonal())
        expected.append((0.7 * off + 0.3 * torch.diag(X.diagonal() - 1)) @ R)
    expected = expected[0] if groups == 1 else torch.stack(expected)
    torch.testing.assert_close(layer.decorrelation.weight.grad, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fuse", [True, False])
def test_transposed_gradcheck(fuse):
    layer = transposed_of((2, 3, 1), (2, 2, 0, 0, 1), fuse=fuse)
    layer.decorrelation.learning = False

    def out(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (draw(2, 2, 3, 2), layer.weight.detach(), layer.bias.detach())
    assert torch.autograd.gradcheck(out, tuple(t.clone().requires_grad_() for t in inputs))


def test_transposed_bad_images_are_named():
    layer = transposed_of((12, 6, 1))
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 2\) does not fit: \(12, H, W\)"):
        layer(draw(2, 3, 2, 2))  # 3 * 2 * 2 = 12, but these are not 12 channels
    with pytest.raises(NonFiniteInput):
        layer(torch.full((1, 12, 2, 2), float("inf"), dtype=torch.float64))


class Dropped(nn.Module):
    """A weight that is another one at each look at it."""

    def forward(self, weight):
        return F.dropout(weight, 0.5)


@pytest.mark.parametrize("fused", [None, True, False])
@pytest.mark.parametrize("options", [{"center": "batch"}, {"center": "running", "momentum": 1.0}, {"decor_bias": True}])
@pytest.mark.parametrize(("span", "groups"), [("channel", 1), ("channel", 2), ("patch", 1), ("patch", 2)])
def test_a_weight_that_is_computed_at_each_look_is_one_in_a_forward(span, groups, options, fused):
    """A constant input is what the mean, or b_R, takes away: the plain bias is left, by whatever weight."""
    layer = DecorConv2d(4, 4, 1, groups=groups, span=span, fuse=fused, **options)
    if layer.decorrelation.bias is not None:
        layer.decorrelation.bias.data.fill_(-3.0)
    nn.utils.parametrize.register_parametrization(layer, "weight", Dropped())
    out = layer(torch.full((6, 4, 5, 5), 3.0))
    torch.testing.assert_close(out, layer.bias[:, None, None].expand_as(out), rtol=0, atol=1e-5)
