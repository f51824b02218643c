"""Finished runs on the disk: one JSON file each, whole or not there, checked when it is read."""

import json
import os
import warnings
from pathlib import Path

import platformdirs

from decorlib._io.files import written_atomically
from decorlib._io.plain import canonical
from decorlib.study.sweeps.identity import Run, sha256


class CacheWarning(UserWarning):
    """Something is wrong with the cache of runs; no result is, but something is computed that need not be."""


def default_folder() -> Path:
    """The environment variable DECORLIB_CACHE, else "runs" in the user's cache folder."""
    chosen = os.environ.get("DECORLIB_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("decorlib")) / "runs"


class Cache:
    """Entries ``<folder>/<first 2 hex>/<key>.json`` that hold a record, the specification it answers, and a checksum.

    Reading one executes nothing (JSON, no pickle). A file that differs in a single bit from what was written, or
    that answers another question, is not used: a warning names it, and the run is computed again.

    Args:
        folder: where. Default: :func:`default_folder`.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = default_folder() if folder is None else Path(folder).expanduser()

    def path(self, key: str) -> Path:
        """File of an entry."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, run: Run) -> dict | None:
        """The record of a run, or None where there is none that can be trusted."""
        path = self.path(run.key)
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            return self._distrust(path, str(error))
        try:
            entry = json.loads(text)
            total = entry.pop("sha256")
            # The text is compared too: 1e5 and 1E5 differ in one bit and are the same number.
            whole = total == sha256(canonical(entry)) and text == canonical({**entry, "sha256": total}) + "\n"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            return self._distrust(path, "its checksum does not fit its content")
        if entry["key"] != run.key or entry["spec"] != json.loads(canonical(run.question["spec"])):
            return self._distrust(path, "it belongs to another run")
        return entry["record"]

    def put(self, run: Run, record: dict) -> None:
        """Store the record of a run, with the question that it answers and what else it depends on.

        Raises:
            OSError: full disk, read-only folder.
        """
        entry = {"key": run.key, **run.question, "environment": run.environment, "record": record}
        entry["sha256"] = sha256(canonical(entry))
        with written_atomically(self.path(run.key)) as file:
            file.write((canonical(entry) + "\n").encode())

    @staticmethod
    def _distrust(path: Path, why: str) -> None:
        warnings.warn(f"{path} is damaged ({why}); the run is computed again", CacheWarning, stacklevel=4)
