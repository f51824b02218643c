"""What every rule is: :class:`Rule`, its subclass for rules that weigh rows, and the checks of hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from decorlib.rules.moments import Moments, largest_eigenvalue

Variance = float | Tensor | Literal["input"] | None
Matrix = Float[Tensor, "*groups features features"]
Vector = Float[Tensor, "*groups features"]
Scalar = Float[Tensor, "*groups"]


def check_variance(variance) -> None:
    """Raise ValueError unless ``variance`` is None, "input", or finite and positive (a number or one per feature)."""
    allowed = "None (no target), a positive number, a tensor with one positive number per feature, or 'input'"
    if variance is None or (isinstance(variance, str) and variance == "input"):
        return
    if isinstance(variance, Tensor):
        positive = variance.is_floating_point() and bool((variance.isfinite() & (variance > 0)).all())
        if variance.dim() > 1 or not positive:
            raise ValueError(
                f"variance is a {variance.dtype} tensor of shape {tuple(variance.shape)} with other than positive, "
                f"finite, floating numbers in one dimension; allowed: {allowed}"
            )
    elif isinstance(variance, bool) or not isinstance(variance, int | float):
        raise ValueError(f"variance is {variance!r}; allowed: {allowed}")
    elif not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"variance is {variance}; allowed: {allowed}")


def check_range(name: str, value: float | int, low: float | int, high: float | int, way_out: str) -> None:
    """Raise ValueError unless low <= value <= high and the value is finite."""
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(
            f"{name} is {value}; it must lie in [{low}, {high}{']' if high < math.inf else ')'}: {way_out}"
        )


@dataclass(frozen=True)
class Rule:
    """What every rule answers about the moments of one batch. Subclasses hold hyperparameters only.

    Rules are pure: they change nothing they are given (but R in :meth:`step_`), and know no training or evaluation
    mode. Leading dimensions are independent problems. The sign is that of a gradient: R goes *against* ``direction``.

    Shape:
        - moments: of states :math:`(*, B, D)`.
        - R, direction: :math:`(*, D, D)`.
        - loss, sharpness: :math:`(*)`.

    Example::

        >>> x = torch.randn(64, 10)
        >>> R, rule = torch.eye(10), KappaRule(kappa=0.5)
        >>> for step in range(100):
        ...     R = R - 0.1 * rule.direction(Moments.of(x @ R.T), R)
        >>> bool(rule.loss(Moments.of(x @ R.T)) < 1e-3)
        True
    """

    #: What the statistics must hold besides y: nothing, the inputs that R multiplies, or the inputs before centring.
    reads: ClassVar[Literal[None, "input", "raw input"]] = None
    #: Whether ``direction`` needs the rate of the step that will be taken.
    needs_rate: ClassVar[bool] = False
    #: Whether ``direction`` needs the ratio of lengths, ``Moments.of(y, x, gain=True)``.
    needs_gain: ClassVar[bool] = False

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        """dR of the step R <- R - lr * dR. ``lr`` matters only to rules whose published step is not linear in it."""
        raise NotImplementedError

    def step_(self, moments: Moments, R: Matrix, lr: float, scale: Scalar | float = 1.0) -> None:
        """R <- R - lr * scale * direction, in place: what plain SGD would do with the gradient."""
        R.sub_(as_rows(scale, R) * lr * self.direction(moments, R, lr))

    def stepper(self, moments: Moments) -> Callable[..., None]:
        """:meth:`step_` for these moments, a function of (R, lr, scale); what can fail in a step, fails here.

        Overridden where a step has something to solve first: of several layers all step, or none.
        """
        return partial(self.step_, moments)

    def loss(self, moments: Moments) -> Scalar:
        """The reported loss: 0 where the rule is content with the batch."""
        raise NotImplementedError

    def sharpness(self, moments: Moments) -> Scalar:
        """Largest eigenvalue of what multiplies R in a step, estimated by power iteration; here that of X."""
        return largest_eigenvalue(moments.times, moments.variance)


@dataclass(frozen=True)
class RowRule(Rule):
    """Rules of the form dR = diag(a) R + diag(b) X R: a left factor that weighs rows. Subclasses give a and b.

    The product X R is all that costs; :class:`~decorlib.rules.moments.Moments` takes it in the cheaper of two forms.
    """

    def rows(self, moments: Moments) -> tuple[Vector | Scalar | float, Vector | Scalar | float]:
        """The coefficients (a, b), one per row or one for all."""
        raise NotImplementedError

    def direction(self, moments: Moments, R: Matrix, lr: float | None = None) -> Matrix:
        a, b = (as_rows(c, R) for c in self.rows(moments))
        product = moments.times(R)  # a new matrix: it may be written over
        product = product.mul_(b) if isinstance(b, Tensor) or b != 1 else product
        return torch.addcmul(product, a, R, out=product) if isinstance(a, Tensor) else product.add_(R, alpha=a)

    def step_(self, moments: Moments, R: Matrix, lr: float, scale: Scalar | float = 1.0) -> None:
        # Without a gradient in between: at D = 784 and B = 64 allocating and passing over one more D x D matrix costs
        # as much as one of the two products.
        a, b = self.rows(moments)
        if isinstance(scale, Tensor):
            scale = as_rows(scale, moments.variance)
            a, b = scale * a, scale * b
        elif scale != 1:
            lr = lr * scale
        moments.add_product_(R, a, b, alpha=-lr)

    def sharpness(self, moments: Moments) -> Scalar:
        a, b = (as_rows(c, moments.variance.unsqueeze(-1)) for c in self.rows(moments))
        return largest_eigenvalue(lambda u: a * u + b * moments.times(u), moments.variance)


def as_rows(c, R: Tensor):
    """A coefficient per row (or per group) in the shape that multiplies R; a plain number stays one."""
    return c.to(R.dtype).reshape(*c.shape, *[1] * (R.dim() - c.dim())) if isinstance(c, Tensor) else c
