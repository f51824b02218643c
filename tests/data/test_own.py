"""Images of a reader's own: folders and arrays, and what is said where they are not what is asked for."""

import numpy as np
import pytest
import torch
from PIL import Image

from decorlib.data import own


def arrays(count=12, tests=6, **changes):
    draws = np.random.default_rng(0)
    made = {
        "x_train": draws.integers(0, 256, (count, 28, 28), dtype=np.uint8),
        "y_train": np.arange(count) % 3,
        "x_test": draws.integers(0, 256, (tests, 28, 28), dtype=np.uint8),
        "y_test": np.arange(tests) % 3,
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def picture(path, grey, size=(28, 28)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)


def test_arrays_are_taken_as_they_are_and_labels_are_numbered(tmp_path):
    made = arrays(y_train=np.array(["b", "a", "c"] * 4), y_test=np.array(["a"] * 6))
    np.savez(tmp_path / "own.npz", **made)
    found = own.load(tmp_path / "own.npz")
    assert torch.equal(found.images, torch.from_numpy(made["x_train"]))
    assert torch.equal(found.test_images, torch.from_numpy(made["x_test"]))
    assert found.classes == ("a", "b", "c")
    assert found.labels.tolist()[:3] == [1, 0, 2]
    assert found.labels.dtype == torch.int64
    assert own.fingerprint(tmp_path / "own.npz") == own.fingerprint_of(found)
    np.savez(tmp_path / "other.npz", **(made | {"x_test": 255 - made["x_test"]}))
    assert own.fingerprint(tmp_path / "other.npz") != own.fingerprint_of(found)


def test_colours_become_grey_and_sizes_28(tmp_path):
    colours = np.zeros((3, 56, 56, 3), dtype=np.uint8)
    colours[0, ..., 0], colours[1, ..., 1], colours[2, ..., 2] = 200, 200, 200
    half = np.zeros((6, 56, 56, 1), dtype=np.uint8)
    half[:, ::2] = 100  # every second row: its mean is 50
    np.savez(tmp_path / "own.npz", **arrays(x_train=colours, y_train=np.arange(3), x_test=half))
    found = own.load(tmp_path / "own.npz")
    assert [int(image[5, 5]) for image in found.images] == [60, 117, 23]  # .299, .587, .114 of 200
    assert found.test_images.shape == (6, 28, 28)
    assert (found.test_images == 50).all()
    np.savez(tmp_path / "own.npz", **arrays(x_train=np.full((12, 8, 8), 7, dtype=np.uint8)))
    assert (own.load(tmp_path / "own.npz").images == 7).all()


@pytest.mark.parametrize("split", [True, False])
def test_folders_of_folders(tmp_path, split):
    for k, name in enumerate(("cat", "dog")):
        for i in range(6):
            part = ("test" if i == 5 else "train") if split else ""
            picture(tmp_path / part / name / f"{i}.png", 100 * k + i)
    (tmp_path / "README.txt").write_text("not an image")
    found = own.load(tmp_path)
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert found.images[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert found.test_images[:, 0, 0].tolist() == [5, 105]
    assert found.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"lacks y_test; it holds x_train, y_train, x_test: save it with np\.savez"),
        ({"x_train": np.zeros((12, 28, 28))}, "x_train is float64; allowed: uint8"),
        ({"x_train": np.zeros((12, 784), dtype=np.uint8)}, r"x_train has shape \(12, 784\); allowed: \(N, H, W\)"),
        ({"x_test": np.zeros((6, 28, 28, 4), dtype=np.uint8)}, r"x_test has shape \(6, 28, 28, 4\)"),
        ({"y_train": np.arange(11) % 3}, r"y_train has shape \(11,\) and type int64; allowed: \(12,\)"),
        ({"y_train": np.zeros(12)}, "type float64"),
        ({"y_train": np.zeros(12, dtype=int), "y_test": np.zeros(6, dtype=int)}, r"1 class, \[0\]; at least 2"),
        ({"y_test": np.arange(6)}, r"label\(s\) \[3, 4, 5\], which no training image has \(3 classes"),
        ({"x_test": np.zeros((0, 28, 28), dtype=np.uint8), "y_test": np.zeros(0, dtype=int)}, "0 for testing"),
    ],
)
def test_arrays_that_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "own.npz", **arrays(**changes))
    with pytest.raises(own.DataUnavailable, match=message):
        own.load(tmp_path / "own.npz")


def test_files_that_are_refused(tmp_path):
    with pytest.raises(own.DataUnavailable, match="is not there; give a path that holds train/CLASS"):
        own.load(tmp_path / "nowhere")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(own.DataUnavailable, match=r"is a file '\.csv'; allowed: \.npz"):
        own.load(tmp_path / "a.csv")
    (tmp_path / "a.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(own.DataDamaged, match=r"a\.npz cannot be read"):
        own.load(tmp_path / "a.npz")
    np.savez(tmp_path / "objects.npz", **arrays(y_train=np.array([{}] * 12, dtype=object)))
    with pytest.raises(own.DataDamaged, match="no objects"):
        own.load(tmp_path / "objects.npz")
    picture(tmp_path / "half" / "train" / "cat" / "0.png", 5)
    with pytest.raises(own.DataUnavailable, match="has train/ only; allowed: both"):
        own.load(tmp_path / "half")
    (tmp_path / "empty").mkdir()
    with pytest.raises(own.DataUnavailable, match="gives no image for training"):
        own.load(tmp_path / "empty")
    for k in range(6):
        picture(tmp_path / "broken" / "cat" / f"{k}.png", k)
        picture(tmp_path / "broken" / "dog" / f"{k}.png", k)
    (tmp_path / "broken" / "dog" / "3.png").write_bytes(b"torn")
    with pytest.raises(own.DataDamaged, match=r"3\.png is no image that can be read"):
        own.load(tmp_path / "broken")
