"""Figures of the notebook on convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from decorlib.study.evidence.figures import PALETTE, arm_styles
from decorlib.study.questions.convolution.patches import Patches
from decorlib.study.questions.convolution.sampling_positions import SamplingLaw

Images = Sequence | np.ndarray | Tensor
DIVERGING = "RdBu_r"  # its two ends stay apart under the three colour-vision deficiencies


def spectra(specs: Sequence[Patches], records: Sequence[dict], title: str) -> Figure:
    """Eigenvalues of the held-out patches' covariance, before, after each rule, and after exact ZCA; every seed."""
    fig, ax = plt.subplots(figsize=(7.0, 3.9))
    styles = arm_styles(dict.fromkeys(spec.rule for spec in specs))
    for i, (spec, record) in enumerate(zip(specs, records, strict=True)):
        found = record["spectrum"]
        ranks, style = range(1, len(found["before"]) + 1), styles[spec.rule]
        first = spec.rule not in [earlier.rule for earlier in specs[:i]]
        if first:
            ax.plot([], [], color=style["color"], ls=style["linestyle"], label=f"after the {_called(spec.rule)} rule")
        ax.loglog(ranks, found["before"], color="black", lw=1.2, label=None if i else "patches")
        ax.loglog(ranks, found["exact"], color="0.6", lw=3, zorder=1, label=None if i else "after exact ZCA")
        ax.loglog(ranks, found["after"], color=style["color"], ls=style["linestyle"], lw=1.2)
    ax.set(xlabel="rank of the eigenvalue", ylabel="eigenvalue of the covariance", title=title)
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i].endswith("rule"))  # what is compared with comes first
    ax.legend([handles[i] for i in order], [labels[i] for i in order], loc="lower left", fontsize=9)
    return fig


def rows_of(matrices: Mapping[str, Images], kernel: int, taps: Mapping[str, int], title: str) -> Figure:
    """Chosen rows of several R (D, D) as images: one line of images per matrix, each image scaled to its own peak."""
    fig, axes = plt.subplots(len(taps), len(matrices), figsize=(7.0, 1.45 * len(taps) + 0.7), squeeze=False)
    for row, (tap, index) in enumerate(taps.items()):
        for column, (name, R) in enumerate(matrices.items()):
            ax = axes[row, column]
            _filter(ax, np.asarray(R)[index].reshape(kernel, kernel))
            if row == 0:
                ax.set_title(name, fontsize=9, fontweight="normal", loc="center")
            if column == 0:
                ax.set_ylabel(tap, fontsize=9)
    fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return fig


def filters(sets: Mapping[str, Images], title: str) -> Figure:
    """All filters (n, kh, kw) of several layers: two lines of images each."""
    count = len(next(iter(sets.values())))
    columns = -(-count // 2)
    fig, axes = plt.subplots(2 * len(sets), columns, figsize=(7.0, 1.9 * len(sets) + 0.5), squeeze=False)
    for block, (name, these) in enumerate(sets.items()):
        for i, ax in enumerate(axes[2 * block : 2 * block + 2].flat):
            ax.axis("off") if i >= count else _filter(ax, np.asarray(these[i]))
        axes[2 * block, 0].set_title(name, fontsize=9, fontweight="normal", loc="left")
    fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return fig


def _filter(ax, image: np.ndarray) -> None:
    peak = np.abs(image).max() or 1.0
    ax.imshow(image, cmap=DIVERGING, vmin=-peak, vmax=peak)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)


def sampling(errors: Mapping[int, pd.DataFrame], laws: Mapping[int, SamplingLaw], batch: int, title: str) -> Figure:
    """Error of the second moment against the positions used, one panel per kernel: trials, their RMS, the law."""
    fig, axes = plt.subplots(1, len(errors), figsize=(7.4, 3.7), sharey=True, squeeze=False)
    for ax, (kernel, table) in zip(axes[0], errors.items(), strict=True):
        law = laws[kernel]
        fractions = np.logspace(np.log10(table["fraction"].min()), 0, 60)
        counts = fractions * batch * law.positions
        ax.loglog(fractions, [law.error(batch, n) for n in counts], color="black", label="predicted")
        independent = [np.sqrt(law.total / n) / law.norm for n in counts]
        ax.loglog(fractions, independent, color="0.5", ls="--", label="if positions were independent")
        ax.loglog(table["fraction"], table["error"], ".", color=PALETTE[0], alpha=0.5, label="one batch")
        rms = table.groupby("fraction")["error"].agg(lambda e: np.sqrt((e**2).mean()))
        ax.loglog(rms.index, rms, "D", color=PALETTE[1], ms=6, label="root mean square")
        ax.set_xlabel("fraction of the positions")
        ax.set_title(f"{kernel} × {kernel} patches, {law.positions} positions", fontsize=9, fontweight="normal")
    axes[0, 0].set_ylabel("relative error of ⟨p p'⟩")
    axes[0, 0].legend(fontsize=8, loc="lower left")
    fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return fig


def fractions_in_training(layers: pd.DataFrame, accuracy: pd.DataFrame, title: str) -> Figure:
    """Correlation of each convolution's states, and test accuracy, against the fraction; every seed, also diverged."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.6))
    for depth, style in arm_styles(sorted(layers["layer"].unique())).items():
        part = layers[layers["layer"] == depth]
        left.plot(part["fraction"], part["states"], style["marker"], color=style["color"], alpha=0.5, ms=5)
        middle = part.groupby("fraction")["states"].median()
        label = f"layer {depth} (R = I: {part['patches'].median():.2f})"
        left.plot(middle.index, middle, color=style["color"], ls=style["linestyle"], label=label)
    left.set(xscale="log", xlabel="fraction of the positions", ylabel="RMS correlation left in y")
    left.set_ylim(0, 1.35 * layers["states"].max())
    left.legend(fontsize=8, loc="upper right")
    for _, run in accuracy.groupby("seed"):
        right.plot(run["fraction"], 100 * run["test_accuracy"], "o-", color=PALETTE[0], alpha=0.6, lw=1, ms=5)
    diverged = accuracy[accuracy["test_accuracy"].isna()].groupby("fraction").size()
    for fraction, count in diverged.items():
        at_bottom = {"transform": right.get_xaxis_transform(), "color": "black"}
        right.plot([fraction], [0.06], "X", ms=8, clip_on=False, **at_bottom)
        right.text(fraction, 0.1, f" {count} diverged", fontsize=8, va="bottom", **at_bottom)
    right.set(xscale="log", xlabel="fraction of the positions", ylabel="test accuracy, %")
    right.set_xlim(accuracy["fraction"].min() / 1.5, accuracy["fraction"].max() * 1.5)
    fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return fig


def borders(shift: Images, layers: pd.DataFrame, title: str) -> Figure:
    """Left, the mean patch with zeros minus with background; right, what R leaves at positions without padding."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.4), width_ratios=(1, 1.35))
    image = np.asarray(shift)
    drawn = left.imshow(image, cmap="viridis", vmin=0)
    left.set(xticks=range(len(image)), yticks=range(len(image)), xlabel="tap, column", ylabel="tap, row")
    left.set_title("shift of the mean patch", fontsize=9, fontweight="normal")
    left.grid(visible=False)
    fig.colorbar(drawn, ax=left, shrink=0.8)
    columns = {"left by R of all": "R of all positions", "left by R of the others": "R of those without padding"}
    for (column, label), style in zip(columns.items(), arm_styles(columns).values(), strict=True):
        offset = -0.08 if column == "left by R of all" else 0.08
        x = layers["layer"] + offset
        right.plot(x, layers[column], style["marker"], color=style["color"], label=label, alpha=0.6, ms=6)
    touched = layers.groupby("layer")["touched"].first()
    right.set_xticks(list(touched.index), [f"layer {i}\n{share:.0%} padded" for i, share in touched.items()])
    right.set_xlim(touched.index.min() - 0.5, touched.index.max() + 0.5)
    right.set_ylim(0, 1.45 * layers[list(columns)].max(axis=None))
    right.set_ylabel("RMS correlation left")
    right.set_title("at positions without padding", fontsize=9, fontweight="normal")
    right.legend(fontsize=8, loc="upper center", ncols=2, columnspacing=0.8, handletextpad=0.2)
    fig.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    return fig


def cost(table: pd.DataFrame, title: str) -> Figure:
    """Time of a step over that of the plain convolution: measured as marks and lines, counted work as thin dots."""
    fig, ax = plt.subplots(figsize=(7.0, 4.2))
    names = [name for name in dict.fromkeys(table["variant"]) if name != "plain"]
    for name, style in arm_styles(names).items():
        part = table[table["variant"] == name]
        ax.plot(part["channels"], part["measured"], marker=style["marker"], color=style["color"], label=name)
        ax.plot(part["channels"], part["counted"], ls=":", color=style["color"], lw=1.5)
    ax.plot([], [], color="black", label="measured time")
    ax.plot([], [], color="black", ls=":", label="counted work")
    ax.axhline(1, color="black", lw=1)
    sizes = sorted(table["channels"].unique())
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(sizes, sizes)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set(xlabel="channels, in and out", ylabel="times a step of the plain convolution", title=title)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def forms(table: pd.DataFrame, features: int, title: str) -> Figure:
    """Time of a step of R, factored and dense, against the positions that it learns from."""
    fig, ax = plt.subplots(figsize=(7.0, 3.4))
    for name, style in arm_styles(dict.fromkeys(table["form"])).items():
        part = table[table["form"] == name]
        ax.loglog(
            part["positions"],
            part["ms"],
            marker=style["marker"],
            ls=style["linestyle"],
            color=style["color"],
            label=name,
        )
    ax.axvline(features, color="black", lw=1, label="as many as features: predicted crossing")
    sizes = sorted(table["positions"].unique())
    ax.set_xticks(sizes, sizes)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.set(xlabel="positions that a step learns from", ylabel="milliseconds", title=title)
    ax.legend(fontsize=9)
    return fig


def _called(rule: str) -> str:
    """A rule's name for a reader, who has not met the 2024 notebook's rule under its key."""
    return "2024" if rule == "notebook" else rule
