"""Learning rules whose published step is a map, not a flow: it is not linear in the rate, so ``direction`` needs it.

Same interface as in :mod:`decorlib.rules`; step them with plain SGD at the rate that ``update(lr=...)`` was told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from decorlib.rules.base import Matrix, Rule, as_rows
from decorlib.rules.moments import Moments


def _check_rate(lr: float | int | None) -> None:
    if lr is None or not 0 < lr < math.inf:
        raise ValueError(f"this rule's step depends on its rate, which is {lr}: call update(lr=...), 0 < lr < inf")


@dataclass(frozen=True)
class AdaptiveGainRule(Rule):
    r"""Decay by X, then regain the length: R <- g R - lr X g R with g = <||x|| / sqrt(||y||^2 + 1e-8)>.

    Source: Ahmad (2024), "Correlations are ruining your gradient descent", arXiv 2407.10780, by its published code.

    To first order g - 1 is what the decay took, so the fixed point is X = c I, with c following <||x||^2>: whitening up
    to a scale that is never chosen.

    .. note:: g is not scaled by the rate: ``direction`` needs ``lr``, and plain SGD of that rate must step it. A rate
       of 0 would still rescale R, so it is refused.

    Loss: sum C^2 / D^2.

    Args:
        norm: which ||x|| the gain keeps: ``"demeaned"``, of the input that R multiplies, or ``"raw"``, of the input
            before centring, as the published code has it; then the scale grows with the mean. Default: demeaned.

    Raises:
        ValueError: for an unknown norm; from ``direction``, without a positive rate.
    """

    norm: Literal["demeaned", "raw"] = "demeaned"
    needs_rate: ClassVar[bool] = True
    needs_gain: ClassVar[bool] = True

    def __post_init__(self):
        if self.norm not in ("demeaned", "raw"):
            raise ValueError(f"norm is {self.norm!r}; allowed: 'demeaned', 'raw'")

    @property
    def reads(self) -> Literal["input", "raw input"]:
        return "raw input" if self.norm == "raw" else "input"

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        _check_rate(lr)
        g = as_rows(moments.gain(), R)
        return g * moments.times(R) + (1 - g) / lr * R

    def loss(self, moments):
        return moments.squared_off_diagonal() / moments.variance.shape[-1] ** 2


@dataclass(frozen=True)
class FoldiakRule(Rule):
    r"""Lateral inhibition: y = M^-1 x with M <- M + lr C, written for R = M^-1: R <- (I + lr R C)^-1 R.

    Source: Foldiak (1990), "Forming sparse representations by local anti-Hebbian learning", without its nonlinearity.

    The fixed point is C = 0; M stays symmetric with unit diagonal, so variances are not controlled. As a direction it
    is (I + lr R C)^-1 R C R, which tends to R C R as lr -> 0. One linear solve per step, 2D^3/3 and more.

    .. note:: R C R is not of the form H R: what happens to y depends on how x is mixed and scaled. The diagonal of X is
       left out of M; with it, as in some published code, M_ii grows without bound, as (3 <x_i^2> lr steps)^(1/3).

    Loss: sum C^2 / D^2.

    Raises:
        ValueError: from ``direction``, without a positive rate.
    """

    needs_rate: ClassVar[bool] = True

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        _check_rate(lr)
        C = moments.dense() - torch.diag_embed(moments.variance)
        RC = R @ C
        eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
        return torch.linalg.solve(eye + lr * RC, RC @ R)

    def loss(self, moments):
        return moments.squared_off_diagonal() / moments.variance.shape[-1] ** 2
