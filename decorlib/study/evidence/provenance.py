"""What made a result: code, versions, data and machine, and the one call that sets up a notebook."""

import hashlib
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from decorlib._io.products import said

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(__file__).resolve().parents[2] / "data"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "seaborn")

_started = time.perf_counter()


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from.

    ``commit``, ``versions`` and ``data`` say which code, libraries and files were used; equal values are a
    reason to expect equal numbers. ``machine`` says where it ran, ``started`` and ``seconds`` when and for
    how long: these differ from run to run, and :mod:`decorlib.study.evidence.compare` ignores them.
    """

    commit: str | None  # None: not a git clone, or git is not installed
    modified: bool | None  # files differ from the commit, those aside that a run writes
    versions: dict[str, str]
    data: dict[str, str]  # file name -> sha256 of the file as it lies there now
    machine: dict[str, str | int]
    started: str
    seconds: float
    no_commit: str = ""  # why there is no commit, in git's words

    def as_dict(self) -> dict:
        """Plain dictionary, for a record."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Three short lines for people; :func:`setup` prints them."""
        code = self.no_commit if self.commit is None else f"commit {self.commit[:12]}"
        code += " (modified)" if self.modified else ""
        names = ("decorlib", "python", "torch", "torchvision", "numpy")
        m = self.machine
        return [
            code,
            " · ".join(f"{name} {self.versions[name]}" for name in names if name in self.versions),
            f"{m['device']} · {m['cpu']} · {m['cores']} cores, {m['threads']} thread(s) · {m['platform']}"
            + (f" · {m['products']}" if "products" in m else ""),
        ]


class NoGit(RuntimeError):
    """git did not answer; the message is its reason."""


def git(*arguments: str, root: Path) -> str:
    """What a git command prints.

    Raises:
        NoGit: it is not installed, `root` is not a clone, or git refuses, for example because somebody else owns it.
    """
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except FileNotFoundError as error:
        raise NoGit("git is not installed") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoGit(str(error)) from error
    if done.returncode:
        raise NoGit(done.stderr.strip() or f"`git {' '.join(arguments)}` ended with status {done.returncode}")
    return done.stdout.strip()


def commit_of(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Commit that `root` is at and whether the files differ from it; (None, None) where git cannot say."""
    return _commit(root)[:2]


def _commit(root: Path) -> tuple[str | None, bool | None, str]:
    """Commit, whether files differ from it, and why there is neither."""
    try:
        if Path(git("rev-parse", "--show-toplevel", root=root)).resolve() != Path(root).resolve():
            return None, None, "not under git"  # an installed copy inside somebody else's repository is not that one
        commit = git("rev-parse", "--verify", "HEAD", root=root)
        # What a run itself writes, the results and README's table of answers, is no change of the code.
        own = (":(exclude)results", ":(exclude)README.md")
        return commit, bool(git("status", "--porcelain", "--", ".", *own, root=root)), ""
    except NoGit as error:
        reason = str(error).splitlines()[0].replace(str(Path(root).resolve()), ".")  # no path of this machine
        return None, None, "not under git" if "not a git repository" in reason else f"commit unknown: {reason}"


def data_checksums(folder: Path = DATA / "mnist") -> dict[str, str]:
    """sha256 of each data file as it is on disk, checked against ``SHA256SUMS`` beside it.

    Raises:
        RuntimeError: a file differs from the sum that was published with it.
    """
    sums = {}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        expected, name = line.split()
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise RuntimeError(
                f"{folder / name} is damaged: its sha256 is {found[:12]}..., expected {expected[:12]}...; "
                "restore it with `git checkout -- decorlib/data` or install the package again"
            )
        sums[name] = found
    return sums


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("decorlib", *PACKAGES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(device: str = "cpu") -> Provenance:
    """Collect the :class:`Provenance` of this process; `seconds` counts from :func:`setup`."""
    import torch

    name = str(torch.device(device))
    if name.startswith("cuda") and torch.cuda.is_available():
        name = f"{name} ({torch.cuda.get_device_name(torch.device(device))})"
    commit, modified, no_commit = _commit(ROOT)
    return Provenance(
        commit=commit,
        modified=modified,
        versions=_versions(),
        data=data_checksums(),
        machine={
            "device": name,
            "cpu": _cpu(),
            "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "platform": f"{platform.system()} {platform.machine()}",
            **said(),
        },
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - _started, 1),
        no_commit=no_commit,
    )


def unusable(device: str) -> str | None:
    """Why torch cannot use a device on this machine, in a few words; None where it can."""
    import torch

    try:
        asked = torch.device(device)
    except RuntimeError:
        return "torch knows no device of that name, such as cpu, cuda or cuda:1"
    if asked.type == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if asked.type == "cuda" and (asked.index or 0) >= (count := torch.cuda.device_count()):
        return f"torch sees {count} CUDA device(s), the last of which is cuda:{count - 1}"
    if asked.type == "mps" and not torch.backends.mps.is_available():
        return "torch sees no MPS device"
    try:
        torch.empty(1, device=asked)
    except Exception as error:  # each backend that is not there has its own
        return f"torch cannot use it ({str(error).splitlines()[0]})"
    return None


_current: Provenance | None = None


def current() -> Provenance:
    """Provenance of this notebook: what :func:`setup` found, with the seconds gone by since."""
    found = _current if _current is not None else provenance()
    return replace(found, seconds=round(time.perf_counter() - _started, 1))


def setup(threads: int = 1, device: str = "cpu", deterministic: bool = True) -> Provenance:
    """Set the figure style, the number of threads and torch's determinism; print what the notebook runs on.

    Call it once, in the set-up cell. Determinism here means: the same bits on the same machine with the same
    versions. Another processor or torch release may differ in the last digits, which is why
    :mod:`decorlib.study.evidence.compare` compares records with a tolerance.

    Args:
        threads: threads of torch in this process. One is fastest for these small layers and makes sums
            independent of the number of cores. Default: 1
        device: torch device that the notebook uses; checked here, before an hour of work. Default: ``"cpu"``
        deterministic: refuse operations that have no deterministic form. On CUDA such operations only warn,
            because some (the backward of ``unfold``) have none. Default: ``True``

    Returns:
        The :class:`Provenance` of this notebook; records carry it by themselves.

    Raises:
        ValueError: `threads` is not positive, or `device` is not there.
    """
    global _current, _started
    # cuBLAS reads it when it is first used; without it deterministic matrix products raise on CUDA.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from decorlib.study.evidence import figures

    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if reason := unusable(device):
        raise ValueError(f"device {device!r} was asked for, but {reason}; use device='cpu'")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=torch.device(device).type != "cpu")
    figures.use_style()
    _started = time.perf_counter()
    _current = provenance(device)
    print("\n".join(_current.lines()))
    return _current
