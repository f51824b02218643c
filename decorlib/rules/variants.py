"""Relatives of the kappa rule that do not weigh rows by one number each: column-scaled as published, triangular."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decorlib.rules.base import Matrix, Rule
from decorlib.rules.moments import Moments
from decorlib.rules.rules import KappaRule


@dataclass(frozen=True)
class ColumnScaledKappaRule(KappaRule):
    """:class:`KappaRule` as published in code, with V on the wrong side: dR = (1 - k) C R + k R V.

    Source: the code of arXiv 2405.02385 (not its equations), since March 2024; dead features unguarded, as there.

    .. note:: Kept to reproduce published results, not for use: it is not equivariant, ends in another rotation, and can
       increase the divergence that the correct rule decreases. From R = I the first step is the same.
    """

    dead_variance: float = 0.0
    step_ = Rule.step_  # its direction is not of the row form that the parent's step writes in place

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        c, k = self.weights(R.shape[-1])
        decorrelating = c * (moments.times(R) - moments.variance.unsqueeze(-1) * R)
        return decorrelating + k * R * self._excess(moments).unsqueeze(-2)


@dataclass(frozen=True)
class TriangularRule(KappaRule):
    """Gram-Schmidt: each feature is decorrelated from those before it only, dR = [(1 - k) tril(X, -1) + k V] R.

    Source: the correct form of the lower-triangular variant in arXiv 2405.02385's code, which leaves feature 0
    correlated with all others, see `docs/deviations`.

    From R = I, R stays lower triangular and ends at the inverse Cholesky factor of <x x'> (for t = 1).

    .. note:: The order of the features matters. X cannot stay factored here, so a step costs 2BD^2 + 2D^3 at every
       batch size.

    Loss: that of :class:`KappaRule` with each pair counted once.
    """

    step_ = Rule.step_  # as above
    _pairs: ClassVar[float] = 0.5

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        c, k = self.weights(R.shape[-1])
        H = moments.dense().tril(-1).mul_(c)
        H.diagonal(dim1=-2, dim2=-1).add_(k * self._excess(moments))
        return H @ R
