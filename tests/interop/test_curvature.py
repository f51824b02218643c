"""backpack and curvlinops look at the inputs of a layer, and the weight of ours multiplies R x. Fuse first."""

import copy

import torch
from beside import learned, mixed, needs, one_layer, scale
from torch import nn

backpack, curvlinops = needs("backpack", "curvlinops")

from backpack.extensions import BatchGrad  # noqa: E402

from decorlib import decorrelate, fuse  # noqa: E402

X = mixed()


def model_of():
    return learned(decorrelate(one_layer()), X)


def per_sample(model):
    model, loss = backpack.extend(model), backpack.extend(nn.MSELoss(reduction="sum"))
    with backpack.backpack(BatchGrad()):
        loss(model(X), torch.zeros(64, 8)).backward()
    return getattr(model[0].weight, "grad_batch", None), model[0].weight.grad


def test_gradients_per_sample_come_after_fuse():
    each, _ = per_sample(copy.deepcopy(model_of()))
    assert each is None  # and nothing is said
    fused = fuse(model_of())
    each, together = per_sample(fused)
    assert each.shape == (64, 8, 8)
    torch.testing.assert_close(each.sum(0), together, rtol=1e-4, atol=1e-4)


def off_by(model):
    """How far KFAC is from the GGN where the two are the same: one layer and a squared loss."""
    model = model.double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    data = [(X.double(), torch.zeros(64, 8, dtype=torch.float64))]
    loss, options = nn.MSELoss(), {"check_deterministic": False}
    exact = curvlinops.GGNLinearOperator(model, loss, parameters, data, **options)
    together = {"fisher_type": "type-2", "separate_weight_and_bias": False}
    kfac = curvlinops.KFACLinearOperator(model, loss, parameters, data, **together, **options)
    exact, kfac = (operator @ torch.eye(exact.shape[1], dtype=torch.float64) for operator in (exact, kfac))
    return scale(kfac - exact) / scale(exact)


def test_kfac_comes_after_fuse():
    assert off_by(fuse(model_of())) < 1e-6
    assert off_by(model_of()) > 0.1
