"""What the notebooks import: runs, statistics, figures, records and verdicts.

The names below are loaded on first use, so that ``import decorlib.study`` costs nothing and the core library
(which never imports this package) can be used without the plotting and notebook dependencies.
"""

from importlib import import_module

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
    "decide": "evidence.verdicts",
    "paired": "evidence.stats",
    "interval": "evidence.stats",
    "holm": "evidence.stats",
    "ratio": "evidence.stats",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'decorlib.study' has no name {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"decorlib.study.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
