"""Figures of the question whether there is a gain: every arm and seed against epochs, seconds and counted work."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from decorlib.study.evidence.figures import arm_styles, paired_dots
from decorlib.study.questions.gain.plan import BASELINE, GROUPS

BLACK = {"color": "black", "marker": "", "linestyle": "-"}
TICKS = {
    "error": (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100),
    "test_loss": (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 2),
}
LABELS = {
    "epoch": "epochs",
    "seconds": "seconds of training",
    "GFLOP": "counted GFLOP",
    "error": "test error, %",
    "test_loss": "test cross-entropy, nats",
}


def groups_of(arms) -> dict[str, list[str]]:
    """The panels that have an arm in this comparison."""
    found = {panel: [name for name in names if name in set(arms)] for panel, names in GROUPS.items()}
    return {panel: names for panel, names in found.items() if names}


def against(curves: pd.DataFrame, xs: Sequence[str], title: str, y: str = "error") -> Figure:
    """Test error or loss against epochs, seconds or work: a panel per group of arms, backpropagation in black in each.

    Every seed is a thin line, the median over seeds a thick one, which ends where any seed has diverged.

    Args:
        curves: of :func:`decorlib.study.questions.gain.time_to_accuracy.learning_curves`.
        xs: columns, each a row of panels.
        title: the finding.
        y: ``"error"`` or ``"test_loss"``. Default: error.
    """
    panels = groups_of(curves["arm"])
    size = (3.1 * len(panels) + 0.5, 4.6 if len(xs) == 1 else 2.6 * len(xs) + 0.5)
    fig, axes = plt.subplots(len(xs), len(panels), figsize=size, sharex="row", sharey=True, squeeze=False)
    for row, x in zip(axes, xs, strict=True):
        for ax, (panel, names) in zip(row, panels.items(), strict=True):
            _panel(ax, curves, names, x, y)
            ax.set(title=panel if x == xs[0] else None, xlabel=LABELS[x], yscale="log")
            ax.yaxis.set_major_locator(FixedLocator(TICKS[y]))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            if x == xs[0]:
                ax.legend(fontsize="x-small", loc="upper right")
        row[0].set_ylabel(LABELS[y])
    return _titled(fig, title)


def _panel(ax: Axes, curves: pd.DataFrame, names: Sequence[str], x: str, y: str) -> None:
    for name, style in {BASELINE: BLACK, **arm_styles(names)}.items():
        part = curves[curves["arm"] == name]
        if part.empty:  # diverged before its first epoch ended, in every seed
            ax.plot([], [], label=f"{name} (diverged)", **style)
            continue
        for _, run in part.groupby("seed"):
            ax.plot(run[x], run[y], lw=0.7, alpha=0.4, color=style["color"], linestyle=style["linestyle"])
        seeds = part["seed"].nunique()
        by_epoch = part.groupby("epoch").agg({x: "median", y: "median", "seed": "nunique"})
        whole = by_epoch[by_epoch["seed"] == seeds]
        ax.plot(whole[x], whole[y], lw=2, markersize=3, label=name, **style)


def reach(times: pd.DataFrame, bounds: Mapping[str, float], title: str) -> Figure:
    """Epochs and seconds to backpropagation's best accuracy, over its own: a dot per seed, a bar at the median.

    Runs that never get there stand in a column of their own, with their number.

    Args:
        times: of :func:`decorlib.study.questions.gain.time_to_accuracy.reached`.
        bounds: column -> what was asked, drawn as a line.
        title: the finding.
    """
    arms = list(dict.fromkeys(times["arm"]))
    labels = {"of epochs": "epochs, of backpropagation's own", "of seconds": "seconds, of backpropagation's own"}
    fig, axes = plt.subplots(1, 2, figsize=(10, 1.6 + 0.36 * len(arms)), sharey=True)
    for ax, (column, label) in zip(axes, labels.items(), strict=True):
        finite = times[column][times[column].map(math.isfinite)]
        never = 1.6 * max(finite.max(), 1.0)
        for row, arm in enumerate(arms):
            values = times.loc[times["arm"] == arm, column]
            there = values[values.map(math.isfinite)]
            ax.plot(there, [row] * len(there), "o", color="#0072B2", alpha=0.6, ms=5)
            middle = values.median()
            if math.isfinite(middle):
                ax.plot([middle] * 2, [row - 0.3, row + 0.3], color="#D55E00", lw=2.5)
            if len(there) < len(values):
                ax.annotate(
                    f"{len(values) - len(there)} of {len(values)}",
                    (never, row),
                    ha="center",
                    va="center",
                    fontsize="small",
                )
        ax.axvline(bounds[column], color="black", lw=1, ls="--")
        ax.axvline(1, color="grey", lw=0.8)
        ticks = [t for t in (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10) if finite.min() / 1.5 < t < never / 1.2]
        ax.set(xscale="log", xlabel=label, xlim=(min(finite.min(), bounds[column]) / 1.3, never * 1.35))
        ax.xaxis.set_major_locator(FixedLocator([*ticks, never]))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _, never=never: "never" if v > never / 1.1 else f"{v:g}"))
    axes[0].set_yticks(range(len(arms)), arms)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    return _titled(fig, title)


def levels(times: pd.DataFrame, title: str) -> Figure:
    """Epochs and seconds to every level of test accuracy: every seed a dot, the median over seeds a line.

    A line ends where half of the seeds no longer get there.

    Args:
        times: of :func:`decorlib.study.questions.gain.time_to_accuracy.time_to`.
        title: the finding.
    """
    names = list(dict.fromkeys(times["arm"]))
    styles = {BASELINE: BLACK, **arm_styles([name for name in names if name != BASELINE])}
    fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for ax, what in zip(axes, ("epochs", "seconds"), strict=True):
        for name in names:
            part = times[times["arm"] == name]
            own = part[part[what].map(math.isfinite)]
            ax.plot(own[what], 100 * own["accuracy"], ".", color=styles[name]["color"], alpha=0.35, ms=4)
            middle = part.groupby("accuracy")[what].median()
            middle = middle[middle.map(math.isfinite)]
            ax.plot(middle, 100 * middle.index, lw=2, label=name, **{**styles[name], "marker": ""})
        ax.set(xscale="log", xlabel={"epochs": "epochs", "seconds": "seconds of training"}[what])
        ax.xaxis.set_major_locator(FixedLocator((0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("test accuracy, %")
    axes[1].legend(fontsize="small", loc="lower right")
    return _titled(fig, title)


def differences(wide: pd.DataFrame, baseline: str, title: str) -> Figure:
    """Final test accuracy of every arm minus the baseline's, in points, paired by seed."""
    gaps = {arm: 100 * (wide[arm] - wide[baseline]).dropna() for arm in wide if arm != baseline}
    ax = paired_dots(
        {arm: gap for arm, gap in gaps.items() if len(gap)}, xlabel=f"points of test accuracy minus {baseline}"
    )
    return _titled(ax.figure, title)


def _titled(fig: Figure, title: str) -> Figure:
    width = int(10 * fig.get_figwidth())  # about as many bold characters as an inch of it holds, times its inches
    fig.suptitle(textwrap.fill(title, min(width, 100)), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig
