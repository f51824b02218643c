"""Is there a gain? The arms on full data, the tries and epochs that each gets, and what an epoch of each costs.

Runs of a sweep share the machine, so their clocks mean nothing. Seconds are measured apart: the arms take turns within
one process, and a curve over seconds (``time_to_accuracy``) is a curve over epochs times the seconds of an
epoch, plus what the arm does to its inputs before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import nn

from decorlib.data import inputs
from decorlib.data.datasets import DataUnavailable
from decorlib.layers import bp_parameters, decor_parameters
from decorlib.study.experiments import flops, networks, timing
from decorlib.study.experiments.experiment import OPTIMIZERS, Experiment, arrays, build
from decorlib.training.train import train

BASELINE = "backpropagation"
#: What each arm is for: the panels of the figures.
GROUPS = {
    "what is done to the inputs": ("inputs in [0, 1]", "demeaned", "demeaned, every layer", "whitened inputs"),
    "other normalisations": ("BatchNorm", "exact whitening", "2024 rule", "2024 rule, demeaned"),
    "decorrelation": ("kappa", "kappa, demeaned", "kappa, every step", "kappa, deeper layers"),
    "convolutions": ("kappa, patches", "kappa, channels"),
}
OURS = (*GROUPS["decorrelation"], *GROUPS["convolutions"])
KAPPA = (("kappa", 0.5),)
CENTRED = (("center", "batch"),)


def mlp_arms(base: Experiment, update_every: int = 25, refresh: int = 100) -> dict[str, Experiment]:
    """Every arm of the MLP, by name; rates are still to be chosen.

    Args:
        base: data, sizes, epochs.
        update_every: steps between updates of R, except in the arms that learn at every step. Default: 25.
        refresh: steps between refreshes of the exact whitening. Default: 100.
    """
    plain, original = base.but(rule=None), base.but(rule="notebook", rule_options=(("variance", 1.0),))
    demeaned, every_step = plain.but(demean_inputs=True), base.but(rule="kappa", rule_options=KAPPA)
    seldom = (("update_every", update_every),)
    return {
        BASELINE: plain,
        "inputs in [0, 1]": plain.but(scaling="raw"),
        "demeaned": demeaned,
        "demeaned, every layer": demeaned.but(normalisation="mean"),
        "whitened inputs": plain.but(whiten_inputs=True),
        "BatchNorm": demeaned.but(normalisation="batch"),
        "exact whitening": demeaned.but(rule="exact", layer_options=(("update_every", refresh),), decor_lr=1.0),
        "2024 rule": original,
        "2024 rule, demeaned": original.but(demean_inputs=True),
        "kappa": every_step.but(layer_options=seldom),
        "kappa, demeaned": every_step.but(demean_inputs=True, layer_options=seldom),
        "kappa, every step": every_step.but(demean_inputs=True),
        "kappa, deeper layers": every_step.but(
            demean_inputs=True, layer_options=(*seldom, *CENTRED), decorrelated="deeper"
        ),
    }


def convnet_arms(base: Experiment, update_every: int = 25, fraction: float = 0.1) -> dict[str, Experiment]:
    """The arms of the ConvNet; the decorrelated ones are centred, amortised, and learn from a part of the positions."""
    plain = base.but(rule=None, model="convnet")
    demeaned = plain.but(demean_inputs=True)
    options = (("update_every", update_every), ("fraction", fraction), *CENTRED)
    ours = demeaned.but(rule="kappa", rule_options=KAPPA, layer_options=options)
    return {
        BASELINE: plain,
        "BatchNorm": demeaned.but(normalisation="batch"),
        "kappa, patches": ours,
        "kappa, channels": ours.but(layer_options=(*options, ("span", "channel"))),
    }


def relative_time(spec: Experiment) -> float:
    """About how many times as long as plain backpropagation's a step takes: counts, not clocks.

    Half of a plain step is products of matrices and grows with their number; half is all the rest. Each pass over a
    layer's activations beyond that (to normalise, centre or decorrelate them) is about a twelfth. The constants are of
    two processor cores; :func:`costs` measures how well they hold.
    """
    plain = replace(spec, rule=None, layer_options=(), normalisation=None)
    layers = len(networks.shapes(spec))
    decorrelated = sum(networks.decorrelates(spec, depth) for depth in range(layers))
    passes = decorrelated * (1 + ("center" in dict(spec.layer_options)))
    passes += 0 if spec.normalisation is None else layers - 1
    return (1 + work_of_epoch(spec) / work_of_epoch(plain)) / 2 + passes / 12


def within_budget(arms: Mapping[str, Experiment], epochs: int | float) -> dict[str, Experiment]:
    """The arms with as many whole epochs, at least one, as fit into the time of so many of plain backpropagation.

    By :func:`relative_time`, so that equal commands give equal numbers on every machine.
    """
    return {name: spec.but(epochs=max(1, round(epochs / relative_time(spec)))) for name, spec in arms.items()}


def second_data_set(data: str, arms: Mapping[str, Experiment], names: Sequence[str]) -> dict[str, Experiment]:
    """Some of the arms on another data set; none, after saying why, where its files are not there."""
    try:
        arrays(arms[BASELINE].but(data=data, train_size=1))
    except DataUnavailable as error:
        print(f"{data} is left out: {error}")
        return {}
    return {name: arms[name].but(data=data) for name in dict.fromkeys(names)}


def rates(
    arms: Mapping[str, Experiment],
    lr: Sequence[float],
    decor_lr: Sequence[float],
    shrinkage: Sequence[float],
) -> dict[str, dict[str, list]]:
    """As many tries for every arm: few rates of the weights times the second setting, or many rates of the weights.

    Args:
        arms: of this module.
        lr: rates of the weights; arms with a second setting get all of them times all of its values, the others as
            many rates over the same range.
        decor_lr: rates of R for updates at every step; the 2024 rule, whose normaliser multiplies by 1/v, tries
            them divided by 10, and an amortised R, which takes n times fewer steps, times 10, where the mode that all
            pixels share does not forbid it: where it is demeaned.
        shrinkage: of whitened inputs and of exact whitening; as many as ``decor_lr``.
    """
    if len(shrinkage) != len(decor_lr):
        raise ValueError(f"{len(decor_lr)} rates of R but {len(shrinkage)} shrinkages: give as many of each")
    count = len(lr) * len(decor_lr)
    low, high = min(lr) / 2, max(lr) * 2  # wider, to be kind to the arms that have nothing else to choose
    many = [low * (high / low) ** (i / max(count - 1, 1)) for i in range(count)]

    def second(spec: Experiment) -> dict[str, list]:
        if spec.whiten_inputs:
            return {"lr": list(lr), "shrinkage": list(shrinkage)}
        if spec.rule == "exact":
            return {"lr": list(lr), "rule_options": [(("shrinkage", value),) for value in shrinkage]}
        if spec.rule is None:
            return {"lr": many}
        seldom = "update_every" in dict(spec.layer_options)
        factor = 0.1 if spec.rule == "notebook" else 10 if seldom and spec.demean_inputs else 1
        return {"lr": list(lr), "decor_lr": [factor * value for value in decor_lr]}

    return {name: second(spec) for name, spec in arms.items()}


# --------------------------------------------------------------------------------------------------------------- cost


def some_steps(spec: Experiment, batches: int) -> Callable[[], object]:
    """So many training steps of an experiment, as its runs take them, evaluation apart; each call goes on."""
    x, t, *_ = arrays(spec.but(train_size=batches * spec.batch_size))
    model = build(spec, x.shape[1])
    loader = inputs.loader(x, t, spec.batch_size, generator=torch.Generator().manual_seed(spec.seed))
    R = list(decor_parameters(model))
    owners = {
        "optimizer": OPTIMIZERS[spec.optimizer](list(bp_parameters(model)), lr=spec.lr),
        "decor_optimizer": OPTIMIZERS[spec.decor_optimizer](R, lr=spec.decor_lr) if R else None,
    }
    return lambda: train(
        model, nn.functional.cross_entropy, loader, epochs=1, max_step=spec.max_step, allow_no_op=True, **owners
    )


def steps_per_epoch(spec: Experiment, images: int = 60_000) -> int:
    """Steps of an epoch on all training images, or on ``train_size``."""
    return (spec.train_size or images) // spec.batch_size


def work_of_epoch(spec: Experiment) -> float:
    """Counted GFLOP of an epoch."""
    return flops.experiment(spec).total * steps_per_epoch(spec) / 1e9


def epoch_seconds(arms: Mapping[str, Experiment], batches: int, repeats: int, threads: int) -> pd.DataFrame:
    """Seconds of an epoch of each arm (columns), measured ``repeats`` times (rows), the arms taking turns."""
    with timing.threads(threads):
        seconds = timing.take_turns({n: some_steps(s, batches) for n, s in arms.items()}, repeats, warmup=1)
    return pd.DataFrame({n: [v / batches * steps_per_epoch(arms[n]) for v in vs] for n, vs in seconds.items()})


def preparation_seconds(arms: Mapping[str, Experiment], threads: int, repeats: int = 1) -> dict[str, float]:
    """Seconds that each arm spends on its inputs before the first step, beyond what the baseline does to them."""
    kinds = {name: f"{s.scaling}, {s.demean_inputs}, {s.whiten_inputs}" for name, s in arms.items()}
    calls = {kinds[name]: lambda s=s: arrays(s) for name, s in arms.items()}  # one for each kind of preparation
    with timing.threads(threads):
        middle = timing.medians(timing.take_turns(calls, repeats, warmup=1))
    return {name: max(0.0, middle[kind] - middle[kinds[BASELINE]]) for name, kind in kinds.items()}


def costs(arms: Mapping[str, Experiment], batches: int, repeats: int = 3, threads: int = 2) -> pd.DataFrame:
    """One row per arm: seconds and counted GFLOP of an epoch, both relative to the baseline; seconds before the first;
    and those of the whole run over the baseline's, which :func:`within_budget` means to be 1.
    """
    seconds, before = epoch_seconds(arms, batches, repeats, threads), preparation_seconds(arms, threads)
    work = {name: work_of_epoch(spec) for name, spec in arms.items()}
    rows = {
        name: {
            "seconds": seconds[name].median(),
            "of baseline": timing.ratio(seconds.to_dict("list"), name, BASELINE),
            "GFLOP": work[name],
            "GFLOP of baseline": work[name] / work[BASELINE],
            "seconds before": before[name],
        }
        for name in arms
    }
    table = pd.DataFrame(rows).T.rename_axis("arm")
    whole = table["seconds before"] + table["seconds"] * pd.Series({name: spec.epochs for name, spec in arms.items()})
    table["run of baseline's"] = whole / whole[BASELINE]
    return table
