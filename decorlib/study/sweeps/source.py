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

PACKAGE = Path(__file__).resolve().parents[2]

# What the files said when this module was imported: as far as anyone can tell, what the process runs.
AT_START = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


@cache
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


@cache  # parsing takes longer than a small sweep, and CPython 3.11 answers Ctrl-C in it wrongly
def _imports(text: str, name: str) -> frozenset[str]:
    """Dotted names that a module's text imports, wherever in it; `name` is its own, a package's with ``.__init__``."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = name.split(".")[: -node.level] if node.level else []
            home = ".".join([*home, *([node.module] if node.module else [])])
            found.add(home)
            found.update(f"{home}.{alias.name}" for alias in node.names)  # a module, or a name inside of one
    return frozenset(found)


def _file_of(name: str) -> Path | None:
    """Source of a module of decorlib; None where that is no module of decorlib."""
    top, *rest = name.split(".")
    path = PACKAGE.joinpath(*rest)
    candidates = [path / "__init__.py"] if path.is_dir() else [path.with_suffix(".py")]
    return next((file for file in candidates if top == "decorlib" and file.is_file()), None)


def files(*modules: ModuleType) -> dict[str, Path]:
    """Name and source of the core of decorlib, of `modules`, and of all in decorlib that any of these import.

    Followed are import statements, not what a function imports by a computed name.

    Args:
        *modules: where a function and its specification live, in decorlib or not.

    Raises:
        TypeError, OSError: a module has no source file, for example because it was typed into a console.
    """
    found = {module.__name__: Path(inspect.getsourcefile(module)).resolve() for module in modules}
    found = {name: path for name, path in found.items() if _file_of(name) is None}
    waiting = ["decorlib", *(module.__name__ for module in modules)]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        waiting += [parent for k in range(1, len(parts)) if (parent := ".".join(parts[:k])) not in found]
        path = found[name] if name in found and _file_of(name) is None else _file_of(name)
        if path is None:
            continue
        found[name] = path
        own = f"{name}.__init__" if path.name == "__init__.py" else name
        for other in _imports(path.read_text(encoding="utf-8"), own):
            if other not in found and other not in waiting and _file_of(other) is not None:
                waiting.append(other)
    return found


def code_hash(*modules: ModuleType) -> str:
    """sha256 of the code that functions of `modules` may compute with (:func:`files`), as it is on the disk now."""
    total = hashlib.sha256()
    for name, path in sorted(files(*modules).items()):
        code = code_of(path.read_text(encoding="utf-8"))
        total.update(f"{name} {hashlib.sha256(code.encode()).hexdigest()}\n".encode())
    return total.hexdigest()


def edited(*modules: ModuleType) -> list[str]:
    """Modules of decorlib among :func:`files` whose code is no longer what this process imported."""
    return [
        name
        for name, path in sorted(files(*modules).items())
        if PACKAGE in path.parents
        and (now := path.read_text(encoding="utf-8")) != (then := AT_START.get(path, ""))
        and code_of(now) != code_of(then)
    ]


def in_decorlib(*things: Callable | type) -> bool:
    """Whether all of them are defined in decorlib's own files."""
    return all(_file_of(thing.__module__) is not None for thing in things)


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
