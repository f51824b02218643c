"""Matrix products at the processor's rate: what a run multiplies with on AMD's processors.

torch's wheels for x86-64 multiply by MKL, which asks who made a processor before it asks what that one can do: on
AMD's it stays with AVX2, also where there is AVX-512. On a Zen 5 core a product of float32 matrices takes twice as
long as it has to, and nearly all time of a run of the study is products. The question is a function of MKL's own,
which the dynamic linker finds by its name, so that a library that is loaded before torch can answer it. Kernels of
``make reproduce`` and ``make lab`` get that library; what they compute with is then what Intel's processors with
AVX-512 compute with. It is compiled, one line, where it is wanted; without a C compiler, on other systems and on other
processors everything is as torch was installed. ``DECORLIB_PRODUCTS=installed`` leaves it so anywhere.

``python -m decorlib._io.products`` prints what belongs into ``LD_PRELOAD``: nothing, or that library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs

from decorlib._io.files import written_atomically

CHOICE = "DECORLIB_PRODUCTS"
INSTALLED = "installed"
PRELOAD = "LD_PRELOAD"
AVX512 = "MKL with AVX-512"
# The second name tells in_use() that it is there: a process finds MKL's own answer by the first one, too.
SOURCE = "int mkl_serv_intel_cpu_true(void) { return 1; }\nint decorlib_products(void) { return 1; }\n"


def held_back(cpuinfo: str) -> bool:
    """Whether MKL leaves a processor's AVX-512 alone, by the text of ``/proc/cpuinfo``."""
    fields = dict.fromkeys(("vendor_id", "flags"), "")
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in fields:
            fields[name.strip()] = value
    return "AuthenticAMD" in fields["vendor_id"] and "avx512f" in fields["flags"].split()


def library(folder: str | os.PathLike | None = None) -> Path | None:
    """The library that answers, compiled once; None where there is no compiler that can.

    Args:
        folder: where it is kept. Default: "products" in the user's cache folder.
    """
    folder = Path(platformdirs.user_cache_dir("decorlib")) / "products" if folder is None else Path(folder)
    path = folder / f"libmkl-{hashlib.sha256(SOURCE.encode()).hexdigest()[:12]}.so"
    if any(c in str(path) for c in " :"):  # LD_PRELOAD is a list between these
        return None
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not path.exists():
        if shutil.which(compiler[0]) is None:
            return None
        try:
            with tempfile.TemporaryDirectory() as scratch:
                made = Path(scratch) / path.name
                command = [*compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(made)]
                subprocess.run(command, input=SOURCE, text=True, check=True, capture_output=True, timeout=60)
                with written_atomically(path) as file:
                    file.write(made.read_bytes())
        except (OSError, subprocess.SubprocessError):
            return None
    return path


def environment() -> dict[str, str]:
    """What a process must find in its environment before it starts, to multiply at the processor's rate.

    Raises:
        ValueError: DECORLIB_PRODUCTS is anything but "installed" or empty.
    """
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", INSTALLED):
        raise ValueError(f"{CHOICE} = {choice!r} must be {INSTALLED!r}, or not be set")
    if choice or platform.system() != "Linux" or in_use():
        return {}
    try:
        wanted = held_back(Path("/proc/cpuinfo").read_text())
    except OSError:
        return {}
    path = library() if wanted else None
    return {} if path is None else {PRELOAD: " ".join(filter(None, [str(path), os.environ.get(PRELOAD)]))}


def in_use() -> bool:
    """Whether this process was started with the library."""
    try:
        return hasattr(ctypes.CDLL(None), "decorlib_products")
    except (OSError, TypeError):  # TypeError: Windows, where a library needs a name
        return False


def said() -> dict[str, str]:
    """What to add to a description of this process: nothing where torch multiplies as it was installed."""
    return {"products": AVX512} if in_use() else {}


if __name__ == "__main__":
    try:
        sys.stdout.write(environment().get(PRELOAD, os.environ.get(PRELOAD, "")))
    except ValueError as error:
        sys.exit(str(error))
