"""Gaussians whose second moment is known: what a rule does to y can be compared with what it should do.

Features differ from each other here (unequal variances, unequal correlations): on data whose features are alike, most
differences between learning rules cannot be seen. Everything is float64.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float64
from torch import Tensor

from decorlib.rules.moments import Moments
from decorlib.rules.rules import Rule
from decorlib.study.experiments import stability

Matrix = Float64[Tensor, "features features"]


def covariance(features: int, condition: float = 30.0, seed: int = 0) -> Matrix:
    """A random positive definite S: eigenvalues evenly spaced in logarithm, trace D, random axes.

    Args:
        features: D, at least 2.
        condition: largest eigenvalue over smallest, at least 1. Default: 30.
        seed: of the axes. Default: 0.
    """
    if features < 2 or condition < 1:
        raise ValueError(f"features is {features} and condition {condition}; they must be at least 2 and 1")
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(features, features, dtype=torch.float64, generator=generator))[0]
    values = torch.logspace(0, -math.log10(condition), features, dtype=torch.float64)
    return axes * (values * features / values.sum()) @ axes.T


def mixing(features: int, seed: int = 0) -> Matrix:
    """A random matrix, neither symmetric nor orthogonal, far enough from singular to be inverted: 2 I + N(0, 1)."""
    noise = torch.randn(features, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise + 2 * torch.eye(features, dtype=torch.float64)


def states_of(S: Matrix) -> Float64[Tensor, "features features"]:
    """D samples whose second moment is S to rounding: a batch that is the whole population."""
    return torch.linalg.cholesky(S).T * len(S) ** 0.5


def draws(S: Matrix, n: int, generator: torch.Generator, mean: Tensor | None = None) -> Tensor:
    """n samples of the Gaussian with covariance S and that mean (default: zero), (n, D)."""
    x = torch.randn(n, len(S), dtype=torch.float64, generator=generator) @ torch.linalg.cholesky(S).T
    return x if mean is None else x + mean


def whiteness(X: Tensor, condition: bool = True) -> dict[str, float | None]:
    """What is left in a second moment X = <y y'>, in measures that mean the same for every rule.

    * ``cosine``: root mean square of X_ij / sqrt(X_ii X_jj) over i != j: 0 where nothing is correlated about zero.
    * ``off_diagonal``: sum of squared covariances over sum of squared variances.
    * ``variance_error``: mean of abs(X_ii - 1); ``largest_variance``: the largest X_ii.
    * ``condition``: largest eigenvalue over smallest among features that are alive; None where X is singular
      (or where it was not asked for: in large matrices it is most of the work).

    Features that are always zero have no correlation and are left out.
    """
    v = X.diagonal()
    alive = v > v.max() * torch.finfo(v.dtype).eps
    X, v = X[alive][:, alive], v[alive]
    D = len(v)
    if D < 2:
        raise ValueError(f"{D} features are alive; correlations need two")
    off, diagonal = float(X.square().sum() - v.square().sum()), float(v.square().sum())
    cosines = X / torch.outer(v, v).sqrt()
    found = {
        "cosine": math.sqrt(max(float(cosines.square().sum()) - D, 0.0) / (D * (D - 1))),
        "off_diagonal": max(off, 0.0) / diagonal,
        "variance_error": float((v - 1).abs().mean()),
        "largest_variance": float(v.max()),
        "condition": None,
    }
    if condition:
        values = torch.linalg.eigvalsh(X)
        if values[0] > D * torch.finfo(v.dtype).eps * values[-1]:
            found["condition"] = float(values[-1] / values[0])
    return found


def step(rule: Rule, R: Tensor, x: Tensor, lr: float) -> Tensor:
    """R after one step on the batch x, from the rule alone: no layer and no optimizer."""
    y = x @ R.mT
    dense = False if rule.needs_rate and rule.reads else None
    return R - lr * rule.direction(Moments.of(y, x if rule.reads else None, dense), R, lr)


def trajectory(rule: Rule, S: Matrix, lr: float, steps: int, R: Tensor | None = None) -> list[Tensor]:
    """X = R S R' at every step, start included, where each batch is the whole population; shorter if it blows up."""
    x, R = states_of(S), torch.eye(len(S), dtype=S.dtype) if R is None else R
    path = [R @ S @ R.mT]
    for _ in range(steps):
        R = step(rule, R, x, lr)
        X = R @ S @ R.mT
        if not bool(X.isfinite().all()):
            break
        path.append(X)
    return path


def equivariance(rule: Rule, S: Matrix, M: Matrix, lr: float, steps: int) -> float:
    """Largest difference, along the way, between X of the inputs x from R = I and of M x from R = M^-1.

    Both start with the same y. An equivariant rule sees y alone, so the difference stays at rounding; inf: one of the
    two blew up.
    """
    ours = trajectory(rule, S, lr, steps)
    mixed = trajectory(rule, M @ S @ M.mT, lr, steps, torch.linalg.inv(M))
    if min(len(ours), len(mixed)) <= steps:
        return math.inf
    return max(float((a - b).abs().max()) for a, b in zip(ours, mixed, strict=True))


def is_stable(path: list[Tensor], steps: int) -> bool:
    """Finite to the end, and :func:`decorlib.study.experiments.stability.still_decorrelates` there."""
    if len(path) <= steps:
        return False
    return stability.still_decorrelates(*(whiteness(X, condition=False) for X in (path[0], path[-1])))


def predicted_edge(rule: Rule, S: Matrix, lr: float = 1e-6) -> float:
    """2 / (largest eigenvalue, in absolute value, of what multiplies R = I in the first step).

    The bound of a linear system that would keep that matrix. Exact for the whitening rule where it is below 1; a
    guess from the start alone for the others. ``lr`` only matters to rules that are not linear in it.
    """
    eye, x = torch.eye(len(S), dtype=S.dtype), states_of(S)
    dense = False if rule.needs_rate and rule.reads else None
    H = rule.direction(Moments.of(x, x if rule.reads else None, dense), eye, lr)
    return 2 / float(torch.linalg.eigvals(H).abs().max())


def largest_stable(rule: Rule, S: Matrix, steps: int = 200, tolerance: float = 0.002, top: float = 1e3) -> float:
    """The largest rate at which a rule is stable on the population.

    Args:
        rule: the rule; starts at R = I.
        S: second moment.
        steps: length of each trial. Default: 200.
        tolerance: relative width of the last bracket. Default: 0.002.
        top: stop there and call it the edge: the rule has none that matters. Default: 1e3.
    """

    def stable(rate: float) -> bool:
        return is_stable(trajectory(rule, S, rate, steps), steps)

    return stability.largest_stable(stable, 4 * predicted_edge(rule, S), tolerance, top)[0]


def whitened_mean(S: Matrix, mean: Float64[Tensor, " features"]) -> float:
    """||R m||^2 = s / (1 + s), s = m' S^-1 m, where R whitens the second moment about zero, S + m m'.

    That is what is left of a mean that nobody subtracted; along it the covariance of y has the eigenvalue 1 / (1 + s).
    """
    s = float(mean @ torch.linalg.solve(S, mean))
    return s / (1 + s)


def remaining_means(rule: Rule, S: Matrix, means: list[Tensor], steps: int = 1500) -> list[float]:
    """||R m||^2 after a rule has followed the population of a Gaussian with mean m, at a quarter of its predicted edge.

    One problem per mean, side by side. For rules that are linear in their rate.
    """
    moments = [S + torch.outer(mean, mean) for mean in means]
    x = torch.stack([states_of(moment) for moment in moments])
    lr = torch.tensor([predicted_edge(rule, moment) / 4 for moment in moments], dtype=S.dtype)[:, None, None]
    R = torch.eye(len(S), dtype=S.dtype).expand_as(x)
    for _ in range(steps):
        R = R - lr * rule.direction(Moments.of(x @ R.mT), R)
    return (R @ torch.stack(means).unsqueeze(-1)).square().sum((-2, -1)).tolist()
