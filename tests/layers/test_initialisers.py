"""R that others have written to before training: an initialiser's loop is an error, all else is taken as it is."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import decorlib
from decorlib import DecorConv2d, DecorLinear, Decorrelation, bp_parameters, decor_modules, decor_step, decorrelate
from decorlib.layers.integrity import looks_like_noise
from decorlib.rules.whitening import cholesky, pca, zca


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


x = draw(32, 8) @ draw(8, 8, seed=1)
EYE = torch.eye(8)
SAID = (
    r"layer '0\.decorrelation': R is not the identity .* an initialiser draws.*bp_parameters.*reset_parameters"
    r".*set_weight"
)


def converted(**options):
    """A model whose layers know their names, as after the first look at them."""
    model = decorrelate(plain(), **options)
    decorlib.layers.steps.learners(model)
    return model


def matrices(draws):
    """A loop over the parameters that are matrices."""

    def initialise(model):
        for p in model.parameters():
            if p.dim() > 1:
                draws(p)

    return initialise


def init_weights(module):
    """As transformers' ``_init_weights``, by what a module has."""
    if getattr(module, "weight", None) is not None and module.weight.dim() == 2:
        module.weight.data.normal_(mean=0.0, std=0.02)
    if getattr(module, "bias", None) is not None:
        module.bias.data.zero_()


def like_transformers(model):
    for module in model.modules():
        init_weights(module)


def named_apply(fn, module, name=""):
    """timm's: it calls fn on the modules itself, not through Module.apply."""
    for child_name, child in module.named_children():
        named_apply(fn, child, f"{name}.{child_name}".lstrip("."))
    fn(module=module, name=name)


def like_timm(model):
    named_apply(lambda module, name: init_weights(module), model)


INITIALISERS = {
    "normal": matrices(lambda p: nn.init.normal_(p, std=0.02)),
    "xavier": matrices(nn.init.xavier_uniform_),
    "kaiming": matrices(nn.init.kaiming_normal_),
    "orthogonal": matrices(nn.init.orthogonal_),
    "uniform, all of one sign": matrices(nn.init.uniform_),
    "constant": matrices(lambda p: nn.init.constant_(p, 0.1)),
    "past the version counter": matrices(lambda p: p.data.uniform_(-0.1, 0.1)),
    "transformers": like_transformers,
    "timm": like_timm,
}


@pytest.mark.parametrize("way", INITIALISERS)
def test_a_loop_that_makes_noise_of_r_is_an_error_at_the_first_training_forward(way):
    model = converted()
    torch.manual_seed(1)
    INITIALISERS[way](model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=SAID):
        model(x)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for _, layer in decor_modules(model):  # the way out that the message gives
        layer.reset_parameters()
    model(x)
    decor_step(model, 1e-3)


@pytest.mark.parametrize("way", INITIALISERS)
def test_over_bp_parameters_the_same_loops_leave_r_alone(way):
    model, loop = converted(), INITIALISERS[way]
    if way in ("transformers", "timm"):
        model.apply(init_weights)
    else:
        loop(nn.ParameterList(bp_parameters(model)))
    assert not torch.equal(model[2].weight, plain()[2].weight)
    model(x)
    decor_step(model, 1e-3)


@pytest.mark.parametrize("when", ["after a look", "after a training forward"])
@pytest.mark.parametrize("way", INITIALISERS)
def test_a_loop_that_comes_later_is_found_before_r_learns(way, when):
    model = converted()
    (model.eval() if when == "after a look" else model)(x)
    model.train()
    INITIALISERS[way](model)
    # At the forward; past the version counter, at the first step, which the first forward does not change.
    late = when == "after a training forward" and way in ("past the version counter", "transformers", "timm")
    if late:
        model(x)
    with pytest.raises(RuntimeError, match=SAID):
        decor_step(model, 1e-3) if late else model(x)


@pytest.mark.parametrize("span", ["patch", "channel"])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_groups_of_a_convolution_are_looked_at_together(groups, span):
    layer, image = DecorConv2d(8, 8, 3, groups=groups, span=span), draw(4, 8, 6, 6)
    layer(image)
    torch.manual_seed(1)
    matrices(lambda p: nn.init.normal_(p, std=0.02))(layer)
    with pytest.raises(RuntimeError, match="an initialiser draws"):
        layer(image)


def test_noise_is_told_from_matrices_that_are_meant_by_their_trace():
    torch.manual_seed(0)
    for D in (8, 32, 128):
        S = torch.cov(torch.randn(D, 4 * D)) + 0.1 * torch.eye(D)
        meant = [torch.eye(D), 1e-3 * torch.eye(D), zca(S), cholesky(S), torch.eye(D) + 0.3 * torch.randn(D, D)]
        assert not any(map(looks_like_noise, meant))
        drawn = [
            torch.randn(D, D),
            0.02 * torch.rand(D, D),
            torch.full((D, D), 2.0),
            nn.init.orthogonal_(torch.empty(D, D)),
        ]
        assert all(map(looks_like_noise, drawn))
    assert not looks_like_noise(torch.tensor([[2.0]]))
    assert looks_like_noise(torch.tensor([[-2.0]]))


# ------------------------------------------------------------------------------------------------ set on purpose


@pytest.mark.parametrize("write", [lambda W, R: W.copy_(R), lambda W, R: W.data.copy_(R), lambda W, R: W.data.mul_(R)])
def test_a_symmetric_whitening_may_be_written_into_r_as_into_any_parameter(write):
    layer, R = DecorLinear(8, 3), zca(x.T @ x / len(x))
    with torch.no_grad():
        write(layer.decorrelation.weight, R)
    layer(x)
    layer.step(1e-3)


def test_a_rotation_is_taken_from_set_weight_also_by_copies_and_files():
    S = x.T @ x / len(x)
    layer, R = Decorrelation(8), pca(S)
    layer(x)
    layer.set_weight(R)
    assert torch.equal(layer.weight, R)
    assert len(layer.memory) == 0
    other = Decorrelation(8)
    other.load_state_dict(layer.state_dict())
    third = Decorrelation(8)
    third.load_state_dict(copy.deepcopy(layer.state_dict()), assign=True)
    for twin in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other, third):
        torch.testing.assert_close(twin(x), x @ R.T)
        twin.step(1e-3)
        moved = Decorrelation(8)
        moved.set_weight(R)
        torch.testing.assert_close(moved.double()(x.double()), x.double() @ R.double().T)
    with torch.no_grad():
        fresh = Decorrelation(8)
        fresh.weight.copy_(R)
    with pytest.raises(RuntimeError, match=r"an initialiser draws.*layer\.set_weight"):
        fresh(x)


@pytest.mark.parametrize(
    ("R", "message"),
    [
        (torch.eye(7), r"R has the shape \(7, 7\); it must have \(8, 8\)"),
        (torch.zeros(8, 8), "is zero: give another"),
        (torch.full((8, 8), torch.nan), "holds NaN or infinity: give another"),
    ],
)
def test_set_weight_refuses_what_no_r_can_be_and_leaves_it(R, message):
    layer = Decorrelation(8)
    with pytest.raises(ValueError, match=message):
        layer.set_weight(R)
    assert torch.equal(layer.weight, EYE)


# ------------------------------------------------------------------------------- what writes to R and is no initialiser


def rotated():
    """A model whose R have learned rotations, which nothing tells from random ones."""
    model = decorrelate(plain(), decorlib.ExactWhitening(kind="pca"))
    model(x)
    decor_step(model, 1.0)
    assert looks_like_noise(model[0].decorrelation.weight)
    return model


def averaged(model):
    average = AveragedModel(decorrelate(plain(), decorlib.ExactWhitening(kind="pca")))
    average.update_parameters(model)
    return average.eval()


def followed(model):
    target = decorrelate(plain(), decorlib.ExactWhitening(kind="pca"))
    with torch.no_grad():
        for p, q in zip(target.parameters(), model.parameters(), strict=True):
            p.copy_(q)
        target.train()(x)  # a teacher with dropout, say
    return target.eval()


def in_place(model):
    """As torch.distributed.checkpoint loads, and DistributedDataParallel sends."""
    other = decorrelate(plain(), decorlib.ExactWhitening(kind="pca"))
    other.eval()(x)
    other.train()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            other.state_dict()[name].copy_(value)
    return other


def assigned(model):
    with torch.device("meta"):
        other = decorrelate(plain(), decorlib.ExactWhitening(kind="pca"))
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    return other


def through_meta(model):
    with torch.device("meta"):
        other = decorrelate(plain(), decorlib.ExactWhitening(kind="pca"))
    other.to_empty(device="cpu").load_state_dict(model.state_dict())
    return other


def stepped_by_torch(model):
    """R written to by an optimizer that is not ours, before the first look at it."""
    other = decorrelate(plain(), decorlib.ExactWhitening(kind="pca"))
    sgd = torch.optim.SGD(decorlib.decor_parameters(other), lr=1.0)
    for _ in range(2):
        other(x)
        decorlib.decor_update(other, lr=1.0)
        sgd.step()
    return other


COPIES = [averaged, followed, in_place, assigned, through_meta, stepped_by_torch, copy.deepcopy]
COPIES += [lambda model: pickle.loads(pickle.dumps(model)), lambda model: model.to(torch.float64).to(torch.float32)]


@pytest.mark.parametrize("copied", COPIES)
def test_what_was_learned_elsewhere_is_not_taken_for_noise(copied):
    model = rotated()
    twin = copied(model)
    y = draw(32, 8, seed=2)
    twin(y)
    if twin.training:
        decor_step(twin, 1e-3)
        twin(y)


# -------------------------------------------------------------------- a plain checkpoint into a model that has learned


def learned(**options):
    model = decorrelate(plain(), **options)
    for _ in range(3):
        model(x)
        decor_step(model, 1e-2)
    return model


@pytest.mark.parametrize("assign", [False, True])
def test_a_plain_checkpoint_into_a_trained_model_says_that_r_stays(assign):
    model = learned()
    with pytest.warns(RuntimeWarning) as said:
        model.load_state_dict(copy.deepcopy(plain().state_dict()), strict=False, assign=assign)
    assert [str(one.message).split(":")[0] for one in said] == ["layer '0.decorrelation'", "layer '2.decorrelation'"]
    assert all("no R" in str(one.message) and "reset_parameters()" in str(one.message) for one in said)
    for _, layer in decor_modules(model):
        layer.reset_parameters()
    torch.testing.assert_close(model(x), plain()(x))


def test_alone_and_in_attention_too():
    layer, attention = learned()[0], decorlib.DecorMultiheadAttention(8, 2, inputs="self")
    with pytest.warns(RuntimeWarning, match="layer 'decorrelation': the state_dict has the weights"):
        layer.load_state_dict(nn.Linear(8, 6).state_dict(), strict=False)
    tokens = draw(5, 4, 8)
    attention(tokens, tokens, tokens)
    decor_step(attention, 1e-2)
    with pytest.warns(RuntimeWarning) as said:
        attention.load_state_dict(nn.MultiheadAttention(8, 2).state_dict(), strict=False)
    names = ["decorrelations.input", "out_proj.decorrelation"]
    assert sorted(str(one.message).split(":")[0] for one in said) == [f"layer '{name}'" for name in names]


def test_no_word_where_r_is_the_identity_or_other_parts_are_loaded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decorrelate(plain()).load_state_dict(plain().state_dict(), strict=False)
        model = learned()
        model.load_state_dict({}, strict=False)
        model.load_state_dict({k: v for k, v in learned().state_dict().items() if k.startswith("0")}, strict=False)
