"""What was asked of ``make reproduce``, checked before anything runs, in the words of make's own variables."""

import argparse
import re
import socket
from importlib.util import find_spec
from pathlib import Path

from decorlib._io import products
from decorlib.study.evidence.provenance import ROOT, unusable
from decorlib.study.evidence.records import EXTENDED
from decorlib.study.report.notebooks import PROFILES

COMMITTED = {"full": Path("results"), "extended": EXTENDED}  # where the profiles write whose results are committed
PATIENCE = 10.0  # seconds that a scheduler has to answer


class BadRequest(ValueError):
    """A variable has a value that nothing can be done with; the message names both, and the way out."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line, checked, with the folders that follow from it.

    Raises:
        BadRequest: see :func:`check`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m decorlib.study.report.reproduce", description="Run the notebooks; write results/."
    )
    parser.add_argument("--only", nargs="+", metavar="NN", help="numbers of the notebooks to run")
    parser.add_argument("--profile", default="full", help=f"{', '.join(PROFILES)}; default: full")
    parser.add_argument("--seeds", metavar="N", help="seeds, where a notebook has `seeds`")
    parser.add_argument("--device", help="torch device, where a notebook has `device`")
    parser.add_argument("--jobs", metavar="N", help="processes of a sweep; default: cores")
    parser.add_argument("--engine", help="serial, local, or tcp://host:port of a Dask scheduler")
    parser.add_argument("--force", action="store_true", help="run even where nothing changed")
    parser.add_argument("--timeout", type=int, metavar="S", help="seconds a cell may take; default: no limit")
    parser.add_argument("--no-report", dest="report", action="store_false", help="do not build the report")
    parser.add_argument(
        "--refresh-sources", action="store_true", help="store the quick run's outputs in notebooks/ instead"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with notebooks/; default: the clone")
    options = parser.parse_args(arguments)
    check(options)
    options.root = options.root.resolve()
    # A quick look must never replace what an afternoon computed, nor the longer study what a newcomer can repeat.
    build = options.root / "build"
    options.results = options.root / COMMITTED.get(options.profile, build / options.profile)
    options.report = options.report and options.profile != "extended"  # the full run's report shows what it found
    options.build = build / "reproduce" / options.profile
    return options


def check(options: argparse.Namespace) -> None:
    """Refuse what would only show when notebooks are under way; make numbers of the texts that are to be numbers.

    Raises:
        BadRequest: for the first variable that is wrong.
    """
    options.profile = profile(options.profile)
    options.seeds = _whole("SEEDS", options.seeds)
    options.jobs = _whole("JOBS", options.jobs)
    if options.device is not None and (reason := unusable(options.device)):
        raise BadRequest(f"DEVICE={options.device}: {reason}; without DEVICE notebooks run on the processor")
    if options.engine is not None and (reason := unreachable(options.engine)):
        raise BadRequest(f"ENGINE={options.engine}: {reason}")
    try:
        products.environment()
    except ValueError as error:
        raise BadRequest(str(error)) from error


def profile(text: str) -> str:
    """One of the profiles.

    Raises:
        BadRequest: it is none.
    """
    if text not in PROFILES:
        raise BadRequest(f"PROFILE={text}: there are {', '.join(PROFILES)}")
    return text


def unreachable(engine: str) -> str | None:
    """Why an engine cannot run anything, and the way out; None where it may."""
    if engine in ("serial", "local"):
        return None
    address = re.fullmatch(r"(?:tcp|tls)://(.+):(\d{1,5})", engine)
    if address is None or int(address[2]) > 65535:
        return "it must be local, serial or the address tcp://host:port of a Dask scheduler"
    if find_spec("distributed") is None:
        return 'a scheduler is spoken to with Dask, which is not installed: pip install -e ".[cluster]"'
    try:
        socket.create_connection((address[1].strip("[]"), int(address[2])), timeout=PATIENCE).close()
    except OSError as error:
        return f"no scheduler answers there ({error}); start one with `dask scheduler`, or leave ENGINE out"
    return None


def _whole(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise BadRequest(f"{name}={text}: it must be a whole number of at least 1, such as {name}=5")
    return int(text)
