"""What runs multiply with on AMD's processors: where that is wanted, and that products stay products."""

import json
import os
import platform
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4

from decorlib._io import products
from decorlib.study.report import reproduce

AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512bw\n\nprocessor\t: 1\n"
compiled = pytest.mark.skipif(
    platform.system() != "Linux" or shutil.which("cc") is None, reason="a C compiler on Linux makes the library"
)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (AMD, True),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), False),
        (AMD.replace(" avx512f avx512bw", ""), False),
        (AMD.replace("avx512f", "avx512fake"), False),
        ("", False),
    ],
)
def test_only_amds_processors_with_avx512_are_held_back(cpuinfo, expected):
    assert products.held_back(cpuinfo) is expected


def test_a_choice_that_is_none_is_refused_and_installed_leaves_all_as_it_is(monkeypatch):
    monkeypatch.setenv(products.CHOICE, "installed")
    assert products.environment() == {}
    monkeypatch.setenv(products.CHOICE, "fast")
    with pytest.raises(ValueError, match="DECORLIB_PRODUCTS = 'fast' must be 'installed', or not be set"):
        products.environment()


def test_reproduce_refuses_it_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(products.CHOICE, "fast")
    assert reproduce.main(["--root", str(tmp_path), "--no-report"]) == reproduce.USAGE
    assert "DECORLIB_PRODUCTS" in capsys.readouterr().err


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_that_works_there_is_none_and_no_error(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("CC", compiler)
    assert products.library(tmp_path) is None
    assert not list(tmp_path.iterdir())


@compiled
def test_a_folder_that_ld_preload_cannot_name_gets_none(tmp_path):
    assert products.library(tmp_path / "a b") is None


@compiled
def test_it_is_compiled_once_and_never_half(tmp_path):
    path = products.library(tmp_path)
    before = path.stat().st_mtime_ns
    assert products.library(tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [path]


ASK = """
import json, torch
from decorlib._io import products
from decorlib.study.evidence.provenance import provenance
from decorlib.study.sweeps.identity import environment
from decorlib.study.experiments.experiment import Experiment, run

torch.manual_seed(0)
off = []
for m, k, n in [(64, 784, 784), (1, 7, 3), (128, 784, 256), (33, 65, 17)]:
    a, b = torch.randn(m, k), torch.randn(k, n)
    exact, bound = a.double() @ b.double(), (a.double().abs() @ b.double().abs()) * k * 2.0**-24
    off.append(float(((a @ b).double() - exact).abs().div(bound).max()))
print(json.dumps({
    "in use": products.in_use(), "again": products.environment(), "key": environment(run, Experiment).get("products"),
    "record": provenance().machine.get("products"), "line": provenance().lines()[2], "off": max(off),
}))
"""


@compiled
@pytest.mark.parametrize("preloaded", [True, False])
def test_a_process_says_what_it_multiplies_with_and_multiplies(tmp_path, preloaded):
    env = {name: value for name, value in os.environ.items() if name not in (products.PRELOAD, products.CHOICE)}
    if preloaded:
        env[products.PRELOAD] = str(products.library(tmp_path))
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["in use"] is preloaded
    assert [found["key"], found["record"]] == [products.AVX512 if preloaded else None] * 2
    assert found["line"].endswith(products.AVX512) is preloaded
    assert not (preloaded and found["again"])  # what there is already is not put in front of itself
    assert found["off"] <= 1  # of what rounding allows


@compiled
def test_kernels_of_reproduce_have_it_and_that_of_the_cost_has_not(tmp_path, monkeypatch):
    monkeypatch.delenv(products.CHOICE, raising=False)
    library = products.library(tmp_path / "kept")
    monkeypatch.setattr(products, "environment", lambda: {products.PRELOAD: str(library)})
    (tmp_path / "notebooks").mkdir()
    ask = "from decorlib._io import products\nprint(products.in_use())"
    for number in ("07", "08"):
        cells = [
            v4.new_code_cell("seeds = 3", id="p", metadata={"tags": ["parameters"]}),
            v4.new_code_cell(ask, id="c"),
        ]
        kernel = {"kernelspec": {"name": "python3", "display_name": "x"}}
        nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / f"{number}_why.ipynb")
    assert reproduce.main(["--root", str(tmp_path), "--no-report"]) == 0
    for number, expected in (("07", "True\n"), ("08", "False\n")):
        made = nbformat.read(tmp_path / "results" / "notebooks" / f"{number}_why.ipynb", as_version=4)
        assert [o.text for cell in made.cells for o in cell.get("outputs", [])] == [expected]
    assert products.PRELOAD not in os.environ or str(library) not in os.environ[products.PRELOAD]
