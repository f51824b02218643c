"""Is there a gain? The settings of ``docs/protocol.md``: arms, controls, budgets, rates, what an epoch of each costs.

Runs of a sweep share the machine, so their clocks mean nothing. Seconds are measured apart: the arms take turns within
one process, and a curve over seconds (``levels``) is a curve over epochs times the seconds of an epoch, plus what the
arm does to its inputs before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch
from torch import nn

from decorlib.data import inputs
from decorlib.data.datasets import DataUnavailable
from decorlib.layers import bp_parameters, decor_parameters
from decorlib.study.experiments import flops, networks, timing
from decorlib.study.experiments.arms import spread
from decorlib.study.experiments.experiment import OPTIMIZERS, Experiment, arrays, build
from decorlib.study.experiments.halving import whole
from decorlib.training.train import train

BASELINE = "backpropagation"  # on the 2024 notebook's inputs: shown, decides nothing
CONTROLS = ("inputs in [0, 1]", "demeaned, every layer", "BatchNorm")  # all three, always
OURS = ("kappa, deeper layers", "kappa, deeper layers, function preserved", "kappa, every layer", "2024 rule, demeaned")
ARMS = (BASELINE, *CONTROLS, *OURS)
KAPPA = (("kappa", 0.5),)
CENTRED = (("center", "batch"),)
NETWORKS = {"MLP": "mlp", "ConvNet": "convnet"}
BUDGETS = ("equal seconds", "equal epochs")
SCHEDULES = {"constant": None, "cosine to zero": "cosine_steps"}
DATA = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
#: Accuracies on validation images, of the protocol: what takes how long.
LEVELS = {"MNIST": (0.975, 0.98, 0.982), "Fashion-MNIST": (0.86, 0.88, 0.89)}


@dataclass(frozen=True)
class Setting:
    """Where arms are compared.

    Args:
        network: "MLP" or "ConvNet".
        data: "MNIST" or "Fashion-MNIST".
        schedule: of the weights' rate, a key of :data:`SCHEDULES`.
    """

    network: str
    data: str
    schedule: str

    def __str__(self) -> str:
        return f"{self.network}, {self.data}, {self.schedule}"


def settings(data: Iterable[str]) -> list[Setting]:
    """Both networks on every data set with both schedules; a data set whose files are not there is left out aloud."""
    there = []
    for name in data:
        try:
            arrays(Experiment(data=name, train_size=1))
            there.append(DATA[name])
        except DataUnavailable as error:
            print(f"{DATA[name]} is left out: {error}")
    return [Setting(*these) for these in product(NETWORKS, there, SCHEDULES)]


def arms(base: Experiment, setting: Setting, update_every: int = 25, fraction: float = 0.1) -> dict[str, Experiment]:
    """Every arm in a setting, by name; rates are still to be chosen.

    An R with the kappa rule is centred by batch and learns at every ``update_every``-th step; in the ConvNet it acts on
    whole patches and learns from a part of their positions. The 2024 rule learns at every step, as it did.

    Args:
        base: sizes, epochs, what is measured.
        setting: data, network and schedule.
        update_every: steps between updates of R. Default: 25.
        fraction: of the positions, in the ConvNet. Default: 0.1.
    """
    model = NETWORKS[setting.network]
    data = next(name for name, words in DATA.items() if words == setting.data)
    plain = base.but(rule=None, model=model, data=data, lr_schedule=SCHEDULES[setting.schedule])
    demeaned = plain.but(demean_inputs=True)
    some = (("fraction", fraction),) if model == "convnet" else ()
    options = (("update_every", update_every), *CENTRED, *some)
    kappa = demeaned.but(rule="kappa", rule_options=KAPPA, layer_options=options)
    deeper = kappa.but(decorrelated="deeper")
    original = demeaned.but(rule="notebook", rule_options=(("variance", 1.0),), layer_options=some)
    return {
        BASELINE: plain,
        "inputs in [0, 1]": plain.but(scaling="raw"),
        "demeaned, every layer": demeaned.but(normalisation="mean"),
        "BatchNorm": demeaned.but(normalisation="batch"),
        "kappa, deeper layers": deeper,
        "kappa, deeper layers, function preserved": deeper.but(preserve_function=True),
        "kappa, every layer": kappa,
        "2024 rule, demeaned": original,
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
    """The arms with as many eighths of an epoch, at least one, as fit into the time of so many plain epochs.

    By :func:`relative_time`, so that equal commands give equal numbers on every machine.
    """
    return {
        name: spec.but(epochs=whole(max(1, round(8 * epochs / relative_time(spec))) / 8)) for name, spec in arms.items()
    }


def rates(
    arms: Mapping[str, Experiment],
    lr: Sequence[float],
    decor_lr: Sequence[float],
    convnet: float = 2,
    rule_2024: float = 0.1,
) -> dict[str, dict[str, list]]:
    """As many tries for every arm: few rates of the weights times rates of R, or as many of the weights alone.

    Args:
        arms: of this module.
        lr: rates of the weights, of an MLP. Arms with an R get all of them times all rates of R, the others as many
            over twice the range at each end.
        decor_lr: rates of R for updates at every step; an R that learns seldom, which takes n times fewer steps, tries
            them times 10.
        convnet: what a ConvNet takes them times. Default: 2.
        rule_2024: what the 2024 rule, whose normaliser multiplies by 1/v, takes those of R times. Default: 0.1.
    """
    count = len(lr) * len(decor_lr)

    def own(spec: Experiment) -> dict[str, list]:
        weights = [rate * (convnet if spec.model == "convnet" else 1) for rate in lr]
        if spec.rule is None:
            # wider, to be kind to the arms with nothing else to choose
            return {"lr": spread(weights, count, beyond=2)}
        factor = rule_2024 if spec.rule == "notebook" else 10
        return {"lr": weights, "decor_lr": [factor * value for value in decor_lr]}

    return {name: own(spec) for name, spec in arms.items()}


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
    options = {"max_step": spec.max_step, "preserve_function": spec.preserve_function, "allow_no_op": True}
    return lambda: train(model, nn.functional.cross_entropy, loader, epochs=1, **options, **owners)


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
