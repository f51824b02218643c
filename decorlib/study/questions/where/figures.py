"""Figures of the question where it pays: accuracies by credit, and the map of gains."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from decorlib.study.evidence.figures import arm_styles
from decorlib.study.questions.where.gains import accuracies, of_cells
from decorlib.study.questions.where.plan import CONTROLS, CREDIT, CREDITS, OURS, named

LINEAR = 1.0  # points: the axis of gains is linear up to here, logarithmic beyond
TICKS = (-100, -30, -10, -3, -1, -0.5, 0, 0.5, 1, 3, 10, 30, 100)


def by_credit(table: pd.DataFrame, title: str, axis: str = CREDIT) -> Figure:
    """Test accuracy of every arm and seed, a panel for each way of assigning credit; the mean is a line.

    Panels have scales of their own: perturbations are not where backpropagation is.

    Args:
        table: of :func:`decorlib.study.experiments.arms.compare`.
        title: the finding.
        axis: which of the two schedules. Default: a constant rate.
    """
    wide = accuracies(table)
    cells = [cell for cell in of_cells(wide) if cell[0] == axis]
    names = list(dict.fromkeys(name.split(" | ")[2] for name in wide))
    columns = min(3, len(cells))
    rows = math.ceil(len(cells) / columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3.1 * columns + 0.4, 2.3 * rows + 0.9), squeeze=False)
    for ax, cell in zip(axes.flat, cells, strict=False):
        for place, (name, style) in enumerate(arm_styles(names).items()):
            values = 100 * wide[named(cell, name)]
            ax.plot([place] * len(values), values, style["marker"], color=style["color"], alpha=0.55, ms=5)
            ax.plot([place - 0.3, place + 0.3], [values.mean()] * 2, color=style["color"], lw=2.5)
        ax.set_xticks(range(len(names)), [textwrap.fill(name, 9) for name in names], fontsize="x-small")
        ax.set_title(cell[1], fontsize="small", fontweight="normal")
        ax.set_xlim(-0.6, len(names) - 0.4)
        ax.grid(axis="x", visible=False)
    for ax in list(axes.flat)[len(cells) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel("test accuracy, %", fontsize="small")
    return _titled(fig, title)


def gain_map(found: pd.DataFrame, tables: list[pd.DataFrame], margin: float, title: str, ours: str = OURS) -> Figure:
    """Gain of R over both controls in every cell: a panel for each axis, every seed a dot.

    Intervals hold together over all cells for one control, not for both: twice as many are drawn.

    Args:
        found: of :func:`decorlib.study.questions.where.gains.gains`. Where an interval goes beyond 100 points, which no
            accuracy does, the axis ends there.
        tables: the runs, for the seeds.
        margin: shaded, in test accuracy.
        title: the finding.
        ours: the arm with R. Default: that in the deeper layers.
    """
    axes_names = list(dict.fromkeys(found["axis"]))
    columns = min(3, len(axes_names))
    rows = math.ceil(len(axes_names) / columns)
    fig, axes = plt.subplots(rows, columns, figsize=(3.3 * columns + 0.4, 2.6 * rows + 0.9), squeeze=False, sharey=True)
    wides = [accuracies(table) for table in tables]
    shown = found[found["minus"].isin(CONTROLS)]
    furthest = min(100.0, 120 * float(shown[["low", "high"]].abs().max(axis=None)))
    for ax, axis in zip(axes.flat, axes_names, strict=False):
        part = found[found["axis"] == axis]
        values = list(dict.fromkeys(part["value"]))
        for offset, (control, style) in zip((-0.17, 0.17), arm_styles(CONTROLS).items(), strict=True):
            mine = part[part["minus"] == control].set_index("value").loc[values]
            at = [place + offset for place in range(len(values))]
            ends = [100 * (mine["estimate"] - mine["low"]), 100 * (mine["high"] - mine["estimate"])]
            bars = {"fmt": style["marker"], "color": style["color"], "capsize": 3, "ms": 5, "lw": 1.5}
            ax.errorbar(at, 100 * mine["estimate"], yerr=ends, label=f"minus {control}", **bars)
            for place, value in zip(at, values, strict=True):
                seeds = 100 * _differences(wides, axis, value, ours, control)
                ax.plot([place + 0.09] * len(seeds), seeds, ".", color=style["color"], alpha=0.5, ms=4)
        ax.axhspan(-100 * margin, 100 * margin, color="black", alpha=0.12, lw=0)
        ax.axhline(0, color="black", lw=0.8)
        labels = [textwrap.fill(str(v), 12, break_long_words=False) if axis in CREDITS else f"{v:g}" for v in values]
        ax.set_xticks(range(len(values)), labels, fontsize="x-small", rotation=35 if axis in CREDITS else 0)
        ax.set_yscale("symlog", linthresh=LINEAR)
        ax.set_ylim(-furthest, furthest)
        ax.yaxis.set_major_locator(FixedLocator([y for y in TICKS if abs(y) <= furthest]))
        ax.tick_params(axis="y", labelsize="x-small")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:+g}" if y else "0"))
        ax.set_xlabel(axis, fontsize="small")
        ax.set_xlim(-0.6, len(values) - 0.4)
        ax.grid(axis="x", visible=False)
    for ax in list(axes.flat)[len(axes_names) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel("gain of R, points", fontsize="small")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize="small", loc="outside lower right", ncols=2)
    return _titled(fig, title)


def _differences(wides: list[pd.DataFrame], axis: str, value: Any, ours: str, control: str) -> pd.Series:
    wide = next(w for w in wides if named((axis, value), ours) in w)
    return wide[named((axis, value), ours)] - wide[named((axis, value), control)]


def _titled(fig: Figure, title: str) -> Figure:
    text = textwrap.fill(title, min(int(10 * fig.get_figwidth()), 100))
    fig.suptitle(text, x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig
