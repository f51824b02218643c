"""The data: complete MNIST from inside the package, others through torchvision, all checked before use.

The way data takes: ``mnist()`` (a torchvision data set) -> ``tensors()`` (uint8, as published) -> ``scale()``
(float32) -> ``loader()`` (batches). Nothing here needs a network unless ``download=True`` is asked for.
"""

import gzip
import hashlib
import lzma
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import torchvision.datasets

from decorlib.data.files import DataDamaged, DataUnavailable, DataWarning, digest, missing_files, unpack
from decorlib.data.inputs import SCALINGS, in_parts, loader, scale, tensors

__all__ = [
    "MNIST",
    "NAMES",
    "SCALINGS",
    "DataDamaged",
    "DataUnavailable",
    "DataWarning",
    "checksum",
    "cifar10",
    "data_root",
    "fashion_mnist",
    "in_parts",
    "loader",
    "mnist",
    "mnist_root",
    "scale",
    "tensors",
]

PathLike = str | os.PathLike

SHIPPED = Path(__file__).parent / "mnist"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
FASHION_MD5 = {  # of the unpacked files; torchvision knows only the sums of its own .gz files
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def data_root() -> Path:
    """Folder that holds unpacked data: the variable DECORLIB_DATA, else the user's cache folder."""
    return Path(os.environ.get("DECORLIB_DATA") or platformdirs.user_cache_dir("decorlib")).expanduser()


def _sums(name: str) -> dict[str, str]:
    """{file name: checksum} from a file that md5sum or sha256sum wrote."""
    try:
        lines = (SHIPPED / name).read_text().splitlines()
        return {file: digest for digest, file in (line.split() for line in lines)}
    except (OSError, ValueError) as error:
        raise DataDamaged(
            f"decorlib's list of checksums {SHIPPED / name} cannot be read ({error}); reinstall decorlib"
        ) from error


def _open_shipped(name: str) -> lzma.LZMAFile:
    """The shipped file, opened for unpacking, after its sha256 was checked."""
    packed, expected = SHIPPED / f"{name}.xz", _sums("SHA256SUMS").get(f"{name}.xz")
    found = digest(packed, "sha256")
    if found is None or found != expected:
        raise DataDamaged(
            f"decorlib's own {packed} is {'missing' if found is None else f'damaged: sha256 {found}'}, "
            f"expected sha256 {expected}; reinstall decorlib (in a git clone: git checkout -- decorlib/data)"
        )
    return lzma.open(packed)


def _refuse_legacy(root: Path, name: str) -> None:
    # torchvision once kept its own .pt files and still prefers them; nobody has checked those.
    legacy = root / name / "processed"
    if (legacy / "training.pt").exists():
        raise DataDamaged(f"{legacy} holds an old torchvision copy that would be read unchecked; delete that folder")


def mnist_root(root: PathLike | None = None) -> str:
    """Folder for ``torchvision.datasets.MNIST(root=...)`` in which the complete, checked MNIST lies unpacked.

    The first call unpacks what ships with the package (10 MB to 55 MB); each call compares the unpacked
    files with the published md5 sums and replaces a damaged one with a warning. Safe for several processes
    at once.

    Args:
        root: where to unpack. Default: :func:`data_root`.

    Raises:
        DataDamaged: the file inside the package is not the published one.
        DataUnavailable: the folder cannot be written.

    Example::

        >>> torchvision.datasets.MNIST(root=mnist_root(), train=True, download=True)  # finds the files
    """
    root = Path(root).expanduser() if root is not None else data_root()
    _refuse_legacy(root, "MNIST")
    unpack(root / "MNIST" / "raw", _sums("MD5SUMS"), _open_shipped, "decorlib")
    return str(root)


def mnist(
    train: bool = True,
    transform: Callable | None = None,
    target_transform: Callable | None = None,
    root: PathLike | None = None,
) -> torchvision.datasets.MNIST:
    """MNIST, complete, without network, as a genuine ``torchvision.datasets.MNIST``.

    Args:
        train: the 60,000 training digits; False: the 10,000 test digits. Default: True.
        transform: applied by torchvision to each image. Default: None, images come as PIL.
        target_transform: applied by torchvision to each label. Default: None.
        root: where to unpack. Default: DECORLIB_DATA, else the user's cache folder.

    Raises:
        DataUnavailable: see :func:`mnist_root`.
    """
    return torchvision.datasets.MNIST(mnist_root(root), train, transform, target_transform, download=False)


class MNIST(torchvision.datasets.MNIST):
    """``torchvision.datasets.MNIST`` whose ``download=True`` takes the files from this package.

    Same signature, same folders: a script changes its import line and nothing else.

    Example::

        >>> MNIST(root='~/Data', train=True, download=True)
    """

    def download(self) -> None:
        """Unpack and check the shipped files in ``root``."""
        mnist_root(self.root)


def _open_debian_fashion(name: str) -> gzip.GzipFile:
    return gzip.GzipFile(DEBIAN_FASHION / f"{name}.gz")


def fashion_mnist(
    train: bool = True,
    transform: Callable | None = None,
    target_transform: Callable | None = None,
    root: PathLike | None = None,
    download: bool = False,
) -> torchvision.datasets.FashionMNIST:
    """Fashion-MNIST as a genuine ``torchvision.datasets.FashionMNIST``, its files checked.

    Taken from `root`; else unpacked from Debian's package ``dataset-fashion-mnist``; else, where asked,
    downloaded.

    Args:
        train: the 60,000 training images; False: the 10,000 test images. Default: True.
        transform: as for :func:`mnist`. Default: None.
        target_transform: as for :func:`mnist`. Default: None.
        root: folder that holds FashionMNIST/raw. Default: DECORLIB_DATA, else the user's cache folder.
        download: let torchvision download the files when they are nowhere on this machine. Default: False.

    Raises:
        DataUnavailable: the files are nowhere; the message names the three ways out.
        DataDamaged: a file that was unpacked or downloaded is not the published one.
    """
    root = Path(root).expanduser() if root is not None else data_root()
    raw = root / "FashionMNIST" / "raw"
    _refuse_legacy(root, "FashionMNIST")
    if all((DEBIAN_FASHION / f"{name}.gz").is_file() for name in FASHION_MD5):
        unpack(raw, FASHION_MD5, _open_debian_fashion, "dataset-fashion-mnist")
    elif missing := missing_files(raw, FASHION_MD5):
        if not download:
            raise DataUnavailable(
                f"Fashion-MNIST is not here: {', '.join(missing)} not in {raw} with the published md5; "
                "call fashion_mnist(download=True), or install Debian's package dataset-fashion-mnist, or "
                "name a folder that holds FashionMNIST/raw in the environment variable DECORLIB_DATA"
            )
        for name in missing:  # torchvision skips what is there, damaged or not
            (raw / name).unlink(missing_ok=True)
        _download(lambda: torchvision.datasets.FashionMNIST(root, download=True), "Fashion-MNIST", root)
        if damaged := missing_files(raw, FASHION_MD5):
            raise DataDamaged(f"{raw / damaged[0]} was downloaded but has the wrong md5; delete it and call again")
    return torchvision.datasets.FashionMNIST(root, train, transform, target_transform, download=False)


def cifar10(
    train: bool = True,
    transform: Callable | None = None,
    target_transform: Callable | None = None,
    root: PathLike | None = None,
    download: bool = False,
) -> torchvision.datasets.CIFAR10:
    """CIFAR-10 as a genuine ``torchvision.datasets.CIFAR10``.

    Its files are pickles; torchvision opens one only after its md5 is the published one.

    Args:
        train: the 50,000 training images; False: the 10,000 test images. Default: True.
        transform: as for :func:`mnist`. Default: None.
        target_transform: as for :func:`mnist`. Default: None.
        root: folder that holds cifar-10-batches-py. Default: DECORLIB_DATA, else the user's cache folder.
        download: let torchvision download 170 MB where the files are missing or damaged. Default: False.

    Raises:
        DataUnavailable: the files are missing or damaged; the message names the ways out.
    """
    root = Path(root).expanduser() if root is not None else data_root()
    source = torchvision.datasets.CIFAR10
    expected = dict([*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])])
    folder = root / source.base_folder
    bad = [name for name, md5 in expected.items() if digest(folder / name, "md5") != md5]
    if bad and not download:
        raise DataUnavailable(
            f"CIFAR-10 is not here: {', '.join(bad)} not in {folder} with the published md5; "
            "call cifar10(download=True), or name a folder that holds cifar-10-batches-py in the environment "
            "variable DECORLIB_DATA"
        )
    if bad:
        _download(lambda: source(root, download=True), "CIFAR-10", root)
    return source(root, train, transform, target_transform, download=False)


def _download(call: Callable[[], Any], name: str, root: Path) -> None:
    try:
        call()
    except (RuntimeError, OSError) as error:  # torchvision raises either; URLError is an OSError
        raise DataUnavailable(
            f"{name} could not be downloaded into {root} ({error}); copy the files there from another machine"
        ) from error


NAMES = ("mnist", "fashion_mnist", "cifar10")


def checksum(name: str) -> str:
    """One sha256 that stands for the content of a data set, for cache keys and provenance.

    It is taken over the checksums that every file must have before it is used, so it costs nothing and
    needs no data.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".

    Raises:
        ValueError: the name is none of these.
    """
    if name == "mnist":
        sums = _sums("MD5SUMS")
    elif name == "fashion_mnist":
        sums = FASHION_MD5
    elif name == "cifar10":
        sums = dict([*torchvision.datasets.CIFAR10.train_list, *torchvision.datasets.CIFAR10.test_list])
    else:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(NAMES)}")
    return hashlib.sha256("\n".join(f"{file} {sums[file]}" for file in sorted(sums)).encode()).hexdigest()


#: What results that were computed with this module depend on besides code; a stored run is named by it, too.
DEPENDS_ON = {name: partial(checksum, name) for name in NAMES}
