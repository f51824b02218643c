"""Full disks, read-only folders, damaged and malicious files, no network: named, nothing lost, nothing executed.

Damaged data files are in ``data/test_datasets.py``, cache entries in ``study/sweeps/test_runs.py``, parameters in
``study/report/test_notebook_files.py``; the page of promises lists them all.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import tempfile
from pathlib import Path

import pytest
import torch
from pytest_socket import SocketBlockedError
from torch import nn

from decorlib import DecorLinear, KappaRule, bp_parameters, decor_parameters, fuse
from decorlib._io.files import written_atomically
from decorlib.study.evidence import records
from decorlib.study.evidence.records import Record, RecordDamaged
from decorlib.study.experiments import experiment
from decorlib.study.sweeps import identity, runs
from decorlib.study.sweeps.cache import Cache, CacheWarning
from decorlib.training.checkpoint import CheckpointDamaged, load_checkpoint, read_checkpoint, save_checkpoint
from decorlib.training.train import train


def model():
    torch.manual_seed(0)
    return nn.Sequential(DecorLinear(4, 2, rule=KappaRule(kappa=0.5)))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


def record(loss=0.1):
    made = Record("03", "Does it help?", {"seeds": 3})
    made.value("loss", loss, tolerance=0.01)
    made.runs([{"seed": 0, "loss": [loss, 2 * loss]}])
    return made


# ------------------------------------------------------------------------------------- full disk, read-only folder


def full_disk(patch):
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fsync", fsync)


def full_before_the_first_byte(patch):
    def write(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(os, "fdopen", write)


def read_only_folder(patch):
    # Not by permissions: who runs the tests as root may write anywhere.
    def mkstemp(dir, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    patch.setattr(tempfile, "mkstemp", mkstemp)


def folder_cannot_be_made(patch):
    def mkdir(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    patch.setattr(Path, "mkdir", mkdir)


def write_text(folder, content):
    with written_atomically(folder / "a.txt") as file:
        file.write(content.encode())


def write_record(folder, content):
    record(float(len(content))).write()


def write_checkpoint(folder, content):
    layers = model()
    layers[0].bias.data.fill_(len(content))
    save_checkpoint(folder / "run.ckpt", layers)


@pytest.mark.parametrize("fault", [full_disk, full_before_the_first_byte, read_only_folder, folder_cannot_be_made])
@pytest.mark.parametrize("write", [write_text, write_record, write_checkpoint])
def test_what_was_there_stays_and_the_error_says_what_to_do(write, fault, results, monkeypatch):
    write(results, "old")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert before
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(
            OSError, match=r"was not written, and what was there before is untouched: free space"
        ) as seen:
            write(results, "newer")
    assert any(str(path) in note for path in before for note in seen.value.__notes__)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    write(results, "newer")  # the fault is over: the same call does it
    assert all(path.read_bytes() != content for path, content in before.items())


# ------------------------------------------------------------------------------------------------- damaged records


def test_a_flipped_bit_in_a_record_is_refused_or_changes_nothing(results):
    path = record().write()
    good, content = path.read_bytes(), json.loads(path.read_text())
    refused = 0
    for position in range(len(good)):
        flipped = bytearray(good)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = Record.load(path)
        except RecordDamaged as error:
            refused += str(path) in str(error)
        else:  # a blank that became another, or an e that became an E: the same record
            assert read.content() == content
            refused += json.loads(flipped) == content
    assert refused == len(good)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"3", b'"text"', b"null", b"{}", b"\x80\x04.", b""])
def test_what_is_no_record_is_refused_by_name(content, tmp_path):
    path = tmp_path / "03.json"
    path.write_bytes(content)
    with pytest.raises(RecordDamaged, match=r"03\.json is damaged: .*(restore|remove)"):
        Record.load(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_runs_are_refused_by_name(damage, compressed, results, monkeypatch):
    monkeypatch.setattr(records, "GZIP_FROM", 0 if compressed else 10**6)
    path = record().write()
    (beside,) = results.rglob("03.runs.*")
    good = beside.read_bytes()
    if damage == "remove":
        beside.unlink()
    else:
        beside.write_bytes(good[:-5] if damage == "truncate" else good[:20] + bytes([good[20] ^ 4]) + good[21:])
    with pytest.raises(RecordDamaged, match=rf"{beside.name} is (damaged|missing).*make reproduce ONLY=03"):
        Record.load(path).load_runs()


# ------------------------------------------------------------------------------------- loading executes nothing


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def bombs(tmp_path):
    """(marker, {kind: bytes}) of files that would leave the marker if they were unpickled."""
    marker = tmp_path / "marker"
    saved = io.BytesIO()
    torch.save({"model": Bomb(marker)}, saved)
    kinds = {
        "pickle": pickle.dumps(Bomb(marker)),
        "torch": saved.getvalue(),
        "old pickle": pickle.dumps(Bomb(marker), 0),
        "gzip": gzip.compress(pickle.dumps(Bomb(marker))),
    }
    return marker, kinds


def test_the_bombs_are_live(bombs):
    marker, kinds = bombs
    for kind, content in kinds.items():
        if kind == "torch":
            torch.load(io.BytesIO(content), weights_only=False)
        else:
            pickle.loads(gzip.decompress(content) if kind == "gzip" else content)
        assert marker.is_dir(), kind
        marker.rmdir()


@pytest.mark.parametrize("kind", ["pickle", "torch", "old pickle", "gzip"])
@pytest.mark.parametrize("signed", [False, True])
def test_a_bomb_in_place_of_a_checkpoint(kind, signed, bombs, tmp_path):
    marker, kinds = bombs
    content = kinds[kind]
    if signed:  # by somebody who knows the format
        content = b"decorlib checkpoint 1, sha256 %s\n" % hashlib.sha256(content).hexdigest().encode() + content
    path = tmp_path / "run.ckpt"
    path.write_bytes(content)
    said = "was not executed" if signed else "is no decorlib checkpoint"
    with pytest.raises(CheckpointDamaged, match=rf"run\.ckpt .*{said}"):
        load_checkpoint(path, model())
    with pytest.raises(CheckpointDamaged, match=said):
        read_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "old pickle", "gzip"])
def test_a_bomb_in_place_of_a_cache_entry(kind, bombs, tmp_path):
    marker, kinds = bombs
    store = Cache(tmp_path / "cache")
    spec = experiment.Experiment()
    (run,) = identity.settle([spec], experiment.run, identity.environment(experiment.run, type(spec)))
    store.put(run, {"loss": 0.5})
    assert store.get(run) == {"loss": 0.5}
    store.path(run.key).write_bytes(kinds[kind])
    with pytest.warns(CacheWarning, match=rf"{run.key}\.json is damaged"):
        assert store.get(run) is None
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "torch", "old pickle", "gzip"])
def test_a_bomb_in_place_of_a_record_or_its_runs(kind, bombs, results, monkeypatch):
    marker, kinds = bombs
    for compressed in (False, True):
        monkeypatch.setattr(records, "GZIP_FROM", 0 if compressed else 10**6)
        path = record().write()
        beside = path.parent / ("03.runs.json" + ".gz" * compressed)
        beside.write_bytes(kinds[kind])
        loaded = Record.load(path)
        with pytest.raises(RecordDamaged, match=r"03\.runs\.json.* is damaged"):
            loaded.load_runs()
        loaded._runs_file["sha256"] = hashlib.sha256(kinds[kind]).hexdigest()  # as if somebody had made it fit
        with pytest.raises(RecordDamaged, match="is not JSON, and was not executed"):
            loaded.load_runs()
        path.write_bytes(kinds[kind])
        with pytest.raises(RecordDamaged, match=r"03\.json is damaged"):
            Record.load(path)
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------------ no network


@pytest.mark.disable_socket
def test_training_sweeping_recording_and_a_checkpoint_open_no_socket(results, tmp_path, monkeypatch):
    with pytest.raises(SocketBlockedError), pytest.warns(UserWarning, match="tried to use socket"):
        socket.socket()
    monkeypatch.setenv("DECORLIB_PROGRESS", "off")
    spec = experiment.Experiment(train_size=64, batch_size=32, epochs=1, hidden=(8,), rule_options=(("variance", 1.0),))
    (found,) = runs.sweep([spec], experiment.run, engine="serial", cache=tmp_path / "cache")
    assert found["status"] == "finished"
    network = model()
    batches = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(3)]
    history = train(
        network,
        nn.functional.mse_loss,
        batches,
        epochs=1,
        optimizer=torch.optim.SGD(bp_parameters(network), lr=0.1),
        decor_optimizer=torch.optim.SGD(decor_parameters(network), lr=0.1),
    )
    save_checkpoint(tmp_path / "run.ckpt", network, history=history)
    assert load_checkpoint(tmp_path / "run.ckpt", network) == history
    fuse(network)
    assert record(found["final"]["test_loss"]).write().is_file()
