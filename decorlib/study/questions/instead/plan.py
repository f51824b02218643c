"""The arms of the comparison, how long each may run, which rates it tries, and what a step of it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path

import pandas as pd
import torch
from torch.nn import functional as F

from decorlib.data import inputs, own
from decorlib.data.datasets import DataUnavailable
from decorlib.study.experiments import timing
from decorlib.study.experiments.arms import spread
from decorlib.study.questions.instead.networks import NORMALISATIONS, network
from decorlib.study.questions.instead.optimizers import missing
from decorlib.study.questions.instead.peers import SETS, Batches, Peer, arrays, owners
from decorlib.training.train import train

ADAM = "Adam"
#: The panels of the figures; Adam is in each.
GROUPS = {
    "other layers": ("BatchNorm", "IterNorm", "network deconvolution", "exact whitening"),
    "other optimizers": ("Muon", "SOAP", "PSGD-Kron", "FOOF"),
    "decorrelation": ("R", "R, auto rate", "R, function preserved", "Muon with R", "SOAP with R"),
}
OURS = GROUPS["decorrelation"]
PEERS = (ADAM, *GROUPS["other layers"], *GROUPS["other optimizers"])
#: What R is put on top of.
WITHOUT = {"R": ADAM, "R, auto rate": ADAM, "R, function preserved": ADAM, "Muon with R": "Muon", "SOAP with R": "SOAP"}
ARMS: dict[str, dict] = {
    ADAM: {},
    "BatchNorm": {"layers": "BatchNorm"},
    "IterNorm": {"layers": "IterNorm"},
    "network deconvolution": {"layers": "deconvolution"},
    "exact whitening": {"layers": "exact whitening"},
    "Muon": {"optimizer": "muon"},
    "SOAP": {"optimizer": "soap"},
    "PSGD-Kron": {"optimizer": "kron"},
    "FOOF": {"optimizer": "foof"},
    "R": {"layers": "R"},
    "R, auto rate": {"layers": "R", "decor_lr": "auto"},
    "R, function preserved": {"layers": "R", "preserve": True},
    "Muon with R": {"layers": "R", "optimizer": "muon"},
    "SOAP with R": {"layers": "R", "optimizer": "soap"},
}
UPDATES = 50  # of R in a run, about, whatever its length: a rate of R means about the same in all of them
#: Seconds of a step over those of Adam's, about, on one thread, where R learns at every 25th: they set the lengths, so
#: that equal commands give equal numbers on every machine. :func:`costs` measures how well they hold.
STEP: dict[str, dict[str, float]] = {
    "mlp": {
        **{"BatchNorm": 1.1, "IterNorm": 4.1, "network deconvolution": 4.8, "exact whitening": 1.5},
        **{"Muon": 1.8, "SOAP": 12.5, "PSGD-Kron": 23, "FOOF": 4.5},
        **{"R": 1.55, "R, auto rate": 1.55, "R, function preserved": 1.55, "Muon with R": 2.4, "SOAP with R": 13},
    },
    "convnet": {
        **{"BatchNorm": 1.35, "IterNorm": 2.6, "network deconvolution": 7.2, "exact whitening": 1.7},
        **{"Muon": 1.15, "SOAP": 1.7, "PSGD-Kron": 3.3, "FOOF": 1.4},
        **{"R": 1.4, "R, auto rate": 1.45, "R, function preserved": 1.4, "Muon with R": 1.6, "SOAP with R": 2.1},
    },
    "transformer": {
        **{"network deconvolution": 2.1, "exact whitening": 1.1},
        **{"Muon": 1.2, "SOAP": 1.2, "PSGD-Kron": 2.1, "FOOF": 1.1},
        **{"R": 1.15, "R, auto rate": 1.15, "R, function preserved": 1.15, "Muon with R": 1.4, "SOAP with R": 1.35},
    },
}
#: What an update of R, or of exact whitening, adds to a step, over a step of Adam's: measured in networks that learn at
#: every step, minus at none. Of one that preserves the function most is the system that is solved for the weights.
UPDATE = {
    "mlp": {"R": 1.0, "R, function preserved": 3.8, "exact whitening": 2.3},
    "convnet": {"R": 1.5, "R, function preserved": 4.5, "exact whitening": 3.3},
    "transformer": {"R": 0.45, "R, function preserved": 0.45, "exact whitening": 0.65},
}
LEARNING = ("R", "exact whitening")  # layers with an R
#: Where the rates of an optimizer lie, over Adam's.
SCALE = {"adam": 1.0, "muon": 2.0, "soap": 4.0, "kron": 8.0, "foof": 10.0}


def arms(base: Peer, names: Sequence[str] = ()) -> tuple[dict[str, Peer], dict[str, str]]:
    """Every arm that can run on a network, by name, and for the others why they cannot.

    Args:
        base: data, network, lengths.
        names: only these. Default: all.
    """
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"{', '.join(unknown)}: no such arm; there are {', '.join(ARMS)}")
    made, absent = {}, {}
    for name in names or ARMS:
        settings = ARMS[name]
        if base.network == "transformer" and settings.get("layers") in NORMALISATIONS:
            absent[name] = "has no place in the transformer, which has LayerNorm"
        elif why := missing(settings.get("optimizer", "adam")):
            absent[name] = why
        else:
            made[name] = base.but(**settings)
    return made, absent


def relative_time(name: str, spec: Peer) -> float:
    """About how many times as long as Adam's a step takes, on average (:data:`STEP`, :data:`UPDATE`)."""
    step = STEP[spec.network].get(name, 1.0)
    if spec.layers not in LEARNING:
        return step
    update = UPDATE[spec.network]
    return step + update.get(name, update["R"]) * (1 / spec.update_every - 1 / 25)


def of_length(spec: Peer, steps: int) -> Peer:
    """A run of so many steps, in which an R learns about 50 times; at every step where there are fewer."""
    spec = spec.but(steps=steps, points=min(spec.points, steps))
    return spec.but(update_every=max(1, steps // UPDATES)) if spec.layers in LEARNING else spec


def within_budget(made: Mapping[str, Peer], steps: int) -> dict[str, Peer]:
    """The arms with as many steps as fit into the time of so many of plain Adam, at least one a measurement.

    How often an R learns follows from the length, and the length from what that costs: of the spacings at which an R
    learns 50 times or more within the time, the widest is taken, or every step where there is none.
    """

    def fitted(name: str, spec: Peer) -> Peer:
        for every in range(max(1, steps // UPDATES), 0, -1):
            spec = spec.but(update_every=every) if spec.layers in LEARNING else spec
            fits = max(spec.points, round(steps / relative_time(name, spec)))
            if spec.layers not in LEARNING or fits >= every * UPDATES or every == 1:
                break
        return spec.but(steps=fits)

    return {name: fitted(name, spec) for name, spec in made.items()}


def rates(
    made: Mapping[str, Peer], lr: Sequence[float], decor_lr: Sequence[float], others: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, list]]:
    """As many tries for every arm: rates of the weights times a second setting, or many rates over the same range.

    Args:
        made: of :func:`arms`.
        lr: rates of the weights for Adam, in equal ratios; the other optimizers try multiples (:data:`SCALE`).
        decor_lr: rates of R.
        others: values of ``damping`` (FOOF) and ``shrinkage`` (exact whitening), as many as rates of R.
    """
    for name in ("damping", "shrinkage"):
        if len(others[name]) != len(decor_lr):
            raise ValueError(f"{len(decor_lr)} rates of R but {len(others[name])} of {name}: give as many of each")
    count = len(lr) * len(decor_lr)
    many = spread(lr, count, beyond=2) if count > 1 else list(lr)

    def own_rates(spec: Peer) -> dict[str, list]:
        scale = SCALE[spec.optimizer]
        few = [scale * rate for rate in lr]
        if spec.layers == "R" and spec.decor_lr != "auto":
            return {"lr": few, "decor_lr": list(decor_lr)}
        if spec.layers == "exact whitening":
            return {"lr": few, "shrinkage": list(others["shrinkage"])}
        if spec.optimizer == "foof":
            return {"lr": few, "damping": list(others["damping"])}
        return {"lr": [scale * rate for rate in many]}

    return {name: own_rates(spec) for name, spec in made.items()}


def data_sets(data: Sequence[str]) -> dict[str, dict]:
    """Name -> the fields ``data`` and ``content`` of a specification, for the sets that are here; why for the others.

    A set that is neither ``mnist`` nor ``fashion_mnist`` is the path of own images, and has to be there.
    """
    found = {}
    for name in data:
        try:
            found[name] = {"data": name, "content": "" if name in SETS else own.fingerprint(name)}
            if name in SETS:
                SETS[name](train=False)
        except DataUnavailable as error:
            if name not in SETS:
                raise
            found.pop(name)
            print(f"{name} is left out: {error}")
    return found


def words(data: str) -> str:
    """A data set's name in a title; of own images the last part of the path, which is nobody else's business."""
    return {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}.get(data) or Path(data).name


# --------------------------------------------------------------------------------------------------------------- cost


def some_steps(spec: Peer, batches: int) -> Callable[[], object]:
    """So many training steps of a run, pass after pass where the images are fewer; each call goes on."""
    (x, t), *_ = arrays(spec)
    x, t = x[: batches * spec.batch_size], t[: batches * spec.batch_size]
    model = network(spec, int(t.max()) + 1)
    loader = inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    weights, R = owners(spec, model)
    options = {"optimizer": weights, "decor_optimizer": R, "allow_no_op": True}
    steps = Batches(loader, repeat(batches))
    return lambda: train(model, F.cross_entropy, steps, epochs=1, **options)


def megabytes(spec: Peer) -> float:
    """What is kept from step to step: weights, R, buffers, and the state of all optimizers after two steps."""
    (x, t), *_ = arrays(spec)
    model = network(spec, int(t.max()) + 1)
    weights, R = owners(spec, model)
    first = [(x[: spec.batch_size], t[: spec.batch_size])] * 2
    train(model, F.cross_entropy, first, epochs=1, optimizer=weights, decor_optimizer=R, allow_no_op=True)
    seen: dict[int, int] = {}
    _count([*model.parameters(), *model.buffers()], seen)
    for owner in (weights, *getattr(weights, "owners", ())):
        _count(owner.state, seen)
        _count([getattr(owner, name, None) for name in ("moments", "factors")], seen)
    return sum(seen.values()) / 1e6


def _count(held: object, seen: dict[int, int]) -> None:
    """Bytes of every tensor in nested containers, by the memory that it lies in: views count once."""
    if isinstance(held, torch.Tensor):
        memory = held.untyped_storage()
        seen[memory.data_ptr()] = memory.nbytes()
    elif isinstance(held, Mapping):
        _count(list(held.values()), seen)
    elif isinstance(held, list | tuple):
        for part in held:
            _count(part, seen)


def costs(made: Mapping[str, Peer], batches: int, repeats: int = 3, threads: int = 1) -> pd.DataFrame:
    """One row per arm: milliseconds of a step, over Adam's, over what the lengths took it for, and megabytes kept.

    The arms take turns within one process; one with an R so many steps that it learns in each turn as often as in a
    run: ``batches``, up to the next multiple of its ``update_every``.
    """
    counts = {
        n: -(-batches // s.update_every) * s.update_every if s.layers in LEARNING else batches for n, s in made.items()
    }
    with timing.threads(threads):
        turns = timing.take_turns({n: some_steps(s, counts[n]) for n, s in made.items()}, repeats, warmup=1)
    middle = timing.medians(turns)
    of_adam = {name: timing.ratio(turns, name, ADAM) * counts[ADAM] / counts[name] for name in made}
    rows = {
        name: {
            "ms": 1e3 * middle[name] / counts[name],
            "of Adam": of_adam[name],
            "of planned": of_adam[name] / relative_time(name, spec),
            "MB": megabytes(spec),
        }
        for name, spec in made.items()
    }
    return pd.DataFrame(rows).T.rename_axis("arm")
