"""The rooms of the house: imports go one way, no file is long, and tests share code through helpers alone."""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from copy import deepcopy
from graphlib import CycleError
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import rooms
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "decorlib"
MAX_LINES = 320


@pytest.fixture(scope="module")
def graph():
    return rooms.build()


def test_the_graph_is_that_of_this_clone(graph):
    files = [path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py")]
    names = {".".join(file.parts).removesuffix(".__init__") for file in files}
    assert names == graph.modules
    assert graph.direct_import_exists(importer="decorlib.layers.linear", imported="decorlib.layers.decorrelation")


def test_imports_between_rooms_go_one_way(graph):
    assert rooms.forbidden(graph) == []


def test_no_modules_import_each_other_in_a_circle(graph):
    rooms.floors(rooms.arrows(graph), set(graph.modules))
    rooms.floors(list(rooms.between_rooms(graph)), set())


def test_every_room_that_may_be_imported_is_there(graph):
    """A room that was renamed would leave a rule behind that forbids nothing."""
    there = {rooms.room_of(module) for module in graph.modules}
    named = {*rooms.MAY_IMPORT, *(other for others in rooms.MAY_IMPORT.values() for other in others)}
    assert named <= there
    assert set().union(*rooms.ONLY.values()) <= graph.modules


UPWARDS = [
    ("decorlib.rules.rules", "decorlib.layers.linear"),
    ("decorlib.layers.linear", "decorlib.training.train"),
    ("decorlib.conversion.convert", "decorlib.training.history"),
    ("decorlib.training.train", "decorlib.conversion.convert"),
    ("decorlib.data.inputs", "decorlib.rules.moments"),
    ("decorlib.metrics", "decorlib.layers.models"),
    ("decorlib.layers.linear", "decorlib.study.evidence.stats"),  # the core knows nothing of the study
    ("decorlib.training.train", "decorlib.study"),
    ("decorlib.rules.rules", "decorlib"),  # the names for users are not for use inside
    ("decorlib.study.sweeps.runs", "decorlib.rules.rules"),  # sweeps and evidence know nothing of decorrelation
    ("decorlib.study.sweeps.runs", "decorlib.study.evidence.records"),
    ("decorlib.study.evidence.records", "decorlib.study.sweeps.runs"),
    ("decorlib.study.evidence.stats", "decorlib.study.experiments.arms"),
    ("decorlib.study.experiments.arms", "decorlib.study.questions.gain.plan"),
    ("decorlib.study.experiments.arms", "decorlib.study.report.build"),
    ("decorlib.study.questions.gain.plan", "decorlib.study.questions.cost.layer_cost"),
    ("decorlib.study.questions.gain.plan", "decorlib.study.report.build"),
    ("decorlib.study.report.build", "decorlib.study.experiments.experiment"),
    ("decorlib.study.report.build", "decorlib.study.questions.gain.figures"),
    ("decorlib.study.report.build", "decorlib.study.sweeps.runs"),  # of sweeps only `source`
]


@pytest.mark.parametrize(("importer", "imported"), UPWARDS)
def test_a_planted_import_upwards_is_found(importer, imported, graph):
    planted, before = deepcopy(graph), rooms.forbidden(graph)
    planted.add_import(importer=importer, imported=imported)
    (found,) = set(rooms.forbidden(planted)) - set(before)
    assert found.startswith(f"{importer} imports {imported}: ")


def test_a_planted_circle_is_found(graph):
    planted = deepcopy(graph)
    planted.add_import(importer="decorlib.rules.moments", imported="decorlib.rules.rules")
    with pytest.raises(CycleError, match="cycle"):
        test_no_modules_import_each_other_in_a_circle(planted)


def test_a_room_that_nobody_knows_may_import_nothing(graph):
    planted, before = deepcopy(graph), rooms.forbidden(graph)
    planted.add_module("decorlib.attic.trunk")
    planted.add_import(importer="decorlib.attic.trunk", imported="decorlib.rules.rules")
    (found,) = set(rooms.forbidden(planted)) - set(before)
    assert "attic may import no other room" in found


def test_the_command_prints_the_picture_and_fails_where_an_import_is_planted(tmp_path):
    """As anyone can run it, on files: also an import inside a function counts."""
    shutil.copytree(PACKAGE, tmp_path / "decorlib", ignore=shutil.ignore_patterns("__pycache__", "mnist"))
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "rooms.py"), str(tmp_path)]
    rules = tmp_path / "decorlib" / "rules" / "rules.py"
    rules.write_text(rules.read_text() + "\n\ndef late():\n    from decorlib.layers.linear import DecorLinear\n")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "decorlib.rules.rules imports decorlib.layers.linear: rules may import no other room" in done.stdout
    assert "no floors: layers <- rules <- layers" in done.stdout
    rules.write_text(rules.read_text().partition("def late")[0])
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "decorlib.rules.rules imports" not in done.stdout
    assert "floor 1\n  _io " in done.stdout


def long_files(package):
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sorted(package.rglob("*.py"))}
    return [f"{path.relative_to(package)}: {n} lines" for path, n in lengths.items() if n > MAX_LINES]


def test_no_file_is_long():
    assert long_files(PACKAGE) == [], f"more than {MAX_LINES} lines: two rooms, or two ideas?"


def test_a_long_file_is_found(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * (MAX_LINES + 1))
    (tmp_path / "short.py").write_text("x = 1\n" * MAX_LINES)
    assert long_files(tmp_path) == [f"long.py: {MAX_LINES + 1} lines"]


# ------------------------------------------------------------------------------------------ what must be installed

BLOCKED = """
import builtins, importlib, pkgutil

real = builtins.__import__

def refuse(name, globals=None, locals=None, fromlist=(), level=0):
    if name.split(".")[0] in {names!r} and (globals or {{}}).get("__name__", "").startswith("decorlib"):
        raise ModuleNotFoundError(f"{{name}} is not installed")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = refuse
import decorlib
for module in pkgutil.walk_packages(decorlib.__path__, "decorlib."):
    if not module.name.startswith(("decorlib.study{study}", "decorlib.integrations.")):  # each needs its own library
        importlib.import_module(module.name)
        print(module.name)
"""


def blocked():
    """Top-level names of what only the study, a cluster or the tests need, and of libraries that some users have."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = {canonicalize_name(Requirement(line).name) for lines in optional.values() for line in lines}
    owners = packages_distributions().items()
    names = {name for name, of in owners if {canonicalize_name(owner) for owner in of} & extras}
    assert {"pandas", "matplotlib", "scipy", "yaml", "PIL"} <= names
    return names | {"peft", "transformers", "lightning", "pytorch_lightning"}


def import_all(names, study):
    command = [sys.executable, "-c", BLOCKED.format(names=names, study=study)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_core_imports_without_the_extras():
    done = import_all(blocked(), study="")
    assert done.returncode == 0, done.stderr
    assert {"decorlib.rules.rules", "decorlib.layers.linear", "decorlib.training.train"} <= set(done.stdout.split())


def test_an_extra_that_is_imported_is_found():
    """The study needs the extras: with its modules among those that are imported, the same command fails."""
    done = import_all(blocked(), study=".questions")
    assert done.returncode == 1
    assert "is not installed" in done.stderr


# ---------------------------------------------------------------------------------------------- the tests themselves


def imports_of_tests(folder):
    """Test modules that import another test module: ["who imports whom"]."""
    names = {path.stem for path in folder.rglob("test_*.py")}
    found = defaultdict(set)
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found[path.stem] |= {part for module in modules for part in module.split(".")} & names
    return [f"{path} imports {name}" for path, imported in found.items() for name in sorted(imported)]


def test_tests_import_no_tests():
    assert imports_of_tests(ROOT / "tests") == []


def test_a_test_that_imports_a_test_is_found(tmp_path):
    (tmp_path / "test_a.py").write_text("x = 1\n")
    (tmp_path / "test_b.py").write_text("from test_a import x\n")
    (tmp_path / "helper.py").write_text("import test_b\n")
    assert imports_of_tests(tmp_path) == ["helper imports test_b", "test_b imports test_a"]
