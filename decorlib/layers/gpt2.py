"""DecorConv1D: GPT-2's linear layer, transformers' ``Conv1D``, on decorrelated inputs.

Its weight is (in, out), the transpose of torch's. The class is made when it is first asked for, as
``decorlib.layers.gpt2.DecorConv1D``, since it is a subclass of transformers' own: whatever looks for a ``Conv1D`` still
finds one. Until then transformers is not imported.
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, addmm, nn

from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear, Decorrelated, composed_linear, fused_linear
from decorlib.layers.options import LinearOptions


def is_conv1d(kind: type[nn.Module]) -> bool:
    """Whether a class is transformers' ``Conv1D`` itself, by its name."""
    return (kind.__name__, kind.__module__) == ("Conv1D", "transformers.pytorch_utils")


def _made(plain: type[nn.Module]) -> type[nn.Module]:
    class DecorConv1D(Decorrelated, plain):
        r"""GPT-2's linear layer on decorrelated inputs: z = y W + b with y = R (x - mu) + b_R and W (in, out).

        A drop-in for transformers' ``Conv1D``; all else as :class:`~decorlib.DecorLinear`.

        Args:
            nf: M, outputs.
            nx: D, inputs.
            fuse, **options: see :class:`~decorlib.DecorLinear`.

        Shape:
            - Input: :math:`(*, D)`.
            - Output: :math:`(*, M)`.
        """

        _fuses = DecorLinear._fuses

        def __init__(self, nf: int, nx: int, *, fuse: bool | None = None, **options: Unpack[LinearOptions]):
            super().__init__(nf, nx)
            self.fuse, self.decorrelation = fuse, Decorrelation(nx, **options)

        in_features = property(lambda self: self.nx)
        out_features = property(lambda self: self.nf)

        def forward(self, x: Tensor) -> Tensor:
            d = self.decorrelation
            x = d.flat(x)
            self.enter(x)
            due, fuses = d.due, self._fuses(x)
            mean = d.mean(x)
            y, (weight, bias) = (x, self.fused(mean)) if fuses else (d.transform(x, mean), (self.weight, self.bias))
            if due:
                d.remember(x, mean, None if fuses else y)
            return addmm(bias, y.reshape(-1, self.nx), weight).view(*x.shape[:-1], self.nf)

        def fused(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            """Weight (D, M) and bias (M) of the plain layer that does the same."""
            weight, bias = fused_linear(self.weight.t(), self.bias, self.decorrelation, mean)
            return weight.t().contiguous(), bias

        def composed(self, R: Tensor, weight: Tensor) -> Tensor:
            """R' W for a weight and an R of the shapes of this layer's, both of one dtype."""
            return composed_linear(weight.t(), R).t()

        def constant(self, c: Tensor, weight: Tensor) -> Tensor:
            """What a constant input (D) adds to all outputs (M)."""
            return c.to(weight.dtype) @ weight

        def __repr__(self) -> str:
            return f"DecorConv1D(nf={self.nf}, nx={self.nx}, decorrelation={self.decorrelation})"

        def reset_parameters(self) -> None:
            """R = I; transformers' layer draws its weights in its constructor alone."""
            self.decorrelation.reset_parameters()

    DecorConv1D.__module__, DecorConv1D.__qualname__, DecorConv1D.plain = __name__, "DecorConv1D", plain
    return DecorConv1D


def __getattr__(name: str):
    if name != "DecorConv1D":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transformers.pytorch_utils import Conv1D

    return globals().setdefault(name, _made(Conv1D))  # for pickle, which looks here
