"""Figures of the question whether there is a gain: every arm and seed against epochs, seconds and counted work."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from decorlib.study.figures import arm_styles, paired_dots
from decorlib.study.gain import BASELINE, GROUPS

BLACK = {"color": "black", "marker": "", "linestyle": "-"}
TICKS = (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)


def groups_of(arms) -> dict[str, list[str]]:
    """The panels that have an arm in this comparison."""
    found = {panel: [name for name in names if name in set(arms)] for panel, names in GROUPS.items()}
    return {panel: names for panel, names in found.items() if names}


def against(curves: pd.DataFrame, x: str, xlabel: str, title: str, y: str = "error") -> Figure:
    """Test error against epochs, seconds or work: a panel per group of arms, backpropagation in black in each.

    Every seed is a thin line, the median over seeds a thick one, which ends where any seed has diverged.
    """
    panels = groups_of(curves["arm"])
    fig, axes = plt.subplots(
        1, len(panels), figsize=(3.6 * len(panels) + 0.6, 4.9), sharex=True, sharey=True, squeeze=False
    )
    for ax, (panel, names) in zip(axes[0], panels.items(), strict=True):
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
            ax.plot(whole[x], whole[y], lw=2, markersize=4, label=name, **style)
        ax.set(title=panel, xlabel=xlabel, yscale="log")
        ax.yaxis.set_major_locator(FixedLocator(TICKS))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize="x-small", loc="upper right")
    axes[0][0].set_ylabel("test error, %")
    return _titled(fig, title)


def reach(times: pd.DataFrame, bounds: Mapping[str, float], title: str) -> Figure:
    """Epochs and seconds to backpropagation's best accuracy, over its own: a dot per seed, a bar at the median.

    Runs that never get there stand in a column of their own, with their number.

    Args:
        times: of :func:`decorlib.study.gain.reached`.
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


def differences(wide: pd.DataFrame, baseline: str, title: str) -> Figure:
    """Final test accuracy of every arm minus the baseline's, in points, paired by seed."""
    gaps = {arm: 100 * (wide[arm] - wide[baseline]).dropna() for arm in wide if arm != baseline}
    ax = paired_dots(
        {arm: gap for arm, gap in gaps.items() if len(gap)}, xlabel=f"points of test accuracy minus {baseline}"
    )
    ax.set_title(textwrap.fill(title, 90))
    return ax.figure


def _titled(fig: Figure, title: str) -> Figure:
    fig.suptitle(textwrap.fill(title, 100), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig
