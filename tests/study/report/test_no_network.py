"""A whole run, notebooks and report, reaches for nothing beyond this machine, in none of its processes."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4
from small_report import ROOT

ELSEWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737): nobody has it

# Imported by every Python process that starts: an audit hook cannot be taken away again, and it speaks before the
# system call. Kernels are spoken to on loopback.
GUARD = """
import json, os, sys

def note(*what):
    with open(os.environ["GUARD_LOG"], "a") as file:
        file.write(json.dumps([*map(str, what)]) + "\\n")

def here(address):
    if not isinstance(address, tuple):
        return True  # a socket of the file system
    host = address[0]
    host = host.decode() if isinstance(host, bytes) else host
    return host in (None, "", "localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")

def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[:1]
    else:
        return
    if not here(address):
        note("REACHED", event, address)
        raise PermissionError(f"no network: {event} {address}")

note("started", *sys.orig_argv)
sys.addaudithook(guard)
"""
TRAINS = """import torch
from decorlib.study import Record, sweep
from decorlib.study.experiments import experiment
specs = [experiment.Experiment(train_size=64, batch_size=32, epochs=1, hidden=(8,), seed=s) for s in range(2)]
found = sweep(specs, experiment.run, jobs=1)
record = Record("01", "Does it need a network?", {})
record.value("loss", found[0]["final"]["test_loss"], tolerance=0.01)
_ = record.write()"""
TRIES = f"""import socket
for reach in (lambda: socket.socket().connect(("{ELSEWHERE}", 80)), lambda: socket.getaddrinfo("example.org", 80)):
    try:
        reach()
    except PermissionError as error:
        print("refused")"""


def guarded(root, *arguments):
    """Run the command with the guard in all its processes; return what was printed and what the guard noted."""
    (root / "guard").mkdir(exist_ok=True)
    (root / "guard" / "sitecustomize.py").write_text(GUARD)
    log = root / "guard.log"
    log.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "guard"),
        "GUARD_LOG": str(log),
        "DECORLIB_CACHE": str(root / "cache"),
        "PYTHONHASHSEED": "0",
    }
    command = [sys.executable, "-m", "decorlib.study.report.reproduce", "--root", str(root), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in log.read_text().splitlines()]


def put(root, number, *cells):
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    made = [v4.new_markdown_cell(f"# {number} · Why?", id="a")]
    made += [v4.new_code_cell("seeds = 2", id="p", metadata={"tags": ["parameters"]})]
    made += [v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]
    nbformat.write(v4.new_notebook(cells=made), root / "notebooks" / f"{number}_why.ipynb")


def test_the_guard_is_live_in_a_kernel(tmp_path):
    put(tmp_path, "01", TRIES)
    _, noted = guarded(tmp_path, "--no-report")
    reached = [line for line in noted if line[0] == "REACHED"]
    assert [line[1] for line in reached] == ["socket.connect", "socket.getaddrinfo"]
    assert ELSEWHERE in reached[0][2]
    (executed,) = (tmp_path / "results" / "notebooks").glob("*.ipynb")
    assert executed.read_text().count("refused\\n") >= 1


@pytest.mark.slow
def test_a_whole_run_with_its_report_reaches_for_nothing(tmp_path):
    put(tmp_path, "01", TRAINS)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    said, noted = guarded(tmp_path)
    assert "report: 1 notebook(s)" in said
    started = [" ".join(line[1:]) for line in noted if line[0] == "started"]
    for process in ("decorlib.study.report.reproduce", "ipykernel", "multiprocessing", "-m sphinx"):
        assert any(process in line for line in started), f"the guard was not in {process}"
    assert [line for line in noted if line[0] == "REACHED"] == []
    assert (tmp_path / "results" / "report" / "notebooks" / "01_why.html").exists()
