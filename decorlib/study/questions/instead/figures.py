"""Figures of notebook 10: curves of every arm and seed, and differences to each peer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from decorlib.study.evidence.figures import PALETTE, arm_styles, paired_dots
from decorlib.study.evidence.stats import Interval
from decorlib.study.questions.instead.plan import ADAM, GROUPS

LABELS = {
    "epoch": "epochs",
    "seconds": "seconds of training, one thread",
    "error": "error, %",
    "validation_loss": "cross-entropy, nats",
    "validation_calibration": "calibration error",
}


def against(curves: pd.DataFrame, x: str, ys: Sequence[str], title: str) -> Figure:
    """Measurements against epochs or seconds: a column of panels per group of arms, Adam in black in each.

    Every seed is a thin line, the median over seeds a thick one, which ends where a seed diverged.
    """
    groups = {panel: [arm for arm in names if arm in set(curves["arm"])] for panel, names in GROUPS.items()}
    groups = {panel: names for panel, names in groups.items() if names}
    size = (3.2 * len(groups) + 0.4, 2.5 * len(ys) + 1.1)
    fig, axes = plt.subplots(len(ys), len(groups), figsize=size, sharex=True, sharey="row", squeeze=False)
    for row, y in zip(axes, ys, strict=True):
        for ax, (panel, names) in zip(row, groups.items(), strict=True):
            styles = {ADAM: {"color": "black", "marker": "", "linestyle": "-"}} | arm_styles(names)
            for name, style in styles.items():
                _lines(ax, curves[curves["arm"] == name], x, y, name, style)
            ax.set(title=panel if y == ys[0] else None, xlabel=LABELS[x] if y == ys[-1] else None, yscale="log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel(LABELS[y], fontsize="small")
    for ax in axes[-1]:
        handles, labels = ax.get_legend_handles_labels()
        ax.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize="small")
    _over_all(fig, title)
    return fig


def _lines(ax: Axes, part: pd.DataFrame, x: str, y: str, name: str, style: Mapping) -> None:
    for _, run in part.groupby("seed"):
        ax.plot(run[x], run[y], color=style["color"], linestyle=style["linestyle"], lw=0.7, alpha=0.4)
    whole = part.groupby(x).filter(lambda rows: len(rows) == part["seed"].nunique())
    middle = whole.groupby(x)[y].median()
    ax.plot(middle.index, middle, lw=2, markersize=4, label=name, **style)


def differences(wide: pd.DataFrame, ours: str, others: Sequence[str], margin: float, title: str) -> Figure:
    """Test accuracy of one arm minus each other in points, every seed, in the order given; grey: the margin."""
    found = {f"minus {name}": 100 * (wide[ours] - wide[name]).to_numpy() for name in others}
    fig, ax = plt.subplots(figsize=(7.0, 1.4 + 0.42 * len(found)))
    ax.axvspan(-100 * margin, 100 * margin, color="0.9", zorder=0)
    paired_dots(found, ax=ax, xlabel="points; right: better than the peer")
    _points(ax)
    _over_all(fig, title)
    return fig


def forest(effects: Mapping[str, Interval], margin: float, title: str) -> Figure:
    """One interval per cell, in points."""
    fig, ax = plt.subplots(figsize=(7.0, 1.3 + 0.5 * len(effects)))
    ax.axvspan(-100 * margin, 100 * margin, color="0.9", zorder=0)
    for row, one in enumerate(effects.values()):
        error = [[100 * (one.estimate - one.low)], [100 * (one.high - one.estimate)]]
        ax.errorbar(100 * one.estimate, row, xerr=error, fmt="D", color=PALETTE[1], capsize=4, lw=2)
    ax.axvline(0, color="black", lw=1)
    ax.set_yticks(
        range(len(effects)), [f"{name.replace(': ', chr(10))} (n = {one.n})" for name, one in effects.items()]
    )
    ax.set_ylim(len(effects) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="points; right: better with R")
    _points(ax)
    _over_all(fig, title)
    return fig


def _points(ax: Axes) -> None:
    """Even up to a point either way, logarithmic beyond, so that tenths and tens of points can both be read."""
    ax.set_xscale("symlog", linthresh=1, linscale=1)
    ax.margins(x=0.08)
    ax.autoscale(axis="x")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _over_all(fig: Figure, title: str) -> None:
    """A title from the left end of the figure, since its axes begin far from there; in lines that fit."""
    title = textwrap.fill(title, round(10.5 * fig.get_figwidth()))
    fig.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
