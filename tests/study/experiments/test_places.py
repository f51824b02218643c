"""Rates chosen in several places at once: the same tries, choices and tables as in one place after the other."""

import math

import pandas as pd
import pytest

from decorlib.study.experiments import side_by_side, tuning
from decorlib.study.experiments.experiment import Experiment, turn
from decorlib.study.experiments.halving import halve
from decorlib.study.experiments.places import choose_in_places

BASE = Experiment(train_size=6400, epochs=8, hidden=(8,))
THREE = [1e-3, 2e-3, 4e-3]
#: Places whose best rates lie inside, beyond an edge, and far beyond it; the last has a field that others do not have.
ARMS = {
    "near": {"plain": BASE.but(rule=None), "R": BASE},
    "wide": {"R": BASE.but(hidden=(32,)), "plain": BASE.but(rule=None, hidden=(32,))},
    "noisy": {"R": BASE.but(jitter=0.1)},
}
RATES = {
    "near": {"plain": {"lr": [1e-3 * 2**i for i in range(9)]}, "R": {"lr": THREE, "decor_lr": THREE}},
    "wide": {"R": {"lr": THREE, "decor_lr": THREE}, "plain": {"lr": [1e-4 * 2**i for i in range(9)]}},
    "noisy": {"R": {"lr": THREE, "shrinkage": [0.1, 0.2, 0.3]}},
}
BEST = {(8,): 2e-3, (32,): 3e-2}


def accuracy(spec):
    off = (math.log2(spec.lr / BEST[spec.hidden]) - 0.3 * math.log2(8 / spec.epochs)) ** 2
    off += 0 if spec.rule is None else math.log2(spec.decor_lr / 1.5e-3) ** 2 + spec.shrinkage
    return 0.9 - 0.01 * off - 0.001 * spec.seed / 100


@pytest.fixture
def asked(monkeypatch):
    """A sweep that trains nothing, and what it was asked for: a list for each call."""
    calls = []

    def sweep(specs, **options):
        calls.append(list(specs))
        finals = [{"test_accuracy": accuracy(spec)} for spec in specs]
        return [{"status": "finished", "diverged_at": None, "final": final} for final in finals]

    monkeypatch.setattr(side_by_side, "sweep", sweep)
    return calls


@pytest.mark.parametrize("alone", [False, True])
def test_at_once_is_one_after_the_other(asked, alone):
    options = {"rounds": (1 / 4, 1), "alone": alone, "move": 5, "quiet": True}
    found = choose_in_places(halve, ARMS, RATES, [100, 101], **options)
    at_once, specs = len(asked), {spec for call in asked for spec in call}
    assert list(found) == list(ARMS)
    asked.clear()
    for place, own in ARMS.items():
        best, tries = halve(own, RATES[place], [100, 101], **options)
        assert found[place][0] == best
        pd.testing.assert_frame_equal(found[place][1], tries, check_like=True)
        assert found[place][1]["arm"].tolist() == tries["arm"].tolist()
    assert specs == {spec for call in asked for spec in call}  # the same runs
    assert found["wide"][1]["moved"].max() > 1  # of which some come in later rounds
    assert at_once < len(asked)  # in fewer sweeps, each of which ends with a wait


def test_options_reach_the_choice():
    def choose(arms, rates, seeds, *options, **named):
        assert (list(seeds), options, named) == ([7], ("accuracy",), {"keep": 1 / 3})
        rows = [{"arm": arm, "lr": 1.0, "decor_lr": 2.0} for arm in arms]
        return {arm: (arm, rates[arm]) for arm in arms}, pd.DataFrame(rows)

    rates = {"a": {"x": {"lr": [1.0]}}, "b": {"x": {"decor_lr": [2.0]}}}
    found = choose_in_places(choose, {"a": {"x": BASE}, "b": {"x": BASE}}, rates, [7], "accuracy", keep=1 / 3)
    assert found["a"][0] == {"x": (("a", "x"), {"lr": [1.0]})}
    assert {place: list(tries.columns) for place, (_, tries) in found.items()} == {
        "a": ["arm", "lr"],
        "b": ["arm", "decor_lr"],
    }
    assert found["b"][1]["arm"].tolist() == ["x"]


def test_a_row_of_runs_reads_one_set_of_arrays_and_begins_with_the_larger():
    seeds = [BASE.but(seed=seed, train_size=size, lr=lr) for lr in (1, 2) for size in (1000, 0) for seed in (0, 1)]
    order = sorted(seeds, key=turn)
    assert [(spec.train_size, spec.seed) for spec in order] == [
        *[(0, 0), (0, 0), (0, 1), (0, 1)],
        *[(1000, 0), (1000, 0), (1000, 1), (1000, 1)],
    ]


def test_unequal_numbers_of_tries_are_refused_over_all_places():
    rates = RATES | {"noisy": {"R": {"lr": THREE}}}
    with pytest.raises(ValueError, match="unequal numbers of tries"):
        choose_in_places(tuning.choose, ARMS, rates, [100], "test_accuracy")
