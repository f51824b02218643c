"""What a notebook's results depend on, as hashes: is there anything to be done?"""

import hashlib
import json
import platform
from argparse import Namespace
from pathlib import Path

from decorlib.study.evidence.provenance import DATA
from decorlib.study.evidence.records import EXTENDED, Record, RecordDamaged, dumps, write_atomic
from decorlib.study.report.notebooks import Source
from decorlib.study.sweeps.source import code_of

PACKAGE = DATA.parent
# These run or arrange notebooks; an edit of them cannot change a number inside one.
_ARRANGING = ("reproduce", "publish", "execute", "inputs", "report", "pages", "generated", "compare")
_OUTSIDE = {f"study/{name}.py" for name in (*_ARRANGING, "spread", "soak")}


def sha(data: bytes | str) -> str:
    """Hex digest of bytes or of a text."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def code_hashes(package: Path = PACKAGE) -> dict[str, str]:
    """Hash of every module whose code can change what a notebook computes."""
    return {
        name: sha(code_of(path.read_text(encoding="utf-8")))
        for path in sorted(package.rglob("*.py"))
        if (name := path.relative_to(package).as_posix()) not in _OUTSIDE
    }


def digests(folder: Path, skip: Path | None = None) -> dict[str, str]:
    """sha256 of every file below a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): sha(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != skip
    }


def _source(source: Source) -> str:
    """The notebook's cells without outputs, counts and ids."""
    cells = [[c.cell_type, c.source, sorted(c.metadata.get("tags", []))] for c in source.read().cells]
    return sha(json.dumps(cells))


def collect(source: Source, values: dict, options: Namespace) -> dict[str, str]:
    """Everything the results of one notebook depend on, as name -> hash."""
    lock = options.root / "requirements.lock"
    found = {
        "the notebook": _source(source),
        "its parameters": sha(dumps(values)),
        "requirements.lock": sha(lock.read_bytes()) if lock.exists() else "none",
        "the data": sha((DATA / "mnist" / "SHA256SUMS").read_bytes()),
        "the Python version": platform.python_version(),
    }
    found.update({f"decorlib/{name}": value for name, value in code_hashes().items()})
    text = "\n".join(cell.source for cell in source.read().cells)
    if "load_records" in text:
        for path in sorted((options.results / "records").glob("[0-9][0-9].json")):
            if path.stem < source.number:
                found[f"record {path.stem}"] = _findings(path)
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


def _stamp(options: Namespace, source: Source) -> Path:
    return options.build / "stamps" / f"{source.path.stem}.json"


def why_run(found: dict[str, str], source: Source, options: Namespace, outputs: dict[str, str]) -> str | None:
    """Why a notebook has to run, in a few words; None when it does not. `outputs`: what the results hold of it."""
    try:
        stored = json.loads(_stamp(options, source).read_text(encoding="utf-8"))
        before, made = stored["inputs"], stored["outputs"]
    except (OSError, ValueError, KeyError):
        return "not yet run in this clone"
    changed = sorted(name for name in {*found, *before} if found.get(name) != before.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        return f"{changed[0]}{more} changed"
    if outputs != made:
        return "its results were removed or edited"
    return None


def remember(found: dict[str, str], source: Source, options: Namespace, outputs: dict[str, str]) -> None:
    """Note that the results now there, `outputs`, were made from `found`."""
    stamp = {"inputs": found, "outputs": outputs}
    write_atomic(_stamp(options, source), dumps(stamp).encode())


def forget(options: Namespace, source: Source) -> None:
    """Remove the note before a run: if the run dies, the notebook counts as not run."""
    _stamp(options, source).unlink(missing_ok=True)
