"""train, decor_train and History: the order of the steps, true means, and how a run that goes wrong ends."""

import argparse
import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from decorlib import (
    DecorLinear,
    DecorOptimizer,
    Decorrelation,
    DecorSGD,
    Epoch,
    History,
    KappaRule,
    SilentNoOp,
    bp_parameters,
    decor_measure,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_train,
    decor_update,
    train,
)
from decorlib.layers.step import PreparedStep
from decorlib.study.experiments import notebook_2024 as seed_document
from decorlib.training.history import steps_of

D = 5
HALF = KappaRule(kappa=0.5)


def batches(count=4, size=16, scale=1.0):
    x = scale * torch.randn(count, size, D, generator=torch.Generator().manual_seed(0))
    return [(part, part[:, :2].sum(1, keepdim=True).relu()) for part in x]


def network(rule=HALF, **options):
    torch.manual_seed(0)
    return nn.Sequential(DecorLinear(D, 4, rule=rule, **options), nn.ReLU(), DecorLinear(4, 1, rule=rule, **options))


def owners(model, lr=0.05, decor_lr=0.02, kind=torch.optim.SGD):
    return {
        "optimizer": kind(bp_parameters(model), lr=lr),
        "decor_optimizer": kind(decor_parameters(model), lr=decor_lr),
    }


def trained(model, data=None, *, epochs=2, loss=nn.functional.mse_loss, **options):
    options = options if options.keys() >= {"optimizer", "decor_optimizer"} else owners(model) | options
    return train(model, loss, batches() if data is None else data, epochs=epochs, **options)


def assert_equal_models(a, b, **tolerance):
    torch.testing.assert_close(dict(a.state_dict()), dict(b.state_dict()), **(tolerance or {"rtol": 0, "atol": 0}))


# -------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("in_place", [False, True])
def test_it_is_the_loop_that_the_readme_shows(in_place, kind):
    if in_place and kind is torch.optim.Adam:
        with pytest.raises(ValueError, match="in_place=True takes plain SGD steps"):
            trained(model := network(), in_place=True, **owners(model, kind=kind))
        return
    model, ours = network(), network()
    own = owners(model, kind=kind)
    losses = []
    for x, target in batches() * 2:
        loss = nn.functional.mse_loss(model(x), target)
        own["optimizer"].zero_grad()
        loss.backward()
        own["optimizer"].step()
        if in_place:
            decor = decor_step(model, 0.02)
        else:
            decor = decor_update(model)
            own["decor_optimizer"].step()
        losses.append((loss.item(), {name: float(value) for name, value in decor.items()}))
    history = trained(ours, in_place=in_place, **owners(ours, kind=kind))
    assert_equal_models(model, ours)
    for epoch, row in enumerate(history):
        part = losses[4 * epoch : 4 * epoch + 4]
        assert row.loss == pytest.approx(sum(loss for loss, _ in part) / 4, rel=1e-12)
        for name, value in row.decor_losses.items():
            assert value == pytest.approx(sum(decor[name] for _, decor in part) / 4, rel=1e-12)
        assert row.decor_loss == pytest.approx(sum(row.decor_losses.values()))
        assert (row.epoch, row.batches) == (epoch + 1, 4)


def test_in_place_steps_are_the_default_of_plain_sgd_and_the_same_but_for_rounding():
    models = [network() for _ in range(3)]
    for model, in_place in zip(models, (None, True, False), strict=True):
        trained(model, in_place=in_place)
    assert_equal_models(models[0], models[1])
    assert_equal_models(models[0], models[2], rtol=1e-5, atol=1e-6)
    for model in models:  # gradients are taken away after their step, and never set in place
        assert all(layer.weight.grad is None for _, layer in decor_modules(model))


def test_an_optimizer_of_R_of_ours_gives_the_same_to_the_bit():
    for ours, kind, options in [
        (DecorSGD, torch.optim.SGD, {}),
        (lambda m, lr: DecorOptimizer(m, torch.optim.Adam, lr=lr), torch.optim.Adam, {}),
    ]:
        plain, model = network(), network()
        history = trained(plain, optimizer=torch.optim.SGD(bp_parameters(plain), lr=0.05),
                          decor_optimizer=kind(decor_parameters(plain), lr=0.02), **options)  # fmt: skip
        found = trained(model, optimizer=torch.optim.SGD(bp_parameters(model), lr=0.05),
                        decor_optimizer=ours(model, lr=0.02), **options)  # fmt: skip
        assert_equal_models(plain, model)
        assert [row.decor_losses for row in history] == [row.decor_losses for row in found]
    own = DecorSGD(model, lr=0.02)
    with pytest.raises(ValueError, match="give max_step to DecorSGD instead"):
        trained(model, optimizer=None, decor_optimizer=own, max_step=0.5)
    with pytest.raises(ValueError, match=r"optimizer also owns R"):
        trained(model, optimizer=own, decor_optimizer=own)


def test_a_rate_from_the_curvature_is_a_rate_and_a_still_R_under_it_is_noticed(monkeypatch):
    model = network()
    before = [p.clone() for p in decor_parameters(model)]
    assert trained(model, optimizer=None, decor_optimizer=DecorSGD(model, lr="auto")).status == "finished"
    assert all(not torch.equal(a, b) for a, b in zip(before, decor_parameters(model), strict=True))
    monkeypatch.setattr(PreparedStep, "commit_in_place", lambda self, *_: self.layer.forget())
    with pytest.raises(SilentNoOp, match="rate auto"):
        trained(model, optimizer=None, decor_optimizer=DecorSGD(model, lr="auto"))


@pytest.mark.parametrize("how", ["frozen", "learning"])
@pytest.mark.parametrize("who", ["all", "rest", "DecorSGD"])
def test_a_layer_that_is_not_to_learn_stands_still_and_needs_no_owner(how, who):
    """A frozen layer's R went on, so that its outputs changed by 1.49 of 4.5."""
    model = network()
    if how == "frozen":
        model[0].requires_grad_(False)
    else:
        model[0].decorrelation.learning = False
    x = batches()[0][0]
    before = model[0](x).detach()
    model.zero_grad()
    R = {
        "all": lambda: torch.optim.SGD(decor_parameters(model), lr=0.02),
        "rest": lambda: torch.optim.SGD(decor_parameters(model[2]), lr=0.02),
        "DecorSGD": lambda: DecorSGD(model[2], lr=0.02),
    }[who]()
    weights = torch.optim.SGD([p for p in bp_parameters(model) if p.requires_grad], lr=0.05)
    history = trained(model, optimizer=weights, decor_optimizer=R)
    assert torch.equal(model[0].decorrelation.weight, torch.eye(D))
    if how == "frozen":
        assert torch.equal(model[0](x), before)
    assert not torch.equal(model[2].decorrelation.weight, torch.eye(4))
    assert [len(row.decor_losses) for row in history] == [1, 1]


def test_hooks_of_the_optimizer_of_R_see_every_step():
    model, seen = network(), []
    own = owners(model)
    own["decor_optimizer"].register_step_post_hook(lambda *_: seen.append(1))
    trained(model, **own)
    assert len(seen) == 2 * len(batches())
    with pytest.raises(ValueError, match="none that hooks wait for"):
        trained(model, in_place=True, **own)


def test_a_schedule_of_R_is_told_of_steps_in_place():
    model = network()
    own = owners(model)
    schedule = torch.optim.lr_scheduler.StepLR(own["decor_optimizer"], 1, gamma=0.5)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where a schedule moves before any step
        trained(model, decor_scheduler=schedule, on_epoch=lambda _: rates.extend(schedule.get_last_lr()), **own)
    assert rates == [rates[0], rates[0] / 2]


def test_losses_are_means_over_batches_of_any_size_in_double_precision():
    data = [(x, t) for x, t in batches(3)] + [(torch.zeros(2, D), torch.zeros(2, 1))]
    seen = []

    def loss(out, target):
        seen.append(nn.functional.mse_loss(out, target))
        return seen[-1]

    history = trained(network(), data, epochs=1, loss=loss)
    assert history[0].loss == pytest.approx(sum(s.item() for s in seen) / 4, rel=1e-14)


def test_a_measuring_pass_changes_nothing_and_is_epoch_zero():
    model, plain = network(), network()
    history = trained(model, epochs=0, measure_first=True)
    assert [(row.epoch, row.seconds, row.batches) for row in history] == [(0, 0.0, 4)]
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert [row.epoch for row in trained(model, epochs=2, measure_first=True)] == [0, 1, 2]
    assert len(trained(model, epochs=0)) == 0


def test_without_an_optimizer_of_r_nothing_is_measured_and_r_stays():
    model = network()
    history = trained(model, decor_optimizer=None)
    assert [row.decor_losses for row in history] == [{}, {}]
    assert all(torch.equal(layer.weight, torch.eye(layer.in_features)) for _, layer in decor_modules(model))


def test_a_model_without_plain_weights_trains_r_alone():
    layer = Decorrelation(D, rule=HALF)
    data = [(x @ torch.diag(torch.tensor([2.0, 1, 1, 1, 1])), t) for x, t in batches()]
    history = train(
        layer, lambda y, t: y.new_zeros(()), data, epochs=30, optimizer=None,
        decor_optimizer=torch.optim.SGD(layer.parameters(), lr=0.1),
    )  # fmt: skip
    assert history[-1].decor_losses[""] < 0.3 * history[0].decor_losses[""]


def test_evaluation_runs_in_evaluation_mode_outside_the_clock_and_training_goes_on_in_training_mode():
    model, modes = network(center="batch"), []

    def evaluate(evaluated):
        modes.append(evaluated.training)
        return {"accuracy": 0.5, "broken": math.nan}

    printed = []
    history = trained(model, evaluate=evaluate, on_epoch=printed.append)
    assert modes == [False, False]
    assert model.training
    assert [row.metrics["accuracy"] for row in history] == [0.5, 0.5]
    assert printed == list(history)
    assert [row["broken"] for row in history.rows()] == [None, None]


def test_schedules_are_stepped_once_per_epoch_and_not_by_the_measuring_pass():
    model = network()
    own = owners(model)
    schedules = {
        "scheduler": torch.optim.lr_scheduler.StepLR(own["optimizer"], 1, 0.1),
        "decor_scheduler": torch.optim.lr_scheduler.StepLR(own["decor_optimizer"], 1, 0.5),
    }
    trained(model, epochs=3, measure_first=True, **own, **schedules)
    assert own["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05 * 0.1**3)
    assert own["decor_optimizer"].param_groups[0]["lr"] == pytest.approx(0.02 * 0.5**3)


@pytest.mark.parametrize("measure_first", [False, True])
@pytest.mark.parametrize("every", [3, 50])
def test_steps_that_are_not_due_are_no_silent_no_op(every, measure_first):
    model = network(update_every=every)
    history = trained(model, epochs=3, measure_first=measure_first)
    assert history.status == "finished"
    learned = [bool(row.decor_losses) for row in history if row.epoch > 0]
    assert learned == ([True] * 3 if every == 3 else [True, False, False])
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(D))


def test_the_pass_that_measures_learns_nothing_and_reports_what_an_update_would():
    model, x = network(update_every=2), torch.randn(12, D)
    twin = copy.deepcopy(model)
    twin(x), model(x)
    measured, updated = decor_measure(model), decor_update(twin)
    assert measured.keys() == updated.keys()
    assert all(torch.equal(measured[name], updated[name]) for name in measured)
    for _, layer in decor_modules(model):
        assert torch.equal(layer.weight, torch.eye(layer.in_features))
        assert layer.weight.grad is None
        assert int(layer.num_updates) == 0
    with pytest.raises(RuntimeError, match=r"layer '0\.decorrelation': measure\(\) "):
        decor_measure(model)  # the batch is spent, as after an update


def test_the_mistake_of_2024_is_caught_at_the_first_step_that_is_due(monkeypatch):
    """Also where steps are due only now and then, and where the edited update reports nothing at all."""
    with (
        seed_document.hot_reloaded(),
        pytest.raises(SilentNoOp, match=r"first step.*left no gradient.*0\.decorrelation"),
    ):
        trained(network(update_every=3), in_place=False, measure_first=True)
    seen = []
    monkeypatch.setattr(PreparedStep, "commit_gradient", lambda self: self.layer.forget())
    with pytest.raises(SilentNoOp, match="Restart the kernel if library code was edited"):
        trained(network(), in_place=False, loss=lambda y, t: seen.append(1) or nn.functional.mse_loss(y, t))
    assert len(seen) == 1
    assert trained(network(), in_place=False, allow_no_op=True).status == "finished"


# ---------------------------------------------------------------------------------------------- how it goes wrong


def test_ownership_is_checked_before_anything_is_stepped():
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    everything = torch.optim.Adam(model.parameters(), lr=0.1)
    other = owners(model)
    first = torch.optim.SGD(model[0].decorrelation.parameters(), lr=0.1)
    for given, message in [
        (
            other | {"optimizer": everything},
            r"optimizer also owns R of \['0.decorrelation', '2.decorrelation'\].*bp_parameters",
        ),
        (other | {"decor_optimizer": everything}, "decor_optimizer also owns 4 plain weights.*decor_parameters"),
        (other | {"decor_optimizer": first}, r"no optimizer owns R of \['2.decorrelation'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            trained(model, **given)
    other["decor_optimizer"].param_groups[0]["lr"] = -1e-3  # torch refuses it only in the constructor
    with pytest.raises(ValueError, match=r"rate is -0\.001; it must be at least 0"):
        trained(model, **other)
    with pytest.raises(ValueError, match="epochs is -1"):
        trained(model, epochs=-1)
    with pytest.raises(ValueError, match=r"no batch.*drop_last"):
        trained(model, [])
    for key, value in model.state_dict().items():
        assert torch.equal(before[key], value), key


@pytest.mark.parametrize("in_place", [False, True])
def test_divergence_is_recorded_with_its_epoch_and_cause(in_place):
    model = network()
    history = trained(model, batches(2, scale=4.0), epochs=50, in_place=in_place, **owners(model, decor_lr=0.4))
    assert history.status == "diverged"
    assert history.diverged_at == len(history) + 1 <= 10
    assert "decorrelation" in history.cause or "not finite" in history.cause
    assert all(math.isfinite(row.loss) and math.isfinite(row.decor_loss) for row in history)


def test_a_task_loss_that_is_nan_is_divergence_with_or_without_layers_of_ours():
    for model in (network(), nn.Linear(D, 1)):
        plain = isinstance(model, nn.Linear)
        own = {"optimizer": torch.optim.SGD(bp_parameters(model), lr=0.1)}
        own["decor_optimizer"] = None if plain else torch.optim.SGD(decor_parameters(model), lr=0.01)
        history = trained(model, loss=lambda y, t: y.sum() * math.nan, **own)
        assert (history.status, history.diverged_at, len(history)) == ("diverged", 1, 0)


def test_decor_train_warns_of_divergence_with_its_epoch_and_the_way_out():
    args = argparse.Namespace(lr=1e-3, eta=0.4, epochs=50)
    with pytest.warns(RuntimeWarning, match=r"diverged in epoch \d+: .*\. Lower the rates, or centre the inputs"):
        history = decor_train(args, network(), nn.functional.mse_loss, batches(2, scale=4.0), "cpu", verbose=False)
    assert history.status == "diverged"


def test_an_r_of_one_entry_may_stand_still_at_its_fixed_point():
    inputs = torch.ones(4, 1)  # <x^2> = 1: R = 1 is the rule's fixed point, to the bit
    for in_place in (True, False):
        alone = nn.Sequential(DecorLinear(1, 1, rule=HALF))
        moving = nn.Sequential(DecorLinear(1, D, rule=HALF), DecorLinear(D, 1, rule=HALF))
        for model in (alone, moving):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                trained(model, [(inputs, torch.zeros(4, 1))], epochs=2, in_place=in_place, **owners(model))
            assert model[0].decorrelation.weight.item() == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_data_is_an_error_that_names_the_batch_not_divergence(bad):
    data = batches()
    data[2][0][3, 1] = bad
    with pytest.raises(ValueError, match="batch 2 of epoch 1 holds NaN or infinity: clean the data"):
        trained(network(), data)


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_training_goes_on_from_a_checkpoint_to_the_bit(kind, tmp_path):
    options = {"center": "batch", "momentum": None, "fraction": 0.5, "update_every": 3}

    def run(model, own, generator, epochs):
        for _, layer in decor_modules(model):
            layer.generator = generator
        trained(model, epochs=epochs, **own)

    straight, first, resumed = (network(**options) for _ in range(3))
    run(straight, owners(straight, kind=kind), torch.Generator().manual_seed(5), 4)
    own, generator = owners(first, kind=kind), torch.Generator().manual_seed(5)
    run(first, own, generator, 2)
    torch.save(
        {"model": first.state_dict(), "generator": generator.get_state()} | {k: o.state_dict() for k, o in own.items()},
        tmp_path / "checkpoint.pt",
    )
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)  # executes nothing
    resumed.load_state_dict(saved["model"])
    own, generator = owners(resumed, kind=kind), torch.Generator()
    generator.set_state(saved["generator"])
    for name, optimizer in own.items():
        optimizer.load_state_dict(saved[name])
    run(resumed, own, generator, 2)
    assert_equal_models(straight, resumed)


def test_a_history_is_continued_and_not_changed():
    def run(model, own, epochs, history=None):
        return trained(model, epochs=epochs, measure_first=True, history=history, **own)

    straight, halves = network(), network()
    whole = run(straight, owners(straight), 4)
    own = owners(halves)
    first = run(halves, own, 2)
    second = run(halves, own, 4, first)
    assert_equal_models(straight, halves)
    assert [row.epoch for row in first] == [0, 1, 2]
    assert [row.epoch for row in second] == [row.epoch for row in whole] == [0, 1, 2, 3, 4]
    for a, b in zip(second, whole, strict=True):
        assert (a.loss, a.decor_losses) == (b.loss, b.decor_losses)
    assert len(run(halves, own, 4, second)) == 5  # nothing is left to do
    assert_equal_models(straight, halves)


def test_a_history_that_diverged_is_not_continued():
    model = network()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"history diverged in epoch 3: .*Restore a checkpoint from before"):
        trained(model, history=History(status="diverged", diverged_at=3), **owners(model))
    assert_equal_models(before, model)


# ---------------------------------------------------------------------------------- the 2024 notebook's accounting


def test_the_seeds_accounting_of_a_constant_loss():
    layer = DecorLinear(D, 1, rule=HALF)
    data = [(torch.eye(D).repeat(3, 1) * D**0.5, torch.zeros(15, 1))] * 15
    history = trained(layer, data, epochs=1, loss=lambda y, t: 0 * y.sum() + 1.0, allow_no_op=True)
    assert history[0].loss == 1.0
    assert history[0].decor_loss == pytest.approx(0, abs=1e-6)
    of_ones = History([Epoch(epoch=1, seconds=1.5, batches=15, loss=1.0, decor_losses={"a": 0.25, "b": 0.75})])
    (row,) = of_ones.as_printed_in_2024()
    assert round(row["bp_loss"], 6) == 1.071429
    assert row["decorrelation_loss"] == 15
    assert of_ones.lines_printed_in_2024() == [
        "epoch 1  \ttime:1.500 s\tbp loss: 1.071429\tdecorrelation loss: 15.000000"
    ]
    assert of_ones[0].loss == 1.0  # and the true means stay what they are
    assert of_ones.rows()[0]["decor_loss"] == 1.0
    one = History([Epoch(epoch=1, seconds=1.0, batches=1, loss=1.0, decor_losses={})])
    assert one.as_printed_in_2024()[0]["bp_loss"] == math.inf  # what the 2024 notebook divides by is zero


def test_decor_train_has_the_seeds_call_and_prints_its_lines(capsys):
    model = network()
    args = argparse.Namespace(lr=1e-3, eta=1e-2, epochs=2)
    history = decor_train(args, model, nn.functional.mse_loss, batches(), torch.device("cpu"))
    assert capsys.readouterr().out.splitlines() == history.lines_printed_in_2024()
    assert [row.epoch for row in history] == [0, 1, 2]
    assert list(steps_of(history)) == [0, 4, 8]
    quiet = network()
    named = argparse.Namespace(lr=1e-3, decor_lr=1e-2, eta=99.0, epochs=2)  # decor_lr is the rate where there is one
    decor_train(named, quiet, nn.functional.mse_loss, batches(), "cpu", verbose=False)
    assert capsys.readouterr().out == ""
    assert_equal_models(model, quiet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": -1e-5}, r"args.eta is -1e-05; it must be a finite number, at least 0"),
        ({"eta": math.nan}, r"args\.eta is nan"),
        ({"lr": math.inf}, r"args\.lr is inf"),
        ({"lr": "fast"}, r"args\.lr is 'fast'"),
        ({"decor_lr": -1.0}, r"args\.decor_lr is -1\.0"),
    ],
)
def test_decor_train_checks_its_rates(change, message):
    args = argparse.Namespace(**({"lr": 1e-3, "eta": 1e-2, "epochs": 1} | change))
    with pytest.raises(ValueError, match=message):
        decor_train(args, network(), nn.functional.mse_loss, batches(), "cpu", verbose=False)


@pytest.mark.parametrize("kind", [DecorSGD, torch.optim.SGD, torch.optim.Adam])
def test_no_step_of_a_run_copies_R(kind):
    """The run itself looks at every R after the first step and once an epoch, which is when it copies them.

    Batches are smaller than D: the product X R of a dense X would need a copy.
    """

    class Copies(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copied = func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
            self.count += copied and args[0].shape == (D, D)
            return func(*args, **(kwargs or {}))

    def copies(steps):
        model = network()
        decor_optimizer = kind(model if kind is DecorSGD else decor_parameters(model), lr=0.02)
        with Copies() as counted:
            trained(
                model,
                batches(steps, size=3),
                epochs=1,
                decor_optimizer=decor_optimizer,
                optimizer=owners(model)["optimizer"],
            )
        return counted.count

    assert copies(12) == copies(3) > 0
