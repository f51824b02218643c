"""accelerate: prepared like any optimizer, with accumulation and clipping; the same R as a loop written by hand."""

import pytest
import torch
from torch import nn

from decorlib import DecorLinear, DecorOptimizer, DecorSGD, KappaRule, bp_parameters, decor_modules

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


def network():
    torch.manual_seed(0)
    layers = (DecorLinear(6, 8, rule=KappaRule(), accumulate=True), nn.ReLU())
    return nn.Sequential(*layers, DecorLinear(8, 3, rule=KappaRule(), accumulate=True))


def batches(count):
    torch.manual_seed(1)
    mix = torch.randn(6, 6)
    return [(torch.randn(16, 6) @ mix, torch.randint(3, (16,))) for _ in range(count)]


def sgd(model):
    return DecorSGD(model, lr=0.02)


def adam(model):
    return DecorOptimizer(model, torch.optim.Adam, lr=0.01)


@pytest.mark.parametrize("make", [sgd, adam])
@pytest.mark.parametrize("every", [1, 4])
def test_a_prepared_optimizer_of_R_steps_as_a_loop_by_hand_does(make, every):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=every)
    model, plain = network(), network()
    optimizers = [accelerator.prepare(o) for o in (torch.optim.SGD(bp_parameters(model), lr=0.05), make(model))]
    prepared = accelerator.prepare(model)
    by_hand = torch.optim.SGD(bp_parameters(plain), lr=0.05), make(plain)
    for i, (x, t) in enumerate(batches(20 * every), 1):
        with accelerator.accumulate(prepared):
            accelerator.backward(nn.functional.cross_entropy(prepared(x), t))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
        (nn.functional.cross_entropy(plain(x), t) / every).backward()
        if i % every == 0:
            nn.utils.clip_grad_norm_(bp_parameters(plain), 0.5)
            for optimizer in by_hand:
                optimizer.step()
                optimizer.zero_grad()
    R = [{name: layer.weight.detach() for name, layer in decor_modules(one)} for one in (model, plain)]
    assert all(not torch.equal(one, torch.eye(len(one))) for one in R[0].values())
    torch.testing.assert_close(*R)
    assert int(model[0].decorrelation.num_updates) == 20


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_scaler_that_is_updated_after_each_optimizer_leaves_R_alone(make):
    """What accelerate does under fp16, here with a scaler that runs on the CPU."""
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu")
    model, plain = network(), network()
    weights, R = (
        AcceleratedOptimizer(o, scaler=scaler) for o in (torch.optim.SGD(bp_parameters(model), lr=0.0), make(model))
    )
    by_hand = make(plain)
    for x, t in batches(20):
        scaler.scale(nn.functional.cross_entropy(model(x), t)).backward()
        for optimizer in (weights, R):
            optimizer.step()
            optimizer.zero_grad()
        plain(x), by_hand.step()
    assert not R.step_was_skipped
    found = [{name: layer.weight.detach() for name, layer in decor_modules(one)} for one in (model, plain)]
    torch.testing.assert_close(*found, rtol=0, atol=0)
