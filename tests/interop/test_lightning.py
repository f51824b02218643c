"""Lightning: automatic and manual optimization, accumulation, 16 bit; the same R as a loop written by hand."""

import copy
import warnings

import pytest
import torch
from torch import nn

from decorlib import DecorLinear, DecorSGD, KappaRule, bp_parameters, decor_modules, decor_step

pytest.importorskip("lightning")
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins import MixedPrecision

from decorlib.integrations.lightning import DecorrelationCallback

# Lightning's own, about the machine and about what this small run leaves out
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 20


def network(**options):
    torch.manual_seed(0)
    layers = [DecorLinear(6, 8, rule=KappaRule(kappa=0.5), **options), nn.ReLU()]
    return nn.Sequential(*layers, DecorLinear(8, 3, rule=KappaRule(kappa=0.5), **options))


def batches(count=STEPS):
    torch.manual_seed(1)
    mix = torch.randn(6, 6)
    return [(torch.randn(16, 6) @ mix, torch.randint(3, (16,))) for _ in range(count)]


def by_hand(model, data, every=1, half=False):
    """Under 16 bit with a scaler for the weights; R is never told of it."""
    weights, scaler = torch.optim.SGD(bp_parameters(model), lr=0.05), torch.amp.GradScaler("cpu", enabled=half)
    for i, (x, t) in enumerate(data, 1):
        with torch.autocast("cpu", dtype=torch.half, enabled=half):
            loss = nn.functional.cross_entropy(model(x), t) / every
        scaler.scale(loss).backward()
        if i % every == 0:
            scaler.step(weights)
            scaler.update()
            weights.zero_grad()
            decor_step(model, 0.02)
    return model


class Module(LightningModule):
    def __init__(self, model, manual=None):
        super().__init__()
        self.model, self.automatic_optimization, self.own = model, manual is None, manual == "two optimizers"

    def training_step(self, batch, index):
        x, t = batch
        loss = nn.functional.cross_entropy(self.model(x), t)
        if not self.automatic_optimization:
            weights, *R = self.optimizers() if self.own else [self.optimizers()]
            weights.zero_grad()
            self.manual_backward(loss)
            weights.step()
            for optimizer in R:
                optimizer.step()
                optimizer.zero_grad()
        return loss

    def configure_optimizers(self):
        weights = torch.optim.SGD(bp_parameters(self), lr=0.05)
        return [weights, DecorSGD(self, lr=0.02)] if self.own else weights


def fit(model, tmp_path, manual=None, callback=True, **options):
    module = Module(model, manual)
    found = [DecorrelationCallback(DecorSGD(module, lr=0.02))] if callback else []
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=found,
        default_root_dir=tmp_path,
        **options,
    )
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    trainer.fit(module, loader)
    return trainer


def assert_same(a, b, **tolerance):
    R = [{name: layer.weight.detach() for name, layer in decor_modules(model)} for model in (a, b)]
    assert all(not torch.equal(one, torch.eye(len(one))) for one in R[0].values())
    torch.testing.assert_close(*R, **tolerance)


@pytest.mark.parametrize("manual", [None, "callback"])
def test_the_callback_steps_R_as_a_loop_by_hand_does_and_logs_its_losses(manual, tmp_path):
    model, plain = network(), network()
    trainer = fit(model, tmp_path, manual)
    assert_same(by_hand(plain, batches()), model)
    assert set(trainer.callback_metrics) == {"decor_loss/model.0.decorrelation", "decor_loss/model.2.decorrelation"}


def test_clipping_is_of_the_weights_alone(tmp_path):
    model, plain = network(), network()
    fit(model, tmp_path, gradient_clip_val=0.1)
    weights = torch.optim.SGD(bp_parameters(plain), lr=0.05)
    for x, t in batches():
        weights.zero_grad()
        nn.functional.cross_entropy(plain(x), t).backward()
        nn.utils.clip_grad_norm_(bp_parameters(plain), 0.1)
        weights.step()
        decor_step(plain, 0.02)
    assert_same(plain, model)
    torch.testing.assert_close(plain[0].weight, model[0].weight)


def test_with_accumulation_R_steps_when_the_weights_do(tmp_path):
    model, plain = network(accumulate=True), network(accumulate=True)
    fit(model, tmp_path, accumulate_grad_batches=4)
    assert_same(by_hand(plain, batches(), every=4), model)
    assert int(model[0].decorrelation.num_updates) == STEPS // 4


def test_two_optimizers_by_hand(tmp_path):
    model, plain = network(), network()
    fit(model, tmp_path, "two optimizers", callback=False)
    assert_same(by_hand(plain, batches()), model)


@pytest.mark.parametrize("manual", [None, "callback", "two optimizers"])
def test_under_16_bit_and_a_scaler_R_moves_as_without_a_scaler(manual, tmp_path):
    model, plain = network(), network()
    callback = manual != "two optimizers"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(
            model,
            tmp_path,
            manual,
            callback=callback,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))],
        )
    assert_same(by_hand(plain, batches(), half=True), model)
    moved = (model[0].decorrelation.weight - torch.eye(6)).abs().max()
    assert moved > 0.05


def test_the_state_of_R_is_in_the_checkpoint(tmp_path):
    callback = DecorrelationCallback(DecorSGD(network(), lr=0.02))
    saved = copy.deepcopy(callback.state_dict())
    other = DecorrelationCallback(DecorSGD(network(), lr=1.0))
    other.load_state_dict(saved)
    assert other.optimizer.param_groups[0]["lr"] == 0.02
