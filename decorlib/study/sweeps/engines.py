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

from decorlib._io.plain import canonical, kind_of, plain
from decorlib.study.sweeps import workers
from decorlib.study.sweeps.identity import Run, environment

CLUSTER_TIMEOUT = 20  # seconds to wait for a scheduler, and for its first worker


class Outcome(NamedTuple):
    """How a run ended: either the record as canonical JSON, or an error in one line and the full traceback."""

    key: str
    record: str | None = None
    error: str | None = None
    traceback: str = ""


# A process does not import code anew, so it asks once what it is that it runs.
_environment_once = functools.cache(environment)


def _refuse(value: Any, where: str) -> None:
    if type(value) is float:
        raise ValueError(f"{where} is {value}; a record says None and a status, such as 'diverged'")
    raise TypeError(
        f"{where} is a {kind_of(value)}; a record holds numbers, strings, None, and lists and dicts of these: use "
        ".item(), .tolist() or float()"
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


def execute(run: Run) -> Outcome:
    """Do one run; an error of its function is an outcome, not an exception."""
    try:
        # Not all exceptions survive the way between processes; their text does.
        with pinned(run.seed):
            record = run.function(run.spec)
        if not isinstance(record, dict):
            raise TypeError(f"{run.function.__qualname__} returned a {type(record).__name__}; it must return a dict")
        text = canonical(plain(record, "record", _refuse))
    except (Exception, SystemExit) as error:
        line = traceback.format_exception_only(error)[-1].strip()
        return Outcome(run.key, error=line, traceback=traceback.format_exc())
    if moved := run.moved(_environment_once(run.function, type(run.spec))):
        return Outcome(
            run.key,
            error=f"it ran with other {' and '.join(moved)} than the sweep began with, so its record is not kept; was "
            "a file edited since this process started? Restart the kernel and call again",
        )
    return Outcome(run.key, text)


# ---------------------------------------------------------------------------------------------- this process


def serial(runs: Iterable[Run]) -> Iterator[Outcome]:
    """One after the other, here: for a debugger."""
    for run in runs:
        yield execute(run)


# ------------------------------------------------------------------------------------------- local processes


def local(runs: Iterable[Run], jobs: int, *, keep: bool) -> Iterator[Outcome]:
    """In `jobs` processes on this machine, one thread each (:mod:`decorlib.study.sweeps.workers`).

    When a worker dies (a segmentation fault, the system's out-of-memory killer) the standard pool gives up all its
    runs. Here those that were running then are tried again, each in a process of its own: the one that kills that
    too is named, and all others are finished.

    Args:
        runs: what to do.
        jobs: processes.
        keep: let them rest afterwards for the next sweep, see :func:`decorlib.study.sweeps.workers.pool`.
    """
    waiting = deque(runs)
    while waiting:
        suspects: list[Run] = []
        with workers.pool(min(jobs, len(waiting)), keep=keep) as pool:
            running: dict[Any, Run] = {}
            ended: list[Outcome] = []
            broken = False
            while (waiting or running) and not broken:
                try:
                    # Never more than can run, so that those that run when a worker dies are few.
                    while waiting and len(running) < jobs:
                        running[pool.submit(execute, waiting[0])] = waiting[0]
                        waiting.popleft()
                except BrokenProcessPool:
                    broken = True
                yield from ended  # only now: no worker waits while these are stored
                ended = []
                done, _ = wait(running, return_when=ALL_COMPLETED if broken else FIRST_COMPLETED)
                for future in done:
                    run = running.pop(future)
                    try:
                        ended.append(future.result())
                    except BrokenProcessPool:
                        broken = True
                        suspects.append(run)
            yield from ended
            suspects += running.values()
        for run in suspects:
            yield _alone(run)


def _alone(run: Run) -> Outcome:
    with workers.pool(1, keep=False) as pool:
        try:
            return pool.submit(execute, run).result()
        except BrokenProcessPool:
            return Outcome(run.key, error="its worker process died (twice): a crash, or killed for want of memory")


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
        raise RuntimeError('engine "tcp://..." needs Dask: pip install distributed') from error
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
                raise RuntimeError(f"worker {worker} has other {name} than this machine; install the same there")
        if there != reference:
            raise RuntimeError(f"workers {first} and {worker} differ ({reference} and {there}); use equal ones")
    return reference


def on_cluster(runs: Iterable[Run], client: Any) -> Iterator[Outcome]:
    """On the workers of a Dask cluster; Dask moves the runs of a worker that dies to another."""
    executor = client.get_executor(pure=False)
    futures = {executor.submit(execute, run): run for run in runs}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except (Exception, CancelledError) as error:  # KilledWorker, a lost scheduler
                line = traceback.format_exception_only(error)[-1].strip()
                yield Outcome(futures[future].key, error=line, traceback=traceback.format_exc())
    finally:
        for future in futures:
            future.cancel()
        executor.shutdown(wait=False)
