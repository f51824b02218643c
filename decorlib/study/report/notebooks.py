"""Notebooks as files: their parameters, the values of the full run, their form without volatile metadata."""

import ast
import re
import reprlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import yaml

from decorlib._io.plain import plain
from decorlib.study.evidence.provenance import ROOT

PROFILES = ("quick", "full", "extended")
NAME = re.compile(r"(\d\d)_[a-z0-9_]+\.ipynb")
_PROGRESS_LINE = re.compile(r"\d+%\||\[\d\d:\d\d<|\dit/s|s/it")


class BadParameters(ValueError):
    """A parameter that the notebook does not have, or a value that does not fit it."""


@dataclass(frozen=True)
class Source:
    """One notebook of the suite."""

    path: Path

    @property
    def number(self) -> str:
        return self.path.name[:2]

    def read(self) -> nbformat.NotebookNode:
        return nbformat.read(self.path, as_version=4)

    @property
    def reads_records(self) -> bool:
        """Whether it calls ``load_records``, and so depends on what the others found."""
        return any(cell.cell_type == "code" and "load_records" in cell.source for cell in self.read().cells)


def find(folder: Path, only: list[str] | None = None) -> list[Source]:
    """Notebooks ``NN_question_in_words.ipynb`` of a folder in numeric order.

    Args:
        folder: where to look.
        only: numbers (``3`` and ``03`` are the same). Default: ``None``, all

    Raises:
        BadParameters: a number in `only` has no notebook, or two notebooks have the same number.
    """
    found = [Source(path) for path in sorted(folder.glob("*.ipynb")) if NAME.fullmatch(path.name)]
    numbers = [source.number for source in found]
    for number in numbers:
        if numbers.count(number) > 1:
            raise BadParameters(f"two notebooks have the number {number}; rename one")
    if only:
        wanted = [number.zfill(2) for number in only]
        for number in wanted:
            if number not in numbers:
                raise BadParameters(
                    f"ONLY={number}: there is no notebook {number}; there are {', '.join(numbers) or 'none'}"
                )
        found = [source for source in found if source.number in wanted]
    return found


def readers_last(sources: list[Source]) -> list[Source]:
    """The order in which to run: those that read the records of others come after them, whatever their number."""
    return sorted(sources, key=lambda source: (source.reads_records, source.number))


def with_extended(sources: list[Source]) -> list[Source]:
    """Those that have values for an extended run."""
    return [s for s in sources if (s.path.parent / "params" / f"{s.number}.extended.yaml").exists()]


def defaults(notebook: nbformat.NotebookNode, name: str = "notebook") -> dict[str, Any]:
    """Names and values of the cell tagged ``parameters``: the quick run.

    Raises:
        BadParameters: there is not exactly one such cell, or it does more than assign plain values.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise BadParameters(f"{name} has {len(cells)} cells tagged `parameters`; it must have exactly one")
    values = {}
    for statement in ast.parse(cells[0].source).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, value = statement.target, statement.value
        else:
            target = value = None
        try:
            if not isinstance(target, ast.Name):
                raise ValueError
            values[target.id] = ast.literal_eval(value)
        except ValueError:
            raise BadParameters(
                f"{name}: line {statement.lineno} of the parameters cell is not `name = plain value`"
            ) from None
    return values


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        kinds = {_kind(item) for item in value} or {"nothing"}
        return "list of " + ("number" if kinds <= {"number"} else " and ".join(sorted(kinds)))
    if isinstance(value, bool):
        return "bool"
    return {int: "number", float: "number", str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)


def _refuse(path: Path, value: Any, name: str) -> None:
    raise BadParameters(
        f"{path}: {name} is a {type(value).__name__} ({reprlib.repr(value)}); "
        "allowed are numbers, text, true/false, null and flat lists of them, and numbers must be finite"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Values from a YAML file: a mapping of names to numbers, text, true/false or flat lists of them.

    It is loaded with ``yaml.safe_load``, which builds no objects.

    Raises:
        BadParameters: the file is something else.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise BadParameters(f"{path} is not YAML with plain values: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise BadParameters(f"{path} must be lines of `name: value`, got a {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise BadParameters(f"{path}: {name!r} is not a parameter name")
        parts = {f"{name}[{i}]": item for i, item in enumerate(value)} if isinstance(value, list) else {name: value}
        for where, item in parts.items():
            plain(item, where, partial(_refuse, path), containers=())
    return loaded


def check(values: dict[str, Any], quick: dict[str, Any], origin: str) -> None:
    """Every name must be a parameter of the notebook, and every value of the kind of its quick value."""
    for name, value in values.items():
        if name not in quick:
            raise BadParameters(f"{origin}: unknown parameter {name!r}; the notebook has {', '.join(quick) or 'none'}")
        old = quick[name]
        if _kind(value) != _kind(old) and "nothing" not in f"{_kind(old)} {_kind(value)}":
            hint = ""
            if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.I):
                hint = f"; YAML reads {value} as text, write {value.lower().replace('e', '.0e')}"
            raise BadParameters(f"{origin}: {name} must be a {_kind(old)} like {old!r}, got {value!r}{hint}")


def parameters(source: Source, profile: str, seeds: int | None = None, device: str | None = None) -> dict:
    """What to inject into a notebook: only values that differ from its own (quick) ones.

    Args:
        source: the notebook.
        profile: ``"quick"`` (nothing), ``"full"`` (``params/NN.yaml``) or ``"extended"``
            (``params/NN.extended.yaml`` on top of that).
        seeds: number of seeds, for notebooks with a parameter `seeds`. Default: ``None``
        device: torch device, for notebooks with a parameter `device`. Default: ``None``

    Raises:
        BadParameters: see :func:`read_yaml` and :func:`check`.
    """
    if profile not in PROFILES:
        raise BadParameters(f"unknown profile {profile!r}; there are {', '.join(PROFILES)}")
    quick = defaults(source.read(), source.path.name)
    values: dict[str, Any] = {}
    suffixes = {"quick": [], "full": [".yaml"], "extended": [".yaml", ".extended.yaml"]}[profile]
    for suffix in suffixes:
        path = source.path.parent / "params" / f"{source.number}{suffix}"
        if path.exists():
            loaded = read_yaml(path)
            check(loaded, quick, f"params/{path.name}")
            values.update(loaded)
    if seeds is not None and "seeds" in quick:
        if seeds < 1:
            raise BadParameters(f"seeds must be at least 1, got {seeds}")
        values["seeds"] = seeds if isinstance(quick["seeds"], int) else list(range(seeds))
    if device is not None and "device" in quick:
        values["device"] = device
    return {name: value for name, value in values.items() if value != quick[name]}


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove, in place, what differs between two equal runs, so that a diff shows what changed.

    Times, papermill's bookkeeping, random ids of injected cells and of styled tables, addresses in memory, widget
    state, the Python version that JupyterLab notes, progress bars and the temporary paths in warnings go; source, tags
    and outputs stay.
    """
    notebook.metadata = nbformat.from_dict(
        {
            **({"decorlib": notebook.metadata["decorlib"]} if "decorlib" in notebook.metadata else {}),
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # the first with cell ids
    for index, cell in enumerate(notebook.cells):
        keep = {key: cell.metadata[key] for key in ("tags", "mystnb", "jupyter") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict(keep)
        if "injected-parameters" in keep.get("tags", []):
            cell["id"] = "injected-parameters"
        elif not cell.get("id"):
            cell["id"] = f"cell-{index}"
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_clean_output, cell.outputs) if output is not None]
            for number, output in enumerate(cell.outputs):
                _settle_ids(output.get("data", {}), f"{cell['id']}_{number}")
    return notebook


def _clean_output(output):
    if output.output_type == "stream":
        lines = output.text.splitlines(keepends=True)
        if output.name == "stderr":
            lines = [line for line in lines if line.strip() and not _PROGRESS_LINE.search(line)]
        text = re.sub(r"\S*ipykernel_\d+/\d+\.py", "ipykernel/cell.py", "".join(lines))
        output.text = text.replace(f"{ROOT}/", "")  # where a warning comes from, not where the clone lies
        return output if output.text else None
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return None  # its state is not kept, so it would be an empty box
    return output


def _settle_ids(data: dict, name: str) -> None:
    """pandas draws the id that ties a styled table to its CSS, where its place in the notebook does; no addresses."""
    if "text/plain" in data:
        data["text/plain"] = re.sub(r"(<[\w.]+( object)?) at 0x[0-9a-f]+>", r"\1>", data["text/plain"])
    if "text/html" in data:
        data["text/html"] = re.sub(r"\bT_[0-9a-f]{5}(?=_|\b)", f"T_{name}", data["text/html"])


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook in the one form: sorted keys, indented by one, newline at the end."""
    nbformat.validate(notebook)
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8")
