"""Checkpoints of a training run: everything that the next step depends on, in one file that is whole or not there.

A file is one line of text (what it is, and the sha256 of the rest) and what :func:`torch.save` makes of plain values
and tensors. Reading one executes nothing: the sum is compared first, then ``weights_only=True`` refuses all else.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import random
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from decorlib._io.files import written_atomically
from decorlib.layers.models import decor_modules
from decorlib.training.history import Epoch, History

FORMAT = 1
_RENAMED = {"rule=SeedRule(": "rule=NotebookRule(", ", _pairs=0.5)": ")"}  # in descriptions of layers by version 0.1
_FIRST_LINE = re.compile(rb"decorlib checkpoint (\d+), sha256 ([0-9a-f]{64})\n")
_LONGEST_FIRST_LINE = 128


class CheckpointDamaged(RuntimeError):
    """A file is not a checkpoint, or is not what was written; the message names it and the way out."""


def save_checkpoint(
    path: str | os.PathLike,
    model: nn.Module,
    *,
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    schedulers: Mapping[str, Any] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
    history: History | None = None,
) -> None:
    """Write all that a run needs to go on to the bit: call it between two epochs, or between two steps.

    Kept are weights, R, running means and counters; the state of each optimizer and scheduler; the named generators,
    those that layers sample with, and the global ones of torch, numpy and Python; and the history. A checkpoint that
    was there before stays whole until the new one is.

    .. note:: The place within an epoch is not kept: between two steps, the loader would begin its epoch anew.

    Args:
        path: file name; its folder is created.
        model: any model.
        optimizers: by a name of your choice, e.g. ``{"weights": ..., "R": ...}``. Default: none.
        schedulers: likewise. Default: none.
        generators: likewise; the loader's above all. Default: none.
        history: what the run saw until now. Default: none.

    Raises:
        OSError: full disk, read-only folder; the checkpoint that was there is untouched.
        RuntimeError: a layer with ``accumulate=True`` holds batches that no ``update()`` has used yet.
        ValueError: something holds a value that could not be loaded without executing code; nothing is written.

    Example::

        >>> save_checkpoint("run.ckpt", model, optimizers={"weights": adam, "R": sgd}, generators={"loader": generator})
    """
    pending = [name for name, layer in decor_modules(model) if layer.accumulate and len(layer.memory)]
    if pending:
        raise RuntimeError(f"layers {pending} have accumulated batches that would be lost: call update() first")
    buffer = io.BytesIO()
    torch.save(_content(model, optimizers or {}, schedulers or {}, generators or {}, history), buffer)
    payload = buffer.getvalue()
    try:
        torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "an optimizer or scheduler keeps a value that is no number, text or tensor, so the checkpoint could not be "
            f"loaded safely; nothing was written. torch says: {str(error).splitlines()[0]}"
        ) from error
    with written_atomically(path) as file:
        file.write(b"decorlib checkpoint %d, sha256 %s\n" % (FORMAT, hashlib.sha256(payload).hexdigest().encode()))
        file.write(payload)


def load_checkpoint(
    path: str | os.PathLike,
    model: nn.Module,
    *,
    optimizers: Mapping[str, torch.optim.Optimizer] | None = None,
    schedulers: Mapping[str, Any] | None = None,
    generators: Mapping[str, torch.Generator] | None = None,
) -> History | None:
    """Put a checkpoint into fresh objects that were built as those that were saved; the next step is then the same.

    Global generators are set too, so load after everything is built. After an error all is as it was.

    Args:
        path: what :func:`save_checkpoint` wrote.
        model: built as the one that was saved.
        optimizers: likewise, under the same names.
        schedulers: likewise.
        generators: likewise.

    Returns:
        The history, or None where none was saved.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointDamaged: the file is not what was written.
        ValueError: the checkpoint is of another model, other optimizers or other settings; the message names them.

    Example::

        >>> history = load_checkpoint("run.ckpt", model, optimizers={"weights": adam, "R": sgd})
    """
    content = read_checkpoint(path)
    parts = {"optimizers": optimizers or {}, "schedulers": schedulers or {}, "generators": generators or {}}
    _check_fits(Path(path), content, model, parts)
    before = copy.deepcopy(_content(model, *parts.values(), None))
    try:
        _restore(content, model, **parts)
    except Exception as error:
        _restore(before, model, **parts)
        raise ValueError(f"{path} does not fit: {error}; nothing was changed") from error
    return None if content["history"] is None else _history(content["history"])


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The checked content of a checkpoint as plain values and tensors (on the CPU), e.g. for its ``["model"]`` alone.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointDamaged: the file is not what :func:`save_checkpoint` wrote.
    """
    data = Path(path).read_bytes()
    way_out = "delete it and go on from an older checkpoint, or start the run again"
    first_line = _FIRST_LINE.match(data[:_LONGEST_FIRST_LINE])
    if first_line is None:
        raise CheckpointDamaged(f"{path} is no decorlib checkpoint, or its beginning is damaged; {way_out}")
    payload = memoryview(data)[first_line.end() :]
    if hashlib.sha256(payload).hexdigest().encode() != first_line[2]:
        raise CheckpointDamaged(f"{path} is damaged or cut short: its content does not give its sha256; {way_out}")
    if int(first_line[1]) != FORMAT:
        raise CheckpointDamaged(f"{path} has format {int(first_line[1])}, this decorlib reads {FORMAT}; {way_out}")
    try:
        if payload[:2] != b"PK":  # torch.load would also take an older form, which is a bare pickle
            raise pickle.UnpicklingError("not what torch.save writes")
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # a file that fits its sum and still cannot be read was made by something else
        raise CheckpointDamaged(
            f"{path} holds something other than plain values and tensors, and was not executed; {way_out}"
        ) from error


# ---------------------------------------------------------------------------------------------------------- internals


def _content(model, optimizers, schedulers, generators, history) -> dict[str, Any]:
    return {
        "made_by": {"torch": str(torch.__version__)},
        "layers": _layers(model),
        "model": dict(model.state_dict()),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "schedulers": {name: scheduler.state_dict() for name, scheduler in schedulers.items()},
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "samplers": {name: generator.get_state() for name, generator in _samplers(model).items()},
        "global generators": _global_states(),
        "history": None if history is None else asdict(history),
    }


def _restore(content: dict, model, optimizers, schedulers, generators) -> None:
    model.load_state_dict(content["model"])
    for _, layer in decor_modules(model):
        layer.forget()  # a batch of another run
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(content["optimizers"][name])
    for name, scheduler in schedulers.items():  # after the optimizers, whose rates they have set
        scheduler.load_state_dict(content["schedulers"][name])
    for saved, owners in (("generators", generators), ("samplers", _samplers(model))):
        for name, generator in owners.items():
            generator.set_state(content[saved][name])
    _set_global_states(content["global generators"])


def _layers(model: nn.Module) -> dict[str, str]:
    """What of each layer is no tensor but changes its next step."""
    also = ("momentum", "bias_reduction")
    return {
        name: ", ".join(
            [repr(layer), *(f"{setting}={getattr(layer, setting)!r}" for setting in also)]
            + ([] if layer.learning else ["learning=False"])  # said only where it rests: files of before have no word
        )
        for name, layer in decor_modules(model)
    }


def _samplers(model: nn.Module) -> dict[str, torch.Generator]:
    return {name: layer.generator for name, layer in decor_modules(model) if layer.generator is not None}


def _check_fits(path: Path, content: dict, model: nn.Module, parts: dict[str, Mapping]) -> None:
    for kind, objects in {**parts, "samplers": _samplers(model)}.items():
        if sorted(objects) != sorted(content[kind]):
            what = "layers with a generator" if kind == "samplers" else kind
            raise ValueError(
                f"{path} holds {what} {sorted(content[kind])}, given are {sorted(objects)}: they must agree"
            )
    here, saved = model.state_dict(), content["model"]
    different = sorted(
        name
        for name in here.keys() | saved.keys()
        if name not in here or name not in saved or here[name].shape != saved[name].shape
    )
    if different:
        raise ValueError(f"{path} is of another model: {different[:5]} are missing or of another shape; build it alike")
    for name, settings in _layers(model).items():
        saved = str(content["layers"].get(name))
        for old, new in _RENAMED.items():
            saved = saved.replace(old, new)
        if saved != settings:
            raise ValueError(
                f"{path}: layer '{name}' was {saved}, here it is {settings}. Build it alike; to "
                'go on with other settings take only tensors: model.load_state_dict(read_checkpoint(path)["model"])'
            )


def _global_states() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (kept, not used)
    return {
        "torch": torch.get_rng_state(),
        "numpy": (str(kind), keys.tolist(), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_global_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002 (as above)
    random.setstate(states["python"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states["cuda"]) == devices:
        if devices:
            torch.cuda.set_rng_state_all(states["cuda"])
    else:
        warnings.warn(
            f"the checkpoint has generators of {len(states['cuda'])} GPUs and there are {devices}: draws on a GPU will "
            "not be those of the run that was saved",
            RuntimeWarning,
            stacklevel=4,
        )


def _history(plain: dict[str, Any]) -> History:
    return History(**{**plain, "epochs": [Epoch(**row) for row in plain["epochs"]]})
