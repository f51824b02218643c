"""Images of a reader's own, from a folder of folders or from arrays, as the study's networks take them.

``load("path/to/images")`` takes an ImageFolder, ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``CLASS/*.png``
alone: then every sixth image of a class is for testing), or a file .npz with ``x_train``, ``y_train``, ``x_test`` and
``y_test``. Images become grey, 28 x 28, uint8, as MNIST's are.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets.folder import IMG_EXTENSIONS

from decorlib.data.files import DataDamaged, DataUnavailable

__all__ = ["SIDE", "DataDamaged", "DataUnavailable", "OwnImages", "fingerprint", "fingerprint_of", "load"]

SIDE = 28  # pixels of an image's side
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
LAYOUT = "train/CLASS/*.png and test/CLASS/*.png, CLASS/*.png, or a .npz with " + ", ".join(ARRAYS)


@dataclass(frozen=True)
class OwnImages:
    """Images to train on and to test on: uint8 (N, 28, 28), labels int64 (N,) in 0 ... K - 1, and the K names."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


def load(path: str | os.PathLike) -> OwnImages:
    """Own images from a folder or a file .npz.

    Arrays: images (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8 from 0 to 255; labels (N,), of whole numbers or text.
    Colours become grey by ITU-R 601's weights, other sizes 28 x 28 by the mean over areas.

    Args:
        path: ImageFolder or .npz.

    Raises:
        DataUnavailable: there is nothing at the path, or not what is asked for; the message names both and the way out.
        DataDamaged: a file cannot be read.

    Example::

        >>> images = load("path/to/images")
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataUnavailable(f"data = {str(path)!r} is not there; give a path that holds {LAYOUT}")
    if path.is_file():
        if path.suffix != ".npz":
            raise DataUnavailable(
                f"data = {str(path)!r} is a file {path.suffix!r}; allowed: .npz, or a folder: {LAYOUT}"
            )
        return _checked(path, *_arrays(path))
    return _checked(path, *_folder(path))


def fingerprint(path: str | os.PathLike) -> str:
    """One sha256 of the images and labels at a path, as :func:`load` gives them: what results depend on."""
    return fingerprint_of(load(path))


def fingerprint_of(found: OwnImages) -> str:
    """The same of images that are loaded."""
    total = hashlib.sha256("\n".join(found.classes).encode())
    for part in (found.images, found.labels, found.test_images, found.test_labels):
        total.update(str(tuple(part.shape)).encode() + part.contiguous().numpy().tobytes())
    return total.hexdigest()


# ---------------------------------------------------------------------------------------------------------- internals


def _arrays(path: Path) -> tuple[Tensor, list, Tensor, list]:
    try:
        with np.load(path, allow_pickle=False) as file:
            absent = [name for name in ARRAYS if name not in file]
            if absent:
                raise DataUnavailable(
                    f"{path} lacks {', '.join(absent)}; it holds {', '.join(file) or 'nothing'}: save it with "
                    f"np.savez(path, {', '.join(f'{name}=...' for name in ARRAYS)})"
                )
            found = {name: file[name] for name in ARRAYS}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataDamaged(f"{path} cannot be read ({error}); save plain arrays with np.savez, no objects") from error
    for x, y in (ARRAYS[:2], ARRAYS[2:]):
        images, labels = found[x], found[y]
        if images.dtype != np.uint8:
            raise DataUnavailable(
                f"{path}: {x} is {images.dtype}; allowed: uint8, 0 to 255 (grey levels in [0, 1] become that by "
                "(255 * x).round().astype('uint8'))"
            )
        if not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] in (1, 3))) or 0 in images.shape[1:]:
            raise DataUnavailable(
                f"{path}: {x} has shape {images.shape}; allowed: (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
            )
        if labels.shape != (len(images),) or labels.dtype.kind not in "iuU":
            raise DataUnavailable(
                f"{path}: {y} has shape {labels.shape} and type {labels.dtype}; allowed: ({len(images)},), a label for "
                f"each of {x}, whole numbers or text"
            )
    return (
        _small(torch.from_numpy(found["x_train"])),
        found["y_train"].tolist(),
        _small(torch.from_numpy(found["x_test"])),
        found["y_test"].tolist(),
    )


def _folder(path: Path) -> tuple[Tensor, list, Tensor, list]:
    parts = [path / name for name in ("train", "test")]
    if all(part.is_dir() for part in parts):
        train, test = (_files(part) for part in parts)
    elif any(part.is_dir() for part in parts):
        there = next(part for part in parts if part.is_dir())
        raise DataUnavailable(f"{path} has {there.name}/ only; allowed: both, train/ and test/, or classes alone")
    else:
        train, test, before = [], [], {}
        for file, label in _files(path):
            before[label] = before.get(label, 0) + 1
            (test if before[label] % 6 == 0 else train).append((file, label))
    for name, files in (("train", train), ("test", test)):
        if not files:
            raise DataUnavailable(f"{path} gives no image for {name}ing; it must hold {LAYOUT}")
    return (
        torch.cat([_read(file) for file, _ in train]),
        [label for _, label in train],
        torch.cat([_read(file) for file, _ in test]),
        [label for _, label in test],
    )


def _files(folder: Path) -> list[tuple[Path, str]]:
    """Images below the folders of classes, in the order of their names, with the class."""
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    return [
        (file, entry.name)
        for entry in classes
        for file in sorted(entry.rglob("*"))
        if file.suffix.lower() in IMG_EXTENSIONS
    ]


def _read(file: Path) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return _small(torch.from_numpy(np.array(image.convert("RGB")))[None])
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataDamaged(f"{file} is no image that can be read ({error}); mend it or take it away") from error


def _small(images: Tensor) -> Tensor:
    """Grey and 28 x 28, in parts: colours would take eight times the memory."""
    return torch.cat([_small_part(part) for part in images.split(2048)]) if len(images) else images.new_zeros(0, 28, 28)


def _small_part(images: Tensor) -> Tensor:
    if images.dim() == 4 and images.shape[-1] == 3:
        grey = images.float() @ torch.tensor([0.299, 0.587, 0.114])
    else:
        grey = images.float().flatten(3).mean(3) if images.dim() == 4 else images.float()
    if grey.shape[1:] != (SIDE, SIDE):
        # Enlarged between pixels, made smaller by the mean over areas, so that nothing is skipped.
        smaller = min(grey.shape[1:]) >= SIDE
        how = {"mode": "area"} if smaller else {"mode": "bilinear", "antialias": True}
        grey = F.interpolate(grey[:, None], (SIDE, SIDE), **how)[:, 0]
    return grey.round().clamp(0, 255).to(torch.uint8)


def _checked(path: Path, images: Tensor, labels: list, test_images: Tensor, test_labels: list) -> OwnImages:
    if not len(images) or not len(test_images):
        raise DataUnavailable(
            f"{path} has {len(images)} images for training and {len(test_images)} for testing; some needed"
        )
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise DataUnavailable(f"{path} has {len(classes)} class, {classes}; at least 2 are needed to tell apart")
    if strange := sorted(set(test_labels) - set(classes)):
        raise DataUnavailable(
            f"{path}: the test images have the label(s) {strange[:5]}, which no training image has ({len(classes)} "
            "classes there); give training images of each class, or take those test images away"
        )
    number = {label: k for k, label in enumerate(classes)}
    codes = (torch.tensor([number[label] for label in these]) for these in (labels, test_labels))
    first, second = codes
    return OwnImages(images, first, test_images, second, tuple(map(str, classes)))
