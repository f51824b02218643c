"""What type checkers know of the arguments that layers and :func:`decorlib.decorrelate` share.

For mypy and pyright alone. While a program runs these are ``object``: a value that does not fit is answered by messages
that name it, its range and the way out, and a checker at run time (beartype) shall not answer first, with less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    import torch
    from torch import nn
    from torch.distributed import ProcessGroup

    from decorlib.rules.rules import Rule

    RuleName = Literal[
        "notebook",
        "plain",
        "kappa",
        "kappa_columns",
        "triangular",
        "whitening",
        "adaptive_gain",
        "foldiak",
        "exact",
        "seed",  # the older name of "notebook"
    ]
    AnyRule = Rule | RuleName
    AttentionInputs = Literal["self", "memory", "separate"]
    Center = Literal["batch", "running", "bias"]
    Rate = float | Literal["auto"]
    Bound = Momentum = float | None
    Flag = bool
    Whole = int
    Part = float
    Mask = torch.Tensor | None
    Reduction = Literal["mean", "sum"]
    Span = Literal["patch", "channel"]
    Size = int | tuple[int, ...]
    Padding = Size | Literal["valid", "same"]
    Variance = float | Sequence[float] | torch.Tensor | Literal["input"]

    # What an optimizer of R takes: a model, layers, (name, layer) pairs, or groups of those.
    Layers = nn.Module | Iterable[nn.Module | tuple[str, nn.Module] | dict[str, Any]]

    class ConversionOptions(TypedDict, total=False):
        """What :func:`decorlib.decorrelate` hands on to every :class:`decorlib.Decorrelation`."""

        center: Center | None
        momentum: float | None
        bias_reduction: Reduction
        update_every: int
        fraction: float
        accumulate: bool
        generator: torch.Generator | None
        process_group: ProcessGroup | None

    class ConvolutionOptions(ConversionOptions, total=False):
        """What a convolution hands on: its ``groups`` are those of R."""

        rule: AnyRule | None

    class LinearOptions(ConvolutionOptions, total=False):
        """What :class:`decorlib.DecorLinear` hands on."""

        groups: int

else:
    AnyRule = AttentionInputs = Bound = Center = Flag = Layers = Mask = Momentum = Padding = Part = object
    Rate = Reduction = RuleName = Size = Span = Variance = Whole = object

    class ConversionOptions(TypedDict, total=False):
        """See above; what is no option is refused by the layer."""

    ConvolutionOptions = LinearOptions = ConversionOptions
