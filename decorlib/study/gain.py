"""Is there a gain? The arms on full data, what an epoch of each costs, and when each reaches a given accuracy.

Runs of a sweep share the machine, so their clocks mean nothing. Seconds are measured apart: the arms take turns within
one process, and a curve over seconds is a curve over epochs times the seconds of an epoch, plus what the arm does to
its inputs before the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import nn

from decorlib import inputs
from decorlib.datasets import DataUnavailable
from decorlib.layers import bp_parameters, decor_parameters
from decorlib.study import flops, timing
from decorlib.study.experiments import OPTIMIZERS, Experiment, arrays, build
from decorlib.study.stats import Interval, interval
from decorlib.train import train

BASELINE = "backpropagation"
#: What each arm is for: the panels of the figures.
GROUPS = {
    "what is done to the inputs": ("inputs in [0, 1]", "demeaned", "whitened inputs"),
    "other normalisations": ("BatchNorm", "exact whitening", "seed's rule", "seed's rule, demeaned"),
    "decorrelation": ("kappa", "kappa, demeaned", "kappa, amortised", "kappa, deeper layers"),
    "convolutions": ("kappa, patches", "kappa, channels"),
}
OURS = (*GROUPS["decorrelation"], *GROUPS["convolutions"])
KAPPA = (("kappa", 0.5),)


def mlp_arms(base: Experiment, update_every: int = 25, refresh: int = 100) -> dict[str, Experiment]:
    """Every arm of the MLP, by name; rates are still to be chosen.

    Args:
        base: data, sizes, epochs.
        update_every: steps between updates of the amortised arms. Default: 25.
        refresh: steps between refreshes of the exact whitening. Default: 100.
    """
    plain, seeds = base.but(rule=None), base.but(rule="seed", rule_options=(("variance", 1.0),))
    ours, seldom = base.but(rule="kappa", rule_options=KAPPA), (("update_every", update_every),)
    return {
        BASELINE: plain,
        "inputs in [0, 1]": plain.but(scaling="raw"),
        "demeaned": plain.but(demean_inputs=True),
        "whitened inputs": plain.but(whiten_inputs=True),
        "BatchNorm": plain.but(normalisation="batch"),
        "exact whitening": base.but(
            rule="exact", layer_options=(("update_every", refresh),), decor_lr=1.0, demean_inputs=True
        ),
        "seed's rule": seeds,
        "seed's rule, demeaned": seeds.but(demean_inputs=True),
        "kappa": ours,
        "kappa, demeaned": ours.but(demean_inputs=True),
        "kappa, amortised": ours.but(demean_inputs=True, layer_options=seldom),
        "kappa, deeper layers": ours.but(demean_inputs=True, layer_options=seldom, decorrelated="deeper"),
    }


def convnet_arms(base: Experiment, update_every: int = 25, fraction: float = 0.1) -> dict[str, Experiment]:
    """The arms of the ConvNet; the decorrelated ones are amortised and learn from a part of the positions."""
    plain, seldom = base.but(rule=None, model="convnet"), (("update_every", update_every), ("fraction", fraction))
    ours = plain.but(rule="kappa", rule_options=KAPPA, demean_inputs=True)
    return {
        BASELINE: plain,
        "demeaned": plain.but(demean_inputs=True),
        "BatchNorm": plain.but(normalisation="batch"),
        "kappa, patches": ours.but(layer_options=seldom),
        "kappa, channels": ours.but(layer_options=(*seldom, ("span", "channel"))),
    }


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
        decor_lr: rates of R for updates at every step; an amortised R, which takes n times fewer steps, tries them
            times 10, and the seed's rule, whose normaliser multiplies by 1/v, divided by 10.
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
        factor = 0.1 if spec.rule == "seed" else 10 if "update_every" in dict(spec.layer_options) else 1
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
    """One row per arm: seconds and counted GFLOP of an epoch, both relative to the baseline, and seconds before it."""
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
    return pd.DataFrame(rows).T.rename_axis("arm")


# ------------------------------------------------------------------------------------------------------------ curves


def learning_curves(table: pd.DataFrame, records: Sequence[dict], cost: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, seed and epoch: measurements, and the seconds and GFLOP spent by then.

    Args:
        table: of :func:`decorlib.study.arms.compare`, a row per record.
        records: its records.
        cost: of :func:`costs`.
    """
    rows = [
        {"arm": arm, "seed": seed, **row}
        for arm, seed, record in zip(table["arm"], table["seed"], records, strict=True)
        for row in record["epochs"]
    ]
    found = pd.DataFrame(rows)
    of = cost.loc[found["arm"]].reset_index(drop=True)
    found["seconds"] = of["seconds before"] + found["epoch"] * of["seconds"]
    found["GFLOP"] = found["epoch"] * of["GFLOP"]
    found["error"] = 100 * (1 - found["test_accuracy"])
    return found


def reached(curves: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row per arm and seed: epochs and seconds until the baseline's best test accuracy *of the same seed*.

    Columns ``epochs``, ``seconds``, and the same over the baseline's own; infinite where a run never gets there.
    """
    rows = []
    for seed, part in curves.groupby("seed"):
        own = part[part["arm"] == BASELINE]
        level = own["test_accuracy"].max()
        first = own[own["test_accuracy"] >= level].iloc[0]
        for arm in arms:
            there = part[(part["arm"] == arm) & (part["test_accuracy"] >= level)]
            epochs, seconds = (there.iloc[0][["epoch", "seconds"]]) if len(there) else (math.inf, math.inf)
            relative = {"of epochs": epochs / first["epoch"], "of seconds": seconds / first["seconds"]}
            rows.append({"arm": arm, "seed": seed, "level": level, "epochs": epochs, "seconds": seconds} | relative)
    return pd.DataFrame(rows)


def medians(times: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: median epochs and seconds over seeds, and how many seeds got there."""
    by_arm = times.groupby("arm", sort=False)
    found = by_arm[["epochs", "seconds", "of epochs", "of seconds"]].median()
    found["reached"] = by_arm["epochs"].agg(lambda values: int(values.map(math.isfinite).sum()))
    found["of"] = by_arm.size()
    return found


def margins(times: pd.DataFrame, arm: str, epochs: float, seconds: float, most_epochs: int, slowest: float) -> Interval:
    """By how much an arm stays below both bounds, the worse of the two, per seed; a run that never gets there counts
    as one that gets there an epoch after the last, which flatters it and is still a miss.

    Args:
        times: of :func:`reached`.
        arm: which.
        epochs: the bound on epochs, as a part of the baseline's own.
        seconds: the bound on seconds, likewise.
        most_epochs: epochs of a run.
        slowest: seconds of an epoch of this arm.
    """
    base = times[times["arm"] == BASELINE].set_index("seed")
    own = times[times["arm"] == arm].set_index("seed")
    late = {"epochs": most_epochs + 1.0, "seconds": (most_epochs + 1) * slowest}
    below = [
        min(
            bound - min(own.loc[seed, what], late[what]) / base.loc[seed, what]
            for what, bound in (("epochs", epochs), ("seconds", seconds))
        )
        for seed in base.index
    ]
    return interval(below)


def chosen(tries: pd.DataFrame, among: Sequence[str], metric: str = "test_accuracy") -> str:
    """The arm, of those named, whose best try has the best validation measurement."""
    picked = tries[tries["chosen"] & tries["arm"].isin(among)].set_index("arm")[metric].dropna()
    if picked.empty:
        raise ValueError(f"none of {', '.join(among)} has a try that did not diverge")
    return picked.idxmax()


def answer(table: pd.DataFrame, best: str, control: str, effect: Interval, within: Mapping[str, Interval]) -> str:
    """The seed's question, answered in plain words out of the numbers: a gain in accuracy, in epochs, in seconds?

    Args:
        table: of :func:`medians`.
        best: the decorrelated arm.
        control: the arm without R that it has to beat.
        effect: final test accuracy of best minus control.
        within: what each ingredient adds to plain backpropagation, by name.
    """

    def times(arm: str) -> str:
        row, base = table.loc[arm], table.loc[BASELINE]
        if not math.isfinite(row["epochs"]):
            return f"in most seeds never reaches it ({int(row['reached'])} of {int(row['of'])} do)"
        return (
            f"needs {row['epochs']:g} epochs and {row['seconds']:.2g} s where backpropagation needs "
            f"{base['epochs']:g} and {base['seconds']:.2g} s"
        )

    sure = "yes" if effect.low > 0 else "no" if effect.high < 0 else "not one that these seeds can show"
    parts = "; ".join(
        f"{name} {100 * e.estimate:+.2f} [{100 * e.low:.2f}, {100 * e.high:.2f}]" for name, e in within.items()
    )
    return (
        f"To come to the best accuracy that tuned backpropagation reaches, '{best}' {times(best)}; '{control}', which "
        f"has no R at all, {times(control)}. A gain in final accuracy over '{control}': {sure} "
        f"({100 * effect.estimate:+.2f} points, 95% interval [{100 * effect.low:.2f}, {100 * effect.high:.2f}], "
        f"n = {effect.n}). In points over plain backpropagation: {parts}."
    )


def within(wide: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The ablation: pairs (with, without) of arms, each ingredient switched on its own."""
    pairs = {
        "scaling to [0, 1]": ("inputs in [0, 1]", BASELINE),
        "demeaning": ("demeaned", BASELINE),
        "decorrelation": ("kappa", BASELINE),
        "both": ("kappa, demeaned", BASELINE),
        "both, deeper layers only": ("kappa, deeper layers", BASELINE),
        "decorrelation, where demeaned": ("kappa, demeaned", "demeaned"),
        "the same, deeper layers only": ("kappa, deeper layers", "demeaned"),
    }
    return {name: pair for name, pair in pairs.items() if set(pair) <= set(wide)}
