"""What a notebook's results depend on, as hashes: is there anything to be done?"""

import ast
import hashlib
import json
import platform
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from decorlib.study.evidence.answers import CAME_OUT
from decorlib.study.evidence.provenance import DATA
from decorlib.study.evidence.records import EXTENDED, Record, RecordDamaged, dumps, write_atomic
from decorlib.study.evidence.shared import REGISTRY
from decorlib.study.report.notebooks import Source
from decorlib.study.sweeps import source as code

PACKAGE = DATA.parent


@dataclass(frozen=True)
class Job:
    """A notebook on its way through ``reproduce``: what will be run, from what, and where it leaves things.

    Settled by :func:`settle` when its turn comes (it may read records that others have just written) and carried
    through execution, publishing and the note of what the results were made from.

    Args:
        source: the notebook.
        values: parameters to be injected.
        inputs: everything that its results depend on, as name -> hash.
        profile: "quick", "full" or "extended".
        results: folder that its files are put into.
        build: folder for what is under way and for notes.
    """

    source: Source
    values: dict
    inputs: dict[str, str]
    profile: str
    results: Path
    build: Path

    @property
    def number(self) -> str:
        return self.source.number

    @property
    def stamp(self) -> Path:
        """Notes what the results were made from."""
        return self.build / "stamps" / f"{self.source.path.stem}.json"

    @property
    def staging(self) -> Path:
        """Runs of notebooks, in folders of their own, until they are published."""
        return self.build / "staging"

    @property
    def ended(self) -> Path:
        """Notes that a run is whole and not yet published."""
        return self.staging / f"{self.number}.json"

    @property
    def failed(self) -> Path:
        """The executed notebook of a run that did not come to its end."""
        return self.build / "failed" / self.source.path.name


def settle(source: Source, values: dict, options: Namespace) -> Job:
    """The job of one notebook, as everything is now."""
    return Job(source, values, inputs(source, values, options), options.profile, options.results, options.build)


def sha(data: bytes | str) -> str:
    """Hex digest of bytes or of a text."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def digests(folder: Path, skip: Path | None = None) -> dict[str, str]:
    """sha256 of every file below a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): sha(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != skip
    }


def imported(cells: list[str], beside: Path) -> dict[str, Path]:
    """Name and source of every module that code cells import, to the last one, installed packages aside.

    Args:
        cells: their texts; one that is no Python will say so when it is run.
        beside: the notebook's folder, which Python searches first.
    """
    names: set[str] = set()
    for cell in cells:
        text = TransformerManager().transform_cell(cell)
        try:
            ast.parse(text)
        except SyntaxError:
            continue
        names |= code.imports(text)
    return code.reach(names, beside=beside)


def inputs(source: Source, values: dict, options: Namespace) -> dict[str, str]:
    """Everything the results of one notebook depend on, as name -> hash."""
    lock = options.root / "requirements.lock"
    cells = source.read().cells
    found = {
        # without outputs, counts and ids, and without what came out, which is made from the results
        "the notebook": sha(
            json.dumps([[c.cell_type, CAME_OUT.sub("", c.source), sorted(c.metadata.get("tags", []))] for c in cells])
        ),
        "its parameters": sha(dumps(values)),
        "requirements.lock": sha(lock.read_bytes()) if lock.exists() else "none",
        "the data": sha((DATA / "mnist" / "SHA256SUMS").read_bytes()),
        "the Python version": platform.python_version(),
    }
    modules = imported([cell.source for cell in cells if cell.cell_type == "code"], source.path.parent)
    for name, path in sorted(modules.items()):
        found[name] = sha(code.code_of(path.read_text(encoding="utf-8")))
    text = "\n".join(cell.source for cell in cells)
    if source.reads_records:
        for path in sorted((options.results / "records").glob("[0-9][0-9].json")):
            if path.stem != source.number:
                found[f"record {path.stem}"] = _findings(path)
        for path in sorted((options.root / EXTENDED / "records").glob("[0-9][0-9].json")):
            found[f"extended record {path.stem}"] = _findings(path)
        shared = options.root / REGISTRY
        found["the shared comparisons"] = sha(shared.read_bytes()) if shared.exists() else "none"
    longer = options.root / EXTENDED / "records" / f"{source.number}.json"
    if "load_extended" in text and options.profile != "extended" and longer.exists():
        found["the extended record"] = _findings(longer)
    return found


def _findings(path: Path) -> str:
    """Hash of a record without made_by and sha256: the same findings on another day are the same input."""
    try:
        content = Record.load(path).content()
    except RecordDamaged:  # the notebook that reads it will say so
        return sha("damaged")
    return sha(dumps({k: v for k, v in content.items() if k not in ("made_by", "sha256")}))


def why_run(job: Job, outputs: dict[str, str]) -> str | None:
    """Why a notebook has to run, in a few words; None when it does not. `outputs`: what the results hold of it."""
    try:
        stored = json.loads(job.stamp.read_text(encoding="utf-8"))
        before, made = stored["inputs"], stored["outputs"]
    except (OSError, ValueError, KeyError):
        return "not yet run in this clone"
    changed = sorted(name for name in {*job.inputs, *before} if job.inputs.get(name) != before.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{more} changed"
    if outputs != made:
        return "its results were removed or edited"
    return None


def remember(job: Job, outputs: dict[str, str]) -> None:
    """Note that the results now there, `outputs`, were made from the inputs of this job."""
    write_atomic(job.stamp, dumps({"inputs": job.inputs, "outputs": outputs}).encode())


def forget(job: Job) -> None:
    """Remove the note before a run: if the run dies, the notebook counts as not run."""
    job.stamp.unlink(missing_ok=True)
