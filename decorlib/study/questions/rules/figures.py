"""Figures of the comparison of learning rules: more arms than colours, so they share panels or have a row each."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from decorlib.study.evidence.figures import MARKERS, PALETTE, arm_styles, paired_dots

NOTEBOOK_2024 = {"color": "black", "marker": "", "linestyle": "-", "lw": 2.2}
PANELS = {
    "kappa and its relatives": (
        *("plain (C only)", "kappa 0.1", "kappa 0.5", "kappa 0.9", "kappa 0.5, columns", "whitening"),
    ),
    "others": (*("triangular", "adaptive gain", "Foldiak", "exact ZCA", "exact PCA", "exact Cholesky"),),
}


def curve_panels(
    curves: Mapping[str, pd.DataFrame], x: str, y: str = "cosine", *, xlabel: str, ylabel: str, title: str
) -> Figure:
    """A row of panels per setting; the 2024 rule in black in every panel, every seed thin, the median bold.

    Args:
        curves: setting -> one row per arm, seed and measured step, with columns arm, seed, and those of x and y.
        x: column; logarithmic, so that a 0 (the start) is left out.
        y: column; logarithmic. Default: "cosine".
        xlabel: label with unit.
        ylabel: label with unit.
        title: the finding.
    """
    fig, axes = plt.subplots(
        len(curves), 2, figsize=(9.5, 1.2 + 2.9 * len(curves)), sharex="row", sharey="row", squeeze=False
    )
    for row, (setting, table) in zip(axes, curves.items(), strict=True):
        for ax, (panel, arms) in zip(row, PANELS.items(), strict=True):
            for name, style in {"2024 rule": NOTEBOOK_2024, **arm_styles(arms)}.items():
                part = table[(table["arm"] == name) & (table[x] > 0)]
                thin = {key: style[key] for key in ("color", "linestyle")}
                for _, run in part.groupby("seed"):
                    ax.plot(run[x], run[y], lw=0.6, alpha=0.4, **thin)
                middle = part.groupby(x)[y].median()
                ax.plot(middle.index, middle, markersize=4, label=name, **{"lw": 1.8, **style})
            ax.set(xscale="log", yscale="log", title=f"{setting}: {panel}", xlabel=xlabel)
            _plain_numbers(ax.xaxis, ax.yaxis)
        row[0].set_ylabel(ylabel)
    for ax in axes[-1]:
        ax.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3)
    return _titled(fig, title)


def _plain_numbers(*axes) -> None:
    """1, 2, 5 and their decades instead of powers of ten with factors, which overlap."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _titled(fig: Figure, title: str) -> Figure:
    fig.suptitle(textwrap.fill(title, 105), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig


def dot_panels(
    tables: Mapping[str, pd.DataFrame], columns: Mapping[str, str], arms: Sequence[str], title: str
) -> Figure:
    """A row per arm and a logarithmic panel per column; one marker per setting, every seed, "never" where missing.

    Args:
        tables: setting -> one row per arm and seed, with a column arm.
        columns: column -> label of its axis.
        arms: order of the rows.
        title: the finding.
    """
    fig, axes = plt.subplots(1, len(columns), figsize=(9.5, 1.4 + 0.28 * len(arms)), sharey=True)
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for i, (setting, table) in enumerate(tables.items()):
            for row, arm in enumerate(arms):
                values = table.loc[table["arm"] == arm, column]
                ax.plot(values, [row + 0.24 * (i - 0.5)] * len(values), MARKERS[i], color=PALETTE[i], ms=5, alpha=0.7)
                if values.isna().all():
                    where = (0.99, row + 0.24 * (i - 0.5))
                    ax.annotate("never", where, xycoords=ax.get_yaxis_transform(), color=PALETTE[i], **_SMALL)
            ax.plot([], [], MARKERS[i], color=PALETTE[i], label=setting)
        ax.set(xscale="log", xlabel=label)
        _plain_numbers(ax.xaxis)
        ax.set_yticks(range(len(arms)), arms)
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return _titled(fig, title)


_SMALL = {"ha": "right", "va": "center", "fontsize": "x-small"}


def range_bars(tables: Mapping[str, pd.DataFrame], rates: Sequence[float], title: str) -> Figure:
    """Per setting and arm: a line from the smallest useful to the largest stable rate; a cross where nothing is useful.

    Args:
        tables: setting -> table of :func:`decorlib.study.questions.rules.comparison.ranges`.
        rates: what was tried, shown as ticks below.
        title: the finding.
    """
    fig, axes = plt.subplots(1, len(tables), figsize=(9.5, 4.0), sharey=True)
    for ax, (setting, table), color in zip(axes, tables.items(), PALETTE, strict=False):
        table = table[~table.index.str.startswith("exact")]
        for row, (low, high) in enumerate(zip(table["smallest useful"], table["largest stable"], strict=True)):
            if math.isnan(high):
                where = (0.5, row)
                ax.annotate("stable at no try", where, xycoords=ax.get_yaxis_transform(), **(_SMALL | {"ha": "center"}))
            elif math.isnan(low):
                ax.plot([high], [row], "x", color="black")
            else:
                ax.plot([low, high], [row, row], "-o", color=color, lw=4, ms=6)
        ax.plot(rates, [len(table) - 0.6] * len(rates), "|", color="gray", ms=6)
        ax.set(xscale="log", xlabel="rate of R", title=setting)
        ax.set_yticks(range(len(table)), table.index)
    axes[0].set_ylim(len(table) - 0.4, -0.5)
    return _titled(fig, title)


def ratio_dots(table: pd.DataFrame, measured: str, predicted: str, arms: Sequence[str], title: str) -> Figure:
    """Measured over predicted, every seed, one row per arm; the prediction is the line at 1."""
    fig, ax = plt.subplots(figsize=(7.0, 1.2 + 0.3 * len(arms)))
    for row, arm in enumerate(arms):
        part = table[table["arm"] == arm]
        ax.plot(part[measured] / part[predicted], [row] * len(part), "o", color=PALETTE[0], alpha=0.6)
    ax.axvline(1, color="black", lw=1, label="prediction")
    ax.set(xscale="log", xlabel="largest stable rate, measured / predicted", title=title)
    _plain_numbers(ax.xaxis)
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.legend(loc="lower left")
    return fig


def law(x: Sequence[float], line: Callable, dots: Mapping[str, Sequence[float]], **labels: str) -> Figure:
    """A predicted curve with the measurements of several arms upon it; logarithmic x axis."""
    fig, ax = plt.subplots(figsize=(7.0, 3.6))
    low, high = min(x), max(x)
    grid = [low * (high / low) ** (i / 200) for i in range(201)]
    ax.plot(grid, [line(value) for value in grid], color="black", lw=1.5, label="predicted")
    for (arm, values), style in zip(dots.items(), arm_styles(dots).values(), strict=True):
        ax.plot(x, values, style["marker"], color=style["color"], label=arm, ms=7, alpha=0.6, fillstyle="none", mew=1.5)
    ax.set(xscale="log", **labels)
    ax.legend(fontsize="small")
    return fig


def difference_panels(wides: Mapping[str, pd.DataFrame], baseline: str, xlabel: str, title: str) -> Figure:
    """Paired differences to a baseline, one panel per setting; ``wides`` from ``arms.by_seed``."""
    rows = max(len(wide.columns) for wide in wides.values()) - 1
    fig, axes = plt.subplots(1, len(wides), figsize=(9.5, 1.4 + 0.42 * rows))
    for ax, (setting, wide) in zip(axes, wides.items(), strict=True):
        whole = [name for name in wide.columns.drop(baseline) if wide[[name, baseline]].notna().all(axis=None)]
        paired_dots({name: wide[name] - wide[baseline] for name in whole}, ax=ax, xlabel=xlabel, title=setting)
        ax.set_yticks(range(len(whole)), whole)
        # One arm far out must not flatten the others: linear up to 0.1, logarithmic beyond.
        ax.set_xscale("symlog", linthresh=0.1)
        ax.margins(x=0.08)
        ax.autoscale_view(scaley=False)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator([-1, -0.1, -0.05, 0, 0.05, 0.1, 1]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return _titled(fig, title)
