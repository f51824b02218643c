"""Sliders on a two-dimensional Gaussian: what steps, kappa and rate do to a cloud of points and to its ellipse.

In JupyterLab :func:`explore` shows sliders; wherever a notebook is executed unattended (``make reproduce``, the checks
of stored outputs) or widgets are not installed it shows the same figure once, at its starting values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from decorlib.rules.rules import KappaRule
from decorlib.study.evidence.figures import PALETTE, show
from decorlib.study.experiments import gaussians

S = torch.tensor([[2.0, 0.9], [0.9, 0.6]], dtype=torch.float64)  # unequal variances, correlation 0.82
BLOWN_UP = 1e6


@dataclass(frozen=True)
class Path:
    """R after the steps that could be taken, correlation and variances at each, and the step that blew up or None."""

    R: Tensor
    correlation: list[float]
    variances: list[tuple[float, float]]
    diverged_at: int | None


def walk(steps: int, kappa: float, rate: float) -> Path:
    """The kappa rule on the population of the Gaussian, from R = I."""
    rule, x, R = KappaRule(kappa=kappa), gaussians.states_of(S), torch.eye(2, dtype=torch.float64)
    correlation, variances = [], []
    for step in range(steps + 1):
        X = R @ S @ R.mT
        if not bool(X.isfinite().all()) or float(X.abs().max()) > BLOWN_UP:
            return Path(R, correlation, variances, step)
        v = X.diagonal()
        correlation.append(float(X[0, 1] / v.prod().sqrt()))
        variances.append((float(v[0]), float(v[1])))
        last, R = R, gaussians.step(rule, R, x, rate)
    return Path(last, correlation, variances, None)


def ellipse(X: Tensor, deviations: float = 2.0, points: int = 200) -> np.ndarray:
    """Points (2, n) of the curve u' X^-1 u = deviations^2."""
    angle = torch.linspace(0, 2 * torch.pi, points, dtype=X.dtype)
    values, vectors = torch.linalg.eigh(X)
    return (deviations * vectors * values.clamp(min=0).sqrt() @ torch.stack((angle.cos(), angle.sin()))).numpy()


def draw(steps: int = 30, kappa: float = 0.5, rate: float = 0.2, seed: int = 0) -> tuple[Figure, str]:
    """The cloud x, the cloud y = R x and the way there; returns the figure and its alternative text."""
    path = walk(steps, kappa, rate)
    x = gaussians.draws(S, 400, torch.Generator().manual_seed(seed))
    fig, axes = plt.subplots(1, 3, figsize=(9.5, 3.3))
    if path.diverged_at is None:
        y, X = x @ path.R.mT, path.R @ S @ path.R.mT
        end = f"correlation {path.correlation[-1]:.2f}, variances {X[0, 0]:.2f} and {X[1, 1]:.2f}"
        _cloud(axes[1], y.numpy(), ellipse(X), PALETTE[1], f"y = R x after {steps} steps")
    else:
        end = f"diverged at step {path.diverged_at}"
        axes[1].text(0.5, 0.5, end, ha="center", transform=axes[1].transAxes)
        axes[1].set(title="y = R x is not finite any more", xticks=[], yticks=[])
    _cloud(axes[0], x.numpy(), ellipse(S), PALETTE[0], "x")
    axes[2].plot(path.correlation, color="black", label="correlation")
    for i in (0, 1):
        axes[2].plot([v[i] for v in path.variances], "--", color=PALETTE[i], label=f"variance of y{i + 1}")
    axes[2].set(title="the way there", xlabel="step", ylim=(-0.3, 3))
    fig.suptitle(end, x=0.01, ha="left", fontweight="bold", fontsize="medium")
    axes[2].legend(fontsize="small", loc="upper right")
    start = path.correlation[0]
    alt = (
        f"A cloud of points with correlation {start:.2f}, and the same points multiplied by R after {steps} steps of "
        f"the kappa rule with kappa {kappa:g} and rate {rate:g}: {end}."
    )
    return fig, alt


def explore(steps: int = 30, kappa: float = 0.5, rate: float = 0.2) -> None:
    """Sliders for steps, kappa and rate; without a reader at the keyboard, the figure at these values."""
    if not _attended():
        fig, alt = draw(steps, kappa, rate)
        show(fig, alt=alt, name="cloud")
        return
    import ipywidgets as widgets
    from IPython.display import display

    sliders = {
        "steps": widgets.IntSlider(steps, 0, 200, description="steps", continuous_update=False),
        "kappa": widgets.FloatSlider(kappa, min=0, max=1, step=0.05, description="kappa", continuous_update=False),
        "rate": widgets.FloatLogSlider(rate, min=-3, max=1, step=0.05, description="rate", continuous_update=False),
    }
    output = widgets.interactive_output(_redraw, sliders)
    display(widgets.VBox([widgets.HBox(list(sliders.values())), output]))


def _redraw(steps: int, kappa: float, rate: float) -> None:
    fig, alt = draw(steps, kappa, rate)
    show(fig, alt=alt, name="cloud")


def _attended() -> bool:
    if os.environ.get("DECORLIB_BATCH") == "1" or os.environ.get("DECORLIB_PROGRESS") == "off":
        return False
    try:
        import ipywidgets  # noqa: F401
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def _cloud(ax, points: np.ndarray, curve: np.ndarray, color, title: str) -> None:
    ax.plot(*points.T, ".", ms=2, alpha=0.5, color=color)
    ax.plot(*curve, color=color, lw=2)
    circle = ellipse(torch.eye(2, dtype=torch.float64))
    ax.plot(*circle, ":", color="black", lw=1)
    ax.set(title=title, xlim=(-5, 5), ylim=(-5, 5), aspect="equal", xlabel="first feature", ylabel="second feature")
