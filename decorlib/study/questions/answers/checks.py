"""What would have saved the author: six checks of under a minute together, each a function that says what it found."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.models import decor_parameters
from decorlib.rules.moments import largest_eigenvalue, second_moment
from decorlib.study.experiments import notebook_2024
from decorlib.training import SilentNoOp, train
from decorlib.training.history import Epoch, History


def did_r_move() -> str:
    """Replay what went wrong in run 3 under a trainer that looks."""
    try:
        with notebook_2024.hot_reloaded():
            notebook_2024.train(notebook_2024.RUNS[2], notebook_2024.loader())
    except SilentNoOp as error:
        return f"{type(error).__name__} at {str(error).split(':')[0]}"
    return "R moved"


def is_a_mean_a_mean() -> str:
    """Report a constant loss of 1 over 15 batches in the 2024 notebook's accounting."""
    row = History([Epoch(1, 0.0, batches=15, loss=1.0, decor_losses={"": 1.0})]).as_printed_in_2024()[0]
    return f"a constant 1 is printed as {row['bp_loss']:.3f} and {row['decorrelation_loss']:.0f}"


def who_owns_r() -> str:
    """Give all parameters to the weights' optimizer, as the 2024 notebook does."""
    model = notebook_2024.model(notebook_2024.RUNS[1])
    try:
        train(
            model,
            nn.functional.cross_entropy,
            [],
            epochs=1,
            optimizer=torch.optim.Adam(model.parameters(), lr=1e-4),
            decor_optimizer=torch.optim.SGD(decor_parameters(model), lr=1e-5),
        )
    except ValueError as error:
        return f"{type(error).__name__}: {str(error).split(':')[0]}"
    return "R has one owner"


def is_the_rate_stable(rate: float = 1e-5) -> str:
    """The largest eigenvalue of the first batch, and the rate at which a step overshoots."""
    x, _ = next(iter(notebook_2024.loader()))
    X = second_moment(x.flatten(1))
    top = float(largest_eigenvalue(lambda v: X @ v, X.diagonal(), steps=20))
    return f"largest eigenvalue {top:.0f}: rates above {2 / top:.1e} overshoot, the 2024 notebook's is {rate:.0e}"


def how_much_is_one_mode() -> str:
    """The share of the first batch's loss that is one eigenvalue."""
    x, _ = next(iter(notebook_2024.loader()))
    X = second_moment(x.flatten(1).double())
    top = torch.linalg.eigvalsh(X)[-1]
    return f"{float(top**2 / X.square().sum()):.1%} of the squared second moment is one direction, the mean"


def is_the_target_reached(steps: int = 4000, lr: float = 2e-2) -> str:
    """The 2024 rule on white noise of variance 1 with target 1."""
    generator = torch.Generator().manual_seed(0)
    layer = Decorrelation(4, variance=1.0, dtype=torch.float64)
    for _ in range(steps):
        layer(torch.randn(256, 4, generator=generator, dtype=torch.float64))
        layer.step(lr)
    y = layer(torch.randn(100_000, 4, generator=generator, dtype=torch.float64))
    return f"variance {float(y.square().mean()):.2f} where the target is 1"


CHECKS: dict[str, tuple[str, Callable[[], str]]] = {
    "Did R move?": ("silent no-op", did_r_move),
    "Is a reported mean a mean?": ("accounting", is_a_mean_a_mean),
    "Who steps R?": ("optimizer", who_owns_r),
    "Is the rate below 2 / the largest eigenvalue?": ("scaling and bias", is_the_rate_stable),
    "How much of the loss is one mode?": ("zero pixels", how_much_is_one_mode),
    "Does the rule reach its target on noise?": ("variance", is_the_target_reached),
}


def run_all() -> list[dict]:
    """Every check with what it found and how long it took."""
    found = []
    for question, (hypothesis, check) in CHECKS.items():
        start = time.perf_counter()
        finding = check()
        seconds = time.perf_counter() - start
        found.append({"check": question, "about": hypothesis, "says": finding, "seconds": seconds})
    return found
