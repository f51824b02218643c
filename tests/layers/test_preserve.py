"""Steps of R that leave the function as it is: the weights take up what R has changed, in every kind of layer."""

import copy
import io
import pickle
import re
import warnings

import pytest
import reference
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from decorlib import (
    DecorConv1d,
    DecorConv2d,
    DecorConv3d,
    DecorConvTranspose2d,
    DecorLinear,
    DecorMultiheadAttention,
    DecorOptimizer,
    Decorrelation,
    DecorSGD,
    ExactWhitening,
    Rule,
    bp_parameters,
    decor_modules,
    decor_parameters,
    decor_step,
    decorrelate,
    train,
)
from decorlib.layers.preserve import LostFunction


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mixed(*shape, seed=0):
    return draw(*shape, seed=seed) @ draw(shape[-1], shape[-1], seed=seed + 1) + 0.5


class Reading(nn.Module):
    """Three layers on one input, and one behind them."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, size) for size in (6, 4, 5))
        self.out = nn.Linear(15, 2)

    def forward(self, x):
        return self.out(torch.cat([self.query(x), self.key(x), self.value(x)], -1).tanh())


def shared(**options):
    return decorrelate(Reading().double(), share=[("query", "key", "value")], **options)


def on_itself(inputs):
    return lambda layer, x: layer(x, x.clone() if inputs == "separate" else x, x)[0]


def call(layer, x):
    return layer(x)


OPTIONS = {"dtype": torch.float64}
KINDS = {
    "linear": (lambda **o: DecorLinear(6, 5, **OPTIONS, **o), mixed(40, 6), call),
    "linear, groups": (lambda **o: DecorLinear(6, 5, groups=2, **OPTIONS, **o), mixed(40, 6), call),
    "patch": (lambda **o: DecorConv2d(4, 6, 3, padding=1, **OPTIONS, **o), mixed(8, 4, 6, 6), call),
    "patch, groups": (lambda **o: DecorConv2d(4, 6, 3, groups=2, stride=2, **OPTIONS, **o), mixed(8, 4, 6, 6), call),
    "channel": (
        lambda **o: DecorConv2d(4, 6, 3, padding=1, span="channel", **OPTIONS, **o),
        mixed(8, 4, 6, 6),
        call,
    ),
    "channel, groups": (
        lambda **o: DecorConv2d(4, 6, 3, span="channel", groups=2, **OPTIONS, **o),
        mixed(8, 4, 6, 6),
        call,
    ),
    "sequence": (lambda **o: DecorConv1d(3, 4, 2, **OPTIONS, **o), mixed(8, 3, 9), call),
    "volume": (lambda **o: DecorConv3d(2, 3, 2, **OPTIONS, **o), mixed(4, 2, 4, 4, 4), call),
    "transposed": (lambda **o: DecorConvTranspose2d(4, 6, 3, stride=2, **OPTIONS, **o), mixed(8, 4, 5, 5), call),
    "transposed, groups": (
        lambda **o: DecorConvTranspose2d(4, 6, 3, groups=2, **OPTIONS, **o),
        mixed(8, 4, 5, 5),
        call,
    ),
    "shared": (shared, mixed(5, 8, 6), call),
    **{
        f"attention, {inputs}": (
            lambda inputs=inputs, **o: DecorMultiheadAttention(6, 2, inputs=inputs, **OPTIONS, **o),
            mixed(8, 5, 6),
            on_itself(inputs),
        )
        for inputs in ("self", "memory", "separate")
    },
}
OWNERS = {
    "DecorSGD": lambda model, on: DecorSGD(model, 0.02, preserve_function=on),
    "Adam": lambda model, on: DecorOptimizer(model, torch.optim.Adam, lr=1e-2, preserve_function=on),
    "momentum, given": lambda model, on: DecorOptimizer(
        model, torch.optim.SGD(decor_parameters(model), lr=1e-2, momentum=0.9), preserve_function=on
    ),
    "in place": lambda model, on: DecorOptimizer(model, torch.optim.SGD, lr=0.02, in_place=True, preserve_function=on),
}


def evaluated(model, run, x):
    with torch.no_grad():
        out = run(model.eval(), x)
    model.train()
    return out


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("options", [{}, {"center": "running", "update_every": 2}, {"center": "batch"}])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_the_same_before_and_after_and_r_has_moved(kind, options, owner):
    make, x, run = KINDS[kind]
    if kind == "shared" and "center" in options:
        options = {**options, "sample_input": x}
    differences = {}
    for preserved in (True, False):
        torch.manual_seed(0)
        model = make(**options)
        optimizer = OWNERS[owner](model, preserved)
        for _ in range(3):
            run(model, x)
            before, R = evaluated(model, run, x), [layer.weight.detach().clone() for _, layer in decor_modules(model)]
            optimizer.step()
            after = evaluated(model, run, x)
            moved = min((a - d.weight).abs().max() for a, (_, d) in zip(R, decor_modules(model), strict=True))
            if moved > 0:
                assert moved > 1e-4
                differences.setdefault(preserved, []).append(float((after - before).abs().max()))
        assert all(p.grad is None for p in decor_parameters(model))
    assert len(differences[True]) == len(differences[False]) == (2 if "update_every" in options else 3)
    assert max(differences[True]) < 1e-10
    assert min(differences[False]) > 1e-5  # so that this could have failed


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "transposed" not in kind])
def test_the_bias_takes_up_what_b_r_adds(kind):
    make, x, run = KINDS[kind]
    torch.manual_seed(0)
    more = {"sample_input": x} if kind == "shared" else {}
    model = make(decor_bias=True, center="running", **more)
    optimizer = DecorSGD(model, 0.1, preserve_function=True)
    for _ in range(3):
        run(model, x + 1)
        before = evaluated(model, run, x)
        optimizer.step()
        assert (evaluated(model, run, x) - before).abs().max() < 1e-10
    assert all(layer.bias.abs().max() > 1e-3 for _, layer in decor_modules(model))


@pytest.mark.parametrize("kind", ["linear", "linear, groups", "patch", "patch, groups", "channel", "channel, groups"])
def test_weights_are_those_of_the_reference(kind):
    check_reference(kind, kind.split(",")[0])


@pytest.mark.parametrize("kind", ["transposed", "transposed, groups"])
def test_weights_of_transposed_convolutions_are_those_of_the_reference(kind):
    check_reference(kind, "transposed")


def check_reference(kind, form):
    make, x, run = KINDS[kind]
    torch.manual_seed(0)
    model = make()
    d = model.decorrelation
    for _ in range(3):
        run(model, x)
        W, R = model.weight.detach().clone(), d.weight.detach().clone()
        DecorSGD(model, 0.05, preserve_function=True).step()
        old, new = (t.reshape(d.groups, *t.shape[-2:]) for t in (R, d.weight.detach()))
        expected = reference.weight_that_keeps_the_function(W, old, new, form)
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-11, atol=1e-12)
        assert (expected - W).abs().max() > 1e-3


def test_r_takes_the_steps_that_it_takes_without():
    ends = []
    for preserved in (True, False):
        torch.manual_seed(0)
        model, x = DecorLinear(6, 5, dtype=torch.float64), mixed(40, 6)  # whose input no weight changes
        optimizer = DecorSGD(model, 0.05, preserve_function=preserved)
        for _ in range(4):
            model(x)
            optimizer.step()
        ends.append([model.decorrelation.weight, model.decorrelation.num_updates, optimizer.losses["decorrelation"]])
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_in_single_precision_the_function_is_kept_to_the_digits_that_there_are():
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(6, 16), nn.Tanh(), DecorLinear(16, 5))
    x = mixed(40, 6).float()
    optimizer, eps = DecorSGD(model, 0.02, preserve_function=True), torch.finfo(torch.float32).eps
    model(x)
    before = evaluated(model, call, x)
    optimizer.step()
    assert (evaluated(model, call, x) - before).abs().max() < 20 * eps * before.abs().max()


@pytest.mark.parametrize("owner", OWNERS)
def test_in_single_precision_the_function_stays_over_many_steps(owner):
    """Each step rounds every weight once, about an eps of W R, to either side: 200 of them stay below 50 eps, 6e-6."""
    torch.manual_seed(0)
    layer, x = DecorLinear(64, 64), (mixed(256, 64) / 8).float()
    optimizer = OWNERS[owner](layer, True)
    if owner == "Adam":  # at 1e-2 it takes R through a singular one
        optimizer.param_groups[0]["lr"] = 1e-3

    def effective():
        return (layer.weight.double() @ layer.decorrelation.weight.double()).detach()

    start, out, eps = effective(), evaluated(layer, call, x), torch.finfo(torch.float32).eps
    for _ in range(200):
        layer(x)
        optimizer.step()
    assert (layer.decorrelation.weight - torch.eye(64)).abs().max() > 0.1
    assert (effective() - start).norm() < 50 * eps * start.norm()
    assert (evaluated(layer, call, x) - out).norm() < 50 * eps * out.norm()


def lost_towards(ratio, error=None):
    """A step to an R of such a condition number, not along the axes: what W R is off by, and what is said of it."""
    torch.manual_seed(0)
    Q = torch.linalg.qr(draw(64, 64, seed=2)).Q
    layer = DecorLinear(64, 64, rule=Towards(Q @ torch.logspace(0, 1, 64, ratio).double().diag() @ Q.T))
    W, optimizer = layer.weight.detach().clone(), DecorSGD(layer, 1.0, preserve_function=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layer(mixed(20, 64).float())
        if error is not None:
            with pytest.raises(error) as found:
                optimizer.step()
            assert torch.equal(layer.weight, W)
            assert torch.equal(layer.decorrelation.weight, torch.eye(64))
            return None, str(found.value)
        optimizer.step()
        new = (layer.weight.double() @ layer.decorrelation.weight.double()).detach()
        layer(mixed(20, 64).float())  # one like it is not said again
        optimizer.step()
    assert len(said) <= 1
    return float((new - W).norm() / W.norm()), "".join(str(one.message) for one in said)


def test_a_step_that_rounding_makes_coarse_is_said_before_one_is_refused():
    off, said = lost_towards(1e2)
    assert off < 5e-6
    assert said == ""
    off, said = lost_towards(5e4)
    claimed = float(
        re.search(r"^layer 'decorrelation': .*by up to ([\d.e-]+) of itself.*max_step=0\.5.*said once", said)[1]
    )
    assert 1.2e-4 < claimed < 1.2e-3
    assert 5e-6 < off < claimed  # what is said is no less than what is lost
    assert "where 0.0012 is allowed" in lost_towards(1e6, LostFunction)[1]


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_refused_and_computing_in_it_is_not(dtype, owner):
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(6, 16), nn.Tanh(), DecorLinear(16, 5)).to(dtype)
    x = mixed(40, 6).to(dtype)
    model(x)
    before = copy.deepcopy(model.state_dict())
    said = rf"^layer '0\.decorrelation': .*weight of its DecorLinear is {dtype}.*keep the weights in torch\.float32"
    with pytest.raises(ValueError, match=said):
        OWNERS[owner](model, True).step()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    model.float()
    with torch.autocast("cpu", dtype=dtype):
        model(x.float())
    out = evaluated(model, call, x.float())
    OWNERS[owner](model, True).step()
    assert (evaluated(model, call, x.float()) - out).abs().max() < 20 * torch.finfo(torch.float32).eps * out.abs().max()
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(6))


# --------------------------------------------------------------------------------------------------- resumed


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(DecorLinear(6, 8), nn.Tanh(), DecorLinear(8, 3)).double()


def steps(model, weights, matrices, seeds):
    for seed in seeds:
        loss = model(mixed(20, 6, seed=seed)).square().mean()
        weights.zero_grad()
        loss.backward()
        weights.step()
        matrices.step()


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_a_run_goes_on_where_it_was(owner, way):
    model = mlp()
    weights, matrices = torch.optim.SGD(bp_parameters(model), lr=0.1), OWNERS[owner](model, True)
    steps(model, weights, matrices, range(4))
    if way == "state_dict":
        other = mlp()
        others = torch.optim.SGD(bp_parameters(other), lr=0.1), OWNERS[owner](other, True)
        file = io.BytesIO()
        torch.save([one.state_dict() for one in (model, weights, matrices)], file)
        file.seek(0)
        for one, state in zip((other, *others), torch.load(file), strict=True):
            one.load_state_dict(state)
    else:
        both = (model, weights, matrices)
        other, *others = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
    before = model[0].decorrelation.weight.detach().clone()
    steps(model, weights, matrices, range(4, 8))
    steps(other, *others, range(4, 8))
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (before - model[0].decorrelation.weight).abs().max() > 1e-3


# ----------------------------------------------------------------------------------------- all layers or none


class Towards(Rule):
    """At a rate of 1 puts a matrix in the place of R."""

    def __init__(self, matrix):
        self.matrix = matrix

    def direction(self, moments, R, lr=None):
        return R - self.matrix.to(R)

    def loss(self, moments):
        return moments.variance.sum()


SINGULAR = torch.ones(8, 8)
WORN = torch.diag(torch.tensor([1.0, 1e-6, *[1.0] * 6])) + 0.1 * torch.ones(8, 8).triu(1)
SAID = {
    "singular": (SINGULAR, r"^layer '2\.decorrelation': .*singular or not finite.*max_step=0\.5"),
    "not finite": (torch.full((8, 8), torch.nan), r"^layer '2\.decorrelation': .*singular or not finite"),
    "ill-conditioned": (WORN, r"^layer '2\.decorrelation': .*ill-conditioned.*lower the rate of R"),
}
ALL = {
    "DecorSGD": lambda model: DecorSGD(model, 1.0, preserve_function=True),
    "SGD": lambda model: DecorOptimizer(model, torch.optim.SGD, lr=1.0, momentum=1e-12, preserve_function=True),
    "in place": lambda model: DecorOptimizer(model, torch.optim.SGD, lr=1.0, in_place=True, preserve_function=True),
}


@pytest.mark.parametrize("owner", ALL)
@pytest.mark.parametrize("why", SAID)
def test_where_no_weights_make_up_for_a_step_none_is_taken(why, owner):
    matrix, said = SAID[why]
    model = mlp().float()
    optimizer = ALL[owner](model)
    optimizer.param_groups[0]["lr"] = 1e-3
    x = mixed(20, 6).float()
    model(x)
    optimizer.step()  # the optimizer inside has a state
    model[2].decorrelation.rule = Towards(matrix)
    optimizer.param_groups[0]["lr"] = 1.0
    model(x)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    assert ("momentum_buffer" in str(before[1])) == (owner == "SGD")
    with pytest.raises(LostFunction, match=said):
        optimizer.step()
    after = model.state_dict(), optimizer.state_dict()
    torch.testing.assert_close((after[0], after[1]["state"]), (before[0], before[1]["state"]), rtol=0, atol=0)
    assert after[1]["param_groups"] == before[1]["param_groups"]
    assert all(p.grad is None for p in decor_parameters(model))
    assert [len(layer.memory) for _, layer in decor_modules(model)] == [1, 1]
    model[2].decorrelation.rule = model[0].decorrelation.rule
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.step()  # from the batch that is still there
    assert all(layer.num_updates == 2 for _, layer in decor_modules(model))


def tied():
    layer, other = DecorLinear(6, 6, dtype=torch.float64), nn.Linear(6, 6).double()
    other.weight = layer.weight
    return nn.Sequential(layer, other)


def without_bias():
    return nn.Sequential(DecorLinear(6, 6, bias=False, decor_bias=True, dtype=torch.float64))


def transposed():
    convolution = DecorConvTranspose2d(6, 2, 2, decor_bias=True, dtype=torch.float64)
    return nn.Sequential(nn.Unflatten(1, (6, 1, 1)), convolution)


def pruned():
    model = nn.Sequential(DecorLinear(6, 6, dtype=torch.float64))
    prune.l1_unstructured(model[0], "weight", 2)
    return model


def parametrised():
    return nn.Sequential(parametrizations.weight_norm(DecorLinear(6, 6, dtype=torch.float64)))


class Heads(nn.Module):
    """Two layers, one of them without an R, which something may tie."""

    def __init__(self):
        super().__init__()
        self.head, self.other = DecorLinear(6, 6, decor_bias=True), nn.Linear(6, 6)

    def forward(self, x):
        return self.head(x), self.other(x)


def to_the_same(model):
    model.other.weight = model.head.weight


def to_the_same_memory(model):
    model.other.weight = nn.Parameter(model.head.weight.data)


def to_a_part(model):
    model.other = nn.Linear(6, 2).double()
    model.other.weight = nn.Parameter(model.head.weight.data[2:4])


def to_a_buffer(model):
    model.register_buffer("average", model.head.weight.detach().t())


def to_the_bias(model):
    model.other.bias = model.head.bias


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("when", ["before", "later"])
@pytest.mark.parametrize("tie", [to_the_same, to_the_same_memory, to_a_part, to_a_buffer, to_the_bias])
def test_ties_are_found_whenever_and_however_they_were_made(tie, when, owner):
    torch.manual_seed(0)
    model, x = Heads().double(), mixed(20, 6)
    optimizer = OWNERS[owner](model, True)
    if when == "later":
        model(x)
        optimizer.step()
    tie(model)
    model(x)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    what = "bias" if tie is to_the_bias else "weight"
    with pytest.raises(ValueError, match=rf"^layer 'head\.decorrelation': .*have the same {what} as its DecorLinear"):
        optimizer.step()
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    model.other, model.average = nn.Linear(6, 6).double(), None  # untied, it goes on
    out = evaluated(model, lambda model, x: model(x)[0], x)
    optimizer.step()
    assert (evaluated(model, lambda model, x: model(x)[0], x) - out).abs().max() < 1e-10


def test_ties_between_groups_and_layers_that_were_given_are_found():
    for given in (lambda m: [m[0], m[1]], lambda m: [{"params": m[0]}, {"params": [m[1]], "lr": 0.1}]):
        model = nn.Sequential(*(DecorLinear(6, 6, dtype=torch.float64) for _ in range(2)))
        model[1].weight = model[0].weight
        optimizer = DecorSGD(given(model), 0.05, preserve_function=True)
        model(mixed(20, 6))
        with pytest.raises(ValueError, match="other layers have the same weight"):
            optimizer.step()


def test_neighbours_in_one_memory_are_no_ties():
    model, x = Heads().double(), mixed(20, 6)
    flat = torch.cat([model.head.weight.detach().flatten(), model.other.weight.detach().flatten()])
    model.head.weight, model.other.weight = (nn.Parameter(half.view(6, 6)) for half in flat.chunk(2))
    optimizer = DecorSGD(model, 0.05, preserve_function=True)
    model(x)
    out = [one.detach() for one in model.eval()(x)]
    model.train()
    optimizer.step()
    torch.testing.assert_close([one.detach() for one in model.eval()(x)], out, rtol=0, atol=1e-10)


@pytest.mark.parametrize("owner", ["DecorSGD", "Adam"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (tied, r"layer '0\.decorrelation': .*other layers have the same weight.*untie them"),
        (without_bias, r"layer '0\.decorrelation': .*b_R.*decor_bias=False"),
        (transposed, r"layer '1\.decorrelation': .*DecorConvTranspose2d can take up.*decor_bias=False"),
        (pruned, r"layer '0\.decorrelation': .*no plain Parameter of its own"),
        (parametrised, r"layer '0\.decorrelation': .*no plain Parameter of its own"),
        (
            lambda: nn.Sequential(Decorrelation(6, dtype=torch.float64)),
            r"layer '0': .*no layer with weights reads this R",
        ),
    ],
)
def test_what_cannot_be_made_up_for_is_named_before_anything_is_written(make, said, owner):
    model, x = make(), mixed(20, 6)
    optimizer = OWNERS[owner](model, True)
    model(x)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    plain = OWNERS[owner](model, False)  # which the message leaves as the way out
    plain.step()


def test_all_that_share_an_r_have_to_be_given():
    model = shared()
    optimizer = DecorSGD(model.query, 0.05, preserve_function=True)
    model(mixed(8, 6))
    with pytest.raises(
        ValueError, match=r"1 of the 3 layers that share this R were given: give the optimizer the model"
    ):
        optimizer.step()


def test_groups_pairs_and_lists_of_layers_are_looked_at():
    for given in (
        lambda m: [m[0], m[2]],
        lambda m: (one for one in [m[0], m[2]]),
        lambda m: [("a", m[0]), ("b", m[2])],
        lambda m: [{"params": m[0], "lr": 0.1}, {"params": [m[2]]}],
    ):
        model, x = mlp(), mixed(20, 6)
        optimizer = DecorSGD(given(model), 0.05, preserve_function=True)
        model(x)
        before = evaluated(model, call, x)
        optimizer.step()
        assert (evaluated(model, call, x) - before).abs().max() < 1e-10


# ------------------------------------------------------------------------------------------------------ in train


def test_train_takes_it_for_a_torch_optimizer_and_refuses_it_for_one_of_ours():
    x, t = mixed(64, 6), draw(64, 3, seed=5)
    ends = []
    for preserved in (True, False):
        model = mlp()
        before = evaluated(model, call, x)
        sgd = torch.optim.SGD(decor_parameters(model), lr=0.02)
        none = torch.optim.SGD(bp_parameters(model), lr=0.0)
        options = {"optimizer": none, "decor_optimizer": sgd, "preserve_function": preserved}
        train(model, nn.functional.mse_loss, list(zip(x.split(16), t.split(16), strict=True)), epochs=2, **options)
        ends.append(float((evaluated(model, call, x) - before).abs().max()))
    assert ends[0] < 1e-10 < 1e-3 < ends[1]
    with pytest.raises(ValueError, match=r"preserve_function=True are for a torch optimizer"):
        train(
            model,
            nn.functional.mse_loss,
            [(x, t)],
            epochs=1,
            **options | {"preserve_function": True, "decor_optimizer": DecorSGD(model, 0.1)},
        )


def test_a_run_whose_r_becomes_singular_ends_with_the_cause():
    model, x = mlp(), mixed(64, 6)
    model[2].decorrelation.rule = Towards(SINGULAR)
    sgd = torch.optim.SGD(decor_parameters(model), lr=1.0)
    weights = torch.optim.SGD(bp_parameters(model), lr=0.0)
    history = train(
        model,
        nn.functional.mse_loss,
        [(x, draw(64, 3))],
        epochs=2,
        optimizer=weights,
        decor_optimizer=sgd,
        preserve_function=True,
    )
    assert (history.status, history.diverged_at) == ("diverged", 1)
    assert history.cause.startswith("layer '2.decorrelation': ")
    assert "singular" in history.cause


def test_exact_whitening_is_still_solved_once(monkeypatch):
    model, solved = mlp(), []
    for _, layer in decor_modules(model):
        layer.rule = ExactWhitening()
    whitener = ExactWhitening._whitener
    monkeypatch.setattr(ExactWhitening, "_whitener", lambda *a: solved.append(1) or whitener(*a))
    for owner in ("DecorSGD", "Adam"):
        model(mixed(64, 6))
        OWNERS[owner](model, True).step()
    assert len(solved) == 4


def test_decor_step_is_what_it_was():
    """The short form knows no weights; its steps do change the function."""
    model, x = mlp(), mixed(20, 6)
    model(x)
    before = evaluated(model, call, x)
    decor_step(model, 0.02)
    assert (evaluated(model, call, x) - before).abs().max() > 1e-4
