"""What is built from this clone: a wheel with the package alone, a source distribution with its tests, a description.

``make wheel`` goes further: it installs the wheel from an index into an environment that has nothing else.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import BytesParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import from_wheel
import pytest

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def built_wheel(folder):
    return from_wheel.built(folder)


@pytest.fixture(scope="module")
def sdist(folder):
    with tarfile.open(from_wheel.built(folder, "sdist")) as archive:
        return {name.partition("/")[2]: size for name, size in ((m.name, m.size) for m in archive if m.isfile())}


def package_files() -> set[str]:
    found = [path for path in (ROOT / "decorlib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(ROOT)) for path in found}


def test_the_wheel_is_the_package_with_its_data_and_types_and_small(built_wheel):
    with zipfile.ZipFile(built_wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == package_files()
    assert "decorlib/py.typed" in inside
    assert "decorlib/data/mnist/train-images-idx3-ubyte.xz" in inside
    assert built_wheel.stat().st_size < from_wheel.LARGEST


def test_the_wheel_says_who_it_is(built_wheel):
    with zipfile.ZipFile(built_wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        about = BytesParser().parsebytes(archive.read(name))
    assert (about["Name"], about["Requires-Python"]) == ("decorlib", ">=3.11")
    assert about["Description-Content-Type"] == "text/markdown"
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= {*about.get_all("Classifier")}
    assert all(re.fullmatch(r"[^,]+, https://\S+", url) for url in about.get_all("Project-URL"))
    description = about.get_payload()
    assert "```python" in description
    assert [link for link in LINK.findall(description) if not link.startswith(("https://", "#"))] == []


def test_the_source_distribution_has_what_its_tests_read(sdist):
    assert package_files() <= sdist.keys()
    folders = ("tests", "docs", "notebooks", "findings", ".ci", ".github", ".jupyter")
    ours = {
        str(path.relative_to(ROOT))
        for name in folders
        for path in (ROOT / name).rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & {*path.parts}
    }
    assert ours <= sdist.keys()
    assert {"Makefile", "setup.py", "requirements.lock", "CITATION.cff", "results/records/00.json"} <= sdist.keys()
    made_again = ("results/report", "results/notebooks", "results/figures", "build")
    assert [name for name in sdist if name.startswith(made_again)] == []
    assert sum(sdist.values()) < 20e6


def test_from_the_wheel_readmes_code_runs(built_wheel, tmp_path):
    """With the locked packages of this environment, but its decorlib out of the way."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(built_wheel) as archive:
        archive.extractall(packages)
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "empty").mkdir()
    for block in from_wheel.blocks("README.md"):
        code = f"{block}\nimport decorlib\nprint(decorlib.__file__)"
        done = subprocess.run(
            [tmp_path / "env" / "bin" / "python", "-I", "-c", code],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == str(packages / "decorlib" / "__init__.py")


@pytest.fixture(scope="module")
def long_description():
    spec = spec_from_file_location("decorlib_setup", ROOT / "setup.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.long_description


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://example.org/decorlib/", "see [`LICENSE`](https://example.org/decorlib/blob/main/LICENSE)"),
        (None, "see `LICENSE`"),
    ],
)
def test_links_to_files_become_absolute_or_plain(long_description, source, said):
    assert long_description("see [`LICENSE`](LICENSE)", source) == said


def test_a_link_that_is_named_otherwise_keeps_its_file_and_others_stay(long_description):
    assert long_description("[00](notebooks/00.ipynb)", None) == "00 (`notebooks/00.ipynb`)"
    for text in ("[a](https://example.org)", "[below](#limits)", "![picture](a.png)"):
        assert long_description(text, None) == text
