"""Sweeps for half an hour with faults at random: ``python tests/soak.py --minutes 30``.

Every round sweeps a few of the same small training runs after some of their entries were forgotten on purpose, and
suffers one fault: a worker is killed, entries are cut short or have a bit flipped, the disk is full, Ctrl-C is pressed,
or nothing happens. An interrupted or refused sweep is called again, as its user would. The records must be those of
an undisturbed sweep to the bit, no whole entry may change or vanish, every damage must be named by a warning, and the
memory of the process must not grow.
"""

import argparse
import contextlib
import errno
import gc
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from decorlib._io.files import SUFFIX
from decorlib.study.experiments import experiment
from decorlib.study.sweeps import identity, runs
from decorlib.study.sweeps.cache import Cache, CacheWarning, canonical

BASE = experiment.Experiment(train_size=400, batch_size=32, epochs=2, hidden=(32,), decor_lr=1e-4)
SPECS = [
    *(BASE.but(seed=seed) for seed in range(5)),
    *(BASE.but(seed=seed, rule="kappa", layer_options=(("center", "running"),)) for seed in range(3)),
    BASE.but(rule=None),
    BASE.but(decor_lr=10.0),  # diverges, which is a result
    BASE.but(model="convnet", epochs=1, layer_options=(("fraction", 0.5),)),
]
FAULTS = ("nothing", "worker killed", "entry cut short", "bit flipped", "disk full", "Ctrl-C")
GROWTH = 32.0  # MiB over the whole soak that count as flat: the allocator's pools, not a leak of every round


@dataclass
class Found:
    """What happened."""

    rounds: Counter = field(default_factory=Counter)
    noticed: Counter = field(default_factory=Counter)  # faults that changed the course of a round
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # (minutes, MiB) at the end of each round
    runs: int = 0

    def slope(self) -> tuple[float, float]:
        """MiB per minute by least squares, and its standard error; the first third, which warms up, left out."""
        points = self.memory[len(self.memory) // 3 :]
        if len(points) < 3:
            return 0.0, 0.0
        x, y = zip(*points, strict=True)
        slope, start = statistics.linear_regression(x, y)
        left = sum((b - start - slope * a) ** 2 for a, b in points) / (len(points) - 2)
        spread = sum((a - statistics.fmean(x)) ** 2 for a in x)
        return slope, (left / spread) ** 0.5 if spread else 0.0

    def never_noticed(self, enough: int = 20) -> list[str]:
        """Faults that changed nothing in so many rounds: then they were not there, and nothing was tested."""
        played = Counter()
        for name, count in self.rounds.items():
            played[name.rsplit(",", 1)[0]] += count
        return [
            f"{fault}: not once noticed in {played[fault]} rounds"
            for fault in FAULTS
            if fault != "nothing" and played[fault] >= enough and not self.noticed[fault]
        ]


def resident() -> float:
    """MiB of this process."""
    gc.collect()
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) / 1024


def children() -> list[int]:
    """Of this process, without multiprocessing's resource tracker, which no sweep can do without."""
    found = []
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


def without_times(records: list[dict]) -> list[str]:
    """Records as text, but for how long the runs took."""
    return [canonical({k: v for k, v in record.items() if k != "timing"}) for record in records]


def entries(folder: Path) -> dict[Path, bytes]:
    """Whole entries of the cache."""
    return {path: path.read_bytes() for path in folder.rglob("*.json")}


class Soak:
    """The rounds; all that is random comes from one generator."""

    def __init__(self, folder: Path, seed: int, jobs: int):
        self.draw, self.jobs = random.Random(seed), jobs
        self.cache, self.found = folder / "cache", Found()
        self.expected = without_times(runs.sweep(SPECS, experiment.run, engine="serial", cache=folder / "reference"))
        environment = identity.environment(experiment.run, experiment.Experiment)
        self.runs = {run.key: run for run in identity.settle(SPECS, experiment.run, environment)}

    def round(self) -> None:
        """Forget some entries, do something bad, sweep, look at what is there."""
        draw, fault = self.draw, self.draw.choice(FAULTS)
        engine = "local" if fault == "worker killed" else draw.choice(["local", "serial"])
        self.found.rounds[f"{fault}, {engine}"] += 1
        chosen = draw.sample(range(len(SPECS)), draw.randint(2, 6))
        whole = entries(self.cache)
        for path in draw.sample(sorted(whole), len(whole) // 3):
            path.unlink()
            del whole[path]
        damaged = self.damage(fault, whole)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            records = self.sweep_until_done([SPECS[i] for i in chosen], engine, fault)
        self.check(fault, chosen, records, whole, damaged, [str(w.message) for w in said if w.category is CacheWarning])
        self.found.runs += len(chosen)

    def damage(self, fault: str, whole: dict[Path, bytes]) -> list[Path]:
        """Cut or flip some entries; they are no longer whole."""
        if fault not in ("entry cut short", "bit flipped") or not whole:
            return []
        paths = self.draw.sample(sorted(whole), min(3, len(whole)))
        for path in paths:
            content = bytearray(whole.pop(path))
            at = self.draw.randrange(len(content))
            if fault == "bit flipped":
                content[at] ^= 1 << self.draw.randrange(8)
            path.write_bytes(content if fault == "bit flipped" else content[:at])
        return paths

    def sweep_until_done(self, specs: list, engine: str, fault: str) -> list[dict]:
        """The user's part: call again after an interruption or an error that asks for it."""
        once = True
        while True:
            try:
                with self.suffering(fault if once else "nothing", within=6.0 if engine == "local" else 0.4):
                    return runs.sweep(specs, experiment.run, engine=engine, jobs=self.jobs, cache=self.cache)
            except KeyboardInterrupt:
                if fault != "Ctrl-C":
                    raise
                self.found.noticed["Ctrl-C"] += 1
            except RuntimeError as error:  # killed while it started: the sweep says so, and nothing was computed
                if "could not start" not in str(error) or fault != "worker killed":
                    raise
                self.found.noticed["worker killed at its start"] += 1
            once = False

    @contextlib.contextmanager
    def suffering(self, fault: str, within: float):
        """The fault during the block, after a random time of at most so many seconds, about what a sweep takes."""
        over, delay = threading.Event(), self.draw.uniform(0.05, within)

        def strike():
            if over.wait(delay):
                return
            if fault == "Ctrl-C":
                os.kill(os.getpid(), signal.SIGINT)
                return
            for pid in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.found.noticed["worker killed"] += 1

        real, left = os.fsync, [self.draw.randint(0, 1)]

        def fsync(descriptor):
            left[0] -= 1
            if left[0] < 0:
                self.found.noticed["disk full"] += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        thread = threading.Thread(target=strike) if fault in ("Ctrl-C", "worker killed") else None
        if fault == "disk full":
            os.fsync = fsync
        if thread:
            thread.start()
        try:
            yield
        finally:
            os.fsync = real
            over.set()
            if thread:
                thread.join()

    def check(self, fault, chosen, records, whole, damaged, said) -> None:
        """Equal records, nothing lost, every damage named."""
        wrong = self.found.wrong
        for i, record in zip(chosen, without_times(records), strict=True):
            if record != self.expected[i]:
                wrong.append(f"{fault}: another record of {SPECS[i]}")
        now = entries(self.cache)
        wrong += [f"{fault}: entry {path.name} changed or vanished" for path in whole if now.get(path) != whole[path]]
        read = {json.dumps(identity.spec_dict(SPECS[i]), sort_keys=True) for i in chosen}
        for path in damaged:
            named = any(path.name in text and "is damaged" in text for text in said)
            self.found.noticed[fault] += named
            if not named and self.is_of(now.get(path), read):
                wrong.append(f"{fault}: {path.name} was used or replaced without a word")
        for path in set(now) - set(damaged):
            if Cache(self.cache).get(self.runs[path.stem]) is None:
                wrong.append(f"{fault}: {path.name} is not whole")
        for path in damaged:  # those that this round did not read: not to be counted twice
            if path in now and not any(path.name in text for text in said):
                path.unlink()
        wrong += [f"{fault}: {path.name} was left" for path in self.cache.rglob(f"*{SUFFIX}")]
        if fault == "disk full" and any("could not be stored" in text for text in said):
            self.found.noticed["disk full, said"] += 1
        end = time.monotonic() + 10  # after Ctrl-C a sweep returns at once, while its workers take their leave
        while (left := children()) and time.monotonic() < end:
            time.sleep(0.05)
        if left:
            wrong.append(f"{fault}: workers {left} outlive their sweep")

    @staticmethod
    def is_of(content: bytes | None, specs: set[str]) -> bool:
        """Whether an entry is whole again and answers one of the specifications: then its damage was met."""
        try:
            return json.dumps(json.loads(content)["spec"], sort_keys=True) in specs
        except (TypeError, ValueError, KeyError):
            return False


def soak(minutes: float, seed: int, jobs: int, folder: Path, tell=print) -> Found:
    """Rounds until the time is up, then everything once more without faults."""
    work = Soak(folder, seed, jobs)
    begin = time.monotonic()
    while (passed := (time.monotonic() - begin) / 60) < minutes or not work.found.memory:
        work.round()
        work.found.memory.append((passed, resident()))
        if len(work.found.memory) % 20 == 0:
            tell(f"{passed:5.1f} min, {len(work.found.memory)} rounds, {work.found.memory[-1][1]:.0f} MiB", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheWarning)
        last = runs.sweep(SPECS, experiment.run, engine="serial", cache=work.cache)
    if without_times(last) != work.expected:
        work.found.wrong.append("after the last round: other records than an undisturbed sweep's")
    before = entries(work.cache)
    runs.sweep(SPECS, experiment.run, engine="serial", cache=work.cache)
    if len(before) != len(SPECS) or entries(work.cache) != before:
        work.found.wrong.append("after the last round: the cache is not whole")
    work.found.wrong += work.found.never_noticed()
    return work.found


def summary(found: Found) -> str:
    """For the closing note."""
    slope, error = found.slope()
    memory = [m for _, m in found.memory]
    lines = [f"{len(memory)} rounds, {found.runs} runs asked for in {found.memory[-1][0]:.1f} min"]
    lines += [f"  {count:4d} rounds with {name}" for name, count in sorted(found.rounds.items())]
    lines += [f"  {count:4d} x {name}" for name, count in sorted(found.noticed.items())]
    lines.append(
        f"memory: {memory[0]:.0f} MiB after the first round, at most {max(memory):.0f}, {memory[-1]:.0f} at the end"
    )
    lines.append(f"slope after the first third: {slope:+.3f} +- {error:.3f} MiB/min")
    return "\n".join([*lines, f"wrong: {len(found.wrong)}", *found.wrong[:20]])


def main(arguments: list[str] | None = None) -> int:
    """1 where anything was lost, another record came out, or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--seed", type=int, default=0, help="of the faults; default: 0")
    parser.add_argument("--jobs", type=int, default=1, help="workers of a sweep; default: 1")
    options = parser.parse_args(arguments)
    os.environ["DECORLIB_PROGRESS"] = "off"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    with tempfile.TemporaryDirectory() as folder:
        found = soak(options.minutes, options.seed, options.jobs, Path(folder))
    print(summary(found))
    slope, error = found.slope()
    grew = slope - 2 * error > 0 and slope * options.minutes > GROWTH
    if grew:
        print(f"memory grows: more than {GROWTH:g} MiB in {options.minutes:g} minutes")
    return 1 if found.wrong or grew else 0


if __name__ == "__main__":
    sys.exit(main())
