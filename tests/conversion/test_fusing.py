"""fuse verifies on a sample, and refuses what it cannot fuse before it copies anything."""

import copy

import pytest
import torch
from code_alone import alone
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from decorlib import (
    DecorLinear,
    DecorMultiheadAttention,
    Decorrelation,
    KappaRule,
    bp_parameters,
    decor_modules,
    decor_step,
    decorrelate,
    fuse,
)
from decorlib.conversion import fusing


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scramble(model, size=0.3):
    for seed, (_, layer) in enumerate(decor_modules(model)):
        layer.weight.data += (size * draw(*layer.weight.shape, seed=seed)).to(layer.weight)
    return model


def mlp(**options):
    torch.manual_seed(0)
    return scramble(decorrelate(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), **options))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.enc = nn.Linear(6, 4)

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.enc(self.body(x))), self.enc.weight.t())


# ----------------------------------------------------------------------------------------------------- verified


def test_a_weight_that_is_read_elsewhere_is_refused_with_the_difference_and_the_place():
    torch.manual_seed(0)
    model, x = decorrelate(Autoencoder()), draw(64, 6) @ draw(6, 6)
    optimizer = torch.optim.SGD(bp_parameters(model), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - x).square().mean().backward()
        optimizer.step()
        decor_step(model, 1e-2)
    before = copy.deepcopy(model.state_dict())
    wrong = float(
        (fuse(model)(x) - model.eval()(x)).detach().abs().max()
    )  # what is promised without a sample does not hold here
    assert wrong > 0.01
    with pytest.raises(ValueError, match="Autoencoder and its fused copy disagree") as said:
        fuse(model.train(), sample_input=x)
    text = str(said.value)
    assert f"differ by {wrong:.3g} (the largest is {float(model.eval()(x).detach().abs().max()):.3g})" in text
    assert "first differ in layer '' (Autoencoder)" in text
    assert "though the layers in it agree" in text
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    # The way out that is given.
    left = scramble(decorrelate(Autoencoder(), sample_input=x))
    fuse(left, sample_input=x)


def wrong_by(factor, monkeypatch):
    """fuse writes every weight times a factor."""
    right = fusing._rewritten
    monkeypatch.setattr(
        fusing, "_rewritten", lambda model, new: right(model, {name: (w * factor, b) for name, (w, b) in new.items()})
    )


def test_the_first_layer_that_differs_is_named(monkeypatch):
    model, x = mlp(), draw(5, 6)
    wrong_by(1.0001, monkeypatch)
    with pytest.raises(ValueError, match=r"first differ in layer '0' \(DecorLinear\), by"):
        fuse(model, sample_input=x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_not_taken_for_a_mistake(dtype):
    torch.manual_seed(0)
    plain = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(32, 32), nn.Tanh())]).to(dtype)
    model = scramble(decorrelate(plain), 0.5)
    x = draw(16, 32).to(dtype)
    fused = fuse(model, sample_input=x)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    if dtype in (torch.bfloat16, torch.float16):  # where the outputs themselves are further apart than the tolerance
        assert (fused(x) - model.eval()(x)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_small_mistake_is_not_taken_for_rounding(dtype, monkeypatch):
    model, x = mlp().to(dtype), draw(16, 6).to(dtype)
    # bfloat16 has steps of 1/128; in the others a mistake of 1e-3 is far beyond rounding.
    wrong_by(1 + 1 / 16 if dtype == torch.bfloat16 else 1.001, monkeypatch)
    with pytest.raises(ValueError, match="more than rounding"):
        fuse(model, sample_input=x)


class Mixed(nn.Module):
    """Named inputs, several outputs, one of them masked with infinities, another of whole numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, keep):
        x.mul_(2)  # writes into its input
        y = self.second(torch.tanh(self.first(x)))
        return {"best": y.argmax(1), "scores": (y.masked_fill(~keep, float("-inf")), [y])}


def test_mappings_masks_and_models_that_write_into_their_input():
    torch.manual_seed(0)
    model = scramble(decorrelate(Mixed()))
    keep = torch.tensor([[True, True, False, True]]).expand(5, 4)
    sample = {"x": draw(5, 4), "keep": keep}
    fused = fuse(model, sample_input=sample)
    assert torch.equal(sample["x"], draw(5, 4))
    torch.testing.assert_close(fused(**copy.deepcopy(sample)), model(**sample))


class Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x).argmax(1)


def test_a_sample_that_tells_nothing_is_an_error():
    with pytest.raises(ValueError, match="returns no floating tensor on sample_input"):
        fuse(decorrelate(Silent()), sample_input=draw(2, 4))
    with pytest.raises(ValueError, match="not finite"):
        fuse(mlp(), sample_input=draw(2, 6) * torch.inf)


def test_modes_and_randomness_are_as_before():
    model, x = mlp(), draw(5, 6)
    model.add_module("drop", nn.Dropout(0.5))
    model[0].eval()
    modes, state = [m.training for m in model.modules()], torch.random.get_rng_state()
    fused = fuse(model, sample_input=x)
    assert [m.training for m in model.modules()] == modes
    assert [m.training for m in fused.modules()] == [
        m.training for m in model.modules() if not isinstance(m, Decorrelation)
    ]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


# ------------------------------------------------------------------------------------------------------ refused


class Quantised(torch.Tensor):
    """A tensor subclass, as quantised weights are."""


def quantised(model):
    model[2].weight = nn.Parameter(model[2].weight.detach().as_subclass(Quantised), requires_grad=False)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*deprecated")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: prune.l1_unstructured(m[2], "weight", 4),
            r"layer '2': its weight .*prune\.remove\(layer, 'weight'\)",
        ),
        (lambda m: prune.l1_unstructured(m[2], "bias", 1), r"layer '2': its bias .*prune\.remove\(layer, 'bias'\)"),
        (lambda m: prune.l1_unstructured(m[2].decorrelation, "weight", 4), r"layer '2\.decorrelation': .*prune"),
        (lambda m: nn.utils.spectral_norm(m[2]), "layer '2': its weight is computed .*remove_spectral_norm"),
        (lambda m: nn.utils.weight_norm(m[2]), "layer '2': its weight is computed .*remove_weight_norm"),
        (lambda m: parametrizations.orthogonal(m[2]), "layer '2': parametrised: remove the parametrization"),
        (quantised, "layer '2': its weight is a Quantised .*fuse first, then quantise"),
        (lambda m: m[2].to("meta"), r"layer '2': its values are not here \(on the meta device\)"),
        (lambda m: m[2].decorrelation.to("meta"), r"layer '2': its values are not here"),
        (lambda m: m[2].decorrelation.weight.data.zero_(), r"layer '2\.decorrelation': its R is zero"),
        (lambda m: m[2].decorrelation.weight.data.mul_(torch.nan), r"layer '2\.decorrelation': its R holds NaN"),
        (lambda m: setattr(m[2], "forward", lambda x: x[:, :3]), "layer '2': its forward was replaced on the object"),
        (lambda m: m.append(type("Odd", (type(m[0]),), {})(3, 3)), "layer '3': Odd is a subclass"),
        (lambda m: m.append(decorrelate(nn.ConvTranspose2d(3, 3, 2), decor_bias=True)), "layer '3': a transposed"),
    ],
)
def test_what_cannot_be_fused_is_refused_before_anything_is_copied(change, message, monkeypatch):
    model = mlp()
    change(model)
    if message.startswith("layer '2': its weight is computed"):
        with torch.no_grad():
            model(draw(3, 6))  # as it was seen: the weight is then a plain tensor

    def copied(*_):
        raise AssertionError("something was copied first")

    monkeypatch.setattr(copy, "deepcopy", copied)
    with pytest.raises(ValueError, match=message):
        fuse(model)


def test_after_prune_remove_it_fuses():
    model, x = mlp(), draw(3, 6)
    prune.l1_unstructured(model[2], "weight", 4)
    prune.remove(model[2], "weight")
    torch.testing.assert_close(fuse(model, sample_input=x)(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def adapter_around(layer, kind="lora", **attributes):
    """The shape of peft's adapters, without peft."""
    base = type("BaseTunerLayer", (), {"__module__": "peft.tuners.tuners_utils"})
    members = {"__module__": f"peft.tuners.{kind}.layer", "forward": lambda self, x: self.base_layer(x) + x[:, :3]}
    adapter = type("Linear", (nn.Module, base), members)()
    adapter.base_layer = layer
    for name, value in attributes.items():
        setattr(adapter, name, value)
    return adapter


def test_adapters_that_read_the_weight_or_are_merged_are_refused():
    x = draw(3, 6)
    for attributes, message in [
        ({"lora_variant": {"default": object()}}, "layer '1': the adapter is no plain LoRA but object"),
        ({"merged_adapters": ["default"]}, r"layer '1': the adapters \['default'\] are merged .*unmerge_adapter\(\)"),
        ({"kind": "boft"}, r"layer '1': adapters of the kind 'boft' may read the weight .*sample_input"),
    ]:
        model = nn.Sequential(nn.Identity(), adapter_around(mlp(), **attributes))
        with pytest.raises(ValueError, match=message):
            fuse(model)
    unknown = nn.Sequential(adapter_around(mlp(), kind="boft"))
    fuse(unknown, sample_input=x)  # verified, then
    plain = nn.Sequential(adapter_around(mlp(), lora_variant={}, merged_adapters=[]))
    torch.testing.assert_close(fuse(plain)(x), plain.eval()(x), rtol=1e-5, atol=1e-5)
    fuse(nn.Sequential(adapter_around(nn.Linear(6, 3), lora_variant={"default": object()}), *mlp()))  # no R below it


def test_what_torch_jit_has_traced_is_refused():
    out = alone(
        """
        import torch
        from torch import nn
        from decorlib import decorrelate, fuse
        model = decorrelate(nn.Sequential(nn.Linear(6, 3))).eval()
        try:
            fuse(torch.jit.trace(model, torch.randn(3, 6)))
        except ValueError as error:
            print(error)
        """
    )
    assert out == "layer '0.decorrelation': traced or scripted, so that its class is gone: fuse before torch.jit\n"


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel, AveragedModel])
def test_wrapped_models_are_fused_inside(wrap):
    model, x = mlp(), draw(3, 6)
    fused = fuse(wrap(model), sample_input=x)
    assert not list(decor_modules(fused))
    torch.testing.assert_close(fused(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_bare_decorrelation_is_checked_as_well():
    model = nn.Sequential(Decorrelation(4, rule=KappaRule()), nn.Linear(4, 2))
    model[0].weight.data.zero_()
    with pytest.raises(ValueError, match="layer '0': its R is zero"):
        fuse(model)


@pytest.mark.parametrize("kind", ["linear", "attention", "alone"])
def test_a_mean_that_is_no_longer_subtracted_is_not_fused(kind):
    """center=None, set on a layer that had a mean: fuse went on subtracting it."""
    torch.manual_seed(0)
    model = {
        "linear": DecorLinear(6, 3, center="running"),
        "attention": DecorMultiheadAttention(6, 2, center="running", inputs="self"),
        "alone": nn.Sequential(Decorrelation(6, center="running")),
    }[kind]
    x = torch.randn(5, 6) + 3
    inputs = (x, x, x) if kind == "attention" else (x,)
    model(*inputs)
    for _, layer in decor_modules(model):
        layer.center = None
    model.eval()
    ours, fused = (m(*inputs)[0] if kind == "attention" else m(*inputs) for m in (model, fuse(model)))
    torch.testing.assert_close(fused, ours, rtol=1e-5, atol=1e-5)
