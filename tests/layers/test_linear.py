"""DecorLinear beside nn.Linear, and its two ways of multiplying beside each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from decorlib import DecorLinear, KappaRule

D, M = 6, 4


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layer_of(*, fuse=None, bias=True, **options):
    """A layer with a random R, b_R and running mean."""
    torch.manual_seed(2)
    layer = DecorLinear(D, M, bias, rule=KappaRule(kappa=0.3), fuse=fuse, dtype=torch.float64, **options)
    inner = layer.decorrelation
    inner.weight.data += 0.3 * draw(*inner.weight.shape, seed=7)
    if inner.bias is not None:
        inner.bias.data += draw(D, seed=8)
    if inner.running_mean is not None:
        inner.running_mean += draw(D, seed=9)
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_same_seed_gives_the_weights_of_the_plain_layer(bias):
    torch.manual_seed(5)
    plain = nn.Linear(D, M, bias)
    after = torch.rand(3)
    torch.manual_seed(5)
    layer = DecorLinear(D, M, bias)
    assert torch.equal(after, torch.rand(3))  # R draws nothing: what is initialised next is the same, too
    assert torch.equal(plain.weight, layer.weight)
    assert (plain.bias is None) == (layer.bias is None)
    assert bias is False or torch.equal(plain.bias, layer.bias)


@pytest.mark.parametrize("fuse", [True, False, None])
@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 5, D), (2, 3, 4, D), (300, D)])
def test_outputs_of_the_plain_layer_to_the_bit_at_the_start(shape, fuse):
    torch.manual_seed(0)
    plain, layer = nn.Linear(D, M), DecorLinear(D, M, fuse=fuse)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = draw(*shape, dtype=torch.float32)
    for mode in (True, False):
        assert torch.equal(plain(x), layer.train(mode)(x))


def test_state_dict_of_the_plain_layer_loads_and_r_stays_the_identity():
    layer, plain = DecorLinear(D, M), nn.Linear(D, M)
    result = layer.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(key.startswith("decorrelation.") for key in result.missing_keys)
    assert torch.equal(layer.decorrelation.weight, torch.eye(D))


def test_images_are_taken_flat():
    layer = layer_of()
    x = draw(5, 1, 2, 3)
    torch.testing.assert_close(layer(x), layer(x.flatten(1)))
    assert layer(x).shape == (5, M)


@pytest.mark.parametrize("center", [None, "batch", "running"])
@pytest.mark.parametrize("decor_bias", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_fused_is_unfused_in_forward_gradients_and_statistics(center, decor_bias, bias, groups, training):
    results = []
    for fuse in (True, False):
        layer = layer_of(fuse=fuse, bias=bias, center=center, decor_bias=decor_bias, groups=groups).train(training)
        x = draw(3, 7, D, seed=1).requires_grad_()
        out = layer(x)
        out.backward(draw(3, 7, M, seed=3))
        learned = (
            [layer.update(), layer.decorrelation.weight.grad, layer.decorrelation.running_mean] if training else []
        )
        results.append([out, x.grad, layer.weight.grad, layer.bias.grad if bias else None, *learned])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    if not training or center is None:  # and both are what the docstring says
        inner = layer.decorrelation
        R = inner.weight if groups == 1 else torch.block_diag(*inner.weight)
        mean = 0 if inner.running_mean is None else inner.running_mean
        y = (x - mean) @ R.T + (0 if inner.bias is None else inner.bias)
        torch.testing.assert_close(results[0][0], F.linear(y, layer.weight, layer.bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fuse", [True, False])
def test_gradcheck(fuse):
    layer = layer_of(fuse=fuse, center="batch", decor_bias=True)
    start = layer.decorrelation.running_mean.clone()
    layer.decorrelation.learning = False  # hundreds of forwards, and no update

    def out(x, weight, bias):
        layer.decorrelation.running_mean.copy_(start)
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (draw(4, D), layer.weight.detach(), layer.bias.detach())
    assert torch.autograd.gradcheck(out, tuple(t.clone().requires_grad_() for t in inputs))


def test_the_cheaper_way_is_chosen_by_shape():
    layer = DecorLinear(64, 4)
    many, few = torch.randn(1000, 64), torch.randn(2, 64)
    with torch.no_grad():
        layer.eval()
        assert layer._fuses(many)
        assert not layer._fuses(few)
    layer.train()
    assert not layer._fuses(many)  # y is needed for the statistics anyway
    layer.decorrelation.fraction = 0.1
    assert layer._fuses(many)


def test_reset_parameters_resets_r_too():
    layer = layer_of(center="running", decor_bias=True)
    layer(draw(3, D))
    layer.update()
    before = layer.weight.clone()
    layer.reset_parameters()
    assert torch.equal(layer.decorrelation.weight, torch.eye(D, dtype=torch.float64))
    for zero in (layer.decorrelation.bias, layer.decorrelation.running_mean, layer.decorrelation.num_updates):
        assert not zero.any()
    assert not torch.equal(before, layer.weight)


def test_half_precision_layer_runs_fused_and_unfused():
    for fuse in (True, False):
        layer = DecorLinear(D, M, rule=KappaRule(), center="running", decor_bias=True, fuse=fuse).to(torch.bfloat16)
        out = layer(draw(5, D).to(torch.bfloat16))
        assert out.dtype == torch.bfloat16
        out.sum().backward()
        before = layer.decorrelation.weight.clone()
        assert before.dtype == torch.float32
        layer.step(1e-4)
        assert not torch.equal(before, layer.decorrelation.weight)


@pytest.mark.parametrize("fuse", [True, False])
def test_under_autocast(fuse):
    layer = DecorLinear(D, M, rule=KappaRule(), center="batch", decor_bias=True, fuse=fuse)
    x = draw(5, D, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    before = layer.decorrelation.weight.clone()
    layer.step(1e-4)
    assert layer.decorrelation.weight.dtype == torch.float32
    assert not torch.equal(before, layer.decorrelation.weight)
    torch.testing.assert_close(out.float(), layer.eval().train()(x), rtol=0, atol=0.05)


def test_wrong_features_are_named():
    with pytest.raises(ValueError, match=rf"\(3, {D + 1}\) does not fit in_features = {D}"):
        DecorLinear(D, M)(torch.randn(3, D + 1))


def test_a_device_in_the_place_where_torchs_layer_takes_it_is_an_error():
    """It was taken for decor_bias, so that b_R was learned, on another device."""
    for device in ("cpu", torch.device("cpu")):
        with pytest.raises(ValueError, match=r"bias is .*cpu.*decor_bias of a layer; give device= by name"):
            DecorLinear(8, 4, True, device)
    assert DecorLinear(8, 4, True, False, device="cpu").decorrelation.bias is None
