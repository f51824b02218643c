"""The wheel in a new environment, without this repository: README's code and the examples for trainers run.

``make wheel``, or ``python tests/helpers/from_wheel.py [--torch 2.14.1] [--keep]``. Builds the wheel into build/wheel,
installs it with pip (what it asks for comes from the index) and the trainers into an environment of their own, and runs
the pages' code in an empty folder. Without --torch pip takes the newest, on Linux several GB.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINERS = ("accelerate", "lightning", "transformers")
LARGEST = 10_000_000  # bytes


def blocks(page: str) -> list[str]:
    """The Python code of a page: each block is a program."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def built(folder: Path, kind: str = "wheel") -> Path:
    """Build a distribution of this clone, ``wheel`` or ``sdist``, from a copy, so that nothing is left in the clone."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as copy:
        ignored = shutil.ignore_patterns(".git", ".venv", "build", ".cache", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, Path(copy) / "clone", ignore=ignored)
        code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(copy) / "clone", capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"setuptools could not build the {kind}:\n{done.stderr}")
    return folder / done.stdout.splitlines()[-1]


def main() -> int:
    """Build, install, run; 0 where all of it worked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", help="the version of torch, where the newest is too large")
    parser.add_argument("--keep", action="store_true", help="use the environment that an earlier call left")
    given = parser.parse_args()
    home = ROOT / "build" / "wheel"
    if not given.keep:
        shutil.rmtree(home, ignore_errors=True)
    wheel, python = built(home), home / "env" / "bin" / "python"
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.2f} MB")
    if size > LARGEST:
        print(f"that is over {LARGEST / 1e6:.0f} MB")
        return 1
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["interop"]
    trainers = [line for line in extras if line.partition("==")[0] in TRAINERS]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    torch = [f"torch=={given.torch}"] if given.torch else []
    subprocess.run([*pip, "install", "--quiet", *torch, wheel, *trainers], check=True)
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--force-reinstall", wheel], check=True)
    for page in ("README.md", "docs/trainers.md"):
        for i, block in enumerate(blocks(page), 1):
            with tempfile.TemporaryDirectory() as empty:
                where = "import decorlib, sys; assert decorlib.__file__.startswith(sys.prefix), decorlib.__file__\n"
                done = subprocess.run([python, "-I", "-c", where + block], cwd=empty, check=False)
            print(f"{page}, program {i}: {'runs' if done.returncode == 0 else 'FAILS'}", flush=True)
            if done.returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
