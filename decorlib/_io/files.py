"""Writing a file so that nobody ever sees half of it."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".partial"  # what an unfinished file ends with; nothing in the project reads a name with this ending


@contextlib.contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the name `path` only when the block ends without an error.

    The temporary name is unique, so two processes that write the same file at once do not meet; whoever is
    last wins, with a whole file. The bytes are on the disk before the name is (fsync), so a power cut
    cannot leave an empty file under the final name. A process that is killed leaves at most one
    `*.partial`: see :func:`remove_stale_partials`.

    Args:
        path: the final name; its folder is created.

    Raises:
        OSError: from the system (full disk, read-only folder), with a note that names `path` and the way out; the
            file that was there before is untouched.

    Example::

        >>> with written_atomically("results/a.json") as file:
        ...     file.write(b"{}")
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; give it what open() would have given
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        error.add_note(
            f"{path} was not written, and what was there before is untouched: free space, make {path.parent} writable, "
            "or choose another place, and do it again"
        )
        raise


def _umask() -> int:
    # The only way to read it is to set it; the few instructions in between are this process's own.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove_stale_partials(folder: str | os.PathLike, *, older_than: float = 3600.0) -> int:
    """Delete `*.partial` files under `folder` that a killed process left; returns how many.

    Args:
        folder: searched with its subfolders; need not exist.
        older_than: age in seconds. A younger one may belong to a process that is still writing it. Default:
            one hour.
    """
    removed = 0
    for path in Path(folder).rglob(f".*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may have finished or deleted it just now
            if time.time() - path.stat().st_mtime > older_than:
                path.unlink()
                removed += 1
    return removed
