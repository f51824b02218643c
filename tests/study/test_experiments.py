"""Experiments: what runs share, they share rightly."""

from dataclasses import fields

import torch

from decorlib.study import experiments
from decorlib.study.experiments import Experiment


def test_runs_that_read_the_same_share_their_arrays():
    """The very same tensors, with the values of arrays; a field that they depend on gives others."""
    spec = Experiment(train_size=64, seed=3)
    kept = experiments.kept_arrays(spec)
    assert all(a is b for a, b in zip(kept, experiments.kept_arrays(spec.but(lr=0.5, epochs=7)), strict=True))
    for changes in ({}, {"demean_inputs": True}, {"seed": 4}, {"split": "validation"}, {"scaling": "unit"}):
        other = spec.but(**changes)
        assert all(map(torch.equal, experiments.kept_arrays(other), experiments.arrays(other)))


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
        experiments.arrays(spec)
        seen |= read
    assert seen & {f.name for f in fields(Experiment)} == set(experiments.PREPARATION)


def test_a_run_does_not_write_on_the_arrays_it_was_given():
    spec = Experiment(train_size=128, epochs=1, hidden=(8,), layer_options=(("center", "batch"),))
    before = [part.clone() for part in experiments.kept_arrays(spec)]
    experiments.run(spec)
    assert all(map(torch.equal, experiments.kept_arrays(spec), before))
