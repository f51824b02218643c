"""Experiments: what runs share, they share rightly."""

from dataclasses import fields

import pytest
import torch

from decorlib import Decorrelation
from decorlib.study.experiments import experiment, networks
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
