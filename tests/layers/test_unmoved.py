"""What else writes to R while it trains: found at the step after one that was looked at, and said once."""

import warnings

import pytest
import torch
from torch import nn

from decorlib import DecorOptimizer, DecorSGD, bp_parameters, decor_modules, decor_step, decorrelate

x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    8, 8, generator=torch.Generator().manual_seed(1)
)
SAID = r"R of \['0\.decorrelation', '2\.decorrelation'\] was written to since its last step.*bp_parameters.*set_weight"


def network():
    torch.manual_seed(0)
    return decorrelate(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)))


def clip(parameters):
    """What Wasserstein networks do to their critic after every step."""
    for p in parameters:
        p.data.clamp_(-0.05, 0.05)


def decay(parameters):
    with torch.no_grad():
        for p in parameters:
            p.mul_(1 - 1e-3)


def disturb(parameters):
    for p in parameters:
        p.data.add_(torch.randn(p.shape), alpha=1e-3)


def train(model, step, write, of, steps=5):
    for _ in range(steps):
        model(x).square().mean().backward()
        step()
        write(of(model))


STEPS = {
    "decor_step": lambda model: lambda: decor_step(model, 1e-3),
    "DecorSGD": lambda model: DecorSGD(model, lr=1e-3).step,
    "preserving": lambda model: DecorSGD(model, lr=1e-3, preserve_function=True).step,
    "momentum": lambda model: DecorOptimizer(model, torch.optim.SGD, lr=1e-3, momentum=0.9).step,
}


@pytest.mark.parametrize("stepping", STEPS)
@pytest.mark.parametrize("write", [clip, decay, disturb])
def test_a_loop_over_all_parameters_that_writes_to_r_is_said_once(write, stepping):
    model = network()
    with pytest.warns(RuntimeWarning, match=SAID) as said:
        train(model, STEPS[stepping](model), write, lambda m: m.parameters())
    assert len(said) == 1


@pytest.mark.parametrize("stepping", STEPS)
@pytest.mark.parametrize("write", [clip, decay, disturb])
def test_over_bp_parameters_nothing_is_said(write, stepping):
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, STEPS[stepping](model), write, bp_parameters)
    assert all((layer.weight.diagonal() > 0.5).all() for _, layer in decor_modules(model))


def test_a_loop_that_begins_later_is_found_at_the_next_look():
    model = network()
    step = STEPS["DecorSGD"](model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, step, clip, bp_parameters, steps=50)
    with pytest.warns(RuntimeWarning, match=SAID):
        train(model, step, clip, lambda m: m.parameters(), steps=60)


def swapped(model):
    """Averages of weights for an evaluation, and back."""
    kept = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.data.mul_(0.5)
    for p, value in zip(model.parameters(), kept, strict=True):
        p.data.copy_(value)


@pytest.mark.parametrize(
    "meant",
    [
        swapped,
        lambda model: [layer.set_weight(2 * layer.weight) for _, layer in decor_modules(model)],
        lambda model: model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()}),
        lambda model: [layer.reset_parameters() for _, layer in decor_modules(model)],
        lambda model: model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None),
        lambda model: model.double().float(),
    ],
)
def test_what_is_meant_is_no_surprise(meant):
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            model(x)
            decor_step(model, 1e-3)
            meant(model)
