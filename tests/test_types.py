"""mypy --strict and pyright refuse every bad call of tests/typing/calls.py and no good one."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from importlib.resources import files
from pathlib import Path

import pytest

import decorlib
from decorlib.layers import checks, options
from decorlib.rules.catalogue import ALIASES, RULES

ROOT = Path(__file__).resolve().parents[1]
CALLS = ROOT / "tests" / "typing" / "calls.py"


def bad_lines() -> set[int]:
    return {n for n, line in enumerate(CALLS.read_text(encoding="utf-8").splitlines(), 1) if line.endswith("# bad")}


def by_mypy(script: Path) -> set[int]:
    """The lines that mypy refuses. Decorlib's own files are read, and not reported on."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir=cache", script.name]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=script.parent, env=environment, capture_output=True, text=True)
    found = re.findall(rf"^{script.name}:(\d+): error", done.stdout, re.M)
    assert done.returncode == bool(found), done.stdout + done.stderr
    return set(map(int, found))


def by_pyright(script: Path) -> set[int]:
    """The lines that pyright refuses: basedpyright, which is pyright with a node of its own, under pyright's rules."""
    settings = {"include": [script.name], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "basedpyright", "-p", ".", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["summary"]["filesAnalyzed"] == 1, done.stdout + done.stderr
    errors = [found for found in answer["generalDiagnostics"] if found["severity"] == "error"]
    return {error["range"]["start"]["line"] + 1 for error in errors}


def differences(found: set[int], script: Path, bad: set[int]) -> list[str]:
    lines = script.read_text(encoding="utf-8").splitlines()
    return [
        *(f"not refused, line {n}: {lines[n - 1]}" for n in sorted(bad - found)),
        *(f"refused, line {n}: {lines[n - 1]}" for n in sorted(found - bad)),
    ]


@pytest.mark.parametrize("checker", [by_mypy, by_pyright])
def test_every_bad_call_is_refused_and_no_good_one(checker, tmp_path):
    bad, script = bad_lines(), Path(shutil.copy(CALLS, tmp_path))
    assert len(bad) > 40
    assert differences(checker(script), script, bad) == []


def static(name: str):
    """A name of decorlib.layers.options as type checkers see it."""
    namespace: dict = {"__name__": "as checkers see it"}
    text = inspect.getsource(options).replace("if TYPE_CHECKING:", "if True:")
    exec(compile(text, "options.py", "exec"), namespace)
    return namespace[name]


def test_the_names_of_rules_are_those_there_are():
    names = typing.get_args(static("RuleName"))
    assert sorted(names) == sorted({*RULES, *ALIASES})


def test_the_other_choices_are_those_that_layers_take():
    assert {*typing.get_args(static("Center")), None} == {*checks.CENTERS}
    for choice in typing.get_args(static("Center")):
        decorlib.Decorrelation(2, center=choice)
    for choice in typing.get_args(static("Reduction")):
        decorlib.Decorrelation(2, bias=True, bias_reduction=choice)
    for choice in typing.get_args(static("Span")):
        assert f"span='{choice}'" in repr(decorlib.DecorConv2d(2, 2, 1, span=choice))


@pytest.mark.parametrize(
    ("name", "by_the_caller"),
    [
        ("LinearOptions", set()),
        ("ConvolutionOptions", {"groups"}),
        ("ConversionOptions", {"groups", "rule"}),
    ],
)
def test_the_options_are_those_of_decorrelation(name, by_the_caller):
    parameters = inspect.signature(decorlib.Decorrelation).parameters.values()
    keywords = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY} - {"device", "dtype"}
    assert static(name).__optional_keys__ == keywords - by_the_caller


def test_the_package_says_that_it_is_typed():
    assert files("decorlib").joinpath("py.typed").is_file()
