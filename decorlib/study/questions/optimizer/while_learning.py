"""What R did while accuracy rose: how decorrelated every layer's features are, epoch by epoch, beside accuracy.

R learns in the deeper layers of a demeaned MLP, over its rate and the steps between its updates. A smaller cosine says
that R works; whether the network learns better for it is the other column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from decorlib import metrics
from decorlib.layers import DecorLinear
from decorlib.study.evidence.figures import LINES, MARKERS, PALETTE
from decorlib.study.evidence.stats import paired
from decorlib.study.experiments import experiment
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.sweeps.runs import sweep

REST = "R at rest"
LAYERS = ("inputs", "hidden 1", "hidden 2")  # what the three layers with weights read
RATES = (1e-3, 1e-2)  # of R: accuracy was highest at the first, the cosine lowest at the second
EVERY = (1, 5, 25)  # steps between updates of R
#: What else an arm with R may do, by the end of its name.
CHANGES: dict[str, dict] = {"": {}, ", function preserved": {"preserve_function": True}}
MEASURED = 2000  # images whose features are compared


def base(digits: int, epochs: int, lr: float = 1e-3) -> Experiment:
    """784-256-256-10 on demeaned digits, kappa in the deeper layers; twice an epoch measured on validation images."""
    return Experiment(
        train_size=digits,
        split="validation",
        demean_inputs=True,
        hidden=(256, 256),
        rule="kappa",
        rule_options=(("kappa", 0.5),),
        layer_options=(("center", "batch"),),
        decorrelated="deeper",
        lr=lr,
        batch_size=128,
        epochs=epochs,
        evaluate_every=0.5,
        measures="task",
    )


def arms(
    start: Experiment,
    rates: Sequence[float] = RATES,
    every: Sequence[int] = EVERY,
    changes: Mapping[str, dict] = CHANGES,
) -> dict[str, Experiment]:
    """R at rest; and every rate of R with every number of steps between its updates, each as it is and changed."""
    found = {REST: start.but(decor_lr=0.0)}
    for (ending, change), rate, n in product(changes.items(), rates, every):
        seldom = (*start.layer_options, ("update_every", n))
        found[f"rate {rate:g}, every {n}{ending}"] = start.but(decor_lr=rate, layer_options=seldom, **change)
    return found


def watch(spec: Experiment) -> dict:
    """:func:`decorlib.study.experiments.experiment.run`, with the cosine of every layer's features in each row."""
    return experiment.run(spec, also=cosines)


@torch.no_grad()
def cosines(model: nn.Module, x: Tensor) -> dict[str, float]:
    """RMS cosine between different features of what each layer's weights read, R's output where it has one."""
    x, found = x[:MEASURED], {}
    for child in model.children():
        if isinstance(child, nn.Linear):
            y = child.decorrelation(x) if isinstance(child, DecorLinear) else x
            found[f"cosine/{LAYERS[len(found)]}"] = metrics.mean_correlation(y, centred=False)
        x = child(x)
    return found


def curves(arms: Mapping[str, Experiment], seeds: Iterable[int], desc: str = "", **engine) -> pd.DataFrame:
    """One row for each arm, seed and measurement; columns of arm, seed, epoch, accuracy and cosines."""
    keys = [(name, seed) for name in arms for seed in seeds]
    records = sweep([arms[name].but(seed=seed) for name, seed in keys], watch, desc=desc, **engine)
    rows = [
        {"arm": name, "seed": seed, "status": record["status"], **row}
        for (name, seed), record in zip(keys, records, strict=True)
        for row in record["epochs"]
    ]
    return pd.DataFrame(rows)


def summary(curves: pd.DataFrame, arms: Mapping[str, Experiment]) -> pd.DataFrame:
    """One row per arm: cosines and accuracy at the end, and accuracy minus that of R at rest, paired by seed.

    An arm of which a run diverged has no difference there: n is 0.
    """
    whole = curves[curves["status"] == "finished"]
    last = whole.groupby(["arm", "seed"], sort=False).last().reset_index()
    accuracy = last.pivot(index="seed", columns="arm", values="test_accuracy").reindex(columns=list(arms))
    rows = []
    for name in arms:
        ended, row = last[last["arm"] == name], {"arm": name}
        row |= {f"cosine, {layer}": ended[f"cosine/{layer}"].mean() for layer in LAYERS}
        row |= {"accuracy": accuracy[name].mean(), "minus R at rest": None, "low": None, "high": None, "n": 0}
        if name != REST and accuracy[[name, REST]].notna().all(axis=None):
            found = asdict(paired(accuracy[name].tolist(), accuracy[REST].tolist()))
            row |= {"minus R at rest": found["estimate"]} | {key: found[key] for key in ("low", "high", "n")}
        rows.append(row)
    return pd.DataFrame(rows).astype({"minus R at rest": float, "low": float, "high": float}).set_index("arm")


def draw(curves: pd.DataFrame, arms: Mapping[str, Experiment], table: pd.DataFrame) -> tuple[Figure, str]:
    """Accuracy and cosines of the hidden layers against epochs; colour: rate, line: spacing, marker: changed."""
    rates = [rate for rate in dict.fromkeys(spec.decor_lr for spec in arms.values()) if rate]
    every = list(dict.fromkeys(_every(spec) for spec in arms.values()))
    kinds = list(dict.fromkeys(_kind(spec) for spec in arms.values()))
    panels = {"test_accuracy": "accuracy on validation images"}
    panels |= {f"cosine/{layer}": f"RMS cosine, {layer}" for layer in LAYERS[1:]}
    fig, axes = plt.subplots(1, len(panels), figsize=(11, 4.2))
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        for name, spec in arms.items():
            colour = PALETTE[rates.index(spec.decor_lr)] if spec.decor_lr else "black"
            style, runs = {"color": colour, "ls": LINES[every.index(_every(spec))]}, curves[curves["arm"] == name]
            for _, run in runs.groupby("seed"):
                ax.plot(run["epoch"], run[column], lw=0.7, alpha=0.4, **style)
            middle, style["marker"] = runs.groupby("epoch")[column].median(), ("", *MARKERS)[kinds.index(_kind(spec))]
            ax.plot(middle.index, middle, lw=2, ms=5, label=name, **style)
        ax.set(xlabel="epoch", ylabel=label)
    least, best = table["cosine, hidden 2"].idxmin(), table["accuracy"].idxmax()
    title = f"Most accurate: {best}; most decorrelated: {least}"
    fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, handlelength=3.5)
    ends = [f"{name}: {row['accuracy']:.4f}, {row['cosine, hidden 2']:.3f}" for name, row in table.iterrows()]
    return (
        fig,
        f"Accuracy and RMS cosines over training; at the end, accuracy and cosine of hidden 2: {'; '.join(ends)}",
    )


def _every(spec: Experiment) -> int:
    return dict(spec.layer_options).get("update_every", 1)


def _kind(spec: Experiment) -> Experiment:
    """What arms have in common that differ in R's rate and spacing only."""
    return spec.but(decor_lr=0.0, layer_options=())
