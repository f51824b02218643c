"""Learning rules for R: small frozen dataclasses of pure functions. Read this first.

A layer's input x becomes y = R x; a rule says in which direction R moves so that the features of y lose their
correlations. In the notation of this file

    X = <y y'>  second moment over the batch        C = X - diag(X)      the covariances to remove
    v_i = X_ii  variance about zero                 V = diag(v - t)      distance from the target variance t

and a rule answers two questions about a batch: ``direction``, the matrix dR of the step R <- R - lr * dR, and
``loss``, the number that is reported. Neither knows about layers, optimizers or devices. None of the directions is the
Euclidean gradient of its loss: they are local, nearly all H R with H made of what the outputs y show.

To add a rule: subclass :class:`RowRule` (if dR = diag(a) R + diag(b) X R) or :class:`Rule`, and add one row to the
table of cases in ``tests/rules/test_rules.py``, which holds every rule to its literal equation and to what it claims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from decorlib.rules.base import RowRule, Rule, Variance, Vector, as_rows, check_range, check_variance
from decorlib.rules.moments import Moments

__all__ = [
    "KappaRule",
    "NotebookRule",
    "PlainDecorrelation",
    "RowRule",
    "Rule",
    "SeedRule",
    "WhiteningRule",
    "as_rows",
    "check_range",
    "check_variance",
]

# ------------------------------------------------------------------------------------ the rule of the 2024 notebook


@dataclass(frozen=True)
class NotebookRule(RowRule):
    r"""Decay by X, each row then normalised to a target variance by the variance it has.

    Source: the 2024 notebook (March 2024), by its printed numbers; no paper. Also under its old name, ``SeedRule``.

        dR = R - diag(n) (I - eta X) R,     n_i = t_i / v_i

    .. note:: ``variance`` is not what it reaches: where X is diagonal the fixed point is v = t / (1 + eta t), 1/2 for
       t = 1 and eta = 1. With ``variance=None`` (n = 1) it is dR = eta X R, which has no fixed point but R = 0.
       With any target but ``"input"`` what happens to y does not depend on how x is mixed.

    Loss: the notebook's "decorrelation loss" for one batch, the mean over all D^2 entries of (X - diag(t))^2, or of
    X^2 without a target. It is not 0 at the fixed point.

    Args:
        variance: the target t: None, a number, one number per feature, or ``"input"`` (the input's own <x_i^2>).
            Default: None.
        eta: weight of the decorrelating term, no unit. Default: 1.0.
        dead_variance: rows with v below this take n = 1, so that a dead feature is not amplified; the 2024
            notebook's guard. A feature that is only nearly dead still gets n = t / v, however large. Default: 1e-8.

    Raises:
        ValueError: for a variance that is not positive and finite, a negative eta or dead_variance; and from
            ``direction`` and ``loss``, where ``variance`` has not one entry per feature.

    Example::

        >>> x = torch.tensor([[2.0, 0.0], [0.0, 2.0]])  # v = 2 and 2, nothing to decorrelate
        >>> R = torch.eye(2)
        >>> for step in range(200):
        ...     R = R - 0.1 * NotebookRule(variance=1.0).direction(Moments.of(x @ R.T), R)
        >>> [round(v, 4) for v in Moments.of(x @ R.T).variance.tolist()]
        [0.5, 0.5]
    """

    variance: Variance = None
    eta: float = 1.0  # η
    dead_variance: float = 1e-8

    def __post_init__(self):
        check_variance(self.variance)
        check_range("eta", self.eta, 0, math.inf, "a negative weight correlates; 0 leaves only the normaliser")
        check_range("dead_variance", self.dead_variance, 0, math.inf, "0 leaves every row to the rule")

    @property
    def reads(self) -> Literal[None, "input"]:
        return "input" if isinstance(self.variance, str) else None

    def _target(self, moments: Moments):
        if isinstance(self.variance, str):
            return moments.input_variance()
        if not isinstance(self.variance, Tensor):
            return self.variance
        features = moments.variance.shape[-1]
        if self.variance.dim() == 1 and len(self.variance) not in (1, features):
            raise ValueError(
                f"variance has {len(self.variance)} entries for {features} features: give one, or one per feature"
            )
        return self.variance.to(moments.variance)

    def rows(self, moments):
        if self.variance is None:
            return 0.0, self.eta
        v = moments.variance
        n = (self._target(moments) / v).masked_fill_(v < self.dead_variance, 1.0)
        return 1 - n, n if self.eta == 1 else self.eta * n

    def loss(self, moments):
        total, v = moments.squared_norm(), moments.variance
        t = None if self.variance is None else self._target(moments)
        # (v - t)^2 takes the place of v^2 on the diagonal
        if isinstance(t, Tensor):
            total += (t * (t - 2 * v)).sum(-1)
        elif t is not None:
            total.sub_(v.sum(-1), alpha=2 * t).add_(v.shape[-1] * t**2)
        return total.clamp_(min=0).div_(v.shape[-1] ** 2)


SeedRule = NotebookRule  # its name up to version 0.1


# ------------------------------------------------------------------------------- decorrelation, and (1 - k) C + k V


@dataclass(frozen=True)
class PlainDecorrelation(RowRule):
    """Covariances only: dR = C R.

    Source: COPI (Ahmad, Schrader & van Gerven 2023, arXiv 2203.13203), and the case k = 0 of :class:`KappaRule`.

    .. note:: Small steps conserve det R, so it cannot whiten: where C = 0, the geometric mean of the variances is
       det(<x x'>)^(1/D).

    Loss: sum C^2 / D^2.
    """

    def rows(self, moments):
        return -moments.variance, 1.0

    def loss(self, moments):
        return moments.squared_off_diagonal() / moments.variance.shape[-1] ** 2


@dataclass(frozen=True)
class KappaRule(RowRule):
    r"""Decorrelation and unit variance, weighed by kappa: dR = [(1 - k) C + k V] R.

    Source: Dalm, Offergeld, Ahmad & van Gerven (2024), arXiv 2405.02385; ``constants`` as in its code's two methods.

    For 0 < k < 1 its only fixed point is X = t I. With t = 1 the flow dissipates the Gaussian Kullback-Leibler
    divergence (tr X - D - ln det X) / 2 at rate (1 - k)||C||^2 + k||V||^2, and it is equivariant: what happens to y
    does not depend on how x is mixed. Near it, covariances decay by 1 - 2 (1 - k) lr a step and variances by
    1 - 2 k lr: a small kappa means that variances arrive late.

    .. note:: V scales *rows*; for the published code, which scales columns, see :class:`ColumnScaledKappaRule`. And
       equal kappas mean different things under different ``constants``: "normalized" at D = 784, k = 0.01 is
       "standard" at k = 0.94.

    Loss: [(1 - k) sum C^2 + k sum (v - t)^2] / D^2; normalized: [(1 - k)/(D - 1) sum C^2 + k sum (v - t)^2] / D.

    Args:
        kappa: weight of the variance term, in [0, 1]. Default: 0.5, half the :class:`WhiteningRule`.
        variance: the target t, a positive number. Default: 1.0.
        constants: ``"standard"`` as above, or ``"normalized"``: dR = [(1 - k)/(D - 1) C + 2 k V] R. Default: standard.
        dead_variance: rows with v below this are left out of V (still decorrelated), else a dead feature's row would
            grow as (1 + lr k)^steps. 0 leaves them in. Default: 1e-8.

    Raises:
        ValueError: for a hyperparameter out of its range.
    """

    kappa: float = 0.5  # κ
    variance: float = 1.0
    constants: Literal["standard", "normalized"] = "standard"
    dead_variance: float = 1e-8

    def __post_init__(self):
        check_range("kappa", self.kappa, 0, 1, "0 decorrelates only, 1 only sets variances")
        check_variance(self.variance)
        if not isinstance(self.variance, int | float):
            raise ValueError(f"variance is {self.variance!r}; this rule takes one positive number for all features")
        if self.constants not in ("standard", "normalized"):
            raise ValueError(f"constants is {self.constants!r}; allowed: 'standard', 'normalized'")
        check_range("dead_variance", self.dead_variance, 0, math.inf, "0 leaves every row to the rule")

    #: How often a pair of features counts in the loss.
    _pairs: ClassVar[float] = 1.0

    def weights(self, features: int) -> tuple[float, float]:
        """The weights of C and of V for D features."""
        if self.constants == "normalized":
            return (1 - self.kappa) / max(features - 1, 1), 2 * self.kappa
        return 1 - self.kappa, self.kappa

    def _excess(self, moments: Moments) -> Vector:
        """v - t, and 0 for dead rows."""
        v = moments.variance
        return torch.where(v < self.dead_variance, torch.zeros_like(v), v - self.variance)

    def rows(self, moments):
        c, k = self.weights(moments.variance.shape[-1])
        return k * self._excess(moments) - c * moments.variance, c

    def loss(self, moments):
        D = moments.variance.shape[-1]
        off, diagonal = (
            self._pairs * moments.squared_off_diagonal(),
            (moments.variance - self.variance).square().sum(-1),
        )
        if self.constants == "normalized":
            return ((1 - self.kappa) / max(D - 1, 1) * off + self.kappa * diagonal) / D
        return ((1 - self.kappa) * off + self.kappa * diagonal) / D**2


@dataclass(frozen=True)
class WhiteningRule(RowRule):
    """Relative gradient of the Gaussian divergence: dR = (X - t I) R.

    Source: Cardoso & Laheld (1996); Amari (1998); as a normalisation layer SWBN, Zhang et al. (2021), arXiv 2106.04413.

    From R = I on full batches R stays symmetric and ends at the ZCA whitening matrix. Twice :class:`KappaRule` at
    kappa 1/2.

    Loss: sum (X - t I)^2 / D^2.

    Args:
        variance: the target t, a positive number. Default: 1.0.
        dead_variance: rows with v below this are not pushed to t; 0 leaves them in. Default: 1e-8.

    Raises:
        ValueError: for a hyperparameter out of its range.
    """

    variance: float = 1.0
    dead_variance: float = 1e-8

    def __post_init__(self):
        KappaRule(variance=self.variance, dead_variance=self.dead_variance)  # the same checks

    def rows(self, moments):
        v = moments.variance
        return torch.where(v < self.dead_variance, -v, torch.full_like(v, -self.variance)), 1.0

    def loss(self, moments):
        diagonal = (moments.variance - self.variance).square().sum(-1)
        return (moments.squared_off_diagonal() + diagonal) / moments.variance.shape[-1] ** 2
