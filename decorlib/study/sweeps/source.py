"""What Python code says, apart from how it looks: hashes that a comment or a docstring does not change.

The code of a function is its module and all that this imports, as far as import statements tell: the modules of a
project, followed to the last one. Python's own modules and what is installed with pip have versions instead.
"""

import ast
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType

NAME = __name__.partition(".")[0]
PACKAGE = Path(__file__).resolve().parents[2]  # the package that this file is in

# What the files said when this module was imported: as far as anyone can tell, what the process runs.
AT_START = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}

_INSTALLED = {"site-packages", "dist-packages"}
_PYTHONS_OWN = Path(sysconfig.get_path("stdlib")).resolve()


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


@dataclass(frozen=True)
class Code:
    """The code that some modules can reach, as it is on the disk now: name -> file, and name -> text."""

    files: dict[str, Path]
    texts: dict[str, str]

    @classmethod
    def of(cls, *modules: ModuleType) -> "Code":
        """Of the modules of a function and its specification: see :func:`files`."""
        found = dict(sorted(files(*modules).items()))
        return cls(found, {name: path.read_text(encoding="utf-8") for name, path in found.items()})

    @cached_property
    def sha256(self) -> str:
        """One hash of all of it."""
        total = hashlib.sha256()
        for name, text in self.texts.items():
            total.update(f"{name} {hashlib.sha256(code_of(text).encode()).hexdigest()}\n".encode())
        return total.hexdigest()

    @property
    def edited(self) -> list[str]:
        """Modules of this package whose code is no longer what this process imported."""
        return [
            name
            for name, path in self.files.items()
            if PACKAGE in path.parents
            and (now := self.texts[name]) != (then := AT_START.get(path, ""))
            and code_of(now) != code_of(then)
        ]

    @property
    def ours(self) -> bool:
        """Whether all of it is in this package, whose files are watched."""
        return all(PACKAGE in path.parents for path in self.files.values())

    @property
    def declaring(self) -> list[str]:
        """Modules that say, in a ``DEPENDS_ON`` at their top level, what else than code they read; imported."""
        names = [name for name, text in self.texts.items() if "DEPENDS_ON" in _bound(text)]
        for name in names:
            importlib.import_module(name)
        return names


def files(*modules: ModuleType) -> dict[str, Path]:
    """Name and source of modules, and of all in their projects that these import.

    Args:
        *modules: where a function and its specification live.

    Raises:
        TypeError, OSError: a module has no source file, for example because it was typed into a console.
    """
    known = {module.__name__: Path(inspect.getsourcefile(module)).resolve() for module in modules}
    tops = {name.partition(".")[0] for name in known}
    return reach(known, known={name: path for name, path in known.items() if _file_of(name, tops) is None}, tops=tops)


def reach(
    names: Iterable[str],
    *,
    known: dict[str, Path] | None = None,
    tops: Iterable[str] = (),
    beside: Path | None = None,
) -> dict[str, Path]:
    """Name and source of the modules of these dotted names, of their packages, and of all that any of them import.

    Followed are import statements, wherever in a module, not what a function imports by a computed name; and not what
    stands under ``if TYPE_CHECKING``, unless it is asked for by name: it tells where a package finds a name that it
    loads on first use.

    Args:
        names: of modules or of what is in one; unknown ones are left out.
        known: sources that cannot be found by name. Default: none.
        tops: packages that are followed even where they are installed. This one always is. Default: none.
        beside: a folder that comes before ``sys.path``. Default: None.
    """
    known, tops = known or {}, {*tops, NAME}
    found: dict[str, Path] = {}
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parent, _, last = name.rpartition(".")
        path = known.get(name) or _file_of(name, tops, beside)
        if parent:
            waiting.append(parent)
            if path is None and (home := _file_of(parent, tops, beside)) is not None:
                lazy = _lazily(home.read_text(encoding="utf-8"), _own_name(parent, home))
                waiting += [lazy[last]] if last in lazy else []
        if path is not None:
            found[name] = path
            waiting += imports(path.read_text(encoding="utf-8"), _own_name(name, path))
    return found


@cache  # parsing takes longer than a small sweep, and CPython 3.11 answers Ctrl-C in it wrongly
def imports(text: str, name: str = "__main__") -> frozenset[str]:
    """Dotted names that a module's text imports, wherever in it; `name` is its own, a package's with ``.__init__``."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = _home(node, name)
            found.add(home)
            found.update(f"{home}.{alias.name}" for alias in node.names)  # a module, or a name inside of one
        waiting += node.orelse if _for_types(node) else ast.iter_child_nodes(node)
    return frozenset(found)


@cache
def _lazily(text: str, name: str) -> dict[str, str]:
    """Names that a package imports for type checkers only -> the modules that they come from."""
    blocks = [node for node in ast.parse(text).body if _for_types(node)]
    froms = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: _home(node, name) for node in froms for alias in node.names}


@cache
def _bound(text: str) -> frozenset[str]:
    """Names that a module's text assigns at its top level."""
    targets = [t for node in ast.parse(text).body if isinstance(node, ast.Assign) for t in node.targets]
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _home(node: ast.ImportFrom, name: str) -> str:
    home = name.split(".")[: -node.level] if node.level else []
    return ".".join([*home, *([node.module] if node.module else [])])


def _own_name(name: str, path: Path) -> str:
    return f"{name}.__init__" if path.name == "__init__.py" else name


def _file_of(name: str, tops: Iterable[str] = (), beside: Path | None = None) -> Path | None:
    """Source of a module of a project; None where there is none, or where it is Python's or installed and not asked."""
    top, *rest = name.split(".")
    start = PACKAGE if top == NAME else _found(top, beside)
    if start is None or (top != NAME and top not in tops and _has_a_version(start)):
        return None
    path = start.joinpath(*rest) if rest else start
    if rest and not start.is_dir():
        return None
    candidates = (path / "__init__.py",) if path.is_dir() else (path.with_suffix(".py"),)
    return next((file for file in candidates if file.is_file()), None)


def _found(top: str, beside: Path | None) -> Path | None:
    """Folder of a package, or file of a module, by its top-level name; nothing is imported."""
    for path in [beside / top, beside / f"{top}.py"] if beside else []:
        if path.exists():
            return path
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):  # __main__, or what a test put there
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.has_location else None


def _has_a_version(path: Path) -> bool:
    return bool(_INSTALLED & set(path.parts)) or _PYTHONS_OWN in path.parents


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
            f"or something defined in a notebook); define it at the top level of a module (as in {NAME}.study)"
        )
    return module
