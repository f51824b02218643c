"""The data: what ships is what was published, damage is seen, scalings and batches are torchvision's."""

import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
import torchvision
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import transforms

from decorlib._io import files
from decorlib.data import datasets
from decorlib.data.datasets import DataDamaged, DataUnavailable, DataWarning

pytestmark = pytest.mark.disable_socket  # nothing in here may need a network


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with MNIST unpacked in it, shared by the tests that only read."""
    return datasets.mnist_root(tmp_path_factory.mktemp("data"))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Stand-in for the shipped folder that holds only the label files: it can be damaged, and fast."""
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    names = ["t10k-labels-idx1-ubyte", "train-labels-idx1-ubyte"]
    for name in names:
        shutil.copy(datasets.SHIPPED / f"{name}.xz", shipped)
    for sums in ("MD5SUMS", "SHA256SUMS"):
        lines = (datasets.SHIPPED / sums).read_text().splitlines(keepends=True)
        (shipped / sums).write_text("".join(line for line in lines if "labels" in line))
    monkeypatch.setattr(datasets, "SHIPPED", shipped)
    return shipped


def flip(path: Path, position: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------------ MNIST


def test_mnist_is_complete_and_genuine(root):
    train, test = datasets.mnist(root=root), datasets.mnist(train=False, root=root)
    assert type(train) is torchvision.datasets.MNIST
    assert (len(train), len(test)) == (60000, 10000)
    assert torch.bincount(train.targets).tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert train[0][1] == 5  # the first training digit is known to be a five
    assert train[0][0].size == (28, 28)


def test_unpacked_files_have_the_sums_torchvision_users_have(root):
    # of the unpacked files, as every user of the original distribution has them
    train = Path(root, "MNIST", "raw", "train-images-idx3-ubyte").read_bytes()
    assert len(train) == 16 + 60000 * 784
    assert hashlib.md5(train).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"


def test_torchvisions_own_class_downloads_nothing(root):
    data = torchvision.datasets.MNIST(root=root, train=True, download=True, transform=transforms.ToTensor())
    assert data[0][0].shape == (1, 28, 28)


def test_the_call_of_2024_with_the_import_line_changed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = datasets.MNIST(root="~/Data", train=True, download=True, transform=transforms.ToTensor())
    assert isinstance(data, torchvision.datasets.MNIST)
    assert len(data.data) == 60000
    assert (tmp_path / "Data" / "MNIST" / "raw" / "t10k-images-idx3-ubyte").is_file()


def test_root_comes_from_the_environment(monkeypatch, tmp_path, small):
    monkeypatch.setenv("DECORLIB_DATA", str(tmp_path / "elsewhere"))
    assert datasets.mnist_root() == str(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").is_file()


def test_second_call_writes_nothing(tmp_path, small, monkeypatch):
    datasets.mnist_root(tmp_path)
    monkeypatch.setattr(os, "replace", None)  # any write would now fail
    datasets.mnist_root(tmp_path)


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged_unpacked_file_is_named_and_replaced(tmp_path, small, damage):
    raw = Path(datasets.mnist_root(tmp_path), "MNIST", "raw")
    victim = raw / "train-labels-idx1-ubyte"
    good = victim.read_bytes()
    if damage == "flip":
        stat = victim.stat()
        flip(victim)
        os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither size nor date shows it
    else:
        victim.write_bytes(good[:1000])
    with pytest.warns(DataWarning, match=f"{re.escape(str(victim))} is damaged .* expected a25bea73"):
        datasets.mnist_root(tmp_path)
    assert victim.read_bytes() == good


def test_damaged_shipped_file_is_an_error_with_a_way_out(tmp_path, small):
    flip(small / "train-labels-idx1-ubyte.xz")
    with pytest.raises(
        DataDamaged, match=r"train-labels-idx1-ubyte\.xz is damaged: .* expected sha256 dcd3.*reinstall"
    ):
        datasets.mnist_root(tmp_path)
    assert not (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").exists()


def test_missing_shipped_file_is_an_error_with_a_way_out(tmp_path, small):
    (small / "train-labels-idx1-ubyte.xz").unlink()
    with pytest.raises(DataDamaged, match=r"train-labels-idx1-ubyte\.xz is missing.*reinstall decorlib"):
        datasets.mnist_root(tmp_path)


def test_missing_list_of_sums_is_an_error_with_a_way_out(tmp_path, small):
    (small / "MD5SUMS").unlink()
    with pytest.raises(DataDamaged, match=r"MD5SUMS cannot be read.*reinstall decorlib"):
        datasets.mnist_root(tmp_path)


def test_full_disk_leaves_no_file_and_says_what_to_do(tmp_path, small, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataUnavailable, match=r"No space left on device.*DECORLIB_DATA"):
        datasets.mnist_root(tmp_path)
    assert list((tmp_path / "MNIST" / "raw").iterdir()) == []


def test_old_torchvision_copy_is_not_read_unchecked(tmp_path, small):
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir(parents=True)
    (processed / "training.pt").write_bytes(b"anything")
    with pytest.raises(DataDamaged, match="old torchvision copy"):
        datasets.mnist_root(tmp_path)


def test_two_processes_unpack_at_once(tmp_path):
    code = f"from decorlib.data.datasets import mnist; print(int(mnist(root={str(tmp_path)!r}).data.sum()))"
    command = [sys.executable, "-W", "error", "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert answers == {"1567298545"}
    assert sorted(path.name for path in (tmp_path / "MNIST" / "raw").iterdir()) == sorted(datasets._sums("MD5SUMS"))


# ------------------------------------------------------------------------------------- the other data sets


def test_fashion_from_the_debian_package(tmp_path):
    if not datasets.DEBIAN_FASHION.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    data = datasets.fashion_mnist(train=False, root=tmp_path)
    assert type(data) is torchvision.datasets.FashionMNIST
    assert torch.bincount(data.targets).tolist() == [1000] * 10


def test_fashion_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "nowhere")
    with pytest.raises(DataUnavailable, match=r"download=True.*dataset-fashion-mnist.*DECORLIB_DATA"):
        datasets.fashion_mnist(root=tmp_path)


def test_fashion_download_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DEBIAN_FASHION", tmp_path / "nowhere")

    def refused(*_, **__):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", refused)
    with pytest.raises(DataUnavailable, match=r"could not be downloaded into .*Error downloading.*copy the files"):
        datasets.fashion_mnist(root=tmp_path, download=True)


def test_cifar_nowhere(tmp_path):
    with pytest.raises(DataUnavailable, match=r"data_batch_1.*download=True.*DECORLIB_DATA"):
        datasets.cifar10(root=tmp_path)


def test_cifar_damaged_is_never_opened(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # a pickle that would run a command
    with pytest.raises(DataUnavailable, match="data_batch_1"):
        datasets.cifar10(root=tmp_path)


def test_checksum_follows_the_content(small):
    before = {name: datasets.checksum(name) for name in datasets.NAMES}
    assert len(set(before.values())) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in before.values())
    flip(small / "MD5SUMS", 3)
    assert datasets.checksum("mnist") != before["mnist"]
    assert datasets.checksum("cifar10") == before["cifar10"]
    with pytest.raises(ValueError, match=r"'svhn'.*mnist, fashion_mnist, cifar10"):
        datasets.checksum("svhn")


# ------------------------------------------------------------------------------------------ tensors, scalings


def test_tensors_of_a_subset(root):
    data = datasets.mnist(root=root)
    index = np.random.default_rng(0).permutation(60000)[:50]
    images, labels = datasets.tensors(Subset(data, index))
    assert images.shape == (50, 28, 28)
    assert images.dtype == torch.uint8
    assert torch.equal(images, data.data[torch.from_numpy(index)])
    assert labels.tolist() == [data[int(i)][1] for i in index]
    with pytest.raises(TypeError, match="TensorDataset has no data and targets"):
        datasets.tensors(TensorDataset(images))


@pytest.mark.parametrize(("how", "std"), [("notebook", 0.25), ("unit", 0.5), ("raw", None)])
def test_scale_equals_torchvision_to_the_bit(root, how, std):
    steps = [transforms.ToTensor(), transforms.Grayscale(1)]  # as the 2024 notebook has them
    steps += [transforms.Normalize((0.5), (std))] if std else []
    data = datasets.mnist(root=root, transform=transforms.Compose(steps))
    images, _ = datasets.tensors(data)
    x = datasets.scale(images[:200], how)
    assert all(torch.equal(x[i], data[i][0][0]) for i in range(200))
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)  # every value that a pixel can have
    expected = transforms.Compose(steps)(np.arange(256, dtype=np.uint8).reshape(16, 16, 1))
    assert torch.equal(datasets.scale(every, how), expected)


def test_scale_standard_gives_the_well_known_constants(root):
    train, _ = datasets.tensors(datasets.mnist(root=root))
    x = datasets.scale(train, "standard", reference=train)
    assert abs(x.double().mean()) < 1e-5
    assert abs(x.double().std() - 1) < 1e-5
    black = x.min().item()
    white = x.max().item()
    assert round(1 / (white - black), 4) == 0.3081
    assert round(-black / (white - black), 4) == 0.1307


def test_scale_by_pixel_by_hand():
    train = torch.tensor([[0, 10, 7], [255, 10, 7]], dtype=torch.uint8)
    test = torch.tensor([[255, 11, 7]], dtype=torch.uint8)
    # pixel 0: mean 1/2, std 1/2; pixel 1 and 2 constant, so the floor divides
    x = datasets.scale(test, "feature", reference=train, floor=0.5 / 255)
    torch.testing.assert_close(x, torch.tensor([[1.0, 2.0, 0.0]]))
    x = datasets.scale(test, "centred", reference=train)
    torch.testing.assert_close(x, torch.tensor([[0.5, 1 / 255, 0.0]]))


def test_pixel_moments_equal_the_obvious_ones():
    images = torch.randint(0, 256, (5000, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = images.double() / 255
    from decorlib.data.inputs import _pixel_moments

    mean, variance = _pixel_moments(images)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, x.var(0, correction=0))


def test_scale_leaves_its_input_alone():
    images = torch.full((3, 2, 2), 9, dtype=torch.uint8)
    for how in datasets.SCALINGS[:3] + datasets.SCALINGS[4:]:
        assert datasets.scale(images, how, reference=images).dtype == torch.float32
    assert (images == 9).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"how": "zscore"}, "'zscore'.*notebook, raw, unit, standard, feature, centred"),
        ({"how": "feature"}, "pass reference="),
        ({"how": "feature", "reference": torch.zeros(0, 2, dtype=torch.uint8)}, "pass reference="),
        ({"how": "standard", "reference": torch.zeros(3, 2, dtype=torch.uint8)}, "not constant"),
        ({"how": "raw", "floor": 0.0}, "floor = 0.0 must be positive"),
        ({"how": "feature", "floor": math.inf}, "floor = inf must be positive and finite"),
    ],
)
def test_scale_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.scale(torch.zeros(3, 2, dtype=torch.uint8), **arguments)


@pytest.mark.parametrize("name", ["images", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_scale_takes_pixels_as_published_only(name, dtype):
    """Images that are float32 already would be divided by 255 once more, in place."""
    pixels = torch.full((3, 2), 9, dtype=torch.uint8)
    given = {"images": pixels, "reference": pixels, name: pixels.to(dtype)}
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"reference has images of shape \(1,\), to be scaled are \(2,\)"):
            datasets.scale(pixels, "feature", reference=pixels[:, :1])
        with pytest.raises(ValueError, match=f"{name} are {dtype}; scale takes pixels as published"):
            datasets.scale(given["images"], "unit", reference=given["reference"])
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert (given[name] == 9).all()


# ------------------------------------------------------------------------------------------------- loader


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_loader_gives_the_batches_of_a_plain_dataloader(shuffle, drop_last):
    x, y = torch.randn(103, 5), torch.arange(103)

    def epochs(batches):
        torch.manual_seed(7)
        seen = [(x.clone(), y.clone()) for _ in range(3) for x, y in batches]
        return seen, torch.get_rng_state()

    plain, plain_state = epochs(DataLoader(TensorDataset(x, y), 16, shuffle=shuffle, drop_last=drop_last))
    fast, fast_state = epochs(datasets.loader(x, y, 16, shuffle=shuffle, drop_last=drop_last))
    assert len(fast) == len(plain) == 3 * (6 if drop_last else 7)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, fast, strict=True))
    assert torch.equal(plain_state, fast_state)
    assert len(datasets.loader(x, y, 16, shuffle, drop_last)) == len(fast) // 3


def test_loader_draws_from_its_own_generator_what_a_plain_dataloader_draws():
    x, y = torch.arange(40.0), torch.arange(40)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    plain = DataLoader(TensorDataset(x, y), 8, shuffle=True, drop_last=True, generator=generators[0])
    fast = datasets.loader(x, y, 8, generator=generators[1])
    for _ in range(2):
        assert [b.tolist() for b, _ in plain] == [b.tolist() for b, _ in fast]
    assert torch.equal(*(g.get_state() for g in generators))


def test_loader_with_its_own_generator_leaves_the_global_one_alone():
    x, y = torch.randn(40, 2), torch.arange(40)
    before = torch.get_rng_state()
    labels = [
        [b for _, b in datasets.loader(x, y, 8, generator=torch.Generator().manual_seed(seed))] for seed in (1, 1, 2)
    ]
    labels = [torch.cat(batches).tolist() for batches in labels]
    assert labels[0] == labels[1] != labels[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_does_not_touch_single_samples(monkeypatch):
    asked = []
    batches = datasets.loader(torch.randn(64, 3), torch.arange(64), 16)
    get = TensorDataset.__getitem__
    monkeypatch.setattr(TensorDataset, "__getitem__", lambda self, i: asked.append(i) or get(self, i))
    assert len(list(DataLoader(batches.dataset, 16))) == 4
    assert len(asked) == 64
    assert len(list(batches)) == 4
    assert len(asked) == 64


def test_loader_without_a_batch_is_an_error():
    with pytest.raises(ValueError, match=r"10 samples give no batch of 16.*drop_last=False"):
        datasets.loader(torch.randn(10, 3), torch.arange(10), 16)
    with pytest.raises(ValueError, match="x is empty"):
        datasets.loader(torch.randn(0, 3), torch.arange(0), 16, drop_last=False)


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
def test_parts_of_a_pass_are_together_the_pass(parts):
    """n iterations give what one of the loader gives, in order; then a new order is drawn, as the loader does."""
    x, y = torch.randn(103, 2), torch.arange(103)
    whole, loader = (datasets.loader(x, y, 16, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    in_parts = datasets.in_parts(loader, parts)
    for _ in range(2):
        passes = [[labels.tolist() for _, labels in in_parts] for _ in range(parts)]
        assert [len(part) for part in passes] == [(k + 1) * 6 // parts - k * 6 // parts for k in range(parts)]
        assert [labels for part in passes for labels in part] == [labels.tolist() for _, labels in whole]
    assert torch.equal(whole.generator.get_state(), loader.generator.get_state())


@pytest.mark.parametrize("parts", [0, 7])
def test_more_parts_than_batches_are_refused(parts):
    with pytest.raises(ValueError, match=rf"parts is {parts}; it must be in \[1, 6\]"):
        datasets.in_parts(datasets.loader(torch.randn(103, 2), torch.arange(103), 16), parts)


# -------------------------------------------------------------------------------------------- atomic files


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), files.written_atomically(path) as file:
        file.writelines([b"half of the n", None])
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_bytes() == b"old"
    with files.written_atomically(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"  # not before it is whole
    assert path.read_bytes() == b"new"


def test_atomic_write_has_the_permissions_that_open_gives(tmp_path):
    with files.written_atomically(tmp_path / "a") as file:
        file.write(b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_stale_partials_go_and_young_ones_stay(tmp_path):
    (tmp_path / "sub").mkdir()
    old, young, other = (tmp_path / "sub" / name for name in (".x.1.partial", ".x.2.partial", "x.json"))
    for path in (old, young, other):
        path.write_bytes(b"")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    assert files.remove_stale_partials(tmp_path) == 1
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
