"""Centring keeps the function: with data the biases take up W mu, without them a warning says what changes."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from decorlib import Decorrelation, KappaRule, calibrate, decor_modules, decor_step, decorrelate, fuse
from decorlib.data.datasets import mnist


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1.5


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8, bias=False), nn.Linear(8, 3)
    ).double()


def convolutions(mode):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, 2, 1, padding_mode=mode, bias=False), nn.ReLU(), nn.Conv2d(6, 4, (3, 2), 1, 1, groups=2)
    ).double()


def assert_same(model, expected, x, atol=1e-12):
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=atol)


def means_of_inputs(model, x):
    """What each linear layer of the plain model sees, averaged over rows."""
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].mean(0)}))
    model.eval()(x)
    return seen


@pytest.mark.parametrize("center", ["batch", "running"])
@pytest.mark.parametrize("given", ["sample", "loader", "labelled loader", "generator", "mappings"])
def test_a_centred_model_computes_what_the_plain_one_did(center, given):
    plain, x = mlp(), draw(50, 6)
    plain[1].running_mean += 0.3
    with torch.no_grad():
        expected = copy.deepcopy(plain).eval()(x)
    means = means_of_inputs(copy.deepcopy(plain), x)
    labelled = torch.utils.data.TensorDataset(x, torch.zeros(50))
    data = {
        "sample": {"sample_input": x},
        "loader": {"calibration": torch.utils.data.DataLoader(x, 16)},
        "labelled loader": {"calibration": torch.utils.data.DataLoader(labelled, 16)},  # the last batch is smaller
        "generator": {"calibration": (part for part in x.split(7))},
        "mappings": {"calibration": [{"input": part} for part in x.split(7)]},
    }[given]
    model = copy.deepcopy(plain).train()
    model[3].eval()
    model = decorrelate(model, center=center, **data)
    assert [m.training for m in model] == [True, True, True, False, True, True]
    assert all(layer.training for _, layer in decor_modules(model))
    for name, mean in means.items():
        torch.testing.assert_close(model.get_submodule(name).decorrelation.running_mean, mean, rtol=0, atol=1e-12)
        assert mean.abs().max() > 0.1
    assert_same(model, expected, x)
    assert_same(fuse(model, sample_input=x), expected, x)
    if center == "batch":  # in training the same up to the mean of the batch: none where the batch is all of the data
        torch.testing.assert_close(model.train()[0](x), plain[0](x), rtol=0, atol=1e-12)
        part = x[:20]
        gap = plain[0](part) - model[0](part)
        torch.testing.assert_close(gap[0], plain[0].weight @ (part.mean(0) - means["0"]), rtol=0, atol=1e-12)


def test_a_bias_is_kept_or_created():
    model, x = mlp(), draw(50, 6)
    bias, keys = model[0].bias, set(model.state_dict())
    model[4].weight.requires_grad_(False)
    decorrelate(model, center="running", calibration=[x])
    assert model[0].bias is bias  # an optimizer that was built before goes on owning it
    assert {k for k in model.state_dict() if "decorrelation" not in k} == keys | {"4.bias"}
    assert not model[4].bias.requires_grad  # it trains if the weight does
    reloaded = decorrelate(mlp(), center="running", calibration=[x])
    reloaded.load_state_dict(model.state_dict())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("center", ["batch", "running"])
def test_convolutions_keep_their_outputs_at_borders_too(mode, span, center):
    plain, x = convolutions(mode), draw(9, 4, 7, 8)
    with torch.no_grad():
        expected = plain(x)
    model = decorrelate(copy.deepcopy(plain), span=span, center=center, calibration=x.split(4))
    assert_same(model, expected, x)
    assert model[0].decorrelation.running_mean.abs().max() > 0.5


@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("decor_bias", [False, True])
def test_calibrating_again_with_another_r_and_mean(span, decor_bias):
    model = decorrelate(
        convolutions("zeros"), span=span, center="running", decor_bias=decor_bias, calibration=[draw(9, 4, 7, 8)]
    )
    for seed, (_, layer) in enumerate(decor_modules(model)):
        layer.weight.data += 0.3 * draw(*layer.weight.shape, seed=seed) - 0.4
    x = draw(5, 4, 7, 8, seed=3) * 2
    with torch.no_grad():
        expected = model.eval()(x)
    before = [layer.running_mean.clone() for _, layer in decor_modules(model)]
    assert calibrate(model, [x]) is model
    assert_same(model, expected, x, 1e-10)
    for old, (_, layer) in zip(before, decor_modules(model), strict=True):
        assert (old - layer.running_mean).abs().max() > 0.3
    model.train()
    with pytest.raises(RuntimeError):  # nothing of the pass is left to learn from
        decor_step(model, 1e-3)


def test_accuracy_on_digits_is_that_of_the_plain_model():
    """The case as it was seen: a trained MLP, forwards only; 0.08 of accuracy went."""
    digits = mnist()
    x, labels = digits.data[::30].flatten(1) / 255, digits.targets[::30]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(plain.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(plain(x), labels).backward()
        optimizer.step()

    def accuracy(model):
        with torch.no_grad():
            return float((model.eval()(x).argmax(1) == labels).double().mean())

    before = accuracy(plain)
    assert before > 0.9
    for center in ("batch", "running"):
        kept = decorrelate(copy.deepcopy(plain), center=center, calibration=x.split(100))
        with pytest.warns(UserWarning, match=f"center='{center}' subtracts the mean .* outputs change by W mu"):
            changed = decorrelate(copy.deepcopy(plain), center=center)
        for model in (kept, changed):
            with torch.no_grad():
                for part in x.split(100):
                    model.train()(part)
        assert abs(accuracy(kept) - before) < 0.005
        assert accuracy(changed) < before - 0.02


def test_without_a_mean_there_is_nothing_to_calibrate_and_no_warning():
    decorrelate(mlp())
    decorrelate(mlp(), center="bias")
    with pytest.raises(ValueError, match="no layer subtracts one: give center='batch' or center='running'"):
        decorrelate(mlp(), calibration=[draw(4, 6)])
    with pytest.raises(ValueError, match=r"no layer is centred: decorrelate\(model, center='batch'\)"):
        calibrate(decorrelate(mlp()), [draw(4, 6)])


def half_way(x):
    """A batch that fits, and one that does not."""
    return itertools.chain([x], [x[:, :2]])


class Skipping(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        return self.used(x)


def transposed():
    return nn.Sequential(nn.Linear(6, 6), nn.Unflatten(1, (6, 1, 1)), nn.ConvTranspose2d(6, 2, 3)).double()


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    model[1].bias = model[0].bias
    return model


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (mlp, lambda x: half_way(x), "."),
        (mlp, lambda x: iter([]), "calibration holds no batch"),
        (mlp, lambda x: ["text"], "a batch of calibration is a str"),
        (mlp, lambda x: [x * torch.nan], "holds NaN"),
        (lambda: Skipping().double(), lambda x: [x], "never reached 'unused'"),
        (transposed, lambda x: [x], r"layer '2': the mean of a transposed convolution .* center=None"),
        (tied, lambda x: [x], "layer '0' shares its bias with another"),
    ],
)
def test_what_cannot_be_calibrated_is_an_error_and_changes_nothing(make, data, message):
    model, x = make(), draw(9, 6)
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    attributes = [set(vars(m)) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    with pytest.raises((ValueError, RuntimeError), match=message):
        decorrelate(model, center="running", calibration=data(x))
    assert [type(m) for m in model.modules()] == kinds
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_bare_decorrelation_has_no_bias_to_take_up_its_mean():
    model = nn.Sequential(Decorrelation(6, rule=KappaRule(), center="running"), nn.Linear(6, 2)).double()
    with pytest.raises(ValueError, match="layer '0' has no bias that could take up its mean"):
        calibrate(model, [draw(9, 6)])


def test_a_bias_that_is_computed_takes_up_nothing():
    """What it was given was lost at the next forward: outputs 3.8 off."""
    model, x = decorrelate(mlp(), exclude="0", center="batch", calibration=[draw(9, 6)]), draw(9, 6, seed=1)
    prune.l1_unstructured(model[5], "bias", 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"layer '5': its bias is computed from others.*prune\.remove\(layer, 'bias'\)"
    ):
        calibrate(model, [x + 3])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    prune.remove(model[5], "bias")
    expected = model.eval()(x).detach()
    assert_same(calibrate(model, [x + 3]), expected, x)
