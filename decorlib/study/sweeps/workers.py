"""Processes that compute runs beside this one, kept between sweeps while what they imported is what is on the disk.

Starting one takes seconds (torch, torchvision, the images), as long as many a run. So the workers of a sweep wait for
the next, in a notebook most often a cell away, unless anything has changed that they would not notice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from decorlib.study.sweeps import source

# Read by OpenMP, MKL and cuBLAS when torch is imported, so they are set before a worker starts.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
REST = 300.0  # seconds that workers wait for another sweep; they hold memory meanwhile, but no core


@dataclass(eq=False)
class _Workers:
    executor: ProcessPoolExecutor
    count: int
    world: tuple  # what they saw when they started
    timer: threading.Timer | None = None


_lock = threading.Lock()
_resting: _Workers | None = None


@contextlib.contextmanager
def pool(jobs: int, *, keep: bool) -> Iterator[ProcessPoolExecutor]:
    """At least ``jobs`` started workers; gone at once where an exception (Ctrl-C) ends this.

    Args:
        jobs: how many.
        keep: take those that rest, if files, environment and folders are what they were, and let them rest afterwards
            for :data:`REST` seconds. Only where all code is of this package: other files are not watched.

    Raises:
        RuntimeError: they could not start.
    """
    world = _world()
    workers = _take(jobs, world) if keep else None
    with _environment():
        workers = workers or _start(jobs, world)
        try:
            yield workers.executor
        except BaseException:
            _end_at_once(workers)
            raise
    if keep:
        _rest(workers)
    else:
        workers.executor.shutdown(wait=True, cancel_futures=True)


def end() -> None:
    """Send away the workers that rest, if any: their memory is wanted, or they should start anew."""
    _take(sys.maxsize, ())


def _world() -> tuple:
    """All that workers read at their start and would not read again."""
    files = []
    for path in source.PACKAGE.rglob("*.py"):
        found = path.stat()
        files.append((str(path), found.st_mtime_ns, found.st_size))
    return tuple(sorted(files)), tuple(sorted(os.environ.items())), os.getcwd(), tuple(sys.path)


def _take(jobs: int, world: tuple) -> _Workers | None:
    """Those that rest, if they are enough and still up to date; if not, they are sent away."""
    global _resting
    with _lock:
        workers, _resting = _resting, None
    if workers is None:
        return None
    workers.timer.cancel()
    if workers.count >= jobs and workers.world == world:
        return workers
    workers.executor.shutdown(wait=True)
    return None


def _rest(workers: _Workers) -> None:
    global _resting
    try:
        workers.executor.submit(os.getpid)  # refused where one has died
    except BrokenProcessPool:
        workers.executor.shutdown(wait=True)
        return
    workers.timer = threading.Timer(REST, _send_away, [workers])
    workers.timer.daemon = True
    workers.timer.start()
    with _lock:
        before, _resting = _resting, workers
    if before is not None:  # of a sweep in another thread
        before.timer.cancel()
        before.executor.shutdown(wait=True)


def _send_away(workers: _Workers) -> None:
    """At the end of their rest, unless they were called meanwhile."""
    global _resting
    with _lock:
        if _resting is not workers:
            return
        _resting = None
    workers.executor.shutdown(wait=True)


def _start(jobs: int, world: tuple) -> _Workers:
    # spawn: a forked copy of a process in which torch has started threads may hang.
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_leave_with_parent)
    workers = _Workers(executor, jobs, world)
    try:
        for future in [executor.submit(os.getpid) for _ in range(jobs)]:
            future.result()
    except BrokenProcessPool as error:
        executor.shutdown(wait=True, cancel_futures=True)
        raise RuntimeError(
            "the worker processes could not start; a script must call sweep() under "
            'if __name__ == "__main__": (workers import it), else see the error above, or use engine="serial"'
        ) from error
    except BaseException:
        _end_at_once(workers)
        raise
    return workers


def _end_at_once(workers: _Workers) -> None:
    processes = list((workers.executor._processes or {}).values())  # Python 3.14 has terminate_workers()
    workers.executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _leave_with_parent() -> None:
    """Initialiser of a worker: when the parent dies, however suddenly, the worker leaves too.

    A worker that outlives its parent would hold its memory, on a GPU also the card's, and nobody would read its result.
    Ctrl-C, which a terminal sends to all of them and Jupyter to a kernel that it shuts down, is the parent's to answer:
    a resting worker would print where it was waiting.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="leave-with-parent").start()


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
