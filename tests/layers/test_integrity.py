"""What others do to R: initialisers, pruning, the meta device, loaders, offloading, checkpoints, frozen layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import decorlib
from decorlib import (
    DecorConv2d,
    DecorLinear,
    Decorrelation,
    KappaRule,
    bp_parameters,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_update,
    decorrelate,
)

x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) @ torch.randn(
    8, 8, generator=torch.Generator().manual_seed(1)
)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def learned(**options):
    model = decorrelate(plain(), **options)
    for _ in range(5):
        model(x)
        decor_step(model, 1e-2)
    return model


def matrices(model):
    return [layer.weight for _, layer in decor_modules(model)]


def identities(model):
    return all(torch.equal(R, torch.eye(len(R), dtype=R.dtype)) for R in matrices(model))


# ---------------------------------------------------------------------------------------------------- initialisers


def noise(m):
    if getattr(m, "weight", None) is not None and m.weight.dim() == 2:
        nn.init.xavier_uniform_(m.weight)


def noise_past_the_version_counter(m):
    if getattr(m, "weight", None) is not None and m.weight.dim() == 2:
        m.weight.data.normal_()
    if getattr(m, "bias", None) is not None:
        m.bias.data.fill_(0.1)


@pytest.mark.parametrize("init", [noise, noise_past_the_version_counter])
def test_an_initialiser_of_everything_leaves_r_alone(init):
    model = decorrelate(plain(), decor_bias=True)
    before = model[0].weight.detach().clone()
    assert model.apply(init) is model
    assert not torch.equal(before, model[0].weight)
    assert identities(model)
    assert not any(layer.bias.any() for _, layer in decor_modules(model))
    model = learned()
    R = [R.detach().clone() for R in matrices(model)]
    model.apply(init)
    assert all(torch.equal(*pair) for pair in zip(R, matrices(model), strict=True))


def test_apply_still_resets_moves_and_visits():
    model, seen = learned(), []
    model.apply(seen.append)
    assert [m for m in seen if isinstance(m, Decorrelation)] == [layer for _, layer in decor_modules(model)]
    model.apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    assert identities(model)
    model.apply(lambda m: m.double())
    assert {R.dtype for R in matrices(model)} == {torch.float64}


PURPOSES = {
    "set_weight": lambda m: m.set_weight(ROTATION),
    "set_weight after reset_parameters": lambda m: (m.reset_parameters(), m.set_weight(ROTATION)),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict() | {"weight": ROTATION}),
}
ROTATION = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3))).Q


@pytest.mark.parametrize("make", [lambda: Decorrelation(6), lambda: Decorrelation(6, bias=True)])
@pytest.mark.parametrize("way", PURPOSES)
def test_an_r_that_is_set_on_purpose_inside_apply_stays(way, make):
    model = nn.Sequential(make())
    model.apply(lambda m: PURPOSES[way](m) if isinstance(m, Decorrelation) else None)
    assert torch.equal(model[0].weight, ROTATION)
    y = torch.randn(20, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(model(y), y @ ROTATION.T)
    model.apply(noise)  # the purpose of before is no excuse for an initialiser of now
    assert torch.equal(model[0].weight, ROTATION)


def test_a_step_inside_apply_is_a_step():
    model, by_hand = learned(), learned()
    for one in (model, by_hand):
        one(x)
    model.apply(lambda m: m.step(1e-2) if isinstance(m, Decorrelation) else None)
    for _, layer in decor_modules(by_hand):
        layer.step(1e-2)
    R = matrices(by_hand)
    assert all(torch.equal(*pair) for pair in zip(matrices(model), R, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(matrices(learned()), R, strict=True))


# ---------------------------------------------------------------------------------------- not what R was, or not there


def test_a_pruned_r_is_refused_at_the_next_training_forward_and_at_the_next_update():
    model = learned()
    model(x)
    prune.global_unstructured(
        [(m, "weight") for m in model.modules() if hasattr(m, "weight")], prune.L1Unstructured, amount=0.3
    )
    for call in (lambda: model[0].decorrelation.step(0.1), lambda: model(x)):
        with pytest.raises(RuntimeError, match=r"R is no Parameter any more.*prune\.remove"):
            call()
    assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize(("value", "message"), [(0.0, "is zero"), (float("nan"), "holds NaN"), (float("inf"), "holds")])
def test_a_loaded_r_that_cannot_be_is_an_error_at_the_first_forward(value, message):
    model = decorrelate(plain())
    model[0].decorrelation.name = "0.decorrelation"
    state = model.state_dict()
    state["0.decorrelation.weight"] = torch.full((8, 8), value)
    for assign in (False, True):
        model.load_state_dict(state, assign=assign)
        for mode in (True, False):
            with pytest.raises(RuntimeError, match=rf"layer '0\.decorrelation': R {message}"):
                model.train(mode)(x)
    model[0].decorrelation.reset_parameters()
    assert model.eval()(x).isfinite().all()


def test_r_set_by_a_loader_of_its_own_is_looked_at_and_needs_no_gradient():
    layer = Decorrelation(4)
    layer(torch.randn(3, 4))
    layer.weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match="R is zero"):
        layer(torch.randn(3, 4))
    layer.weight = nn.Parameter(2 * torch.eye(4))  # as transformers does it
    layer(torch.randn(3, 4))
    assert not layer.weight.requires_grad


def test_looking_at_r_costs_no_pass_over_it_once_it_was_found_sound(monkeypatch):
    layer, calls = Decorrelation(4), []
    layer(torch.randn(3, 4))
    layer.step(0.1)
    monkeypatch.setattr(torch.Tensor, "any", lambda *a: calls.append(a))
    for _ in range(3):
        layer(torch.randn(3, 4))
        layer.step(0.1)
    assert not calls


# ------------------------------------------------------------------------------------------------------- meta device


def on_meta(**options):
    with torch.device("meta"), pytest.warns(UserWarning, match="center='running' .* outputs change by W mu"):
        return decorrelate(plain(), center="running", decor_bias=True, **options)


@pytest.mark.parametrize("way", ["assign", "to_empty"])
def test_a_plain_checkpoint_loads_into_a_model_that_was_decorrelated_on_meta(way):
    source, model = plain(), on_meta(update_every=2)
    if way == "to_empty":
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):  # what memory that was never written to may hold
            tensor.data.fill_(7 if tensor.dtype == torch.long else float("nan"))
    result = model.load_state_dict(source.state_dict(), strict=False, assign=way == "assign")
    assert result.unexpected_keys == []
    assert identities(model)
    torch.testing.assert_close(model.eval()(x), source(x))
    assert not any(p.requires_grad for p in decor_parameters(model))
    model.train()(x)
    assert all(loss is not None for loss in decor_step(model, 0.01).values())
    assert [int(layer.num_updates) for _, layer in decor_modules(model)] == [1, 1]


def test_a_decorrelated_checkpoint_loads_into_meta_with_its_phase():
    source = learned(update_every=2)
    with torch.device("meta"):
        model = decorrelate(plain(), update_every=2)
    model.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    assert not any(p.requires_grad for p in decor_parameters(model))
    assert all(p.requires_grad for p in bp_parameters(model))
    for net in (source, model):
        net(x)
    assert list(decor_step(source, 0.01).values()) == list(decor_step(model, 0.01).values()) == [None, None]


def test_memory_that_was_never_written_to_is_an_error():
    model = on_meta().to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    with pytest.raises(RuntimeError, match=r"never given numbers.*reset_parameters"):
        model(x)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert model(x).isfinite().all()


def test_shapes_can_be_asked_for_on_meta_and_numbers_not():
    model = on_meta()
    assert model(torch.empty(5, 8, device="meta")).shape == (5, 3)
    layer = Decorrelation(8)
    layer.weight = nn.Parameter(torch.empty(8, 8, device="meta"), False)  # what offloading leaves
    with pytest.raises(RuntimeError, match=r"on the meta device.*preload_module_classes"):
        layer(x)


def test_what_transformers_leaves_unloaded_is_the_identity():
    """from_pretrained allocates what a checkpoint lacks, and marks modules and the tensors that it did load."""
    with torch.device("meta"):
        loaded, missing = Decorrelation(4), Decorrelation(4)
    for layer, value in ((loaded, 2 * torch.eye(4)), (missing, torch.full((4, 4), 3.0))):
        layer.weight = nn.Parameter(value)
        layer.num_updates = torch.tensor(0)
        layer._is_hf_initialized = True
    loaded.weight._is_hf_initialized = True
    given = torch.randn(3, 4)
    assert torch.equal(missing(given), given)
    assert torch.equal(loaded(given), 2 * given)


# ------------------------------------------------------------------------------------------------- count and precision


def test_the_phase_follows_the_buffer_however_it_was_loaded():
    for load in (
        lambda layer, state: layer.load_state_dict(state),
        lambda layer, state: layer.load_state_dict(state, assign=True),
        lambda layer, state: [layer.state_dict()[name].copy_(value) for name, value in state.items()],  # as DCP
        lambda layer, state: setattr(layer, "num_updates", state["num_updates"]),
    ):
        source, layer = (Decorrelation(8, update_every=3) for _ in range(2))
        for _ in range(4):
            source(x)
            source.step(0.01)
        layer(x)
        layer.step(0.01)
        load(layer, {name: value.clone() for name, value in source.state_dict().items()})
        learns = []
        for _ in range(4):
            layer(x)
            learns.append(layer.due)
            layer.step(0.01)
        assert learns == [False, False, True, False]
        assert layer.num_updates == 8


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_distributed_checkpoint_in_place_keeps_the_phase(tmp_path):
    import torch.distributed.checkpoint as dcp

    source, model = learned(update_every=2), decorrelate(plain(), update_every=2)
    dcp.save(source.state_dict(), checkpoint_id=tmp_path / "one")
    state = model.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "one")  # into the tensors of the model, without load_state_dict
    for net in (source, model):
        net(x)
    assert (
        [layer.due for _, layer in decor_modules(source)]
        == [layer.due for _, layer in decor_modules(model)]
        == [False] * 2
    )
    assert all(torch.equal(*pair) for pair in zip(matrices(source), matrices(model), strict=True))


def test_r_is_float32_whatever_the_default_is():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        layers = Decorrelation(4, center="running"), DecorLinear(4, 3).decorrelation, DecorConv2d(2, 3, 2).decorrelation
        assert DecorLinear(4, 3).weight.dtype == torch.bfloat16
        torch.set_default_dtype(torch.float64)
        assert Decorrelation(4).weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    assert {layer.weight.dtype for layer in layers} == {torch.float32}
    assert layers[0].running_mean.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ parts of a model


@pytest.mark.parametrize(
    "make", [lambda: DecorLinear(8, 3), lambda: DecorConv2d(8, 3, 1), lambda: decorlib.DecorConvTranspose2d(8, 3, 1)]
)
def test_r_of_frozen_weights_stands_still_and_thaws(make):
    layer = make()
    data = x if isinstance(layer, DecorLinear) else x[:, :, None, None]
    layer.requires_grad_(False)
    layer(data)
    assert len(layer.decorrelation.memory) == 0
    assert "frozen" in layer.decorrelation.idle_reason()
    layer.decorrelation.weight.grad = torch.ones_like(layer.decorrelation.weight)  # of before it was frozen
    assert layer.update() is layer.step(0.1) is layer.measure() is None
    assert layer.decorrelation.weight.grad is None
    assert torch.equal(layer.decorrelation.weight, torch.eye(8))
    assert layer.decorrelation.num_updates == 0
    layer.weight.requires_grad_(True)
    layer(data)
    assert layer.decorrelation.idle_reason() is None
    layer.step(0.1)
    assert not torch.equal(layer.decorrelation.weight, torch.eye(8))


def test_idle_reason_of_a_part_in_evaluation():
    layer = Decorrelation(8).eval()
    layer(x)
    assert layer.idle_reason() == "it is in evaluation mode"
    assert layer.train().idle_reason() is None


# ----------------------------------------------------------------------------------------------------- two phases


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("rule", sorted(decorlib.RULES))
def test_preparing_changes_nothing_and_committing_is_the_step(rule):
    rule = decorlib.make_rule(rule, **({"variance": 1.0} if rule == "seed" else {}))
    for bound in (None, 0.5):
        layer = Decorrelation(8, bias=True, center="running", rule=rule, update_every=2)
        stepped, updated = copy.deepcopy(layer), copy.deepcopy(layer)
        for net in (layer, stepped, updated):
            net(x)
        before = state(layer)
        step = layer.prepare(0.02, bound)
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
        assert layer.weight.grad is None
        assert len(layer.memory) == 1
        assert step.loss == step.commit_in_place() == stepped.step(0.02, bound) == updated.update(0.02, bound)
        assert all(torch.equal(value, stepped.state_dict()[name]) for name, value in layer.state_dict().items())
        with pytest.raises(RuntimeError, match="taken already"):
            step.commit_gradient()
        torch.optim.SGD(updated.parameters(), lr=0.02).step()
        torch.testing.assert_close(updated.weight, layer.weight, rtol=1e-4, atol=1e-4)
        layer(x)
        idle = layer.prepare(0.02)  # not its turn: nothing but the count
        assert idle.loss is None
        assert idle.commit_in_place() is None
        assert layer.num_updates == 2


def test_a_layer_that_cannot_be_prepared_leaves_those_before_it_as_they_were():
    model = nn.Sequential(Decorrelation(8), Decorrelation(8, rule=decorlib.ExactWhitening(shrinkage=0.0)))
    model(torch.cat([x[:, :7], x[:, :1]], 1))
    before = state(model)
    first = model[0].prepare(0.1)
    with pytest.raises(ValueError, match="singular"):
        model[1].prepare(0.1)
    with pytest.raises(ValueError, match=r"layer '1': .*singular"):
        decor_step(model, 0.1)
    with pytest.raises(ValueError, match="singular"):
        decor_update(model, 0.1)
    assert first.loss.isfinite()
    assert all(R.grad is None for R in matrices(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_rate_for_each_group_is_as_many_layers():
    rates, data = torch.tensor([0.1, 0.02]), torch.randn(20, 2, 3)
    for bound in (None, 0.3):
        wide, alone = Decorrelation(6, groups=2, bias=True), [Decorrelation(3, bias=True) for _ in range(2)]
        wide(data.flatten(1))
        step = wide.prepare(rates, bound)
        for g, layer in enumerate(alone):
            layer(data[:, g])
            torch.testing.assert_close(layer.step(float(rates[g]), bound), step.losses[g])
        step.commit_in_place()
        torch.testing.assert_close(wide.weight, torch.stack([layer.weight for layer in alone]).detach())
        torch.testing.assert_close(wide.bias, torch.cat([layer.bias for layer in alone]).detach())
    wide = Decorrelation(6, groups=2, rule="foldiak")
    wide(data.flatten(1))
    with pytest.raises(ValueError, match="groups cannot differ"):
        wide.prepare(rates)
    assert KappaRule() == Decorrelation(6).rule


def test_thawing_the_whole_model_gives_r_no_gradient():
    """model.requires_grad_(True), as fine-tuning ends: whoever asks for what requires a gradient must not get R."""
    model = learned()
    model.requires_grad_(False)
    model(x)
    model.requires_grad_(True)
    model(x)
    assert not any(R.requires_grad for R in matrices(model))
    assert all(p.requires_grad for p in bp_parameters(model))


def test_copies_of_data_parallel_are_refused_for_what_they_are():
    layer = Decorrelation(8)
    layer.name = "encoder"
    replica = layer._replicate_for_data_parallel()
    replica.weight = layer.weight.detach()  # as torch.nn.parallel.replicate does
    with pytest.raises(RuntimeError, match=r"layer 'encoder': torch\.nn\.DataParallel .*DistributedDataParallel"):
        replica(x)
    assert torch.equal(replica.eval()(x), x)


# --------------------------------------------------------------------------------- weights that are computed or lent


COMPUTED = {
    "weight_norm": lambda layer: parametrizations.weight_norm(layer),
    "orthogonal": lambda layer: parametrizations.orthogonal(layer),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.2),
    "spectral_norm with hooks": lambda layer: nn.utils.spectral_norm(layer),
}


def plainly(model):
    model(x)


def lent(model):
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.func.functional_call(model, parameters, (x,))


def in_inference(model):
    with torch.inference_mode():
        model(x)


@pytest.mark.parametrize("look", [plainly, lent, in_inference])
@pytest.mark.parametrize("compute", COMPUTED)
def test_a_look_without_gradients_does_not_freeze_a_computed_weight(compute, look):
    """A weight that is computed needs no gradient under no_grad, and R stood still after it, without a word."""
    models = [decorrelate(plain()) for _ in range(2)]
    for model in models:
        torch.manual_seed(1)
        COMPUTED[compute](model[0])
    for model, looked in zip(models, (True, False), strict=True):
        for _ in range(3):
            model(x).square().mean().backward()
            if looked:
                with torch.no_grad():
                    look(model)
            losses = decor_step(model, 1e-2)
            assert None not in losses.values()
    # Hooks of spectral_norm go a step further at every forward, so that what the second layer gets is another thing.
    compared = slice(0, 1) if "hooks" in compute else slice(None)
    torch.testing.assert_close(*(matrices(model)[compared] for model in models), rtol=0, atol=0)
    for p in models[0][0].parameters():
        p.requires_grad_(False)
    models[0](x)
    assert decor_step(models[0], 1e-2)["0.decorrelation"] is None  # frozen in earnest


def test_attention_and_layers_that_share_an_r_are_not_frozen_by_a_look_either():
    torch.manual_seed(0)
    attention = decorlib.DecorMultiheadAttention(8, 2, inputs="self")
    prune.l1_unstructured(attention, "in_proj_weight", 0.2)
    tokens = x.reshape(4, 8, 8)
    attention(tokens, tokens, tokens)[0].sum().backward()
    with torch.no_grad():
        attention(tokens, tokens, tokens)
    assert None not in decor_step(attention, 1e-2).values()

    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.query(x) * self.key(x)

    model = decorrelate(Reading(), share=[("query", "key")])
    for layer in (model.query, model.key):
        prune.l1_unstructured(layer, "weight", 0.2)
    model(x).sum().backward()
    with torch.no_grad():
        model(x)
    assert None not in decor_step(model, 1e-2).values()


def test_states_of_another_r_are_not_learned_from():
    """functional_call with an R of its own: states of 10 times the scale made a step of R that belongs to neither."""
    model = learned()
    names = [f"{name}.weight" for name, _ in decor_modules(model)]
    theirs = {name: 10 * p.detach() if name in names else p for name, p in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    torch.func.functional_call(model, theirs, (x,)).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"layer '0\.decorrelation': the forward used another R.*decorrelation\.weight"
    ):
        decor_step(model, 1e-2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for _, layer in decor_modules(model):
        layer.forget()
    twin = copy.deepcopy(model)
    mine = {name: p.detach().clone() for name, p in model.named_parameters()}  # the same values are no other R
    torch.func.functional_call(model, mine, (x,)).sum()
    twin(x)
    for one in (model, twin):
        decor_step(one, 1e-2)
    torch.testing.assert_close(matrices(model), matrices(twin), rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_without_its_learned_r_does_not_load(assign):
    """As exclude_frozen_parameters leaves it: the weights alone computed something else, 3.5 off, without a word."""
    model = learned()
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("decorrelation.weight")}
    with pytest.raises(
        RuntimeError, match=r"0\.decorrelation\.weight, an R that has learned.*num_updates is 5.*save all"
    ):
        decorrelate(plain()).load_state_dict(state, strict=False, assign=assign)
    fresh = decorrelate(plain())
    state = {k: v for k, v in fresh.state_dict().items() if not k.endswith("decorrelation.weight")}
    fresh.load_state_dict(state, strict=False, assign=assign)  # R = I is no loss
    assert identities(fresh)
