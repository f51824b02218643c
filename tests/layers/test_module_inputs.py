"""torch's own database of module inputs, on our layers: every configuration that torch tests its layers with."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db
from torch.utils._pytree import tree_map

from decorlib import (
    DecorConv1d,
    DecorConv2d,
    DecorConv3d,
    DecorConvTranspose2d,
    DecorLinear,
    DecorMultiheadAttention,
    decor_modules,
    fuse,
)

OURS = {
    nn.Linear: DecorLinear,
    nn.Conv1d: DecorConv1d,
    nn.Conv2d: DecorConv2d,
    nn.Conv3d: DecorConv3d,
    nn.ConvTranspose2d: DecorConvTranspose2d,
    nn.MultiheadAttention: DecorMultiheadAttention,
}


def inputs_of(info):
    """Some of the functions ask for the mode, and give inputs for evaluation and for training."""
    torch.manual_seed(0)
    modes = (True, False) if info.train_and_eval_differ else (True,)
    for training in modes:
        options = {"device": "cpu", "dtype": torch.float64, "requires_grad": True, "training": training}
        yield from ((training, one) for one in info.module_inputs_func(info, **options))


CONFIGURATIONS = [
    pytest.param(info.module_cls, training, one, id=f"{info.name}-{i}")
    for info in module_db
    if info.module_cls in OURS
    for i, (training, one) in enumerate(inputs_of(info))
]
each = pytest.mark.parametrize(("plain_kind", "training", "given"), CONFIGURATIONS)


def test_every_layer_is_there():
    assert {case.values[0] for case in CONFIGURATIONS} == OURS.keys()
    assert len(CONFIGURATIONS) > 60


def pair(plain_kind, training, given):
    """torch's layer and ours, with the same weights."""
    layers = []
    for kind in (plain_kind, OURS[plain_kind]):
        torch.manual_seed(1)
        options = {"device": "cpu", "dtype": torch.float64} | given.constructor_input.kwargs
        layers.append(kind(*given.constructor_input.args, **options).train(training))
    return layers


def moved(layer, distance=0.3):
    for i, (_, inner) in enumerate(decor_modules(layer)):
        noise = torch.randn(inner.weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        inner.weight += distance * noise
    return layer


def tensors(value):
    return [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, torch.Tensor)]


def call(layer, given, change=lambda t: t):
    arguments, named = given.forward_input.args, given.forward_input.kwargs
    made = {}  # one tensor that comes twice stays one

    def once(t):
        return made.setdefault(id(t), change(t)) if isinstance(t, torch.Tensor) else t

    torch.manual_seed(2)  # dropout
    return tensors(layer(*tree_map(once, arguments), **tree_map(once, named)))


def non_contiguous(t):
    if t.dim() == 0 or t.dtype == torch.bool or not t.is_floating_point():
        return t
    return torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)[..., 0].requires_grad_(t.requires_grad)


@each
def test_equal_at_the_start(plain_kind, training, given):
    plain, layer = pair(plain_kind, training, given)
    names = [name for name in inspect.signature(plain_kind).parameters if name not in ("device", "dtype")]
    assert list(inspect.signature(type(layer)).parameters)[: len(names)] == names  # torch's order
    expected = call(plain, given)
    torch.testing.assert_close(call(layer, given), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(call(layer, given, non_contiguous), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(call(layer.eval(), given), call(plain.eval(), given), rtol=0, atol=1e-12)


@each
def test_with_any_r_pickled_copied_and_fused(plain_kind, training, given):
    plain, layer = pair(plain_kind, training, given)
    layer = moved(layer).eval()
    expected = call(layer, given)
    assert (
        max(float((a - b).detach().abs().max()) for a, b in zip(expected, call(plain.eval(), given), strict=True))
        > 1e-3
    )
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        for a, b in zip(call(other, given), expected, strict=True):
            assert torch.equal(a, b)
    fused = fuse(layer)
    assert type(fused) is plain_kind
    torch.testing.assert_close(call(fused, given), expected, rtol=1e-10, atol=1e-10)
    for form in (True, False):
        if hasattr(layer, "fuse"):
            layer.fuse = form
            torch.testing.assert_close(call(layer, given), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(call(layer, given, non_contiguous), expected, rtol=1e-10, atol=1e-10)


@each
def test_gradients(plain_kind, training, given):
    _, layer = pair(plain_kind, training, given)
    for _, inner in decor_modules(moved(layer)):
        inner.learning = False  # hundreds of forwards, and no update
    found = (*given.forward_input.args, *given.forward_input.kwargs.values())
    ids = {id(t): t for t in found if isinstance(t, torch.Tensor) and t.is_floating_point()}
    names = [name for name, p in layer.named_parameters() if p.requires_grad]

    def out(*leaves):
        of = dict(zip(ids, leaves, strict=False))
        swap = lambda t: of.get(id(t), t)  # noqa: E731
        parameters = dict(zip(names, leaves[len(of) :], strict=True))
        torch.manual_seed(2)
        arguments, named = given.forward_input.args, given.forward_input.kwargs
        inputs = tuple(swap(t) for t in arguments), {name: swap(t) for name, t in named.items()}
        return tuple(tensors(torch.func.functional_call(layer, parameters, *inputs)))

    leaves = [*ids.values(), *(layer.get_parameter(name) for name in names)]
    leaves = tuple(t.detach().clone().requires_grad_() for t in leaves)
    assert torch.autograd.gradcheck(out, leaves, fast_mode=True)


@each
def test_a_training_forward_is_learned_from(plain_kind, training, given):
    _, layer = pair(plain_kind, training, given)
    call(layer.train(), given)
    for _, inner in decor_modules(layer):
        before = inner.weight.clone()
        assert inner.step(0.01).isfinite()
        assert not torch.equal(inner.weight, before)
