"""Figures of the question whether there is a gain: one colour for each arm everywhere, every seed shown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from decorlib.study.evidence.figures import MARKERS
from decorlib.study.questions.gain.plan import ARMS, BASELINE, BUDGETS, CONTROLS

TICKS = (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)
LABELS = {"epoch": "epochs", "seconds": "seconds of training"}
FILLED = {"equal seconds": "full", "equal epochs": "none"}
GREY = "#666666"


def styles() -> dict[str, dict]:
    """Colour, marker and line of every arm, the same in all figures: controls dashed, arms with an R drawn through."""
    colours = iter(mpl.color_sequences["petroff8"])
    found = {BASELINE: {"color": "black", "marker": "", "linestyle": ":"}}
    for i, arm in enumerate(a for a in ARMS if a != BASELINE):
        line = "--" if arm in CONTROLS else "-"
        found[arm] = {"color": next(colours), "marker": MARKERS[i % len(MARKERS)], "linestyle": line}
    return found


def learning(panels: Mapping[str, pd.DataFrame], x: str, title: str) -> Figure:
    """Error on validation images against epochs or seconds: a panel per setting, with the controls and arms with an R.

    Every seed is a thin line, the median over seeds a thick one, which ends where any seed has diverged.

    Args:
        panels: title -> of :func:`decorlib.study.questions.gain.comparison.curves`.
        x: ``"epoch"`` or ``"seconds"``.
        title: the finding.
    """
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    fig, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, 3.3 * lines + 0.9), squeeze=False)
    for ax, (name, curves) in zip(axes.flat, panels.items(), strict=False):
        _panel(ax, curves, x)
        ax.set(title=name, xlabel=LABELS[x], yscale="log")
        ax.yaxis.set_major_locator(FixedLocator(TICKS))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_axis_off()
    for row in axes:
        row[0].set_ylabel("validation error, %")
    names = {arm: line for ax in fig.axes for line, arm in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(names.values(), names, fontsize="small", loc="outside lower center", ncols=4)
    return _titled(fig, title)


def _panel(ax: Axes, curves: pd.DataFrame, x: str) -> None:
    present, middles = set(curves["arm"]), []
    for name, style in styles().items():
        if name not in present:
            continue
        part = curves[curves["arm"] == name]
        for _, run in part.groupby("seed"):
            ax.plot(run[x], run["error"], lw=0.6, alpha=0.35, color=style["color"], linestyle=style["linestyle"])
        by_epoch = part.groupby("epoch").agg({x: "median", "error": "median", "seed": "nunique"})
        whole = by_epoch[by_epoch["seed"] == part["seed"].nunique()]
        ax.plot(whole[x], whole["error"], lw=2, markersize=4, label=name, **style)
        middles.append(whole["error"])
    # The first measurements of an arm that is slow to start would press all others together; its last are shown.
    shown, last = pd.concat(middles), max((middle.iloc[-1] for middle in middles if len(middle)), default=100.0)
    ax.set_ylim(shown.min() / 1.15, max(shown.quantile(0.9), last) * 1.3)


def differences(rows: pd.DataFrame, margin: float, title: str) -> Figure:
    """Final accuracy, an arm with an R minus each control, in points: a line per setting, simultaneous 95% intervals.

    Filled: equal seconds; hollow: equal epochs. Grey: what is too little to count.

    Args:
        rows: of :func:`decorlib.study.questions.gain.rows.table`.
        margin: of accuracy.
        title: the finding.
    """
    places = _places(rows)
    _, ax = plt.subplots(figsize=(9, 2.0 + 0.75 * len(places)))
    ax.axvspan(-100 * margin, 100 * margin, color="0.9", zorder=0)
    ax.axvline(0, color="black", lw=1)
    for _, row in rows.dropna(subset=["estimate"]).iterrows():
        _interval(ax, row, places, 100)
    # An interval of few seeds may be far wider than what it is about: it then leaves the figure at its sides.
    side = 100 * max(5 * margin, 2 * rows["estimate"].abs().max())
    ax.set(xlim=(-side, side), xlabel="points of test accuracy, with R minus control")
    return _forest(ax, places, rows, title)


def ratios(rows: pd.DataFrame, factor: float, title: str) -> Figure:
    """Time to a level with an R over each control's: a line per setting; words where runs do not get there.

    Args:
        rows: of :func:`decorlib.study.questions.gain.rows.table`, of one measure and one level for each data set.
        factor: the margin.
        title: the finding.
    """
    places = _places(rows)
    _, ax = plt.subplots(figsize=(9, 2.0 + 0.75 * len(places)))
    ax.axvspan(1 / factor, factor, color="0.9", zorder=0)
    ax.axvline(1, color="black", lw=1)
    ax.set_xscale("log")
    for _, row in rows.iterrows():
        if not pd.isna(row["estimate"]):
            _interval(ax, row, places, 1)
        missing = f"with R {row['arm never']}, {row['control']} {row['control never']} of {row['of']} never"
        if row["arm never"] or row["control never"]:
            where = (1.02, _height(row, places))
            ax.annotate(missing, where, xycoords=("axes fraction", "data"), fontsize="x-small", va="center")
    ax.xaxis.set_major_locator(FixedLocator((0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(0.1 if rows["estimate"].dropna().lt(0.2).any() else 0.2, 5)
    ax.set(xlabel=f"{rows['measure'].iloc[0]} to the level, with R over the control's")
    return _forest(ax, places, rows, title)


def _places(rows: pd.DataFrame) -> dict[tuple[str, ...], int]:
    keys = list(dict.fromkeys(rows[["network", "data", "schedule"]].itertuples(index=False, name=None)))
    return {key: i for i, key in enumerate(keys)}


def _height(row: pd.Series, places: Mapping[tuple[str, ...], int]) -> float:
    """Where a comparison stands within its setting's line: by control, then by budget."""
    step = CONTROLS.index(row["control"]) - 1 + 0.4 * (BUDGETS.index(row["budget"]) - 0.5)
    return places[row["network"], row["data"], row["schedule"]] + 0.27 * step


def _interval(ax: Axes, row: pd.Series, places: Mapping[tuple[str, ...], int], times: float) -> None:
    style = styles()[row["control"]]
    low, high = times * (row["estimate"] - row["low"]), times * (row["high"] - row["estimate"])
    ax.errorbar(
        times * row["estimate"],
        _height(row, places),
        xerr=[[max(low, 0)], [max(high, 0)]],
        **{"fmt": style["marker"], "color": style["color"], "fillstyle": FILLED[row["budget"]]},
        **{"capsize": 2, "ms": 5, "lw": 1.2},
    )


def _forest(ax: Axes, places: Mapping[tuple[str, ...], int], rows: pd.DataFrame, title: str) -> Figure:
    arms = rows.drop_duplicates(["network", "data", "schedule"])["arm"]
    labels = [f"{n}, {d}\n{s}\n'{arm}'" for (n, d, s), arm in zip(places, arms, strict=True)]
    ax.set_yticks(range(len(places)), labels, fontsize="small")
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    for control in CONTROLS:
        style = styles()[control]
        ax.plot([], [], style["marker"], color=style["color"], label=f"against {control}")
    for budget in dict.fromkeys(rows["budget"]):
        ax.plot([], [], "o", color=GREY, fillstyle=FILLED[budget], label=budget)
    ax.figure.legend(fontsize="small", loc="outside lower center", ncols=3)
    return _titled(ax.figure, title)


def _titled(fig: Figure, title: str) -> Figure:
    width = int(10 * fig.get_figwidth())  # about as many bold characters as an inch of it holds, times its inches
    fig.suptitle(textwrap.fill(title, min(width, 100)), x=0.01, ha="left", fontweight="bold", fontsize="medium")
    return fig
