"""The examples in the docstrings of the public names run, and print what they say."""

import doctest
import inspect

import pytest
import torch
import torchvision
from torch import nn

import decorlib
from decorlib.rules.moments import Moments

NAMES = [name for name in decorlib.__all__ if inspect.getdoc(getattr(decorlib, name)) and name != "RULES"]


SEEN = {"decor_step", "decor_update"}  # begin after a forward and a backward
OPTIMIZERS = {"weights": "adam", "R": "sgd"}


def surroundings(name: str) -> dict:
    """What an example may take for granted: a model with R and data, its optimizers, and a batch that it has seen."""
    torch.manual_seed(0)
    model = nn.Sequential(decorlib.DecorLinear(6, 8), nn.ReLU(), decorlib.DecorLinear(8, 3))
    x = torch.randn(16, 6)
    t = torch.randint(3, (16,))
    if name in SEEN:
        model(x).sum().backward()
    adam = torch.optim.Adam(decorlib.bp_parameters(model), lr=1e-3)
    public = {name: getattr(decorlib, name) for name in decorlib.__all__}
    libraries = {"torch": torch, "nn": nn, "torchvision": torchvision, "Moments": Moments}
    names = {"model": model, "x": x, "t": t, "loader": [(x, t)] * 2, "loss_fn": nn.functional.cross_entropy}
    state = {"adam": adam, "sgd": decorlib.DecorSGD(model, lr=1e-4), "generator": torch.Generator()}
    tokens = {"tokens": torch.randn(2, 4, 6), "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])}
    return public | libraries | names | state | tokens


def examples() -> list[doctest.DocTest]:
    found = []
    for name in NAMES:
        value = getattr(decorlib, name)
        own = getattr(value, "__name__", name) == name  # not a second name of another
        found += [test for test in doctest.DocTestFinder().find(value, name) if own and test.examples]
    return found


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name)
@pytest.mark.filterwarnings("ignore:center='running' subtracts the mean")  # of an untrained network: see the message
def test_the_example_runs_and_prints_what_it_says(test, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test.globs = surroundings(test.name)
    if test.name == "load_checkpoint":
        decorlib.save_checkpoint(
            "run.ckpt", test.globs["model"], optimizers={name: test.globs[of] for name, of in OPTIMIZERS.items()}
        )
    report: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.DocTestRunner(optionflags=options).run(test, out=report.append, clear_globs=False)
    assert results.attempted == len(test.examples)
    assert results.failed == 0, "".join(report)


def test_most_names_have_one():
    assert {"DecorLinear", "DecorSGD", "decorrelate", "train", "Decorrelation"} <= {test.name for test in examples()}
    assert len(examples()) >= 15


def test_an_example_that_prints_something_else_is_found():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, None)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
