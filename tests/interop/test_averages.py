"""Averages of weights (torch.optim.swa_utils): what becomes of R, of running means, and of update_bn."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from decorlib import DecorSGD, bp_parameters, decor_modules, decorrelate

pytestmark = pytest.mark.filterwarnings("ignore:center='batch' subtracts")


def trained(**how):
    """A model after eight steps, its average over them, and what its R and running mean were after each."""
    torch.manual_seed(0)
    model = decorrelate(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), center="batch")
    optimizer, owner = torch.optim.Adam(bp_parameters(model), 1e-2), DecorSGD(model, lr=1e-2)
    average, seen = AveragedModel(model, **how), []
    for _ in range(8):
        loss = model(2 + torch.randn(16, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        owner.step()
        average.update_parameters(model)
        layer = model[2].decorrelation
        seen.append((layer.weight.clone(), layer.running_mean.clone()))
    return model, average, [torch.stack(each) for each in zip(*seen, strict=True)]


def test_r_and_with_use_buffers_running_means_are_averaged():
    _, average, (R, means) = trained(use_buffers=True)
    layer = average.module[2].decorrelation
    torch.testing.assert_close(layer.weight, R.mean(0))
    torch.testing.assert_close(layer.running_mean, means.mean(0))


def test_without_use_buffers_running_means_are_those_of_the_last_step():
    _, average, (R, means) = trained()
    layer = average.module[2].decorrelation
    torch.testing.assert_close(layer.weight, R.mean(0))
    assert torch.equal(layer.running_mean, means[-1])
    assert not torch.allclose(means[-1], means.mean(0), atol=1e-3)


def test_update_bn_passes_running_means_by_and_a_training_pass_sets_them():
    """As docs/beside.md says: what to do in its place."""
    _, average, _ = trained()
    batches = list((2 + torch.randn(64, 6)).split(16))
    before = average.module[2].decorrelation.running_mean.clone()
    update_bn(batches, average)
    assert torch.equal(average.module[2].decorrelation.running_mean, before)

    layers = [layer for _, layer in decor_modules(average)]
    for layer in layers:
        layer.momentum, layer.learning = None, False
        layer.num_batches_tracked.zero_()
    average.train()
    with torch.no_grad():
        for x in batches:
            average(x)
    torch.testing.assert_close(layers[0].running_mean, torch.cat(batches).mean(0))


def test_an_average_of_what_requires_a_gradient_leaves_r_out():
    """As many hand-written ones do; that over all of state_dict has it."""
    model, _, (R, _) = trained()
    requiring = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("decorrelation" in name for name in requiring)
    kept = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    assert torch.equal(kept["2.decorrelation.weight"], R[-1])
    assert torch.equal(kept["2.decorrelation.running_mean"], model[2].decorrelation.running_mean)
    assert requiring < set(kept)
