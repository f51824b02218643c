"""pyproject.toml, requirements.lock and environment.yml say the same, and each tool finds what it needs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
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


def test_after_conda_and_binder_decorlib_is_there_from_the_first_cell(tmp_path):
    """What environment.yml says to run second, and Binder runs by itself, in an environment that holds the lock."""
    assert "./postBuild" in re.search(r"\A(?:#.*\n)+", (ROOT / "environment.yml").read_text())[0]
    clone = tmp_path / "a clone"
    shutil.copytree(ROOT / "decorlib", clone / "decorlib", ignore=shutil.ignore_patterns("*.xz", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "postBuild"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "conda"], check=True)
    (packages,) = (tmp_path / "conda" / "lib").glob("python*/site-packages")
    pip = [tmp_path / "conda" / "bin" / "python", "-m", "pip"]
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "setuptools"], check=True)  # older than the locked one
    # the locked packages of this environment, but not its decorlib, which is in a .pth file there
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "PATH": f"{tmp_path / 'conda' / 'bin'}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    first_cell = ["python", "-c", "import decorlib; print(decorlib.__file__)"]
    before = subprocess.run(first_cell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "No module named 'decorlib'" in before.stderr
    subprocess.run([clone / "postBuild"], cwd=tmp_path, env=environment, check=True)
    after = subprocess.run(first_cell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert after.stdout.strip() == str(clone / "decorlib" / "__init__.py"), after.stderr


def setup(folder):
    """`make setup` in a folder; its installs are only recorded, by the python of an environment that is there."""
    done = subprocess.run(
        ["make", "-C", str(ROOT), "setup", f"VENV={folder}", f"PYTHON={sys.executable}"], capture_output=True, text=True
    )
    log = Path(folder) / "log"
    return done, log.read_text().splitlines() if log.exists() else []


def environment_at(folder, pip: str = "exit 0", ensurepip: str = "exit 0"):
    """An environment whose python writes down what it is asked for."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\nhere=$(dirname "$0")/..\necho "$@" >> "$here/log"\n'
        f'case "$2 $3" in "pip --version") {pip};; "ensurepip --default-pip") {ensurepip};; esac\n'
    )
    python.chmod(0o755)


@pytest.mark.parametrize("name", ["envs", "my envs/decorlib", "a  b/c d e"])
def test_setup_takes_any_folder(name, tmp_path):
    environment_at(tmp_path / name)
    for _ in range(2):  # the second time there is nothing to do
        done, log = setup(tmp_path / name)
        assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in log] == ["--version", "install", "install"]
    assert (tmp_path / name / ".decorlib-stamp").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [Path(name).parts[0]]


def test_setup_mends_an_environment_that_was_left_without_pip(tmp_path):
    environment_at(tmp_path / "left", pip="exit 1")
    done, log = setup(tmp_path / "left")
    assert done.returncode == 0, done.stderr
    assert log[:2] == ["-m pip --version", "-m ensurepip --default-pip"]
    assert [line.split()[2] for line in log[2:]] == ["install", "install"]


def test_setup_says_the_way_out_where_pip_cannot_be_had(tmp_path):
    environment_at(tmp_path / "left", pip="exit 1", ensurepip="exit 1")
    done, log = setup(tmp_path / "left")
    assert done.returncode != 0
    assert f"There is no pip in {tmp_path / 'left'}" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert "make setup PYTHON=python3.12" in done.stderr
    assert not any("install" in line.split() for line in log)
    assert not (tmp_path / "left" / ".decorlib-stamp").exists()


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


def test_the_version_is_one_everywhere():
    import decorlib

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    assert decorlib.__version__ == PROJECT["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1)
    assert newest == PROJECT["version"]


def test_modules_that_the_changelog_names_are_there():
    table = re.findall(
        r"^\| `(decorlib\.[\w.]+)` \| `(decorlib\.[\w.]+)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert len(table) > 50
    for _, new in table:
        path = ROOT / new.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), f"{new} is not there"


def test_the_hook_takes_volatile_metadata_out_of_a_notebook_and_nothing_else(tmp_path):
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if hook["id"] == "nbstripout"]
    tool, *options = shlex.split(hook["entry"])
    stored = sorted((ROOT / "notebooks").glob("*.ipynb"))[0]
    path = shutil.copy(stored, tmp_path)
    saved = json.loads(stored.read_text(encoding="utf-8"))  # as JupyterLab and papermill save it
    saved["metadata"] |= {"papermill": {"duration": 1.5}, "widgets": {"state": {}}}
    saved["metadata"]["language_info"] |= {"version": "3.11.7", "mimetype": "text/x-python", "file_extension": ".py"}
    saved["metadata"]["language_info"] |= {"codemirror_mode": {"name": "ipython"}, "pygments_lexer": "ipython3"}
    saved["cells"][1]["metadata"] |= {"papermill": {"status": "completed"}, "execution": {"iopub.status.idle": "now"}}
    Path(path).write_text(json.dumps(saved), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", tool.split("/")[-1], *options, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(path).read_text(encoding="utf-8")) == json.loads(stored.read_text(encoding="utf-8"))


def test_ci_runs_what_a_newcomer_is_told_to_run():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    script = (ROOT / ".ci" / "run").read_text()
    assert {"make lint", "make test"} <= set(script.splitlines())
