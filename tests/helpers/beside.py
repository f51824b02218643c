"""What the tests beside other libraries share: R that is no longer the identity, and outputs that agree."""

import warnings
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from decorlib import bp_parameters, decor_modules, decor_step


def needs(*names):
    """The modules of those names, or the tests of this file are skipped: `make test-interop` installs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others deprecate while they are imported is no failure of ours
        found = [pytest.importorskip(name) for name in names]
    return found[0] if len(found) == 1 else found


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output(model, sample):
    """The first floating tensor that a model returns in evaluation mode."""
    with torch.no_grad():
        model = model.eval()
        result = model(**sample) if isinstance(sample, Mapping) else model(sample)
    if isinstance(result, Mapping):
        result = next(result[key] for key in ("logits", "last_hidden_state") if key in result)
    return result


def scale(tensor):
    return float(tensor.abs().max())


def assert_agrees(model, expected, sample, tolerance=1e-5):
    got = output(model, sample)
    assert got.shape == expected.shape
    assert scale(got - expected) <= tolerance * scale(expected)


def mixed(rows=64, features=8):
    """Correlated inputs."""
    return draw(rows, features) @ draw(features, features, seed=1)


def learned(model, sample, steps=20, lr=1e-2):
    """A model whose R have learned from a sample, and only they."""
    model.train()
    for _ in range(steps):
        model(sample)
        decor_step(model, lr)
    return model.eval()


def three_steps(model, sample, loss_of, lr=1e-3):
    """Three steps of Adam and of R; every R has moved."""
    before = {name: layer.weight.clone() for name, layer in decor_modules(model)}
    optimizer = torch.optim.Adam(bp_parameters(model), lr=1e-3)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model(**sample) if isinstance(sample, Mapping) else model(sample)).backward()
        optimizer.step()
        losses = decor_step(model, lr)
    assert losses.keys() == before.keys()
    for name, layer in decor_modules(model):
        assert not torch.equal(layer.weight, before[name]), name
    return model.eval()


def assert_plain(fused):
    assert not [m for m in fused.modules() if type(m).__module__.startswith("decorlib")]
    assert not [key for key in fused.state_dict() if "decorrelation" in key]


def perturbed(adapters, seed=0):
    """Adapters as after training: random, where peft starts them at zero."""
    torch.manual_seed(seed)
    for name, parameter in adapters.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return adapters.eval()


def one_layer():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8))
