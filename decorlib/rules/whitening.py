"""Whitening matrices in closed form: the references that a learned R is compared with, and a rule that uses them.

For a positive definite second moment S = <x x'>, each function returns R with R S R' = I. They differ by a rotation:
ZCA is the symmetric one and changes x least; PCA gives principal axes, largest first; Cholesky is lower triangular, so
that y_i depends on x_1 .. x_i only. Source: Kessy, Lewin & Strimmer (2018), "Optimal whitening and decorrelation".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from decorlib.rules.moments import Moments
from decorlib.rules.rules import Matrix, Rule, WhiteningRule, check_range


def shrink(S: Matrix, shrinkage: float) -> Matrix:
    """(1 - a) S + a (tr S / D) I: keeps the trace and bounds the condition number; needed where batch < features."""
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; it must lie in [0, 1] (0: S as it is, 1: only its mean variance)")
    level = S.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    return torch.lerp(S, level * eye, shrinkage)


def zca(S: Matrix) -> Matrix:
    """S^(-1/2), the symmetric whitening matrix, by eigendecomposition."""
    values, vectors = _eigen(S)
    return vectors * values.rsqrt().unsqueeze(-2) @ vectors.mT


def pca(S: Matrix) -> Matrix:
    """L^(-1/2) U' for S = U L U': whitened principal components, largest variance first, largest entry of a row > 0."""
    values, vectors = _eigen(S)
    rows = (vectors * values.rsqrt().unsqueeze(-2)).mT.flip(-2)
    # eigh leaves the signs open; without a convention two machines would disagree.
    largest = rows.abs().argmax(-1, keepdim=True)
    return rows * rows.gather(-1, largest).sign()


def cholesky(S: Matrix) -> Matrix:
    """The inverse of the lower Cholesky factor of S: Gram-Schmidt in the order of the features."""
    _check_finite(S)
    factor, info = torch.linalg.cholesky_ex(S)
    if info.any():
        raise ValueError(_SINGULAR.format("Cholesky factor does not exist"))
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def newton_schulz(S: Matrix, steps: int = 20) -> Matrix:
    """S^(-1/2) by matrix products only: P <- P (3 I - S_N P^2) / 2 from P = I, with S_N = S / tr S.

    The smallest eigenvalue l of S_N needs about log_1.5(l^(-1/2)) steps and a few more, and with fewer the result
    under-whitens: even for white S, 1.5^steps >= sqrt(D) is needed. Source: IterNorm, Huang et al. (2019).
    Their P <- (3 P - P^3 S_N) / 2 gives the same iterates in exact arithmetic, but rounding errors grow in it from
    step to step: at a condition number of 100 it holds nothing but noise after 20 steps, in float64. Here Y = S_N P is
    carried along (Higham 2008, "Functions of Matrices", chapter 6), which is stable, at the same three products a step.

    Args:
        S: positive definite.
        steps: iterations. Default: 20, enough for a condition number of about 1e4 at D = 100.

    Raises:
        ValueError: for S without any variance. One that is singular otherwise is whitened as far as ``steps`` go.
    """
    _check_finite(S)
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    if not (trace > 0).all():
        raise ValueError(_SINGULAR.format(f"trace {trace.min().item():.3g}"))
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    P, Y = eye, S / trace
    for _ in range(steps):
        T = 1.5 * eye - 0.5 * (P @ Y)
        P, Y = T @ P, Y @ T
    return P / trace.sqrt()


_SINGULAR = "{}: the second moment is singular. Use shrinkage > 0, more samples than features, or drop dead features"


def _check_finite(S: Matrix) -> None:
    # eigh would say that it did not converge, and Newton-Schulz would hand on the NaN.
    if not S.isfinite().all():
        raise ValueError(
            f"the second moment is non-finite: the inputs are too large to be squared in {S.dtype} (its largest number "
            f"is {torch.finfo(S.dtype).max:.1e}), or the running mean has followed such a batch: scale the inputs, and "
            "call reset_parameters() on the layer"
        )


def _eigen(S: Matrix) -> tuple[Tensor, Tensor]:
    _check_finite(S)
    values, vectors = torch.linalg.eigh(S)
    floor = values[..., -1:] * S.shape[-1] * torch.finfo(S.dtype).eps
    if (values <= floor).any():
        raise ValueError(_SINGULAR.format(f"smallest eigenvalue {values.min().item():.3g}"))
    return values, vectors


@dataclass(frozen=True)
class ExactWhitening(Rule):
    """The whitening matrix of the inputs in closed form, put in place of R: dR = R - W with W S W' = I, S = <x x'>.

    Source: Kessy, Lewin & Strimmer (2018); with plain SGD on the weights it is FOOF (Benzing 2022): the effective
    weight moves by -lr dL/dA S^-1, whatever the kind. Under Adam the kinds differ.

    .. note:: A reference, not a local rule: step it with lr = 1 (a smaller rate moves R part of the way), and refresh
       it every few steps by the layer's ``update_every``.

    Loss: sum (X - I)^2 / D^2, of the states that the R before made.

    Args:
        kind: ``"zca"``, ``"pca"`` or ``"cholesky"``; they differ by a rotation. Default: zca.
        solver: ``"eigh"``, or ``"newton_schulz"`` (zca only). Default: eigh.
        shrinkage: a in S <- (1 - a) S + a (tr S / D) I, in [0, 1]; above 0 wherever a batch may have fewer samples
            than features, or features may be dead. Default: 0.01.
        momentum: weight of the new batch in a running average of S, in (0, 1]; 1 uses the batch alone. The average is
            kept by the layer; the first batch counts in full. Default: 1.0.

    Raises:
        ValueError: for a hyperparameter out of its range; from ``direction``, where S is singular.

    Example::

        >>> x = torch.randn(64, 10)
        >>> R, rule = torch.eye(10), ExactWhitening(shrinkage=0.0)
        >>> R = R - rule.direction(Moments.of(x @ R.T, x), R)
        >>> torch.allclose(Moments.of(x @ R.T).dense(), torch.eye(10), atol=1e-4)
        True
    """

    kind: Literal["zca", "pca", "cholesky"] = "zca"
    solver: Literal["eigh", "newton_schulz"] = "eigh"
    shrinkage: float = 0.01
    momentum: float = 1.0
    reads: ClassVar[Literal["input"]] = "input"

    def __post_init__(self):
        if self.kind not in ("zca", "pca", "cholesky"):
            raise ValueError(f"kind is {self.kind!r}; allowed: 'zca', 'pca', 'cholesky'")
        if self.solver not in ("eigh", "newton_schulz") or (self.solver != "eigh" and self.kind != "zca"):
            raise ValueError(f"solver is {self.solver!r}; allowed: 'eigh', and 'newton_schulz' for kind='zca'")
        check_range("shrinkage", self.shrinkage, 0, 1, "0 needs more samples than features and none of them dead")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum is {self.momentum}; it must lie in (0, 1]: 1 uses each batch alone")

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        S = shrink(moments.input_second_moment(), self.shrinkage)
        kinds = {"zca": zca, "pca": pca, "cholesky": cholesky}
        return R - (newton_schulz if self.solver == "newton_schulz" else kinds[self.kind])(S)

    def loss(self, moments):
        return WhiteningRule().loss(moments)
