"""What the notebooks import: runs, statistics, figures, records and verdicts.

The names below are loaded on first use, so that ``import decorlib.study`` costs nothing and the core library
(which never imports this package) can be used without the plotting and notebook dependencies.
"""

from importlib import import_module

_HOME = {
    "setup": "provenance",
    "Provenance": "provenance",
    "show": "figures",
    "curves_by_seed": "figures",
    "paired_dots": "figures",
    "progress": "progress",
    "Record": "records",
    "RecordDamaged": "records",
    "load_records": "records",
    "load_extended": "records",
    "sweep": "runs",
    "Verdict": "verdicts",
    "decide": "verdicts",
    "paired": "stats",
    "interval": "stats",
    "holm": "stats",
    "ratio": "stats",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'decorlib.study' has no name {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(f"decorlib.study.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
