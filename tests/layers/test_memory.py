"""R learns from what the layer saw: in-place writes, recomputation, looks under no_grad, forwards without an update."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import decorlib
from decorlib import (
    DecorConv2d,
    DecorLinear,
    Decorrelation,
    ExactWhitening,
    KappaRule,
    SeedRule,
    decor_modules,
    decor_step,
    padding,
)
from decorlib.layers import memory

D = 6


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_of(**options):
    layer = Decorrelation(D, **{"rule": KappaRule(kappa=0.3), "dtype": torch.float64} | options)
    layer.weight.data += 0.3 * draw(D, D, seed=7)
    return layer


def after_a_step(layer, x):
    layer(x)
    layer.step(0.1)
    return layer.weight.detach().clone()


# --------------------------------------------------------------------------------------------------- written in place


@pytest.mark.parametrize("center", [None, "batch", "running"])
def test_relu_in_place_behind_a_layer_does_not_change_what_it_learns(center):
    torch.manual_seed(0)
    x = torch.randn(64, D) @ torch.randn(D, D)
    learned = []
    for inplace in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(Decorrelation(D, center=center), nn.ReLU(inplace=inplace), nn.Linear(D, 2))
        for _ in range(300):
            model(x)
            decor_step(model, 1e-2)
        learned.append(model[0].weight.detach())
    # R x is taken again, by the same product: the bits are those of the forward.
    assert torch.equal(*learned)
    assert not torch.equal(learned[0], torch.eye(D))


def test_outputs_and_inputs_both_written_to_is_an_error_that_says_so():
    layer, x = layer_of(), draw(8, D)
    before = layer.weight.detach().clone()
    y = layer(x)
    y.mul_(2)
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place.*inplace=False"):
        layer.step(0.1)
    assert torch.equal(before, layer.weight)
    assert after_a_step(layer, x).isfinite().all()  # nothing is lost: the next batch is learned from


def test_inputs_written_to_do_not_matter_to_a_rule_that_reads_states_only():
    layer, twin, x = layer_of(), layer_of(), draw(8, D)
    expected = after_a_step(twin, x.clone())
    layer(x)
    x.zero_()  # a static buffer, or a residual that is added in place
    layer.step(0.1)
    assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize("make", [Decorrelation, lambda *a, **k: DecorLinear(D, *a, **k)])
def test_inputs_written_to_are_an_error_for_a_rule_that_reads_them(make):
    layer, x = make(D, rule=SeedRule(variance="input"), dtype=torch.float64), draw(8, D)
    layer(x)
    x += 1
    with pytest.raises(RuntimeError, match=r"reads the inputs.*changed in place.*x = x \+"):
        layer.step(0.1)


def test_a_step_before_backward_is_refused_by_torch():
    for model in (nn.Sequential(Decorrelation(D)), DecorLinear(D, D, fuse=False)):
        loss = model(torch.randn(16, D, requires_grad=True)).square().mean()
        decor_step(model, 0.3)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# ------------------------------------------------------------------------------------------- activation checkpointing


def gradients_of(model, x, run, **padded):
    x = x.clone().requires_grad_()
    out = run(model, x)
    (out * draw(*out.shape, seed=5)).sum().backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    return [x.grad, *(p.grad for p in weights)]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("center", [None, "batch", "running"])
@pytest.mark.parametrize("kind", ["linear", "bare", "patch", "channel"])
def test_checkpointing_gives_the_same_gradients_statistics_and_counts(kind, center, reentrant, accumulate):
    options = {"rule": KappaRule(), "center": center, "accumulate": accumulate, "dtype": torch.float64}
    options |= {"fraction": 0.5, "generator": torch.Generator().manual_seed(2)}
    torch.manual_seed(0)
    if kind in ("linear", "bare"):
        layer = DecorLinear(D, D, **options) if kind == "linear" else Decorrelation(D, **options)
        x = draw(12, D) + 3
    else:
        layer, x = DecorConv2d(3, 4, 3, padding=1, span=kind, **options), draw(4, 3, 5, 5) + 3
    # Dropout in the same part of the model draws after the layer, and has to draw the same again.
    model = nn.Sequential(layer, nn.Dropout(0.3))
    plain, checked = model, copy.deepcopy(model)
    results = []
    for net, run in [
        (plain, lambda net, x: net(x)),
        (checked, lambda net, x: checkpoint(net, x, use_reentrant=reentrant)),
    ]:
        torch.manual_seed(3)
        found = gradients_of(net, x, run)
        inner = next(layer for _, layer in decor_modules(net))
        assert len(inner.memory) == 1
        loss = inner.step(0.05)
        results.append([*found, loss, *net.state_dict().values()])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_each_of_several_passes_subtracts_its_own_mean_again(reentrant):
    """Two batches are seen before either is backpropagated, and the running mean moves in between."""
    torch.manual_seed(0)
    model = DecorLinear(D, D, center="running", accumulate=True, dtype=torch.float64)
    results, batches = [], [(draw(8, D, seed=s) + 3 * s) for s in (1, 2)]
    for net, run in [
        (model, lambda net, x: net(x)),
        (copy.deepcopy(model), lambda net, x: checkpoint(net, x, use_reentrant=reentrant)),
    ]:
        inputs = [x.clone().requires_grad_() for x in batches]
        outs = [run(net, x) for x in inputs]
        for out in outs:  # the older one first, as sums of losses do not
            (out**2).sum().backward()
        results.append([*(x.grad for x in inputs), net.weight.grad, net.step(0.1), *net.state_dict().values()])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_sampling_from_the_global_generator_leaves_later_draws_of_a_recomputation_right():
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(D, D, fraction=0.5), nn.Dropout(0.5)).double()
    grads = []
    for run in (lambda x: model(x), lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(4)
        model.zero_grad()
        run(draw(8, D).requires_grad_()).square().sum().backward()
        grads.append(model[0].weight.grad.clone())
        decor_step(model, 0.0 + 1e-9)
    torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-6)


def test_r_that_moved_before_the_recomputation_is_an_error():
    model = DecorLinear(D, D)
    loss = checkpoint(model, torch.randn(8, D, requires_grad=True), use_reentrant=False).sum()
    decor_step(model, 0.1)
    with pytest.raises(RuntimeError, match=r"R has moved.*backward\(\) before"):
        loss.backward()


def test_update_before_a_checkpointed_backward_is_right_for_r_has_not_moved():
    results = []
    for late in (True, False):
        torch.manual_seed(0)
        model, x = DecorLinear(D, D, center="running"), torch.randn(8, D, requires_grad=True)
        loss = checkpoint(model, x, use_reentrant=False).square().sum()
        if late:
            loss.backward()
        model.update()
        if not late:
            loss.backward()
        results.append([x.grad, model.weight.grad, model.decorrelation.weight.grad])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_padding_mask_that_is_gone_at_the_recomputation_is_an_error():
    model, tokens = DecorLinear(D, D, center="batch"), torch.randn(2, 3, D, requires_grad=True)
    mask = torch.tensor([[False, False, True], [False, False, False]])
    with padding(model, mask):
        loss = checkpoint(model, tokens, use_reentrant=False).sum()
    with pytest.raises(RuntimeError, match=r"backward\(\) inside `with padding"):
        loss.backward()


# ------------------------------------------------------------------------------- forwards that are not trained on


def test_a_look_without_gradients_does_not_displace_the_batch_that_is_trained_on():
    x, other = draw(8, D), 5 * draw(8, D, seed=1)
    for accumulate in (False, True):
        expected = after_a_step(layer_of(accumulate=accumulate), x)
        layer = layer_of(accumulate=accumulate)
        with torch.no_grad():
            layer(other)
        layer(x)
        with torch.no_grad():
            layer(other)
        layer.step(0.1)
        assert torch.equal(layer.weight, expected)


def test_r_alone_learns_without_gradients():
    x = draw(8, D)
    expected = after_a_step(layer_of(), x)
    with torch.no_grad():
        assert torch.equal(after_a_step(layer_of(), x), expected)
    with torch.inference_mode():
        layer = layer_of()
        layer(x)
        layer.step(0.1)
        assert torch.equal(layer.weight, expected)


def test_writes_that_inference_mode_does_not_count_do_not_change_what_is_learned():
    x = draw(8, D)
    for layer, write in (
        (Decorrelation(D), lambda x, y: y.relu_()),
        (Decorrelation(D, rule="adaptive_gain"), lambda x, y: x.zero_()),
        (DecorLinear(D, D, rule="adaptive_gain"), lambda x, y: x.zero_()),
    ):
        layer.double()
        inner, expected = getattr(layer, "decorrelation", layer), copy.deepcopy(layer)
        with torch.inference_mode():
            given = x.clone()
            write(given, layer(given))
        layer.step(0.01)
        expected(x)
        expected.step(0.01)
        assert torch.equal(inner.weight, getattr(expected, "decorrelation", expected).weight)


@pytest.mark.parametrize("looks", ["before", "after", "before, through a checkpoint"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_the_first_pass_of_a_reentrant_checkpoint_is_no_look(accumulate, looks):
    """It runs without gradients, and is trained on all the same."""
    x, other = draw(8, D).requires_grad_(), 5 * draw(8, D, seed=1).requires_grad_()
    expected = after_a_step(layer_of(accumulate=accumulate), x)
    layer = layer_of(accumulate=accumulate)

    def look():
        with torch.no_grad():
            checkpoint(layer, other, use_reentrant=True) if "checkpoint" in looks else layer(other)

    if "before" in looks:
        look()
    loss = checkpoint(layer, x, use_reentrant=True).sum()
    if looks == "after":
        look()
    loss.backward()
    layer.step(0.1)
    assert torch.equal(layer.weight, expected)


# ------------------------------------------------------------------------------ several forwards, and none too many


def test_micro_batches_without_accumulation_warn_once_and_say_what_is_used():
    layer, x = layer_of(), draw(16, D)
    layer.name = "blocks.3"
    for part in x.split(4):
        layer(part)
    with pytest.warns(
        RuntimeWarning,
        match=r"layer 'blocks\.3': 4 training forwards.*the last alone \(4 of 16 rows\).*accumulate=True uses all",
    ):
        layer.step(0.1)
    for part in x.split(4):  # once: warnings are errors in this suite
        layer(part)
    layer.step(0.1)


def test_a_step_that_is_forgotten_is_said_once():
    layer, x = layer_of(), draw(4, D)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(300):
            layer(x)
    assert len(caught) == 1
    assert caught[0].category is RuntimeWarning
    assert "forgotten" in str(caught[0].message)
    assert "layer.learning = False" in str(caught[0].message)


def test_a_layer_that_rests_remembers_nothing_and_does_not_warn():
    layer, x = layer_of(center="running"), draw(4, D)
    layer.learning = False
    assert layer.idle_reason() == "learning is False"
    before = layer.weight.detach().clone()
    for _ in range(300):
        layer(x)
    assert len(layer.memory) == 0
    assert layer.step(0.1) is layer.update() is layer.measure() is None
    assert torch.equal(before, layer.weight)
    assert layer.num_updates == 0
    layer.learning = True
    assert not torch.equal(after_a_step(layer, x), before)


def test_accumulation_without_an_update_is_bounded_with_one_warning():
    layer, x = layer_of(accumulate=True), draw(memory.ACCUMULATED + 36, 3, D)
    for part in x:
        layer(part)
    assert len(layer.memory) == memory.ACCUMULATED
    with pytest.warns(RuntimeWarning, match=rf"the last {memory.ACCUMULATED} alone"):
        layer.step(0.1)
    expected = after_a_step(layer_of(), x[36:].reshape(-1, D))
    torch.testing.assert_close(layer.weight, expected, rtol=1e-10, atol=1e-12)


def test_an_ordinary_loop_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer, x = layer_of(update_every=3), draw(4, D)
        for _ in range(300):
            layer(x)
            layer.step(0.01)


# ----------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_a_mask_that_is_not_bool_is_refused_with_the_way_out(dtype):
    layer, mask = DecorLinear(D, D), torch.ones(2, 3, dtype=dtype)
    with pytest.raises(ValueError, match=r"attention_mask == 0"), padding(layer, mask):
        layer(torch.randn(2, 3, D))
    assert layer.decorrelation.padding_mask is None


# --------------------------------------------------------------------------------------------------- torch.func


def test_transforms_of_torch_func_work_in_evaluation_and_are_refused_in_training():
    model = DecorLinear(D, 2)
    parameters = {name: p.detach() for name, p in model.named_parameters(recurse=False)}

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    x = torch.randn(5, D)
    with pytest.raises(RuntimeError, match=r"vmap and grad do not allow.*model\.eval\(\)"):
        per_sample(parameters, x)
    found = per_sample(parameters, x) if not model.eval().training else None
    expected = torch.stack([torch.func.grad(loss)(parameters, row)["weight"] for row in x])
    torch.testing.assert_close(found["weight"], expected)


# ------------------------------------------------------------------------------------------------- which rule it is


def test_kappa_is_the_default_and_the_2024_rule_where_its_numbers_are_given():
    conv = lambda **k: DecorConv2d(2, 3, 2, **k).decorrelation  # noqa: E731
    up = lambda **k: decorlib.DecorConvTranspose2d(2, 3, 2, **k).decorrelation  # noqa: E731
    for make in (lambda **k: Decorrelation(4, **k), lambda **k: DecorLinear(4, 2, **k).decorrelation, conv, up):
        assert make().rule == KappaRule()
        assert make(variance=1.0).rule == SeedRule(variance=1.0)
        assert make(eta=1.0).rule == SeedRule()
        assert make(eta=0.5, variance=2.0).rule == SeedRule(variance=2.0, eta=0.5)
        assert make(rule="exact").rule == ExactWhitening()


def test_what_is_no_rule_is_refused_at_once():
    with pytest.raises(TypeError, match=r"class KappaRule; give an instance: KappaRule\("):
        Decorrelation(4, rule=KappaRule)
    with pytest.raises(TypeError, match=r"rule is 3; give an instance"):
        Decorrelation(4, rule=3)
    with pytest.raises(ValueError, match="no rule is called 'kapa'"):
        DecorLinear(4, 2, rule="kapa")
    with pytest.raises(ValueError, match="belong to"):
        Decorrelation(4, rule=KappaRule(), eta=1.0)


def test_an_input_that_is_not_finite_names_the_layer_and_the_way_out():
    layer = layer_of()
    layer.name = "encoder.0"
    with pytest.raises(decorlib.NonFiniteInput, match=r"^layer 'encoder\.0': input .* lower the rate of R"):
        layer(torch.full((4, D), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize("order", ["one backward", "a backward each", "backward between"])
def test_the_same_batch_twice_before_backward_is_told_apart_or_refused(order):
    """The running mean moves in between, so that two passes over one batch subtract different means."""
    torch.manual_seed(0)
    model, x = DecorLinear(D, D, center="running", accumulate=True, dtype=torch.float64), draw(8, D) + 3

    def gradient(net, run):
        if order == "backward between":
            for _ in range(2):
                (run(net, x.clone().requires_grad_()) ** 2).sum().backward()
        else:
            losses = [(run(net, x.clone().requires_grad_()) ** 2).sum() * weight for weight in (1, 0.5)]
            for loss in [sum(losses)] if order == "one backward" else losses:
                loss.backward()
        return net.weight.grad

    def checked(net, x):
        return checkpoint(net, x, use_reentrant=False)

    again = copy.deepcopy(model)
    expected = gradient(model, lambda net, x: net(x))
    if order == "backward between":
        torch.testing.assert_close(gradient(again, checked), expected, rtol=1e-12, atol=1e-12)
    else:
        with pytest.raises(RuntimeError, match=r"2 forwards .* saw the same batch .* center='batch'"):
            gradient(again, checked)


@pytest.mark.parametrize("make", [lambda: Decorrelation(D), lambda: DecorLinear(D, 2), lambda: DecorLinear(D, 99)])
def test_an_r_that_diverged_is_an_error_at_the_next_forward(make):
    layer = make().float()
    x = draw(16, D).float()

    def too_fast():
        for _ in range(200):
            layer(x)
            layer.step(1e3)

    with pytest.raises(decorlib.NonFiniteInput, match=r"R has diverged\. Lower the rate of R .*reset_parameters"):
        too_fast()


def test_what_was_remembered_of_another_r_is_forgotten_when_one_is_loaded():
    torch.manual_seed(0)
    model = nn.Sequential(DecorLinear(D, D, dtype=torch.float64))
    plain = copy.deepcopy(model.state_dict())
    for _ in range(5):
        model(draw(16, D))
        decor_step(model, 0.1)
    model(draw(16, D))
    model.load_state_dict(plain)
    with pytest.raises(RuntimeError, match=r"layer '0\.decorrelation': update\(\) before any training forward"):
        decor_step(model, 0.1)
    model(draw(16, D))
    assert decor_step(model, 0.1)["0.decorrelation"] > 0
    model(draw(16, D))
    model.load_state_dict({"0.bias": plain["0.bias"]}, strict=False)  # R is the one that the batch went through
    decor_step(model, 0.1)


def test_a_mask_that_is_no_tensor_is_refused_before_anything_is_set():
    model = nn.Sequential(DecorLinear(D, D), DecorLinear(D, D))
    with pytest.raises(ValueError, match="padding_mask is a list"), padding(model, [[True]]):
        pass
    assert model[0].decorrelation.padding_mask is None


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_forward_that_is_exported_leaves_no_batch(accumulate):
    """Its tensors have no numbers: R did not move, its step was counted, and its loss was none either."""
    model = nn.Sequential(layer_of(accumulate=accumulate))
    x = draw(20, D)
    expected = after_a_step(copy.deepcopy(model)[0], x)
    torch.export.export(model, (x,))
    with pytest.raises(RuntimeError, match="before any training forward"):
        decor_step(model, 0.1)
    assert int(model[0].num_updates) == 0
    torch.testing.assert_close(after_a_step(model[0], x), expected, rtol=0, atol=0)
