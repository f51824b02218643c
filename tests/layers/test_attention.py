"""DecorMultiheadAttention beside torch's: at R = I in every setting, and as the attention that W R makes."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from decorlib import (
    DecorMultiheadAttention,
    DecorSGD,
    KappaRule,
    conversion_report,
    decor_modules,
    decorrelate,
    fuse,
    padding,
)
from decorlib.conversion import calibrate

E, HEADS, TARGET, SOURCE, BATCH = 8, 2, 4, 5, 3
KINDS = {
    "self": ("self", {}),
    "memory": ("memory", {"kdim": 6, "vdim": 6}),
    "separate": ("separate", {"kdim": 6, "vdim": 7}),
    "separate, of one size": ("separate", {}),
}
PLAIN = [
    {},
    {"bias": False},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"batch_first": True},
]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def data(kind, options, batched=True):
    """(query, key, value), the same tensor where the kind says so."""
    inputs, sizes = KINDS[kind]
    first = options.get("batch_first", False)

    def of(length, size, seed):
        x = draw(BATCH, length, size, seed=seed) + 1
        return x[0] if not batched else x if first else x.transpose(0, 1)

    query = of(TARGET, E, 1)
    if inputs == "self":
        return query, query, query
    key = of(SOURCE, sizes.get("kdim", E), 2)
    return query, key, key if inputs == "memory" else of(SOURCE, sizes.get("vdim", E), 3)


def pair(kind, options, **ours):
    """torch's layer and ours with its weights."""
    inputs, sizes = KINDS[kind]
    torch.manual_seed(3)
    plain = nn.MultiheadAttention(E, HEADS, dtype=torch.float64, **sizes, **options)
    torch.manual_seed(3)
    layer = DecorMultiheadAttention(E, HEADS, dtype=torch.float64, inputs=inputs, **sizes, **options, **ours)
    return plain, layer


def scrambled(layer):
    for i, (_, inner) in enumerate(decor_modules(layer)):
        inner.weight += 0.3 * draw(*inner.weight.shape, seed=10 + i)
        if inner.bias is not None:
            inner.bias += draw(inner.in_features, seed=20 + i)
        if inner.running_mean is not None:
            inner.running_mean += draw(inner.in_features, seed=30 + i)
    return layer


def masks(kind, batched):
    source = TARGET if KINDS[kind][0] == "self" else SOURCE
    padding = torch.zeros(BATCH, source, dtype=torch.bool)
    padding[1, -1] = True
    causal = torch.ones(TARGET, source, dtype=torch.bool).triu(1)
    causal[:, 0] = False
    yield {}
    yield {"key_padding_mask": padding if batched else padding[0]}
    yield {"attn_mask": causal}
    yield {"attn_mask": draw(TARGET, source, seed=5), "average_attn_weights": False}
    yield {"need_weights": False, "attn_mask": causal, "is_causal": True}
    yield {"need_weights": False}


@pytest.mark.parametrize("options", PLAIN, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_is_the_plain_attention(kind, options):
    plain, layer = pair(kind, options)
    assert all(torch.equal(p, layer.state_dict()[name]) for name, p in plain.state_dict().items())
    for batched, training in itertools.product((True, False), (True, False)):
        x = data(kind, options, batched)
        for mask in masks(kind, batched):
            expected, weights = plain.train(training)(*x, **mask)
            got, ours = layer.train(training)(*x, **mask)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
            assert (ours is None) is (weights is None)
            if weights is not None:
                torch.testing.assert_close(ours, weights, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("center", "decor_bias"), [(None, False), ("running", True), ("batch", True)])
@pytest.mark.parametrize("options", PLAIN, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchs_attention_on_decorrelated_inputs_and_fuses_to_it(kind, options, center, decor_bias):
    plain, layer = pair(kind, options, center=center, decor_bias=decor_bias)
    layer = scrambled(layer).eval()
    x = data(kind, options)
    names = {"self": ["input"] * 3, "memory": ["query", "memory", "memory"], "separate": ["query", "key", "value"]}
    decorrelated = {}
    for one, name in zip(x, names[layer.inputs], strict=True):
        inner = layer.decorrelations[name]
        mean = 0 if center is None else inner.running_mean
        y = (one - mean) @ inner.weight.T
        decorrelated.setdefault(name, y if inner.bias is None else y + inner.bias)
    # torch's layer without its projection, on decorrelated inputs; then R and the projection, step by step
    bare = copy.deepcopy(plain)
    bare.out_proj.weight.data, bare.out_proj.bias = torch.eye(E, dtype=torch.float64), None
    heads, weights = bare(*(decorrelated[name] for name in names[layer.inputs]))
    inner = layer.out_proj.decorrelation
    mean = 0 if center is None else inner.running_mean
    y = (heads - mean) @ inner.weight.T
    expected = plain.out_proj(y if inner.bias is None else y + inner.bias)
    got, ours = layer(*x)
    torch.testing.assert_close((got, ours), (expected, weights), rtol=1e-11, atol=1e-11)
    back = fuse(layer)
    assert type(back) is nn.MultiheadAttention
    assert type(back.out_proj) is type(plain.out_proj)
    assert vars(back).keys() == vars(plain).keys()
    torch.testing.assert_close(back(*x), (got, ours), rtol=1e-11, atol=1e-11)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(*x)[0], got)
    _, other = pair(kind, options, center=center, decor_bias=decor_bias)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(*x)[0], got)


@pytest.mark.parametrize("center", [None, "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_r_learns_from_its_input(kind, center):
    _, layer = pair(kind, {}, center=center, rule=KappaRule(kappa=0.3))
    x = data(kind, {})
    inputs = dict(zip({"self": ["input"], "memory": ["query", "memory"]}.get(layer.inputs, ["query", "key", "value"]),
                      (x[0],) if layer.inputs == "self" else x, strict=False))  # fmt: skip
    layer(*x)[0].square().sum().backward()
    for name, one in inputs.items():
        rows = one.reshape(-1, one.shape[-1])
        rows = rows if center is None else rows - rows.mean(0)
        X = rows.T @ rows / len(rows)
        off = X - torch.diag(X.diagonal())
        layer.decorrelations[name].update()
        expected = 0.7 * off + 0.3 * torch.diag(X.diagonal() - 1)
        torch.testing.assert_close(layer.decorrelations[name].weight.grad, expected, rtol=1e-10, atol=1e-10)
    assert layer.out_proj.update().isfinite()


@pytest.mark.parametrize("center", [None, "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, center):
    _, layer = pair(kind, {}, center=center)
    scrambled(layer)
    for _, inner in decor_modules(layer):
        inner.learning = False
    names = [name for name, p in layer.named_parameters() if p.requires_grad]

    def out(query, key, value, *parameters):
        x = (query,) * 3 if layer.inputs == "self" else (query, key, key) if layer.inputs == "memory" else None
        x = (query, key, value) if x is None else x
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), x)

    x = tuple(t.detach().clone().requires_grad_() for t in data(kind, {}))
    parameters = tuple(layer.get_parameter(name).detach().clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(out, (*x, *parameters), fast_mode=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_inputs_that_are_not_the_same_tensor_are_refused():
    _, layer = pair("self", {})
    query, key, _ = data("separate, of one size", {})
    with pytest.raises(ValueError, match=r"inputs='self' says that query and key and value are the same tensor"):
        layer(query, key, key)
    _, layer = pair("memory", {})
    with pytest.raises(ValueError, match=r"inputs='memory' says that key and value are the same tensor"):
        layer(query, data("memory", {})[1], data("memory", {})[1].clone())
    with pytest.raises(ValueError, match=r"inputs is 'one'; allowed: 'self', 'memory', 'separate'"):
        DecorMultiheadAttention(E, HEADS, inputs="one")
    with pytest.raises(ValueError, match=r"inputs='self' needs query and key and value of one size.*kdim = 6"):
        DecorMultiheadAttention(E, HEADS, kdim=6, inputs="self")
    nested = torch.nested.nested_tensor([draw(2, E), draw(3, E)])
    with pytest.raises(ValueError, match="no nested tensors"):
        pair("self", {"batch_first": True})[1](nested, nested, nested)


class Cross(nn.Module):
    """Attention that is held by no class of torch's: what it is given is seen on a sample."""

    def __init__(self):
        super().__init__()
        self.itself = nn.MultiheadAttention(E, HEADS, batch_first=True, dtype=torch.float64)
        self.other = nn.MultiheadAttention(E, HEADS, batch_first=True, dtype=torch.float64, bias=False)

    def forward(self, x):
        x = x + self.itself(x, x, x)[0]
        memory = x.flip(1)
        return self.other(query=x, key=memory, value=memory, need_weights=False)[0]


@pytest.mark.parametrize("center", [None, "running", "batch"])
def test_a_model_is_converted_trained_and_fused(center):
    torch.manual_seed(0)
    plain, x = Cross(), draw(3, 4, E) + 1
    expected = plain.eval()(x)
    model = decorrelate(copy.deepcopy(plain), center=center, sample_input=x)
    assert [(name, m.inputs) for name, m in model.named_children()] == [("itself", "self"), ("other", "memory")]
    assert len(list(decor_modules(model))) == 5
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    optimizer = DecorSGD(model, 1e-2)
    model.train()
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
    assert all(loss is not None for loss in optimizer.losses.values())
    trained = model.eval()(x)
    assert (trained - expected).abs().max() > 1e-3
    back = fuse(model, sample_input=x)
    torch.testing.assert_close(back(x), trained, rtol=1e-10, atol=1e-10)
    calibrated = calibrate(copy.deepcopy(model), [(x + 3,)]) if center else model
    torch.testing.assert_close(calibrated(x), trained, rtol=1e-10, atol=1e-10)
    without = decorrelate(copy.deepcopy(plain), exclude="other")
    assert [m.inputs for m in without.children() if hasattr(m, "inputs")] == ["separate"]
    torch.testing.assert_close(without.eval()(x), expected, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch's word about norm_first
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_transformers_are_converted_whole(norm_first):
    torch.manual_seed(0)
    sizes = {"d_model": E, "nhead": HEADS, "dim_feedforward": 12, "dropout": 0.0, "dtype": torch.float64}
    plain = nn.Transformer(**sizes, num_encoder_layers=2, num_decoder_layers=2, batch_first=True, norm_first=norm_first)
    sample = (draw(3, 5, E), draw(3, 4, E, seed=1))
    expected = plain.eval()(*sample)
    model = decorrelate(copy.deepcopy(plain))
    assert not conversion_report(plain).left_alone
    assert len(list(decor_modules(model))) == 2 * 4 + 2 * 7
    torch.testing.assert_close(model(*sample), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(model(*sample), expected, rtol=0, atol=1e-12)  # torch's fast path would read W alone
    optimizer = DecorSGD(model, 1e-2)
    model.train()
    for _ in range(2):
        model(*sample).sum().backward()
        optimizer.step()
    trained = model.eval()(*sample)
    back = fuse(model, sample_input=sample)
    assert {type(m) for m in back.modules()} == {type(m) for m in plain.modules()}
    torch.testing.assert_close(back(*sample), trained, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(model(*sample), trained, rtol=1e-10, atol=1e-10)


def test_an_attention_whose_weights_rest_keeps_its_r():
    _, layer = pair("self", {})
    layer.requires_grad_(False)
    x = data("self", {})
    layer(*x)
    with pytest.raises(RuntimeError, match="no layer learns"):
        DecorSGD(layer, 1e-2).step()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["memory", "separate"])
def test_hidden_keys_are_left_out_of_the_statistics(kind, batch_first):
    """Also inside padding(), whose mask is of the queries' tokens."""
    _, layer = pair(kind, {"batch_first": batch_first}, center="batch")
    query, key, value = data(kind, {"batch_first": batch_first})
    hidden = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    hidden[1, 2:] = True
    queries = torch.zeros(BATCH, TARGET, dtype=torch.bool)
    queries[0, 1:] = True
    added = torch.zeros(BATCH, SOURCE, dtype=torch.float64)
    added[0, 0] = -3.0  # less weight, but some
    as_added = [added.masked_fill(hidden, far) for far in (-torch.inf, -1e9, -1e4, torch.finfo(torch.float32).min)]
    for mask in (hidden, *as_added):
        with padding(layer, queries, batch_first):
            layer(query, key, value, key_padding_mask=mask)
        for name, x, left in [("query", query, queries), ("memory" if kind == "memory" else "key", key, hidden)]:
            rows = (x if batch_first else x.transpose(0, 1))[~left]
            seen = layer.decorrelations[name].memory.batches[-1].y
            order = lambda t: torch.stack(sorted(t, key=lambda row: row.tolist()))  # noqa: E731
            torch.testing.assert_close(order(seen), order(rows - rows.mean(0)), rtol=1e-10, atol=1e-10)


def test_pruned_attention_is_left_alone_and_not_fused():
    layer = nn.MultiheadAttention(E, HEADS)
    prune.l1_unstructured(layer, "in_proj_weight", 10)
    report = conversion_report(nn.ModuleList([layer]))
    assert "its in_proj_weight is computed from others (pruning)" in report.left_alone["0"]
    assert "only an attention that is decorrelated itself" in report.left_alone["0.out_proj"]
    later = decorrelate(nn.MultiheadAttention(E, HEADS))
    assert len(list(decor_modules(later))) == 4
    prune.l1_unstructured(later, "in_proj_weight", 10)
    with pytest.raises(ValueError, match="layer '': its in_proj_weight is computed from others"):
        fuse(later)
