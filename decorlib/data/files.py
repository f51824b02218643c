"""Files of data on the disk: which are there whole, a warning for damaged ones, and unpacking all or nothing."""

import gzip
import hashlib
import lzma
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from decorlib._io.files import remove_stale_partials, written_atomically


class DataUnavailable(RuntimeError):
    """A data set is not here, or cannot be put where it is needed; the message says the way out."""


class DataDamaged(DataUnavailable):
    """A data file is there but is not what was published; the message says which, and the way out."""


class DataWarning(UserWarning):
    """A damaged unpacked file was found and replaced by a good one."""


def digest(path: Path, algorithm: str) -> str | None:
    """Checksum of a file, None where there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except FileNotFoundError:
        return None


def missing_files(raw: Path, expected: Mapping[str, str]) -> list[str]:
    """Names that are not in `raw` with the expected md5; a warning for each that is there but damaged."""
    missing = []
    for name, md5 in expected.items():
        # Hashing all 55 MB takes a tenth of a second, so it is done each time: no date shows a flipped bit.
        found = digest(raw / name, "md5")
        if found != md5:
            missing.append(name)
            if found is not None:
                warnings.warn(
                    f"{raw / name} is damaged (md5 {found}, expected {md5}); it is replaced",
                    DataWarning,
                    stacklevel=4,
                )
    return missing


def unpack(raw: Path, expected: Mapping[str, str], open_packed: Callable[[str], Any], source: str) -> None:
    """Bring `raw` to hold every expected file, from `open_packed(name)`; a no-op where it already does."""
    missing = missing_files(raw, expected)
    if missing:
        remove_stale_partials(raw)
    for name in missing:
        try:
            with open_packed(name) as packed, written_atomically(raw / name) as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise DataDamaged(f"{source} holds a damaged {name}: {error}; reinstall it") from error
        except OSError as error:
            raise DataUnavailable(
                f"{raw / name} could not be written ({error}); free 60 MB there, or name another folder "
                "in the environment variable DECORLIB_DATA"
            ) from error
        found = digest(raw / name, "md5")
        if found != expected[name]:
            raise DataDamaged(
                f"{raw / name}, just unpacked from {source}, has md5 {found}, expected {expected[name]}; "
                f"reinstall {source}, or name another folder in the environment variable DECORLIB_DATA"
            )
