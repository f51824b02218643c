"""torchao, torch.ao and pruning: what changes weights after training comes after fuse."""

import copy

import pytest
import torch
from beside import assert_agrees, learned, mixed, needs, output, scale
from torch import nn
from torch.nn.utils import prune

torchao = needs("torchao")

from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: E402

from decorlib import conversion_report, decorrelate, fuse  # noqa: E402

X = mixed(features=32)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def quantised(model):
    quantize_(model, Int8WeightOnlyConfig())
    return model


def test_a_quantised_model_is_not_decorrelated():
    model = quantised(network())
    report = conversion_report(model)
    assert not report.converted
    for name in ("0", "2"):
        assert "its weight is a Int8Tensor of torchao" in report.left_alone[name]
        assert "then fuse, then quantise" in report.left_alone[name]
    with pytest.raises(ValueError, match="nothing to decorrelate"):
        decorrelate(model)


def test_a_quantised_decorrelated_layer_is_not_fused():
    """quantize_ takes our layers for nn.Linear."""
    model = quantised(learned(decorrelate(network()), X))
    assert type(model[0].weight).__name__ == "Int8Tensor"
    with pytest.raises(
        ValueError, match=r"layer '0': its weight is a Int8Tensor of torchao.*fuse first, then quantise"
    ):
        fuse(model)


def test_fuse_first_then_quantise():
    model = learned(decorrelate(network()), X)
    expected = output(model, X)
    fused = quantised(fuse(model, sample_input=X))
    error = scale(output(fused, X) - expected) / scale(expected)
    plain = network()
    usual = scale(output(quantised(copy.deepcopy(plain)), X) - output(plain, X)) / scale(output(plain, X))
    assert 0 < error < 5 * usual  # what int8 costs a plain network


def test_prepare_qat_comes_after_fuse():
    """torch.ao knows layers by their exact class: it quantises nothing of a decorrelated model, and does not say so."""
    from torch.ao import quantization as ao

    def prepared(model):
        model = copy.deepcopy(model).train()
        model.qconfig = ao.get_default_qat_qconfig("x86")
        return [type(m).__module__ for m in ao.prepare_qat(model) if type(m).__module__.startswith("torch.ao.nn.qat")]

    model = learned(decorrelate(network()), X)
    assert prepared(model) == []
    assert len(prepared(fuse(model))) == 2


def test_pruned_layers_are_fused_once_the_masks_are_removed():
    model = learned(decorrelate(network()), X)
    prune.l1_unstructured(model[0], "weight", 0.3)
    expected = output(model, X)
    with pytest.raises(ValueError, match=r"layer '0': .*prune\.remove\(layer, 'weight'\) first"):
        fuse(model)
    prune.remove(model[0], "weight")
    assert_agrees(fuse(model, sample_input=X), expected, X)


def test_spectral_norm_comes_off_before_fuse():
    model = learned(decorrelate(network()), X)
    nn.utils.spectral_norm(model[0])
    expected = output(model, X)
    with pytest.raises(ValueError, match=r"layer '0': .*remove_spectral_norm"):
        fuse(model)
    nn.utils.remove_spectral_norm(model[0])
    assert_agrees(fuse(model, sample_input=X), expected, X)
