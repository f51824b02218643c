"""One run of the comparison: a frozen specification -> a record, as :mod:`decorlib.study.experiments.experiment` has.

What :class:`~decorlib.study.experiments.experiment.Experiment` cannot say is said here: other optimizers, other layers,
a transformer, own images, lengths in steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decorlib.data import datasets, inputs, own
from decorlib.layers import decor_parameters
from decorlib.optim import DecorSGD
from decorlib.study.experiments.measuring import outputs
from decorlib.study.questions.instead.networks import KINDS, NETWORKS, network
from decorlib.study.questions.instead.optimizers import OPTIMIZERS, optimizer
from decorlib.training.train import train

SETS = {"mnist": datasets.mnist, "fashion_mnist": datasets.fashion_mnist}
BINS = 15  # of the calibration error
LEARNED = "decor_change"  # how far R is from where it started


@dataclass(frozen=True)
class Peer:
    """What one run does.

    Args:
        data: ``"mnist"``, ``"fashion_mnist"``, or the path of own images (:mod:`decorlib.data.own`).
        content: of own images, what :func:`decorlib.data.own.fingerprint` says of them; "" for the two others.
        train_size: training images, drawn by the seed; 0: all but those of ``validation``.
        validation: training images held out, for curves and choices.
        test: read the test set after the last step.
        network: ``"mlp"``, ``"convnet"`` or ``"transformer"``.
        layers: ``"plain"``, ``"BatchNorm"``, ``"IterNorm"``, ``"deconvolution"``, ``"R"`` or ``"exact whitening"``.
        optimizer: of the weights: ``"adam"``, ``"muon"``, ``"soap"``, ``"kron"`` or ``"foof"``.
        lr, lr_schedule: of the weights; None: constant; ``"cosine"``: to zero at the end of the run.
        decor_lr: of R, or ``"auto"``.
        preserve: updates of R leave the network's function as it was.
        update_every: steps between updates of R, and of exact whitening.
        shrinkage: of exact whitening's moment.
        damping: of FOOF, over the mean eigenvalue.
        batch_size, steps, seed: as everywhere; passes go on until so many steps are taken.
        points: measurements on the validation images, evenly over the run; the schedule moves at each.
        curve: take them all; False: only the last.
    """

    data: str = "mnist"
    content: str = ""
    train_size: int = 0
    validation: int = 10_000
    test: bool = False
    network: str = "mlp"
    layers: str = "plain"
    optimizer: str = "adam"
    lr: float = 1e-3
    lr_schedule: str | None = None
    decor_lr: float | str = 1e-3
    preserve: bool = False
    update_every: int = 25
    shrinkage: float = 0.9
    damping: float = 0.1
    batch_size: int = 128
    steps: int = 100
    points: int = 4
    curve: bool = True
    seed: int = 0

    def __post_init__(self):
        allowed = {"network": NETWORKS, "layers": KINDS, "optimizer": OPTIMIZERS, "lr_schedule": (None, "cosine")}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(map(str, values))}")
        if isinstance(self.decor_lr, str) and self.decor_lr != "auto":
            raise ValueError(f'decor_lr is {self.decor_lr!r}; allowed: a rate, or "auto"')
        if self.data not in SETS and not self.content:
            raise ValueError(f"data is {self.data!r}, own images: give content=decorlib.data.own.fingerprint(data)")
        if not 1 <= self.points <= self.steps:
            raise ValueError(f"points is {self.points}; allowed: 1 to {self.steps}, the steps of the run")

    def but(self, **changes) -> Peer:
        """The same run with some fields changed."""
        return replace(self, **changes)


# --------------------------------------------------------------------------------------------------------------- data


@lru_cache(maxsize=2)
def _images(data: str, content: str) -> tuple[Tensor, ...]:
    if data in SETS:
        return *inputs.tensors(SETS[data](train=True)), *inputs.tensors(SETS[data](train=False))
    found = own.load(data)
    if (now := own.fingerprint_of(found)) != content:
        raise own.DataDamaged(
            f"{data} has fingerprint {now[:12]}, not {content[:12]}: it changed since the notebook looked"
        )
    return found.images, found.labels, found.test_images, found.test_labels


def arrays(spec: Peer) -> tuple[tuple[Tensor, Tensor], ...]:
    """(x, t) to train on, to validate on and to test on; demeaned by pixel, in units of a quarter of the grey scale."""
    return _arrays(spec.data, spec.content, spec.train_size, spec.validation, spec.seed)


@lru_cache(maxsize=2)
def _arrays(data: str, content: str, train_size: int, validation: int, seed: int):
    images, labels, test_images, test_labels = _images(data, content)
    if not 0 < validation < len(images):
        raise ValueError(f"validation is {validation}; allowed: 1 to {len(images) - 1}, of {len(images)} images")
    order = np.random.RandomState(seed).permutation(len(images))
    held_out, rest = order[-validation:], order[:-validation][: train_size or None]
    x, z, test = (inputs.scale(part, "notebook").flatten(1) for part in (images[rest], images[held_out], test_images))
    mean = x.mean(0)
    for part in (x, z, test):  # our own
        part.sub_(mean)
    return (x, labels[rest]), (z, labels[held_out]), (test, test_labels)


class Batches:
    """So many batches at each iteration, going on where the one before has ended, pass after pass."""

    def __init__(self, loader: Iterable, counts: Iterable[int]):
        self.loader, self.counts, self.batches = loader, iter(counts), iter(())

    def __iter__(self) -> Iterator:
        for _ in range(next(self.counts)):
            batch = next(self.batches, None)
            if batch is None:
                self.batches = iter(self.loader)
                batch = next(self.batches)
            yield batch


# ---------------------------------------------------------------------------------------------------------------- run


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> float:
    r"""Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3), over bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \lvert \mathrm{accuracy}_b - \mathrm{confidence}_b \rvert

    Shape: (N, classes), (N,) -> a number in [0, 1].
    """
    confidence, chosen = probabilities.double().max(1)
    right = (chosen == targets).double()
    which = (confidence * bins).ceil().clamp(1, bins).long() - 1  # bins are open below, as in the paper
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right - confidence)
    return float(gaps.abs().sum() / len(targets))


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, t: Tensor) -> dict[str, float]:
    """Accuracy, cross-entropy and expected calibration error."""
    scores = outputs(model, x, at_once=1000).double()
    return {
        "accuracy": float((scores.argmax(1) == t).double().mean()),
        "loss": float(F.cross_entropy(scores, t)),
        "calibration": calibration_error(scores.softmax(1), t),
    }


@torch.no_grad()
def relative_change(starts: list[Tensor], ends: list[Tensor]) -> float:
    r"""How far the matrices of all layers went: |R - I| / |I| together, where each started as I.

    .. math:: \sqrt{\sum_l \lVert R_l - R_l^{(0)} \rVert_F^2 / \sum_l \lVert R_l^{(0)} \rVert_F^2}
    """
    moved = sum((b.double() - a.double()).square().sum() for a, b in zip(starts, ends, strict=True))
    return float((moved / sum(a.double().square().sum() for a in starts)).sqrt())


def owners(spec: Peer, model: nn.Module) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """Of the weights, and of R where there is one; exact whitening sets its R, at a rate of 1."""
    weights = optimizer(spec, model)
    if not any(True for _ in decor_parameters(model)):
        return weights, None
    rate = 1.0 if spec.layers == "exact whitening" else spec.decor_lr
    options = {"preserve_function": True} if spec.preserve else {}
    return weights, DecorSGD(model, lr=rate, **options)


def run(spec: Peer) -> dict:
    """Train, measure on validation images along the way, on test images once at the end where asked; the record."""
    (x, t), (z, u), test = arrays(spec)
    classes = int(max(t.max(), u.max(), test[1].max())) + 1
    model = network(spec, classes)
    batches = inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    weights, R = owners(spec, model)
    starts = [matrix.detach().clone() for matrix in decor_parameters(model)]
    ends = [spec.steps * (i + 1) // spec.points for i in range(spec.points)]
    counts = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    annealed = None
    if spec.lr_schedule == "cosine":
        annealed = torch.optim.lr_scheduler.CosineAnnealingLR(weights, spec.points)

    left = spec.points

    def evaluate(model: nn.Module) -> dict[str, float]:
        nonlocal left
        left -= 1
        if left and not spec.curve:
            return {}
        return {f"validation_{name}": value for name, value in measure(model, z, u).items()}

    history = train(
        model,
        F.cross_entropy,
        Batches(batches, counts),
        epochs=spec.points,
        optimizer=weights,
        decor_optimizer=R,
        evaluate=evaluate,
        scheduler=annealed,
        # A rate that holds R still over a few steps is a bad try, not a mistake in the wiring.
        allow_no_op=spec.steps // spec.points < spec.update_every,
    )
    rows = history.rows()
    seconds = [row.pop("seconds") for row in rows]
    rows = [row | {"epoch": end * spec.batch_size / len(x)} for row, end in zip(rows, ends, strict=False)]
    broken = next((r for r in rows if not math.isfinite(r.get("validation_loss", 0.0))), None)
    finished = history.status == "finished" and broken is None
    final = dict(rows[-1]) if finished else {}
    if finished and starts:
        final[LEARNED] = relative_change(starts, list(decor_parameters(model)))
    if finished and spec.test:
        model.eval()
        final |= {f"test_{name}": value for name, value in measure(model, *test).items()}
        finished = math.isfinite(final["test_loss"])
    cause = history.cause if broken is None else f"validation loss not finite at epoch {broken['epoch']:.2g}"
    kept = rows[: rows.index(broken)] if broken is not None else rows
    return {
        "status": "finished" if finished else "diverged",
        "diverged_at": None if finished else history.diverged_at or len(kept) + 1,
        "cause": None if finished else cause,
        "epochs": kept,
        "final": final if finished else {},
        "timing": {"seconds": seconds, "threads": torch.get_num_threads()},
    }
