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

from decorlib._files import remove_stale_partials
from decorlib.study.sweeps import engines
from decorlib.study.sweeps.cache import Cache, CacheWarning, canonical, sha256
from decorlib.study.sweeps.engines import Outcome, Task
from decorlib.study.sweeps.progress import progress
from decorlib.study.sweeps.source import edited, importable

PLAIN = (int, float, str, bool, type(None))


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


def spec_dict(spec: Any) -> dict:
    """The fields of a specification, after checking that they are plain values.

    Args:
        spec: instance of a frozen dataclass with fields of int, float, str, bool, None, or tuples of these.

    Raises:
        TypeError, ValueError: naming the field, what it holds, and what it may hold.
    """
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type) or not spec.__dataclass_params__.frozen:
        raise TypeError(f"a specification must be an instance of a frozen dataclass, got {spec!r}")
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    for name, value in fields.items():
        _check_plain(value, f"{type(spec).__name__}.{name}")
    return fields


def _check_plain(value: Any, where: str) -> None:
    if type(value) is tuple:
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) not in PLAIN:
        advice = {"list": "use a tuple", "dict": "use a tuple of pairs, or more fields"}.get(
            type(value).__name__, "use .item(), a name, or more fields"
        )
        raise TypeError(
            f"{where} = {value!r} is a {type(value).__module__}.{type(value).__qualname__}; a specification holds "
            f"int, float, str, bool, None, or tuples of these: {advice}"
        )
    elif type(value) is float and value - value != 0:
        raise ValueError(f"{where} = {value} is not finite; use None or a string for a special case")


def key_of(spec: Any, function: Callable, environment: dict) -> str:
    """Name of a run in the cache: everything that its result depends on, hashed.

    Args:
        spec: the specification.
        function: what computes the record.
        environment: code, data, torch and device, from :func:`decorlib.study.sweeps.engines.environment`.
    """
    return sha256(canonical({"environment": environment, **_question(spec, function)}))


def _question(spec: Any, function: Callable) -> dict:
    names = {"function": function, "type": type(spec)}
    question = {kind: f"{thing.__module__}.{thing.__qualname__}" for kind, thing in names.items()}
    return {**question, "spec": spec_dict(spec)}


def _seed(spec: Any, function: Callable) -> int:
    """Of whatever the function does not seed itself; no code or version in it, so that their edits show as such."""
    return int(sha256(canonical(_question(spec, function)))[:8], 16)


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
) -> list[dict]:
    """Compute ``function(spec)`` for every specification; return the records in the order of the specifications.

    A run is computed once: its record is stored under a hash of the specification, the function's name, the code of
    decorlib that it may compute with (comments and docstrings aside), torch's version, the data's checksums and the
    kind of device. Each runs with one thread, deterministic algorithms and seeded generators, so all engines give
    the same bits; seeds belong into the specification. A run that fails does not stop the others.

    Args:
        specs: instances of a frozen dataclass with plain fields; equal ones are computed once.
        function: specification -> dict of plain values, at the top level of a module. NaN is refused: a run that
            diverged says so in a status.
        jobs: processes of the local engine; for functions of decorlib they wait for the next sweep
            (:mod:`decorlib.study.sweeps.workers`). Default: DECORLIB_JOBS, else the number of cores.
        engine: "local", "serial" (in this process, for a debugger), or the address "tcp://host:port" of a Dask
            scheduler whose workers have the same decorlib installed. Default: DECORLIB_ENGINE, else "local".
        cache: folder of stored runs. Default: DECORLIB_CACHE, else the user's cache folder.
        desc: text before the progress bar. Default: "".

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
    importable(function)
    for spec in specs:
        spec_dict(spec)
        importable(type(spec))
    if len({type(spec) for spec in specs}) > 1:
        raise TypeError("the specifications of one sweep must be of one class; call sweep once for each")
    if not specs:
        return []

    with ExitStack() as stack:
        if engine in ("serial", "local"):
            environment = engines.environment(function, type(specs[0]))
        else:
            client = stack.enter_context(engines.cluster(engine))
            environment = engines.cluster_environment(client, function, type(specs[0]))
        store = Cache(cache)
        keys = [key_of(spec, function, environment) for spec in specs]
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # equal specifications are one run
        found = {key: store.get(key, spec_dict(specs[i])) for key, i in first.items()}
        tasks = [Task(i, specs[i], _seed(specs[i], function)) for key, i in first.items() if found[key] is None]
        tasks.sort()
        errors: dict[str, RunError] = {}
        unsaved: list[OSError] = []
        if tasks:
            remove_stale_partials(store.folder)
            if engine == "serial":
                _refuse_stale_code(function, type(specs[0]))
                outcomes = engines.serial(function, tasks)
            elif engine == "local":
                outcomes = engines.local(function, tasks, jobs)
            else:
                outcomes = engines.on_cluster(function, tasks, client)
            stack.enter_context(closing(outcomes))  # ends the workers at once where this ends early
            if len(tasks) < len(first):
                desc = f"{desc} ({len(first) - len(tasks)} of {len(first)} are there already)".strip()
            for outcome in progress(outcomes, total=len(tasks), desc=desc):
                key, spec = keys[outcome.index], specs[outcome.index]
                error = outcome.error or _other_environment(outcome, environment)
                if error:
                    errors[key] = RunError(spec, error, outcome.traceback)
                    continue
                found[key] = json.loads(outcome.record)
                try:
                    store.put(key, **_question(spec, function), environment=environment, record=found[key])
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
    records = [None if found[key] is None else json.loads(canonical(found[key])) for key in keys]
    if errors:
        raise SweepFailed([errors[key] for key in dict.fromkeys(keys) if key in errors], records)
    return records


def _refuse_stale_code(function: Callable, spec_type: type) -> None:
    # The 2024 notebook's third run went wrong like this: edited code was reloaded halfway, and nothing said so.
    if names := edited(importable(function), importable(spec_type)):
        raise RuntimeError(
            f"{', '.join(names)} was edited since this process imported it, so what runs here is not what is on the "
            'disk; restart the kernel, or use engine="local", whose processes import it anew'
        )


def _other_environment(outcome: Outcome, environment: dict) -> str | None:
    different = [name for name, value in environment.items() if outcome.environment[name] != value]
    if not different:
        return None
    return (
        f"it ran with other {' and '.join(different)} than the sweep began with, so its record is not kept; was a "
        "file edited since this process started? Restart the kernel and call again"
    )
