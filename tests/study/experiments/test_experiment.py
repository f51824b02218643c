"""Experiments: what runs share, they share rightly."""

import math
from dataclasses import fields

import pytest
import torch

from decorlib import Decorrelation
from decorlib.study.experiments import experiment, measuring, networks
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.sweeps import identity


def test_runs_that_read_the_same_share_their_arrays():
    """The very same tensors, with the values of arrays; a field that they depend on gives others."""
    spec = Experiment(train_size=64, seed=3)
    kept = experiment.kept_arrays(spec)
    assert all(a is b for a, b in zip(kept, experiment.kept_arrays(spec.but(lr=0.5, epochs=7)), strict=True))
    for changes in ({}, {"demean_inputs": True}, {"seed": 4}, {"split": "validation"}, {"scaling": "unit"}):
        other = spec.but(**changes)
        assert all(map(torch.equal, experiment.kept_arrays(other), experiment.arrays(other)))


def test_every_field_that_arrays_reads_tells_them_apart():
    read, seen = set(), set()

    class Watched(Experiment):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    for changes in (
        {"pixels": "lively", "jitter": 0.1, "subset_seed": 1},
        {"whiten_inputs": True, "split": "validation"},
        {"data": "gaussian"},
    ):
        spec = Watched(train_size=200, **changes)
        read.clear()  # what the constructor checked
        experiment.arrays(spec)
        seen |= read
    assert seen & {f.name for f in fields(Experiment)} == set(experiment.PREPARATION)


def test_a_run_does_not_write_on_the_arrays_it_was_given():
    spec = Experiment(train_size=128, epochs=1, hidden=(8,), layer_options=(("center", "batch"),))
    before = [part.clone() for part in experiment.kept_arrays(spec)]
    experiment.run(spec)
    assert all(map(torch.equal, experiment.kept_arrays(spec), before))


def test_measuring_within_epochs_changes_no_run():
    """Twice or three times an epoch: rows of their own, and in between the very same training."""
    spec = Experiment(train_size=320, epochs=2, hidden=(8,), decor_lr=1e-5, evaluate_every=1, measures="task")
    whole = experiment.run(spec)
    for parts in (2, 3):
        found = experiment.run(spec.but(evaluate_every=1 / parts))
        assert [row["epoch"] for row in found["epochs"]] == [k / parts for k in range(1, 2 * parts + 1)]
        ends = [row for row in found["epochs"] if row["epoch"] in (1, 2)]
        for end, row in zip(ends, whole["epochs"], strict=True):
            assert end["test_accuracy"] == row["test_accuracy"]
            assert end["test_loss"] == row["test_loss"]
        assert all("test_accuracy" in row for row in found["epochs"])
        assert found["final"]["train_accuracy"] == whole["final"]["train_accuracy"]
        assert "train_accuracy" not in found["epochs"][0]


def test_an_epoch_of_divergence_is_counted_in_whole_epochs():
    spec = Experiment(train_size=320, epochs=3, hidden=(8,), optimizer="sgd", lr=1e6, rule=None)
    whole, found = (experiment.run(spec.but(evaluate_every=e)) for e in (1, 0.25))
    assert whole["status"] == found["status"] == "diverged"
    assert whole["diverged_at"] == found["diverged_at"] == 1


@pytest.mark.parametrize("every", [-1, 0.3, 0.75, 1.5])
def test_an_interval_between_measurements_that_does_not_divide_an_epoch_is_refused(every):
    with pytest.raises(ValueError, match=r"evaluate_every is .*1/n of an epoch"):
        Experiment(evaluate_every=every)


def test_schedules_anneal_the_rate_they_are_for():
    spec = Experiment(epochs=8, evaluate_every=0.5)  # 16 passes
    expected = {"drop": [1.0] * 8 + [0.1] * 8, "stop": [1.0] * 4 + [0.0] * 12}
    for kind in ("cosine", "drop", "stop"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule, rates = experiment.schedule(optimizer, kind, spec), []
        for _ in range(16):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        if kind == "cosine":
            assert rates[0] == 1
            assert rates == sorted(rates, reverse=True)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
        else:
            assert rates == pytest.approx(expected[kind])
    assert experiment.schedule(optimizer, None, spec) is None
    assert experiment.schedule(None, "cosine", spec) is None


def test_the_weights_schedule_is_of_the_weights_and_that_of_r_of_r():
    spec = Experiment(train_size=320, epochs=4, hidden=(8,), decor_lr=1e-5)
    plain = experiment.run(spec)["epochs"]
    weights = experiment.run(spec.but(lr_schedule="stop"))["epochs"]
    R = experiment.run(spec.but(decor_schedule="stop"))["epochs"]
    assert weights[0] == plain[0] == R[0]  # the first quarter
    assert weights[-1]["decor_loss"] == pytest.approx(plain[-1]["decor_loss"], rel=0.5)
    assert R[-1]["decor_loss"] > plain[-1]["decor_loss"]


def test_demean_is_the_centring_of_a_layer_whose_r_stands_still():
    """The slow reference: DecorLinear with center="batch" and R = I, in training and in evaluation."""
    x = torch.randn(3, 64, 5, generator=torch.Generator().manual_seed(0)) + 2
    ours, reference = networks.Demean(5), Decorrelation(5, center="batch")
    for batch in x:
        one, other = batch.clone().requires_grad_(), batch.clone().requires_grad_()
        torch.testing.assert_close(ours(one), reference(other))
        (ours(one) ** 3).sum().backward()
        (reference(other) ** 3).sum().backward()
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.eval()(x[0]), reference.eval()(x[0]))
    assert torch.equal(ours.eval()(x[0])[:1], ours.eval()(x[0][:1]))  # no batch mates
    runs = [
        Experiment(train_size=256, epochs=1, hidden=(8, 8), rule=None, normalisation="mean"),
        Experiment(
            train_size=256,
            epochs=1,
            hidden=(8, 8),
            rule="kappa",
            decor_lr=0.0,
            decorrelated="deeper",
            layer_options=(("center", "batch"),),
        ),
    ]
    a, b = (experiment.run(spec)["final"] for spec in runs)
    assert a["test_loss"] == pytest.approx(b["test_loss"], rel=1e-5)


def test_a_run_may_end_within_an_epoch():
    """A quarter of an epoch of 20 batches is their first five; rows fall on measurements and on the end."""
    spec = Experiment(train_size=20 * 64, hidden=(8,), rule=None, evaluate_every=0.5, measures="task")
    long, short = experiment.run(spec.but(epochs=2)), experiment.run(spec.but(epochs=1.25))
    assert [row["epoch"] for row in short["epochs"]] == [0.25, 0.5, 0.75, 1, 1.25]
    assert [("test_accuracy" in row) for row in short["epochs"]] == [False, True, False, True, True]
    assert [row["batches"] for row in short["epochs"]] == [5] * 5
    assert short["epochs"][3]["test_loss"] == long["epochs"][1]["test_loss"]
    only_end = experiment.run(spec.but(epochs=1.25, evaluate_every=0))
    assert only_end["final"]["test_loss"] == short["final"]["test_loss"]
    assert [("test_accuracy" in row) for row in only_end["epochs"]] == [False] * 4 + [True]
    whole = [
        row["epoch"] for row in experiment.run(spec.but(epochs=2.5, evaluate_every=1))["epochs"] if "test_loss" in row
    ]
    assert whole == [1, 2, 2.5]


@pytest.mark.parametrize("epochs", [-1, 0.3, 1 / 128, float("inf")])
def test_epochs_that_end_between_parts_are_refused(epochs):
    with pytest.raises(ValueError, match=r"epochs is .*multiple of 1/64"):
        Experiment(epochs=epochs)


def test_validation_images_give_the_curve_and_the_test_set_is_read_once(monkeypatch):
    """Every pass over the held-out images is watched; the test set's only one is after the last step."""
    spec = Experiment(
        train_size=640, epochs=2, hidden=(8,), rule=None, split="both", evaluate_every=0.5, measures="task"
    )
    *_, z, u = experiment.kept_arrays(spec)
    read, plain = [], measuring.on_task

    def watched(model, name, images, targets):
        read.append((name, images is z and targets is u))
        return plain(model, name, images, targets)

    monkeypatch.setattr(measuring, "on_task", watched)
    found = experiment.run(spec)
    assert read == [("validation", False)] * 4 + [("train", False), ("test", True)]
    assert [sorted(name for name in row if name.endswith("accuracy")) for row in found["epochs"]] == [
        *[["validation_accuracy"]] * 3,
        ["test_accuracy", "train_accuracy", "validation_accuracy"],
    ]
    # Where else the two come from: runs of the same training, measured on one of the sets.
    validated = experiment.run(spec.but(split="validation"))
    assert [row["validation_loss"] for row in found["epochs"]] == [row["test_loss"] for row in validated["epochs"]]
    images, *_ = experiment.arrays(spec.but(split="test"))
    assert torch.equal(images, experiment.arrays(spec)[0])  # of a small training set; else the 10,000 are left out
    assert found["final"]["test_loss"] == experiment.run(spec.but(split="test"))["final"]["test_loss"]
    assert torch.equal(u, experiment.arrays(spec.but(split="test"))[3])


def test_a_cosine_by_steps_is_the_formula_whatever_is_measured():
    spec = Experiment(
        train_size=640, epochs=1.5, hidden=(8,), rule=None, lr=0.1, optimizer="sgd", lr_schedule="cosine_steps"
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert experiment.schedule(optimizer, "cosine_steps", spec, batches=10) is None
    rates = []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    expected = [0.05 * (1 + math.cos(math.pi * k / 15)) for k in range(15)]
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    seldom, often = (experiment.run(spec.but(evaluate_every=e))["final"]["test_loss"] for e in (0, 0.25))
    assert seldom == often
    assert seldom != experiment.run(spec.but(lr_schedule=None))["final"]["test_loss"]
    with pytest.raises(ValueError, match="decor_schedule is 'cosine_steps'"):
        Experiment(decor_schedule="cosine_steps")


def test_steps_of_r_that_preserve_the_function_are_the_only_change_of_it():
    """With weights that stand still, a network computes after training what it computed before."""
    spec = Experiment(train_size=200, subset_seed=42, hidden=(8,), rule="kappa", lr=0.0, decor_lr=1e-3, epochs=1)
    spec = spec.but(optimizer="sgd", scaling="standard", evaluate_every=1)
    untrained = experiment.run(spec.but(decor_lr=0.0))
    kept, plain = (experiment.run(spec.but(preserve_function=on)) for on in (True, False))
    assert kept["final"]["test_loss"] == pytest.approx(untrained["final"]["test_loss"], rel=1e-5)
    assert abs(plain["final"]["test_loss"] - untrained["final"]["test_loss"]) > 1e-3
    assert abs(kept["final"]["correlation"] - untrained["final"]["correlation"]) > 0.01  # R has moved


def test_an_experiment_without_it_is_the_question_that_it_was():
    asked = identity.spec_dict(Experiment())
    assert "preserve_function" not in asked
    assert identity.spec_dict(Experiment(preserve_function=True)) == asked | {"preserve_function": True}


@pytest.mark.parametrize(("model", "most"), [("mlp", 2000), ("convnet", 250)])
def test_outputs_in_parts_are_those_of_all_at_once(model, most):
    spec = Experiment(model=model, hidden=(16,), normalisation="batch", decorrelated="deeper")
    network = networks.build(spec, 784).eval()
    x, sizes = torch.randn(600 if model == "convnet" else 4100, 784), []
    with torch.no_grad():
        whole = network(x)
    network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    torch.testing.assert_close(measuring.outputs(network, x), whole, rtol=1e-5, atol=1e-5)
    assert max(sizes) == most
    assert sum(sizes) == len(x)
