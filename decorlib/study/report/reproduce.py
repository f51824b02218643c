"""Run the notebooks and write ``results/``: ``python -m decorlib.study.report.reproduce``, or ``make reproduce``.

Each notebook runs by papermill in a folder of its own below ``build/``. Only when all of it has succeeded are
its executed notebook, record and figures put into the results, together. If it fails, the results of its
last successful run stay as they are: they are whole and carry their own provenance, and hours of computing
are not thrown away because a later attempt ran out of memory. The failed attempt is kept below ``build/``
(the message names it), the exit status is not zero, and the notebook runs again next time.

A notebook is skipped when nothing it depends on has changed since this clone last ran it: its source, its
parameters, decorlib's code, the locked versions, the Python that runs it and, for a notebook that reads
records, the earlier records. What it depended on is kept in ``build/``, which is not committed: a fresh clone
runs everything, which is the point of reproducing.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat

from decorlib.study.evidence import answers, compare
from decorlib.study.evidence.provenance import ROOT
from decorlib.study.evidence.records import EXTENDED, RecordDamaged, write_atomic
from decorlib.study.report import freshness, notebooks, publish
from decorlib.study.report.execute import NotebookFailed, execute
from decorlib.study.report.notebooks import BadParameters, Source

FAILED, USAGE, CHANGED = 1, 2, 3  # exit statuses: a notebook failed, bad request, a verdict changed
NOTHING = "nothing to be done"
COMMITTED = {"full": Path("results"), "extended": EXTENDED}  # where the profiles write whose results are committed


def base_environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables that the notebooks' kernels see."""
    env = {"DECORLIB_BATCH": "1", "PYTHONHASHSEED": "0", "IPYTHONDIR": str(options.build / "ipython")}
    if options.jobs:
        env["DECORLIB_JOBS"] = str(options.jobs)
    if options.engine:
        env["DECORLIB_ENGINE"] = options.engine
    return env


def run_one(source: Source, values: dict, found: dict[str, str], options: argparse.Namespace) -> Path:
    """Run a notebook in a folder of its own, below build/; return the folder once all of it is there."""
    freshness.forget(options, source)
    publish.clear(options, source)
    (options.build / "staging").mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{source.number}.", dir=options.build / "staging"))
    executed = staging / "notebooks" / source.path.name
    env = {
        **base_environment(options),
        "DECORLIB_RESULTS": str(staging),
        "DECORLIB_RECORDS": str(options.results / "records"),
        "DECORLIB_NOTEBOOK": source.number,
    }
    failed = options.build / "failed" / source.path.name
    failed.unlink(missing_ok=True)
    try:
        execute(source, executed, values, options.timeout, env)
    except NotebookFailed as error:
        if executed.exists():
            failed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(executed, failed)
            raise NotebookFailed(f"{error}\n    what it had done: {failed}") from error
        raise
    finally:
        if not executed.exists():
            shutil.rmtree(staging, ignore_errors=True)
    notebook = notebooks.normalise(nbformat.read(executed, as_version=4))
    notebook.metadata["decorlib"] = {
        "profile": options.profile,
        "parameters": values,
        "outputs": freshness.digests(staging, skip=executed),
    }
    notebooks.write(notebook, executed)
    publish.ended(staging, found, options, source)
    return staging


def refresh_sources(sources: list[Source], options: argparse.Namespace) -> list[str]:
    """Run each notebook at its own (quick) values and store the outputs in it, volatile parts removed.

    This is how notebooks are committed. ``make test`` runs them again and compares. A notebook that fails
    keeps its source as it was.
    """
    failures = []
    for source in sources:
        temporary = options.build / "refresh" / source.path.name
        env = {**base_environment(options), "DECORLIB_PROGRESS": "off"}
        for name in ("DECORLIB_RESULTS", "DECORLIB_RECORDS", "DECORLIB_NOTEBOOK", "DECORLIB_BATCH"):
            os.environ.pop(name, None)
            env.pop(name, None)
        begin = time.perf_counter()
        try:
            execute(source, temporary, {}, options.timeout, env)
            notebook = notebooks.normalise(nbformat.read(temporary, as_version=4))
            notebooks.write(notebook, temporary)
            write_atomic(source.path, temporary.read_bytes())
        except (NotebookFailed, OSError) as error:
            print(error if isinstance(error, NotebookFailed) else f"{source.path.name}: {error}", file=sys.stderr)
            failures.append(source.number)
            continue
        print(f"{source.number}  refreshed in {time.perf_counter() - begin:.1f} s")
    return failures


def reproduce(options: argparse.Namespace) -> int:
    """Run what has changed, compare the records, build the report; return the exit status."""
    try:
        sources = notebooks.find(options.root / "notebooks", options.only)
        if options.profile == "extended" and not options.only:  # of the others the full run is all there is
            sources = notebooks.with_extended(sources)
        # All parameters are checked before anything runs: an hour later is too late for a misspelt name.
        values = {s.number: notebooks.parameters(s, options.profile, options.seeds, options.device) for s in sources}
    except BadParameters as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return USAGE
    if not sources:
        those = " with values in params/NN.extended.yaml" if options.profile == "extended" else ""
        print(f"reproduce: no notebooks{those} in {options.root / 'notebooks'}", file=sys.stderr)
        return USAGE
    if options.refresh_sources:
        return FAILED if refresh_sources(sources, options) else 0
    for flag, name in ((options.seeds, "seeds"), (options.device, "device")):
        if flag is not None:
            for s in sources:
                if name not in notebooks.defaults(s.read(), s.path.name):
                    print(f"{s.number}  has no parameter `{name}`: runs without it")
    try:
        before = compare.read_folder(options.results / "records")
    except RecordDamaged as error:
        print(f"note: {error}", file=sys.stderr)
        before = {}
    failures = run_all(sources, values, options)
    if failures:
        print("\n".join(["", f"{len(failures)} notebook(s) FAILED:", *failures.values()]), file=sys.stderr)
        print("their results are those of the last successful run, where there is one", file=sys.stderr)
    status = finish(options, before)
    return FAILED if failures else status


def run_all(sources: list[Source], values: dict, options: argparse.Namespace) -> dict[str, str]:
    """Run the notebooks in order; a failure does not stop the others. Returns number -> message."""
    failures: dict[str, str] = {}
    for source in sources:
        begin = time.perf_counter()
        try:
            did = bring_up_to_date(source, values[source.number], options)
        except (NotebookFailed, OSError) as error:
            message = str(error) if isinstance(error, NotebookFailed) else not_written(error, source)
            failures[source.number] = message
            print(f"{source.number}  FAILED after {time.perf_counter() - begin:.1f} s: {message}", file=sys.stderr)
            continue
        print(f"{source.number}  done in {time.perf_counter() - begin:.1f} s" if did else f"{source.number}  {NOTHING}")
        sys.stdout.flush()
    return failures


def bring_up_to_date(source: Source, values: dict, options: argparse.Namespace) -> bool:
    """Run a notebook where something changed, or publish the run that could not be; False where all is as it was.

    Raises:
        NotebookFailed: it did not run to its end.
        OSError: a file could not be written; the results are as they were.
    """
    found = freshness.collect(source, values, options)
    here = publish.outputs(options.results, source)
    reason = "--force" if options.force else freshness.why_run(found, source, options, here)
    if reason is None:
        return False
    staging = None if options.force else publish.unpublished(found, options, source)
    if staging is not None:
        reason = "its last run could not be published"
    name = source.path.stem[3:].replace("_", " ")
    print(f"{source.number}  {name} ({options.profile}: {reason})", flush=True)
    if staging is None:
        staging = run_one(source, values, found, options)
    try:
        publish.publish(staging, options.results, source)
    except OSError as error:
        error.add_note(
            f"it ran to its end and its results wait in {staging}: free space or make {options.results} writable and "
            "call again, which will only publish them"
        )
        raise
    freshness.remember(found, source, options, publish.outputs(options.results, source))
    publish.clear(options, source)
    return True


def not_written(error: OSError, source: Source) -> str:
    """What a full disk or a read-only folder stopped, and the way out."""
    notes = getattr(error, "__notes__", ["free space there or make it writable, and call again"])
    return "; ".join([f"{source.path.name}: {error}", *notes])


def finish(options: argparse.Namespace, before: dict) -> int:
    """Compare the records with the committed ones and build the report where something changed."""
    try:
        committed = None
        if options.profile in COMMITTED:
            committed = compare.read_committed(options.root, f"{COMMITTED[options.profile].as_posix()}/records")
        new = compare.read_folder(options.results / "records")
    except RecordDamaged as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return FAILED
    against = "the committed records" if committed is not None else "the records from before this run"
    print(f"\ncompared with {against}:")
    result = compare.compare(committed if committed is not None else before, new)
    print(result.text())
    readme = options.root / "README.md"
    try:
        if options.profile == "full" and readme.exists() and answers.write_readme(new, readme):
            print("README.md: answers written from the records")
    except RecordDamaged as error:  # of the longer study
        print(f"reproduce: {error}", file=sys.stderr)
        return FAILED
    if options.report:
        from decorlib.study.report import build

        if not build.build(options.root, options.results, options.build):
            return FAILED
    return CHANGED if result.verdicts else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line, with the folders that follow from it."""
    parser = argparse.ArgumentParser(
        prog="python -m decorlib.study.report.reproduce",
        description="Run the notebooks; write results/.",
    )
    parser.add_argument("--only", nargs="+", metavar="NN", help="numbers of the notebooks to run")
    parser.add_argument("--profile", choices=notebooks.PROFILES, default="full", help="default: full")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds, where a notebook has `seeds`")
    parser.add_argument("--device", help="torch device, where a notebook has `device`")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes of a sweep; default: cores")
    parser.add_argument("--engine", help="serial, local, or tcp://host:port of a Dask scheduler")
    parser.add_argument("--force", action="store_true", help="run even where nothing changed")
    parser.add_argument("--timeout", type=int, metavar="S", help="seconds a cell may take; default: no limit")
    parser.add_argument("--no-report", dest="report", action="store_false", help="do not build the report")
    parser.add_argument(
        "--refresh-sources", action="store_true", help="store the quick run's outputs in notebooks/ instead"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with notebooks/; default: the clone")
    options = parser.parse_args(arguments)
    options.root = options.root.resolve()
    # A quick look must never replace what an afternoon computed, nor the longer study what a newcomer can repeat.
    build = options.root / "build"
    options.results = options.root / COMMITTED.get(options.profile, build / options.profile)
    options.report = options.report and options.profile != "extended"  # the full run's report shows what it found
    options.build = build / "reproduce" / options.profile
    return options


def main(arguments: list[str] | None = None) -> int:
    """Entry point; one at a time in a clone."""
    options = parse(arguments)
    os.environ.pop("JUPYTER_PATH", None)  # another environment's kernel `python3` would win
    try:
        with publish.one_at_a_time(options.root):
            options.build.mkdir(parents=True, exist_ok=True)
            return reproduce(options)
    except KeyboardInterrupt:
        print("\ninterrupted; finished notebooks are kept, this one runs again next time", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"reproduce: {error}: free space there or make it writable, and call again", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
