"""Run the notebooks and write ``results/``: ``python -m decorlib.study.report.reproduce``, or ``make reproduce``.

Each notebook runs by papermill in a folder of its own below ``build/``. Only when all of it has succeeded are
its executed notebook, record and figures put into the results, together. If it fails, the results of its
last successful run stay as they are: they are whole and carry their own provenance, and hours of computing
are not thrown away because a later attempt ran out of memory. The failed attempt is kept below ``build/``
(the message names it), the exit status is not zero, and the notebook runs again next time.

A notebook is skipped when nothing it depends on has changed since this clone last ran it: its source, its
parameters, the code that it imports, the locked versions, the Python that runs it and, for a notebook that reads
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

from decorlib._io import products
from decorlib.study.evidence import answers, compare
from decorlib.study.evidence.records import RecordDamaged, load_records, write_atomic
from decorlib.study.report import freshness, notebooks, publish
from decorlib.study.report.execute import NotebookFailed, execute
from decorlib.study.report.freshness import Job
from decorlib.study.report.notebooks import BadParameters, Source
from decorlib.study.report.request import COMMITTED, BadRequest, parse
from decorlib.study.report.told import TimeLeft, tables_and_verdicts

FAILED, USAGE, CHANGED = 1, 2, 3  # exit statuses: a notebook failed, bad request, something else was found
NOTHING = "nothing to be done"
AS_INSTALLED = ("08",)  # what a step costs is asked for torch as everybody has it


def base_environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables that the notebooks' kernels see."""
    env = {"DECORLIB_BATCH": "1", "PYTHONHASHSEED": "0", "IPYTHONDIR": str(options.build / "ipython")}
    if options.jobs:
        env["DECORLIB_JOBS"] = str(options.jobs)
    if options.engine:
        env["DECORLIB_ENGINE"] = options.engine
    return env


def run_one(job: Job, options: argparse.Namespace) -> Path:
    """Run a notebook in a folder of its own, below build/; return the folder once all of it is there."""
    freshness.forget(job)
    publish.clear(job)
    job.staging.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{job.number}.", dir=job.staging))
    executed = staging / "notebooks" / job.source.path.name
    env = {
        **base_environment(options),
        "DECORLIB_RESULTS": str(staging),
        "DECORLIB_RECORDS": str(job.results / "records"),
        "DECORLIB_NOTEBOOK": job.number,
        **({} if job.number in AS_INSTALLED else products.environment()),
    }
    job.failed.unlink(missing_ok=True)
    try:
        execute(job.source, executed, job.values, options.timeout, env)
    except NotebookFailed as error:
        if executed.exists():
            job.failed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(executed, job.failed)
            raise NotebookFailed(f"{error}\n    what it had done: {job.failed}") from error
        raise
    finally:
        if not executed.exists():
            shutil.rmtree(staging, ignore_errors=True)
    notebook = notebooks.normalise(nbformat.read(executed, as_version=4))
    if job.profile in COMMITTED:  # of a quick run nothing came out
        made = load_records(staging / "records").get(job.number)
        notebook.cells[0].source = answers.in_title(made, notebook.cells[0].source)
    notebook.metadata["decorlib"] = {
        "profile": job.profile,
        "parameters": job.values,
        "outputs": freshness.digests(staging, skip=executed),
    }
    notebooks.write(notebook, executed)
    publish.ended(job, staging)
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
        before = load_records(options.results / "records")
    except RecordDamaged as error:
        print(f"note: {error}", file=sys.stderr)
        before = {}
    sources = notebooks.readers_last(sources)
    failures = run_all(sources, values, options, TimeLeft([source.number for source in sources], before))
    if failures:
        print("\n".join(["", f"{len(failures)} notebook(s) FAILED:", *failures.values()]), file=sys.stderr)
        print("their results are those of the last successful run, where there is one", file=sys.stderr)
    compared = [source.number for source in sources if source.number not in failures]
    status = finish(options, before, compared)
    return FAILED if failures else status


def run_all(sources: list[Source], values: dict, options: argparse.Namespace, progress: TimeLeft) -> dict[str, str]:
    """Run notebooks one after the other; a failure does not stop the others. Returns number -> message."""
    failures: dict[str, str] = {}
    for source in sources:
        begin = time.perf_counter()
        try:
            did = bring_up_to_date(source, values[source.number], options)
        except (NotebookFailed, OSError, SyntaxError) as error:
            message = not_written(error, source) if isinstance(error, OSError) else str(error)
            failures[source.number] = message
            progress.after(source.number, 0.0, ran=False)
            print(f"{source.number}  FAILED after {time.perf_counter() - begin:.1f} s: {message}", file=sys.stderr)
            continue
        seconds = time.perf_counter() - begin
        words = f"done in {seconds:.1f} s" if did else NOTHING
        print(f"{source.number}  {words}{progress.after(source.number, seconds, did)}", flush=True)
    return failures


def bring_up_to_date(source: Source, values: dict, options: argparse.Namespace) -> bool:
    """Run a notebook where something changed, or publish the run that could not be; False where all is as it was.

    Raises:
        NotebookFailed: it did not run to its end.
        OSError: a file could not be written; the results are as they were.
    """
    job = freshness.settle(source, values, options)
    reason = "--force" if options.force else freshness.why_run(job, publish.outputs(job))
    if reason is None:
        return False
    staging = None if options.force else publish.unpublished(job)
    if staging is not None:
        reason = "its last run could not be published"
    name = source.path.stem[3:].replace("_", " ")
    print(f"{source.number}  {name} ({job.profile}: {reason})", flush=True)
    if staging is None:
        staging = run_one(job, options)
    try:
        publish.publish(job, staging)
    except OSError as error:
        error.add_note(
            f"it ran to its end and its results wait in {staging}: free space or make {job.results} writable and "
            "call again, which will only publish them"
        )
        raise
    freshness.remember(job, publish.outputs(job))
    publish.clear(job)
    return True


def not_written(error: OSError, source: Source) -> str:
    """What a full disk or a read-only folder stopped, and the way out."""
    notes = getattr(error, "__notes__", ["free space there or make it writable, and call again"])
    return "; ".join([f"{source.path.name}: {error}", *notes])


def finish(options: argparse.Namespace, before: dict, numbers: list[str]) -> int:
    """Compare the records of these notebooks with the committed ones; build the report where something changed."""
    against, old = "the records from before this run", before
    try:
        if options.profile in COMMITTED:
            old = compare.read_committed(options.root, f"{COMMITTED[options.profile].as_posix()}/records")
            against = "the committed records"
    except compare.NoGit as error:
        print(f"\ngit cannot say what is committed: {error}")
    except RecordDamaged as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return FAILED
    try:
        new = load_records(options.results / "records")
    except RecordDamaged as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return FAILED
    if options.only:
        print(*(f"\n{tables_and_verdicts(new[number])}" for number in numbers if number in new), sep="\n")
    print(f"\ncompared with {against}:")
    result = compare.compare(*({n: r for n, r in records.items() if n in numbers} for records in (old, new)))
    result.notes += compare.made_elsewhere(old, {n: record for n, record in new.items() if n in numbers})
    if others := sorted({*old, *new} - set(numbers)):
        result.notes.append(f"not run, so not compared: {', '.join(others)}")
    print(result.text())
    readme = options.root / "README.md"
    try:
        if options.profile == "full" and readme.exists() and answers.write_readme(new, readme):
            print("README.md: answers written from the records")
        if options.profile == "full":
            titles = answers.write_titles(new, options.root / "notebooks", options.root)
            answers.write_titles(new, options.results / "notebooks", options.root)
            if titles:
                print(f"what came out, written into the first cells of {', '.join(titles)}")
    except RecordDamaged as error:  # of the longer study
        print(f"reproduce: {error}", file=sys.stderr)
        return FAILED
    if options.report:
        from decorlib.study.report import build

        if not build.build(options.root, options.results, options.build):
            return FAILED
    return CHANGED if result.failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point; one at a time in a clone."""
    try:
        options = parse(arguments)
    except BadRequest as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return USAGE
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
