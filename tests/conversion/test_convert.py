"""decorrelate and fuse: the same outputs there and back, and a report of what was left alone."""

import copy
import logging

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

import decorlib
from decorlib import (
    DecorConv2d,
    DecorConvTranspose2d,
    DecorLinear,
    Decorrelation,
    KappaRule,
    bp_parameters,
    conversion_report,
    decor_modules,
    decor_parameters,
    decor_update,
    decorrelate,
    fuse,
)

# These networks are at their random start, or get their means later: test_calibrate.py has the warning.
pytestmark = pytest.mark.filterwarnings("ignore:center='(batch|running)' subtracts the mean:UserWarning")


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 3))


def scramble(model):
    """Random R, b_R and running means."""
    for seed, (_, layer) in enumerate(decor_modules(model)):
        layer.weight.data += 0.2 * draw(*layer.weight.shape, seed=seed).to(layer.weight)
        if layer.bias is not None:
            layer.bias.data += 0.2 * draw(*layer.bias.shape, seed=seed + 100).to(layer.bias)
        if layer.running_mean is not None:
            layer.running_mean += 0.2 * draw(*layer.running_mean.shape, seed=seed + 200).to(layer.running_mean)
    return model


def train_steps(model, x, targets, steps=5, decor_lr=1e-3):
    optimizer = torch.optim.SGD(bp_parameters(model), lr=1e-3)
    decor_optimizer = torch.optim.SGD(decor_parameters(model), lr=decor_lr)
    before = [layer.weight.clone() for _, layer in decor_modules(model)]
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), targets).backward()
        optimizer.step()
        decor_update(model)
        decor_optimizer.step()
    for (name, layer), old in zip(decor_modules(model), before, strict=True):
        assert not torch.equal(layer.weight, old), name
    return model.eval()


def assert_plain(fused, like):
    """No layer of ours, and the keys of the plain model."""
    assert not [m for m in fused.modules() if type(m).__module__.startswith("decorlib")]
    keys = set(fused.state_dict())
    assert set(like.state_dict()) <= keys
    assert not [key for key in keys if "decorrelation" in key]


# ------------------------------------------------------------------------------------------------------- there


def test_three_lines_in_a_training_script():
    model = mlp()
    plain, x = copy.deepcopy(model), draw(5, 6)
    optimizer = torch.optim.Adam(model.parameters())  # built before: it goes on owning the weights
    weights, same = dict(model.named_parameters()), decorrelate(model)
    assert same is model
    assert torch.equal(model(x), plain(x))
    assert [type(m) for m in model] == [DecorLinear, nn.ReLU, DecorLinear, nn.Tanh, DecorLinear]
    for name, parameter in weights.items():
        assert model.get_parameter(name) is parameter
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in bp_parameters(model)}
    assert {layer.rule for _, layer in decor_modules(model)} == {KappaRule(kappa=0.5)}
    assert {layer.center for _, layer in decor_modules(model)} == {None}


@pytest.mark.parametrize(
    ("plain", "constructed"),
    [
        (nn.Linear(3, 4), DecorLinear(3, 4)),
        (nn.Conv2d(3, 4, 3, groups=1), DecorConv2d(3, 4, 3, span="channel")),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), DecorConvTranspose2d(4, 4, 3, groups=2)),
    ],
)
def test_a_converted_layer_is_what_the_constructor_makes(plain, constructed):
    converted = decorrelate(plain, span="channel")  # a layer may be the whole model
    assert type(converted) is type(constructed)
    assert set(vars(converted)) == set(vars(constructed))
    for name, value in constructed.state_dict().items():
        assert converted.state_dict()[name].shape == value.shape
    constructed.load_state_dict(converted.state_dict())


@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_keep_their_outputs(groups, span):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), 2, (1, 2), groups=groups),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding="same", padding_mode="circular", dilation=2, bias=False),
        nn.ConvTranspose2d(4, 2, 3, 2, groups=groups),
    ).double()
    x = draw(3, 4, 9, 8, dtype=torch.float64)
    expected = model(x)
    decorrelate(model, span=span)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-12)


def test_everything_of_a_layer_is_kept():
    model = mlp().double().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())
    model.add_module("tied", nn.Linear(6, 8).double())
    model.tied.weight = model[0].weight  # tied weights
    model.add_module("again", model[4])  # and one layer in two places
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("hook"))
    decorrelate(model)
    assert model.tied.weight is model[0].weight
    assert model.again is model[4]
    assert [model[i].weight.requires_grad for i in (0, 2, 4)] == [False, True, True]
    assert [m.decorrelation.training for m in (model[0], model[2])] == [True, False]
    assert model[0].decorrelation.weight.dtype == torch.float64
    assert len(list(decor_modules(model))) == 4
    model[0](draw(2, 6, dtype=torch.float64))
    assert calls == ["hook"]


def test_devices_are_kept():
    with torch.device("meta"):
        model = mlp()
    decorrelate(model, center="running", decor_bias=True)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_get_r_in_float32(dtype):
    model = mlp().to(dtype)
    x = draw(5, 6).to(dtype)
    expected = model(x)
    decorrelate(model)
    assert torch.equal(model(x), expected)
    assert {layer.weight.dtype for _, layer in decor_modules(model)} == {torch.float32}


def test_options_and_rules_reach_every_layer():
    model = decorrelate(mlp(), "whitening", center="running", update_every=3, decor_bias=True, fraction=0.5)
    for _, layer in decor_modules(model):
        assert layer.rule == decorlib.WhiteningRule()
        assert (layer.center, layer.update_every, layer.fraction) == ("running", 3, 0.5)
        assert layer.bias is not None
    model = decorrelate(mlp(), decorlib.PlainDecorrelation())
    assert {layer.rule for _, layer in decor_modules(model)} == {decorlib.PlainDecorrelation()}


@pytest.mark.parametrize(
    ("choice", "converted"),
    [
        ({"include": "0"}, ["0"]),
        ({"include": ["0", "4"]}, ["0", "4"]),
        ({"exclude": "4"}, ["0", "2", "inner.fc", "inner.conv"]),
        ({"exclude": nn.Linear}, ["inner.conv"]),
        ({"include": nn.Conv2d}, ["inner.conv"]),
        ({"include": "inner"}, ["inner.fc", "inner.conv"]),
        ({"exclude": "inner"}, ["0", "2", "4"]),
        ({"exclude": nn.ModuleDict}, ["0", "2", "4"]),
        ({"include": "inner.*", "exclude": nn.Conv2d}, ["inner.fc"]),
        ({"max_features": 7}, ["0", "inner.fc"]),
        ({"max_features": 7, "span": "channel"}, ["0", "inner.fc", "inner.conv"]),
    ],
)
def test_layers_are_chosen_by_name_type_and_size(choice, converted):
    model = mlp()
    model.inner = nn.ModuleDict({"fc": nn.Linear(2, 2), "conv": nn.Conv2d(3, 2, 3)})
    report = conversion_report(model, **choice)
    decorrelate(model, **choice)
    names = [name for name, m in model.named_modules() if isinstance(m, DecorLinear | DecorConv2d)]
    assert names == list(report.converted) == converted
    assert sorted(report.left_alone) == sorted({"0", "2", "4", "inner.fc", "inner.conv"} - set(converted))
    assert report.excluded == set(report.left_alone)


def odd_layers():
    tied = nn.Linear(3, 3)
    attention = type("OddAttention", (nn.MultiheadAttention,), {})(4, 2)
    return {
        "subclass of Linear": type("Odd", (nn.Linear,), {})(3, 3),
        "lazy: run a batch": nn.LazyLinear(3),
        "parametrised: remove": parametrizations.spectral_norm(nn.Linear(3, 3)),
        "parametrised: remove ": parametrizations.weight_norm(nn.Conv2d(3, 3, 3)),
        "weight is computed from others": prune.l1_unstructured(nn.Linear(3, 3), "weight", 2),
        "decorrelated already": DecorLinear(3, 3),
        "OddAttention is a subclass of MultiheadAttention": attention,
        "Embedding has no decorrelated counterpart": nn.Embedding(3, 3),
        "LSTM has no decorrelated counterpart": nn.LSTM(3, 3),
        "complex64": nn.Linear(3, 3, dtype=torch.complex64),
        "ConvTranspose3d has no": nn.ConvTranspose3d(3, 3, 3),
        "tied": tied,
        "ConvTranspose1d has no decorrelated counterpart: of transposed convolutions ConvTranspose2d alone has one, "
        "which does the same with kernel size (1, k)": nn.ConvTranspose1d(3, 3, 2),
        "ConvTranspose3d has no decorrelated counterpart: of transposed convolutions": nn.ConvTranspose3d(3, 3, 2),
    }


def test_what_is_left_alone_is_said_with_the_reason(caplog):
    layers = odd_layers()
    names = {f"layer{i}": reason for i, reason in enumerate(layers)}
    model = nn.ModuleDict(dict(zip(names, layers.values(), strict=True)))
    before = {name: type(m) for name, m in model.named_modules()}
    report = conversion_report(model)
    with caplog.at_level(logging.INFO, logger="decorlib"):
        decorrelate(model)
    assert list(report.converted) == ["layer11"]
    for name, reason in names.items():
        if reason != "tied":
            assert reason.strip() in report.left_alone[name]
            assert type(model[name]) is before[name]
            assert f"{name}: left alone, {report.left_alone[name]}" in caplog.text
    assert "only an attention that is decorrelated itself" in report.left_alone["layer6.out_proj"]
    assert caplog.records[0].levelname == "WARNING"
    assert str(report) in caplog.text


def test_nothing_surprising_is_not_a_warning(caplog):
    with caplog.at_level(logging.INFO, logger="decorlib"):
        decorrelate(mlp(), exclude="4")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "2 layers decorrelated, 1 left alone" in caplog.text


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*deprecated")
def test_hook_based_weight_norm_is_left_alone():
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(3, 3)), nn.utils.spectral_norm(nn.Linear(3, 3)), nn.Linear(3, 3)
    )
    report = conversion_report(model)
    assert list(report.converted) == ["2"]
    assert all("weight_norm" in reason for reason in report.left_alone.values())


def test_lazy_layers_can_be_converted_once_their_size_is_known():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    assert list(conversion_report(model).converted) == ["1"]
    x = draw(3, 5)
    expected = model(x)
    assert torch.equal(decorrelate(model)(x), expected)
    assert len(list(decor_modules(model))) == 2


class Bypassing(nn.Module):
    """Reads the weight of a layer without calling it."""

    def __init__(self):
        super().__init__()
        self.read, self.called, self.unused = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(3, 3)
        self.norm, self.calls = nn.BatchNorm1d(4), 0

    def forward(self, x):
        self.calls += 1
        return self.called(self.norm(nn.functional.linear(x, self.read.weight)))


def test_layers_that_the_forward_never_calls_are_found_with_a_sample():
    model, x = Bypassing(), draw(3, 4)
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    report = conversion_report(model, sample_input=x)
    assert list(report.converted) == ["called"]
    assert set(report.left_alone) == {"read", "unused"}
    assert all("never calls it" in reason for reason in report.left_alone.values())
    assert (model.training, model.norm.training, model.calls) == (True, False, 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(m._forward_pre_hooks for m in model.modules())
    decorrelate(model, sample_input=(x,))
    model(x)
    decor_update(model)
    careless = decorrelate(Bypassing())  # without the sample it is loud at the first update
    careless(x)
    with pytest.raises(RuntimeError, match=r"layer 'read\.decorrelation': .*never reached"):
        decor_update(careless)


def test_what_cannot_be_done_is_an_error_and_changes_nothing():
    for model, arguments, message in [
        (nn.Sequential(nn.ReLU()), {}, "nothing to decorrelate in this Sequential"),
        (mlp(), {"exclude": nn.Linear}, r"(?s)nothing to decorrelate.*0: left alone, excluded"),
        (mlp(), {"exclude": "head"}, "'head' matches no module; their names are e.g."),
        (mlp(), {"include": nn.Conv2d}, "Conv2d.* matches no module"),
        (mlp(), {"rule": "hebb"}, "no rule is called 'hebb'"),
        (mlp(), {"span": "pixel"}, "span is 'pixel'"),
        (mlp(), {"fraction": 2.0}, "fraction is 2.0"),
        (mlp(), {"eta": 2.0}, "belong to the rule of the 2024 notebook"),
    ]:
        with pytest.raises(ValueError, match=message):
            decorrelate(model, **arguments)
        assert not list(decor_modules(model))
    model = decorrelate(mlp())
    with pytest.raises(ValueError, match=r"(?s)nothing to decorrelate.*decorrelated already"):
        decorrelate(model)


# ------------------------------------------------------------------------------------------------------------ back


@pytest.mark.parametrize("center", [None, "batch", "running", "bias"])
@pytest.mark.parametrize("decor_bias", [False, True])
def test_fused_linear_layers_compute_the_same(center, decor_bias):
    plain = mlp().double()
    model = scramble(decorrelate(copy.deepcopy(plain), center=center, decor_bias=decor_bias)).eval()
    x, before = draw(5, 6, dtype=torch.float64), copy.deepcopy(model.state_dict())
    fused = fuse(model)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)
    assert (fused(x) - plain(x)).abs().max() > 0.01
    assert_plain(fused, plain)
    shifted = center is not None or decor_bias
    assert (fused[2].bias is not None) is shifted  # created where it is needed, and only there
    assert set(vars(fused[0])) == set(vars(nn.Linear(1, 1)))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("center", [None, "batch", "running"])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_fused_convolutions_compute_the_same_at_borders_too(mode, groups, span, center):
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 1), groups=groups, padding_mode=mode, bias=False),
        nn.Conv2d(6, 4, 3, padding="same", dilation=(1, 2), padding_mode=mode),
    ).double()
    model = scramble(decorrelate(copy.deepcopy(plain), span=span, center=center, decor_bias=True)).eval()
    x = draw(3, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-12, atol=1e-12)
    assert_plain(fuse(model), plain)


def test_fused_transposed_convolutions_and_those_that_cannot_be():
    plain = nn.Sequential(nn.Identity(), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)).double()
    model = scramble(decorrelate(copy.deepcopy(plain))).eval()
    x = draw(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-12, atol=1e-12)
    assert_plain(fuse(model), plain)
    for options in ({"center": "running"}, {"decor_bias": True}):
        model = nn.ModuleDict({"up": decorrelate(copy.deepcopy(plain), **options)})
        with pytest.raises(ValueError, match=r"layer 'up\.1': a transposed convolution with a mean.*center=None"):
            fuse(model)


@pytest.mark.parametrize("groups", [1, 3])
def test_bare_decorrelations_become_linear_layers(groups):
    torch.manual_seed(0)
    shared = Decorrelation(6, groups=groups, rule=KappaRule(), center="running", bias=True)
    for model in (nn.Sequential(shared, nn.ReLU(), shared), shared):
        model = scramble(model).eval()
        fused, x = fuse(model), draw(5, 6)
        torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
        assert_plain(fused, nn.Module())
        assert isinstance(model, Decorrelation) or fused[0] is fused[2]
    assert fuse(Decorrelation(3)).bias is None


def test_fuse_keeps_modes_dtypes_and_frozen_weights():
    model = mlp().to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    model[4].bias.requires_grad_(False)
    decorrelate(model, center="running")
    model[2].eval()
    fused = fuse(model)
    assert {p.dtype for p in fused.parameters()} == {torch.bfloat16}
    assert [m.training for m in fused] == [m.training for m in model]
    assert not fused[0].weight.requires_grad
    assert fused[0].bias.requires_grad
    assert not fused[4].bias.requires_grad


def test_fuse_leaves_the_generator_and_the_remembered_batch_of_the_model_alone():
    model = decorrelate(mlp(), fraction=0.5, generator=torch.Generator().manual_seed(3))
    model(draw(8, 6))
    fuse(model)
    decor_update(model)


def test_a_subclass_of_ours_is_refused_by_name():
    model = nn.Sequential(type("Odd", (DecorLinear,), {})(3, 3))
    with pytest.raises(ValueError, match="layer '0': Odd is a subclass"):
        fuse(model)


def test_a_plain_model_is_copied_as_it_is():
    model = mlp()
    fused = fuse(model)
    assert fused is not model
    torch.testing.assert_close(fused.state_dict(), model.state_dict(), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------- whole networks


def exported(fused, *inputs):
    return torch.export.export(fused, inputs).module()


@pytest.mark.parametrize("options", [{"span": "channel"}, {"max_features": 600, "fraction": 0.1, "center": "running"}])
def test_resnet18_converted_trained_fused_and_exported(options):
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=10)
    x, targets = draw(4, 3, 32, 32), torch.arange(4)
    model = decorrelate(copy.deepcopy(plain), **options)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=1e-5)
    train_steps(model, x, targets)
    fused = fuse(model)
    assert_plain(fused, plain)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(exported(fused, x)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch_first", "norm_first"), [(True, False), (True, True), (False, False)])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_transformer_encoder_converted_trained_fused_and_exported(batch_first, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=batch_first, norm_first=norm_first)
    plain = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(5 * 16, 6))
    x, targets = draw(5, 5, 16), torch.arange(5)
    model = decorrelate(copy.deepcopy(plain), center="running", sample_input=x)
    names = {name for name, m in model.named_modules() if isinstance(m, DecorLinear)}
    own = ("linear1", "linear2", "self_attn.out_proj")
    assert names == {"2"} | {f"0.layers.{i}.{name}" for i in (0, 1) for name in own}
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=1e-5)
    train_steps(model, x, targets, decor_lr=1e-2)
    fused = fuse(model)
    assert_plain(fused, plain)
    with_gradients = model(x).detach()  # torch takes its slow path then, which calls the layers
    with torch.no_grad():
        torch.testing.assert_close(model(x), with_gradients, rtol=0, atol=1e-5)
        torch.testing.assert_close(fused(x), with_gradients, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(exported(fused, x)(x), with_gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_the_inference_fast_path_cannot_skip_r():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation="gelu")
    plain = nn.TransformerEncoder(layer, 2).eval()
    x, mask = draw(3, 4, 8), torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    partly = decorrelate(copy.deepcopy(plain), include="layers.1")
    assert [m.activation_relu_or_gelu for m in partly.layers] == [2, 0]
    for model in (decorrelate(copy.deepcopy(plain)), partly):
        scramble(model)
        slow = model(x), model(x, src_key_padding_mask=mask)  # gradients are on: the layers are called
        with torch.no_grad():
            fast = model(x), model(x, src_key_padding_mask=mask)
            assert (plain(x) - slow[0]).abs().max() > 0.01
            fused = fuse(model)
            again = fused(x), fused(x, src_key_padding_mask=mask)
        torch.testing.assert_close(fast[0], slow[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(fast[1][~mask], slow[1][~mask], rtol=0, atol=1e-5)
        torch.testing.assert_close(again[0], slow[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(again[1][~mask], slow[1][~mask], rtol=0, atol=1e-5)
        assert {m.activation_relu_or_gelu for m in fused.layers} == {2}  # and it is fast again
        assert fused.use_nested_tensor
        assert [set(vars(m)) for m in fused.modules()] == [set(vars(m)) for m in plain.modules()]


def test_padding_masks_reach_the_layers_of_a_converted_transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = decorrelate(nn.TransformerEncoder(layer, 1), fraction=1.0)
    x, mask = draw(3, 4, 8), torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    gradients = []
    for noise in (0.0, 100.0):
        noisy = torch.where(mask[..., None], noise * draw(3, 4, 8, seed=2), x)
        with decorlib.padding(model, mask):
            model(noisy, src_key_padding_mask=mask)
        for _, layer in decor_modules(model):
            layer.update()
        gradients.append([layer.weight.grad for _, layer in decor_modules(model)])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
