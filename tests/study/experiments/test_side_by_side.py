"""Experiments side by side against the same experiments one by one."""

import pytest
import torch

from decorlib.study.experiments import experiment, side_by_side
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.sweeps.runs import SweepFailed

SMALL = Experiment(train_size=300, hidden=(20,), epochs=2, rule="kappa", rule_options=(("kappa", 0.5),), decor_lr=2e-4)
KINDS = {
    "2024 rule": {"rule": "notebook", "rule_options": (("variance", 1.0),), "decor_lr": 1e-5},
    "input's variance": {"rule": "notebook", "rule_options": (("variance", "input"),), "decor_lr": 1e-5},
    "kappa": {},
    "plain": {"rule": None, "rule_options": ()},
    "plain, BatchNorm": {"rule": None, "rule_options": (), "normalisation": "batch", "optimizer": "sgd", "lr": 0.1},
    "batch centring": {"layer_options": (("center", "batch"), ("momentum", None))},
    "running centring": {"layer_options": (("center", "running"), ("momentum", 0.3))},
    "seldom": {"layer_options": (("update_every", 3),)},
    "momentum": {"optimizer": "momentum", "lr": 1e-3},
    "R alone": {"model": "decorrelation", "measures": "all"},
    "first layer": {"decorrelated": "first", "hidden": (20, 10)},
    "schedule": {"decor_schedule": "cosine", "decor_lr": 2e-4},
    "bound": {"max_step": 0.5, "decor_lr": 0.5},
    "exact whitening": {"rule": "exact", "rule_options": (("shrinkage", 0.5),), "decor_lr": 0.2},
    "demeaned": {"demean_inputs": True, "evaluate_every": 1},
    "plain, demeaned": {"rule": None, "rule_options": (), "normalisation": "mean", "optimizer": "sgd", "lr": 0.1},
    "weights annealed": {"lr_schedule": "cosine", "decor_schedule": "stop", "epochs": 4},
    "measured within epochs": {"evaluate_every": 0.5},
}


def but(spec, **changes):
    return [spec.but(seed=seed, **{k: v * (1 + seed) for k, v in changes.items()}) for seed in range(3)]


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert {k: ours[k] for k in ("status", "diverged_at", "cause")} == {
        k: theirs[k] for k in ("status", "diverged_at", "cause")
    }
    assert len(ours["epochs"]) == len(theirs["epochs"])
    for row, other in zip([*ours["epochs"], ours["final"]], [*theirs["epochs"], theirs["final"]], strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert len(ours["timing"]["seconds"]) == len(theirs["timing"]["seconds"])


@pytest.mark.parametrize("name", KINDS)
def test_the_records_are_those_of_separate_runs(name):
    spec = SMALL.but(**KINDS[name])
    rates = {} if spec.rule is None else {"decor_lr": spec.decor_lr}
    specs = but(spec, lr=spec.lr, **rates)
    alone = [experiment.run(spec) for spec in specs]
    for ours, theirs in zip(side_by_side.run_together(specs), alone, strict=True):
        assert_same(ours, theirs)
    assert {record["status"] for record in alone} == {"finished"}
    assert len({record["epochs"][-1]["loss"] or record["epochs"][-1]["decor_loss"] for record in alone}) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["kappa", "2024 rule", "plain"])
def test_the_records_of_a_GPU_are_those_of_separate_runs(name):
    specs = but(SMALL.but(**KINDS[name]))
    for ours, spec in zip(side_by_side.run_together(specs, "cuda"), specs, strict=True):
        theirs = experiment.run(spec)
        assert ours["final"]["test_loss"] == pytest.approx(theirs["final"]["test_loss"], rel=1e-2)


def test_one_that_diverges_leaves_the_others_as_they_are():
    specs = [SMALL, SMALL.but(seed=1, lr=1e30, optimizer="adam"), SMALL.but(seed=2)]
    alone = [experiment.run(spec) for spec in specs]
    assert [record["status"] for record in alone] == ["finished", "diverged", "finished"]
    for ours, theirs in zip(side_by_side.run_together(specs), alone, strict=True):
        assert_same(ours, theirs)


def test_an_R_that_rounding_holds_still_is_the_error_of_a_separate_run():
    specs = [SMALL, SMALL.but(seed=1, decor_lr=1e-60)]
    with pytest.raises(RuntimeError, match="left every R unchanged"):
        side_by_side.run_together(specs)
    still = [SMALL.but(decor_lr=0.0), SMALL.but(seed=1)]
    assert side_by_side.run_together(still)[0]["status"] == "finished"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "convnet"},
        {"pixels": "alive"},
        {"decor_optimizer": "adam"},
        {"preserve_function": True},
        {"layer_options": (("fraction", 0.5),)},
        {"normalisation": "batch"},
        {"rule": "adaptive_gain", "rule_options": ()},
    ],
)
def test_what_has_to_run_alone(changes):
    spec = SMALL.but(**changes)
    assert side_by_side.kind(SMALL) is not None
    assert side_by_side.kind(spec) is None
    with pytest.raises(ValueError, match="run them one by one"):
        side_by_side.run_together([spec, spec.but(seed=1)])


def test_different_kinds_do_not_run_together():
    assert side_by_side.kind(SMALL) == side_by_side.kind(SMALL.but(seed=3, lr=0.1, decor_lr=0.2))
    with pytest.raises(ValueError, match="not of one kind"):
        side_by_side.run_together([SMALL, SMALL.but(epochs=3)])


def test_a_sweep_side_by_side(tmp_path, monkeypatch):
    pair = [SMALL, SMALL.but(seed=1)]
    specs = [*pair, SMALL.but(epochs=1), SMALL.but(pixels="alive"), SMALL]
    options = {"engine": "serial", "cache": tmp_path / "cache"}
    one_by_one = side_by_side.sweep(specs, **options)
    entries = len(list((tmp_path / "cache").rglob("*.json*")))
    together = side_by_side.sweep(specs, device="cpu", **options)
    assert len(list((tmp_path / "cache").rglob("*.json*"))) == entries + 1  # a pair; the others were there
    for ours, theirs in zip(together, one_by_one, strict=True):
        assert_same(ours, theirs)
    assert together[0]["final"]["loss"] == together[-1]["final"]["loss"]
    monkeypatch.setattr(side_by_side, "run_together", lambda *_: pytest.fail("was computed again"))
    assert side_by_side.sweep(specs, device="cpu", **options) == together


def test_an_error_of_one_is_not_that_of_its_group(tmp_path):
    wrong, other_kind = SMALL.but(seed=2, decor_lr=1e-60), SMALL.but(epochs=1)
    specs = [SMALL, wrong, SMALL.but(seed=1), other_kind]
    options = {"engine": "serial", "cache": tmp_path / "cache"}
    with pytest.warns(RuntimeWarning, match="one by one"), pytest.raises(SweepFailed) as failed:
        side_by_side.sweep(specs, device="cpu", **options)
    assert [error.spec for error in failed.value.errors] == [wrong]
    assert "left every R unchanged" in failed.value.errors[0].error
    assert [record and record["status"] for record in failed.value.records] == [
        "finished",
        None,
        "finished",
        "finished",
    ]


def test_one_alone_is_a_separate_run():
    assert_same(*side_by_side.run_together([SMALL]), experiment.run(SMALL))


def test_a_group_comes_back_from_its_plain_form():
    specs = but(SMALL.but(layer_options=(("center", "batch"),)), lr=1e-3)
    assert side_by_side.Together.of(specs, "cpu").specs() == specs


def test_with_a_gpu_sweeps_go_side_by_side_without_being_asked(monkeypatch):
    asked = []

    def sweep(specs, function, **_):
        asked.append((specs, function))
        beside = function is side_by_side.run_group
        return [{"records": [{"at": s} for s in spec.specs()]} if beside else {"at": spec} for spec in specs]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(side_by_side.runs, "sweep", sweep)
    specs = [SMALL, SMALL.but(model="convnet"), SMALL.but(seed=1)]
    assert [record["at"] for record in side_by_side.sweep(specs)] == specs
    (groups, function), (single, alone) = asked
    assert [group.device for group in groups] == ["cuda"]
    assert (function, single, alone) == (side_by_side.run_group, [specs[1]], experiment.run)
    assert [len(group.specs()) for group in groups] == [2]
