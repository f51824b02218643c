"""What a notebook found, as one small JSON file that people, tests and the report read.

A record holds the question, the parameters, headline numbers and small tables with the tolerances at which another
run must agree, verdicts, and two sentences on what came out. It is plain
JSON: loading one executes nothing. It carries the sha256 of its own content, so that a damaged or hand-edited file is
noticed.
"""

import gzip
import hashlib
import json
import math
import os
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decorlib._io.files import written_atomically
from decorlib._io.plain import canonical
from decorlib.study.evidence import provenance
from decorlib.study.evidence.agreement import TIMING, of_columns, within
from decorlib.study.evidence.simple import simplified

FORMAT = 2  # 1: tolerances were relative, tables had none, verdicts no margin; such a record can still be read
READS = (1, 2)
GZIP_FROM = 200_000  # bytes; larger lists of runs are stored compressed
EXTENDED = Path("results") / "extended"  # of a clone: what `make reproduce PROFILE=extended` writes


class RecordDamaged(RuntimeError):
    """A record cannot be read, or its content is not what its checksum says."""


def dumps(content: Any) -> str:
    """The text of a record: canonical JSON, a line for each value."""
    return canonical(content, indent=1) + "\n"


def write_atomic(path: Path, data: bytes) -> None:
    """All of the file or nothing."""
    with written_atomically(path) as file:
        file.write(data)


def _sum(content: dict) -> str:
    return hashlib.sha256(dumps({key: content[key] for key in content if key != "sha256"}).encode()).hexdigest()


@dataclass
class Record:
    """Findings of one notebook; written to ``records/NN.json`` by a full run, and only then.

    Args:
        notebook: the notebook's number, two digits.
        question: the notebook's question, as in its title.
        parameters: the parameters it ran with. Default: ``{}``

    Example:
        >>> record = Record("03", question="Does a variance of one help?", parameters={"seeds": 5})
        >>> record.value("largest deviation", 0.0125, tolerance=0.005)
        >>> record.values[0]["value"]
        0.0125
    """

    notebook: str
    question: str
    parameters: dict = field(default_factory=dict)
    values: list[dict] = field(default_factory=list, init=False)
    tables: dict[str, dict] = field(default_factory=dict, init=False)
    verdicts: list[dict] = field(default_factory=list, init=False)
    came_out: list[str] = field(default_factory=list, init=False)
    came_out_agrees: dict[str, float] | None = field(default=None, init=False)
    format: int = field(default=FORMAT, init=False)
    made_by: dict = field(default_factory=dict, init=False)
    _runs: list | None = field(default=None, init=False, repr=False)
    _runs_file: dict | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if not re.fullmatch(r"\d\d", self.notebook):
            raise ValueError(f"notebook must be two digits such as '03', got {self.notebook!r}")
        if not self.question.strip():
            raise ValueError("question is empty: give the notebook's question, as in its title")
        self.parameters = simplified(self.parameters, "parameters")

    def value(
        self, name: str, x: Any, unit: str = "", tolerance: float | int | None = None, timing: bool = False
    ) -> None:
        """Keep a headline number.

        A NaN or infinite number is kept as ``None`` with status ``"diverged"``.

        Args:
            name: what it is; unique in the record.
            x: the number: Python's, numpy's or a torch scalar.
            unit: its unit. Default: ``""``
            tolerance: largest absolute change, in the unit, that counts as the same result: below the margin of the
                verdict that it decides and above ten times the measured spread (``docs/numbers.md``).
            timing: it is seconds over seconds; another run agrees within a factor of 1.25. Default: ``False``
        """
        if any(kept["name"] == name for kept in self.values):
            raise ValueError(f"there is already a value {name!r} in record {self.notebook}")
        if (tolerance is None) != timing:
            raise ValueError(f"value {name!r} needs a tolerance, absolute and in its unit, or timing=True, not both")
        if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
            raise ValueError(f"tolerance must be a number of at least 0, got {tolerance}")
        x = simplified(x, name)
        if x is not None and not isinstance(x, int | float):
            raise TypeError(f"value {name!r} must be a number, got {x!r}; use table() for more than one")
        status, agrees = "diverged" if x is None else "finite", TIMING if timing else within(tolerance)
        self.values.append({"name": name, "value": x, "unit": unit, "agrees": agrees, "status": status})

    def table(
        self,
        name: str,
        frame,
        tolerance: float | int | dict[str, float] | None = None,
        ratios: dict[str, float] | tuple[str, ...] = (),
        skip: tuple[str, ...] = (),
    ) -> None:
        """Keep a small table (a pandas data frame; its index is kept where it has a name).

        Another run's table is compared row by row: text, truth, counts and chosen rates must be equal, measured numbers
        agree within `tolerance`. A column ``p`` follows from the others and is not compared.

        Args:
            name: what it is; unique in the record.
            frame: the table.
            tolerance: largest absolute change, of all columns or by column. Default: ``None``
            ratios: columns of positive numbers that may differ by a factor: 1.25 for those of a tuple (timings).
            skip: columns that are not compared, such as seconds of one machine; ``"*"`` is the whole table.
        """
        if name in self.tables:
            raise ValueError(f"there is already a table {name!r} in record {self.notebook}")
        frame = frame.reset_index() if any(label is not None for label in frame.index.names) else frame
        rows = [[simplified(item, f"table {name!r}") for item in row] for row in frame.itertuples(index=False)]
        if len(rows) > 2000:
            raise ValueError(f"table {name!r} has {len(rows)} rows; keep runs with runs(), tables are small")
        columns = [str(column) for column in frame.columns]
        cells = {column: [row[j] for row in rows] for j, column in enumerate(columns)}
        agrees = of_columns(name, cells, tolerance, ratios, skip)
        self.tables[name] = {"columns": columns, "rows": rows, "agrees": agrees}

    def sentences(self, worse: str, better: str, timing: bool = False) -> None:
        """Keep what came out, in two sentences with their numbers, for the notebook's first cell.

        Args:
            worse: the unfavourable one, which stands first.
            better: the other one.
            timing: numbers with a decimal point are seconds over seconds, as for :meth:`value`. Default: ``False``
        """
        for sentence in (worse, better):
            if not re.fullmatch(r"[A-Z\d'].*\.", sentence, re.S):
                raise ValueError(f"what came out is said in whole sentences, got {sentence!r}")
        self.came_out = [" ".join(sentence.split()) for sentence in (worse, better)]
        self.came_out_agrees = TIMING if timing else None

    def runs(self, runs: list[dict]) -> None:
        """Keep the full records of the runs beside this record, in ``NN.runs.json`` (``.gz`` where large)."""
        self._runs = simplified(list(runs), "runs")

    def verdict(self, verdict) -> None:
        """Keep a :class:`decorlib.study.Verdict`."""
        kept = simplified(verdict, "verdict")
        if any(other["hypothesis"] == kept["hypothesis"] for other in self.verdicts):
            raise ValueError(f"record {self.notebook} already has a verdict on {kept['hypothesis']!r}")
        self.verdicts.append(kept)

    def frame(self, name: str):
        """The table called `name` as a pandas data frame."""
        import pandas as pd

        if name not in self.tables:
            raise KeyError(f"no table {name!r} in record {self.notebook}; it has {sorted(self.tables) or 'none'}")
        return pd.DataFrame(self.tables[name]["rows"], columns=self.tables[name]["columns"])

    def content(self) -> dict:
        """The record as it is stored, checksum included."""
        content = {
            "format": self.format,
            "notebook": self.notebook,
            "question": self.question,
            "parameters": self.parameters,
            "values": self.values,
            "tables": self.tables,
            "verdicts": self.verdicts,
            "came_out": self.came_out,
            "runs": self._runs_file,
            "made_by": self.made_by,
        }
        if self.came_out_agrees:
            content["came_out_agrees"] = self.came_out_agrees
        if self.format == 1:
            del content["came_out"]
        return {**content, "sha256": _sum(content)}

    def write(self) -> Path | None:
        """Write ``records/NN.json`` below the folder that ``DECORLIB_RESULTS`` names; without it, only check.

        ``make reproduce`` sets the variable. In JupyterLab and in tests the record is validated, nothing is
        written, and one line says so.

        Returns:
            The path, or ``None`` where nothing was written.
        """
        self.made_by = provenance.current().as_dict()
        if self._runs is not None:
            data = dumps(self._runs).encode()
            name = f"{self.notebook}.runs.json"
            if len(data) > GZIP_FROM:
                name, data = name + ".gz", gzip.compress(data, mtime=0)
            self._runs_file = {
                "file": name,
                "count": len(self._runs),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        text = dumps(self.content())
        folder = os.environ.get("DECORLIB_RESULTS")
        if not folder:
            print(f"record {self.notebook}: valid, not written (only `make reproduce` writes results)")
            return None
        path = Path(folder) / "records" / f"{self.notebook}.json"
        if self._runs is not None:
            write_atomic(path.parent / self._runs_file["file"], data)
        write_atomic(path, text.encode())
        print(f"record {self.notebook}: written")
        return path

    @classmethod
    def parse(cls, text: str, source: str) -> "Record":
        """Read a record from its text; `source` names it in errors."""
        way_out = f"restore it with `git checkout -- {source}` or remove it and run `make reproduce`"
        try:
            content = json.loads(text)
            stored, found = content["sha256"], _sum(content)
            if content["format"] not in READS:
                raise RecordDamaged(f"{source} has record format {content['format']!r}, this decorlib reads {READS}")
            if stored != found:
                raise RecordDamaged(
                    f"{source} is damaged or was edited: its content does not give its sha256; {way_out}"
                )
            record = cls(content["notebook"], content["question"], content["parameters"])
            for name in ("format", "values", "tables", "verdicts", "made_by"):
                setattr(record, name, content[name])
            record.came_out = content["came_out"] if content["format"] > 1 else []
            record.came_out_agrees = content.get("came_out_agrees")
            record._runs_file = content["runs"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordDamaged(f"{source} is damaged: {type(error).__name__}: {error}; {way_out}") from error
        return record

    @classmethod
    def load(cls, path: str | Path) -> "Record":
        """Read a record from a file.

        Raises:
            RecordDamaged: the file is not a record, or not what its checksum says.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecordDamaged(f"{path} is damaged: it is not text; restore or remove it") from error
        record = cls.parse(text, str(path))
        record._path = path
        return record

    def load_runs(self) -> list[dict]:
        """The run records stored beside a loaded record; an empty list where it has none."""
        if self._runs_file is None:
            return []
        path = self._path.parent / Path(self._runs_file["file"]).name
        way_out = f"restore it or run `make reproduce ONLY={self.notebook}`"
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self._runs_file["sha256"]:
                raise RecordDamaged(f"{path} is damaged: it does not give the sha256 in its record; {way_out}")
            return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        except FileNotFoundError as error:
            raise RecordDamaged(f"{path} is missing; {way_out}") from error
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile, RecursionError) as error:
            raise RecordDamaged(f"{path} is not JSON, and was not executed; {way_out}") from error


def load_records(
    folder: str | Path | None = None, before: str | None = None, without: str | None = None
) -> dict[str, Record]:
    """All records of a results folder by notebook number.

    A notebook that calls this is run after all that do not, and again when one of their records has changed.

    Args:
        folder: the folder that holds ``NN.json``. Default: ``None``, the records that the running
            ``make reproduce`` has made so far, else those in the repository.
        before: only notebooks with a smaller number. Default: ``None``, all
        without: a notebook to leave out, most often the one that asks. Default: ``None``, none
    """
    folder = Path(folder or os.environ.get("DECORLIB_RECORDS") or provenance.ROOT / "results" / "records")
    found = {path.stem: Record.load(path) for path in sorted(folder.glob("[0-9][0-9].json"))}
    return {n: record for n, record in found.items() if (before is None or n < before) and n != without}


def load_extended(number: str, root: Path | None = None) -> Record | None:
    """The committed record of a notebook's extended run; None where there is none, or where this is that run.

    A notebook that calls this is run again when that record has changed.

    Args:
        number: the notebook's number, two digits.
        root: the clone. Default: ``None``, this one
    """
    folder = (root or provenance.ROOT) / EXTENDED / "records"
    path = folder / f"{number}.json"
    if not path.exists() or os.environ.get("DECORLIB_RECORDS") == str(folder):
        return None
    return Record.load(path)
