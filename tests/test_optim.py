"""DecorSGD and DecorOptimizer: torch optimizers of R that leave nothing in ``.grad``, for all layers or for none."""

import contextlib
import copy
import io
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import decorlib
from decorlib import (
    DecorLinear,
    DecorOptimizer,
    Decorrelation,
    DecorSGD,
    ExactWhitening,
    KappaRule,
    SilentNoOp,
    bp_parameters,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_update,
    decorrelate,
)

D = 5
HALF = KappaRule(kappa=0.5)


def batches(count=20, size=16):
    x = torch.randn(count, size, D, generator=torch.Generator().manual_seed(0))
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(1))
    return [(part @ mix, part[:, :2].sum(1, keepdim=True).relu()) for part in x]


def network(**options):
    torch.manual_seed(0)
    options = {"rule": HALF, **options}
    return nn.Sequential(DecorLinear(D, 4, **options), nn.ReLU(), DecorLinear(4, 1, **options))


def matrices(model):
    return {name: layer.weight.detach().clone() for name, layer in decor_modules(model)}


def loop(model, step, data=None):
    """The hand-written loop; ``step`` steps R. Returns what it returned."""
    weights = torch.optim.SGD(bp_parameters(model), lr=0.05)
    found = []
    for x, t in batches() if data is None else data:
        loss = nn.functional.mse_loss(model(x), t)
        weights.zero_grad()
        loss.backward()
        weights.step()
        found.append(step())
    return found


def assert_same(a, b, **tolerance):
    torch.testing.assert_close(matrices(a), matrices(b), **(tolerance or {"rtol": 0, "atol": 0}))


def no_gradients(model):
    return all(p.grad is None for p in decor_parameters(model))


# --------------------------------------------------------------------------------------------------- what it does


def test_its_steps_are_those_of_decor_step_to_the_bit_and_leave_nothing():
    plain, model = network(decor_bias=True), network(decor_bias=True)
    losses = loop(plain, lambda: decor_step(plain, 0.02))
    optimizer, found = DecorSGD(model, lr=0.02), []

    def step():
        optimizer.step()
        assert no_gradients(model)
        found.append(optimizer.losses)

    loop(model, step)
    assert_same(plain, model)
    assert [list(step) for step in found] == [["0.decorrelation", "2.decorrelation"]] * 20
    assert found == losses


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 1e-3, "betas": (0.8, 0.9)}),
        (torch.optim.Adam, {"lr": 1e-3, "fused": True}),
        (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
        (torch.optim.RMSprop, {}),  # with its own rate
        (torch.optim.Muon, {"lr": 1e-3}),
    ],
)
def test_any_torch_optimizer_steps_R_as_if_the_rules_directions_were_gradients(kind, options):
    reference, model = network(), network()
    inner = kind(list(decor_parameters(reference)), **options)

    def by_hand():
        for _, layer in decor_modules(reference):
            layer.update(options.get("lr"))
        inner.step()

    loop(reference, by_hand)
    optimizer = DecorOptimizer(model, kind, **options)
    loop(model, optimizer.step)
    assert_same(reference, model)
    assert no_gradients(model)
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(D))


def test_an_optimizer_that_is_built_already_can_be_given():
    model, reference = network(), network()
    adam = torch.optim.Adam(decor_parameters(model), lr=1e-3)
    optimizer = DecorOptimizer(model, adam)
    loop(model, optimizer.step)
    loop(reference, DecorOptimizer(reference, torch.optim.Adam, lr=1e-3).step)
    assert_same(model, reference)
    assert optimizer.state is adam.state
    with pytest.raises(ValueError, match=r"lr=0\.1 and .* belong to a class"):
        DecorOptimizer(model, adam, lr=0.1)
    with pytest.raises(ValueError, match="also owns 4 plain weights"):
        DecorOptimizer(model, torch.optim.Adam(model.parameters()))


def test_max_step_bounds_the_step_as_in_decor_step():
    plain, bounded, free = network(), network(), network()
    loop(plain, lambda: decor_step(plain, 1.0, max_step=0.5))
    loop(bounded, DecorSGD(bounded, lr=1.0, max_step=0.5).step)
    loop(free, DecorSGD(free, lr=0.1).step)
    assert_same(plain, bounded)
    assert not torch.equal(free[0].decorrelation.weight, bounded[0].decorrelation.weight)


BOUNDED = {
    "DecorSGD": lambda model: DecorSGD(model, lr=0.1),
    "Adam": lambda model: DecorOptimizer(model, torch.optim.Adam, lr=0.1),
    "in place": lambda model: DecorOptimizer(model, torch.optim.SGD, lr=0.1, in_place=True),
}


@pytest.mark.parametrize("bound", [0, -1.0, float("nan"), "0.5", True])
@pytest.mark.parametrize("owner", [*BOUNDED, "decor_step"])
def test_a_bound_that_is_none_is_refused_also_between_updates(owner, bound):
    model = network(update_every=3)
    if owner == "decor_step":

        def step(bound):
            decor_step(model, 0.1, max_step=bound)
    else:
        optimizer = BOUNDED[owner](model)

        def step(bound):
            optimizer.param_groups[0]["max_step"] = bound
            optimizer.step()

    for good in (None, 0.5, 1):  # the first learns, the others only count
        model(batches()[0][0])
        step(good)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=rf"^layer '0\.decorrelation': max_step is {bound!r}; it must be a number"):
            step(bound)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [int(layer.num_updates) for _, layer in decor_modules(model)] == [3, 3]


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    model = network()
    optimizer = DecorSGD(model, lr=0.02)
    x, t = batches()[0]

    def closure():
        loss = nn.functional.mse_loss(model(x), t)
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.requires_grad
    assert model[0].weight.grad is not None
    assert optimizer.losses["0.decorrelation"] > 0


# ------------------------------------------------------------------------------------------------- groups and rates


def test_layers_can_have_rates_of_their_own():
    model, first, second = network(), network(), network()
    groups = [{"params": model[0], "lr": 0.05}, {"params": [model[2]]}]
    optimizer = DecorSGD(groups, lr=0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.01]
    x, _ = batches()[0]
    for one, step in ((model, optimizer.step), (first, lambda: decor_step(first, 0.05)), (second, None)):
        one(x)
        (step or (lambda: decor_step(second, 0.01)))()
    assert torch.equal(model[0].decorrelation.weight, first[0].decorrelation.weight)
    assert torch.equal(model[2].decorrelation.weight, second[2].decorrelation.weight)


@pytest.mark.parametrize("make", [DecorSGD, lambda layers, lr: DecorOptimizer(layers, torch.optim.Adam, lr=lr)])
def test_a_group_can_be_added(make):
    whole, model = network(), network()
    optimizer = make([("first", model[0])], lr=0.01)
    optimizer.add_param_group({"params": model[2], "lr": 0.02})
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.01, 0.02]
    loop(model, optimizer.step)
    loop(whole, make([{"params": whole[0], "lr": 0.01}, {"params": whole[2], "lr": 0.02}], lr=1.0).step)
    assert_same(whole, model)
    assert next(iter(optimizer.losses)) == "first.decorrelation"
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": model[0]})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            lambda m: nn.Sequential(nn.Linear(2, 2)),
            ValueError,
            "this Sequential has no decorrelation layer: .*decorrelate",
        ),
        (lambda m: [nn.Linear(2, 2)], ValueError, "this Linear has no decorrelation layer"),
        (lambda m: list(decor_parameters(m)), TypeError, "Parameter among the layers: .*takes a model or layers"),
        (lambda m: [], ValueError, "no layers were given"),
    ],
)
def test_what_holds_no_layer_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        DecorSGD(given(network()), lr=0.1)


@pytest.mark.parametrize("bad", [-1e-3, math.nan, math.inf])
def test_a_rate_that_is_no_rate_is_refused_in_the_constructor_and_in_a_step(bad):
    model = network()
    for make in (DecorSGD, lambda m, lr: DecorOptimizer(m, torch.optim.SGD, lr=lr)):
        with pytest.raises(ValueError, match=rf"{bad}; it must be a finite number of at least 0"):
            make(model, lr=bad)
    optimizer = DecorSGD(model, lr=0.1)
    optimizer.param_groups[0]["lr"] = bad
    before = matrices(model)
    model(batches()[0][0])
    with pytest.raises(ValueError, match=rf"the rate of R of layers \['0.decorrelation', '2.decorrelation'\] is {bad}"):
        optimizer.step()
    assert all(torch.equal(before[name], R) for name, R in matrices(model).items())


def test_a_rate_of_zero_is_taken_for_schedules_with_one_warning():
    model = network()
    optimizer = DecorSGD(model, lr=0.0)
    model(batches()[0][0])
    with pytest.warns(
        RuntimeWarning, match=r"the rate of R is 0 \(layers \['0\.decorrelation', '2\.decorrelation'\]\)"
    ):
        optimizer.step()
    assert optimizer.losses["0.decorrelation"] > 0
    model(batches()[1][0])
    optimizer.step()  # a warning would be an error here
    assert torch.equal(model[0].decorrelation.weight, torch.eye(D))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=20, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=2),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [torch.optim.lr_scheduler.ConstantLR(o, 0.1), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
            milestones=[5],
        ),
    ],
    ids=["StepLR", "CosineAnnealingLR", "LambdaLR", "OneCycleLR", "ReduceLROnPlateau", "SequentialLR"],
)
@pytest.mark.parametrize("kind", [None, torch.optim.SGD])
def test_schedules_set_the_rate_that_R_steps_by(schedule, kind):
    plain, model = network(), network()
    optimizer = DecorSGD(model, lr=0.02) if kind is None else DecorOptimizer(model, kind, lr=0.02)
    schedule = schedule(optimizer)
    rates = []

    def scheduled():
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step(*([1.0] if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))

    loop(model, scheduled)
    assert len(set(rates)) > 1
    steps = iter(rates)
    loop(plain, lambda: decor_step(plain, next(steps)))
    assert_same(plain, model, **({} if kind is None else {"rtol": 1e-5, "atol": 1e-6}))


def test_one_cycle_moves_the_momentum_of_an_optimizer_that_has_one():
    model = network()
    with pytest.raises(ValueError, match="momentum"):  # torch's words: DecorSGD has none
        torch.optim.lr_scheduler.OneCycleLR(DecorSGD(model, lr=0.1), 0.1, total_steps=10)
    optimizer = DecorOptimizer(model, torch.optim.Adam, lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=10)
    assert optimizer.inner.param_groups[0]["betas"][0] == 0.95
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.01 / 25)


# -------------------------------------------------------------------------------------------------- a torch optimizer


def test_hooks_see_every_step_and_zero_grad_does_no_harm():
    model, plain, seen = network(), network(), []
    optimizer = DecorSGD(model, lr=0.02)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda own, *_: seen.append(sorted(own.losses)))

    def step():
        optimizer.zero_grad()
        model.zero_grad()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    loop(model, step)
    loop(plain, lambda: decor_step(plain, 0.02))
    assert_same(model, plain)
    assert seen == ["before", ["0.decorrelation", "2.decorrelation"]] * 20


@pytest.mark.parametrize("watcher", ["nobody", "a hook", "a hook of all", "a profiler", "a rate of 0"])
def test_a_step_between_updates_counts_whoever_watches(watcher):
    """With nobody there it takes a shorter way, which must leave the same behind."""
    model, seen = network(update_every=3), []
    optimizer = DecorSGD(model, lr=1e-2)
    if watcher == "a hook":
        optimizer.register_step_post_hook(lambda *_: seen.append(1))
    every = register_optimizer_step_post_hook(lambda *_: seen.append(1))
    if watcher != "a hook of all":
        every.remove()
    profiled = torch.profiler.profile() if watcher == "a profiler" else contextlib.nullcontext()
    try:
        with profiled:
            for i, (x, _) in enumerate(batches(5)):
                model(x)
                before = matrices(model)
                if watcher == "a rate of 0" and i == 1:
                    optimizer.param_groups[0]["lr"] = 0.0
                    with pytest.warns(RuntimeWarning, match="rate of R is 0"):
                        optimizer.step()
                    optimizer.param_groups[0]["lr"] = 1e-2
                else:
                    optimizer.step()
                learns = i % 3 == 0
                assert all((loss is not None) is learns for loss in optimizer.losses.values())
                assert all(torch.equal(R, before[name]) is not learns for name, R in matrices(model).items())
    finally:
        every.remove()
    assert set(optimizer.losses) == {"0.decorrelation", "2.decorrelation"}
    assert all(int(layer.num_updates) == 5 for _, layer in decor_modules(model))
    assert len(seen) == (5 if "hook" in watcher else 0)
    if watcher == "a profiler":
        names = {event.key: event.count for event in profiled.key_averages()}
        assert names["Optimizer.step#DecorSGD.step"] == 5


@pytest.mark.parametrize("make", [DecorSGD, lambda m, lr: DecorOptimizer(m, torch.optim.Adam, lr=lr)])
def test_training_goes_on_from_a_state_dict_to_the_bit(make):
    straight, first, resumed = network(), network(), network()
    loop(straight, make(straight, lr=0.01).step)
    optimizer = make(first, lr=0.01)
    loop(first, optimizer.step, batches()[:10])
    buffer = io.BytesIO()
    torch.save({"model": first.state_dict(), "R": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)  # executes nothing
    assert saved["R"]["param_groups"][0]["param_names"][:2] == ["0.decorrelation.weight", "2.decorrelation.weight"]
    resumed.load_state_dict(saved["model"])
    again = make(resumed, lr=123.0)
    again.load_state_dict(saved["R"])
    assert again.param_groups[0]["lr"] == 0.01
    again.add_param_group({"params": Decorrelation(2, rule=HALF).eval()})  # the groups are still those that step
    loop(resumed, again.step, batches()[10:])
    assert_same(straight, resumed)
    one_layer = make(network()[0], lr=0.1)
    with pytest.raises(ValueError, match="size of optimizer's group"):
        one_layer.load_state_dict(saved["R"])


@pytest.mark.parametrize("make", [DecorSGD, lambda m, lr: DecorOptimizer(m, torch.optim.Adam, lr=lr)])
@pytest.mark.parametrize("twin", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_with_its_model_steps_that_model_alone(make, twin):
    model = network()
    optimizer = make(model, lr=0.01)
    loop(model, optimizer.step, batches()[:5])
    other, its = twin((model, optimizer))
    before = matrices(model)
    loop(other, its.step, batches()[5:])
    assert all(torch.equal(before[name], R) for name, R in matrices(model).items())
    loop(model, optimizer.step, batches()[5:])
    assert_same(model, other)


@pytest.mark.parametrize("make", [DecorSGD, lambda m, lr: DecorOptimizer(m, torch.optim.Adam, lr=lr)])
@pytest.mark.parametrize("overflow", [False, True])
def test_a_scaler_of_the_loss_leaves_R_alone(make, overflow):
    """Row 2 of the cases: R's step was divided by the scale. An overflow of the weights' gradients is none of R's."""
    plain, model = network(), network()
    step = make(plain, lr=0.01)
    optimizer, weights = make(model, lr=0.01), torch.optim.SGD(bp_parameters(model), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for i, (x, t) in enumerate(batches()):
        plain(x), step.step()
        loss = nn.functional.mse_loss(model(x), t)
        weights.zero_grad()
        scaler.scale(loss * math.inf if overflow and i == 3 else loss).backward()
        if i % 2:
            scaler.unscale_(optimizer)
        scaler.step(weights)
        scaler.step(optimizer)
        scaler.update()
    assert_same(plain, model)


def test_a_scaler_that_is_updated_after_each_optimizer_is_content():
    """Lightning and accelerate do so: update() raises where it has seen no gradient since the last one."""
    model = network()
    optimizer, scaler = DecorSGD(model, lr=0.01), torch.amp.GradScaler("cpu")
    for x, _ in batches():
        scaler.scale(model(x).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(D))


# --------------------------------------------------------------------------------------------------- all, or none


class Refusing(KappaRule):
    """A rule that fails when it is asked."""

    def rows(self, moments):
        raise ValueError("this rule cannot")


@pytest.mark.parametrize(
    "make",
    [
        lambda m: DecorSGD(m, lr=0.1).step,
        lambda m: DecorOptimizer(m, torch.optim.Adam, lr=0.1).step,
        lambda m: lambda: decor_step(m, 0.1),
        lambda m: lambda: decorlib.decor_update(m),
    ],
    ids=["DecorSGD", "DecorOptimizer", "decor_step", "decor_update"],
)
def test_where_a_layer_raises_none_has_stepped(make):
    model = network()
    spare = Decorrelation(3, rule=HALF)
    model[2].spare = spare  # never reached
    step, before = make(model), {k: v.clone() for k, v in model.state_dict().items()}
    model(batches()[0][0])
    with pytest.raises(RuntimeError, match=r"layer '2\.spare': .*before any training forward"):
        step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert no_gradients(model)
    del model[2].spare
    make(model)()  # nothing is lost: the batch is still there


# --------------------------------------------------------------------------------------------- parts of a model


@pytest.mark.parametrize("step", ["sgd", "adam", "short", "2024"])
@pytest.mark.parametrize("how", ["frozen", "eval", "learning"])
def test_parts_that_are_not_to_learn_stand_still(how, step):
    model = network()
    if how == "frozen":
        model[0].requires_grad_(False)
    elif how == "learning":
        model[0].decorrelation.learning = False
    take = {
        "sgd": DecorSGD(model, lr=0.02).step,
        "adam": DecorOptimizer(model, torch.optim.Adam, lr=0.02).step,
        "short": lambda: decor_step(model, 0.02),
    }
    if step == "2024":
        sgd = torch.optim.SGD(decor_parameters(model), lr=0.02)
        take["2024"] = lambda: (decorlib.decor_update(model), sgd.step())
    for x, _ in batches():
        if how == "eval":
            model[0].eval()
        model(x)
        found = take[step]()
    assert torch.equal(model[0].decorrelation.weight, torch.eye(D))
    assert not torch.equal(model[2].decorrelation.weight, torch.eye(4))
    if step == "short":
        assert found["0.decorrelation"] is None
        assert found["2.decorrelation"] > 0


def test_a_layer_that_is_frozen_later_or_thawed_is_seen_at_once():
    model = network()
    optimizer = DecorSGD(model, lr=0.02)
    for frozen in (True, False):
        model[0].requires_grad_(not frozen)
        before = model[0].decorrelation.weight.clone()
        model(batches()[0][0])
        optimizer.step()
        assert torch.equal(before, model[0].decorrelation.weight) is frozen


def test_a_model_of_which_nothing_learns_is_an_error_that_says_why():
    model = network()
    model[0].requires_grad_(False)
    model[2].decorrelation.learning = False
    model(batches()[0][0])
    for step in (DecorSGD(model, lr=0.1).step, lambda: decor_step(model, 0.1)):
        said = r"no layer learns: layer '0\.decorrelation': .* frozen; layer '2\.decorrelation': learning is False"
        with pytest.raises(RuntimeError, match=said):
            step()


class Experts(nn.Module):
    """Two experts, of which one may get no token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(DecorLinear(D, 2, rule=HALF) for _ in range(2))

    def forward(self, x, first):
        return sum(
            expert(part).sum() for expert, part in zip(self.experts, (x[:first], x[first:]), strict=True) if len(part)
        )


@pytest.mark.parametrize("make", [DecorSGD, lambda m, **k: DecorOptimizer(m, torch.optim.Adam, **k), None])
def test_experts_without_tokens_are_skipped_when_asked(make):
    model, x = Experts(), batches()[0][0]
    step = (lambda: decor_step(model, 0.02)) if make is None else make(model, lr=0.02).step
    model(x, 16)
    with pytest.raises(RuntimeError, match=r"layer 'experts\.1\.decorrelation': .*before any training forward"):
        step()
    options = {"lr": 0.02, "skip_unreached": True}
    step = (lambda: decor_step(model, **options)) if make is None else make(model, **options).step
    step()
    still = model.experts[1].decorrelation.weight
    assert torch.equal(still, torch.eye(D))
    assert not torch.equal(model.experts[0].decorrelation.weight, still)
    model(x, 8)
    step()
    assert not torch.equal(model.experts[1].decorrelation.weight, torch.eye(D))
    with pytest.raises(RuntimeError, match="no layer learns"):
        step()


# ---------------------------------------------------------------------------------------------- steps without effect


@pytest.mark.parametrize("make", [DecorSGD, lambda m, lr: DecorOptimizer(m, torch.optim.SGD, lr=lr), None])
def test_a_rate_that_rounding_swallows_is_an_error_that_names_the_layers(make):
    model = network()
    step = (lambda: decor_step(model, 1e-12)) if make is None else make(model, lr=1e-12).step
    model(batches()[0][0])
    said = r"rate 1e-12 left every R unchanged \(layers \['0\.decorrelation', '2\.decorrelation'\]\): .*rounding"
    with pytest.raises(SilentNoOp, match=said):
        step()


@pytest.mark.parametrize("bad", [0.0, -1e-3, math.nan, math.inf])
def test_decor_step_names_a_rate_that_moves_nothing(bad):
    model = network()
    model(batches()[0][0])
    with pytest.raises(ValueError, match=rf"lr is {bad}; it must be a finite number above 0"):
        decor_step(model, bad)
    decor_step(model, 0.1)  # nothing was lost


def test_a_plain_model_is_an_error():
    for call in (decor_step, decorlib.decor_update, decorlib.decor_measure):
        with pytest.raises(
            ValueError, match=r"this Linear has no decorrelation layer: .*decorlib\.decorrelate\(model\)"
        ):
            call(nn.Linear(2, 2), *[0.1] * (call is decor_step))


def test_a_rate_that_falls_until_rounding_swallows_it_is_noticed():
    model = network()
    optimizer = DecorSGD(model, lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
    with pytest.warns(RuntimeWarning, match=r"in a step of rate \S+e-(09|1\d): the rate is lost in rounding"):
        loop(model, lambda: (optimizer.step(), schedule.step()))


def test_a_single_layer_that_stands_still_is_one_warning():
    model = network()
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1)  # every unit is dead: the second layer sees zeros only
    for i, (x, _) in enumerate(batches() * 11):
        model(x)
        if i == 0:
            with pytest.warns(RuntimeWarning, match=r"R of \['2\.decorrelation'\] did not move"):
                decor_step(model, 0.01)
        else:
            decor_step(model, 0.01)  # a second warning would be an error here


def test_an_edited_library_is_noticed_in_the_middle_of_a_run(monkeypatch):
    """The silent no-op of 2024, in a loop of one's own: steps that report their loss and change nothing any more."""
    model = network()
    optimizer = DecorSGD(model, lr=0.01)
    loop(model, optimizer.step)
    monkeypatch.setattr(decorlib.optim, "in_place", lambda steps: [step.layer.forget() for step in steps])
    with pytest.warns(RuntimeWarning, match="did not move"):
        loop(model, optimizer.step, batches(100))


def test_an_R_of_one_entry_may_stand_still():
    model = nn.Sequential(DecorLinear(1, 1, rule=HALF))
    optimizer = DecorSGD(model, lr=0.02)
    for _ in range(3):
        model(torch.ones(4, 1))  # <x^2> = 1: R = 1 is the fixed point, to the bit
        optimizer.step()
    assert model[0].decorrelation.weight.item() == 1.0


# ------------------------------------------------------------------------------------------------- converted models


def test_an_optimizer_of_R_and_one_of_the_weights_share_a_converted_model():
    torch.manual_seed(0)
    model = decorrelate(nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, 1)), "kappa")
    loop(model, DecorSGD(model, lr=0.02).step)
    norms = []
    optimizer = DecorSGD(model, lr=0.02)
    for x, t in batches():
        model.zero_grad()
        nn.functional.mse_loss(model(x), t).backward()
        optimizer.step()
        norms.append(
            (nn.utils.clip_grad_norm_(model.parameters(), 1e9), nn.utils.clip_grad_norm_(bp_parameters(model), 1e9))
        )
    assert all(all_ == weights for all_, weights in norms)


def test_compiled_steps_of_other_optimizers_go_on():
    """Torch's global hooks are how gradients that decor_update leaves are guarded; a compiled step has none to run."""
    weight = nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([weight], lr=0.5)
    weight.grad = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = torch.compile(sgd.step, backend="eager")
        step()
    assert torch.equal(weight.detach(), torch.full((3,), 0.5))


@pytest.mark.parametrize("way", ["assign", "to_empty"])
def test_an_optimizer_whose_R_was_replaced_says_so(way):
    """As with the weights, it would step tensors that the model no longer has; here that can be known."""
    model = network()
    optimizer, plain = DecorOptimizer(model, torch.optim.Adam, lr=1e-2), DecorSGD(model, lr=1e-2)
    if way == "assign":
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    else:
        state = copy.deepcopy(model.state_dict())
        model.to("meta").to_empty(device="cpu")
        model.load_state_dict(state)
    model(batches()[0][0])
    with pytest.raises(RuntimeError, match=r"R of layers \['0.decorrelation', '2.decorrelation'\] is another tensor"):
        optimizer.step()
    before = matrices(model)
    plain.step()  # finds R in its layers
    assert all(not torch.equal(before[name], R) for name, R in matrices(model).items())
    anew = DecorOptimizer(model, torch.optim.Adam, lr=1e-2)
    model(batches()[1][0])
    anew.step()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (torch.optim.LBFGS, {}, "LBFGS evaluates a loss again and again"),
        (torch.optim.SGD, {"maximize": True}, "maximize=True moves R away"),
        (torch.optim.Adam, {"maximize": True}, "maximize=True moves R away"),
    ],
)
def test_an_optimizer_that_cannot_step_R_is_refused_when_it_is_built(kind, options, message):
    with pytest.raises(ValueError, match=message):
        DecorOptimizer(network(), kind, lr=0.1, **options)


@pytest.mark.parametrize("bad", [None, True, torch.tensor([0.1, 0.1])])
def test_what_is_no_number_is_no_rate(bad):
    model = network()
    model(batches()[0][0])
    before = matrices(model)
    with pytest.raises(ValueError, match=r"lr is .*; it must be one number"):
        decor_step(model, bad)
    assert all(torch.equal(before[name], R) for name, R in matrices(model).items())


@pytest.mark.parametrize("kind", ["zca", "pca", "cholesky"])
@pytest.mark.parametrize("way", ["DecorSGD", "DecorOptimizer", "DecorOptimizer in place", "decor_update", "update"])
def test_exact_whitening_is_solved_once_in_a_step(way, kind, monkeypatch):
    model, solved = network(rule=ExactWhitening(kind=kind)), []
    whitener = ExactWhitening._whitener
    monkeypatch.setattr(ExactWhitening, "_whitener", lambda *a: solved.append(1) or whitener(*a))
    step = {
        "DecorSGD": DecorSGD(model, 0.5).step,
        "DecorOptimizer": DecorOptimizer(model, torch.optim.Adam, lr=1e-3).step,
        "DecorOptimizer in place": DecorOptimizer(model, torch.optim.SGD, lr=0.5, in_place=True).step,
        "decor_update": lambda: decor_update(model, 0.5),
        "update": lambda: [layer.update(0.5) for _, layer in decor_modules(model)],
    }[way]
    before = [R.clone() for R in decor_parameters(model)]
    model(torch.randn(64, D))
    step()
    assert len(solved) == len(list(decor_modules(model))) == 2
    if "update" not in way:
        assert all(not torch.equal(a, b) for a, b in zip(before, decor_parameters(model), strict=True))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_direction_that_does_not_exist_names_the_layer_and_changes_nothing(optimizer):
    model = network(rule=ExactWhitening(shrinkage=0.0))
    before = copy.deepcopy(model.state_dict())
    model(torch.ones(8, D))
    with pytest.raises(ValueError, match=r"^layer '0\.decorrelation': .*singular"):
        DecorOptimizer(model, optimizer, lr=0.1).step()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert no_gradients(model)


# ------------------------------------------------------------------------------- groups, bounds and batches of nothing


def test_layers_of_one_name_in_several_groups_keep_their_losses():
    """The names are those in the module of each group, so that the second loss took the place of the first."""
    model = network()
    optimizer = DecorSGD([{"params": model[0]}, {"params": [model[2]], "lr": 1e-3}], lr=1e-2)
    alike = DecorSGD([{"params": model[0]}, {"params": model[2]}], lr=1e-2)
    x, _ = batches(1)[0]
    for one in (optimizer, alike):
        model(x)
        one.step()
        assert len(one.losses) == 2
    assert list(alike.losses) == ["decorrelation", "1.decorrelation"]
    model(x)
    expected = decorlib.decor_measure(model)
    model(x)
    alike.step()
    torch.testing.assert_close(list(alike.losses.values()), list(expected.values()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_bound_that_the_optimizer_divides_away_is_said(kind):
    model, x = network(), batches(1)[0][0]
    with pytest.warns(RuntimeWarning, match=rf"max_step=1e-06 makes the gradient.*{kind.__name__} divides.*DecorSGD"):
        optimizer = DecorOptimizer(model, kind, lr=1e-2, max_step=1e-6)
    free, other = network(), batches(1)[0][0]
    unbounded = DecorOptimizer(free, kind, lr=1e-2)
    for one, owner, data in ((model, optimizer, x), (free, unbounded, other)):
        one(data)
        owner.step()
    for (_, a), (_, b) in zip(decor_modules(model), decor_modules(free), strict=True):
        assert (a.weight - torch.eye(len(a.weight))).norm() > 0.5 * (b.weight - torch.eye(len(b.weight))).norm()


def test_a_bound_that_plain_steps_keep_is_not_spoken_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DecorOptimizer(network(), torch.optim.SGD, lr=1e-2, momentum=0.9, max_step=0.5)


@pytest.mark.parametrize("every", [1, 2])
def test_an_empty_batch_excuses_one_step_and_not_all_that_come(every):
    """A layer that was once given an empty batch and then never reached stood still for ever, without a word."""
    used, rare = DecorLinear(D, 4, update_every=every), DecorLinear(D, 4, update_every=every)
    model, x = nn.ModuleDict({"used": used, "rare": rare}), batches(1)[0][0]
    optimizer = DecorSGD(model, lr=1e-2)
    for _ in range(2):
        used(x)
        rare(x[:0])
        optimizer.step()

    def go_on():
        for _ in range(every):
            used(x)
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"layer 'rare\.decorrelation': update\(\) before any training forward"):
        go_on()
