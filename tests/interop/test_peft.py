"""peft: adapters on a decorrelated model, decorrelating a model with adapters, and the right order of merging."""

import copy

import pytest
import torch
from beside import assert_agrees, learned, mixed, needs, one_layer, output, perturbed, scale
from torch import nn

peft = needs("peft")

from decorlib import conversion_report, decor_modules, decor_step, decorrelate, fuse  # noqa: E402

X = mixed()
ON = {"target_modules": ["0"]}
ADDING = {
    "lora": lambda: peft.LoraConfig(**ON),
    "rslora": lambda: peft.LoraConfig(use_rslora=True, **ON),
    "lora_bias": lambda: peft.LoraConfig(lora_bias=True, **ON),
    "adalora": lambda: peft.AdaLoraConfig(total_step=10, **ON),
    "ia3": lambda: peft.IA3Config(feedforward_modules=[], **ON),
    "ia3 of the input": lambda: peft.IA3Config(feedforward_modules=["0"], **ON),
    "loha": lambda: peft.LoHaConfig(**ON),
    "lokr": lambda: peft.LoKrConfig(**ON),
    "vera": lambda: peft.VeraConfig(**ON),
}
UNKNOWN = {
    "oft": lambda: peft.OFTConfig(oft_block_size=4, r=0, **ON),
    "hra": lambda: peft.HRAConfig(**ON),
}


def adapted(config):
    """Adapters as after training, around a layer whose R is no longer the identity."""
    return perturbed(peft.get_peft_model(learned(decorrelate(one_layer()), X), config))


@pytest.mark.parametrize("kind", ADDING)
def test_fuse_first_then_merge(kind):
    model = adapted(ADDING[kind]())
    expected = output(model, X)
    fused = fuse(model, sample_input=X)
    assert_agrees(fused, expected, X)
    assert_agrees(fuse(model), expected, X)
    assert_agrees(fused.merge_and_unload(), expected, X)


@pytest.mark.parametrize("kind", ["lora", "loha", "ia3 of the input"])
def test_merging_into_a_decorrelated_layer_is_wrong(kind):
    """Why the order matters; a peft that gets this right would end the row in the docs."""
    model = adapted(ADDING[kind]())
    expected = output(model, X)
    assert scale(output(model.merge_and_unload(), X) - expected) > 0.1 * scale(expected)


def test_fuse_refuses_adapters_that_are_merged_but_not_unloaded():
    model = adapted(ADDING["lora"]())
    expected = output(model, X)
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"layer 'base_model\.model\.0': the adapters \['default'\] are merged"):
        fuse(model)
    model.unmerge_adapter()  # the way out that is given
    assert_agrees(fuse(model).merge_and_unload(), expected, X, 2e-5)


def test_dora_on_a_decorrelated_layer_is_refused():
    model = adapted(peft.LoraConfig(use_dora=True, **ON))
    for sample in (None, X):
        with pytest.raises(ValueError, match=r"layer 'base_model\.model\.0': the adapter .*DoraLinearVariant"):
            fuse(model, sample_input=sample)
    fused = fuse(learned(decorrelate(one_layer()), X))  # the way out that is given
    later = perturbed(peft.get_peft_model(fused, peft.LoraConfig(use_dora=True, **ON)))
    assert_agrees(copy.deepcopy(later).merge_and_unload(), output(later, X), X)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_adapters_of_other_kinds_need_a_sample(kind):
    model = adapted(UNKNOWN[kind]())
    with pytest.raises(ValueError, match=f"adapters of the kind '{kind}' may read the weight .*sample_input"):
        fuse(model)
    if kind == "hra":  # multiplies the weight of the layer itself, so that R is skipped
        with pytest.raises(ValueError, match=r"fused copy disagree.*base_model\.model\.0"):
            fuse(model, sample_input=X)
    else:
        assert_agrees(fuse(model, sample_input=X).merge_and_unload(), output(model, X), X)


def test_pissa_keeps_outputs_only_after_fuse():
    torch.manual_seed(0)
    model = learned(decorrelate(one_layer()), X)
    expected = output(model, X)
    pissa = {"init_lora_weights": "pissa", **ON}
    at_once = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**pissa))
    assert scale(output(at_once, X) - expected) > 0.01 * scale(expected)
    assert_agrees(peft.get_peft_model(fuse(model), peft.LoraConfig(**pissa)), expected, X)


def test_decorrelate_leaves_adapters_alone():
    plain = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    model = perturbed(peft.get_peft_model(plain, peft.LoraConfig(**ON)))
    report = conversion_report(model)
    prefix = "base_model.model."
    assert list(report.converted) == [f"{prefix}2"]
    assert set(report.left_alone) == {
        f"{prefix}0.{part}" for part in ("base_layer", "lora_A.default", "lora_B.default")
    }
    assert all("part of an adapter of peft" in reason for reason in report.left_alone.values())
    decorrelate(model)
    model.base_model.model[2].weight.requires_grad_(True)  # peft freezes what has no adapter, and R rests with it
    learned(model, X)
    assert len(list(decor_modules(model))) == 1
    expected = output(model, X)
    assert_agrees(fuse(model, sample_input=X), expected, X)
    assert_agrees(copy.deepcopy(model).merge_and_unload(), expected, X)  # what R covers has no adapter


def test_r_does_not_train_with_the_adapters():
    model = peft.get_peft_model(learned(decorrelate(one_layer()), X), peft.LoraConfig(**ON))
    before = {name: layer.weight.clone() for name, layer in decor_modules(model)}
    assert not torch.equal(*before.values(), torch.eye(8))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"no layer learns: layer '.*': the weights of its layer are frozen"):
        decor_step(model, 1e-2)
    for name, layer in decor_modules(model):
        assert torch.equal(layer.weight, before[name])
