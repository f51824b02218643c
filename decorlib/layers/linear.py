"""DecorLinear: a linear layer on decorrelated inputs."""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers import checks, fast_path, operations
from decorlib.layers.centring import tracked_plainly
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.integrity import warn_of_old_R
from decorlib.layers.options import Bound, Flag, LinearOptions, Rate, Variance


class Decorrelated:
    """What every layer with a Decorrelation inside shares: its update, its step, its reset."""

    decorrelation: Decorrelation

    def enter(self, x: Tensor) -> None:
        """Begin a forward. Where backpropagation leaves the weights alone, R stands still, too."""
        d = self.decorrelation
        frozen = checks.frozen(self, d.frozen)
        if d.frozen is not frozen:  # setting an attribute of a module is not free
            d.frozen = frozen
        d.enter(x)
        if d.sharers > 1:
            d.read_by(self, x)

    def update(self, lr: Rate | None = None, max_step: Bound = None) -> Tensor | None:
        """See :meth:`decorlib.layers.Decorrelation.update`."""
        return self.decorrelation.update(lr, max_step)

    def step(self, lr: Rate, max_step: Bound = None) -> Tensor | None:
        """See :meth:`decorlib.layers.Decorrelation.step`."""
        return self.decorrelation.step(lr, max_step)

    def measure(self) -> Tensor | None:
        """See :meth:`decorlib.layers.Decorrelation.measure`."""
        return self.decorrelation.measure()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "decorrelation"):  # torch's constructor calls this before R exists
            self.decorrelation.reset_parameters()

    def composed(self, R: Tensor, weight: Tensor) -> Tensor:
        """W R for a weight of the shape of this layer's and an R of the shape of its R, both of one dtype."""
        return composed_linear(weight, R)

    def constant(self, c: Tensor, weight: Tensor) -> Tensor:
        """What a constant input (D) adds to the outputs (M) of all positions."""
        return weight @ c.to(weight.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        warn_of_old_R(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class DecorLinear(Decorrelated, nn.Linear):
    r"""A linear layer on decorrelated inputs: z = W y + b with y = R (x - mu) + b_R.

    A drop-in for :class:`torch.nn.Linear`: same ranks in and out, same initial weights for the same seed, ``weight``
    and ``bias`` under the same names. R lives in ``decorrelation``. Source: Dalm et al. (2024), eqs. 3 and 4.

    Args:
        in_features: D.
        out_features: M.
        bias: the plain layer's b. Default: True.
        decor_bias: learn b_R, as in the 2024 notebook. Default: False.
        eta, variance: of the 2024 rule; see :class:`Decorrelation`.
        fuse: True multiplies by (W R), False by R and then W; equal but for rounding. Default: None, the cheaper one by
            shape (W R where the batch has more rows than the layer has outputs).
        **options: everything else that :class:`Decorrelation` takes, by keyword.

    Shape:
        - Input: :math:`(*, D)`, or :math:`(N, *)` whose sizes after N multiply to D.
        - Output: :math:`(*, M)`, or :math:`(N, M)`.

    Example::

        >>> layer = DecorLinear(784, 10, variance=1.0)
        >>> layer(torch.randn(64, 784)).shape
        torch.Size([64, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        decor_bias: Flag = False,
        eta: float | None = None,  # η
        variance: Variance | None = None,
        *,
        fuse: bool | None = None,
        device=None,
        dtype=None,
        **options: Unpack[LinearOptions],
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.fuse = fuse
        self.decorrelation = Decorrelation(
            in_features, decor_bias, eta, variance, device=device, dtype=dtype, **options
        )
        fast_path.keep_off(self.decorrelation)

    def forward(self, input: Tensor) -> Tensor:
        d, weight = self.decorrelation, self.weight
        x = d.flat(input)
        self.enter(x)
        due = d.due
        fuses = self._fuses(x, due)
        mean = tracked_plainly(d, x, weight)
        plainly = mean is not None
        mean = mean if plainly else d.mean(x)
        if fuses:
            if due:
                d.remember(x, mean)
            if plainly and d.bias is None:
                return operations.composed_linear(x, d.weight.detach().to(x.dtype), weight, self.bias, mean)
            if plainly:
                return operations.centred_linear(x, *self.fused(), mean)
            return F.linear(x, *self.fused(mean))
        if plainly and x.requires_grad:
            R, b = d.weight.detach().to(x.dtype), d.bias
            z, y = operations.separate_linear(x, R, None if b is None else b.to(x.dtype), weight, self.bias, mean)
        else:
            y = d.transform(x, mean)
            z = F.linear(y, weight, self.bias)
        if due:
            d.remember(x, mean, y)
        return z

    def _fuses(self, x: Tensor, due: bool | None = None) -> bool:
        if self.fuse is not None:
            return self.fuse
        d = self.decorrelation
        due = d.due if due is None else due
        rows = separate = x.numel() // self.in_features
        together = self.out_features
        # In units of 2D^2: R x and its backward, against W R and its backward, and y for the statistics.
        if torch.is_grad_enabled():
            separate *= 1 + x.requires_grad
            together *= 1 + self.weight.requires_grad
        return together + (d.fraction * rows if due else 0) < separate

    def fused(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight (M, D) and bias (M) of the plain layer that does the same: W R and b + W (b_R - R mean)."""
        return fused_linear(self.weight, self.bias, self.decorrelation, mean)


def fused_linear(
    weight: Tensor, bias: Tensor | None, decorrelation: Decorrelation, mean: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(W R, b + W (b_R - R mean)) for a weight of shape (M, D) and one R, or R per group of rows."""
    composed = composed_linear(weight, decorrelation.weight.detach().to(weight.dtype))
    for shift, factor in ((decorrelation.bias, weight), (None if mean is None else -mean, composed)):
        if shift is not None:
            extra = (
                factor @ shift.detach().to(weight.dtype) if shift is decorrelation.bias else factor @ shift.to(weight)
            )
            bias = extra if bias is None else bias + extra
    return composed, bias


def composed_linear(weight: Tensor, R: Tensor) -> Tensor:
    """W R for a weight (M, D) and one R (D, D), or (groups, D / groups, D / groups)."""
    if R.dim() == 2:
        return weight @ R
    return torch.einsum("mgo,goi->mgi", weight.unflatten(1, (len(R), -1)), R).flatten(1)
