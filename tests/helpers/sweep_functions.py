"""Functions that the tests of sweeps run, here because workers find them by name.

As a script it is a small sweep to be killed: ``python sweep_functions.py CACHE RESULT``.
"""

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RUNS = 24  # in the sweep that is killed: enough to be under way when a loaded machine gets to the kill


@dataclass(frozen=True)
class Spec:
    """One run."""

    seed: int
    rate: float = 0.1
    kind: str = "fine"
    folder: str = ""
    widths: tuple = (4, 3)


@dataclass(frozen=True)
class Boxed:
    """A specification that may hold anything; sweep must refuse what is not plain."""

    value: object


@dataclass
class Thawed:
    """A specification that can be changed."""

    seed: int


def train(spec: Spec) -> dict:
    """A training run of a few milliseconds whose last bit depends on threads, seeds and order of sums."""
    import torch

    note(spec)
    torch.manual_seed(spec.seed)
    x, y = torch.randn(512, 64), torch.randn(512, 1)
    w = torch.zeros(64, 1, requires_grad=True)
    losses = []
    for _ in range(20):
        loss = (x @ w - y).square().mean()
        (g,) = torch.autograd.grad(loss, w)
        w.data -= spec.rate * g
        losses.append(loss.item())
    return {"seed": spec.seed, "losses": losses, "threads": torch.get_num_threads(), "status": "finished"}


def count_digits(spec: Spec) -> dict:
    """Can reach the images, whose checksums therefore belong to the key of every run of this module."""
    from decorlib.data import datasets

    note(spec)
    return {"digits": len(datasets.mnist(train=True))}


def unseeded(spec: Spec) -> dict:
    """Draws from every global generator without seeding one."""
    import numpy as np
    import torch

    return {"draws": [torch.rand(()).item(), float(np.random.rand()), random.random()]}  # noqa: NPY002


def slow(spec: Spec) -> dict:
    """As train, a tenth of a second later."""
    time.sleep(0.1)
    return train(spec)


def trouble(spec: Spec) -> dict:
    """Goes wrong in the way that the specification names."""
    note(spec)
    if spec.kind == "raise":
        raise ArithmeticError(f"seed {spec.seed} is unlucky")
    if spec.kind == "unpicklable":
        raise Awkward(1, 2)
    if spec.kind == "leave":
        sys.exit(3)
    if spec.kind == "crash":
        os._exit(1)
    if spec.kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.kind == "crash once":
        flag = Path(spec.folder, "crashed")
        if not flag.exists():
            flag.touch()
            os._exit(1)
    if spec.kind == "nan":
        return {"history": [{"loss": 1.0}, {"loss": float("nan")}]}
    if spec.kind == "tensor":
        import torch

        return {"accuracy": torch.tensor(0.5)}
    if spec.kind == "number":
        import numpy as np

        return {"accuracy": np.float64(0.5)}
    if spec.kind == "key":
        return {"by width": {4: 0.5}}
    if spec.kind == "list":
        return [1, 2]
    return {"seed": spec.seed}


class Awkward(Exception):
    """An exception that cannot be unpickled: its arguments are not what its constructor wants."""

    def __init__(self, a, b):
        super().__init__(f"awkward {a} {b}")


def note(spec: Spec) -> None:
    """Leave a trace of having run, so that tests can count."""
    if spec.folder:
        with open(Path(spec.folder) / "ran", "a") as file:
            file.write(f"{spec.seed} {os.getpid()}\n")


def in_folder(folder: Path, *seeds: int, **fields) -> list[Spec]:
    """Specifications whose runs leave a trace in the folder."""
    return [Spec(seed=s, folder=str(folder), **fields) for s in seeds]


def main(cache: str, result: str) -> None:
    """The sweep that is killed."""
    import json

    from decorlib.study.sweeps.runs import sweep

    records = sweep([Spec(seed=s) for s in range(RUNS)], SWEEP, jobs=2, cache=cache)
    Path(result).write_text(json.dumps(records))


if __name__ == "__main__":
    import sweep_functions  # by its name, not __main__, so that workers find what is in it

    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    SWEEP = sweep_functions.slow
    Spec = sweep_functions.Spec
    main(*sys.argv[1:])
