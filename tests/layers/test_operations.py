"""The operations of a plain training step: equal to the composed forms, differentiable twice, only where they fit."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn

from decorlib import DecorLinear, Decorrelation, KappaRule, decor_step
from decorlib.layers import centring, operations
from tests import reference

SHAPES = [(3, 5, 4), (5, 5, 5), (7, 4, 6), (6, 4, 2), ((2, 3), 5, 3)]  # B < D, B = D, B > D; M < D; tokens


def tensors(rows, D, M, bias=True):
    torch.manual_seed(0)
    rows = rows if isinstance(rows, tuple) else (rows,)
    x, W = torch.randn(*rows, D).double() + 2, torch.randn(M, D).double()
    b, R, c = torch.randn(M).double(), torch.randn(D, D).double(), torch.randn(D).double()
    x, W, b = (t.requires_grad_() for t in (x, W, b))
    return x, W, b if bias else None, R, c


def own_mean(x):
    return x.detach().reshape(-1, x.shape[-1]).mean(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_operations_equal_the_composed_form_in_value_and_both_derivatives(shape, bias):
    x, W, b, R, c = tensors(*shape, bias)
    inputs = [t for t in (x, W, b) if t is not None]
    weights = torch.randn(*x.shape[:-1], len(W)).double()
    composed = reference.centred_decor_linear(x, R, c, W, b)
    together = operations.centred_linear(x, W @ R, F.linear(c, W, b), own_mean(x))
    separate, y = operations.separate_linear(x, R, c, W, b, own_mean(x))
    within = operations.composed_linear(x, R, W, F.linear(c, W, b), own_mean(x))
    expected = torch.autograd.grad((composed.sin() * weights).sum(), inputs)
    for z in (together, separate, within):
        torch.testing.assert_close(z, composed)
        torch.testing.assert_close(torch.autograd.grad((z.sin() * weights).sum(), inputs), expected)
    states = (x - x.reshape(-1, x.shape[-1]).mean(0)) @ R.T + c
    torch.testing.assert_close(y, states.detach().reshape(y.shape))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_and_their_gradients_are_those_of_finite_differences(shape, bias):
    x, W, b, R, c = tensors(*shape, bias)
    for operation in (
        lambda x, W, b: operations.centred_linear(x, W, b, own_mean(x)),
        lambda x, W, b: operations.separate_linear(x, R, c if bias else None, W, b, own_mean(x)),
        lambda x, W, b: operations.composed_linear(x, R, W, b, own_mean(x)),
    ):
        assert torch.autograd.gradcheck(operation, (x, W, b))
        assert torch.autograd.gradgradcheck(operation, (x, W, b))


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_needed_are_computed(needed):
    x, W, b, R, c = tensors(6, 4, 3)
    for t, needs in zip((x, W, b), needed, strict=True):
        t.requires_grad_(needs)
    (one,) = (t for t in (x, W, b) if t.requires_grad)
    expected = torch.autograd.grad(reference.centred_decor_linear(x, R, c, W, b).sin().sum(), one)
    z, _ = operations.separate_linear(x, R, c, W, b, own_mean(x))
    torch.testing.assert_close(torch.autograd.grad(z.sin().sum(), one), expected)
    z = operations.centred_linear(x, W @ R, F.linear(c, W, b), own_mean(x))
    torch.testing.assert_close(torch.autograd.grad(z.sin().sum(), one), expected)
    z = operations.composed_linear(x, R, W, F.linear(c, W, b), own_mean(x))
    torch.testing.assert_close(torch.autograd.grad(z.sin().sum(), one), expected)


def slow(monkeypatch):
    """Layers that take the composed form everywhere."""
    monkeypatch.setattr(operations, "eager", lambda x, weight: False)


def layers_of(kind, **options):
    torch.manual_seed(1)
    rule = KappaRule(kappa=0.5)
    if kind == "alone":
        return Decorrelation(5, rule=rule, center="batch", **options)
    return DecorLinear(5, {"wide": 9, "narrow": 2}[kind], rule=rule, center="batch", **options)


def trained(layer, steps=4):
    """Outputs, gradients of input and parameters, R and the running mean of some steps."""
    torch.manual_seed(2)
    head, seen = nn.Linear(5, 5), []
    model = nn.Sequential(head, layer)
    for _ in range(steps):
        model.zero_grad()
        z = model(torch.randn(8, 5) + 1)
        z.square().sum().backward()
        seen += [z.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]
        decor_step(model, 1e-2)
    d = layer if isinstance(layer, Decorrelation) else layer.decorrelation
    return [*seen, d.weight.detach(), d.running_mean, d.num_batches_tracked]


@pytest.mark.parametrize("options", [{}, {"update_every": 3}, {"bias": True}, {"dtype": torch.float64}])
@pytest.mark.parametrize("kind", ["alone", "wide", "narrow"])
def test_layers_train_as_with_the_composed_form(kind, options, monkeypatch):
    options = dict(options)
    if options.pop("bias", False):
        options |= {"bias": True} if kind == "alone" else {"decor_bias": True}
    torch.set_default_dtype(options.get("dtype", torch.float32))
    try:
        layer = layers_of(kind, **options)
        calls, mean_of = [], centring.tracked_plainly
        twin = copy.deepcopy(layer)
        for module in ("decorlib.layers.centring", "decorlib.layers.linear"):
            monkeypatch.setattr(f"{module}.tracked_plainly", lambda *a: calls.append(mean_of(*a)) or calls[-1])
        fast = trained(layer)
        assert calls  # else this compares a form with itself
        assert all(mean is not None for mean in calls)
        slow(monkeypatch)
        for a, b in zip(fast, trained(twin), strict=True):
            torch.testing.assert_close(a, b)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch's own, from make_dual
def test_what_is_out_of_the_ordinary_takes_the_composed_form():
    layer = layers_of("wide").decorrelation
    W = torch.randn(9, 5, requires_grad=True)
    x = torch.randn(8, 5, requires_grad=True)

    def plain(x=x, W=W):
        return centring.tracked_plainly(layer, x, W) is not None

    assert plain()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not plain()
    with torch.no_grad():
        assert not plain()
    assert not plain(x.double())  # another precision than W's
    assert not plain(x[:1])  # its mean leaves nothing: refused elsewhere
    layer.padding_mask = torch.zeros(8, dtype=torch.bool)
    assert not plain()
    layer.padding_mask = None
    layer.eval()
    assert not plain()
    layer.train()
    seen = []
    torch.func.grad(lambda x: seen.append(plain(x)) or x.sum())(x.detach())
    assert seen == [False]
    with torch.autograd.forward_ad.dual_level():
        assert not plain(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones(8, 5)))


def test_a_mean_is_refused_before_it_poisons_the_running_mean():
    layer = nn.Sequential(nn.Linear(5, 5), layers_of("wide"))
    with pytest.raises(ValueError, match="batch mean"):
        layer(torch.full((8, 5), float("nan")))
    assert bool(layer[1].decorrelation.running_mean.isfinite().all())


def test_compiles_whole_and_once():
    torch._dynamo.reset()
    layer = layers_of("wide", update_every=10**6)
    layer(torch.randn(8, 5))
    decor_step(layer, 1e-3)
    model = nn.Sequential(nn.Linear(5, 5), layer)
    twin = copy.deepcopy(model)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(8, 5)
        a, b = compiled(x), twin(x)
        torch.testing.assert_close(a, b)
        grads = [torch.autograd.grad(z.square().sum(), list(m[0].parameters())) for z, m in ((a, model), (b, twin))]
        torch.testing.assert_close(*grads)
        decor_step(model, 1e-3)
        decor_step(twin, 1e-3)
    assert counter.frame_count == 1
