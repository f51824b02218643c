"""Whitening matrices in closed form: the references that a learned R is compared with, and a rule that uses them.

For a positive definite second moment S = <x x'>, each function returns R with R S R' = I. They differ by a rotation:
ZCA is the symmetric one and changes x least; PCA gives principal axes, largest first; Cholesky is lower triangular, so
that y_i depends on x_1 .. x_i only. Source: Kessy, Lewin & Strimmer (2018), "Optimal whitening and decorrelation".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from decorlib.rules.base import Matrix, Rule, Scalar, as_rows, check_range
from decorlib.rules.moments import Moments
from decorlib.rules.rules import WhiteningRule


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
    return (vectors * values.rsqrt().unsqueeze(-2) @ vectors.mT).to(S.dtype)


def pca(S: Matrix) -> Matrix:
    """L^(-1/2) U' for S = U L U': whitened principal components, largest variance first, largest entry of a row > 0."""
    values, vectors = _eigen(S)
    rows = (vectors * values.rsqrt().unsqueeze(-2)).mT.flip(-2)
    # eigh leaves the signs open; without a convention two machines would disagree.
    largest = rows.abs().argmax(-1, keepdim=True)
    return (rows * rows.gather(-1, largest).sign()).to(S.dtype)


def cholesky(S: Matrix) -> Matrix:
    """The inverse of the lower Cholesky factor of S: Gram-Schmidt in the order of the features."""
    check_range_of(S)
    R, ratio = _inverse_factor(S)
    if not (ratio > S.shape[-1] * torch.finfo(S.dtype).eps).all():
        if S.dtype == torch.float64:
            raise ValueError(_SINGULAR.format(f"Cholesky pivot of {_least(ratio)} times the largest variance"))
        R, ratio = _inverse_factor(S.double())
        # By the norm of all of S: rounding of one entry is as large as the entry is, whatever the pivots are.
        in_norms = ratio * _variance(S.double()) / S.double().norm(dim=(-2, -1))
        if not (in_norms > _ROUNDING * torch.finfo(S.dtype).eps).all():
            raise ValueError(_SINGULAR.format(f"Cholesky pivot of {_least(ratio)} times the largest variance"))
    return R.to(S.dtype)


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
    check_range_of(S)
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

# A matrix product in float32 leaves the null directions of a second moment with eigenvalues of up to about 1 eps times
# the largest, of either sign; those of a shrunk one are at least shrinkage / D times it.
_ROUNDING = 4


def check_range_of(S: Matrix) -> None:
    """Raise ValueError where S holds NaN or infinity, or numbers so small that their last digits are gone."""
    number, total = torch.finfo(S.dtype), S.diagonal(dim1=-2, dim2=-1).sum(-1)
    # eigh would say that it did not converge, and Newton-Schulz would hand on the NaN, or divide by an infinite trace.
    if not (S.isfinite().all() and total.isfinite().all()):
        raise ValueError(
            f"the second moment is non-finite: the inputs are too large to be squared in {S.dtype} (its largest number "
            f"is {number.max:.1e}), or the running mean has followed such a batch: scale the inputs, and "
            "call reset_parameters() on the layer"
        )
    if ((total > 0) & (total < number.tiny / number.eps)).any():
        raise ValueError(
            f"the second moment has a trace of {_least(total)}: the inputs are too small to be squared in {S.dtype} "
            f"(below {number.tiny / number.eps:.1e} its digits are lost): scale the inputs"
        )


def _eigen(S: Matrix) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors; in float64 where float32 cannot tell the smallest eigenvalue from rounding.

    eigh errs by up to D eps times the largest eigenvalue, and where one mode dominates, the smallest eigenvalue of a
    moment that was shrunk by 0.01 is below that from D of about 290 on.
    """
    check_range_of(S)
    values, vectors = torch.linalg.eigh(S)
    eps = torch.finfo(S.dtype).eps
    if (values <= values[..., -1:] * S.shape[-1] * eps).any():
        if S.dtype == torch.float64:
            raise ValueError(_SINGULAR.format(f"smallest eigenvalue {_least(values)}"))
        values, vectors = torch.linalg.eigh(S.double())
        if (values <= values[..., -1:] * _ROUNDING * eps).any():
            raise ValueError(_SINGULAR.format(f"smallest eigenvalue {_least(values)}"))
    return values, vectors


def _inverse_factor(S: Matrix) -> tuple[Matrix, Scalar]:
    """(R, ratio): the inverse of the lower Cholesky factor; its smallest pivot, in units of the largest variance.

    A pivot is w' S w, w the combination of features that is left of one after those before it are taken out. Rounding
    in S enters it |w|^2 times, so it is the pivot over |w|^2 (at least the smallest eigenvalue) that has to be more
    than rounding; it is one over the squared length of a row of R. Of a singular S the sign of the last pivots is up
    to rounding: where it is negative the ratio is 0.
    """
    factor, info = torch.linalg.cholesky_ex(S)
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    R = torch.linalg.solve_triangular(factor, eye, upper=False)
    longest = (R * _variance(S).sqrt()[..., None, None]).square().sum(-1).amax(-1)
    return R, torch.where(info > 0, torch.zeros_like(longest), 1 / longest)


def _variance(S: Matrix) -> Scalar:
    return S.diagonal(dim1=-2, dim2=-1).amax(-1)


def _least(x: Tensor) -> str:
    return f"{x.min().item():.3g}"


@dataclass(frozen=True)
class ExactWhitening(Rule):
    """The whitening matrix of the inputs in closed form, put in place of R: dR = R - W with W S W' = I, S = <x x'>.

    Source: Kessy, Lewin & Strimmer (2018); with plain SGD on the weights it is FOOF (Benzing 2022): the effective
    weight moves by -lr dL/dA S^-1, whatever the kind. Under Adam the kinds differ.

    .. note:: A reference, not a local rule: step it with lr = 1 (a smaller rate moves R part of the way), and refresh
       it every few steps by the layer's ``update_every``.

    .. note:: What is whitened is the (shrunk) second moment of the batch. That of 8 samples says nothing about 128
       features: fresh data come out as correlated as they went in. Take ten times as many samples as features, or a
       ``momentum`` that averages over as many.

    Loss: sum (X - I)^2 / D^2, of the states that the R before made.

    Args:
        kind: ``"zca"``, ``"pca"`` or ``"cholesky"``; they differ by a rotation. Default: zca.
        solver: ``"eigh"``, or ``"newton_schulz"`` (zca only). Default: eigh.
        shrinkage: a in S <- (1 - a) S + a (tr S / D) I, in [0, 1]; above 0 wherever a batch may have fewer samples
            than features, or features may be dead. Default: 0.01.
        momentum: weight of the new batch in a running average of S, in (0, 1]; 1 uses the batch alone. The average is
            kept by the layer; the first batch counts in full. Default: 1.0.

    Raises:
        ValueError: for a hyperparameter out of its range; from ``direction``, where S is singular, too large or too
            small to be held, or where R and W differ so much in size that R - (R - W) would be rounding: ``step`` of a
            layer and :func:`~decorlib.layers.decor_step` write W itself.

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
        S, W = self._whitener(moments)
        if _lost(S, R):
            raise ValueError(
                f"R has entries of {R.abs().max().item():.2g}, and the whitening matrix that replaces it of "
                f"{W.abs().max().item():.2g}: the step R - (R - W) of an optimizer would leave rounding in its place. "
                "Use decor_step(model, lr=1.0), which writes W itself, or scale the inputs"
            )
        return R - W

    def step_(self, moments: Moments, R: Matrix, lr: float, scale: Scalar | float = 1.0) -> None:
        self.stepper(moments)(R, lr, scale)

    def stepper(self, moments: Moments) -> Callable[..., None]:
        return partial(_move, *self._whitener(moments))

    def loss(self, moments):
        return WhiteningRule().loss(moments)

    def _whitener(self, moments: Moments) -> tuple[Matrix, Matrix]:
        """The second moment of the inputs, shrunk, and the matrix that whitens it."""
        S = shrink(moments.input_second_moment(), self.shrinkage)
        kinds = {"zca": zca, "pca": pca, "cholesky": cholesky}
        return S, (newton_schulz if self.solver == "newton_schulz" else kinds[self.kind])(S)


def _move(S: Matrix, W: Matrix, R: Matrix, lr: float, scale: Scalar | float = 1.0) -> None:
    """R <- R - lr * scale * (R - W), in place."""
    if _lost(S, R):
        R.lerp_(W, (as_rows(scale, R) * lr).expand_as(R) if isinstance(scale, Tensor) else scale * lr)
    else:
        R.sub_(as_rows(scale, R) * lr * (R - W))


def _lost(S: Matrix, R: Matrix) -> bool:
    """Whether rounding of R - (R - W), eps |R| in each entry, would move the states by more than 1% of their size 1."""
    size = (R * S.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-2)).norm(dim=-1)
    return bool((size * torch.finfo(R.dtype).eps > 0.01).any())
