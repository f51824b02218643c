"""Decorrelation: what forward remembers, what update changes, and what neither touches."""

import copy
import pickle

import pytest
import torch
from torch import nn

import decorlib
from decorlib import DecorLinear, Decorrelation, KappaRule, NonFiniteInput, decor_parameters, decor_update, padding

D = 5


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layer_of(features=D, *, scrambled=True, dtype=torch.float64, **options):
    """A layer with a random R (and b, and running mean), away from every special point."""
    layer = Decorrelation(features, rule=options.pop("rule", KappaRule(kappa=0.3)), dtype=dtype, **options)
    if scrambled:
        layer.weight.data += 0.3 * draw(*layer.weight.shape, seed=7)
        if layer.bias is not None:
            layer.bias.data += draw(features, seed=8)
        if layer.running_mean is not None:
            layer.running_mean += draw(features, seed=9)
    return layer


def state_of(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def assert_same_state(before, layer):
    for name, value in layer.state_dict().items():
        assert torch.equal(before[name], value), name


# ------------------------------------------------------------------------------------------------------- transform


@pytest.mark.parametrize("shape", [(D,), (3, D), (2, 4, D), (2, 3, 4, D), (6, 1, 1, D)])
def test_identity_at_the_start_in_every_rank(shape):
    layer = Decorrelation(D)
    x = draw(*shape, dtype=torch.float32)
    assert torch.equal(layer(x), x)


def test_images_are_flattened_and_given_back_in_their_shape():
    layer = layer_of(2 * 3 * 4)
    x = draw(7, 2, 3, 4)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ layer.weight.T)


def test_input_that_is_not_contiguous():
    layer = layer_of()
    x = draw(D, 4, 3).permute(2, 1, 0)
    assert not x.is_contiguous()
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
    images = draw(7, 3, 2, 4).transpose(1, 2)
    layer = layer_of(24)
    torch.testing.assert_close(layer(images), layer(images.contiguous()))


def test_groups_have_their_own_matrix():
    layer = layer_of(6, groups=3, bias=True)
    x = draw(4, 6)
    parts = [x[:, 2 * g : 2 * g + 2] @ layer.weight[g].T for g in range(3)]
    torch.testing.assert_close(layer(x), torch.cat(parts, 1) + layer.bias)


@pytest.mark.parametrize("center", [None, "batch", "running"])
def test_gradcheck_and_no_gradient_for_r(center):
    layer = layer_of(center=center, bias=True)
    layer.momentum = 0.5
    x = draw(4, D).requires_grad_()
    start = copy.deepcopy(layer.running_mean)

    def transformed(x):
        if start is not None:
            layer.running_mean.copy_(start)  # gradcheck calls often; the running mean must not wander
        return layer(x)

    # "running" treats the mean as a constant, so only its forward mean may not depend on x: freeze it for the check.
    if center == "running":
        layer.eval()
    assert torch.autograd.gradcheck(transformed, x)
    layer.train()(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_backward_is_r_transposed_and_demeaned_when_centred_by_batch():
    x, delta = draw(6, D).requires_grad_(), draw(6, D, seed=3)
    for center, expected in [(None, lambda g: g), ("batch", lambda g: g - g.mean(0))]:
        layer = layer_of(center=center)
        (gradient,) = torch.autograd.grad(layer(x), x, delta)
        torch.testing.assert_close(gradient, expected(delta @ layer.weight), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------- means


def test_centred_by_batch_takes_the_mean_away_and_tracks_it():
    layer = layer_of(center="batch", scrambled=False, momentum=0.25)
    x = draw(8, D) + 3
    torch.testing.assert_close(layer(x).mean(0), torch.zeros(D, dtype=x.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.running_mean, 0.25 * x.mean(0))
    torch.testing.assert_close(layer.eval()(x), x - 0.25 * x.mean(0))


def test_centred_by_running_mean_uses_the_one_that_has_just_moved():
    layer = layer_of(center="running", scrambled=False, momentum=0.25)
    x = draw(8, D) + 3
    torch.testing.assert_close(layer(x), x - 0.25 * x.mean(0))


def test_without_momentum_the_running_mean_is_the_plain_average_and_survives_a_checkpoint():
    layer = layer_of(center="running", scrambled=False, momentum=None)
    batches = [draw(8, D, seed=s) + s for s in range(6)]
    for x in batches[:4]:
        layer(x)
    resumed = layer_of(center="running", scrambled=False, momentum=None)
    resumed.load_state_dict(layer.state_dict())
    for x in batches[4:]:
        resumed(x)
    torch.testing.assert_close(resumed.running_mean, torch.stack(batches).mean((0, 1)))


@pytest.mark.parametrize("center", ["batch", "running"])
def test_centred_layers_do_not_notice_an_added_constant_once_the_mean_is_known(center):
    x, shift = draw(20, D), 50 * draw(D, seed=4)
    outputs = {}
    for name, data in {"x": x, "shifted": x + shift}.items():
        layer = layer_of(center=center, scrambled=False, momentum=1.0)
        for _ in range(3):
            trained = layer(data)
        outputs[name] = trained, layer.eval()(data)
    for plain, shifted in zip(outputs["x"], outputs["shifted"], strict=True):
        torch.testing.assert_close(plain, shifted, rtol=0, atol=1e-10)
    uncentred = layer_of()
    assert (uncentred(x + shift) - uncentred(x)).abs().max() > 1


def test_the_mean_of_a_half_precision_batch_is_taken_in_float32():
    layer = layer_of(center="running", scrambled=False, momentum=1.0, dtype=torch.float32)
    x = (draw(5000, D) + 100).to(torch.bfloat16)  # a bfloat16 sum would stop growing long before
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.float().mean(0), rtol=1e-5, atol=0)


# --------------------------------------------------------------------------------------------------------- learning


def test_update_sets_the_gradient_of_the_rule_and_a_step_makes_the_loss_smaller():
    layer = layer_of(scrambled=False)
    x = draw(50, D) @ (torch.eye(D, dtype=torch.float64) + 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        layer(x)
        losses.append(float(layer.update()))
        optimizer.step()
    X = x.T @ x / len(x)
    layer.reset_parameters()
    layer(x)
    layer.update()
    off = X - torch.diag(X.diagonal())
    torch.testing.assert_close(layer.weight.grad, 0.7 * off + 0.3 * torch.diag(X.diagonal() - 1))
    assert losses[-1] < 0.02 * losses[0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_of_the_bias_is_the_mean_or_sum_of_the_states(reduction):
    layer = layer_of(bias=True, bias_reduction=reduction)
    y = layer(draw(9, D))
    layer.update()
    torch.testing.assert_close(layer.bias.grad, getattr(y, reduction)(0))


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"groups": 3}, {"bias": True, "bias_reduction": "sum"}])
@pytest.mark.parametrize("batch", [3, 30])
@pytest.mark.parametrize("rule", sorted(decorlib.RULES))
def test_step_is_update_and_plain_sgd_in_one(rule, batch, options):
    rule = decorlib.make_rule(rule, **({"variance": 1.0} if rule == "seed" else {}))
    rate, results = 0.02, []
    for in_place in (True, False):
        layer = layer_of(6, rule=rule, **options)
        layer(draw(batch, 6))
        if in_place:
            loss = layer.step(rate)
        else:
            loss = layer.update(lr=rate)
            torch.optim.SGD(layer.parameters(), lr=rate).step()
        results.append((loss, layer.weight.detach(), None if layer.bias is None else layer.bias.detach()))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    assert not torch.equal(results[0][1], layer_of(6, rule=rule, **options).weight)


def test_bound_on_the_step_keeps_a_rate_that_would_explode():
    x = 30 * draw(40, D)
    for max_step, stable in [(None, False), (0.5, True)]:
        layer = layer_of(scrambled=False)
        for _ in range(60):
            layer(x)
            layer.step(0.1, max_step)
            if not layer.weight.isfinite().all():
                break
        assert bool(layer.weight.isfinite().all()) is stable
        if stable:
            assert float(layer.rule.loss(decorlib.rules.moments.Moments.of(layer.eval()(x)))) < 1e-3


# --------------------------------------------------------------------------------------- sampling and amortisation


@pytest.mark.parametrize("count", [1, 2, 7, 100])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.999])
def test_samples_are_drawn_without_replacement_and_there_is_at_least_one(count, fraction):
    chosen = Decorrelation(D, fraction=fraction).sample(count, "cpu")
    assert len(chosen) == len(set(chosen.tolist())) == max(1, round(fraction * count))
    assert chosen.min() >= 0
    assert chosen.max() < count


def test_the_statistics_use_the_sample_alone():
    layer = layer_of(fraction=0.3, generator=torch.Generator().manual_seed(3))
    expected = layer_of(fraction=0.3, generator=torch.Generator().manual_seed(3))
    x = draw(20, D)
    chosen = expected.sample(20, "cpu")
    layer(x)
    layer.update()
    whole = layer_of()
    whole(x[chosen])
    whole.update()
    torch.testing.assert_close(layer.weight.grad, whole.weight.grad, rtol=1e-12, atol=1e-12)


def test_sampling_is_reproducible_from_a_generator_and_leaves_the_global_one_alone():
    gradients = []
    for _ in range(2):
        layer = layer_of(fraction=0.5, generator=torch.Generator().manual_seed(11))
        before = torch.get_rng_state()
        layer(draw(30, D))
        layer.update()
        assert torch.equal(before, torch.get_rng_state())
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


def test_sampled_second_moments_are_right_on_average():
    layer = layer_of(fraction=0.2, rule=decorlib.WhiteningRule(), generator=torch.Generator().manual_seed(0))
    x = draw(10, D)
    gradients = []
    for _ in range(1200):
        layer(x)
        layer.update()
        gradients.append(layer.weight.grad)
    gradients = torch.stack(gradients)
    whole = layer_of(rule=decorlib.WhiteningRule())
    whole(x)
    whole.update()
    error = (gradients.mean(0) - whole.weight.grad) / (gradients.std(0) / len(gradients) ** 0.5)
    assert error.abs().max() < 4.5  # standard errors; 25 entries


def test_update_every_learns_at_every_nth_update_and_between_leaves_nothing():
    layer = layer_of(update_every=3, bias=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    moved = []
    for step in range(7):
        before = layer.weight.clone()
        layer(draw(8, D, seed=step))
        due = step % 3 == 0
        assert bool(len(layer.memory)) is due
        loss = layer.update()
        assert (loss is not None) is due
        assert (layer.weight.grad is not None) is due
        assert (layer.bias.grad is not None) is due
        optimizer.step()
        moved.append(not torch.equal(before, layer.weight))
    assert moved == [True, False, False, True, False, False, True]


def test_accumulated_micro_batches_are_one_batch():
    x = draw(12, D)
    for rule in (KappaRule(kappa=0.3), decorlib.SeedRule(variance="input")):
        whole, parts = layer_of(rule=rule, bias=True), layer_of(rule=rule, bias=True, accumulate=True)
        whole(x)
        for part in x.split([2, 3, 7]):  # unequal on purpose
            parts(part)
        losses = whole.update(), parts.update()
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(whole.weight.grad, parts.weight.grad, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(whole.bias.grad, parts.bias.grad, rtol=1e-12, atol=1e-13)
        assert not len(parts.memory)


def test_without_accumulation_the_last_forward_counts():
    x = draw(12, D)
    last, both = layer_of(), layer_of()
    last(x[6:])
    both(x[:6])
    both(x[6:])
    last.update()
    with pytest.warns(RuntimeWarning, match=r"2 training forwards.*the last alone \(6 of 12 rows\).*accumulate=True"):
        both.update()
    assert torch.equal(last.weight.grad, both.weight.grad)


# ---------------------------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("center", [None, "batch", "running"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_padding_is_left_out_of_statistics_and_means(center, fraction):
    tokens = draw(3, 4, D)
    mask = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    tokens[mask] = 1e6
    results = []
    for masked in (True, False):
        options = {"fraction": fraction, "generator": torch.Generator().manual_seed(5)}
        layer = layer_of(center=center, scrambled=False, **options)
        if masked:
            with padding(layer, mask):
                layer(tokens)
        else:
            layer(tokens[~mask])
        layer.update()
        results.append((layer.weight.grad, layer.running_mean))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    assert layer.padding_mask is None


def test_padding_of_tokens_that_come_first():
    tokens, mask = draw(4, 3, D), torch.zeros(3, 4, dtype=torch.bool)  # (tokens, batch, D), (batch, tokens)
    mask[0, 1:], mask[2, 3] = True, True
    layer = layer_of()
    with pytest.raises(ValueError, match="batch_first=False"), padding(layer, mask):
        layer(tokens)
    assert layer.padding_mask is None
    with padding(layer, mask, batch_first=False):
        layer(tokens)
    layer.update()
    expected = layer_of()
    expected(tokens.transpose(0, 1)[~mask])
    expected.update()
    torch.testing.assert_close(layer.weight.grad, expected.weight.grad, rtol=1e-12, atol=1e-12)


def test_a_head_on_pooled_tokens_uses_every_sequence():
    head, mask = layer_of(), torch.tensor([[False, True], [False, False], [True, True]])
    with padding(head, mask):
        head(draw(3, D))
    head.update()
    plain = layer_of()
    plain(draw(3, D))
    plain.update()
    assert torch.equal(head.weight.grad, plain.weight.grad)


# ------------------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("center", [None, "batch", "running"])
def test_evaluation_changes_nothing_and_does_not_depend_on_batch_mates(center):
    layer = layer_of(center=center, bias=True).eval()
    before, x = state_of(layer), draw(6, D)
    together = layer(x)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert_same_state(before, layer)
    assert not len(layer.memory)


def test_forward_never_changes_r_and_update_never_changes_r():
    layer = layer_of(bias=True)
    before = layer.weight.clone(), layer.bias.clone()
    layer(draw(6, D))
    layer.update()
    assert torch.equal(before[0], layer.weight)
    assert torch.equal(before[1], layer.bias)


def test_a_batch_of_one():
    for center in (None, "running"):
        layer = layer_of(center=center)
        layer(draw(1, D))
        assert layer.update().isfinite()
    layer = layer_of(center="batch")
    before = state_of(layer)
    with pytest.raises(ValueError, match=r"at least 2 samples in training, got 1.*center='running'"):
        layer(draw(1, D))
    assert_same_state(before, layer)


# ------------------------------------------------------------------------------------------- copies and checkpoints


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_take_the_same_next_step_and_no_batch_along(duplicate):
    layer = layer_of(center="batch", bias=True, fraction=0.5, generator=torch.Generator().manual_seed(1))
    layer(draw(6, D))
    layer.update()
    layer(draw(6, D))
    twin = duplicate(layer)
    assert not len(twin.memory)
    layer.memory.clear()
    for module in (layer, twin):
        module(draw(6, D, seed=2))
        module.step(0.1)
    assert_same_state(state_of(layer), twin)


@pytest.mark.parametrize("rule", [KappaRule(kappa=0.3), decorlib.ExactWhitening(momentum=0.2)])
def test_resuming_from_a_state_dict_gives_the_next_step_to_the_bit(rule, tmp_path):
    def steps(layer, seeds):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for seed in seeds:
            layer(draw(8, D, seed=seed))
            layer.update(lr=0.1)
            optimizer.step()

    options = {"rule": rule, "center": "running", "bias": True, "update_every": 2, "scrambled": False}
    straight, first = layer_of(**options), layer_of(**options)
    steps(straight, range(7))
    steps(first, range(3))  # in the middle of an interval
    torch.save(first.state_dict(), tmp_path / "checkpoint.pt")
    resumed = layer_of(**options)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    steps(resumed, range(3, 7))
    assert_same_state(state_of(straight), resumed)


def test_nothing_holds_the_graph():
    layer = layer_of(center="batch", bias=True)
    for step in range(5):
        layer(draw(6, D, seed=step).requires_grad_()).sum().backward()
        assert not any(t.requires_grad for batch in layer.memory.batches for t in batch[:2] if t is not None)
        layer.step(0.01)
    for name, value in (*layer.named_parameters(), *layer.named_buffers()):
        assert not value.requires_grad, name
        assert value.grad_fn is None, name
    copy.deepcopy(layer)


# -------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_keeps_r_in_float32_and_moves_it_by_a_small_rate(dtype):
    for layer in (
        layer_of(center="running", dtype=torch.float32, scrambled=False).to(dtype),
        Decorrelation(D, dtype=dtype),
    ):
        assert layer.weight.dtype == torch.float32
        assert layer.running_mean is None or layer.running_mean.dtype == torch.float32
        y = layer(draw(20, D).to(dtype))
        assert y.dtype == dtype
        before = layer.weight.clone()
        layer.step(1e-4)
        assert not torch.equal(before, layer.weight)
        assert (layer.weight - before).abs().max() < 1e-2


def test_half_precision_statistics_do_not_overflow():
    layer = Decorrelation(D, rule=KappaRule(kappa=0.5))
    x = draw(100_000, D).half()
    layer(x)
    assert layer.update() < 1e-3
    assert layer.weight.grad.isfinite().all()


def test_under_autocast_r_stays_float32_and_moves():
    layer = layer_of(center="batch", dtype=torch.float32, scrambled=False)
    x = draw(20, D, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        before = layer.weight.clone()
        loss = layer.update()
    assert (loss.dtype, layer.weight.dtype, layer.weight.grad.dtype) == (torch.float32,) * 3
    torch.optim.SGD(layer.parameters(), lr=1e-4).step()
    assert not torch.equal(before, layer.weight)
    reference = layer_of(center="batch", dtype=torch.float32, scrambled=False)
    reference(x)
    reference.update()
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad, rtol=0, atol=0.02)


def test_moving_to_double_and_back_takes_everything_along():
    layer = layer_of(center="running", bias=True, dtype=torch.float32).double()
    assert {t.dtype for t in (layer.weight, layer.bias, layer.running_mean)} == {torch.float64}
    assert layer.num_updates.dtype == torch.long
    layer(draw(4, D))
    layer.step(0.1)


# ----------------------------------------------------------------------------------------------------------- errors


def bad_inputs():
    nan, inf = draw(4, D), draw(4, D)
    nan[1, 2], inf[0, 0] = float("nan"), float("inf")
    opposite = draw(4, D)
    opposite[0, 0], opposite[1, 0] = float("inf"), -float("inf")
    return [
        (torch.ones(4, D, dtype=torch.int64), ValueError, "int64.*floating"),
        (nan, NonFiniteInput, "NaN or infinity"),
        (inf, NonFiniteInput, "NaN or infinity"),
        (opposite, NonFiniteInput, "NaN or infinity"),
        (draw(4, D + 1), ValueError, rf"\(4, {D + 1}\) does not fit in_features = {D}"),
        (draw(D + 1), ValueError, "does not fit in_features"),
    ]


@pytest.mark.parametrize("center", [None, "batch", "running"])
@pytest.mark.parametrize("case", range(len(bad_inputs())))
def test_bad_input_is_named_and_leaves_the_state_as_it_was(case, center):
    x, error, message = bad_inputs()[case]
    layer = layer_of(center=center, bias=True)
    layer(draw(6, D))
    before, remembered = state_of(layer), len(layer.memory)
    with pytest.raises(error, match=message):
        layer(x)
    assert_same_state(before, layer)
    assert len(layer.memory) == remembered
    layer.update()  # the batch before is still good


@pytest.mark.parametrize("center", [None, "batch", "running"])
@pytest.mark.parametrize("shape", [(0, D), (3, 0, D)])
def test_an_empty_batch_passes_through_and_is_not_learned_from(center, shape):
    """An expert that was given no token, a branch that was not taken: torch's layers let it through, too."""
    layer = layer_of(center=center, bias=True)
    before = state_of(layer)
    y = layer(draw(*shape).requires_grad_())
    assert y.shape == shape
    y.sum().backward()
    assert "empty" in layer.idle_reason()
    assert layer.step(0.1) is None
    assert layer.update() is None
    assert layer.measure() is None
    assert_same_state(before, layer)
    x = draw(6, D)
    layer(x)
    layer(draw(*shape))  # does not displace the batch before it
    assert layer.idle_reason() is None
    reference = layer_of(center=center, bias=True)
    reference(x)
    assert torch.equal(layer.step(0.1), reference.step(0.1))
    assert torch.equal(layer.weight, reference.weight)


def test_large_finite_input_is_not_taken_for_infinity():
    layer = layer_of(dtype=torch.float32, scrambled=False)
    layer(torch.full((4, D), 2e38))  # its sum is inf, its entries are not


def test_update_says_why_it_has_nothing_to_learn_from():
    layer = layer_of()
    with pytest.raises(RuntimeError, match="never reached"):
        layer.update()
    layer.eval()(draw(4, D))
    with pytest.raises(RuntimeError, match=r"evaluation mode.*model\.train\(\)"):
        layer.update()
    layer.train()(draw(4, D))
    layer.update()
    with pytest.raises(RuntimeError, match="stale"):
        layer.update()


def test_an_error_in_update_changes_nothing_and_can_be_put_right():
    layer = layer_of(rule=decorlib.ExactWhitening(shrinkage=0.0, momentum=0.5))
    layer(draw(20, D))
    layer.update()
    before, gradient = state_of(layer), layer.weight.grad.clone()
    layer(torch.zeros(4, D, dtype=torch.float64))
    layer.input_moment.zero_()
    before["input_moment"].zero_()
    with pytest.raises(ValueError, match="singular"):
        layer.update()
    assert_same_state(before, layer)
    assert torch.equal(layer.weight.grad, gradient)
    layer = layer_of(rule=decorlib.FoldiakRule())
    layer(draw(20, D))
    with pytest.raises(ValueError, match=r"update\(lr"):
        layer.update()
    layer.update(lr=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 2}, "groups is 2; it must be a divisor of in_features = 5"),
        ({"center": "median"}, "center is 'median'"),
        ({"momentum": 0.0}, "momentum is 0.0"),
        ({"bias_reduction": "max"}, "bias_reduction is 'max'"),
        ({"update_every": 0}, "update_every is 0.*do not call update"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"fraction": "half"}, "fraction is 'half'"),
        ({"momentum": "0.1"}, "momentum is '0.1'"),
        ({"update_every": 2.5}, "update_every is 2.5; it must be a whole number"),
        ({"update_every": True}, "update_every is True; it must be a whole number"),
        ({"groups": 5.0}, "groups is 5.0"),
        ({"bias": "cpu"}, r"bias is 'cpu'; it must be True or False \(decor_bias"),
        ({"bias": 2}, "bias is 2; it must be True or False"),
        ({"accumulate": "no"}, "accumulate is 'no'; it must be True or False"),
        ({"rule": KappaRule(), "eta": 0.5}, "belong to the rule of the 2024 notebook"),
        ({"variance": -1.0}, "variance is -1.0"),
    ],
)
def test_bad_hyperparameters_are_named_with_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        Decorrelation(D, **options)


@pytest.mark.parametrize(("option", "value"), [("update_every", 0), ("update_every", 2.5), ("fraction", 2.0)])
def test_an_option_that_is_set_later_is_looked_at_too(option, value):
    layer = layer_of()
    setattr(layer, option, value)
    with pytest.raises(ValueError, match=f"{option} is {value}; it must be"):
        layer(draw(20, D))


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), "0.5", True])
@pytest.mark.parametrize("call", ["update", "step"])
def test_a_bound_that_is_none_is_refused_and_nothing_changes(call, bound):
    layer = layer_of()
    layer(draw(20, D))
    R = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=f"max_step is {bound!r}; it must be a number above 0"):
        getattr(layer, call)(lr=0.1, max_step=bound)
    assert torch.equal(layer.weight, R)
    assert layer.weight.grad is None
    layer.step(lr=0.1, max_step=0.5)


# ----------------------------------------------------------------------------------------------------- whole models


def test_errors_of_a_model_name_the_layer():
    model = nn.Sequential(DecorLinear(D, D, dtype=torch.float64), nn.ReLU())
    model.unused = Decorrelation(3)
    model.forward = lambda x: model[1](model[0](x))
    model(draw(4, D))
    with pytest.raises(RuntimeError, match=r"layer 'unused': .*never reached"):
        decor_update(model)
    model = nn.Sequential(DecorLinear(D, D, rule=decorlib.FoldiakRule(), dtype=torch.float64))
    model(draw(4, D))
    with pytest.raises(ValueError, match=r"layer '0\.decorrelation': .*update\(lr"):
        decor_update(model)
    with pytest.raises(NonFiniteInput) as caught:
        model(torch.full((2, D), float("nan"), dtype=torch.float64))
    assert caught.value.layer is model[0].decorrelation


def test_parameters_are_divided_between_the_two_optimizers():
    model = nn.Sequential(DecorLinear(4, 3, decor_bias=True), nn.BatchNorm1d(3), Decorrelation(3), DecorLinear(3, 2))
    decor, plain = list(decor_parameters(model)), list(decorlib.bp_parameters(model))
    assert {id(p) for p in (*decor, *plain)} == {id(p) for p in model.parameters()}
    assert len(decor) + len(plain) == len(list(model.parameters()))
    assert len(decor) == 4
    assert not any(p.requires_grad for p in decor)
    assert all(p.requires_grad for p in plain)
