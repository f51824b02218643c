"""Data for the tests of rules: samples with an exact, non-exchangeable second moment, and a loop that steps a rule.

Non-exchangeable: on data whose features are alike, the published bugs are invisible.
"""

import torch

from decorlib.rules.moments import Moments

D = 6


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def covariance(features=D, seed=1, condition=8.0):
    """A random positive definite S with unequal diagonal and eigenvalues from 2/condition to 2."""
    Q = torch.linalg.qr(normal(features, features, seed=seed))[0]
    values = torch.logspace(0, -1, features, base=condition, dtype=torch.float64) * 2
    return Q * values @ Q.T


def samples_of(S):
    """D samples whose second moment is S to rounding."""
    return torch.linalg.cholesky(S).T * len(S) ** 0.5


def stream(batch, steps, features=D, seed=2):
    """``steps`` different batches of Gaussian samples of ``covariance()``."""
    L = torch.linalg.cholesky(covariance(features))
    return [normal(batch, features, seed=seed + 1000 * step) @ L.T for step in range(steps)]


def moments(R, x, dense=None):
    return Moments.of(x @ R.mT, x, dense)


def step(rule, R, x, lr):
    return R - lr * rule.direction(moments(R, x, False if rule.needs_rate and rule.reads else None), R, lr)


def run(rule, x, lr, steps, R=None):
    """R after ``steps`` full-batch steps on x."""
    R = torch.eye(x.shape[-1], dtype=x.dtype) if R is None else R
    for _ in range(steps):
        R = step(rule, R, x, lr)
    return R


def moment_of(R, S):
    """X = R S R'."""
    return R @ S @ R.mT


def distance(a, b):
    """Largest absolute difference."""
    return float((a - b).detach().abs().max())


def off(X):
    return X - torch.diag_embed(X.diagonal(dim1=-2, dim2=-1))
