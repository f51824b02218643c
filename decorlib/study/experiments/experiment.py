"""One experiment: a frozen specification of plain values -> a record of plain values.

Every training run of the notebooks is an :class:`Experiment`; what two arms do not say differently is equal between
them: with the same seed they get the same digits, the same initial weights and the same order of batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from decorlib.data import datasets, inputs
from decorlib.layers import bp_parameters, decor_parameters
from decorlib.study.experiments import credit, labelled
from decorlib.study.experiments.measuring import VALIDATION, evaluation
from decorlib.study.experiments.networks import BACKPROPAGATION, build
from decorlib.training.history import History
from decorlib.training.train import train

SCHEDULES = (None, "cosine", "drop", "stop")
SMALLEST = 64  # parts of an epoch: what epochs may be a multiple of


@dataclass(frozen=True)
class Experiment:
    """What one run does. Every field has a unit or a set of values; ``run(Experiment(...))`` does it.

    Args:
        data: ``"mnist"``, ``"fashion_mnist"``, or ``"gaussian"``: inputs of known covariance, labelled by a teacher.
        train_size: training images, drawn by ``subset_seed``; 0: all that ``split`` leaves.
        subset_seed: which images; the 2024 notebook's are 42. None: the run's own seed.
        split: ``"test"`` evaluates on the test set; ``"validation"`` on 10,000 training images that are not trained on;
            ``"both"`` on those while it trains (``validation_accuracy``), and once, at the end, on the test set.
        scaling: one of :data:`decorlib.data.inputs.SCALINGS`.
        pixels: ``"all"``; ``"alive"`` drops those constant in the training images; ``"lively"`` those that differ from
            their usual value in fewer than 1% of them.
        jitter: standard deviation of fixed Gaussian noise added to the training inputs, in scaled units.
        condition, noise: of the Gaussian: :func:`decorlib.study.experiments.labelled.draws`.
        demean_inputs: subtract the training mean of each input, once.
        whiten_inputs: multiply the (demeaned) inputs by their ZCA matrix, once.
        shrinkage: of the moment that this matrix comes from, towards its mean variance, in [0, 1].
        model: ``"decorrelation"`` (R alone), ``"mlp"`` or ``"convnet"``.
        hidden: widths of the MLP's hidden layers.
        normalisation: None; ``"batch"``: BatchNorm before each nonlinearity; ``"mean"``: only the batch mean is
            subtracted, from the inputs of each layer but the first.
        credit: one of :data:`decorlib.study.experiments.credit.CREDITS`; others than backpropagation are for MLPs.
        rule: a key of :data:`decorlib.RULES`; None: a plain network.
        rule_options: hyperparameters of the rule, as (name, value) pairs.
        layer_options: further options of the layers (center, momentum, update_every, fraction, ...), likewise.
        decorrelated: ``"all"`` layers, only the ``"first"``, or only the ``"deeper"`` ones.
        lr, optimizer: rate and kind of the weights' optimizer: ``"adam"``, ``"sgd"``, ``"momentum"`` (0.9).
        lr_schedule: of that rate: None, ``"cosine"`` to zero, ``"drop"`` (by 10 at half the epochs), or ``"stop"``
            (zero from a quarter of the epochs on), row by row of the record; or ``"cosine_steps"``, step by step: the
            same however short the run is and however seldom it is measured.
        decor_lr, decor_optimizer, decor_schedule: the same for R, but for ``"cosine_steps"``.
        max_step: bound on rate times curvature of R's steps, or None.
        preserve_function: after each step of R the weights take up what R has changed, W <- W R_old R_new^-1.
        batch_size, seed: as everywhere.
        epochs: passes over the training images; may end within one, at a multiple of 1/64.
        evaluate_every: epochs between evaluations; 1/n: n times an epoch, each a row of its own; 0: only at the end.
        measures: ``"all"``, or only the ``"task"``: accuracy and loss, nothing about correlations.
    """

    data: str = "mnist"
    train_size: int = 1000
    subset_seed: int | None = None
    split: str = "test"
    scaling: str = "notebook"
    pixels: str = "all"
    jitter: float = 0.0
    condition: float = 30.0
    noise: float = 0.0
    demean_inputs: bool = False
    whiten_inputs: bool = False
    shrinkage: float = 0.01
    model: str = "mlp"
    hidden: tuple[int, ...] = (100,)
    normalisation: str | None = None
    credit: str = BACKPROPAGATION
    rule: str | None = "notebook"
    rule_options: tuple[tuple[str, object], ...] = ()
    layer_options: tuple[tuple[str, object], ...] = ()
    decorrelated: str = "all"
    lr: float = 1e-3
    optimizer: str = "adam"
    lr_schedule: str | None = None
    decor_lr: float = 1e-5
    decor_optimizer: str = "sgd"
    decor_schedule: str | None = None
    max_step: float | None = None
    batch_size: int = 64
    epochs: int | float = 10
    seed: int = 0
    evaluate_every: int | float = 0
    measures: str = "all"
    preserve_function: bool = field(default=False, metadata={"if_set": True})

    def __post_init__(self):
        allowed = {
            "split": ("test", "validation", "both"),
            "scaling": inputs.SCALINGS,
            "pixels": ("all", "alive", "lively"),
            "model": ("decorrelation", "mlp", "convnet"),
            "normalisation": (None, "batch", "mean"),
            "credit": credit.CREDITS if self.model == "mlp" else (BACKPROPAGATION,),
            "decorrelated": ("all", "first", "deeper"),
            "optimizer": tuple(OPTIMIZERS),
            "decor_optimizer": tuple(OPTIMIZERS),
            "lr_schedule": (*SCHEDULES, "cosine_steps"),
            "decor_schedule": SCHEDULES,
            "measures": ("all", "task"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(map(str, values))}")
        if self.model == "decorrelation" and self.rule is None:
            raise ValueError("model='decorrelation' has nothing to learn with rule=None")
        every = self.evaluate_every
        if every < 0 or abs(every - (1 / round(1 / every) if 0 < every < 1 else round(every))) > 1e-9:
            raise ValueError(f"evaluate_every is {every}; allowed: a whole number of epochs, 0, or 1/n of an epoch")
        if not (0 <= self.epochs < math.inf and (SMALLEST * self.epochs) % 1 == 0):
            raise ValueError(f"epochs is {self.epochs}; allowed: 0 or more, a multiple of 1/{SMALLEST}")

    @property
    def parts(self) -> int:
        """Rows of the record for each epoch: measurements within an epoch, and the end of the run, end a row, too."""
        within = round(1 / self.evaluate_every) if 0 < self.evaluate_every < 1 else 1
        return math.lcm(within, Fraction(self.epochs).denominator)

    @property
    def passes(self) -> int:
        """Rows of the record of the whole run."""
        return round(self.epochs * self.parts)

    def but(self, **changes) -> Experiment:
        """The same experiment with some fields changed."""
        return replace(self, **changes)


@lru_cache(maxsize=4)
def _images(data: str) -> tuple[Tensor, ...]:
    load = {"mnist": datasets.mnist, "fashion_mnist": datasets.fashion_mnist}[data]
    return *inputs.tensors(load(train=True)), *inputs.tensors(load(train=False))


def arrays(spec: Experiment) -> tuple[Tensor, ...]:
    """(x, t) to train on and (x, t) to evaluate on, scaled and cleaned as the specification says.

    With ``split="both"`` two more, of the test set, which is for after the last step.
    """
    if spec.data == "gaussian":
        return labelled.draws(spec)
    images, targets, test_images, test_targets = _images(spec.data)
    order = np.random.RandomState(spec.seed if spec.subset_seed is None else spec.subset_seed).permutation(len(images))
    held_out = [(test_images, test_targets)]
    if spec.split != "test":  # the last ones, so that a small training set is the same with and without it
        kept, order = order[-VALIDATION:], order[:-VALIDATION]
        held_out = [(images[kept], targets[kept]), *(held_out if spec.split == "both" else [])]
    order = order[: spec.train_size or None]
    images, targets = images[order], targets[order]
    x, *zs = (
        inputs.scale(part, spec.scaling, reference=images).flatten(1) for part in (images, *(z for z, _ in held_out))
    )
    if spec.pixels != "all":
        keep = lively_pixels(images, at_least=1 if spec.pixels == "alive" else len(images) // 100)
        x, *zs = (part[:, keep] for part in (x, *zs))
    if spec.jitter:
        noise = torch.Generator().manual_seed(spec.seed)
        x = x + spec.jitter * torch.randn(x.shape, generator=noise)
    if spec.demean_inputs or spec.whiten_inputs:
        mean = x.mean(0)
        for part in (x, *zs):  # our own; 60,000 digits elsewhere would be 190 MB of new pages
            part.sub_(mean)
    if spec.whiten_inputs:
        from decorlib.rules.moments import second_moment
        from decorlib.rules.whitening import shrink, zca

        # The product in float32, a fifth of the time: the shrinkage is far above what it rounds away.
        W = zca(shrink(second_moment(x).double(), spec.shrinkage)).float()
        x, *zs = (part @ W.T for part in (x, *zs))
    return x, targets, *(part for z, (_, u) in zip(zs, held_out, strict=True) for part in (z, u))


PREPARATION = (
    *("data", "train_size", "subset_seed", "split", "scaling", "pixels", "jitter"),
    *("condition", "noise", "demean_inputs", "whiten_inputs", "shrinkage", "seed"),
)


def preparation(spec: Experiment) -> Experiment:
    """What :func:`arrays` reads of an experiment, everything else at its default."""
    return Experiment(**{name: getattr(spec, name) for name in PREPARATION})


def turn(spec: Experiment) -> tuple[int, str]:
    """When an experiment of a sweep begins: those of more images first; in a row those that read the same arrays."""
    return -(spec.train_size or 60_000), repr(preparation(spec))


def kept_arrays(spec: Experiment) -> tuple[Tensor, ...]:
    """:func:`arrays`, the very same tensors again where the run before asked for them: read them, do not write."""
    return _arrays_once(preparation(spec))


@lru_cache(maxsize=2)  # 220 MB each, of all images
def _arrays_once(spec: Experiment) -> tuple[Tensor, ...]:
    return arrays(spec)


def lively_pixels(images: Tensor, at_least: int = 1) -> Tensor:
    """Which pixels differ from their most common value in at least that many images; (N, H, W) -> bool (H W)."""
    flat = images.flatten(1)
    return (flat != flat.mode(0).values).sum(0) >= at_least


OPTIMIZERS = {
    "adam": partial(torch.optim.Adam, fused=True),  # one pass over the weights instead of ten
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


def run(spec: Experiment, also: Callable[[nn.Module, Tensor], dict[str, float]] | None = None) -> dict:
    """Do the experiment and return its record: status, one row per epoch, final measurements, timings apart.

    Args:
        spec: the experiment.
        also: what else to measure after each pass, of the model in evaluation and the held-out inputs. Default: None.
    """
    x, t, *held_out = kept_arrays(spec)
    network = build(spec.but(credit=BACKPROPAGATION), x.shape[1])
    model, loss = credit.assign(network, spec.credit, spec.seed)
    batches = inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    weights = list(bp_parameters(model))
    R = list(decor_parameters(model))
    optimizer = OPTIMIZERS[spec.optimizer](weights, lr=spec.lr) if weights else None
    decor = OPTIMIZERS[spec.decor_optimizer](R, lr=spec.decor_lr) if R else None
    measured = evaluation(spec, x, t, *held_out)

    history = train(
        model,
        loss if weights else lambda y, _: y.new_zeros(()),
        inputs.in_parts(batches, spec.parts),
        epochs=spec.passes,
        optimizer=optimizer,
        decor_optimizer=decor,
        evaluate=measured if also is None else lambda model: measured(model) | also(model, held_out[0]),
        scheduler=schedule(optimizer, spec.lr_schedule, spec, len(batches)),
        decor_scheduler=schedule(decor, spec.decor_schedule, spec),
        max_step=spec.max_step,
        preserve_function=spec.preserve_function,
        allow_no_op=spec.decor_lr == 0,
    )
    return record(history, spec)


def record(history: History, spec: Experiment) -> dict:
    """A history as the record of a run; ``epoch`` of a row is a fraction where rows are parts of an epoch."""
    rows, parts = history.rows(), spec.parts
    seconds = [row.pop("seconds") for row in rows]
    if parts > 1:
        rows = [row | {"epoch": row["epoch"] / parts} for row in rows]
    finished = history.status == "finished"
    return {
        "status": history.status,
        "diverged_at": None if history.diverged_at is None else math.ceil(history.diverged_at / parts),
        "cause": history.cause,
        "epochs": rows,
        "final": rows[-1] if rows and finished else {},
        "timing": {"seconds": seconds, "threads": torch.get_num_threads()},
    }


def schedule(optimizer: torch.optim.Optimizer | None, kind: str | None, spec: Experiment, batches: int = 0):
    """What anneals a rate over the passes of an experiment, for the trainer to step; or None.

    Args:
        optimizer: whose rate.
        kind: of ``lr_schedule``; ``"cosine_steps"`` is stepped by the optimizer itself, after each of its steps.
        spec: the experiment.
        batches: of an epoch, for ``"cosine_steps"``.
    """
    passes = spec.passes
    if optimizer is None or kind is None:
        return None
    if kind == "cosine_steps":
        # The last pass of a run that ends within an epoch ends where inputs.in_parts ends it.
        steps = batches * (passes // spec.parts) + batches * (passes % spec.parts) // spec.parts
        by_step = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        optimizer.register_step_post_hook(lambda *_: by_step.step())
        return None
    if kind == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(passes, 1))
    when, factor = {"drop": (passes // 2, 0.1), "stop": (passes // 4, 0.0)}[kind]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(when, 1)], gamma=factor)


def table(specs: list[Experiment], records: list[dict]) -> list[dict]:
    """One flat row per run: the fields that differ between the specifications, status and final measurements."""
    differing = [f.name for f in fields(Experiment) if len({getattr(s, f.name) for s in specs}) > 1]
    return [
        {name: asdict(spec)[name] for name in differing}
        | {"status": record["status"], "diverged_at": record["diverged_at"]}
        | {k: v for k, v in record["final"].items() if k != "batches"}
        for spec, record in zip(specs, records, strict=True)
    ]
