"""pyproject.toml, requirements.lock and environment.yml say the same, and each tool finds what it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
INTEROP = (ROOT / "requirements-interop.lock").read_text()  # what `make test-interop` adds to LOCK


def wanted(interop: bool) -> list[Requirement]:
    optional = {name: part for name, part in PROJECT["optional-dependencies"].items() if (name == "interop") is interop}
    parts = [*optional.values()] if interop else [PROJECT["dependencies"], *optional.values()]
    return [Requirement(line) for part in parts for line in part]


def locked(text: str = LOCK) -> dict[str, list[str]]:
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", text, re.M):
        pins.setdefault(canonicalize_name(name), []).append(version)
    return pins


@pytest.mark.parametrize("text", [LOCK, INTEROP], ids=["requirements.lock", "requirements-interop.lock"])
def test_every_dependency_is_locked_within_its_range(text):
    pins = locked(text)
    for requirement in wanted(interop=text is INTEROP):
        versions = pins.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is in pyproject.toml but not locked; run `make lock`"
        for version in versions:
            assert requirement.specifier.contains(version), f"{requirement} excludes the locked {version}"


@pytest.mark.parametrize("text", [LOCK, INTEROP], ids=["requirements.lock", "requirements-interop.lock"])
def test_every_pin_has_a_hash(text):
    pins = re.findall(r"^[A-Za-z0-9_.-]+==.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+", text, re.M)
    assert len(pins) == sum(map(len, locked(text).values())) > 0


def test_what_the_interop_tests_add_replaces_nothing_that_setup_installed():
    assert not locked(INTEROP).keys() & locked().keys()


def test_conda_environment_adds_nothing_to_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = conda["dependencies"]
    assert pip == "pip"
    assert from_pip == {"pip": ["-r requirements.lock"]}
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert python == f"python={minimum}"


def test_make_reads_the_same_torch_as_the_lock():
    text = (ROOT / "Makefile").read_text()
    for name in ("torch", "torchvision"):
        assert re.search(rf"\b{name}==([\d.]+\d)", text).group(1) in locked()[name]


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split()
    shown = subprocess.run(["make", "-C", str(ROOT), "-s"], capture_output=True, text=True, check=True).stdout
    missing = [target for target in targets if not re.search(rf"^  make {target} ", shown, re.M)]
    assert not missing


def test_an_old_python_is_refused_by_name(tmp_path):
    old = tmp_path / "python2"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 2.7.18";; *) exit 1;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "-C", str(ROOT), "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
    assert "2.7.18" in done.stderr
    assert "PYTHON=python3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_core_does_not_import_the_study():
    code = (
        "import sys, decorlib\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'pandas', 'papermill', 'seaborn')"
        " or m.startswith('decorlib.study')]\n"
        "print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_citation_and_package_have_one_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
