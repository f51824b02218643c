"""Whatever goes in: the right result or an error that names what is wrong, and after an error all is as it was.

Hypothesis draws the layer, its settings, and an input: shape, strides, dtype, batches of one and of none, constant
features, NaN and infinity, scales from 1e-30 to 1e30. An error is allowed only where the input explains it. A few dozen
cases run always, more than 10,000 in the slow suite.
"""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import decorlib
from decorlib import DecorConv2d, DecorConvTranspose2d, DecorLinear, Decorrelation, NonFiniteInput
from decorlib.rules.moments import LOW_PRECISION, Moments

D = 4
RATE = 0.01
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
FEW = settings(max_examples=15, derandomize=True, **QUIET)
EACH = 2500  # five slow tests: 12,500 cases
MANY = settings(max_examples=EACH, **QUIET)

LAYERS = {  # kind -> (the decorrelated layer, the plain one it starts as, shape of one sample)
    "bare": (Decorrelation, None, (D,)),
    "linear": (DecorLinear, lambda: nn.Linear(D, 3), (D,)),
    "conv": (DecorConv2d, lambda: nn.Conv2d(D, 6, 3, padding=1), (D, 5, 4)),
    "transposed": (DecorConvTranspose2d, lambda: nn.ConvTranspose2d(D, 6, 2, stride=2), (D, 3, 2)),
}

cases = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(sorted(decorlib.RULES)),
        "center": st.sampled_from([None, "batch", "running"]),
        "decor_bias": st.booleans(),
        "fuse": st.sampled_from([None, True, False]),
        "span": st.sampled_from(["patch", "channel"]),
        "fraction": st.sampled_from([1.0, 0.5, 0.01]),
        "batch": st.sampled_from([0, 1, 2, 3, 9]),
        "dtype": st.sampled_from(["float32", "float64", "float16", "bfloat16", "int64", "bool", "complex64"]),
        "strides": st.sampled_from(["contiguous", "reversed", "every other", "expanded"]),
        "content": st.sampled_from(["normal", "constant feature", "constant", "zero", "nan", "inf", "-inf", "both"]),
        "scale": st.sampled_from([1.0, 1.0, 1e-30, 1e-9, 1e-3, 1e3, 1e9, 1e18, 1e30]),
        "fault": st.sampled_from([None, None, None, None, "features", "rank"]),
        "seed": st.integers(0, 10**6),
    }
)


def images(kind):
    return kind in ("conv", "transposed")


def draw_input(kind, case):
    """The input that a case describes."""
    size = list(LAYERS[kind][2])
    if case["fault"] == "features":
        size[0] += 1
    shape = (case["batch"], *size)
    if case["fault"] == "rank" and images(kind):
        shape = (*shape, 1, 1)
    generator = torch.Generator().manual_seed(case["seed"])
    wide = (*shape[:-1], 2 * shape[-1]) if case["strides"] == "every other" else shape
    x = torch.randn(wide[::-1] if case["strides"] == "reversed" else wide, generator=generator, dtype=torch.float64)
    x *= case["scale"]
    if case["content"] in ("zero", "constant"):
        x.fill_(0.0 if case["content"] == "zero" else 1.5 * case["scale"])
    dtype = getattr(torch, case["dtype"])
    x = x.to(dtype)
    if case["strides"] == "reversed":
        x = x.permute(*range(x.dim() - 1, -1, -1))
    elif case["strides"] == "every other":
        x = x[..., ::2]
    elif case["strides"] == "expanded" and shape[0] > 1:
        x = x[:1].expand(shape)
    if case["content"] == "constant feature" and x.numel():
        x = x.clone(memory_format=torch.preserve_format)
        x[:, 0] = 1.0
    if case["content"] in ("nan", "inf", "-inf", "both") and x.numel() and x.is_floating_point():
        x = x.clone()
        bad = {"nan": ["nan"], "inf": ["inf"], "-inf": ["-inf"], "both": ["inf", "-inf"]}[case["content"]]
        for i, value in enumerate(bad):
            place = torch.zeros(x.shape, dtype=torch.bool)
            place.view(-1)[i * (x.numel() // 2)] = True
            x[place] = float(value)
    return x


def build(kind, case):
    """The decorrelated layer and its plain twin with the same weights, in the dtype of the input where there is one."""
    torch.manual_seed(case["seed"])
    cls, make_plain, _ = LAYERS[kind]
    plain = None if make_plain is None else make_plain()
    options = {name: case[name] for name in ("center", "fraction")} | {"rule": decorlib.make_rule(case["rule"])}
    if kind == "bare":
        layer = cls(D, bias=case["decor_bias"], **options)
    else:
        options |= {"decor_bias": case["decor_bias"], "fuse": case["fuse"]}
        arguments = {
            "linear": (D, 3),
            "conv": (D, 6, 3, 1, 1),
            "transposed": (D, 6, 2, 2),
        }[kind]
        if kind == "transposed" and case["fuse"] and (case["center"] or case["decor_bias"]):
            options["fuse"] = None  # refused by name, which layers/test_conv.py holds it to
        layer = cls(*arguments, **options, **({"span": case["span"]} if kind == "conv" else {}))
        layer.load_state_dict(plain.state_dict(), strict=False)
    dtype = getattr(torch, case["dtype"])
    if dtype.is_floating_point:
        layer, plain = layer.to(dtype), None if plain is None else plain.to(dtype)
    return layer, plain


def decorrelation(layer):
    return layer if isinstance(layer, Decorrelation) else layer.decorrelation


def snapshot(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def same_state(layer, before):
    return all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def samples(kind, case):
    """How many samples a mean is taken over."""
    return case["batch"] * (6 if kind == "transposed" else 20 if kind == "conv" else 1)


def explanation(kind, case, x, training):
    """(type, pattern) of the one error that this input must give, or None."""
    if not x.is_floating_point():
        return ValueError, f"input is {x.dtype}; a floating type is needed"
    if case["fault"] == "features" or (case["fault"] == "rank" and images(kind)):
        return ValueError, "does not fit"
    if not training:
        return None
    if x.shape[0] == 0:
        return None
    if case["center"] == "batch" and samples(kind, case) < 2:
        return ValueError, r"at least 2 samples in training, got 1.*use center='running'"
    seen = case["fraction"] == 1 or case["center"] is not None  # else the sample may have missed it
    if seen and not bool(x.isfinite().all()):
        return NonFiniteInput, "NaN or infinity"
    return None


def check_layer(kind, case):
    layer, plain = build(kind, case)
    x = draw_input(kind, case)
    untouched = x.clone()
    d = decorrelation(layer)

    # In evaluation the layer is the plain one, as long as R = I, b = 0 and the running mean is 0.
    layer.eval()
    before = snapshot(layer)
    expected = explanation(kind, case, x, training=False)
    if expected is not None:
        with pytest.raises(expected[0], match=expected[1]):
            layer(x)
    else:
        reference = x if plain is None else plain(x)
        out = layer(x)
        assert out.shape == reference.shape
        assert out.dtype == reference.dtype
        if case["content"] not in ("nan", "inf", "-inf", "both") and bool(reference.isfinite().all()):
            size = float(x.abs().max()) if x.numel() else 0.0
            step = torch.finfo(x.dtype).eps
            torch.testing.assert_close(out, reference, rtol=8 * step, atol=32 * step * size)
    assert same_state(layer, before)
    assert not len(d.memory)

    # In training: an error that the input explains and no change, or a batch to learn from.
    layer.train()
    expected = explanation(kind, case, x, training=True)
    try:
        layer(x)
    except (ValueError, RuntimeError) as error:
        too_large_to_add_up = isinstance(error, NonFiniteInput) and bool((x.abs() > 1e30).any())
        sampled = isinstance(error, NonFiniteInput) and not bool(x.isfinite().all())
        if expected is None:
            if not (too_large_to_add_up or sampled):
                raise
        else:
            with pytest.raises(expected[0], match=expected[1]):
                raise
        assert same_state(layer, before)
        assert not len(d.memory)
        learns(layer, kind, case)
        return
    assert expected is None, f"{case} was taken without the error {expected}"
    before = snapshot(layer)
    if x.shape[0] == 0:  # passed through, and not learned from
        assert layer.update(lr=RATE) is None
        assert same_state(layer, before)
        learns(layer, kind, case)
        return
    try:
        loss = layer.update(lr=RATE)
    except (ValueError, RuntimeError) as error:
        explained = ("singular", "converge", "non-finite", "not invertible")
        if not any(word in str(error) for word in explained):
            raise
        assert same_state(layer, before)
        assert d.weight.grad is None
        if case["center"] == "running" and case["scale"] > 1e8:
            d.reset_parameters()  # the forward was right, so the mean has followed it to where no other batch lies
        learns(layer, kind, case)
        return
    kept = {name: value for name, value in before.items() if "num_updates" not in name and "input_moment" not in name}
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in kept.items()), "update() moved a tensor"
    assert d.weight.grad.shape == d.weight.shape
    if bool(loss.isfinite()):
        assert bool(d.weight.grad.isfinite().all()), "a finite loss beside a gradient that is not"
    elif bool(x.isfinite().all()):
        assert bool((x.abs().double() > 1e8).any()), "a loss that is not finite for an ordinary input"
    assert torch.equal(x, untouched) or not bool(x.isfinite().all()), "the input was written to"


def learns(layer, kind, case):
    """After an error the layer takes a good batch, as if nothing had been."""
    dtype = next(layer.parameters()).dtype if kind != "bare" else torch.float32
    good = torch.randn(12, *LAYERS[kind][2], generator=torch.Generator().manual_seed(1)).to(dtype)
    layer(good)
    assert bool(layer.update(lr=RATE).isfinite())
    assert bool(decorrelation(layer).weight.grad.isfinite().all())


def ran(budget, strategy, check):
    """Check as many cases as the budget has; return how many that were, for hypothesis may end early."""
    count = 0

    def counted(case):
        nonlocal count
        check(case)
        count += 1

    budget(given(strategy)(counted))()
    return count


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_take_any_input_or_say_why_not(kind):
    FEW(given(cases)(lambda case: check_layer(kind, case)))()


@pytest.mark.parametrize("span", ["patch", "channel"])
def test_an_empty_batch_of_images_passes_in_evaluation(span):
    """Found by the test below: an IndexError, where the choice of the cheaper way looked at the first image."""
    layer = DecorConv2d(D, 6, 3, padding=1, span=span).eval()
    assert layer(torch.zeros(0, D, 5, 4)).shape == (0, 6, 5, 4)


@pytest.mark.parametrize("kind", ["bare", "linear"])
def test_after_a_batch_too_large_to_learn_from_a_reset_helps(kind):
    """Found by the test below: the running mean has followed the batch, and no ordinary batch lies near it."""
    case = {"rule": "exact", "center": "running", "decor_bias": False, "fuse": None, "span": "patch", "fraction": 1.0}
    layer, _ = build(kind, case | {"dtype": "float32", "seed": 0})
    layer(torch.full((8, D), 1e30))
    with pytest.raises((ValueError, RuntimeError), match=r"non-finite|converge"):
        layer.update()
    decorrelation(layer).reset_parameters()
    learns(layer, kind, case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_take_any_input_or_say_why_not_ten_thousand_times(kind):
    assert ran(MANY, cases, lambda case: check_layer(kind, case)) >= EACH


# ----------------------------------------------------------------------------------------------------------- rules

problems = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(sorted(decorlib.RULES)),
        "batch": st.sampled_from([0, 1, 2, 7, 20]),
        "features": st.sampled_from([1, 2, 5, 12]),
        "groups": st.sampled_from([(), (2,), (2, 3)]),
        "dtype": st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
        "scale": st.sampled_from([1.0, 1.0, 1e-30, 1e-9, 1e-3, 1e3, 1e9, 1e18]),
        "content": st.sampled_from(["normal", "dead feature", "equal features", "zero"]),
        "seed": st.integers(0, 10**6),
    }
)


def check_rule(case):
    rule, generator = decorlib.make_rule(case["rule"]), torch.Generator().manual_seed(case["seed"])
    x = torch.randn(*case["groups"], case["batch"], case["features"], generator=generator, dtype=torch.float64)
    x = (x * case["scale"]).to(case["dtype"])
    if case["content"] == "dead feature":
        x[..., 0] = 0
    elif case["content"] == "equal features":
        x[:] = x[..., :1].clone()
    elif case["content"] == "zero":
        x.zero_()
    kept = x.clone()
    if case["batch"] == 0:
        with pytest.raises(ValueError, match="empty batch"):
            Moments.of(x, x)
        return
    samples_needed = rule.needs_rate and rule.reads is not None
    moments = Moments.of(x, x, False if samples_needed else None)
    R = torch.eye(case["features"], dtype=moments.variance.dtype).expand(*case["groups"], -1, -1).clone()
    start = R.clone()
    try:
        direction, loss = rule.direction(moments, R, RATE), rule.loss(moments)
    except (ValueError, RuntimeError) as error:
        degenerate = case["batch"] <= case["features"] or case["content"] != "normal" or case["scale"] != 1
        if degenerate and "would leave rounding in its place" in str(error):  # a gradient cannot hold W; R itself can
            rule.step_(moments, R, 1.0)
            assert bool(R.isfinite().all())
            assert not torch.equal(R, start)
            return
        if not (degenerate and any(word in str(error) for word in ("singular", "converge", "non-finite"))):
            raise
        assert torch.equal(R, start)
        return
    assert direction.shape == R.shape
    assert loss.shape == case["groups"]
    assert direction.dtype == R.dtype
    if bool(loss.isfinite().all()):
        assert bool(direction.isfinite().all()), "a finite loss beside a direction that is not"
        assert bool((loss >= 0).all())
    else:
        assert not bool((moments.variance.double() < 1e15).all()), "a loss that is not finite for ordinary moments"
    assert torch.equal(R, start), "direction() moved R"
    assert torch.equal(x, kept) or case["dtype"] in LOW_PRECISION, "the states were written to"
    if bool(direction.isfinite().all()):
        moved = copy.deepcopy(R)
        rule.step_(moments, moved, RATE)
        # Terms that cancel in exact arithmetic leave their rounding: RATE X is the largest of them.
        terms = max(1.0, RATE * float(direction.abs().max()), RATE * float(moments.variance.sum(-1).max()))
        atol = 64 * torch.finfo(R.dtype).eps * terms
        torch.testing.assert_close(moved, R - RATE * direction, rtol=1e-4, atol=atol)


def test_rules_take_any_moments_or_say_why_not():
    FEW(given(problems)(check_rule))()


@pytest.mark.slow
def test_rules_take_any_moments_or_say_why_not_thousands_of_times():
    assert ran(MANY, problems, check_rule) >= EACH
