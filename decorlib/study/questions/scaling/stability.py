"""What the inputs' scale decides: the initial loss, and how large a step of R may be before it diverges.

Without a target variance the 2024 rule is dR = X R, so on one fixed batch every step gives (I - lr X) X (I - lr X):
a polynomial of X, which keeps its eigenvectors and moves each eigenvalue on its own,

    u <- u (1 - u)^2,    u = lr * lambda.

It shrinks for 0 < u < 2, stays at u = 2 and grows for u > 2, so R diverges exactly where lr > 2 / lambda_max. Batches
that change blur the edge. With a target t the factor in front of R is I - N + N X, N = diag(t / v): the trace of N X is
t D whatever the scale of the inputs, so that the largest rate hardly depends on it (but see nearly dead pixels).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from scipy.linalg import eigh
from torch import Tensor

from decorlib.data.inputs import SCALINGS, scale
from decorlib.layers.decorrelation import Decorrelation
from decorlib.metrics import effective_rank, second_moment
from decorlib.rules.moments import Moments
from decorlib.rules.rules import Rule, SeedRule
from decorlib.study.evidence.figures import arm_styles
from decorlib.study.experiments.experiment import Experiment, arrays
from decorlib.study.experiments.stability import bounded, largest_stable

#: Ways to take the mean away, as options of a layer. "running" starts at 0 and needs some 20 batches to get near.
CENTRINGS: dict[str, tuple[tuple[str, object], ...]] = {
    "none": (),
    "batch mean": (("center", "batch"),),
    "running mean": (("center", "running"),),
    "average of all batches": (("center", "running"), ("momentum", None)),
    "learned bias, mean": (("center", "bias"),),
    "learned bias, sum": (("center", "bias"), ("bias_reduction", "sum")),
}


@dataclass(frozen=True)
class Search:
    """A search for the largest stable rate of R alone under the 2024 rule.

    Args:
        scaling: one of :data:`decorlib.data.inputs.SCALINGS`.
        factor: multiplies the scaled inputs. Default: 1.0.
        demean: subtract the mean of each input. Default: False.
        variance: target t of the rule, or None. Default: None.
        dead_variance: the rule's guard, or floor. Default: 1e-8, the 2024 notebook's.
        images: digits used. Default: 256.
        batch_size: digits per step, taken in turn; 0: all of them, one fixed batch. Default: 0.
        steps: steps that a stable run must survive. Default: 20.
        tolerance: relative width of the bracket at which the search ends. Default: 0.01.
        seed: which digits. Default: 0.
    """

    scaling: str = "notebook"
    factor: float = 1.0
    demean: bool = False
    variance: float | None = None
    dead_variance: float = 1e-8
    images: int = 256
    batch_size: int = 0
    steps: int = 20
    tolerance: float = 0.01
    seed: int = 0

    def batches(self) -> list[Tensor]:
        """The batches, (B, D) each; digits that fill no batch are left out."""
        spec = Experiment(train_size=self.images, scaling=self.scaling, demean_inputs=self.demean, seed=self.seed)
        x = arrays(spec)[0] * self.factor
        size = self.batch_size or len(x)
        if size > len(x):
            raise ValueError(f"batch_size = {size} is more than images = {len(x)}")
        return [batch for batch in x.split(size) if len(batch) == size]


def largest_stable_rate(search: Search) -> dict:
    """Bisect the rate of R; for :func:`decorlib.study.sweep`.

    Returns:
        ``rate``, the largest that was stable; ``unstable``, the smallest that was not; ``lambda_max`` of what
        multiplies R in the first step (the largest over batches), X where there is no target; ``predicted``, that is
        2 / lambda_max; ``input_lambda_max``, of <x x'> over all images; ``tries``.
    """
    rule = SeedRule(variance=search.variance, dead_variance=search.dead_variance)
    batches = search.batches()
    top = max(sharpness(batch, search.variance, search.dead_variance) for batch in batches)
    x = torch.cat(batches)
    tries = 0

    def stable(rate: float) -> bool:
        nonlocal tries
        tries += 1
        return is_stable(batches, rule, rate, search.steps)

    # No eigenvalue of X exceeds its trace: this start knows nothing of lambda_max, which is what is being tested.
    low, high = largest_stable(stable, 0.1 / float(x.square().sum(1).mean()), search.tolerance)
    return {
        "rate": low,
        "unstable": high,
        "lambda_max": top,
        "predicted": 2 / top,
        "input_lambda_max": sharpness(x),
        "tries": tries,
    }


def is_stable(batches: list[Tensor], rule: Rule, rate: float, steps: int) -> bool:
    """Whether so many steps of R from the identity, over the batches in turn, leave the loss finite and bounded."""

    def losses() -> Iterator[float]:
        R = torch.eye(batches[0].shape[1], dtype=batches[0].dtype)
        for step in range(steps):
            x = batches[step % len(batches)]
            moments = Moments.of(x @ R.T, x)
            yield float(rule.loss(moments))
            R = R - rate * rule.direction(moments, R, rate)
        yield float(rule.loss(Moments.of(batches[0] @ R.T, batches[0])))

    return bounded(losses(), max(float(rule.loss(Moments.of(x, x))) for x in batches))


def sharpness(x: Tensor, variance: float | None = None, dead_variance: float = 1e-8) -> float:
    """Largest eigenvalue of what multiplies R in the first step of 2024: X without a target, else I - N + N X."""
    if variance is None:
        return largest_eigenvalue(second_moment(x if len(x) > x.shape[1] else _transposed(x)))
    X = second_moment(x)
    v = X.diagonal()
    n = torch.where(v < dead_variance, torch.ones_like(v), variance / v)
    root = n.sqrt()  # N X has the eigenvalues of the symmetric root(N) X root(N), and N commutes with N
    return largest_eigenvalue(torch.diag(1 - n) + root[:, None] * X * root)


def largest_eigenvalue(A: Tensor) -> float:
    """Of a symmetric matrix. (Not by Lanczos: with 1 - n down to -4e6 in the same spectrum it does not converge.)"""
    last = len(A) - 1
    return float(eigh(A.double().numpy(), eigvals_only=True, subset_by_index=[last, last])[0])


def _transposed(x: Tensor) -> Tensor:
    """States whose second moment x x' / B has the eigenvalues of <x x'> and is smaller, for B < D."""
    return x.T * (x.shape[1] / len(x)) ** 0.5


def loss_law(x: Tensor) -> dict[str, float]:
    """The initial loss without a target, and what it is made of: loss = rms^4 / participation ratio, exactly.

    The loss is sum lambda^2 / D^2, the participation ratio (sum lambda)^2 / sum lambda^2, and sum lambda = D rms^2.
    """
    X = second_moment(x)
    return {
        "rms": math.sqrt(float(X.diagonal().mean())),
        "participation": effective_rank(x),
        "loss": float(X.square().mean()),
        "off-diagonal": float((X.square().sum() - X.diagonal().square().sum()) / X.numel()),
        "with target 1": float((X - torch.eye(len(X), dtype=X.dtype)).square().mean()),
        "lambda_max": float(torch.linalg.eigvalsh(X)[-1]),
    }


def slopes(scales: list[float], losses: list[float]) -> list[float]:
    """Slopes of the loss between neighbouring scales on logarithmic axes."""
    pairs = list(zip(scales, losses, strict=True))
    return [math.log(b[1] / a[1]) / math.log(b[0] / a[0]) for a, b in pairwise(pairs)]


def learned_bias(batches: list[Tensor], rate: float, reduction: str, steps: int) -> dict[str, float]:
    """How much of the mean a learned bias leaves after so many steps, R standing still: predicted (1 - lr w)^steps.

    The gradient of b is the mean of y (w = 1) or its sum over the batch (w = B), and the mean of y is that of x plus b.

    Args:
        batches: (B, D) each, taken in turn.
        rate: of the bias, in the 2024 notebook that of R.
        reduction: ``"mean"`` or ``"sum"``.
        steps: steps of plain SGD.
    """
    layer = Decorrelation(batches[0].shape[1], eta=1.0, center="bias", bias_reduction=reduction)
    optimizer = torch.optim.SGD([layer.bias], lr=rate)
    for step in range(steps):
        layer(batches[step % len(batches)])
        layer.update()
        optimizer.step()
    mean = torch.cat(batches).mean(0)
    left = float((mean + layer.bias.detach()).norm() / mean.norm())
    weight = len(batches[0]) if reduction == "sum" else 1
    return {"left": left, "predicted": (1 - rate * weight) ** steps, "half after steps": math.log(2) / (rate * weight)}


def laws(images: Tensor, scalings: Sequence[str] = SCALINGS) -> pd.DataFrame:
    """:func:`loss_law` of the images in every scaling, as it is and demeaned; with what it predicts and by how much."""
    rows = {}
    for how in scalings:
        x = scale(images, how, reference=images).flatten(1)
        rows[how, "as it is"] = loss_law(x)
        if how not in ("feature", "centred"):  # these have no mean
            rows[how, "demeaned"] = loss_law(x - x.mean(0))
    table = pd.DataFrame(rows).T.rename_axis(["scaling", "mean"])
    table["rms^4 / participation"] = table["rms"] ** 4 / table["participation"]
    return table


def search_table(searches: Mapping[str, Sequence[Search]], found: Sequence[dict]) -> pd.DataFrame:
    """One row per search: series, scaling, largest stable rate, and the predictions it is compared with."""
    pairs = [(series, search) for series, these in searches.items() for search in these]
    rows = [
        {"series": series, "scaling": search.scaling + (", demeaned" if search.demean else ""), "seed": search.seed}
        | {name: result[name] for name in ("rate", "lambda_max", "predicted", "input_lambda_max")}
        for (series, search), result in zip(pairs, found, strict=True)
    ]
    table = pd.DataFrame(rows)
    return table.assign(**{"rate / predicted": table["rate"] / table["predicted"]})


def draw_laws(table: pd.DataFrame, factors: Sequence[float], parts: Mapping[str, Sequence[float]]):
    """Left: initial loss of every scaling against its rms, on lines of slope 4. Right: loss against a factor."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9))
    for (kind, rows), style in zip(table.groupby("mean"), arm_styles(["a", "b"]).values(), strict=True):
        left.loglog(rows["rms"], rows["loss"], style["marker"], color=style["color"], label=kind)
    # Scalings that differ in a constant are one point once they are demeaned.
    for _, same in table.groupby([table["rms"].map("{:.2g}".format), table["loss"].map("{:.2g}".format)]):
        names = ", ".join(same.index.get_level_values("scaling"))
        place = same["rms"].iloc[0], same["loss"].iloc[0]
        left.annotate(names, place, xytext=(4, -3), textcoords="offset points", fontsize=7)
    reach = torch.logspace(-1.1, 0.5, 20)
    for rank in (1, 10, 100):
        left.loglog(reach, reach**4 / rank, color="grey", lw=0.8)
        left.text(float(reach[0]), float(reach[0] ** 4 / rank), f"ratio {rank} ", fontsize=7, ha="right")
    left.set(xlabel="root mean square of the inputs", ylabel="initial loss, no target")
    left.legend()
    for (name, losses), style, size in zip(
        parts.items(), arm_styles(parts).values(), (15, 10, 5)[-len(parts) :], strict=True
    ):
        # One inside the other, open but for the smallest: they lie on each other.
        marks = _dots(style) | {"ms": size, "mew": 1.5, "mfc": style["color"] if size == 5 else "none"}
        right.loglog(factors, losses, label=name, ls="none" if name != "with target 1" else "-", **marks)
    first = next(iter(parts.values()))
    right.loglog(factors, [first[0] * (f / factors[0]) ** 4 for f in factors], "k-", lw=0.8, label="slope 4")
    right.set(xlabel="factor on the 2024 notebook's inputs", ylabel="initial loss")
    right.set_xticks(factors, [f"{factor:g}" for factor in factors])
    right.minorticks_off()
    right.legend()
    return fig


def draw_edges(table: pd.DataFrame):
    """Largest stable rate against the largest eigenvalue of the inputs, one mark per search; the line 2 / lambda."""
    fig, ax = plt.subplots(figsize=(8.5, 4.4))
    for (series, rows), style in zip(table.groupby("series", sort=False), arm_styles(range(6)).values(), strict=False):
        ax.loglog(rows["input_lambda_max"], rows["rate"], label=series, ls="none", **_dots(style))
    ends = [table["input_lambda_max"].min() / 1.5, table["input_lambda_max"].max() * 1.5]
    ax.loglog(ends, [2 / end for end in ends], "k-", lw=1, label="predicted, 2 / λ")
    for _, row in table[table["seed"] == table["seed"].min()].drop_duplicates("scaling").iterrows():
        where = (row["input_lambda_max"], 2 / row["input_lambda_max"])
        ax.annotate(row["scaling"], where, xytext=(3, 7), textcoords="offset points", rotation=30, fontsize=8)
    ax.set(xlabel="largest eigenvalue λ of ⟨x x'⟩ of the inputs", ylabel="largest stable rate of R")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def draw_grids(tables: Mapping[str, pd.DataFrame]):
    """Tables as maps beside each other, each cell with its number; "diverged" where there is none."""
    fig, axes = plt.subplots(1, len(tables), figsize=(5.6 * len(tables), 3.4))
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        values = table.astype(float)
        sns.heatmap(values, ax=ax, cmap="cividis_r", cbar=False, annot=True, fmt=".2g", linewidths=1)
        for i, j in zip(*values.isna().to_numpy().nonzero(), strict=True):
            ax.text(j + 0.5, i + 0.5, "diverged", ha="center", va="center", fontsize=7)
        ax.set(title=title, xlabel="", ylabel="")
        ax.tick_params(axis="x", rotation=25)
    return fig


def _dots(style: Mapping) -> dict:
    return {"color": style["color"], "marker": style["marker"], "ms": 6}
