"""What the notebooks import: runs, statistics, figures, records and verdicts.

The names below are loaded on first use, so that ``import decorlib.study`` costs nothing and the core library
(which never imports this package) can be used without the plotting and notebook dependencies.
"""

# ruff: noqa: F401 (the names of the block are handed on by __getattr__)

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same for editors, and for sweeps.source, which asks what a notebook imports
    from decorlib.study.evidence.figures import curves_by_seed, paired_dots, show
    from decorlib.study.evidence.provenance import Provenance, setup
    from decorlib.study.evidence.records import Record, RecordDamaged, load_extended, load_records
    from decorlib.study.evidence.shared import points
    from decorlib.study.evidence.stats import decide, holm, interval, paired, ratio
    from decorlib.study.evidence.verdicts import Verdict
    from decorlib.study.sweeps.progress import progress
    from decorlib.study.sweeps.runs import sweep

_HOME = {
    "setup": "evidence.provenance",
    "Provenance": "evidence.provenance",
    "show": "evidence.figures",
    "curves_by_seed": "evidence.figures",
    "paired_dots": "evidence.figures",
    "progress": "sweeps.progress",
    "Record": "evidence.records",
    "RecordDamaged": "evidence.records",
    "load_records": "evidence.records",
    "load_extended": "evidence.records",
    "sweep": "sweeps.runs",
    "Verdict": "evidence.verdicts",
    "decide": "evidence.stats",
    "paired": "evidence.stats",
    "interval": "evidence.stats",
    "holm": "evidence.stats",
    "ratio": "evidence.stats",
    "points": "evidence.shared",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'decorlib.study' has no name {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"decorlib.study.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
