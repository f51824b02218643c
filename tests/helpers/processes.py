"""Processes that a test starts, watches and kills."""

import os
import subprocess
import sys
import time
from pathlib import Path

from decorlib.study.sweeps import source


def run_script(script, *arguments, wait=True):
    """Run a script that finds decorlib and these helpers; with `wait` until it ends, else the process is returned."""
    path = os.pathsep.join([str(Path(__file__).parent), str(source.PACKAGE.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "DECORLIB_PROGRESS": "off"}
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if not wait:
        return process
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def children(pid: int) -> set[int]:
    """Processes that it started, and those that they started."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    direct = {int(child) for child in found.read_text().split()} if found.exists() else set()
    return direct.union(*(children(child) for child in direct))


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is such a process, other than as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
