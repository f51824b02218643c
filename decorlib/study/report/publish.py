"""Putting what a notebook made into the results: all of it or, after an error, nothing; by one process at a time."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from decorlib._io.files import SUFFIX, remove_stale_partials
from decorlib.study.evidence.records import dumps, write_atomic
from decorlib.study.report import freshness
from decorlib.study.report.freshness import Job

FOLDERS = ("notebooks", "figures", "records")  # of the results; the report is built from them


@contextlib.contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Wait until no other process works on the results of this clone; the system ends the wait if that one dies."""
    (root / "build").mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "build" / "reproduce.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("another `make reproduce` or `make report` runs in this clone; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def files_of(job: Job) -> list[Path]:
    """Everything in the results that belongs to one notebook."""
    number = job.number
    patterns = (f"notebooks/{number}_*.ipynb", f"figures/{number}_*", f"records/{number}.*")
    return [path for pattern in patterns for path in sorted(job.results.glob(pattern))]


def publish(job: Job, staging: Path) -> None:
    """Copy one notebook's files into the results and remove what its former run left; the notebook goes last.

    All are copied under temporary names first, so a disk that is full or may not be written to shows before a single
    file is replaced. The executed notebook holds the sums of the other files: a process killed among the renames
    leaves a set that ``make report`` refuses and the next ``make reproduce`` makes whole.

    Raises:
        OSError: full disk, read-only folder; what was in the results is untouched.
    """
    results = job.results
    for folder in FOLDERS:
        remove_stale_partials(results / folder, older_than=0.0)  # of a process that was killed; the lock is ours
    new = sorted(path for path in staging.rglob("*") if path.is_file() and path.suffix != SUFFIX)
    new.sort(key=lambda path: path.suffix == ".ipynb")
    waiting = []
    try:
        for path in new:
            target = results / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}{SUFFIX}")
            waiting.append((partial, target))
            with open(partial, "wb") as file:
                file.write(path.read_bytes())
                file.flush()
                os.fsync(file.fileno())
        for partial, target in waiting:
            os.replace(partial, target)
    except BaseException:
        for partial, _ in waiting:
            with contextlib.suppress(OSError):
                partial.unlink()
        raise
    kept = {target for _, target in waiting}
    for path in files_of(job):
        if path not in kept:
            path.unlink()


def outputs(job: Job) -> dict[str, str]:
    """Hashes of what the results hold of one notebook."""
    return {path.relative_to(job.results).as_posix(): freshness.sha(path.read_bytes()) for path in files_of(job)}


# ------------------------------------------------------------------- runs that ended and are not in the results


def ended(job: Job, staging: Path) -> None:
    """Note that the run in `staging` is whole, and what it was made from."""
    content = {"folder": staging.name, "inputs": job.inputs, "files": freshness.digests(staging)}
    write_atomic(job.ended, dumps(content).encode())


def unpublished(job: Job) -> Path | None:
    """Folder of a whole run from the same inputs that did not get into the results: the disk was full, or it died."""
    try:
        content = json.loads(job.ended.read_text(encoding="utf-8"))
        folder = job.staging / Path(content["folder"]).name
        whole = content["inputs"] == job.inputs and content["files"] == freshness.digests(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if whole and content["files"] else None


def clear(job: Job) -> None:
    """Remove every folder of former runs of a notebook."""
    job.ended.unlink(missing_ok=True)
    for path in job.staging.glob(f"{job.number}*"):
        # A kernel whose parent was killed lives up to a second longer and may still write there.
        shutil.rmtree(path, ignore_errors=True)
