import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import decorlib.study
from decorlib.study.evidence import provenance
from decorlib.study.sweeps import source
from decorlib.study.sweeps.progress import progress


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments], check=True)


def test_commit_and_modified(tmp_path):
    assert provenance.commit_of(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    assert provenance.commit_of(tmp_path) == (None, None)  # no commit yet
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit, modified = provenance.commit_of(tmp_path)
    assert len(commit) == 40
    assert modified is False
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "01.json").write_text("{}")
    assert provenance.commit_of(tmp_path) == (commit, False)  # what a run writes is no change of the code
    (tmp_path / "a.py").write_text("x = 2\n")
    assert provenance.commit_of(tmp_path) == (commit, True)
    (tmp_path / "inside").mkdir()
    assert provenance.commit_of(tmp_path / "inside") == (None, None)  # somebody else's repository


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit_of() == (None, None)
    assert provenance.provenance().lines()[0] == "commit unknown: git is not installed"


def test_a_clone_that_git_refuses_says_so(tmp_path, monkeypatch):
    """git does not read a clone of another user; whoever hears "not under git" looks in the wrong place."""
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch for this case
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    found = provenance.provenance()
    assert (found.commit, found.modified) == (None, None)
    assert found.lines()[0].startswith("commit unknown: fatal: detected dubious ownership in repository")
    assert str(tmp_path) not in found.no_commit  # records and pages hold no path of this machine
    with pytest.raises(provenance.NoGit, match=r"safe\.directory"):  # git's own way out
        provenance.git("status", root=tmp_path)


def test_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.provenance().lines()[0] == "not under git"


def test_evidence_imports_no_other_room():
    folder = Path(provenance.__file__).parent
    names = [f"decorlib.study.evidence.{path.stem}" for path in folder.glob("*.py")]
    texts = [path.read_text() for name, path in source.reach(names).items() if name in names]
    imported = {name for text in texts for name in source.imports(text) if name.startswith("decorlib")}
    allowed = ("decorlib._io.files", "decorlib._io.plain", "decorlib._io.products", "decorlib.study.evidence")
    assert [name for name in imported if not name.startswith(allowed)] == []


def test_data_are_checked_as_they_lie_there(tmp_path):
    folder = tmp_path / "mnist"
    shutil.copytree(provenance.DATA / "mnist", folder)
    sums = provenance.data_checksums(folder)
    labels = folder / "t10k-labels-idx1-ubyte.xz"
    assert sums[labels.name] == hashlib.sha256(labels.read_bytes()).hexdigest()
    data = bytearray(labels.read_bytes())
    data[100] ^= 1
    labels.chmod(0o644)
    labels.write_bytes(data)
    with pytest.raises(RuntimeError, match=r"t10k-labels-idx1-ubyte\.xz is damaged.*git checkout"):
        provenance.data_checksums(folder)


def test_setup_sets_and_prints(capsys):
    found = decorlib.study.setup(threads=2)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    out = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in out
    assert "2 thread(s)" in out
    assert out.splitlines() == found.lines()
    assert found.machine["threads"] == 2
    assert provenance.current().commit == found.commit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"device": "cuda"}, "sees no CUDA device"),
        ({"device": "mps"}, "device='cpu'"),
        ({"device": "gpu"}, "device 'gpu' was asked for, but torch knows no device of that name.*device='cpu'"),
    ],
)
def test_setup_refuses(arguments, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        decorlib.study.setup(**arguments)


def test_importing_the_study_loads_nothing_heavy():
    code = "import decorlib.study, sys; print([m for m in ('matplotlib', 'pandas', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_the_study_offers_exists():
    for name in decorlib.study.__all__:
        assert getattr(decorlib.study, name) is not None
    with pytest.raises(AttributeError, match="no name 'swep'"):
        decorlib.study.swep  # noqa: B018


@pytest.mark.parametrize("settings", [{"DECORLIB_PROGRESS": "off"}, {"DECORLIB_BATCH": "1"}])
def test_progress_yields_everything(settings, monkeypatch, capsys):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert list(progress(range(3), desc="runs")) == [0, 1, 2]
    assert list(progress(iter("ab"), total=2)) == ["a", "b"]
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""  # nothing that a notebook would store
