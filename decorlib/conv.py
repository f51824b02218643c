"""DecorConv2d: a convolution on decorrelated patches, or on decorrelated channels.

A convolution multiplies patches, so R belongs on patches: D = C_in * kh * kw, laid out as by
:func:`torch.nn.functional.unfold`.
At C_in = 512 and a 3 x 3 kernel that is a 4608 x 4608 matrix, which costs more than the layer; R over channels alone
(``span="channel"``, the same for every position in the kernel) is the affordable part of it.

Zeros that padding adds are part of what the kernel sees, so they are centred and decorrelated like any other value.
This keeps W (R (patch - mu) + b_R) + b a plain convolution everywhere, borders included, and fusing exact.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.decorrelation import Decorrelation
from decorlib.linear import Decorrelated, fused_linear


class DecorConvolution(Decorrelated):
    """What the two convolutions share: the check of their input, and the choice of the cheaper form."""

    def _check_input(self, x: Tensor, input: Tensor) -> None:
        if not x.is_floating_point():
            raise ValueError(f"input is {x.dtype}; a floating type is needed: scale it first, e.g. images / 255")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"input of shape {tuple(input.shape)} does not fit: ({self.in_channels}, H, W) is needed, with or "
                "without a batch dimension before it"
            )

    def _choose(self, together: float | int, separate: float | int) -> bool:
        return together < separate if self.fuse is None else self.fuse


class DecorConv2d(DecorConvolution, nn.Conv2d):
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

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        decor_bias: bool = False,
        eta: float = 1.0,  # η
        variance=None,
        span: str = "patch",
        fuse: bool | None = None,
        **options,
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

    def forward(self, input: Tensor) -> Tensor:
        d, batched = self.decorrelation, input.dim() == 4
        x = input if batched else input.unsqueeze(0)
        self._check_input(x, input)
        padded = F.pad(x, self._reversed_padding_repeated_twice, mode=_PAD[self.padding_mode]) if self._pads() else x
        mean = self._mean(x, padded)
        if self._fuses(x, padded):
            if d.due:
                d.remember_samples(*self._samples(x, padded, mean))
            out = self._convolved(padded, *self.fused(mean))
        elif self.span == "patch":
            y = self._patches_state(padded, mean)
            out = F.linear(y, self.weight.flatten(1), self.bias) if self.groups == 1 else self._by_group(y)
            out = out.transpose(1, 2).unflatten(2, self._out_size(padded))
        else:
            y = d.transform(padded.movedim(1, -1), mean).movedim(-1, 1)
            if d.due:
                d.remember_samples(*self._samples(x, padded, mean))
            out = self._convolved(y, self.weight, self.bias)
        return out if batched else out.squeeze(0)

    def fused(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain convolution that does the same."""
        d = self.decorrelation
        if self.span == "patch":
            rows, group = self.weight.flatten(1), self.out_channels // self.groups
            if self.groups == 1:
                weight, bias = fused_linear(rows, self.bias, d, mean)
                return weight.view_as(self.weight), bias
            R = d.weight.detach().to(rows.dtype)
            weight = torch.einsum("gmo,goi->gmi", rows.unflatten(0, (self.groups, group)), R).flatten(0, 1)
            shifts = [] if d.bias is None else [(d.bias, rows)]
            shifts += [] if mean is None else [(-mean, weight)]
        else:
            R = d.weight.detach().to(self.weight.dtype).reshape(self.groups, *d.weight.shape[-2:])
            w = self.weight.unflatten(0, (self.groups, -1))
            weight = torch.einsum("gmohw,goi->gmihw", w, R).flatten(0, 1)
            shifts = [] if d.bias is None else [(d.bias, self.weight.sum((2, 3)))]
            shifts += [] if mean is None else [(-mean, weight.sum((2, 3)))]
        bias = self.bias
        for shift, factor in shifts:  # the constant that each output channel sees, group by group
            by_group = (
                shift.to(factor).unflatten(0, (self.groups, -1)).repeat_interleave(self.out_channels // self.groups, 0)
            )
            extra = (factor * by_group).sum(1)
            bias = extra if bias is None else bias + extra
        return weight.view_as(self.weight), bias

    # --------------------------------------------------------------------------------------------------- internals

    def _pads(self) -> bool:
        return any(self._reversed_padding_repeated_twice)

    def _convolved(self, padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

    def _out_size(self, padded: Tensor) -> tuple[int, int]:
        return tuple(
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                padded.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )

    def _unfold(self, padded: Tensor) -> Tensor:
        """All patches, (N, positions, C * kh * kw)."""
        return F.unfold(padded, self.kernel_size, self.dilation, 0, self.stride).transpose(1, 2)

    def _mean(self, x: Tensor, padded: Tensor) -> Tensor | None:
        d = self.decorrelation
        if d.center is None:
            return None
        if not d.training:
            return d.running_mean
        if self.span == "channel":
            return d.track_mean(x.mean((0, 2, 3), dtype=d.running_mean.dtype), x.numel() // x.shape[1])
        # The mean patch is a patch of the mean image: one image to unfold, not N.
        patches = self._unfold(padded.mean(0, keepdim=True, dtype=d.running_mean.dtype))
        return d.track_mean(patches.mean((0, 1)), x.shape[0] * patches.shape[1])

    def _fuses(self, x: Tensor, padded: Tensor) -> bool:
        d = self.decorrelation
        learning = torch.is_grad_enabled()
        if self.span == "channel":  # in units of 2 (C / groups)^2 groups
            sites, outputs = padded.shape[0] * math.prod(padded.shape[2:]), self.weight[:, 0].numel() / self.groups
        else:
            sites, outputs = x.shape[0] * math.prod(self._out_size(padded)), self.out_channels / self.groups
        separate = sites * (1 + (learning and x.requires_grad))
        return self._choose(outputs * (1 + learning) + d.due * d.fraction * sites, separate)

    def _patches_state(self, padded: Tensor, mean: Tensor | None) -> Tensor:
        d = self.decorrelation
        patches = self._unfold(padded)
        y = d.transform(patches, mean)
        if d.due:
            d.remember(patches, mean, y)
        return y

    def _by_group(self, y: Tensor) -> Tensor:
        w = self.weight.flatten(1).unflatten(0, (self.groups, -1))
        out = torch.einsum("nlgi,gmi->nlgm", y.unflatten(-1, (self.groups, -1)), w).flatten(2)
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def _samples(self, x: Tensor, padded: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The inputs (n, D) of the positions that the statistics use."""
        d = self.decorrelation
        if self.span == "channel":
            pixels = x.detach().movedim(1, -1).reshape(-1, self.in_channels)
            chosen = d.sample(pixels.shape[0], x.device)
            return (pixels if chosen is None else pixels[chosen]), mean
        height, width = self._out_size(padded)
        chosen = d.sample(x.shape[0] * height * width, x.device)
        if chosen is None:
            return self._unfold(padded.detach()).flatten(0, 1), mean
        image, position = chosen // (height * width), chosen % (height * width)
        row, column = position // width * self.stride[0], position % width * self.stride[1]
        rows = row[:, None] + torch.arange(self.kernel_size[0], device=x.device) * self.dilation[0]
        columns = column[:, None] + torch.arange(self.kernel_size[1], device=x.device) * self.dilation[1]
        # (n, kh, kw, C) -> (n, C * kh * kw), the order of unfold
        gathered = padded.detach()[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return gathered.movedim(-1, 1).flatten(1), mean


_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def check_span(span: str) -> None:
    """Raise ValueError unless ``span`` is one that there is."""
    if span not in ("patch", "channel"):
        raise ValueError(
            f"span is {span!r}; allowed: 'patch' (R over whole patches) and 'channel' (over channels only)"
        )
