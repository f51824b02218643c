"""Sweeps: the same records whatever the engine and whatever happens to the process, the workers and the disk."""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sweep_functions
import torch
from processes import alive, children, run_script, wait_until
from sweep_functions import Boxed, Spec, Thawed, count_digits, in_folder, slow, train, trouble, unseeded

from decorlib.data import datasets
from decorlib.layers import decorrelation
from decorlib.rules import rules
from decorlib.study.sweeps import engines, identity, runs, source
from decorlib.study.sweeps.cache import Cache, CacheWarning, canonical
from decorlib.study.sweeps.runs import SweepFailed, sweep

FOUR = [Spec(seed=s) for s in range(4)]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("DECORLIB_PROGRESS", "off")


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def serially(cache):
    return partial(sweep, engine="serial", cache=cache)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.json"))


def ran(folder: Path) -> list[int]:
    """Seeds that were run, in order."""
    path = folder / "ran"
    return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


# ------------------------------------------------------------------------------------------------ the records


def test_records_come_in_the_order_of_the_specifications(serially):
    assert [r["seed"] for r in serially([Spec(3), Spec(1), Spec(2)], train)] == [3, 1, 2]
    assert [r["seed"] for r in serially([Spec(2), Spec(5), Spec(3)], train)] == [2, 5, 3]  # two are cached
    assert serially([], train) == []


def test_runs_begin_in_the_order_that_is_asked_for(serially, tmp_path):
    specs = in_folder(tmp_path, 3, 1, 2, 4)
    assert [r["seed"] for r in serially(specs, train, order=lambda spec: (spec.seed % 2, -spec.seed))] == [3, 1, 2, 4]
    assert ran(tmp_path) == [4, 2, 3, 1]


def test_the_record_is_what_the_function_returns(serially):
    with engines.pinned(0):
        direct = train(Spec(7))
    assert serially([Spec(7)], train) == [direct]
    assert serially([Spec(7)], train) == [direct]  # from the cache


def test_a_second_sweep_runs_nothing(serially, tmp_path):
    specs = in_folder(tmp_path, 1, 2)
    first = serially(specs, train)
    assert serially(specs, train) == first
    assert ran(tmp_path) == [1, 2]


def test_equal_specifications_run_once_and_do_not_share_a_record(serially, tmp_path):
    a, b = serially(in_folder(tmp_path, 1, 1), train)
    assert ran(tmp_path) == [1]
    a["losses"].clear()
    assert len(b["losses"]) == 20


def test_parallel_equals_serial_to_the_bit(tmp_path):
    specs = [Spec(seed=s) for s in range(6)]
    torch.set_num_threads(2)  # a parent that computes with other threads than its workers
    serial = sweep(specs, train, engine="serial", cache=tmp_path / "serial")
    assert torch.get_num_threads() == 2
    local = sweep(specs, train, engine="local", jobs=2, cache=tmp_path / "local")
    assert canonical(local) == canonical(serial)
    assert {r["threads"] for r in local} == {1}
    names = [path.name for path in entries(tmp_path / "serial")]
    assert names == [path.name for path in entries(tmp_path / "local")]  # either finds what the other stored
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] == "1"


def test_a_function_that_does_not_seed_is_still_repeatable(tmp_path):
    forward = sweep(FOUR, unseeded, engine="serial", cache=tmp_path / "a")
    torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    backward = sweep(FOUR[::-1], unseeded, engine="serial", cache=tmp_path / "b")
    assert forward == backward[::-1]
    assert len({r["draws"][0] for r in forward}) == 4


def test_the_serial_engine_leaves_the_callers_generators_alone():
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    torch.set_default_dtype(torch.float64)
    try:
        before = states()
        with engines.pinned(3):  # not through sweep: beartype draws from random when it checks lists
            unseeded(FOUR[0])
        assert states() == before
        assert torch.get_default_dtype() == torch.float64
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_bar_counts_what_is_left(serially, monkeypatch, capsys):
    serially(FOUR[:3], train)
    monkeypatch.setenv("DECORLIB_PROGRESS", "on")
    monkeypatch.setenv("DECORLIB_BATCH", "1")
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    serially([Spec(seed=s) for s in range(5)], train, desc="rates")
    shown = capsys.readouterr().err
    assert "rates (3 of 5 are there already)" in shown
    assert "0/2" in shown


# --------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"Boxed\.value = tensor.* is a torch\.Tensor.*tuples of these"),
        ({1, 2}, r"Boxed\.value = \{1, 2\} is a builtins\.set"),
        ([1, 2], r"is a builtins\.list.*use a tuple"),
        ({"a": 1}, r"is a builtins\.dict.*tuple of pairs"),
        (lambda x: x, r"is a builtins\.function"),
        (np.float64(0.1), r"is a numpy\.float64.*\.item\(\)"),
        ((1, (2, [3])), r"Boxed\.value\[1\]\[1\] = \[3\]"),
        (float("nan"), r"Boxed\.value = nan is not finite"),
    ],
)
def test_specifications_that_are_not_plain(serially, value, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        serially([Boxed(1), Boxed(value)], train)
    assert not (tmp_path / "cache").exists()  # nothing was run


@pytest.mark.parametrize("spec", [Thawed(1), Spec, {"seed": 1}, 3])
def test_specifications_that_are_not_frozen_dataclasses(serially, spec):
    with pytest.raises(TypeError, match="must be an instance of a frozen dataclass"):
        serially([spec], train)


def test_functions_that_workers_could_not_find(serially):
    def nested(spec):
        return {}

    for function in (nested, lambda spec: {}, partial(train)):
        with pytest.raises(TypeError, match="cannot be found by name from another process"):
            serially(FOUR, function)


def test_two_kinds_of_specification_in_one_sweep(serially):
    with pytest.raises(TypeError, match="of one class"):
        serially([Spec(1), Boxed(1)], train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "slurm"}, "engine = 'slurm' must be"),
        ({"jobs": 0}, "jobs = 0 must be"),
        ({"jobs": True}, "jobs = True must be"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        sweep(FOUR, train, **options)


def test_settings_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DECORLIB_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("DECORLIB_ENGINE", "serial")
    sweep(in_folder(tmp_path, 1), train)
    assert len(entries(tmp_path / "here")) == 1
    assert int((tmp_path / "ran").read_text().split()[1]) == os.getpid()  # in this process
    monkeypatch.setenv("DECORLIB_ENGINE", "nowhere")
    with pytest.raises(ValueError, match="'nowhere'"):
        sweep(FOUR, train)
    monkeypatch.setenv("DECORLIB_JOBS", "many")
    with pytest.raises(ValueError, match="DECORLIB_JOBS = 'many'"):
        runs.default_jobs()


# -------------------------------------------------------------------------------------------- runs that fail


def test_errors_are_collected_and_the_rest_is_done(cache):
    kinds = ["fine", "raise", "unpicklable", "leave", "fine"]
    specs = [Spec(seed=i, kind=kind) for i, kind in enumerate(kinds)]
    for engine in ("serial", "local"):
        with pytest.raises(SweepFailed, match=r"3 of 5 runs failed") as failed:
            sweep(specs, trouble, engine=engine, jobs=2, cache=cache)
        errors = failed.value.errors
        assert [error.spec for error in errors] == specs[1:4]
        assert errors[0].error == "ArithmeticError: seed 1 is unlucky"
        assert "in trouble" in errors[0].traceback
        assert errors[1].error == "sweep_functions.Awkward: awkward 1 2"
        assert errors[2].error == "SystemExit: 3"
        assert failed.value.records == [{"seed": 0}, None, None, None, {"seed": 4}]
        assert "seed=1" in str(failed.value)
        assert "ArithmeticError: seed 1 is unlucky" in str(failed.value)
        assert len(entries(cache)) == 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"record\['history'\]\[1\]\['loss'\] is nan.*status"),
        ("tensor", r"record\['accuracy'\] is a torch\.Tensor.*\.item\(\)"),
        ("number", r"record\['accuracy'\] is a numpy\.float64"),
        ("key", r"record\['by width'\] has the key 4; keys must be strings"),
        ("list", r"trouble returned a list; it must return a dict"),
    ],
)
def test_records_that_json_would_change(serially, kind, message, cache):
    with pytest.raises(SweepFailed, match=message):
        serially([Spec(1, kind=kind)], trouble)
    assert entries(cache) == []


@pytest.mark.slow
def test_workers_that_cannot_start_are_an_error_at_once(cache, tmp_path):
    """A script that calls sweep without a guard: each worker would run the script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from sweep_functions import Spec, train\nfrom decorlib.study.sweeps.runs import sweep\n"
        f"sweep([Spec(s) for s in range(8)], train, engine='local', jobs=2, cache={str(cache)!r})\n"
    )
    done = run_script(script)
    assert done.returncode == 1
    assert 'if __name__ == "__main__"' in done.stderr.splitlines()[-1]


# -------------------------------------------------------------------------------------------- what invalidates


def settled(spec, function=train, **environment):
    (run,) = identity.settle([spec], function, identity.environment(function, type(spec)) | environment)
    return run


def test_what_a_run_depends_on_is_in_its_key():
    run = settled(Spec(1))
    assert settled(Spec(1)) == run
    others = [
        settled(Spec(2)),
        settled(Spec(1, rate=0.2)),
        settled(Spec(1, widths=(4, 3, 1))),
        settled(Spec(1), slow),
        *(settled(Spec(1), **{name: "other"}) for name in run.environment),
    ]
    assert len({run.key, *(other.key for other in others)}) == 1 + len(others)
    assert set(run.environment) == {"code", "data", "device", "torch"}
    assert run.environment["torch"] == torch.__version__
    assert run.environment["data"]["decorlib.data.datasets"]["mnist"] == datasets.checksum("mnist")
    # Another environment does not change what an unseeded function draws: only so does an edit show as such.
    assert {settled(Spec(1), **{name: "other"}).seed for name in run.environment} == {run.seed}


def test_a_sweep_asks_once_what_its_runs_are(serially, monkeypatch, tmp_path):
    """The door settles it; engines, workers and cache are handed the answer."""
    asked = {"environment": 0, "settle": 0, "files": 0}

    def counting(real):
        def counted(*arguments):
            asked[real.__name__] += 1
            return real(*arguments)

        return counted

    for module, name in ((identity, "environment"), (identity, "settle"), (source, "files")):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    engines._environment_once(train, Spec)  # what the process that runs says of itself, once for all sweeps
    asked["files"] = 0
    serially(in_folder(tmp_path, 1, 2, 3), train)
    assert asked == {"environment": 1, "settle": 1, "files": 1}
    assert ran(tmp_path) == [1, 2, 3]


def test_other_torch_or_data_are_run_again(serially, tmp_path, monkeypatch):
    specs = in_folder(tmp_path, 1)
    serially(specs, count_digits)
    for thing, name, value in [(torch, "__version__", "0.0.1"), (datasets, "FASHION_MD5", {"train": "0"})]:
        monkeypatch.setattr(thing, name, value)
        monkeypatch.setattr(engines, "_environment_once", identity.environment)
        serially(specs, count_digits)
    assert ran(tmp_path) == [1, 1, 1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of decorlib's sources whose hash is taken instead."""
    copy = tmp_path / "decorlib"
    shutil.copytree(source.PACKAGE, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    monkeypatch.setattr(source, "PACKAGE", copy)
    return copy


def code_hash(*modules):
    return source.Code.of(*modules).sha256


def test_code_counts_and_comments_do_not(package):
    before = code_hash(decorrelation)
    path = package / "rules" / "rules.py"
    text = path.read_text()
    path.write_text("# a comment\n" + text.replace('"""', '"""Another explanation. ', 1))
    assert code_hash(decorrelation) == before
    path.write_text(text + "\nx = 1\n")
    assert code_hash(decorrelation) != before


def test_what_a_run_can_reach_counts_and_nothing_else(package, monkeypatch):
    (package / "study" / "aside.py").write_text("def f(spec):\n    from decorlib.study import helper\n")
    (package / "study" / "helper.py").write_text("from . import deep\n")
    (package / "study" / "deep.py").write_text("import decorlib.study.aside, os\nx = 1\n")  # a circle
    module = type(source)("decorlib.study.aside")
    module.__file__ = str(package / "study" / "aside.py")
    found = source.files(module)
    study = {"decorlib.study.aside", "decorlib.study.helper", "decorlib.study.deep"}
    assert {name for name in found if name.startswith("decorlib.study.")} == study
    core = {"decorlib", "decorlib.study", "decorlib.rules", "decorlib.training.train", "decorlib.rules.moments"}
    assert core <= set(found)
    before = code_hash(module)
    (package / "study" / "evidence" / "figures.py").write_text("x = 1\n")
    assert code_hash(module) == before
    (package / "study" / "deep.py").write_text("import decorlib.study.aside, os\nx = 2\n")
    assert code_hash(module) != before


def test_a_name_that_a_package_loads_on_first_use_is_found_where_it_is():
    import decorlib.study as study

    text = Path(study.__file__).read_text()
    homes = {name: f"decorlib.study.{home}" for name, home in study._HOME.items()}
    assert source._lazily(text, "decorlib.study.__init__") == homes
    assert "decorlib.study.evidence.stats" in source.reach(["decorlib.study.paired"])
    assert not [name for name in source.reach(["decorlib.study"]) if "evidence" in name]


def test_the_functions_own_module_counts_and_its_helpers(tmp_path, monkeypatch):
    home, helper = tmp_path / "my_experiment.py", tmp_path / "my_helper.py"
    home.write_text("import my_helper, numpy, json\ndef f(spec):\n    return {}\n")
    helper.write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_experiment

    found = source.Code.of(my_experiment)
    assert set(found.files) == {"my_experiment", "my_helper"}  # numpy and json have versions
    assert not found.ours  # so that workers that have read them do not rest
    home.write_text("import my_helper, numpy, json\ndef f(spec):\n    return {'a': 1}\n")
    assert code_hash(my_experiment) != found.sha256
    home.write_text("import my_helper, numpy, json\ndef f(spec):\n    return {}\n")
    assert code_hash(my_experiment) == found.sha256
    helper.write_text("x = 2\n")
    assert code_hash(my_experiment) != found.sha256


def test_a_package_is_followed_where_it_is_installed_if_the_function_is_in_it(tmp_path, monkeypatch):
    folder = tmp_path / "lib" / "site-packages" / "theirs"
    folder.mkdir(parents=True)
    for name, text in {"__init__": "", "a": "from theirs import b\n", "b": "x = 1\n"}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder.parent))
    import theirs.a

    assert set(source.files(theirs.a)) == {"theirs", "theirs.a", "theirs.b"}
    assert source.reach(["theirs.a"]) == {}


def test_edited_code_is_not_run_in_the_process_that_has_the_old(serially, monkeypatch):
    path = Path(rules.__file__)
    monkeypatch.setitem(source.AT_START, path, "# another comment\n" + source.AT_START[path])
    assert len(serially(FOUR[:1], train)) == 1
    monkeypatch.setitem(source.AT_START, path, source.AT_START[path] + "\nx = 1\n")
    with pytest.raises(
        RuntimeError, match=r"decorlib\.rules\.rules was edited since this process imported it.*restart"
    ):
        serially(FOUR, train)


def test_code_edited_during_a_sweep_is_seen(serially, monkeypatch, cache):
    other = {**identity.environment(train, Spec), "code": "edited"}
    monkeypatch.setattr(engines, "_environment_once", lambda function, spec_type: other)
    with pytest.raises(SweepFailed, match="other code than the sweep began with"):
        serially(FOUR, train)
    assert entries(cache) == []


def test_sweeps_know_nothing_of_what_is_computed():
    """Of the project they import three leaves and each other, and they name nothing else of it."""
    reached = source.reach(f"decorlib.study.sweeps.{path.stem}" for path in Path(runs.__file__).parent.glob("*.py"))
    texts = [path.read_text() for name, path in reached.items() if ".sweeps." in name]
    named = {name for text in texts for name in source.imports(text) if name.startswith("decorlib")}
    allowed = ("decorlib._io.files", "decorlib._io.plain", "decorlib._io.products", "decorlib.study.sweeps")
    assert [name for name in named if not name.startswith(allowed)] == []


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-2] + b"\n",
        lambda content: b"\xff" + content,
        lambda content: b"[" * 100_000,
        lambda content: b'{"sha256": 1}\n',
        lambda content: content.replace(b'"seed":1', b'"seed":2'),
        lambda content: content + b" ",
    ],
)
def test_a_damaged_entry_is_named_and_run_again(serially, tmp_path, cache, damage):
    specs = in_folder(tmp_path, 1)
    first = serially(specs, train)
    (path,) = entries(cache)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    with pytest.warns(CacheWarning, match=f"{path.name} is damaged"):
        assert serially(specs, train) == first
    assert ran(tmp_path) == [1, 1]
    assert path.read_bytes() == good


def test_a_flipped_bit_in_any_byte_is_seen(serially, cache):
    serially([Spec(1)], trouble)
    (path,) = entries(cache)
    good = path.read_bytes()
    store, run = Cache(cache), settled(Spec(1), trouble)
    assert store.get(run) == {"seed": 1}
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.warns(CacheWarning, match="is damaged"):
            assert store.get(run) is None


def test_an_entry_under_another_name_is_not_used(serially, tmp_path, cache):
    serially([Spec(1)], trouble)
    (one,) = entries(cache)
    serially([Spec(2)], trouble)
    (two,) = set(entries(cache)) - {one}
    two.write_bytes(one.read_bytes())
    with pytest.warns(CacheWarning, match="belongs to another run"):
        assert serially([Spec(2)], trouble) == [{"seed": 2}]


def test_an_entry_that_cannot_be_read(serially, cache):
    serially([Spec(1)], trouble)
    (path,) = entries(cache)
    path.unlink()
    path.mkdir()  # reading it is an OSError, also for root; so is replacing it
    with pytest.warns(CacheWarning) as seen:
        assert serially([Spec(1)], trouble) == [{"seed": 1}]
    assert [("is damaged" in str(w.message), "could not be stored" in str(w.message)) for w in seen] == [
        (True, False),
        (False, True),
    ]


def test_a_disk_that_fills_up_loses_no_record(serially, cache, monkeypatch):
    real, left = os.fsync, [2]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(CacheWarning, match=r"2 finished runs could not be stored.*No space left.*DECORLIB_CACHE"):
        records = serially(FOUR, train)
    assert [r["seed"] for r in records] == [0, 1, 2, 3]
    assert len(entries(cache)) == 2
    assert [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".json"] == []


def test_a_cache_that_cannot_be_made_loses_no_record(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(CacheWarning, match="4 finished runs could not be stored") as seen:
        assert len(sweep(FOUR, train, engine="serial", cache=tmp_path / "file" / "cache")) == 4
    assert len([w for w in seen if "could not be stored" in str(w.message)]) == 1


def test_the_cache_holds_no_pickle_and_says_what_it_is(serially, cache):
    serially([Spec(1)], trouble)
    (path,) = entries(cache)
    entry = json.loads(path.read_text())
    assert entry["record"] == {"seed": 1}
    assert entry["spec"] == {"seed": 1, "rate": 0.1, "kind": "fine", "folder": "", "widths": [4, 3]}
    assert entry["function"] == "sweep_functions.trouble"
    assert entry["environment"]["torch"] == torch.__version__
    assert path.parent.name == path.name[:2]


# ----------------------------------------------------------------------------------------- processes that die


def kill_and_resume(folder: Path, moments: list[tuple[int, float, int]]) -> None:
    """Stop the sweep after some entries and some seconds by a signal, each time; then finish it and compare."""
    cache, result = folder / "cache", folder / "result.json"
    for count, delay, how in moments:
        process = run_script(sweep_functions.__file__, cache, result, wait=False)
        wait_until(lambda process=process, count=count: len(entries(cache)) >= count or process.poll() is not None)
        time.sleep(delay)
        assert process.poll() is None, process.communicate()
        workers = children(process.pid)
        os.kill(process.pid, how)
        process.communicate(timeout=60)
        wait_until(lambda workers=workers: not any(alive(pid) for pid in workers), 20)
        assert not result.exists()
        for path in entries(cache):  # nothing half is under a final name
            assert json.loads(path.read_text())["record"]["status"] == "finished"
    kept = {path: path.stat().st_mtime_ns for path in entries(cache)}
    done = run_script(sweep_functions.__file__, cache, result)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())  # what was there was not run again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = sweep(
            [Spec(seed=s) for s in range(sweep_functions.RUNS)], slow, engine="serial", cache=folder / "other"
        )
    assert json.loads(result.read_text()) == expected
    names = {path.name: path.read_bytes() for path in entries(cache)}
    assert names == {path.name: path.read_bytes() for path in entries(folder / "other")}


def test_killed_and_called_again_it_gives_the_same_records(tmp_path):
    draw = random.Random(0)
    kill_and_resume(tmp_path, [(1, draw.uniform(0, 0.2), signal.SIGKILL)])


@pytest.mark.slow
def test_interrupted_by_ctrl_c_it_leaves_at_once(tmp_path):
    kill_and_resume(tmp_path, [(2, 0.05, signal.SIGINT)])


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path):
    draw = random.Random(1)
    before_the_first = [(0, draw.uniform(0, 5), signal.SIGKILL) for _ in range(4)]
    later = [(count, draw.uniform(0, 0.1), signal.SIGKILL) for count in sorted(draw.choices(range(1, 9), k=16))]
    kill_and_resume(tmp_path, before_the_first + later)


def test_two_sweeps_at_once_on_one_cache(cache):
    answers = {}

    def one(name):
        answers[name] = sweep(FOUR, slow, engine="local", jobs=1, cache=cache)

    both = [threading.Thread(target=one, args=(name,)) for name in "ab"]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(120)
    assert [r["seed"] for r in answers["a"]] == [0, 1, 2, 3]
    assert answers["a"] == answers["b"]
    assert len(entries(cache)) == 4


# ------------------------------------------------------------------------------------------------- a cluster


@pytest.fixture(scope="module")
def scheduler():
    """A Dask scheduler on loopback with two workers in processes of their own."""
    distributed = pytest.importorskip("distributed")
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, worker_dashboard_address=None
        ) as cluster,
    ):
        yield cluster.scheduler_address


def test_a_cluster_gives_the_same_records(scheduler, tmp_path):
    specs = in_folder(tmp_path, *range(6))
    far = sweep(specs, slow, engine=scheduler, cache=tmp_path / "far")
    workers = {line.split()[1] for line in (tmp_path / "ran").read_text().splitlines()}
    assert len(workers) == 2
    assert str(os.getpid()) not in workers
    near = sweep(specs, slow, engine="serial", cache=tmp_path / "near")
    assert canonical(far) == canonical(near)
    assert [p.name for p in entries(tmp_path / "far")] == [p.name for p in entries(tmp_path / "near")]


@pytest.mark.slow
def test_a_cluster_collects_errors_and_survives_a_crash(scheduler, cache):
    specs = [Spec(seed=i, kind=kind) for i, kind in enumerate(["fine", "raise", "crash", "fine", "unpicklable"])]
    with pytest.raises(SweepFailed, match="3 of 5 runs failed") as failed:
        sweep(specs, trouble, engine=scheduler, cache=cache)
    assert [error.spec.kind for error in failed.value.errors] == ["raise", "crash", "unpicklable"]
    assert "KilledWorker" in failed.value.errors[1].error
    assert failed.value.records == [{"seed": 0}, None, None, {"seed": 3}, None]


def test_a_cluster_with_other_code_is_refused(monkeypatch):
    here = identity.environment(train, Spec)
    monkeypatch.setattr(engines, "environment", lambda function, spec_type: {**here, "code": "other"})

    class Client:
        def run(self, _, function, spec_type):
            return {"worker": here}

    with pytest.raises(RuntimeError, match="worker worker has other code than this machine"):
        engines.cluster_environment(Client(), train, Spec)


def test_no_cluster_there(monkeypatch):
    monkeypatch.setattr(engines, "CLUSTER_TIMEOUT", 1)
    with pytest.raises(RuntimeError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9.*dask scheduler"):
        sweep(FOUR, train, engine="tcp://127.0.0.1:9")
