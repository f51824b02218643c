"""``make reproduce`` and ``make report`` killed at random moments, and two at once: the results are the same after all.

With the twenty kills of a sweep in ``test_runs.py`` these are the random moments that the page of promises names.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from small_report import ROOT, put_results

from decorlib._io.files import SUFFIX
from decorlib.study.report import freshness

HELPERS = ROOT / "tests" / "helpers"

# 01 sweeps (its runs outlive a kill in the cache), writes two figures and a record; 02 reads that record.
SWEEPS = """import os, pathlib, sys
sys.path.insert(0, {tests!r})
from sweep_functions import Spec, slow
from decorlib.study import Record, sweep
found = sweep([Spec(seed=s) for s in range(seeds)], slow, jobs=1)"""
WRITES = """figures = pathlib.Path(os.environ["DECORLIB_RESULTS"], "figures")
figures.mkdir()
for name in "ab":
    _ = (figures / f"01_{name}.png").write_text(str(found[0]["losses"]) * 1000)
record = Record("01", "Does it survive?", {"seeds": seeds})
record.value("last loss", found[-1]["losses"][-1], tolerance=0.01)
record.runs(found)
_ = record.write()"""
READS = """from decorlib.study import Record, load_records
record = Record("02", "What did the other find?")
record.value("twice", 2 * load_records(before="02")["01"].values[0]["value"], tolerance=0.01)
_ = record.write()"""


def put(root, number, *cells):
    (root / "notebooks").mkdir(parents=True, exist_ok=True)
    made = [v4.new_code_cell("seeds = 4", id="p", metadata={"tags": ["parameters"]})]
    made += [v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]
    nbformat.write(v4.new_notebook(cells=made), root / "notebooks" / f"{number}_why.ipynb")


def clone(root):
    put(root, "01", SWEEPS.format(tests=str(HELPERS)), WRITES)
    put(root, "02", READS)
    return root


def start(root, module="reproduce", *arguments):
    """The command in a process group of its own, with a cache of its own."""
    environment = {**os.environ, "DECORLIB_CACHE": str(root / "cache"), "PYTHONHASHSEED": "0"}
    program = [str(module)] if isinstance(module, Path) else ["-m", f"decorlib.study.report.{module}"]
    command = [sys.executable, *program, "--root", str(root), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, cwd=ROOT, **pipes)


def kill(process):
    """SIGKILL to the whole group; True where that ended it (it may have been done by then)."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return process.returncode == -signal.SIGKILL


def finish(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def findings(root):
    """Everything in the results, but the times and checksums of records and of the notebooks that hold their sums."""
    found = {}
    for path in sorted((root / "results").rglob("*")):
        if path.is_dir() or "report" in path.parts:
            continue
        content = path.read_bytes()
        if path.suffix in (".json", ".ipynb") and "runs" not in path.name:
            content = json.loads(content)
            for name in ("made_by", "sha256"):
                content.pop(name, None)
            sums = content.get("metadata", {}).get("decorlib", {}).get("outputs", {})
            for name in sums:
                assert sums[name] == freshness.sha((root / "results" / name).read_bytes()), "a set of different runs"
                sums[name] = None
        found[path.relative_to(root / "results").as_posix()] = content
    return found


def nothing_half(root):
    """What lies in the results under a final name is whole, whenever the process died."""
    for path in (root / "results").rglob("*"):
        if path.is_file() and not path.name.endswith(SUFFIX) and path.suffix in (".json", ".ipynb"):
            json.loads(path.read_text())
        if path.suffix == ".png":
            assert path.stat().st_size > 1000


@pytest.mark.slow
def test_reproduce_killed_at_random_moments(tmp_path):
    begin = time.perf_counter()
    finish(start(clone(tmp_path / "whole"), "reproduce", "--no-report"))
    seconds, expected = time.perf_counter() - begin, findings(tmp_path / "whole")
    assert set(expected) == {
        "figures/01_a.png",
        "figures/01_b.png",
        "notebooks/01_why.ipynb",
        "notebooks/02_why.ipynb",
        "records/01.json",
        "records/01.runs.json",
        "records/02.json",
    }
    draw, killed = random.Random(8), 0
    for history in range(2):
        root = clone(tmp_path / str(history))
        for _ in range(5):
            process = start(root, "reproduce", "--no-report")
            time.sleep(draw.uniform(0, seconds))
            killed += kill(process)
            nothing_half(root)
        said = finish(start(root, "reproduce", "--no-report"))
        assert "waiting for it" not in said  # a lock does not outlive its process
        assert findings(root) == expected
        assert not list(root.rglob("results/**/*" + SUFFIX))
        assert not list((root / "build" / "reproduce" / "full" / "staging").iterdir())
        assert finish(start(root, "reproduce", "--no-report")).count("nothing to be done") == 2
    assert killed >= 5, "the moments came too late to kill anything"


@pytest.mark.slow
def test_publishing_killed_between_any_two_files(tmp_path):
    """The moments that a random kill seldom meets: while the files of one notebook are put into the results."""
    dying = tmp_path / "dying.py"
    dying.write_text(
        "import os, signal, sys\n"
        "from decorlib.study.report import publish, reproduce\n"
        "real, left = os.replace, [int(sys.argv.pop(1))]\n"
        "def replace(a, b):\n"
        "    if 'results' in os.fspath(b).split(os.sep):\n"
        "        if left[0] == 0:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left[0] -= 1\n"
        "    real(a, b)\n"
        "os.replace = replace\n"
        "sys.exit(reproduce.main(sys.argv[1:]))\n"
    )
    put(tmp_path, "01", SWEEPS.format(tests=str(HELPERS)), WRITES)
    finish(start(tmp_path, "reproduce", "--no-report"))
    expected = findings(tmp_path)
    environment = {**os.environ, "DECORLIB_CACHE": str(tmp_path / "cache")}
    for files in range(len(expected)):
        command = [sys.executable, str(dying), str(files), "--root", str(tmp_path), "--no-report", "--force"]
        died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert list(tmp_path.rglob("results/**/*" + SUFFIX)), "it died before it began to publish"
        nothing_half(tmp_path)
        said = finish(start(tmp_path, "reproduce", "--no-report"))
        assert "its last run could not be published" in said
        assert findings(tmp_path) == expected
        assert not list(tmp_path.rglob("results/**/*" + SUFFIX))


@pytest.mark.slow
def test_two_at_once_and_the_first_is_killed(tmp_path):
    expected = findings_of_one(tmp_path / "one")
    root = clone(tmp_path / "two")
    first = start(root, "reproduce", "--no-report")
    assert first.stdout.readline().startswith("01  why (full: not yet run in this clone)")
    second = start(root, "reproduce", "--no-report")
    assert "waiting for it" in second.stdout.readline()
    assert kill(first)
    said = finish(second)
    assert "01  done" in said
    assert "02  done" in said
    assert findings(root) == expected


@pytest.mark.slow
def test_three_at_once_run_every_notebook_once(tmp_path):
    expected = findings_of_one(tmp_path / "one")
    root = clone(tmp_path / "three")
    said = [finish(process) for process in [start(root, "reproduce", "--no-report") for _ in range(3)]]
    assert sum(text.count("  done in") for text in said) == 2
    assert sum(text.count("nothing to be done") for text in said) == 4
    assert findings(root) == expected


def findings_of_one(root):
    finish(start(clone(root), "reproduce", "--no-report"))
    return findings(root)


REPORT = """import pathlib, sys
from decorlib.study.report import build, freshness, pages
pages.modules = list  # the library's pages say what its sources say, which somebody may edit while this runs
freshness.PACKAGE = pathlib.Path({docs!r})
sys.exit(build.main(sys.argv[1:]))"""


@pytest.mark.slow
def test_the_report_killed_at_random_moments(tmp_path, monkeypatch, png, small_docs):
    results = put_results(tmp_path, monkeypatch, png)
    monkeypatch.delenv("DECORLIB_RESULTS")
    script = tmp_path / "report.py"
    script.write_text(REPORT.format(docs=str(small_docs)))
    begin = time.perf_counter()
    finish(start(tmp_path, script))
    seconds, whole = time.perf_counter() - begin, freshness.digests(results / "report")
    assert "notebooks/07_why.html" in whole
    draw, killed = random.Random(9), 0
    for _ in range(5):
        process = start(tmp_path, script, "--force")
        time.sleep(draw.uniform(0.2, 1) * seconds)
        killed += kill(process)
        assert freshness.digests(results / "report") in ({}, whole), "half a report has the name of a whole one"
        first, second = start(tmp_path, script), start(tmp_path, script)  # two at once, after a kill
        assert "report: " in finish(first)
        assert "report: " in finish(second)
        assert freshness.digests(results / "report") == whole
        assert not list(results.glob("*.partial"))
    assert killed
