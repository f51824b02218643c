"""What decorrelate cannot own it leaves alone with the reason; what would cost too much it says."""

import copy

import pytest
import torch
import torchvision
from code_alone import alone
from torch import nn
from torch.nn.utils import prune

from decorlib import conversion_report, decor_modules, decorrelate


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Quantised(torch.Tensor):
    """A tensor subclass, as quantised weights are."""


def adapted():
    """The shape of peft's adapters, without peft: classes of that name and place around a layer."""
    base = type("BaseTunerLayer", (), {"__module__": "peft.tuners.tuners_utils"})

    def __init__(self, layer):
        nn.Module.__init__(self)
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})

    members = {"__module__": "peft.tuners.lora.layer", "__init__": __init__}
    return type("Linear", (nn.Module, base), members)(nn.Linear(4, 4))


def test_all_of_an_adapter_is_left_alone():
    model = nn.Sequential(adapted(), nn.Linear(4, 4))
    report = conversion_report(model)
    assert list(report.converted) == ["1"]
    assert set(report.left_alone) == {"0.base_layer", "0.lora_A.default", "0.lora_B.default"}
    for reason in report.left_alone.values():
        assert "part of an adapter of peft ('0')" in reason
        assert "before get_peft_model, or after merge_and_unload" in reason
    with pytest.raises(ValueError, match=r"(?s)nothing to decorrelate.*adapter of peft"):
        decorrelate(adapted())


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_tensor_subclasses_are_left_alone(kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    values = getattr(model[0], kind).detach()
    setattr(model[0], kind, nn.Parameter(values.as_subclass(Quantised), requires_grad=False))
    report = conversion_report(model)
    assert list(report.converted) == ["1"]
    assert f"its {kind} is a Quantised of " in report.left_alone["0"]
    assert "then fuse, then quantise" in report.left_alone["0"]


def test_a_bias_that_is_computed_is_left_alone():
    model = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 4), "bias", 2), nn.Linear(4, 4))
    report = conversion_report(model)
    assert list(report.converted) == ["1"]
    assert "prune.remove(layer, 'bias') first" in report.left_alone["0"]


def test_a_forward_that_was_replaced_on_the_object_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x)
    report = conversion_report(model)
    assert list(report.converted) == ["1"]
    assert "its forward was replaced on the object" in report.left_alone["0"]


def test_a_head_that_shares_its_weight_with_an_embedding_is_left_alone():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    report = conversion_report(model)
    assert list(report.converted) == ["body"]
    assert "its weight is also that of 'embed' (Embedding)" in report.left_alone["head"]
    model["head"].weight = nn.Parameter(model["head"].weight.detach().clone())  # the way out that is given
    assert list(conversion_report(model).converted) == ["body", "head"]


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc, self.body = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x, y=None):
        h = self.body(torch.tanh(self.enc(x.to(self.body.weight.dtype) + torch.zeros_like(self.body.weight)[0, 0])))
        return nn.functional.linear(h, self.enc.weight.t())


@pytest.mark.parametrize("as_sample", [lambda x: x, lambda x: (x,), lambda x: {"x": x, "y": None}])
def test_a_weight_that_is_read_elsewhere_is_found_with_a_sample(as_sample):
    sample = as_sample(draw(3, 6))
    report = conversion_report(Autoencoder(), sample_input=sample)
    assert list(report.converted) == ["body"]  # whose weight's dtype and shape are read, not its values
    assert "its weight is read elsewhere in the forward" in report.left_alone["enc"]
    assert list(conversion_report(Autoencoder()).converted) == ["enc", "body"]  # cannot be known without


def test_a_rule_given_as_a_class_is_an_error_at_once():
    out = alone(
        """
        from torch import nn
        from decorlib import KappaRule, decor_modules, decorrelate
        model = nn.Sequential(nn.Linear(4, 4))
        try:
            decorrelate(model, rule=KappaRule)
        except TypeError as error:
            print(error, list(decor_modules(model)))
        """
    )
    assert out == "rule is the class KappaRule: give one with its values, KappaRule(...) []\n"


# ----------------------------------------------------------------------------------------------------------- cost


def of_r(model):
    return sum(layer.weight.numel() for _, layer in decor_modules(model))


def test_resnet18_over_patches_warns_with_the_numbers_and_the_ways_out():
    plain = torchvision.models.resnet18()
    with pytest.warns(UserWarning, match="R will hold") as said:
        model = decorrelate(copy.deepcopy(plain), rule="kappa")
    text = str(said[0].message)
    weights = sum(m.weight.numel() for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert len(said) == 1
    assert f"R will hold {of_r(model) / 1e6:.3g} M numbers" in text
    assert f"beside {weights / 1e6:.3g} M of the weights" in text
    assert "span='channel'" in text
    assert "max_features=4608" in text
    assert of_r(model) > 7 * weights


@pytest.mark.parametrize("way_out", [{"span": "channel"}, {"max_features": 1024}, {"max_features": 4608}])
def test_each_way_out_of_the_warning_is_quiet(way_out):
    with torch.device("meta"):
        decorrelate(torchvision.models.resnet18(), **way_out)


def test_small_networks_and_wide_layers_do_not_warn():
    with torch.device("meta"):
        decorrelate(nn.Sequential(nn.Linear(784, 10)))  # 78 times its weights, and milliseconds all the same
        decorrelate(nn.Sequential(nn.Linear(3000, 3000)))  # 9 million, and as many weights
        with pytest.warns(UserWarning, match=r"the dearest is '0' with 25088 features, 629 M beside 103 M"):
            decorrelate(nn.Sequential(nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 10)))


# --------------------------------------------------------------------------------------------------------- reload


def test_layers_are_found_by_what_they_are_after_a_reload():
    """Every module run again and every class another one, as ``%autoreload 2`` leaves them after an edit."""
    out = alone(
        """
        import importlib, sys
        import torch
        from torch import nn
        import decorlib
        model = nn.Sequential(decorlib.Decorrelation(4, rule=decorlib.KappaRule()), nn.Linear(4, 4))
        x = torch.randn(64, 4) @ torch.randn(4, 4)
        decorlib.decorrelate(model, center="running", sample_input=x)
        for _ in range(20):
            model(x)
            decorlib.decor_step(model, 1e-2)
        names = [name for name in sys.modules if name.startswith("decorlib") and not name.startswith("decorlib.study")]
        for name in sorted(names, key=lambda name: -name.count(".")):
            importlib.reload(sys.modules[name])
        print(isinstance(model[1], decorlib.DecorLinear), isinstance(model[0], decorlib.Decorrelation))
        print(decorlib.conversion_report(model).left_alone)
        fused = decorlib.fuse(model, sample_input=x)
        print([type(layer).__name__ for layer in fused])
        print(bool((fused(x) - model.eval()(x)).abs().max() < 1e-5), bool((fused[1].weight - model[1].weight).any()))
        """
    )
    assert out.splitlines() == [
        "False False",
        "{'1': 'decorrelated already'}",
        "['Linear', 'Linear']",
        "True True",
    ]
