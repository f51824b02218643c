"""The figures of notebook 04, each with its alternative text; what they show was computed before."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from decorlib.study.evidence.figures import curves_by_seed, paired_dots
from decorlib.study.evidence.stats import Interval, paired
from decorlib.study.questions.optimizer.optimizers import ORDERS


def orders(wide: pd.DataFrame) -> tuple[Figure, str, dict[str, Interval]]:
    """Test accuracy of each order of calls minus that of the order of 2024; one row per seed, one column per order."""
    ours, others = ORDERS[0], ORDERS[1:]
    effects = {order: paired(wide[order].tolist(), wide[ours].tolist()) for order in others}
    worst = min(effect.estimate for effect in effects.values())
    fig, ax = plt.subplots(figsize=(7.5, 2.8))
    differences = {order: (wide[order] - wide[ours]).to_numpy() for order in others}
    title = f"Where Adam steps R: {worst:+.3f} in accuracy at worst"
    paired_dots(differences, ax=ax, xlabel="test accuracy minus that of the 2024 order", title=title)
    return fig, "; ".join(f"{order}: {effect}" for order, effect in effects.items()), effects


def turning(curves: pd.DataFrame, spread: float) -> tuple[Figure, str]:
    """Decorrelation loss against epochs, and against rate x epochs.

    Args:
        curves: columns arm, seed, epoch, rate x epochs, decor_loss.
        spread: rate x epochs at the turn, largest over smallest.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    shared = {"y": "decor_loss", "arm": "arm", "log": True}
    curves_by_seed(curves, "epoch", ax=left, xlabel="epoch", ylabel="decorrelation loss, mean of batches", **shared)
    curves_by_seed(curves, "rate x epochs", ax=right, xlabel="rate × epochs", ylabel="", **shared)
    left.set_title("A smaller rate turns later …")
    right.set_title(f"… rate × epochs at the turn: within a factor {spread:.1f}")
    right.set(xscale="log")
    right.legend().remove()
    left.legend(fontsize=8)
    alt = (
        f"At every rate the decorrelation loss falls and rises again ({', '.join(curves['arm'].unique())}); the "
        f"turning points lie within a factor {spread:.1f} in rate times epochs."
    )
    return fig, alt


def optimizers(
    wide: pd.DataFrame, R: Mapping[str, Interval], weights: Mapping[str, Interval], won: str, margin: float
) -> tuple[Figure, str]:
    """Above: R's optimizers minus plain SGD; below: learning R minus not, for each optimizer of the weights."""
    height = 1.2 + 0.5 * (len(R) + len(weights))
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.5, height), height_ratios=(len(R), len(weights)))
    above = {f"R by {k}": (wide[k] - wide["SGD"]).to_numpy() for k in R}
    below = {f"weights by {k}": (wide[f"{k}, R learned"] - wide[f"{k}, plain"]).to_numpy() for k in weights}
    paired_dots(above, ax=top, xlabel="test accuracy minus that with R by SGD")
    top.set_title(f"R's optimizer, tuned: {won} minus SGD is {R[won].estimate:+.4f}")
    paired_dots(below, ax=bottom, xlabel="test accuracy, learning R minus not")
    gain = max(effect.estimate for effect in weights.values())
    bottom.set_title(f"Learning R gains up to {gain:+.3f}, each side tuned")
    for ax in (top, bottom):
        ax.axvline(margin, color="0.6", ls=":")
    texts = [f"R by {k}: {e}" for k, e in R.items()] + [f"weights by {k}: {e}" for k, e in weights.items()]
    return fig, "Differences in test accuracy. " + "; ".join(texts)


def rate_maps(grids: Mapping[str, pd.DataFrame]) -> tuple[Figure, str]:
    """Accuracy over the rates of the weights and of R, one map for each optimizer of R; diverged runs are blank.

    Args:
        grids: optimizer of R -> columns lr, decor_lr, test_accuracy (missing where the run diverged).
    """
    fig, axes = plt.subplots(1, len(grids), figsize=(9.5, 3.4), squeeze=False)
    texts, bar = [], {"label": "test accuracy", "extend": "both"}
    for ax, (kind, grid) in zip(axes[0], grids.items(), strict=True):
        view = grid.pivot(index="lr", columns="decor_lr", values="test_accuracy").sort_index(ascending=False)
        sns.heatmap(view, annot=True, fmt=".2f", vmin=0.5, vmax=0.9, cmap="viridis", ax=ax, cbar_kws=bar)
        ax.grid(False)
        lost, best = int(grid["test_accuracy"].isna().sum()), grid.loc[grid["test_accuracy"].idxmax()]
        ax.set(xlabel="rate of R", ylabel="rate of the weights (Adam)")
        ax.set_title(f"R by {kind}: {lost} of {len(grid)} diverged (blank)")
        where = f"best accuracy {best['test_accuracy']:.2f} at rates {best['lr']:g} and {best['decor_lr']:g} of R"
        texts.append(f"R by {kind}: {lost} of {len(grid)} diverged, {where}")
    return fig, "; ".join(texts)
