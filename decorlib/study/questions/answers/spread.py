"""How far the checked numbers move between threads and releases of torch.

Run as ``python -m decorlib.study.questions.answers.spread``.

``measure`` adds what this environment computes to a file, ``table`` writes the page's table from the file. A tolerance
is sound where it is well above the spread that it has to cover and far below what it has to tell apart.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

import torch

from decorlib import metrics
from decorlib.data import inputs
from decorlib.study.evidence import provenance
from decorlib.study.evidence.markers import between
from decorlib.study.evidence.records import Record, dumps, load_records, write_atomic
from decorlib.study.experiments import notebook_2024
from decorlib.study.experiments.experiment import Experiment, run

PAGE = provenance.ROOT / "docs" / "numbers.md"
MEASURED = PAGE.with_suffix(".json")
THREADS = (1, 2)
CONDITIONS = ("threads", "torch", "instructions")  # instructions: the newest that torch may use on this processor

# Small copies of what the records hold: (record, value whose tolerance holds) by quantity.
ACCURACY = ("01", "test accuracy, as in 2024")
SMALL = Experiment(train_size=1000, epochs=3, hidden=(100,), lr=1e-3)
ARMS = {
    "backpropagation": SMALL.but(rule=None),
    "2024 rule": SMALL.but(decor_lr=1e-4),
    "kappa rule, demeaned": SMALL.but(rule="kappa", demean_inputs=True, decor_lr=1e-4),
    "convolution, 2024 rule": SMALL.but(model="convnet", decor_lr=1e-4, epochs=1),
}
SEEDS = 3


def seed_values() -> dict[str, list[float]]:
    """Every number that the 2024 notebook holds, by run and column, as our epochs give it.

    The third run as it was: the cell executed once, and again with an edited library that left R as it is.
    """
    batches, found = notebook_2024.loader(), {}
    histories = {name: notebook_2024.train(name, batches) for name in notebook_2024.RUNS}
    with notebook_2024.hot_reloaded():
        histories[notebook_2024.RUNS[2]] = notebook_2024.train(notebook_2024.RUNS[2], batches, allow_no_op=True)
    for name, history in histories.items():
        for key in ("bp_loss", "decorrelation_loss"):
            pairs = zip(history.as_printed_in_2024(), notebook_2024.printed(name), strict=False)
            values = [ours[key] for ours, theirs in pairs if theirs.get(key) is not None]
            if any(values):  # the first run has no task
                found[f"{name}, {key}"] = values
    return found


def record_values(arms: dict[str, Experiment] | None = None, seeds: int = SEEDS) -> dict[str, list[float]]:
    """Headline values of the records at small size: the spectrum, the initial loss, and what training ends with."""
    x = inputs.scale(notebook_2024.images(), "notebook").flatten(1)
    X = metrics.second_moment(x)
    found = {
        "top eigenvalue of the digits": [float(metrics.spectrum(x)[0])],
        "initial loss of the digits": [float((X - torch.eye(len(X), dtype=X.dtype)).square().mean())],
    }
    for name, spec in (ARMS if arms is None else arms).items():
        ended = [run(spec.but(seed=s))["final"] for s in range(seeds)]
        for key in ("test_accuracy", "test_loss", "correlation", "effective_rank"):
            if key in ended[0]:
                found[f"{key.replace('_', ' ')}, {name}"] = [final[key] for final in ended]
    return found


SHOWN = 0.02  # of what notebooks show with two or three digits and keep in no record


def tolerance_of(name: str, records: dict[str, Record]) -> tuple[float, str]:
    """The tolerance that holds for a quantity, as a part of it, and where it stands."""
    of_values = {"top eigenvalue of the digits": ("01", "top eigenvalue, zero at −2")}
    of_values["initial loss of the digits"] = ("02", "initial loss per batch of all 1,000 digits, 2024 scaling")
    if name.startswith(notebook_2024.RUNS):
        return float(records["00"].parameters["tolerance"]), "notebook 00, `study/experiments/test_notebook_2024.py`"
    if name.startswith("test accuracy"):
        of_values[name] = ACCURACY
    if name in of_values:
        number, value = of_values[name]
        return _relative(next(v for v in records[number].values if v["name"].startswith(value))), f"record {number}"
    return SHOWN, "shown, in no record"


def _relative(kept: dict) -> float:
    """A value's absolute tolerance over the value; in a record of format 1 it was relative already."""
    return kept["agrees"]["within"] / abs(kept["value"]) if "agrees" in kept else kept["tolerance"]


def measure(compute=lambda: {**seed_values(), **record_values()}) -> list[dict]:
    """All values with each number of threads, and once more with one: on one machine the same to the bit.

    Raises:
        RuntimeError: the repetition gave other bits; names the values.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    found = []
    try:
        torch.use_deterministic_algorithms(True)
        for threads in THREADS:
            torch.set_num_threads(threads)
            values = compute()
            if threads == 1 and (again := compute()) != values:
                moved = [name for name in values if values[name] != again[name]]
                raise RuntimeError(f"computed twice with one thread, these are not the same to the bit: {moved}")
            made = provenance.provenance().as_dict()
            machine = {"cpu": made["machine"]["cpu"], "instructions": torch.backends.cpu.get_cpu_capability()}
            found.append({"torch": torch.__version__, "threads": threads, **machine, "values": values})
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(strict)
    return found


def difference(a: list[float], b: list[float]) -> float:
    """Largest relative difference between two lists of the same numbers."""
    return max(0.0 if x == y else abs(x - y) / max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def spread(measured: list[dict], name: str, only: str | None = None) -> float | None:
    """Largest difference of a value between any two measurements, or those that differ in `only`; None without two."""
    others = [key for key in CONDITIONS if key != only] if only else []
    pairs = [(a, b) for a, b in combinations(measured, 2) if all(a[key] == b[key] for key in others)]
    return max((difference(a["values"][name], b["values"][name]) for a, b in pairs), default=None)


def table(measured: list[dict], records: dict[str, Record]) -> str:
    """The page's table in Markdown: tolerance, spread by each of :data:`CONDITIONS`, by all, and the ratio."""
    lines = [
        "| Value | Tolerance | Where | Threads | Releases | Instructions | All | Tolerance / spread |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def say(x: float | None) -> str:
        return "–" if x is None else "0" if x == 0 else f"{x:.1e}"

    for name in measured[0]["values"]:
        tolerance, where = tolerance_of(name, records)
        total = spread(measured, name)
        parts = (*(spread(measured, name, only) for only in CONDITIONS), total)
        ratio = f"{tolerance / total:.2g}" if total else "equal"
        lines.append(f"| {name} | {tolerance:.2g} | {where} | {' | '.join(map(say, parts))} | {ratio} |")
    told = {key: ", ".join(sorted({str(m[key]) for m in measured})) for key in ("cpu", *CONDITIONS)}
    made = f"torch {told['torch']}; {told['threads']} threads; {told['instructions']}; on {told['cpu']}"
    return "\n".join(lines) + f"\n\n{len(measured)} measurements: {made}.\n"


def in_page(text: str, made: str) -> str:
    """The page with the table between its markers made anew."""
    return between(text, "spread", made)


def main(arguments: list[str] | None = None) -> int:
    """``measure`` in every environment that shall count, then ``table``; ``clear`` begins anew."""
    parser = argparse.ArgumentParser(prog="python -m decorlib.study.questions.answers.spread", description=main.__doc__)
    parser.add_argument("action", choices=("measure", "table", "clear"))
    parser.add_argument("--file", type=Path, default=MEASURED, help="default: docs/numbers.json")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/numbers.md")
    options = parser.parse_args(arguments)
    if options.action == "clear":
        options.file.unlink(missing_ok=True)
        return 0
    measured = json.loads(options.file.read_text(encoding="utf-8")) if options.file.exists() else []
    if options.action == "measure":
        new = measure()
        made = [[m[key] for key in CONDITIONS] for m in new]
        kept = [m for m in measured if [m[key] for key in CONDITIONS] not in made]
        write_atomic(options.file, dumps([*kept, *new]).encode())
        return 0
    if not measured:
        print(f"spread: {options.file} holds nothing: call `measure` first", file=sys.stderr)
        return 1
    text = in_page(options.page.read_text(encoding="utf-8"), table(measured, load_records()))
    write_atomic(options.page, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
