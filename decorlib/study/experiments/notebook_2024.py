"""The 2024 notebook's three runs: its data, its models, its printed tables, and the mistake that its third run was."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib import resources

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from decorlib.data import datasets, inputs
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear
from decorlib.layers.step import PreparedStep
from decorlib.training.call_2024 import decor_train
from decorlib.training.history import History

RUNS = ("run1_decorrelation_only", "run2_single_layer", "run3_two_layer")


def printed(run: str) -> list[dict]:
    """What the 2024 notebook prints for one of :data:`RUNS`: a row per epoch; None where the document is cut off."""
    tables = json.loads((resources.files("decorlib") / "data" / "notebook_2024_tables.json").read_text())
    return tables["runs"][run]


def loader(seed: int = 42) -> DataLoader:
    """Seed every generator as the first cell does, and load its 1,000 digits: 15 batches of 64, background at -2.

    The batches are the bits that the 2024 notebook's transforms and its per-sample loader give, from memory.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the 2024 notebook's own generator: another one would give other digits
    images, targets = _digits()
    chosen = torch.as_tensor(np.random.permutation(len(images))[:1000])  # noqa: NPY002
    return inputs.loader(inputs.scale(images[chosen], "notebook"), targets[chosen], batch_size=64)


def images(count: int = 1000, subset_seed: int = 42) -> Tensor:
    """Its digits as published, in the order that it draws them: (N, 28, 28) uint8."""
    digits, _ = _digits()
    return digits[np.random.RandomState(subset_seed).permutation(len(digits))[:count]]


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    return inputs.tensors(datasets.mnist(train=True))


def model(run: str, variance: float = 1.0) -> nn.Module:
    """A fresh model of one of :data:`RUNS`."""
    if run == RUNS[0]:
        return Decorrelation(784, bias=False, variance=variance)
    if run == RUNS[1]:
        return nn.Sequential(DecorLinear(784, 100, variance=variance))
    if run == RUNS[2]:
        return nn.Sequential(
            DecorLinear(784, 100, bias=True, variance=variance),
            nn.LeakyReLU(),
            DecorLinear(100, 10, bias=True, variance=variance),
        )
    raise ValueError(f"run is {run!r}; the 2024 notebook has {', '.join(RUNS)}")


def train(run: str, batches: DataLoader, *, allow_no_op: bool = False, verbose: bool = False) -> History:
    """One execution of one of the 2024 notebook's training cells, drawing from torch's global generator as it does."""
    rates = {RUNS[0]: (1e-4, 10), RUNS[1]: (1e-4, 10), RUNS[2]: (1e-5, 20)}
    lr, epochs = rates[run]
    lossfun = (lambda y, t: torch.zeros(1, requires_grad=True)) if run == RUNS[0] else nn.CrossEntropyLoss()
    args = argparse.Namespace(lr=lr, eta=1e-5, epochs=epochs)
    return decor_train(args, model(run), lossfun, batches, "cpu", verbose=verbose, allow_no_op=allow_no_op)


def readings(seed: int = 42) -> dict[str, dict[str, History]]:
    """The whole document under four readings of its third run, by name: run -> history.

    The cell of run 3 was executed once or twice (In [4] is followed by In [6]), and its last execution updated R or
    not. An earlier execution updates R; what it leaves behind is 20 epochs of random draws. What readings share is run
    once: they continue from the same state of torch's generator.
    """
    batches = loader(seed)
    shared = {run: train(run, batches) for run in RUNS[:2]}
    found = {}
    for times in ("once", "twice"):
        state = torch.get_rng_state()
        for updated, stopped in (("R updated", False), ("R never updated", True)):
            torch.set_rng_state(state)
            with hot_reloaded() if stopped else nullcontext():
                found[f"executed {times}, {updated}"] = shared | {RUNS[2]: train(RUNS[2], batches, allow_no_op=stopped)}
    return found


@contextmanager
def hot_reloaded() -> Iterator[None]:
    """What went wrong in run 3, replayed: an edited ``update`` that reports its loss and sets no gradient."""
    commit = PreparedStep.commit_gradient

    def edited(self):
        loss = commit(self)
        self.layer.weight.grad = None
        return loss

    PreparedStep.commit_gradient = edited
    try:
        yield
    finally:
        PreparedStep.commit_gradient = commit


def beside_printed(history: History, run: str) -> pd.DataFrame:
    """One row per epoch of a run: both columns as printed and as ours, their relative difference; NaN: not printed."""
    rows = []
    for ours, theirs in zip(history.as_printed_in_2024(), printed(run), strict=False):
        row = {"epoch": theirs["epoch"]}
        for key, name in (("bp_loss", "task loss"), ("decorrelation_loss", "decorrelation loss")):
            value = math.nan if theirs.get(key) is None else theirs[key]
            difference = abs(ours[key] - value) / max(abs(value), 1e-6)
            row |= {f"{name}, printed": value, f"{name}, ours": ours[key], f"{name}, difference": difference}
        rows.append(row)
    return pd.DataFrame(rows)


def largest_difference(history: History, run: str, key: str) -> float:
    """Largest relative difference between a history, in the accounting of 2024, and every value that was printed."""
    pairs = [
        (ours[key], theirs[key])
        for ours, theirs in zip(history.as_printed_in_2024(), printed(run), strict=False)
        if theirs.get(key) is not None
    ]
    return max(abs(ours - theirs) / max(abs(theirs), 1e-6) for ours, theirs in pairs)


def last_digits(document: dict[str, History]) -> tuple[int, int, float]:
    """Values that were printed, how many of them differ in the last digit, and the largest relative difference."""
    pairs = [
        (ours[key], theirs[key])
        for run, history in document.items()
        for ours, theirs in zip(history.as_printed_in_2024(), printed(run), strict=False)
        for key in ("bp_loss", "decorrelation_loss")
        if theirs.get(key) is not None
    ]
    differ = sum(round(ours, 6) != theirs for ours, theirs in pairs)
    return len(pairs), differ, max(abs(ours - theirs) / max(abs(theirs), 1e-6) for ours, theirs in pairs)
