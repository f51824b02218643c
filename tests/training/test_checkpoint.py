"""A run that goes on from a checkpoint is the run that was never interrupted, to the bit; nothing damaged is loaded."""

import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import decorlib
from decorlib import DecorConv2d, DecorLinear, History, bp_parameters, decor_modules, decor_parameters
from decorlib.data.inputs import loader
from decorlib.training import checkpoint
from decorlib.training.checkpoint import CheckpointDamaged, load_checkpoint, read_checkpoint, save_checkpoint
from decorlib.training.train import train

BATCHES = 5  # an epoch; 5 is no multiple of the layers' update_every


class Run:
    """A model with everything that has a state, its optimizers, schedulers and generators, and the history so far."""

    def __init__(self, kind="sgd", seed=0):
        torch.manual_seed(seed)
        sampler = torch.Generator().manual_seed(seed)
        exact = decorlib.ExactWhitening(momentum=0.2, shrinkage=0.1)
        options = {"rule": decorlib.KappaRule(kappa=0.3), "momentum": None}
        self.model = nn.Sequential(
            DecorConv2d(1, 3, 3, decor_bias=True, center="running", fraction=0.3, generator=sampler, **options),
            nn.BatchNorm2d(3),
            nn.Flatten(),
            nn.Dropout(0.2),  # draws from the global generator
            DecorLinear(3 * 16, 8, update_every=3, rule=exact),
            nn.LeakyReLU(),
            DecorLinear(8, 4, center="batch", update_every=2, fraction=0.5, decor_bias=True, **options),
        )
        R = list(decor_parameters(self.model))
        make = {
            "sgd": lambda: torch.optim.SGD(R, lr=0.01),
            "momentum": lambda: torch.optim.SGD(R, lr=0.01, momentum=0.9),
            "adam": lambda: torch.optim.Adam(R, lr=0.001),
        }
        self.optimizers = {"weights": torch.optim.Adam(bp_parameters(self.model), lr=0.01), "R": make[kind]()}
        self.schedulers = {
            "weights": torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers["weights"], 6),
            "R": torch.optim.lr_scheduler.MultiStepLR(self.optimizers["R"], [1, 3], gamma=0.5),
        }
        self.generators = {"loader": torch.Generator().manual_seed(seed)}
        self.history = History()
        data = torch.Generator().manual_seed(9)
        x, t = torch.randn(8 * BATCHES, 1, 6, 6, generator=data), torch.randint(4, (8 * BATCHES,), generator=data)
        self.batches = loader(x, t, batch_size=8, generator=self.generators["loader"])

    @property
    def parts(self):
        return {"optimizers": self.optimizers, "schedulers": self.schedulers, "generators": self.generators}

    def train(self, epochs):
        seen = train(
            self.model,
            nn.functional.cross_entropy,
            self.batches,
            epochs=epochs,
            optimizer=self.optimizers["weights"],
            decor_optimizer=self.optimizers["R"],
            scheduler=self.schedulers["weights"],
            decor_scheduler=self.schedulers["R"],
        )
        assert seen.status == "finished"
        self.history.epochs += seen.epochs
        return self

    def save(self, path):
        save_checkpoint(path, self.model, history=self.history, **self.parts)
        return path

    def load(self, path):
        self.history = load_checkpoint(path, self.model, **self.parts)
        return self

    def numbers(self):
        # Without what a clock says, and without the numbers of the epochs: train() counts from one each time.
        return [(epoch.batches, epoch.loss, epoch.decor_losses) for epoch in self.history]

    def state(self):
        """Everything, as one flat dict of tensors and plain values."""
        kept = {
            "model": self.model.state_dict(),
            "calls": [int(layer.num_updates) for _, layer in decor_modules(self.model)],
        }
        kept |= {
            kind: {n: o.state_dict() for n, o in getattr(self, kind).items()} for kind in ("optimizers", "schedulers")
        }
        kept["generators"] = [g.get_state() for g in (*self.generators.values(), self.model[0].decorrelation.generator)]
        kept["global"] = [torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2]]  # noqa: NPY002
        return dict(flat(kept))


def flat(tree, where=""):
    if isinstance(tree, dict | list | tuple):
        for key, branch in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from flat(branch, f"{where}/{key}")
    else:
        yield where, tree.clone() if isinstance(tree, torch.Tensor) else tree


def differences(one, two):
    assert one.keys() == two.keys()
    same = {
        name: torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        for name, value in one.items()
    }
    return [name for name, equal in same.items() if not equal]


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
def test_four_epochs_are_two_and_two_to_the_bit(kind, tmp_path):
    with torch.random.fork_rng():
        straight = Run(kind).train(2)
        path = straight.save(tmp_path / "run.ckpt")
        straight.train(2)
        expected = straight.state()

        resumed = Run(kind, seed=1)  # other weights, other draws: all of it must come from the file
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002 (as above)
        resumed.load(path).train(2)
        assert differences(expected, resumed.state()) == []
    assert resumed.numbers() == straight.numbers()
    assert len(resumed.history) == 4
    assert not torch.equal(resumed.model[0].decorrelation.weight, torch.eye(9))
    assert not torch.equal(resumed.model[4].decorrelation.weight, torch.eye(48))


@pytest.mark.parametrize(
    ("part", "differs"),
    [
        ("model", "/model/0.weight"),
        ("optimizers", "/optimizers/weights"),
        ("generators", "/generators/0"),
        ("samplers", "/generators/1"),
        ("global generators", "/model/0.weight"),
    ],
)
def test_each_part_of_the_file_matters(part, differs, tmp_path, monkeypatch):
    """Left out of the file's content, each part leads to another run: the test above would notice."""
    with torch.random.fork_rng():
        straight = Run().train(1)
        path = straight.save(tmp_path / "run.ckpt")
        straight.train(1)
        resumed = Run(seed=1)
        own = decorlib.training.checkpoint._content(resumed.model, *resumed.parts.values(), None)[part]
        true = read_checkpoint(path)
        monkeypatch.setattr(decorlib.training.checkpoint, "read_checkpoint", lambda path: {**true, part: own})
        resumed.load(path).train(1)
        found = differences(straight.state(), resumed.state())
    assert any(name.startswith(differs) for name in found), found


def test_global_generators_come_back():
    """Without load_checkpoint around it: beartype, which checks calls in tests, draws from Python's generator."""
    checkpoint, before = decorlib.training.checkpoint, random.getstate()
    with torch.random.fork_rng():
        for seed in (5, 6):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (as above)
            random.seed(seed)
            if seed == 5:
                states = checkpoint._global_states()
                first = torch.rand(1).item(), np.random.random(), random.random()  # noqa: NPY002
        checkpoint._set_global_states(states)
        assert (torch.rand(1).item(), np.random.random(), random.random()) == first  # noqa: NPY002
    random.setstate(before)


def test_the_history_comes_back_as_it_was(tmp_path):
    run = Run()
    history = decorlib.History(
        [decorlib.Epoch(1, 0.1, 5, 1 / 3, {"0": 2 / 3}, {"accuracy": 0.5})], "diverged", "why", 2
    )
    save_checkpoint(tmp_path / "a", run.model, history=history)
    assert load_checkpoint(tmp_path / "a", Run(seed=1).model) == history
    save_checkpoint(tmp_path / "b", run.model)
    assert load_checkpoint(tmp_path / "b", Run(seed=1).model) is None


# ---------------------------------------------------------------------------------------------- damage and mismatch


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = Run().train(1)
    return run.save(tmp_path_factory.mktemp("saved") / "run.ckpt").read_bytes()


def refused(path, message):
    """Loading raises, and leaves model, optimizers, schedulers and generators as they were."""
    run = Run(seed=1)
    before = run.state()
    with pytest.raises(CheckpointDamaged, match=message) as caught:
        run.load(path)
    assert str(path) in str(caught.value)
    assert "go on from an older checkpoint" in str(caught.value)
    assert differences(before, run.state()) == []


@pytest.mark.parametrize("length", [0, 1, 60, 100, 1000, -1])
def test_a_file_cut_short_is_refused_by_name(length, saved, tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(saved[:length])
    refused(path, "damaged")


def test_a_flipped_bit_anywhere_is_refused(saved, tmp_path):
    path, start = tmp_path / "run.ckpt", saved.index(b"\n")
    positions = [*range(start + 1), *random.Random(0).sample(range(start, len(saved)), 200)]
    for position in positions:
        flipped = bytearray(saved)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointDamaged, match=r"run\.ckpt (is|has)"):
            read_checkpoint(path)
    path.write_bytes(saved)
    read_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        load_checkpoint(tmp_path / "gone.ckpt", Run().model)


def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_changed(saved, tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_bytes(saved)
    run = Run(seed=1)
    before = run.state()
    wider = nn.Sequential(DecorLinear(6, 8))
    other = Run(seed=1)
    other.model[6].decorrelation.rule = decorlib.KappaRule(kappa=0.7)
    resting = Run(seed=1)
    resting.model[6].decorrelation.learning = False
    for load, message in [
        (lambda: load_checkpoint(path, run.model), r"holds optimizers \['R', 'weights'\], given are \[\]"),
        (lambda: load_checkpoint(path, wider, **run.parts), r"layers with a generator \['0\.decorrelation'\]"),
        (lambda: load_checkpoint(path, run.model[:-1], **run.parts), r"another model: \['6\.bias', "),
        (lambda: other.load(path), r"layer '6\.decorrelation' was .*kappa=0\.3.*kappa=0\.7.*read_checkpoint"),
        (lambda: resting.load(path), r"layer '6\.decorrelation' was .*here it is .*learning=False.*read_checkpoint"),
    ]:
        with pytest.raises(ValueError, match=message):
            load()
    swapped = {**run.parts, "optimizers": {"R": run.optimizers["weights"], "weights": run.optimizers["R"]}}
    with pytest.raises(ValueError, match=r"run\.ckpt does not fit: .*parameter group.*nothing was changed"):
        load_checkpoint(path, run.model, **swapped)
    assert differences(before, run.state()) == []


def test_a_checkpoint_of_version_0_1_names_its_rules_otherwise_and_is_taken(tmp_path, monkeypatch):
    def model(k):
        rules = decorlib.NotebookRule(variance=1.0), decorlib.TriangularRule(kappa=k)
        return nn.Sequential(*(decorlib.Decorrelation(4, rule=rule) for rule in rules))

    now = checkpoint._layers
    names = (("NotebookRule", "SeedRule"), ("08)), m", "08, _pairs=0.5)), m"))

    def then(model):
        found = now(model)
        return {"0": found["0"].replace(*names[0]), "1": found["1"].replace(*names[1])}

    monkeypatch.setattr(checkpoint, "_layers", then)
    assert "SeedRule(variance=1.0" in then(model(0.5))["0"]
    assert "_pairs=0.5)), m" in then(model(0.5))["1"]
    save_checkpoint(tmp_path / "old", model(0.5))
    monkeypatch.undo()
    load_checkpoint(tmp_path / "old", model(0.5))
    with pytest.raises(ValueError, match=r"layer '1' was .*kappa=0\.5.*kappa=0\.6"):
        load_checkpoint(tmp_path / "old", model(0.6))


def test_batches_that_were_accumulated_are_not_lost_without_a_word(tmp_path):
    model = nn.Sequential(DecorLinear(4, 2, accumulate=True))
    model(torch.randn(3, 4))
    with pytest.raises(RuntimeError, match=r"\['0\.decorrelation'\] have accumulated batches.*call update\(\) first"):
        save_checkpoint(tmp_path / "run.ckpt", model)
    model[0].update()
    save_checkpoint(tmp_path / "run.ckpt", model)


def test_what_could_not_be_loaded_safely_is_not_saved(tmp_path):
    run = Run()
    run.optimizers["R"].param_groups[0]["owner"] = run  # a class of its own
    with pytest.raises(ValueError, match=r"could not be loaded safely; nothing was written"):
        run.save(tmp_path / "run.ckpt")
    assert os.listdir(tmp_path) == []
