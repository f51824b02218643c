"""decor_update and an optimizer of one's own: whatever happens to R's gradient on the way to its step is an error."""

import copy

import pytest
import torch
from torch import nn

from decorlib import (
    DecorLinear,
    DecorSGD,
    FoldiakRule,
    KappaRule,
    LostGradient,
    bp_parameters,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_update,
)
from decorlib.layers import pending

HALF = KappaRule(kappa=0.5)
NAMES = r"\['0\.decorrelation', '2\.decorrelation'\]"
WAY_OUT = r"decorlib\.DecorSGD\(model, lr\).*decor_step\(model, lr\)"


def network():
    torch.manual_seed(0)
    return nn.Sequential(DecorLinear(8, 8, rule=HALF), nn.ReLU(), DecorLinear(8, 8, rule=HALF))


def data():
    torch.manual_seed(1)
    return torch.randn(64, 8) @ torch.randn(8, 8)


def owners(model):
    return torch.optim.Adam(bp_parameters(model)), torch.optim.SGD(decor_parameters(model), 1e-2)


def matrices(model):
    return [layer.weight.detach().clone() for _, layer in decor_modules(model)]


def unchanged(model, before):
    return all(torch.equal(a, layer.weight) for a, (_, layer) in zip(before, decor_modules(model), strict=True))


def backward(model, x):
    loss = model(x).square().mean()
    loss.backward()
    return loss


# ------------------------------------------------------------------------------------------------ the cases, kind 1


def test_clipping_of_all_parameters_sees_the_weights_gradients_alone():
    """Row 1: norms were 13.9, 1459, 1455, since R's gradient of the step before was counted."""
    model, x, norms, expected = network(), data(), [], []
    weights, matrices_ = owners(model)
    for _ in range(3):
        weights.zero_grad()
        backward(model, x)
        expected.append(float(nn.utils.clip_grad_norm_(bp_parameters(model), 1e9)))
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        weights.step()
        decor_update(model)
        matrices_.step()
        assert all(p.grad is None for p in decor_parameters(model))
    assert norms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [{}, {"fused": True}])
def test_a_scaler_of_the_loss_may_not_divide_the_gradient_of_R(kind):
    """Row 2: R moved by 2e-5 in 20 steps."""
    model, x = network(), data()
    weights, matrices_ = torch.optim.Adam(bp_parameters(model)), torch.optim.SGD(decor_parameters(model), 1e-2, **kind)
    scaler, before = torch.amp.GradScaler("cpu"), matrices(model)
    scaler.scale(model(x).square().mean()).backward()
    scaler.step(weights)
    decor_update(model)
    with pytest.raises(LostGradient, match=rf"(unscaled|GradScaler).*{NAMES}.*{WAY_OUT}"):
        scaler.step(matrices_)
    assert unchanged(model, before)


def test_zeroing_between_the_update_and_the_step_is_an_error():
    """Row 3: R never moved, without a word."""
    model, x = network(), data()
    _, matrices_ = owners(model)
    model(x)
    decor_update(model)
    model.zero_grad()
    backward(model, x)
    with pytest.raises(LostGradient, match=rf"set to None \(by zero_grad\?\) \(layers {NAMES}\).*{WAY_OUT}"):
        matrices_.step()


def test_an_optimizer_that_owns_the_weights_too_may_not_step_R():
    """Row 4: Adam moved R too, without a word."""
    model, x = network(), data()
    adam, before = torch.optim.Adam(model.parameters()), matrices(model)
    weights = copy.deepcopy(model[0].weight)
    backward(model, x)
    decor_update(model)
    with pytest.raises(
        LostGradient, match=rf"Adam is about to step R of layers {NAMES}, but it also owns 4 plain weights"
    ):
        adam.step()
    assert unchanged(model, before)
    assert torch.equal(weights, model[0].weight)
    assert all(p.grad is None for p in decor_parameters(model))


# --------------------------------------------------------------------------------------------- others of the kind


@pytest.mark.parametrize(
    ("touch", "said"),
    [
        (lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e9), "changed in place"),  # by a factor of 1, but counted
        (lambda m: nn.utils.clip_grad_value_(m.parameters(), 1e-3), "changed in place"),
        (lambda m: [p.grad.div_(2) for p in m.parameters()], "changed in place"),
        (lambda m: [p.grad.zero_() for p in decor_parameters(m)], "changed in place"),
        (lambda m: [setattr(p, "grad", p.grad / 2) for p in m.parameters()], "replaced by another tensor"),
        (lambda m: m.zero_grad(set_to_none=False), "changed in place"),
    ],
    ids=["norm", "value", "by hand", "zero_", "replaced", "zero_grad"],
)
@pytest.mark.parametrize("first", ["weights", "R"])
def test_a_gradient_that_was_touched_is_an_error_before_anyone_steps(touch, said, first):
    """Also before the weights are stepped: clipping that counted R has spoiled their gradients as well."""
    model, x = network(), data()
    weights, matrices_ = owners(model)
    backward(model, x)
    decor_update(model)
    touch(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LostGradient, match=rf"{said}.*\(layers {NAMES}\).*{WAY_OUT}"):
        (weights if first == "weights" else matrices_).step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    backward(model, x)  # and the loop can go on
    decor_update(model)
    matrices_.step()


@pytest.mark.parametrize("again", [decor_update, lambda m: decor_step(m, 0.1), lambda m: DecorSGD(m, 0.1).step()])
def test_a_gradient_that_nobody_stepped_is_an_error_at_the_next(again):
    model, x = network(), data()
    model(x)
    decor_update(model)
    model(x)
    with pytest.raises(LostGradient, match=rf"was never stepped \(layers {NAMES}\): call step\(\).*{WAY_OUT}"):
        again(model)
    again(model)  # the batch is still there


@pytest.mark.parametrize("write", ["no_grad", "data"])
def test_a_step_by_hand_is_a_step(write):
    model, x = network(), data()
    for _ in range(3):
        model(x)
        decor_update(model)
        with torch.no_grad():
            for p in decor_parameters(model):
                (p.data if write == "data" else p).sub_(p.grad, alpha=1e-2)
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(8))


def test_the_order_of_2024_goes_on():
    """Update, own optimizer; also one optimizer per layer, and layers that learn only now and then."""
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(8, 8, rule=HALF, update_every=2), nn.ReLU(), DecorLinear(8, 8, rule=HALF))
    own = [torch.optim.SGD(decor_parameters(layer), 1e-2, momentum=0.9) for layer in (model[0], model[2])]
    weights, x = torch.optim.Adam(bp_parameters(model)), data()
    for _ in range(4):
        weights.zero_grad()
        backward(model, x)
        weights.step()
        decor_update(model)
        for optimizer in own:
            optimizer.step()
    assert all(not torch.equal(layer.weight, torch.eye(8)) for _, layer in decor_modules(model))


def test_other_models_are_not_bothered():
    model, other, x = network(), network(), data()
    weights, matrices_ = owners(other)
    model(x)
    decor_update(model)
    model.zero_grad()  # given up, in a notebook
    backward(other, x)
    weights.step()
    decor_update(other)
    matrices_.step()
    del model
    decor_step_after(other, x)
    assert not pending._pending


def decor_step_after(model, x):
    model(x)
    decor_step(model, 1e-2)


def test_steps_without_a_pending_gradient_are_left_alone():
    model = network()
    adam = torch.optim.Adam(model.parameters())
    backward(model, data())
    adam.step()  # R has no gradient: Adam leaves it alone
    assert torch.equal(model[0].decorrelation.weight, torch.eye(8))


# --------------------------------------------------------------------------------------------- the rate of the step


def test_a_gradient_that_was_made_for_another_rate_is_not_stepped():
    """A bound of 0.5 on a step of 1e-4 let one of rate 10 pass, and R was 94 away."""
    model, x = network(), data()
    sgd = torch.optim.SGD(decor_parameters(model), 10.0)
    before = matrices(model)
    backward(model, x)
    decor_update(model, lr=1e-4, max_step=0.5)
    with pytest.raises(
        LostGradient, match=r"layer '0\.decorrelation' is of rate 0\.0001.*SGD is about to step by 10\.0"
    ):
        sgd.step()
    assert unchanged(model, before)
    schedule = torch.optim.lr_scheduler.StepLR(sgd, 1, gamma=1e-3)
    for _ in range(3):
        backward(model, x)
        decor_update(model, lr=sgd.param_groups[0]["lr"], max_step=0.5)
        sgd.step()
        schedule.step()
    assert not unchanged(model, before)


def test_a_rate_that_the_gradient_does_not_depend_on_is_nobodys_business():
    model, twin = network(), network()
    for one, told in ((model, {"lr": 1.0}), (twin, {})):
        sgd = torch.optim.SGD(decor_parameters(one), 1e-2)
        backward(one, data())
        decor_update(one, **told)
        sgd.step()
    torch.testing.assert_close(matrices(model), matrices(twin), rtol=0, atol=0)


def test_the_rate_of_a_rule_that_is_not_linear_in_it_is_the_optimizers():
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(8, 8, rule=FoldiakRule()))
    sgd = torch.optim.SGD(decor_parameters(model), 1e-2)
    backward(model, data())
    decor_update(model, lr=1e-4)
    with pytest.raises(LostGradient, match=r"of rate 0\.0001.*about to step by 0\.01"):
        sgd.step()


def test_auto_is_no_rate_of_a_torch_optimizer():
    """It stepped by the optimizer's own rate, without a word."""
    model = network()
    backward(model, data())
    with pytest.raises(ValueError, match=r"layer '0\.decorrelation': lr is 'auto'.*DecorSGD\(model, lr='auto'\)"):
        decor_update(model, lr="auto")
    backward(model, data())
    with pytest.raises(ValueError, match="lr is 'auto'"):
        model[0].update(lr="auto")
    assert all(p.grad is None for p in decor_parameters(model))
