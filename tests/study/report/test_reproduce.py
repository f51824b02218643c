"""The pipeline on small notebooks in a folder of their own. Kernels are real, so each run costs about a second."""

import builtins
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from nbformat import v4

from decorlib.study.evidence.records import Record
from decorlib.study.report import freshness, notebooks, reproduce, request
from decorlib.study.sweeps import source

WRITE_FIGURE = (
    "import os, pathlib\n"
    "figures = pathlib.Path(os.environ['DECORLIB_RESULTS'], 'figures')\n"
    "figures.mkdir()\n"
    "_ = (figures / f\"{os.environ['DECORLIB_NOTEBOOK']}_{name}.png\").write_text('x')"
)


def put(root, number, *cells, parameters="seeds = 3\nname = 'line'", yaml=None):
    """Write a notebook; the first of its cells is the parameters cell."""
    (root / "notebooks" / "params").mkdir(parents=True, exist_ok=True)
    made = [v4.new_code_cell(parameters, id="p", metadata={"tags": ["parameters"]})]
    made += [v4.new_code_cell(source, id=f"c{i}") for i, source in enumerate(cells)]
    kernel = {"kernelspec": {"name": "somebodys-laptop", "display_name": "x"}}
    path = root / "notebooks" / f"{number}_why.ipynb"
    nbformat.write(v4.new_notebook(cells=made, metadata=kernel), path)
    if yaml is not None:
        (root / "notebooks" / "params" / f"{number}.yaml").write_text(yaml)
    return path


def make(root, *arguments):
    return reproduce.main(["--root", str(root), "--no-report", *arguments])


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def printed(path):
    return [o.text for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", []) if "text" in o]


def test_first_second_and_changed_run(tmp_path, capsys):
    put(tmp_path, "01", "print(seeds)", WRITE_FIGURE, yaml="seeds: 5\n")
    put(tmp_path, "02", "print('two')")
    assert make(tmp_path) == 0
    results = tmp_path / "results"
    first = contents(results)
    assert set(first) == {"notebooks/01_why.ipynb", "notebooks/02_why.ipynb", "figures/01_line.png"}
    assert printed(results / "notebooks" / "01_why.ipynb") == ["5\n"]
    assert "somebodys-laptop" not in first["notebooks/01_why.ipynb"].decode()

    capsys.readouterr()
    assert make(tmp_path) == 0
    assert capsys.readouterr().out.count("nothing to be done") == 2
    assert contents(results) == first

    # forced: equal bytes, although ids, times and the injected cell differ in what papermill writes
    assert make(tmp_path, "--force", "--only", "1") == 0
    assert contents(results) == first

    # an edit of outputs or layout is no change, an edit of a parameter is; a figure that is no more made goes
    capsys.readouterr()
    (tmp_path / "notebooks" / "params" / "01.yaml").write_text("seeds: 5\nname: bars\n")
    assert make(tmp_path) == 0
    out = capsys.readouterr().out
    assert "01  why (full: its parameters changed)" in out
    assert "02  nothing to be done" in out
    assert set(contents(results)) == {*first, "figures/01_bars.png"} - {"figures/01_line.png"}

    # results that somebody edited or removed are made again
    (results / "figures" / "01_bars.png").write_text("painted")
    assert make(tmp_path) == 0
    assert "its results were removed or edited" in capsys.readouterr().out
    assert (results / "figures" / "01_bars.png").read_text() == "x"


def test_a_failing_notebook(tmp_path, capsys):
    put(tmp_path, "01", "print('fine')", WRITE_FIGURE)
    put(tmp_path, "02", "print('two')")
    assert make(tmp_path, "--only", "01") == 0
    before = contents(tmp_path / "results")
    # with values to inject, papermill counts one cell more than the reader sees in the source
    put(tmp_path, "01", WRITE_FIGURE, "print('half')", "# why\n1 / 0", "print('never')", yaml="seeds: 5\n")
    capsys.readouterr()
    assert make(tmp_path) == reproduce.FAILED
    captured = capsys.readouterr()
    assert "01_why.ipynb failed in cell 4 (`1 / 0`): ZeroDivisionError: division by zero" in captured.err
    assert "02  done" in captured.out  # the others go on
    after = contents(tmp_path / "results")
    assert {name: after[name] for name in before} == before  # the old results stay, whole
    assert set(after) - set(before) == {"notebooks/02_why.ipynb"}
    failed = tmp_path / "build" / "reproduce" / "full" / "failed" / "01_why.ipynb"
    assert str(failed) in captured.err
    assert "half\n" in printed(failed)
    assert make(tmp_path) == reproduce.FAILED  # it is not taken for done next time
    assert "02  nothing to be done" in capsys.readouterr().out
    put(tmp_path, "01", "print('mended')")
    assert make(tmp_path) == 0
    assert not failed.exists()


def test_a_dead_kernel_and_a_time_out_are_failures(tmp_path, capsys):
    put(tmp_path, "01", "print('so far')", "import os, time; time.sleep(1); os._exit(137)")
    put(tmp_path, "02", "import time; time.sleep(60)")
    assert make(tmp_path, "--timeout", "3") == reproduce.FAILED
    err = capsys.readouterr().err
    assert "01_why.ipynb failed in cell 3 (`import os, time; time.sleep(1); os._exit(137)`): DeadKernelError" in err
    assert "02_why.ipynb failed in cell 2 (`import time; time.sleep(60)`): CellTimeoutError" in err
    assert not (tmp_path / "results").exists()


RECORD = (
    "from decorlib.study import Record\n"
    "record = Record('01', 'why?')\n"
    "record.value('x', value, tolerance=0.02)\n"
    "verdict = dict.fromkeys(('hypothesis', 'claim', 'criterion'), 'h') | dict(estimate=1.0, low=0.5, high=1.5, n=5)\n"
    "verdict |= dict(unit='', p_value=0.01, outcome=outcome, explains_failed_run=None, evidence='', remedy='')\n"
    "record.verdict(verdict | dict(margin=0.1, better='higher', scale='', schedule='', control='', tolerance=None))\n"
    "_ = record.write()"
)


@pytest.mark.parametrize("last", ["import sys; sys.exit(0)", "import sys; sys.exit()", "raise SystemExit", "quit()"])
def test_a_cell_that_ends_the_notebook_is_a_failure_and_the_old_results_stay(last, tmp_path, capsys):
    """papermill takes SystemExit with status 0 for a success and leaves out the cells after it."""
    values = "value = 1.0\noutcome = 'supported'\nname = 'line'"
    put(tmp_path, "01", RECORD, WRITE_FIGURE, parameters=values)
    assert make(tmp_path, "--only", "01") == 0
    before = contents(tmp_path / "results")
    assert {"records/01.json", "figures/01_line.png"} < set(before)
    put(tmp_path, "01", last, RECORD, WRITE_FIGURE, parameters=values)
    capsys.readouterr()
    assert make(tmp_path, "--only", "01") == reproduce.FAILED
    said = capsys.readouterr()
    assert "01  FAILED" in said.err
    assert re.search(r"01_why\.ipynb (ended|failed) in cell \d", said.err)
    assert "done in" not in said.out
    assert contents(tmp_path / "results") == before
    assert make(tmp_path, "--only", "01") == reproduce.FAILED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tcp://127.0.0.1:9"], "ENGINE=tcp://127.0.0.1:9: no scheduler answers there .*dask scheduler"),
        (["--engine", "slurm"], "ENGINE=slurm: it must be local, serial or the address tcp://host:port"),
        (["--device", "gpu"], "DEVICE=gpu: torch knows no device of that name, such as cpu, cuda"),
        (["--device", "cuda"], "DEVICE=cuda: torch sees no CUDA device"),
        (["--seeds", "x"], "SEEDS=x: it must be a whole number of at least 1, such as SEEDS=5"),
        (["--seeds", "0"], "SEEDS=0: it must be a whole number"),
        (["--jobs", "1.5"], r"JOBS=1\.5: it must be a whole number"),
        (["--profile", "foo"], "PROFILE=foo: there are quick, full, extended"),
        (["--only", "07"], "ONLY=07: there is no notebook 07; there are 01"),
    ],
)
def test_what_was_asked_is_checked_up_front_in_makes_words(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    put(tmp_path, "01", "print('fine')", parameters="seeds = 2\ndevice = 'cpu'")
    assert make(tmp_path, *arguments) == reproduce.USAGE
    said = capsys.readouterr()
    assert re.search(message, said.err)
    assert said.err.startswith("reproduce: ")
    assert "01  " not in said.out
    assert not (tmp_path / "results").exists()


def test_a_live_engine_is_let_through(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert request.unreachable(f"tcp://127.0.0.1:{server.getsockname()[1]}") is None
    assert request.unreachable("local") is None


def test_the_device_reaches_every_notebook_that_has_one():
    root = Path(__file__).resolve().parents[3]
    sources = notebooks.find(root / "notebooks")
    having = [one for one in sources if "device" in notebooks.defaults(one.read())]
    assert having
    for profile in notebooks.PROFILES:
        for one in sources:
            values = notebooks.parameters(one, profile, device="cuda:1")
            assert values.get("device") == ("cuda:1" if one in having else None)


def test_bad_requests_stop_before_anything_is_written(tmp_path, capsys):
    put(tmp_path, "01", "print('fine')")
    put(tmp_path, "02", "print('fine')", yaml="typo: 5\n")
    assert make(tmp_path) == reproduce.USAGE
    assert "params/02.yaml: unknown parameter 'typo'; the notebook has seeds, name" in capsys.readouterr().err
    assert make(tmp_path, "--only", "07") == reproduce.USAGE
    assert "no notebook 07" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_malicious_parameter_file_is_refused_before_anything_runs(tmp_path, capsys):
    marker = tmp_path / "marker"
    put(tmp_path, "01", "print('fine')")
    put(tmp_path, "02", "print('fine')", yaml=f"seeds: !!python/object/apply:os.system ['mkdir {marker}']\n")
    assert make(tmp_path) == reproduce.USAGE
    said = capsys.readouterr()
    assert re.search(r"params/02\.yaml is not YAML with plain values: .*python/object/apply:os\.system", said.err)
    assert "01  " not in said.out
    assert not marker.exists()
    assert not (tmp_path / "results").exists()


def test_code_in_a_parameter_stays_text(tmp_path):
    marker = tmp_path / "marker"
    quotes = ["'", '"', '"""', "\\", "'); ("]
    texts = {
        f"name_{i}": f"{q}\n__import__('os').mkdir({str(marker)!r})\n# {q} {{name}} %time !ls"
        for i, q in enumerate(quotes)
    }
    defaults = "\n".join(f"{name} = 'line'" for name in texts)
    shows = "\n".join(f"print(ascii({name}))" for name in texts)
    put(tmp_path, "01", shows, parameters=defaults, yaml=json.dumps(texts))
    assert make(tmp_path) == 0
    shown = "".join(printed(tmp_path / "results" / "notebooks" / "01_why.ipynb"))
    assert shown.splitlines() == [ascii(text) for text in texts.values()]
    assert not marker.exists()


def test_no_notebooks(tmp_path, capsys):
    assert make(tmp_path) == reproduce.USAGE
    assert "no notebooks in" in capsys.readouterr().err


def test_quick_never_writes_results(tmp_path, capsys):
    put(tmp_path, "01", "print(seeds, device)", parameters="seeds = 2\ndevice = 'cpu'", yaml="seeds: 5\n")
    put(tmp_path, "02", "print('two')", parameters="rate = 1")
    assert make(tmp_path, "--profile", "quick", "--seeds", "4", "--device", "meta") == 0
    assert not (tmp_path / "results").exists()
    assert printed(tmp_path / "build" / "quick" / "notebooks" / "01_why.ipynb") == ["4 meta\n"]
    assert "02  has no parameter `seeds`" in capsys.readouterr().out


def test_settings_reach_the_kernel(tmp_path):
    names = ["DECORLIB_BATCH", "DECORLIB_JOBS", "DECORLIB_ENGINE", "PYTHONHASHSEED"]
    put(tmp_path, "01", f"import os\nprint([os.environ.get(n) for n in {names}], os.path.basename(os.getcwd()))")
    assert make(tmp_path, "--jobs", "3", "--engine", "serial") == 0
    assert printed(tmp_path / "results" / "notebooks" / "01_why.ipynb") == ["['1', '3', 'serial', '0'] notebooks\n"]
    assert "DECORLIB_BATCH" not in os.environ


def test_a_changed_verdict_sets_the_exit_status_and_reruns_who_reads_it(tmp_path, capsys):
    put(tmp_path, "01", RECORD, parameters="value = 1.0\noutcome = 'supported'", yaml="value: 1.0\n")
    reads = "import os  # load_records\nprint(os.listdir(os.environ['DECORLIB_RECORDS']))"
    put(tmp_path, "02", "print('two')")
    put(tmp_path, "09", reads)
    assert make(tmp_path) == 0
    assert printed(tmp_path / "results" / "notebooks" / "09_why.ipynb") == ["['01.json']\n"]
    assert make(tmp_path, "--only", "01", "--force") == 0  # same findings on another day
    capsys.readouterr()
    assert make(tmp_path) == 0
    assert capsys.readouterr().out.count("nothing to be done") == 3

    (tmp_path / "notebooks" / "params" / "01.yaml").write_text("value: 2.0\noutcome: refuted\n")
    assert make(tmp_path) == reproduce.CHANGED
    out = capsys.readouterr().out
    assert "02  nothing to be done" in out
    assert "09  why (full: record 01 changed)" in out
    assert "VERDICT CHANGED: 01 h: outcome was supported, now refuted" in out
    assert "5 values compared, 1 outside" in out


def test_who_reads_records_runs_after_all_others_whatever_its_number(tmp_path, capsys):
    put(tmp_path, "09", "import os  # load_records\nprint(sorted(os.listdir(os.environ['DECORLIB_RECORDS'])))")
    for number in ("01", "11"):
        put(tmp_path, number, RECORD.replace("'01'", repr(number)), parameters="value = 1.0\noutcome = 'supported'")
    assert make(tmp_path) == 0
    assert printed(tmp_path / "results" / "notebooks" / "09_why.ipynb") == ["['01.json', '11.json']\n"]
    (tmp_path / "notebooks" / "params" / "11.yaml").write_text("value: 2.0\n")
    capsys.readouterr()
    make(tmp_path)
    out = capsys.readouterr().out
    assert out.index("11  why (full: its parameters changed)") < out.index("09  why (full: record 11 changed)")
    assert "01  nothing to be done" in out


def test_what_ran_is_compared_and_what_did_not_is_named(tmp_path, capsys):
    """A failed notebook's record is that of another day: it is not compared, or it would be "within"."""
    for number in ("01", "02", "03"):
        put(tmp_path, number, RECORD.replace("'01'", repr(number)), parameters="value = 1.0\noutcome = 'supported'")
    assert make(tmp_path) == 0
    put(tmp_path, "02", "1 / 0")
    put(tmp_path, "03", RECORD.replace("'01'", "'03'"), parameters="value = 3.0\noutcome = 'supported'")
    capsys.readouterr()
    assert make(tmp_path, "--only", "02", "03") == reproduce.FAILED
    out = capsys.readouterr().out
    assert "not run, so not compared: 01, 02" in out
    assert "5 values compared, 1 outside" in out
    capsys.readouterr()
    assert make(tmp_path, "--only", "01", "--force") == 0
    assert "not run, so not compared: 02, 03" in capsys.readouterr().out


def test_git_that_refuses_is_quoted(tmp_path, monkeypatch, capsys):
    put(tmp_path, "01", "print('fine')")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name, value in {
        "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    assert make(tmp_path) == 0
    out = capsys.readouterr().out
    assert "git cannot say what is committed: fatal: detected dubious ownership" in out
    assert "safe.directory" in out
    assert "compared with the records from before this run" in out


def test_a_notebook_is_stale_when_what_it_imports_changes(tmp_path, monkeypatch):
    """An edit of the cost question's modules makes 08 stale, and 00 and 06, which import them, and no other."""
    root = Path(__file__).resolve().parents[3]
    copy = tmp_path / "decorlib"
    shutil.copytree(source.PACKAGE, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    shutil.copytree(source.PACKAGE / "data", copy / "data", ignore=shutil.ignore_patterns("mnist"))
    monkeypatch.setattr(source, "PACKAGE", copy)
    options = Namespace(root=root, results=tmp_path, profile="quick", build=tmp_path)

    def stale(*edited):
        before = {s.number: freshness.settle(s, {}, options) for s in notebooks.find(root / "notebooks")}
        for name in edited:
            path = copy / f"{name}.py"
            path.write_text(path.read_text() + "\nedited = 1\n")
        after = {s.number: freshness.settle(s, {}, options) for s in notebooks.find(root / "notebooks")}
        return {number for number in before if before[number].inputs != after[number].inputs}

    assert stale("study/questions/cost/layer_cost") == {"00", "06", "08"}
    assert stale("study/questions/cost/workloads") == {"06", "08"}
    assert stale("study/questions/variance/figures") == {"03"}
    assert stale("study/report/reproduce", "study/questions/answers/spread") == set()
    assert stale("rules/rules") == {f"{number:02}" for number in range(12)}
    assert stale("study/sweeps/runs") == {"01", "02", "03", "04", "05", "06", "07", "08", "10", "11"}


def test_a_module_beside_the_notebook_counts(tmp_path, capsys):
    put(tmp_path, "01", "import aside\nprint(aside.x)", "%time 1")
    (tmp_path / "notebooks" / "aside.py").write_text("x = 1\n")
    assert make(tmp_path) == 0
    (tmp_path / "notebooks" / "aside.py").write_text("x = 2  # a comment\n")
    capsys.readouterr()
    assert make(tmp_path) == 0
    assert "01  why (full: aside changed)" in capsys.readouterr().out
    assert printed(tmp_path / "results" / "notebooks" / "01_why.ipynb")[0] == "2\n"


def test_refresh_stores_the_quick_outputs_in_the_source(tmp_path, capsys):
    source = put(
        tmp_path, "01", "print(seeds)\nimport os\nprint(os.environ.get('DECORLIB_RESULTS'))", yaml="seeds: 5\n"
    )
    broken = put(tmp_path, "02", "1 / 0")
    before = broken.read_bytes()
    assert make(tmp_path, "--refresh-sources") == reproduce.FAILED
    assert printed(source) == ["3\nNone\n"]
    assert broken.read_bytes() == before
    assert not (tmp_path / "results").exists()
    once = source.read_bytes()
    assert make(tmp_path, "--refresh-sources", "--only", "01") == 0
    assert source.read_bytes() == once


def test_two_at_once_take_turns(tmp_path):
    put(tmp_path, "01", "print('fine')")
    (tmp_path / "build").mkdir()
    command = [sys.executable, "-m", "decorlib.study.report.reproduce", "--root", str(tmp_path), "--no-report"]
    lock = FileLock(tmp_path / "build" / "reproduce.lock")
    with lock, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert "waiting for it" in other.stdout.readline()
            assert not (tmp_path / "results").exists()
            lock.release()
            out, _ = other.communicate(timeout=60)
        except BaseException:
            other.kill()  # or it would wait, and be left to another test
            raise
    assert other.returncode == 0
    assert "01  done" in out


# ------------------------------------------------------------------------------------- results that cannot be written


def full_disk(root, patch):
    real = os.fsync

    def fsync(descriptor):
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root / "results" / "figures"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


def read_only(root, patch):
    # Not by permissions: who runs the tests as root may write anywhere.
    real = builtins.open

    def refuse(path, mode="r", *arguments, **options):
        if "w" in mode and Path(path).is_relative_to(root / "results" / "figures"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *arguments, **options)

    patch.setattr(builtins, "open", refuse)


def not_a_folder(root, patch):
    folder = root / "results" / "figures"
    if folder.is_dir():
        patch.setattr(Path, "mkdir", _no_folder(folder))
    else:
        folder.parent.mkdir()
        folder.write_text("somebody's notes")


def _no_folder(folder):
    real = Path.mkdir

    def mkdir(self, *arguments, **options):
        if self == folder:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        real(self, *arguments, **options)

    return mkdir


COUNTS = "import os, pathlib\nwith open(pathlib.Path({folder!r}, 'ran'), 'a') as file:\n    _ = file.write('x')"


@pytest.mark.parametrize("fault", [full_disk, read_only, not_a_folder])
@pytest.mark.parametrize("before", [False, True])
def test_results_that_cannot_be_written_are_named_and_nothing_is_lost(fault, before, tmp_path, monkeypatch, capsys):
    put(tmp_path, "01", COUNTS.format(folder=str(tmp_path)), WRITE_FIGURE)
    put(tmp_path, "02", "print('two')")
    results = tmp_path / "results"
    if before:
        assert make(tmp_path, "--only", "01") == 0
        put(tmp_path, "01", COUNTS.format(folder=str(tmp_path)), WRITE_FIGURE, "print('new')")
    old = contents(results) if before else {}
    (tmp_path / "ran").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        fault(tmp_path, patch)
        capsys.readouterr()
        assert make(tmp_path) == reproduce.FAILED
    said = capsys.readouterr()
    assert "1 notebook(s) FAILED" in said.err
    assert "Traceback" not in said.err
    assert re.search(r"01_why\.ipynb: .*free space or make .*results writable and call again", said.err)
    assert "it ran to its end and its results wait in" in said.err
    assert "02  done" in said.out
    now = contents(results)
    assert {name: now[name] for name in old} == old
    assert set(now) - set(old) - {"figures"} == {"notebooks/02_why.ipynb"}, "something half is left"

    # The fault is over: what had run is published, without running again.
    if (results / "figures").is_file():
        (results / "figures").unlink()
    assert make(tmp_path) == 0
    said = capsys.readouterr().out
    assert "01  why (full: its last run could not be published)" in said
    assert "02  nothing to be done" in said
    assert (tmp_path / "ran").read_text() == "x"
    assert set(contents(results)) == {"notebooks/01_why.ipynb", "notebooks/02_why.ipynb", "figures/01_line.png"}
    assert make(tmp_path) == 0
    assert capsys.readouterr().out.count("nothing to be done") == 2
    assert list((tmp_path / "build" / "reproduce" / "full" / "staging").iterdir()) == []


def test_a_run_that_could_not_be_published_is_run_again_after_an_edit_or_damage(tmp_path, capsys):
    put(tmp_path, "01", WRITE_FIGURE)
    not_a_folder(tmp_path, None)
    assert make(tmp_path) == reproduce.FAILED
    (tmp_path / "results" / "figures").unlink()
    (waiting,) = (tmp_path / "build" / "reproduce" / "full" / "staging").glob("01.*/figures/01_line.png")
    waiting.write_text("damaged")
    capsys.readouterr()
    assert make(tmp_path) == 0
    assert "01  why (full: not yet run in this clone)" in capsys.readouterr().out
    assert (tmp_path / "results" / "figures" / "01_line.png").read_text() == "x"


def test_a_clone_that_cannot_be_written_is_named(tmp_path, capsys):
    put(tmp_path, "01", "print('one')")
    (tmp_path / "build").write_text("a file")
    assert make(tmp_path) == reproduce.FAILED
    assert re.search(r"reproduce: .*build.*make it writable", capsys.readouterr().err)


def test_a_disk_that_is_full_while_a_notebook_runs(tmp_path, monkeypatch, capsys):
    put(tmp_path, "01", "print('one')")
    put(tmp_path, "02", "print('two')")
    real = reproduce.execute

    def fill(source, *arguments):
        if source.number == "01":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "staging")
        real(source, *arguments)

    monkeypatch.setattr(reproduce, "execute", fill)
    assert make(tmp_path) == reproduce.FAILED
    said = capsys.readouterr()
    assert "01_why.ipynb: [Errno 28] No space left on device: 'staging'; free space there" in said.err
    assert set(contents(tmp_path / "results")) == {"notebooks/02_why.ipynb"}


def test_a_damaged_record_stops_only_who_reads_it(tmp_path, capsys):
    put(tmp_path, "01", RECORD, parameters="value = 1.0\noutcome = 'supported'")
    put(tmp_path, "02", "print('two')")
    put(tmp_path, "03", "from decorlib.study import load_records\n_ = load_records()")
    assert make(tmp_path) == 0
    record = tmp_path / "results" / "records" / "01.json"
    good = record.read_bytes()
    record.write_bytes(good[: len(good) // 2])
    capsys.readouterr()
    assert make(tmp_path, "--only", "02", "03") == reproduce.FAILED
    said = capsys.readouterr()
    assert "02  nothing to be done" in said.out
    assert re.search(r"03_why\.ipynb failed in cell 2 .*RecordDamaged.*01\.json is damaged", said.err)
    assert make(tmp_path) == 0  # all of them: the record is made again
    assert "01  why (full: its results were removed or edited)" in capsys.readouterr().out


def test_provenance_of_the_outputs_is_in_the_executed_notebook(tmp_path):
    put(tmp_path, "01", WRITE_FIGURE, yaml="seeds: 5\n")
    assert make(tmp_path) == 0
    stored = json.loads((tmp_path / "results" / "notebooks" / "01_why.ipynb").read_text())["metadata"]["decorlib"]
    assert stored["parameters"] == {"seeds": 5}
    assert list(stored["outputs"]) == ["figures/01_line.png"]


def test_an_interrupt_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    put(tmp_path, "01", "print('fine')")
    put(tmp_path, "02", "print('two')")
    real = reproduce.execute

    def stop_at_two(source, *arguments):
        if source.number == "02":
            raise KeyboardInterrupt
        real(source, *arguments)

    monkeypatch.setattr(reproduce, "execute", stop_at_two)
    assert make(tmp_path) == 130
    assert set(contents(tmp_path / "results")) == {"notebooks/01_why.ipynb"}
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("x = 1  # why", "x  =  1", True),
        ('def f():\n    """a"""\n    return 1', 'def f():\n    """b"""\n    return 1', True),
        ("x = 1", "x = 2", False),
        ('x = """a"""', 'x = """b"""', False),
        ("def f():\n    return 1", "def f():\n    return 2", False),
    ],
)
def test_only_code_that_runs_counts_as_a_change(one, two, same):
    from decorlib.study.sweeps.source import code_of

    assert (code_of(one) == code_of(two)) == same


def test_an_extended_run_has_results_of_its_own_which_the_full_run_reads(tmp_path, capsys, monkeypatch):
    """Only notebooks with extended values run; the full run's results stay; a new extended record is a new input."""
    put(tmp_path, "01", "print(seeds)")
    put(tmp_path, "02", "print(seeds)  # load_extended", yaml="seeds: 5\n")
    (tmp_path / "notebooks" / "params" / "02.extended.yaml").write_text("seeds: 20\n")
    assert make(tmp_path) == 0
    full = contents(tmp_path / "results")
    assert make(tmp_path, "--profile", "extended") == 0
    longer = tmp_path / "results" / "extended"
    assert set(contents(longer)) == {"notebooks/02_why.ipynb"}
    assert printed(longer / "notebooks" / "02_why.ipynb") == ["20\n"]
    assert {name: data for name, data in contents(tmp_path / "results").items() if "extended" not in name} == full

    capsys.readouterr()
    assert make(tmp_path) == 0
    assert capsys.readouterr().out.count("nothing to be done") == 2  # there is no record yet
    with monkeypatch.context() as patched:
        patched.setenv("DECORLIB_RESULTS", str(longer))
        Record("02", question="Why?").write()
    assert make(tmp_path) == 0
    assert "02  why (full: the extended record changed)" in capsys.readouterr().out
    assert make(tmp_path, "--profile", "extended") == 0
    assert "extended record" not in capsys.readouterr().out

    (tmp_path / "notebooks" / "params" / "02.extended.yaml").unlink()
    assert make(tmp_path, "--profile", "extended") == reproduce.USAGE
