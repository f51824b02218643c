"""The figures of notebook 03, each with its alternative text; what they show was computed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from decorlib.study.evidence.figures import MARKERS, PALETTE, paired_dots
from decorlib.study.evidence.stats import Interval
from decorlib.study.questions.variance.target_variance import settles_at


def law(settled: pd.DataFrame, by_batch: pd.DataFrame, in_batches: Sequence) -> tuple[Figure, str]:
    """Variance reached against target, and against batch size: predictions as lines, measurements as dots.

    Args:
        settled: columns eta, target, measured, corrected, and worst: the largest relative deviation of any feature.
        by_batch: columns B, measured, predicted.
        in_batches: for each batch size the variances of all features.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    t = np.geomspace(0.1, 10, 50)
    for (eta, part), color in zip(settled.groupby("eta"), PALETTE, strict=False):
        left.plot(t, settles_at(t, eta), color=color, label=f"predicted, η = {eta:g}")
        left.plot(part["target"], part["measured"], "o", color=color)
    left.plot(t, t, "k:", label="target reached")
    left.plot(settled["target"], settled["corrected"], "k^", ms=5, label="corrected rule")
    off, off_batch = settled["worst"].max(), (by_batch["measured"] / by_batch["predicted"] - 1).abs().max()
    left.set(xscale="log", yscale="log", xlabel="target variance t", ylabel="variance reached")
    left.set_title(f"No target is reached; off the law by {off:.0e}")
    B = np.geomspace(6, 300, 100)
    right.plot(B, settles_at(1.0) * B / (B - 2), label="predicted, B / (B − 2)")
    for i, (size, v) in enumerate(zip(by_batch["B"], in_batches, strict=True)):
        right.plot([size] * len(v), v, "o", ms=3, alpha=0.5, color=PALETTE[1], label=None if i else "features")
    right.axhline(settles_at(1.0), color="k", ls=":", label="population")
    right.set(xscale="log", xlabel="batch size B", ylabel="variance reached, t = 1")
    right.set_title(f"Small batches settle higher; off by {off_batch:.1%}")
    for ax in (left, right):
        ax.legend(fontsize=8)
    alt = (
        f"Measured variances lie on t/(1 + eta t) within {off:.0e}, those of the corrected rule on t; in batches they "
        f"lie on B/(B - 2) times that within {off_batch:.1%}."
    )
    return fig, alt


def collapse(falling: pd.DataFrame, rate: float = 0.01) -> tuple[Figure, str]:
    """What :func:`target_variance.collapse` found: norm and variance fall along the closed form."""
    off = (falling["norm"] / falling["predicted_norm"] - 1).abs().max()
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
    left.loglog(falling["step"], falling["predicted_norm"], label="norm of R, predicted")
    left.loglog(falling["step"], falling["norm"], "o", label="norm of R, measured")
    left.loglog(falling["step"], falling["variance"], "s", label="mean variance, measured")
    late = falling[falling["late_law"] < 2]
    left.loglog(late["step"], late["late_law"], "k:", label="1 / (2 η ε steps)")
    left.set(xlabel=f"steps (rate {rate:g})", ylabel="norm; variance")
    left.set_title(f"R collapses as predicted, within {off:.1%}")
    left.legend(fontsize=8)
    right.semilogx(falling["step"], falling["cosine"], "o-")
    right.set(xlabel=f"steps (rate {rate:g})", ylabel="RMS correlation about zero", ylim=(0, None))
    right.set_title("and decorrelates on the way")
    first, last = falling["cosine"].iloc[[0, -1]]
    alt = (
        f"Norm of R and variance fall to zero along the closed form, largest deviation {off:.1%}, while the "
        f"correlation falls from {first:.2f} to {last:.3f}."
    )
    return fig, alt


def spreads(scaled: pd.DataFrame, up_to: float) -> dict[str, float]:
    """Largest spread of the correlation over targets, at equal rate and at equal rate x target, within a seed.

    Args:
        scaled: columns arm, rate, rate x target, seed, cosine.
        up_to: the largest rate x target that counts.
    """
    useful = scaled[scaled["rate x target"] <= 1.001 * up_to]
    found = {}
    for by in ("rate", "rate x target"):
        groups = useful.groupby([by, "seed"])["cosine"].agg(["min", "max", "size"])
        several = groups[groups["size"] > 1]
        found[by] = float((several["max"] - several["min"]).max())
    return found


def factor(scaled: pd.DataFrame, up_to: float) -> tuple[Figure, str]:
    """Correlation left against rate, and against rate x target; arguments as for :func:`spreads`."""
    spread = spreads(scaled, up_to)
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
    for i, (name, part) in enumerate(scaled.groupby("arm", sort=False)):
        # Of different sizes and open, so that what lies on one another can be seen.
        style = {"ls": "", "marker": MARKERS[i], "ms": 5 + 2.5 * i, "mfc": "none", "mew": 1.5}
        left.semilogx(part["rate"], part["cosine"], label=name, **style)
        right.semilogx(part["rate x target"], part["cosine"], **style)
    left.set(xlabel="rate of R, ε", ylabel="correlation about zero, last epoch")
    left.set_title(f"At equal rate: spread {spread['rate']:.2f}")
    right.axvline(1.2 * up_to, color="0.6", ls=":")
    right.set(xlabel="rate × target, ε t")
    right.set_title(f"At equal rate × target: spread {spread['rate x target']:.2f} (left of the dots)")
    left.legend(fontsize=8)
    alt = (
        f"Correlation left against the rate: the targets spread by {spread['rate']:.2f}; against rate times target, up "
        f"to {up_to:g}, by {spread['rate x target']:.2f}."
    )
    return fig, alt


def accuracy(wide: pd.DataFrame, effects: Mapping[str, Interval], baseline: str, margin: float) -> tuple[Figure, str]:
    """Differences in test accuracy to a baseline arm, every seed, with intervals and the margin that counts."""
    beyond = [name for name, e in effects.items() if e.low > margin or e.high < -margin]
    finding = f"Beyond {margin:g} of it: {', '.join(beyond)}" if beyond else f"None is surely beyond {margin:g} of it"
    fig, ax = plt.subplots(figsize=(7.5, 1.2 + 0.4 * len(effects)))
    differences = {name: (wide[name] - wide[baseline]).to_numpy() for name in effects}
    title = f"{finding[0].upper()}{finding[1:]}: accuracy beside {baseline}"
    paired_dots(differences, ax=ax, xlabel=f"test accuracy minus that of {baseline}, tuned rates", title=title)
    for x in (-margin, margin):
        ax.axvline(x, color="0.6", ls=":")
    return fig, f"Differences to {baseline}. " + "; ".join(f"{name}: {effect}" for name, effect in effects.items())
