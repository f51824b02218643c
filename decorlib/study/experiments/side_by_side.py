"""Many seeds at once: experiments that differ only in seed and rates, side by side in one network on one device.

S models of one kind are S groups of one wide model: features of all lie next to each other, (B, S D), and each group
has its own R, its own weights and its own batch. A small network leaves a GPU idle between its many short operations;
this gives each of them S times the work. Weights stay the models' own parameters, so that torch's optimizers train
them and :func:`decorlib.study.experiments.measuring.measure` reads them as it reads any model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from warnings import warn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.data import inputs
from decorlib.layers import centring
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear
from decorlib.layers.memory import NonFiniteInput
from decorlib.layers.models import decor_modules, decor_parameters
from decorlib.rules.catalogue import make_rule
from decorlib.study.experiments import experiment
from decorlib.study.experiments.experiment import OPTIMIZERS, Experiment
from decorlib.study.experiments.networks import BACKPROPAGATION, Demean
from decorlib.study.sweeps import runs
from decorlib.training.guards import not_finite
from decorlib.training.history import History, summarise
from decorlib.training.train import one_pass

VARIED = ("seed", "lr", "decor_lr")
SHARED_OPTIONS = ("center", "momentum", "update_every", "accumulate")
LARGEST = 16  # models in one network


@dataclass(frozen=True)
class Together:
    """Some experiments to run side by side: what they share, and a triple (seed, lr, decor_lr) for each."""

    shared: tuple[tuple[str, object], ...]
    varied: tuple[tuple[int, float, float], ...]
    device: str = "cpu"

    @classmethod
    def of(cls, specs: Sequence[Experiment], device: str = "cpu") -> Together:
        """Those of one :func:`kind`."""
        varied = tuple(tuple(getattr(spec, name) for name in VARIED) for spec in specs)
        return cls(kind(specs[0]), varied, device)

    def specs(self) -> list[Experiment]:
        """The experiments, in their order."""
        return [Experiment(**dict(self.shared), **dict(zip(VARIED, v, strict=True))) for v in self.varied]


def kind(spec: Experiment) -> tuple | None:
    """What experiments must have in common to run side by side; None for one that has to run alone.

    Alone: convolutions, which have groups of their own; credit other than backpropagation's; pixels chosen by the data
    of each seed; an R with momentum or Adam; steps of R that the weights make up for; layer options other than
    :data:`SHARED_OPTIONS` (``fraction`` draws from a generator for each run); rules whose step is not linear in its
    rate, or that have a parameter per feature; a normalisation under Adam, which makes whole steps of the rounding in
    the gradient of a bias that BatchNorm or demeaning cancels, so that no two orders of sums agree.
    """
    rule = None if spec.rule is None else make_rule(spec.rule, **dict(spec.rule_options))
    alone = (
        spec.model == "convnet"
        or spec.credit != BACKPROPAGATION
        or spec.pixels != "all"
        or spec.decor_optimizer != "sgd"
        or spec.preserve_function
        or (spec.normalisation is not None and spec.optimizer == "adam")
        or not {name for name, _ in spec.layer_options} <= set(SHARED_OPTIONS)
        or ("center", "bias") in spec.layer_options
        or (rule is not None and (rule.needs_rate or isinstance(getattr(rule, "variance", None), Tensor)))
    )
    return None if alone else tuple((name, v) for name, v in runs.spec_dict(spec).items() if name not in VARIED)


def sweep(specs: Sequence[Experiment], *, device: str | None = None, **options) -> list[dict]:
    """:func:`decorlib.study.sweep` of experiments; on a GPU those of one :func:`kind` run side by side.

    Args:
        specs: the experiments.
        device: ``"cpu"`` or ``"cuda"``: run side by side there. Default: None, side by side on a GPU where there is
            one, else one by one as :func:`decorlib.study.sweep` does.
        options: of :func:`decorlib.study.sweep`; one by one, its ``order`` is :func:`experiment.turn`.

    Returns:
        The records in the order of the specifications. Side by side they are those of separate runs up to rounding.

    Raises:
        SweepFailed: after everything else was done, where experiments failed; holds their errors and all records.
    """
    specs = list(specs)
    device = ("cuda" if torch.cuda.is_available() else None) if device is None else device
    if device is None:
        return runs.sweep(specs, experiment.run, **{"order": experiment.turn} | options)
    kinds: dict[tuple, list[Experiment]] = {}
    for spec in dict.fromkeys(specs):
        if (key := kind(spec)) is not None:
            kinds.setdefault(key, []).append(spec)
    groups = [found[i : i + LARGEST] for found in kinds.values() for i in range(0, len(found), LARGEST)]
    groups = [group for group in groups if len(group) > 1]
    try:
        found = runs.sweep([Together.of(group, device) for group in groups], run_group, **options)
    except runs.SweepFailed as failure:  # alone, only those fail that are at fault
        found = failure.records
        warn(
            f"{len(failure.errors)} of {len(groups)} groups failed side by side on {device} "
            f"({failure.errors[0].error}); their experiments run one by one",
            RuntimeWarning,
            stacklevel=2,
        )
    records = {
        s: r
        for group, one in zip(groups, found, strict=True)
        if one
        for s, r in zip(group, one["records"], strict=True)
    }
    single = [spec for spec in dict.fromkeys(specs) if spec not in records]
    try:
        records |= zip(single, runs.sweep(single, experiment.run, **options), strict=True)
    except runs.SweepFailed as failure:
        records |= zip(single, failure.records, strict=True)
        raise runs.SweepFailed(failure.errors, [records[spec] for spec in specs]) from failure
    return [records[spec] for spec in specs]


def run_group(group: Together) -> dict:
    """The records of a group of experiments, by :func:`run_together`; ``{"records": [...]}``."""
    return {"records": run_together(group.specs(), group.device)}


def run_together(specs: Sequence[Experiment], device: str = "cpu") -> list[dict]:
    """What ``[experiment.run(spec) for spec in specs]`` returns, up to rounding; an epoch's seconds are its S-th part.

    Where one of them diverges they are run again one by one: what a run does after its first infinity, and which layer
    is named, is for its own record to say.

    Raises:
        ValueError: experiments that cannot run side by side.
    """
    if len({kind(spec) for spec in specs}) != 1 or kind(specs[0]) is None:
        raise ValueError(f"{len(specs)} experiments are not of one kind (see kind()): run them one by one")
    if len(specs) == 1:  # one group would be no group: R has no dimension for it
        return [experiment.run(specs[0])]
    try:
        found = _train(list(specs), torch.device(device))
    except NonFiniteInput:
        found = None
    return [experiment.run(spec) for spec in specs] if found is None else found


# ------------------------------------------------------------------------------------------------- the wide model


def _wide(layers: Sequence[Decorrelation]) -> Decorrelation:
    """The same layer of S models as one: S groups, whose R and running means are those of the models."""
    one, count = layers[0], len(layers)
    options = {name: getattr(one, name) for name in SHARED_OPTIONS}
    wide = Decorrelation(count * one.in_features, rule=one.rule, groups=count, device=one.weight.device, **options)
    # The models read and are measured with what is learned here.
    for s, layer in enumerate(layers):
        layer.weight.data = wide.weight.data[s]
        if one.center is not None:
            layer.running_mean = wide.running_mean.view(count, -1)[s]
    return wide


def _stepped(wide: dict[str, Decorrelation], rates: Tensor | None, max_step: float | None) -> dict[str, Tensor | None]:
    """Step every layer at the rate of each model; losses by layer name, one per model."""
    steps = {name: layer.prepare(rates, max_step) for name, layer in wide.items()}
    for step in steps.values():
        step.commit_in_place()
    return {name: step.losses for name, step in steps.items()}


def _linear(layers: Sequence[nn.Linear], x: Tensor) -> Tensor:
    W, b = torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers])
    x = x.unflatten(1, (len(layers), -1)).transpose(0, 1)
    return torch.baddbmm(b.unsqueeze(1), x, W.mT).transpose(0, 1).flatten(1)


def _demean(momentum: float, running: Tensor, x: Tensor) -> Tensor:
    mean = x.mean(0)
    centring.follow(running, mean, momentum)
    return x - mean


def _batch_norm(layers: Sequence[nn.BatchNorm1d], mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    W, b = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return F.batch_norm(x, mean, variance, W, b, True, layers[0].momentum, layers[0].eps)


def _beside(models: Sequence[nn.Module]) -> tuple[dict[str, Decorrelation], Callable[[Tensor], Tensor]]:
    """The wide layers by the names they have in each model, and the training forward of all models at once."""
    wide = {name: _wide(layers) for name, layers in _aligned(*map(decor_modules, models))}
    alone = isinstance(models[0], Decorrelation)
    steps: list[Callable[[Tensor], Tensor]] = []
    for name, same in _aligned(*([("", model)] if alone else model.named_children() for model in models)):
        if isinstance(same[0], Decorrelation):
            steps.append(wide[name])
        elif isinstance(same[0], nn.Linear):
            if isinstance(same[0], DecorLinear):
                steps.append(wide[f"{name}.decorrelation"])
            steps.append(lambda x, same=same: _linear(same, x))
        elif isinstance(same[0], Demean):
            running = torch.cat([layer.running_mean for layer in same])
            for layer, part in zip(same, running.chunk(len(same)), strict=True):
                layer.running_mean = part
            steps.append(partial(_demean, same[0].momentum, running))
        elif isinstance(same[0], nn.BatchNorm1d):
            mean, variance = (torch.cat([getattr(m, n) for m in same]) for n in ("running_mean", "running_var"))
            for m, *parts in zip(same, mean.chunk(len(same)), variance.chunk(len(same)), strict=True):
                m.running_mean, m.running_var = parts
            steps.append(lambda x, same=same, mean=mean, variance=variance: _batch_norm(same, mean, variance, x))
        else:
            steps.append(same[0])  # a nonlinearity

    def forward(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return wide, forward


def _aligned(*named) -> Iterator[tuple[str, list[nn.Module]]]:
    """The modules that have the same place in each model, with the name of that place."""
    for same in zip(*named, strict=True):
        yield same[0][0], [module for _, module in same]


# ----------------------------------------------------------------------------------------------------- the trainer


def _next_to_each_other(batches: Sequence) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of all models, next to each other."""
    for parts in zip(*batches, strict=True):
        yield torch.cat([x for x, _ in parts], 1), torch.stack([t for _, t in parts], 1)


def _train(specs: list[Experiment], device: torch.device) -> list[dict] | None:
    """The records, or None where a run diverged or an R stood still: such runs speak for themselves."""
    data = [[part.to(device) for part in experiment.arrays(spec)] for spec in specs]
    models = [experiment.build(spec, x.shape[1]).to(device) for spec, (x, *_) in zip(specs, data, strict=True)]
    loaders = [
        inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
        for spec, (x, t, *_) in zip(specs, data, strict=True)
    ]
    batches = [inputs.in_parts(loader, spec.parts) for loader, spec in zip(loaders, specs, strict=True)]
    wide, forward = _beside(models)
    R = [list(decor_parameters(model)) for model in models]
    decor = [OPTIMIZERS["sgd"](own, lr=spec.decor_lr) if own else None for own, spec in zip(R, specs, strict=True)]
    schedules = [experiment.schedule(o, spec.decor_schedule, spec) for o, spec in zip(decor, specs, strict=True)]
    weights = [list(experiment.bp_parameters(model)) for model in models]
    groups = [{"params": own, "lr": spec.lr} for own, spec in zip(weights, specs, strict=True)]
    optimizer = OPTIMIZERS[specs[0].optimizer](groups, lr=specs[0].lr) if weights[0] else None
    annealing = experiment.schedule(optimizer, specs[0].lr_schedule, specs[0], len(loaders[0]))
    before = {name: layer.weight.detach().clone() for name, layer in wide.items()}
    evaluations = [experiment.evaluation(spec, *own) for spec, own in zip(specs, data, strict=True)]
    histories = [History() for _ in specs]

    def loss_of(x: Tensor, t: Tensor) -> Tensor:
        """Of each model; what one model's loss is does not depend on another's weights."""
        out = forward(x)
        if optimizer is None:
            return out.new_zeros(len(specs))
        scores = out.unflatten(1, (len(specs), -1)).flatten(0, 1)
        return F.cross_entropy(scores, t.flatten(), reduction="none").view_as(t).mean(0)

    for epoch in range(1, specs[0].passes + 1):
        start = time.perf_counter()
        rates = torch.tensor([o.param_groups[0]["lr"] for o in decor], device=device) if wide else None
        losses, decor_losses = one_pass(
            _next_to_each_other(batches),
            loss_of,
            optimizer,
            partial(_stepped, wide, rates, specs[0].max_step),
            lambda loss: loss.sum().backward(),
        )
        seconds = (time.perf_counter() - start) / len(specs)
        for s, (model, history) in enumerate(zip(models, histories, strict=True)):
            own = [{n: None if d is None else d[s] for n, d in step.items()} for step in decor_losses]
            row = summarise(epoch, seconds, [loss[s] for loss in losses], own)
            if not_finite(row):
                return None
            model.eval()
            row.metrics.update(evaluations[s](model))
            model.train()
            history.epochs.append(row)
        if annealing is not None:
            annealing.step()
        for optimizer_of_R, schedule in zip(decor, schedules, strict=True):
            if schedule is not None:
                optimizer_of_R.step()
                schedule.step()
    learning = torch.tensor([spec.decor_lr > 0 and spec.epochs > 0 for spec in specs])
    moved = [(before[name] != layer.weight).flatten(1).any(1).cpu() for name, layer in wide.items()]
    if wide and bool((learning & ~torch.stack(moved).any(0)).any()):
        return None
    return [experiment.record(history, spec) for history, spec in zip(histories, specs, strict=True)]
