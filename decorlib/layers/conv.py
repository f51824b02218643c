"""DecorConv2d: a convolution on decorrelated patches, or on decorrelated channels; and what it shares with other ranks.

A convolution multiplies patches, so R belongs on patches: D = C_in * kh * kw (of images), laid out as by
:func:`torch.nn.functional.unfold`.
At C_in = 512 and a 3 x 3 kernel that is a 4608 x 4608 matrix, which costs more than the layer; R over channels alone
(``span="channel"``, the same for every position in the kernel) is the affordable part of it.

Zeros that padding adds are part of what the kernel sees, so they are centred and decorrelated like any other value.
This keeps W (R (patch - mu) + b_R) + b a plain convolution everywhere, borders included, and fusing exact.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers import conv_part
from decorlib.layers.centring import tracked
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.layout import in_layout, layout_of, shaped_like
from decorlib.layers.linear import Decorrelated, fused_linear
from decorlib.layers.options import ConvolutionOptions, Flag, Padding, Size, Span, Variance
from decorlib.layers.patches import CONVOLVE, at_positions, positions, unfolded


class DecorConvolution(Decorrelated):
    """What all convolutions share: the check of their input, and the choice of the cheaper form."""

    def _batched(self, input: Tensor) -> bool:
        return input.dim() == len(self.kernel_size) + 2

    def _check_input(self, x: Tensor, input: Tensor) -> None:
        if not x.is_floating_point():
            raise ValueError(f"input is {x.dtype}; a floating type is needed: scale it first, e.g. images / 255")
        rank = len(self.kernel_size)
        if x.dim() != rank + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"input of shape {tuple(input.shape)} does not fit: ({self.in_channels}, {_SIZES[rank]}) is needed, "
                "with or without a batch dimension before it"
            )

    def _layout(self, x: Tensor) -> torch.memory_format:
        """The memory format in which torch's layer would give its output for images x."""
        # Of volumes on a CPU: torch's own code knows no other format; oneDNN, which has no float64, does. Which of the
        # two takes a float32 volume depends on the number of threads.
        if x.dim() == 5 and x.device.type == "cpu" and x.dtype == torch.float64:
            return torch.contiguous_format
        # torch makes a sequence contiguous before it looks, "to avoid accidentally going through NHWC".
        return layout_of(x.contiguous() if x.dim() == 3 else x, self.weight)

    def _choose(self, together: float | int, separate: float | int) -> bool:
        return together < separate if self.fuse is None else self.fuse


class DecorConvNd(DecorConvolution):
    """The convolutions of ranks 1, 2 and 3; torch's class of the rank comes after this one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        decor_bias: Flag = False,
        eta: float | None = None,  # η
        variance: Variance | None = None,
        span: Span = "patch",
        fuse: bool | None = None,
        **options: Unpack[ConvolutionOptions],
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )
        check_span(span)
        self.span, self.fuse = span, fuse
        features = in_channels * (math.prod(self.kernel_size) if span == "patch" else 1)
        self.decorrelation = Decorrelation(
            features, decor_bias, eta, variance, groups=groups, device=device, dtype=dtype, **options
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, span={self.span!r}"

    def forward(self, input: Tensor) -> Tensor:
        d, batched = self.decorrelation, self._batched(input)
        x = input if batched else input.unsqueeze(0)
        self._check_input(x, input)
        self.enter(x)
        if self.span == "channel":
            out = self._on_channels(x)
        else:
            mean, size = self._mean_patch(x), self._out_size(x)
            part, fuses = conv_part.seen_part(self, x), self._fuses(x, size)
            if part is not None and fuses:
                out = conv_part.fused_output(self, x, part, mean)
            elif fuses:
                if d.due:
                    d.remember_samples(self.patches(x), mean)
                out = self._conv_forward(x, *self.fused(mean))
            else:
                y = self._patches_state(x, mean) if part is None else conv_part.states(self, x, part, mean)
                out = F.linear(y, self.weight.flatten(1), self.bias) if self.groups == 1 else self._by_group(y)
                out = out.transpose(1, 2).unflatten(2, size)
                out = in_layout(out, self._layout(x))
        return out if batched else out.squeeze(0)

    def _on_channels(self, x: Tensor) -> Tensor:
        d = self.decorrelation
        mean = None
        if d.center is not None:
            mean = d.running_mean
            if d.training:
                mean = tracked(d, lambda dtype: x.mean((0, *range(2, x.dim())), dtype=dtype), x.numel() // x.shape[1])
        chosen = d.sample(x.numel() // x.shape[1], x.device) if d.due else None
        if self._fuses(x, x.shape[2:]):
            if d.due:
                d.remember_samples(_pixels(x, chosen), mean)
            return self._conv_forward(x, *self.fused(mean))
        # R has a row and a column per channel, so it commutes with padding: it multiplies the image, not the larger
        # padded one, and what a mean and b_R add is one constant per channel, which the plain bias takes up.
        constant = self._constant(mean)
        if math.prod(x.shape[2:]) > 1:  # in the layout of x, without a copy: in a third of the time
            R = d.weight.detach().to(x.dtype).reshape(self.in_channels, -1, *[1] * (x.dim() - 2))
            y = CONVOLVE[x.dim() - 2](x, R, groups=self.groups)
        else:
            y = d.product(x.movedim(1, -1)).movedim(-1, 1)
        # Convolutions go on in the layout of what they are given, on a CPU several times slower in one than the other.
        y = in_layout(y, self._layout(x))
        if d.due:
            states = _pixels(y, chosen)
            d.remember_samples(_pixels(x, chosen), mean, states if constant is None else states + constant.detach())
        weight = self.weight  # once: one that is computed (a parametrization) may be another at each look
        shifts = [] if constant is None else [(constant, weight.flatten(2).sum(2))]
        return self._conv_forward(y, weight, self.shifted_bias(shifts))

    def _constant(self, mean: Tensor | None) -> Tensor | None:
        """b_R - R mean, (C_in), or None where there is neither."""
        d = self.decorrelation
        b = None if d.bias is None else d.bias.detach().to(self.weight.dtype)
        return b if mean is None else d.product(-mean.to(self.weight.dtype), b)

    def fused(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain convolution that does the same."""
        d, plain = self.decorrelation, self.weight
        if self.span == "patch" and self.groups == 1:
            weight, bias = fused_linear(plain.flatten(1), self.bias, d, mean)
            return shaped_like(plain, weight), bias
        weight = self.composed(d.weight.detach().to(plain.dtype), plain)
        shifts = [] if d.bias is None else [(d.bias, self._taps(plain))]
        shifts += [] if mean is None else [(-mean, self._taps(weight))]
        return weight, self.shifted_bias(shifts)

    def composed(self, R: Tensor, weight: Tensor) -> Tensor:
        """W R for a weight and an R of the shapes of this layer's, both of one dtype."""
        w = (weight.flatten(1) if self.span == "patch" else weight).unflatten(0, (self.groups, -1))
        composed = torch.einsum("gmo...,goi->gmi...", w, R.reshape(self.groups, *R.shape[-2:])).flatten(0, 1)
        return shaped_like(weight, composed if self.span == "patch" else composed.contiguous())

    def constant(self, c: Tensor, weight: Tensor) -> Tensor:
        """What constant patches (D), or constant channels (C_in), add to the outputs (M) of all positions."""
        return self._by_constant(c, self._taps(weight))

    def _taps(self, weight: Tensor) -> Tensor:
        """(M, D / groups): what a constant is multiplied by."""
        return weight.flatten(1) if self.span == "patch" else weight.flatten(2).sum(2)

    # --------------------------------------------------------------------------------------------------- internals

    def _padded(self, x: Tensor) -> Tensor:
        around = self._reversed_padding_repeated_twice
        return F.pad(x, around, mode=_PAD[self.padding_mode]) if any(around) else x

    def shifted_bias(self, shifts: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """The plain bias and what constant inputs, (C_in ...), add to it through weights (M, C_in / groups ...)."""
        bias = self.bias
        for shift, taps in shifts:
            extra = self._by_constant(shift, taps)
            bias = extra if bias is None else bias + extra
        return bias

    def _by_constant(self, c: Tensor, taps: Tensor) -> Tensor:
        by_group = c.to(taps).unflatten(0, (self.groups, -1))
        return (taps * by_group.repeat_interleave(self.out_channels // self.groups, 0)).sum(1)

    def _out_size(self, x: Tensor) -> tuple[int, ...]:
        around = self._reversed_padding_repeated_twice  # of the last dimension first
        sides = [before + after for before, after in zip(around[::2], around[1::2], strict=True)][::-1]
        size = [n + more for n, more in zip(x.shape[2:], sides, strict=True)]
        return positions(size, self.kernel_size, self.dilation, self.stride)

    def _unfold(self, padded: Tensor) -> Tensor:
        """All patches, (N, positions, C * kh * kw)."""
        return unfolded(padded, self.kernel_size, self.dilation, self.stride)

    def _mean_patch(self, x: Tensor) -> Tensor | None:
        d = self.decorrelation
        if d.center is None:
            return None
        if not d.training:
            return d.running_mean

        # The mean patch is a patch of the mean image: one image to pad and unfold, not N.
        def mean_of(dtype: torch.dtype) -> Tensor:
            return self._unfold(self._padded(x.mean(0, keepdim=True, dtype=dtype))).mean((0, 1))

        return tracked(d, mean_of, x.shape[0] * math.prod(self._out_size(x)))

    def _fuses(self, x: Tensor, positions) -> bool:
        """Whether composing W R for all outputs is cheaper than R at all positions, backward included."""
        d, learning = self.decorrelation, torch.is_grad_enabled()
        sites = x.shape[0] * math.prod(positions)
        outputs = self.out_channels * (math.prod(self.kernel_size) if self.span == "channel" else 1) / self.groups
        separate = sites * (1 + (learning and x.requires_grad))
        return self._choose(outputs * (1 + learning) + d.due * d.fraction * sites, separate)

    def _patches_state(self, x: Tensor, mean: Tensor | None) -> Tensor:
        d = self.decorrelation
        patches = self._unfold(self._padded(x))
        y = d.transform(patches, mean)
        if d.due:
            d.remember(patches, mean, y)
        return y

    def _by_group(self, y: Tensor) -> Tensor:
        w = self.weight.flatten(1).unflatten(0, (self.groups, -1))
        out = torch.einsum("nlgi,gmi->nlgm", y.unflatten(-1, (self.groups, -1)), w).flatten(2)
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def patches(self, x: Tensor) -> Tensor:
        """The inputs (n, D) of the positions that the statistics use."""
        d = self.decorrelation
        padded = self._padded(x.detach())
        chosen = d.sample(padded.shape[0] * math.prod(self._out_size(x)), padded.device)
        if chosen is None:
            return self._unfold(padded).flatten(0, 1)
        return at_positions(padded, chosen, self.kernel_size, self.dilation, self.stride)


class DecorConv2d(DecorConvNd, nn.Conv2d):
    r"""A convolution on decorrelated patches or channels: out = W (R (patch - mu) + b_R) + b.

    A drop-in for :class:`torch.nn.Conv2d`: the same arguments in the same order, the same initial weights for the same
    seed, ``weight`` and ``bias`` under the same names. R lives in ``decorrelation``; with ``groups`` each group has its
    own. Source: Dalm et al. (2024).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in torch.
        decor_bias, eta, variance: see :class:`~decorlib.layers.Decorrelation`.
        span: ``"patch"``, R over C_in / groups * kh * kw features; ``"channel"``, over C_in / groups. Default: patch.
        fuse: True convolves with (W R), False applies R and then W. Default: None, the cheaper one by shape.
        **options: everything else that Decorrelation takes. ``fraction`` is the part of the positions in all images
            that the statistics use; their patches alone are gathered.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)` or :math:`(C_{in}, H, W)`.
        - Output: as :class:`torch.nn.Conv2d`.

    Example::

        >>> layer = DecorConv2d(3, 16, 3, padding=1, variance=1.0, fraction=0.1)
        >>> layer(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 16, 32, 32])
    """


@torch.no_grad()
def _pixels(x: Tensor, chosen: Tensor | None) -> Tensor:
    """The channels (n, C) at the chosen positions of all images, or at all of them."""
    x = x.detach()
    if chosen is None:
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    size = math.prod(x.shape[2:])
    return x.flatten(2)[chosen // size, :, chosen % size]


_SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}
_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def check_span(span: str) -> None:
    """Raise ValueError unless ``span`` is one that there is."""
    if span not in ("patch", "channel"):
        raise ValueError(
            f"span is {span!r}; allowed: 'patch' (R over whole patches) and 'channel' (over channels only)"
        )
