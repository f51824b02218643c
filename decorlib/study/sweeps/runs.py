"""Runs: a frozen specification -> one plain record; many of them cached, resumable, parallel.

``sweep(specs, function)`` is all that a notebook needs. A run that was ever finished is read from the cache; the
others are computed and stored as they end, so a sweep that is killed goes on where it was when it is called again.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from typing import Any
from warnings import warn

from decorlib._io.files import remove_stale_partials
from decorlib._io.plain import canonical
from decorlib.study.sweeps import engines, identity
from decorlib.study.sweeps.cache import Cache, CacheWarning
from decorlib.study.sweeps.identity import spec_dict
from decorlib.study.sweeps.progress import progress
from decorlib.study.sweeps.source import Code, importable


@dataclasses.dataclass(frozen=True)
class RunError:
    """A run of a sweep that ended in an error."""

    spec: Any
    error: str
    traceback: str


class SweepFailed(RuntimeError):
    """Some runs of a sweep ended in an error, after all others were finished and stored.

    Args:
        errors: one :class:`RunError` per failed run.
        records: as :func:`sweep` would have returned them, None for those that failed.
    """

    def __init__(self, errors: Sequence[RunError], records: Sequence[dict | None]):
        self.errors, self.records = list(errors), list(records)
        lines = [f"  {error.spec}: {error.error}" for error in self.errors[:10]]
        if len(self.errors) > 10:
            lines.append(f"  and {len(self.errors) - 10} more, in .errors")
        super().__init__(
            f"{len(self.errors)} of {len(self.records)} runs failed; the others are finished and cached (they are in "
            ".records), and the next call computes only these:\n" + "\n".join(lines) + "\n" + self.errors[0].traceback
        )


def default_jobs() -> int:
    """The environment variable DECORLIB_JOBS, else the cores that this process may use."""
    text = os.environ.get("DECORLIB_JOBS")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"DECORLIB_JOBS = {text!r} must be a whole number of at least 1")
    return int(text)


def sweep(
    specs: Iterable[Any],
    function: Callable[[Any], dict],
    *,
    jobs: int | None = None,
    engine: str | None = None,
    cache: str | os.PathLike | None = None,
    desc: str = "",
    order: Callable[[Any], Any] | None = None,
) -> list[dict]:
    """Compute ``function(spec)`` for every specification; return the records in the order of the specifications.

    A run is computed once: its record is stored under a hash of the specification, the function's name, the code that
    it can reach by import statements (comments and docstrings aside), torch's version, the kind of device, and what
    modules say that they read besides (``DEPENDS_ON``, such as checksums of data;
    ``decorlib.study.sweeps.identity.environment``). Each runs with one thread, deterministic algorithms and seeded
    generators, so all engines give the same bits; seeds belong into the specification. A run that fails does not stop
    the others.

    Args:
        specs: instances of a frozen dataclass with plain fields; equal ones are computed once.
        function: specification -> dict of plain values, at the top level of a module. NaN is refused: a run that
            diverged says so in a status.
        jobs: processes of the local engine; where all code is of this package they wait for the next sweep
            (:mod:`decorlib.study.sweeps.workers`). Default: DECORLIB_JOBS, else the number of cores.
        engine: "local", "serial" (in this process, for a debugger), or the address "tcp://host:port" of a Dask
            scheduler whose workers have the same code installed. Default: DECORLIB_ENGINE, else "local".
        cache: folder of stored runs. Default: DECORLIB_CACHE, else the user's cache folder.
        desc: text before the progress bar. Default: "".
        order: specification -> what runs are sorted by before they begin: long ones first, so that at the end no
            process waits for long; those that read the same data in a row. Default: None, as they are listed.

    Raises:
        SweepFailed: after everything else was done, where runs failed; holds their errors and all records.
        TypeError: a specification or the function is not what it must be; nothing was run.
        RuntimeError: the engine could not start, or its code is not the code that is here.

    Example::

        >>> records = sweep([Spec(seed=s) for s in range(5)], experiments.train_mlp, desc="five seeds")
    """
    specs = list(specs)
    engine = engine or os.environ.get("DECORLIB_ENGINE") or "local"
    jobs = default_jobs() if jobs is None else jobs
    if not (type(jobs) is int and jobs > 0):
        raise ValueError(f"jobs = {jobs!r} must be a whole number of at least 1")
    if engine not in ("serial", "local") and not engine.startswith(("tcp://", "tls://")):
        raise ValueError(f'engine = {engine!r} must be "local", "serial" or "tcp://host:port"')
    home = importable(function)
    for spec in specs:
        spec_dict(spec)
    kinds = {type(spec): importable(type(spec)) for spec in specs}
    if len(kinds) > 1:
        raise TypeError("the specifications of one sweep must be of one class; call sweep once for each")
    if not specs:
        return []

    with ExitStack() as stack:
        code = Code.of(home, *kinds.values())
        if engine in ("serial", "local"):
            environment = identity.environment(function, type(specs[0]), code)
        else:
            client = stack.enter_context(engines.cluster(engine))
            environment = engines.cluster_environment(client, function, type(specs[0]))
        settled = identity.settle(specs, function, environment)
        store = Cache(cache)
        different = {run.key: run for run in settled}  # equal specifications are one run
        found = {key: store.get(run) for key, run in different.items()}
        waiting = [run for key, run in different.items() if found[key] is None]
        if order is not None:
            waiting.sort(key=lambda run: order(run.spec))
        errors: dict[str, RunError] = {}
        unsaved: list[OSError] = []
        if waiting:
            remove_stale_partials(store.folder)
            if engine == "serial":
                _refuse_edited(code)
                outcomes = engines.serial(waiting)
            elif engine == "local":
                outcomes = engines.local(waiting, jobs, keep=code.ours)
            else:
                outcomes = engines.on_cluster(waiting, client)
            stack.enter_context(closing(outcomes))  # ends the workers at once where this ends early
            if len(waiting) < len(different):
                desc = f"{desc} ({len(different) - len(waiting)} of {len(different)} are there already)".strip()
            for outcome in progress(outcomes, total=len(waiting), desc=desc):
                run = different[outcome.key]
                if outcome.error:
                    errors[run.key] = RunError(run.spec, outcome.error, outcome.traceback)
                    continue
                found[run.key] = json.loads(outcome.record)
                try:
                    store.put(run, found[run.key])
                except OSError as failure:
                    unsaved.append(failure)
    if unsaved:
        warn(
            f"{len(unsaved)} finished runs could not be stored in {store.folder} ({unsaved[0]}); their records are "
            "here but will be computed again next time: free space there, or set DECORLIB_CACHE",
            CacheWarning,
            stacklevel=2,
        )
    # Each its own copy, also where specifications are equal: whoever changes one must not change the other.
    records = [None if found[run.key] is None else json.loads(canonical(found[run.key])) for run in settled]
    if errors:
        raise SweepFailed([errors[key] for key in different if key in errors], records)
    return records


def _refuse_edited(code: Code) -> None:
    # The third run of the 2024 notebook went wrong like this: edited code was reloaded halfway, and nothing said so.
    if names := code.edited:
        raise RuntimeError(
            f"{', '.join(names)} was edited since this process imported it, so what runs here is not what is on the "
            'disk; restart the kernel, or use engine="local", whose processes import it anew'
        )
