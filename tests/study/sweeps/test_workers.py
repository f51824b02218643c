"""Workers: those that rest are the same processes again, unless anything changed that they would not notice; those that
die take no run with them.

Starting one imports torch. So they also rest from test to test, where a test can do with those of the one before.
"""

import os
import shutil
import signal
import threading
import time

import pytest
from processes import alive, run_script, wait_until
from sweep_functions import Spec, in_folder, train, trouble

from decorlib.study.experiments import experiment
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.sweeps import source, workers
from decorlib.study.sweeps.runs import SweepFailed, sweep


@pytest.fixture(scope="module", autouse=True)
def _nobody_rests_afterwards():
    workers.end()
    yield
    workers.end()


@pytest.fixture(autouse=True)
def _same_world(monkeypatch):
    """pytest writes the name of the running test into the environment, and another environment sends workers away."""
    world = workers._world

    def without_the_test():
        files, environment, *others = world()
        return files, tuple(item for item in environment if item[0] != "PYTEST_CURRENT_TEST"), *others

    monkeypatch.setattr(workers, "_world", without_the_test)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def pids(jobs: int = 2, keep: bool = True) -> set[int]:
    """Those of the workers that a sweep would get."""
    with workers.pool(jobs, keep=keep) as pool:
        return {process.pid for process in pool._processes.values()}


def _own_pid(_) -> int:
    time.sleep(0.05)  # so that one worker does not answer for both
    return os.getpid()


def gone(processes: set[int]) -> bool:
    return not any(alive(pid) for pid in processes)


def test_they_are_the_same_again():
    first = pids()
    assert len(first) == 2
    assert not gone(first)
    assert pids() == first
    assert pids(jobs=1) == first  # more than are needed
    workers.end()
    wait_until(lambda: gone(first), 10)
    assert pids().isdisjoint(first)


def test_the_interrupt_of_a_kernel_that_is_shut_down_is_not_theirs_to_answer(capfd):
    """Jupyter interrupts the whole process group: a resting worker neither dies of it nor prints a traceback."""
    workers.end()  # others would print where an earlier test looks
    with workers.pool(2, keep=True) as pool:
        started = set()
        wait_until(lambda: len(started.update(pool.map(_own_pid, range(4))) or started) == 2, 30)
    for pid in started:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert pids() == started
    assert "KeyboardInterrupt" not in capfd.readouterr().err


def test_those_that_are_too_few_make_room():
    workers.end()
    first = pids(jobs=1)
    assert len(pids(jobs=2)) == 2
    assert gone(first)


def test_they_do_not_rest_where_nobody_asked():
    resting = pids(jobs=1)
    others = pids(jobs=1, keep=False)
    assert others.isdisjoint(resting)
    assert gone(others)
    assert pids(jobs=1) == resting


def test_an_edited_file_sends_them_away(tmp_path, monkeypatch):
    copy = tmp_path / "decorlib"
    shutil.copytree(source.PACKAGE, copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    monkeypatch.setattr(source, "PACKAGE", copy)
    first = pids(jobs=1)
    assert pids(jobs=1) == first
    (copy / "rules" / "rules.py").write_text("x = 1\n")
    assert pids(jobs=1).isdisjoint(first)
    assert gone(first)


def test_another_world_sends_them_away(monkeypatch, tmp_path):
    def change_nothing():
        pass

    def change_the_environment():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def change_the_folder():
        monkeypatch.chdir(tmp_path)

    def change_the_path():
        monkeypatch.syspath_prepend(str(tmp_path))

    before = pids(jobs=1)
    for change in (change_nothing, change_the_environment, change_the_folder, change_the_path):
        change()
        now = pids(jobs=1)
        assert (now == before) if change is change_nothing else now.isdisjoint(before), change.__name__
        before = now


def test_an_exception_ends_them_at_once():
    with pytest.raises(KeyboardInterrupt), workers.pool(1, keep=True) as pool:  # noqa: PT012
        process = next(iter(pool._processes))
        pool.submit(time.sleep, 60)
        start = time.monotonic()
        raise KeyboardInterrupt
    wait_until(lambda: gone({process}), 10)
    assert time.monotonic() - start < 10
    assert process not in pids(jobs=1)


def test_after_their_rest_they_leave(monkeypatch):
    monkeypatch.setattr(workers, "REST", 0.2)
    first = pids(jobs=1)
    wait_until(lambda: gone(first), 10)
    assert workers._resting is None


def test_a_rest_that_was_interrupted_begins_anew(monkeypatch):
    monkeypatch.setattr(workers, "REST", 1.0)
    first = pids(jobs=1)
    with workers.pool(1, keep=True) as pool:
        time.sleep(1.2)  # longer than the rest that this call ended
        assert {process.pid for process in pool._processes.values()} == first
    assert pids(jobs=1) == first


def tiny(*seeds: int) -> list[Experiment]:
    return [Experiment(train_size=8, batch_size=8, epochs=1, hidden=(), measures="task", seed=seed) for seed in seeds]


def test_sweeps_of_decorlib_share_them(tmp_path):
    """Each waits for the next, with the same bits as workers of its own."""
    first = sweep(tiny(0), experiment.run, engine="local", jobs=1, cache=tmp_path / "a")
    processes = pids(jobs=1)
    second = sweep(tiny(1), experiment.run, engine="local", jobs=1, cache=tmp_path / "a")
    assert pids(jobs=1) == processes
    workers.end()
    alone = sweep(tiny(1), experiment.run, engine="local", jobs=1, cache=tmp_path / "b")
    for record in (*first, *second, *alone):
        del record["timing"]
    assert second == alone
    assert second != first


def test_sweeps_of_others_do_not(tmp_path):
    workers.end()
    sweep([Spec(seed=0)], train, engine="local", jobs=1, cache=tmp_path)
    assert workers._resting is None


def test_a_script_ends_although_they_rest(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from decorlib.study.sweeps import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers.pool(1, keep=True) as pool:\n"
        "        print(*pool._processes)\n"
    )
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert gone({int(pid) for pid in done.stdout.split()})


def test_two_threads_do_not_share_them():
    seen = []

    def sweep():
        with workers.pool(1, keep=True) as pool:
            seen.append({process.pid for process in pool._processes.values()})
            both.wait(60)

    both = threading.Barrier(2)
    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 2
    assert seen[0].isdisjoint(seen[1])
    assert sum(not gone(one) for one in seen) == 1  # one pair rests, the other has left


# ------------------------------------------------------------------------------------------------- workers that die
#
# At rest, at work, and at work for once; at random moments they die in soak.py.


def test_one_that_died_at_rest_is_replaced(tmp_path):
    first = pids(jobs=1)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: gone(first), 10)
    (record,) = sweep(tiny(0), experiment.run, engine="local", jobs=1, cache=tmp_path)
    assert record["status"] == "finished"


def test_a_worker_that_dies_takes_nothing_with_it(cache, tmp_path):
    specs = in_folder(tmp_path, *range(5))  # before it, beside it, and waiting
    specs[2] = Spec(seed=2, kind="killed", folder=str(tmp_path))
    with pytest.raises(SweepFailed, match=r"1 of 5 runs failed") as failed:
        sweep(specs, trouble, engine="local", jobs=2, cache=cache)
    assert [error.spec for error in failed.value.errors] == [specs[2]]
    assert "worker process died" in failed.value.errors[0].error
    assert failed.value.records == [{"seed": s} if s != 2 else None for s in range(5)]
    assert len(list(cache.rglob("*.json"))) == 4


@pytest.mark.slow
def test_a_worker_that_died_by_accident_is_no_error(cache, tmp_path):
    specs = [*in_folder(tmp_path, 0, 1, 2), *in_folder(tmp_path, 3, kind="crash once")]
    assert sweep(specs, trouble, engine="local", jobs=2, cache=cache) == [{"seed": s} for s in range(4)]
