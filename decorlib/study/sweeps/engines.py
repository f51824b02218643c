"""Where runs are executed: in this process, in processes beside it, or on a Dask cluster.

Every engine calls :func:`execute` and yields what it returns as the runs end, so that a run cannot tell where it is.
"""

import contextlib
import functools
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, CancelledError, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import torch

from decorlib.data import datasets
from decorlib.study.sweeps import workers
from decorlib.study.sweeps.cache import canonical
from decorlib.study.sweeps.source import code_hash, importable, in_decorlib

CLUSTER_TIMEOUT = 20  # seconds to wait for a scheduler, and for its first worker


class Task(NamedTuple):
    """One run to be executed: the specification, its place in the sweep, the seed of anything that nobody seeded."""

    index: int
    spec: Any
    seed: int


class Outcome(NamedTuple):
    """How it ended: either the record as canonical JSON, or an error in one line and the full traceback."""

    index: int
    record: str | None = None
    error: str | None = None
    traceback: str = ""
    environment: dict | None = None


def environment(function: Callable, spec_type: type) -> dict:
    """What the result of a run depends on besides its specification, in this process."""
    return {
        "code": code_hash(importable(function), importable(spec_type)),
        "data": {name: datasets.checksum(name) for name in datasets.NAMES},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }


_environment_once = functools.cache(environment)  # a worker does not import code anew, so it asks once


def plain(value: Any, where: str) -> None:
    """Refuse what would not come back from JSON as it was.

    Raises:
        TypeError, ValueError: naming the place, the value and the way out.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}; keys must be strings, use str(key)")
            plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            plain(item, f"{where}[{i}]")
    elif type(value) is float:
        if not np.isfinite(value):
            raise ValueError(f"{where} is {value}; a record says None and a status, such as 'diverged'")
    elif value is not None and type(value) not in (str, int, bool):
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a record holds numbers, strings, "
            "None, and lists and dicts of these: use .item(), .tolist() or float()"
        )


@contextlib.contextmanager
def pinned(seed: int) -> Iterator[None]:
    """One thread, deterministic algorithms, float32, all generators seeded; as before afterwards.

    Then a run gives the same bits in every engine and in any order, also where its function forgot to seed.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (restored, not used)
    with torch.random.fork_rng():
        try:
            torch.set_num_threads(1)
            torch.set_default_dtype(torch.float32)
            # Some CUDA operations have no deterministic form; they only warn.
            torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 (the functions of others may draw from it)
            random.seed(seed)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def execute(function: Callable, task: Task) -> Outcome:
    """Run one task; an error of its function is an outcome, not an exception."""
    try:
        # Not all exceptions survive the way between processes; their text does.
        with pinned(task.seed):
            record = function(task.spec)
        if not isinstance(record, dict):
            raise TypeError(f"{function.__qualname__} returned a {type(record).__name__}; it must return a dict")
        plain(record, "record")
        text = canonical(record)
    except (Exception, SystemExit) as error:
        line = traceback.format_exception_only(error)[-1].strip()
        return Outcome(task.index, error=line, traceback=traceback.format_exc())
    return Outcome(task.index, text, environment=_environment_once(function, type(task.spec)))


# ---------------------------------------------------------------------------------------------- this process


def serial(function: Callable, tasks: Iterable[Task]) -> Iterator[Outcome]:
    """One after the other, here: for a debugger."""
    for task in tasks:
        yield execute(function, task)


# ------------------------------------------------------------------------------------------- local processes


def local(function: Callable, tasks: Iterable[Task], jobs: int) -> Iterator[Outcome]:
    """In `jobs` processes on this machine, one thread each (:mod:`decorlib.study.sweeps.workers`).

    When a worker dies (a segmentation fault, the system's out-of-memory killer) the standard pool gives up all its
    runs. Here those that were running then are tried again, each in a process of its own: the one that kills that
    too is named, and all others are finished.
    """
    waiting = deque(tasks)
    keep = bool(waiting) and in_decorlib(function, type(waiting[0].spec))
    while waiting:
        suspects: list[Task] = []
        with workers.pool(min(jobs, len(waiting)), keep=keep) as pool:
            running: dict[Any, Task] = {}
            broken = False
            while (waiting or running) and not broken:
                try:
                    # Never more than can run, so that those that run when a worker dies are few.
                    while waiting and len(running) < jobs:
                        running[pool.submit(execute, function, waiting[0])] = waiting[0]
                        waiting.popleft()
                except BrokenProcessPool:
                    broken = True
                done, _ = wait(running, return_when=ALL_COMPLETED if broken else FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        broken = True
                        suspects.append(task)
            suspects += running.values()
        for task in suspects:
            yield _alone(function, task)


def _alone(function: Callable, task: Task) -> Outcome:
    with workers.pool(1, keep=False) as pool:
        try:
            return pool.submit(execute, function, task).result()
        except BrokenProcessPool:
            return Outcome(task.index, error="its worker process died (twice): a crash, or killed for want of memory")


# -------------------------------------------------------------------------------------------------- a cluster


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """A client of the Dask scheduler at `address`, with at least one worker there.

    Raises:
        RuntimeError: no scheduler answers, it has no workers, or the package is missing.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise RuntimeError('engine "tcp://..." needs Dask: pip install "decorlib[cluster]"') from error
    try:
        client = Client(address, timeout=CLUSTER_TIMEOUT, set_as_default=False)
    except OSError as error:
        raise RuntimeError(
            f"no Dask scheduler answers at {address} ({error}); start one with `dask scheduler`, or use engine='local'"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CLUSTER_TIMEOUT)
        except TimeoutError as error:
            raise RuntimeError(f"{address} has no workers; start some with `dask worker {address}`") from error
        yield client


def cluster_environment(client: Any, function: Callable, spec_type: type) -> dict:
    """:func:`environment` of the cluster's workers, which must be one and the same.

    Raises:
        RuntimeError: workers differ from one another, or their code or data from what is here.
    """
    found = client.run(environment, function, spec_type)
    here = environment(function, spec_type)
    (first, reference), *_ = found.items()
    for worker, there in found.items():
        for name in ("code", "data"):
            if there[name] != here[name]:
                raise RuntimeError(f"worker {worker} has other {name} of decorlib than this machine; install the same")
        if there != reference:
            raise RuntimeError(f"workers {first} and {worker} differ ({reference} and {there}); use equal ones")
    return reference


def on_cluster(function: Callable, tasks: Iterable[Task], client: Any) -> Iterator[Outcome]:
    """On the workers of a Dask cluster; Dask moves the runs of a worker that dies to another."""
    executor = client.get_executor(pure=False)
    futures = {executor.submit(execute, function, task): task for task in tasks}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except (Exception, CancelledError) as error:  # KilledWorker, a lost scheduler
                line = traceback.format_exception_only(error)[-1].strip()
                yield Outcome(futures[future].index, error=line, traceback=traceback.format_exc())
    finally:
        for future in futures:
            future.cancel()
        executor.shutdown(wait=False)
