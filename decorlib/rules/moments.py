"""What a learning rule may ask about a batch: its second moments, in the cheapest form that is exact.

With y one decorrelated state and X = <y y'> its second moment over the batch, every rule here needs only three things
of X: its diagonal, its product with R, and its Frobenius norm. For B samples of D features

==============================  =============================  ==================================
asked                           dense (B >= D)                 factored (B < D)
==============================  =============================  ==================================
diagonal <y_i^2>                2BD                            2BD
X R                             2BD^2 for X, then 2D^3         Y'(Y R)/B: 4BD^2, X is never formed
||X||_F^2                       2D^2                           ||Y Y'||_F^2 / B^2: 2B^2 D
==============================  =============================  ==================================

Both forms are equal to rounding; :meth:`Moments.of` takes the cheaper one by shape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

LOW_PRECISION = (torch.float16, torch.bfloat16)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision cannot hold 1 - 1e-4, and sums of squares overflow in it: moments are in float32 or better."""
    return x.float() if x.dtype in LOW_PRECISION else x


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments X = <y y'> of decorrelated states y = R x, and what some rules read of the inputs x.

    Build one with :meth:`of`. Leading dimensions ``*groups`` are independent problems (groups of a convolution,
    models trained side by side); most often there are none.

    Args:
        variance: <y_i^2>, the diagonal of X.
        count: samples averaged over; the weight of these moments among those of other processes.
        samples: the states, where X is kept factored; None where it is dense.
        matrix: X, where it is dense; None where it is factored.
        input_samples: the inputs x of the same samples, only for rules that read them.
        input_moment: <x x'>, for rules that read it, once it was averaged over processes or batches.
        gain_mean: <||x|| / ||y||>, for the rule that reads it, where the samples are not kept.
    """

    variance: Float[Tensor, "*groups features"]
    count: int
    samples: Float[Tensor, "*groups batch features"] | None = None
    matrix: Float[Tensor, "*groups features features"] | None = None
    input_samples: Float[Tensor, "*groups batch features"] | None = None
    input_moment: Float[Tensor, "*groups features features"] | None = None
    gain_mean: Float[Tensor, "*groups"] | None = None

    @classmethod
    def of(
        cls,
        y: Float[Tensor, "*groups batch features"],
        x: Float[Tensor, "*groups batch features"] | None = None,
        dense: bool | None = None,
        gain: bool = False,
    ) -> Moments:
        """Moments of states y; ``dense`` overrules the choice by shape (factored where batch < features).

        With ``gain`` the mean ratio of lengths is taken too, which needs the samples and so is lost in the dense form.
        """
        if y.shape[-2] == 0:
            raise ValueError(
                f"moments of an empty batch (states of shape {tuple(y.shape)}): at least one sample is needed"
            )
        y = at_least_float32(y)
        x = None if x is None else at_least_float32(x)
        if dense is None:
            dense = y.shape[-2] >= y.shape[-1]
        variance = (y * y).sum(-2).div_(y.shape[-2])  # in half the time of square() and mean()
        if dense:
            gain_mean = mean_gain(x, y) if gain else None
            return cls(variance, y.shape[-2], matrix=second_moment(y), input_samples=x, gain_mean=gain_mean)
        return cls(variance, y.shape[-2], samples=y, input_samples=x)

    def dense(self) -> Float[Tensor, "*groups features features"]:
        """X itself; costs 2BD^2 where it is factored."""
        return second_moment(self.samples) if self.matrix is None else self.matrix

    def times(self, R: Float[Tensor, "*groups features columns"]) -> Float[Tensor, "*groups features columns"]:
        """The product X R."""
        if self.matrix is not None:
            return self.matrix @ R
        return self.samples.mT @ (self.samples @ R).div_(self.count)

    def add_product_(self, R: Float[Tensor, "*groups features columns"], a, b, alpha: float) -> None:
        """R <- R + alpha (diag(a) R + diag(b) X R) in place; ``a`` and ``b`` are numbers, or one per feature."""
        rows = b.unsqueeze(-1) if isinstance(b, Tensor) and b.dim() else b
        # X = left right, and both forms are one product into R
        if self.matrix is not None:
            left, right, count = self.matrix, R.clone(), 1
        else:
            left, right, count = self.samples.mT, self.samples @ R, self.count
        if isinstance(rows, Tensor):
            left, rows = left * rows, 1
        if isinstance(a, Tensor):
            R.addcmul_(R, a.unsqueeze(-1) if a.dim() else a, value=alpha)
        elif a != 0:
            R.mul_(1 + alpha * a)
        if R.dim() == 2:
            R.addmm_(left, right, alpha=alpha * rows / count)
        else:
            R.view(-1, *R.shape[-2:]).baddbmm_(left.flatten(0, -3), right.flatten(0, -3), alpha=alpha * rows / count)

    def squared_norm(self) -> Float[Tensor, "*groups"]:
        """||X||_F^2, the sum of all squared entries of X."""
        if self.matrix is not None:
            return self.matrix.square().sum((-2, -1))
        if self.count > self.samples.shape[-1]:  # factored by request: B x B could be larger than memory
            return self.dense().square_().sum((-2, -1))
        gram = self.samples @ self.samples.mT
        return gram.square_().sum((-2, -1)).div_(self.count**2)

    def squared_off_diagonal(self) -> Float[Tensor, "*groups"]:
        """Sum of the squared covariances, as a difference: what rounding leaves of it is about eps ||X||_F^2.

        The clamp only catches rounding, since the X_ii^2 that are taken off are among the entries summed.
        """
        return (self.squared_norm() - self.variance.square().sum(-1)).clamp(min=0)

    def input_variance(self) -> Float[Tensor, "*groups features"]:
        """<x_i^2> of the inputs."""
        if self.input_moment is not None:
            return self.input_moment.diagonal(dim1=-2, dim2=-1)
        return self._inputs().square().mean(-2)

    def input_second_moment(self) -> Float[Tensor, "*groups features features"]:
        """<x x'> of the inputs."""
        return second_moment_in_parts(self._inputs()) if self.input_moment is None else self.input_moment

    def gain(self) -> Float[Tensor, "*groups"]:
        """<||x|| / sqrt(||y||^2 + 1e-8)>: how much longer inputs are than states, averaged over samples."""
        if self.gain_mean is not None:
            return self.gain_mean
        if self.samples is None:
            raise RuntimeError("the gain needs the samples: build these Moments with Moments.of(y, x, gain=True)")
        return mean_gain(self._inputs(), self.samples)

    def _inputs(self) -> Tensor:
        if self.input_samples is None:
            raise RuntimeError("this rule reads the inputs: build the Moments with Moments.of(y, x)")
        return self.input_samples

    def reduced(self, group=None, gain: bool = False) -> Moments:
        """The moments of all processes' samples together, weighted by how many each has (they need not be equal)."""
        import torch.distributed as dist

        matrix = self.dense()
        parts = [matrix]
        if self.input_samples is not None or self.input_moment is not None:
            parts.append(self.input_second_moment())
        if gain:
            parts.append(self.gain())
        weight = matrix.new_full((1,), self.count)
        flat = torch.cat([part.reshape(-1) * weight for part in parts] + [weight])
        dist.all_reduce(flat, group=group)
        flat, total = flat[:-1], flat[-1:]
        parts = [
            chunk.view_as(part) / total
            for chunk, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True)
        ]
        return Moments(
            parts[0].diagonal(dim1=-2, dim2=-1).clone(),
            self.count * dist.get_world_size(group),
            matrix=parts[0],
            input_moment=parts[1] if len(parts) > 1 else None,
            gain_mean=parts[2] if gain else None,
        )

    def with_input_moment(self, input_moment: Tensor) -> Moments:
        """The same, with <x x'> replaced (by its running average)."""
        return replace(self, input_moment=input_moment)


def second_moment(y: Float[Tensor, "*groups batch features"]) -> Float[Tensor, "*groups features features"]:
    """<y y'>, uncentred, over the batch; divided before the product so that large batches cannot overflow."""
    scaled = y / y.shape[-2] ** 0.5
    return scaled.mT @ scaled


def second_moment_in_parts(
    x: Float[Tensor, "*groups batch features"], rows: int = 4096
) -> Float[Tensor, "*groups features features"]:
    """<x x'> whose rounding does not grow with the batch, for whoever inverts it: products of parts, summed in float64.

    In float32, one product over 300,000 rows leaves null directions with 100 times the rounding of one over 4,096.
    """
    if x.shape[-2] <= rows:
        return second_moment(x)
    parts = x.split(rows, -2)
    return sum(second_moment(part).double() * (part.shape[-2] / x.shape[-2]) for part in parts).to(x.dtype)


def mean_gain(
    x: Float[Tensor, "*groups batch inputs"], y: Float[Tensor, "*groups batch features"]
) -> Float[Tensor, "*groups"]:
    """<||x|| / sqrt(||y||^2 + 1e-8)> over samples; a sample of zeros, whose length cannot be regained, counts as 1.

    Raises:
        ValueError: no ||x|| reaches 1e-4, the root of that 1e-8: R would shrink at every step until it is zero.
    """
    length = x.norm(dim=-1)
    if length.is_cpu and 0 < (longest := float(length.max())) < 1e-4:  # a GPU would have to be waited for
        raise ValueError(
            f"the longest input has a length of {longest:.3g}; the gain needs lengths above 1e-4, else the 1e-8 in it "
            "is all that counts and R shrinks to zero: scale the inputs up"
        )
    return torch.where(length > 0, length / (y.square().sum(-1) + 1e-8).sqrt(), 1.0).mean(-1)


def largest_eigenvalue(operator, like: Float[Tensor, "*groups features"], steps: int = 10) -> Float[Tensor, "*groups"]:
    """Estimate of the spectral radius of a linear map by ``steps`` power iterations; from below if it is symmetric.

    Args:
        operator: v (*groups, D, 1) -> (*groups, D, 1).
        like: a tensor that gives shape, device and dtype of v.
        steps: iterations; each costs one application.
    """
    # A fixed start keeps runs reproducible. Its entries are unequal, so that no mode of a symmetric layout (1, -1), nor
    # the mode that all features share, is orthogonal to it.
    v = torch.linspace(1, 2, like.shape[-1], dtype=like.dtype, device=like.device).expand_as(like).unsqueeze(-1)
    size = v.norm(dim=-2, keepdim=True)
    for _ in range(steps):
        v = operator(v / size)
        size = v.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return size.squeeze((-2, -1))
