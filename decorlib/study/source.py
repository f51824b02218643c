"""What Python code says, apart from how it looks: hashes that a comment or a docstring does not change."""

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parents[1]

# Modules of decorlib.study that arrange, report or describe runs; no run computes with them. Every other module
# counts, new ones included.
REPORTING = frozenset(
    f"study/{name}.py"
    for name in (
        *("__init__", "arms", "cache", "compare", "engines", "figures", "inputs", "notebooks", "pages", "progress"),
        *("provenance", "records", "report", "reproduce", "runs", "source", "stats", "verdicts"),
    )
)


def code_of(text: str) -> str:
    """Python source without comments, layout and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
            and isinstance(node.body[0].value.value, str)
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def code_hash(*modules: ModuleType) -> str:
    """sha256 of all code that a run may compute with: decorlib but for its reporting, and `modules` beside it.

    It is taken from the files as they are on the disk now.

    Args:
        *modules: where the function and the specification live; only needed where that is outside decorlib.

    Raises:
        OSError: a module has no source file to read, for example because it was typed into a console.
    """
    paths = {path: path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    paths = {path: name for path, name in paths.items() if name not in REPORTING}
    for module in modules:
        path = Path(inspect.getsourcefile(module) or f"<{module.__name__}>").resolve()
        if PACKAGE not in path.parents:
            paths[path] = module.__name__
    total = hashlib.sha256()
    for path, name in sorted(paths.items(), key=lambda item: item[1]):
        code = code_of(path.read_text(encoding="utf-8"))
        total.update(f"{name} {hashlib.sha256(code.encode()).hexdigest()}\n".encode())
    return total.hexdigest()


@cache
def code_hash_at_start() -> str:
    """:func:`code_hash` when this was first called in this process: what was imported, as far as anyone can tell."""
    return code_hash()


def importable(thing: Callable | type) -> ModuleType:
    """The module that a function or class is found in by its name, here and in any other process.

    Raises:
        TypeError: it is a lambda, a nested function, a partial, or defined in a notebook or script.
    """
    name, home = getattr(thing, "__qualname__", None), getattr(thing, "__module__", None)
    found = None
    if name and home and home != "__main__" and "<" not in name:
        found = sys.modules.get(home) or importlib.import_module(home)
        module = found
        for part in name.split("."):
            found = getattr(found, part, None)
    if found is not thing:
        raise TypeError(
            f"{thing!r} cannot be found by name from another process (a lambda, a nested function, a partial, "
            "or something defined in a notebook); define it at the top level of a module (as in decorlib.study)"
        )
    return module
