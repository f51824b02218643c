"""Pixels that are (almost) always zero: which, their share of loss and spectrum, and what the rule makes of them.

A pixel that is zero in all but one image of a batch, where it is a, has v = a^2 / B. The normaliser of 2024, n = 1 / v,
then turns its covariance a y / B with the other features of that image into n a y / B = y / a: one step writes a copy
of that image into the pixel's row of R, with gain lr / a. At a = one grey level that is 255 lr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from decorlib.metrics import decorrelation_loss, effective_rank, second_moment, spectrum
from decorlib.rules.moments import Moments
from decorlib.rules.rules import SeedRule
from decorlib.study.evidence.figures import arm_styles
from decorlib.study.experiments.experiment import Experiment, arrays, lively_pixels

STATES = ("diverged", "rose", "fell")


def kinds(images: Tensor, rare: float = 0.01) -> dict[str, Tensor]:
    """Masks (784,) of pixels that are constant, that differ in fewer than ``rare`` of the images, and of the others."""
    alive, lively = lively_pixels(images), lively_pixels(images, at_least=max(1, round(rare * len(images))))
    return {"constant": ~alive, "nearly constant": alive & ~lively, "lively": lively}


def spectra(x: Tensor) -> dict[str, float | int]:
    """Size of the shared mode: two largest eigenvalues of <x x'>, participation ratio, initial loss for target 1."""
    eigenvalues = spectrum(x)
    return {
        "pixels": x.shape[1],
        "top eigenvalue": float(eigenvalues[0]),
        "next": float(eigenvalues[1]),
        "participation ratio": effective_rank(x),
        "initial loss": decorrelation_loss(x, 1.0),
    }


def loss_shares(x: Tensor, masks: Mapping[str, Tensor], variance: float = 1.0) -> pd.DataFrame:
    """Share of the initial loss, sum of (X - t I)^2, in each block of pairs of kinds; all entries sum to 1."""
    X = second_moment(x)
    squares = (X - variance * torch.eye(len(X), dtype=X.dtype)).square()
    shares = {
        b: {a: float(squares[ma][:, mb].sum() / squares.sum()) for a, ma in masks.items()} for b, mb in masks.items()
    }
    return pd.DataFrame(shares)


def involving(shares: pd.DataFrame, kind: str) -> float:
    """Share of the loss in pairs in which at least one pixel is of that kind."""
    return float(shares.loc[kind].sum() + shares[kind].sum() - shares.loc[kind, kind])


def amplification(x: Tensor, batch_size: int = 64, background: float = 0.0) -> pd.DataFrame:
    """The normaliser n = 1 / v (target 1) of every pixel in every batch, and how many of its images have ink."""
    rows = []
    for batch in x.split(batch_size):
        if len(batch) == batch_size:
            v = batch.square().mean(0)
            n = torch.where(v < SeedRule.dead_variance, torch.ones_like(v), 1 / v)
            rows.append(pd.DataFrame({"images with ink": (batch != background).sum(0), "v": v, "n": n}))
    return pd.concat(rows, ignore_index=True)


def one_step(x: Tensor, rate: float, rule: SeedRule) -> Tensor:
    """<y_i^2> of every pixel over the batch x after one step of R from the identity."""
    R = torch.eye(x.shape[1], dtype=x.dtype)
    R = R - rate * rule.direction(Moments.of(x, x), R)
    return (x @ R.T).square().mean(0)


def growth(x: Tensor, rate: float, rule: SeedRule, batch_size: int = 64) -> float:
    """Largest factor by which one step from R = I multiplies <y_i^2> of an inked pixel, over the batches of x."""
    largest = 0.0
    for batch in x.split(batch_size):
        before, after = batch.square().mean(0), one_step(batch, rate, rule)
        inked = before > 0
        largest = max(largest, float((after[inked] / before[inked]).max()))
    return largest


def designs(original: Experiment, jitter: float, floor: float) -> tuple[dict[str, Experiment], dict[str, Experiment]]:
    """The arms of the notebook, and the references without R.

    Args:
        original: zero at -2 and all pixels, as in the 2024 notebook.
        jitter: standard deviation of the noise, in scaled units.
        floor: the rule's ``dead_variance`` where it has one.
    """
    raw, demeaned = original.but(scaling="raw"), original.but(demean_inputs=True)
    floored = {"rule_options": (*original.rule_options, ("dead_variance", floor))}
    decorrelated = {
        "as in 2024": original,
        "constant dropped": original.but(pixels="alive"),
        "nearly constant dropped too": original.but(pixels="lively"),
        "jitter": original.but(jitter=jitter),
        "raw": raw,
        "raw, nearly constant dropped too": raw.but(pixels="lively"),
        "raw, jitter": raw.but(jitter=jitter),
        "raw, variance floor": raw.but(**floored),
        "demeaned": demeaned,
        "demeaned, variance floor": demeaned.but(**floored),
    }
    references = {"no R, as in 2024": original.but(rule=None), "no R, raw": raw.but(rule=None)}
    return decorrelated, references


def initial_loss(spec: Experiment) -> float:
    """Mean reported loss of batches at R = I, before any step: what a run has to get below."""
    x = arrays(spec)[0]
    variance = dict(spec.rule_options).get("variance")
    parts = [part for part in x.split(spec.batch_size) if len(part) == spec.batch_size]
    return float(np.mean([decorrelation_loss(part, variance) for part in parts]))


def state(record: dict, start: float) -> str:
    """How a run ended: one of :data:`STATES`; "rose" where the loss of its last epoch is above that at R = I."""
    if record["status"] == "diverged":
        return "diverged"
    return "fell" if record["epochs"][-1]["decor_loss"] < start else "rose"


def states(arm: Sequence[str], specs: Sequence[Experiment], records: Sequence[dict]) -> pd.DataFrame:
    """One row per run: arm, rate, seed, state, epoch of divergence, last loss over the loss at R = I."""
    starts: dict[Experiment, float] = {}
    rows = []
    for name, spec, record in zip(arm, specs, records, strict=True):
        data = spec.but(decor_lr=0.0)
        starts.setdefault(data, initial_loss(data))
        how = state(record, starts[data])
        last = None if how == "diverged" else record["epochs"][-1]["decor_loss"] / starts[data]
        rows.append((name, spec.decor_lr, spec.seed, how, record["diverged_at"], last))
    columns = ["arm", "decor_lr", "seed", "state", "diverged_at", "last / initial"]
    return pd.DataFrame(rows, columns=columns)


def largest_falling(table: pd.DataFrame) -> pd.Series:
    """Per arm the largest rate at which the loss fell in every seed; NaN where it fell at none."""
    fell = table.assign(fell=table["state"] == "fell").groupby(["arm", "decor_lr"])["fell"].all().reset_index()
    rates = fell[fell["fell"]].groupby("arm")["decor_lr"].max()
    return rates.reindex(list(dict.fromkeys(table["arm"])))


def draw_states(table: pd.DataFrame, ax):
    """The divergence map: arms by rates; each cell says how many seeds diverged (and when first), rose or fell."""
    from matplotlib.colors import ListedColormap

    names, rates = list(dict.fromkeys(table["arm"])), sorted(table["decor_lr"].unique())
    colours = {"diverged": "#7a3b69", "rose": "#f0b860", "fell": "#cfe8d5"}
    grid = np.zeros((len(names), len(rates)))
    for i, name in enumerate(names):
        for j, rate in enumerate(rates):
            cell = table[(table["arm"] == name) & (table["decor_lr"] == rate)]
            worst = min(STATES.index(s) for s in cell["state"])
            grid[i, j] = worst
            ax.text(
                j, i, _label(cell), ha="center", va="center", fontsize=7.5, color="white" if worst == 0 else "black"
            )
    ax.imshow(grid, cmap=ListedColormap([colours[s] for s in STATES]), vmin=-0.5, vmax=2.5, aspect="auto")
    ax.set_xticks(range(len(rates)), [f"{rate:.0e}" for rate in rates])
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False)
    ax.set_xlabel("rate of R")
    return ax


def _label(cell: pd.DataFrame) -> str:
    diverged = int((cell["state"] == "diverged").sum())
    if diverged:
        part = "" if diverged == len(cell) else f"\n({diverged} of {len(cell)})"
        return f"NaN in epoch {int(cell['diverged_at'].min())}{part}"
    return f"× {cell['last / initial'].median():.2g}"


def draw_spectra(inputs_at: Mapping[str, Tensor], sets: Mapping[str, Tensor], ranks: int = 100):
    """Eigenvalues of <x x'> against their rank, one panel per place of zero, one line per set of pixels."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(inputs_at), figsize=(10.5, 3.4))
    for ax, (zero, x) in zip(axes, inputs_at.items(), strict=True):
        for (name, keep), style in zip(sets.items(), arm_styles(sets).values(), strict=True):
            values = spectrum(x[:, keep])[:ranks]
            ax.loglog(range(1, len(values) + 1), values, label=name, color=style["color"], ls=style["linestyle"])
        ax.set(title=zero, xlabel="rank of the eigenvalue")
    axes[0].set_ylabel("eigenvalue of ⟨x x'⟩")
    axes[0].legend(fontsize=8)
    return fig


def draw_amplification(inputs_at: Mapping[str, Tensor], limit: float):
    """n = 1 / v of every pixel in every batch against how many of its images have ink; the limit as a line."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(inputs_at), figsize=(9.5, 3.6), sharey=True)
    for ax, (zero, x) in zip(axes, inputs_at.items(), strict=True):
        g = amplification(x, background=float(x.min()))
        ax.loglog(g["images with ink"] + 0.5, g["n"], ".", ms=2, alpha=0.3)
        ax.axhline(limit, color="black", lw=1, ls="--")
        ax.set(title=f"{zero}: n up to {g['n'].max():.1e}", xlabel="images of the batch with ink (+ 0.5)")
    axes[0].set_ylabel("amplification n = 1 / v")
    axes[0].text(0.6, limit * 0.3, f"one grey level in one image: {limit:.1e}", fontsize=8)
    return fig
