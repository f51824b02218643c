"""DecorConvTranspose2d: a transposed convolution on decorrelated channels."""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers.conv import DecorConvolution
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.layout import in_layout, shaped_like
from decorlib.layers.options import ConvolutionOptions, Flag, Size, Variance


class DecorConvTranspose2d(DecorConvolution, nn.ConvTranspose2d):
    r"""A transposed convolution on decorrelated channels: each input pixel x becomes R (x - mu) + b_R, then is spread.

    A drop-in for :class:`torch.nn.ConvTranspose2d`. What this layer multiplies by W is the channel vector of one
    pixel, so R is over C_in / groups features. With a mean or b_R the constant part of the output depends on how many
    pixels reach a position, so :func:`decorlib.fuse` refuses such a layer.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode:
            as in torch.
        decor_bias, eta, variance, **options: see :class:`~decorlib.layers.Decorrelation`.
        fuse: True spreads with (R' W), False applies R and then W. Default: None, the cheaper one by shape; with a mean
            or b_R always separate.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)` or :math:`(C_{in}, H, W)`.
        - Output: as :class:`torch.nn.ConvTranspose2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
        *,
        decor_bias: Flag = False,
        eta: float | None = None,  # η
        variance: Variance | None = None,
        fuse: bool | None = None,
        **options: Unpack[ConvolutionOptions],
    ):
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self.fuse = fuse
        self.decorrelation = Decorrelation(
            in_channels, decor_bias, eta, variance, groups=groups, device=device, dtype=dtype, **options
        )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        d, batched = self.decorrelation, self._batched(input)
        x = input if batched else input.unsqueeze(0)
        self._check_input(x, input)
        self.enter(x)
        layout, x = self._layout(x), x.movedim(1, -1)
        mean = d.mean(x)
        extra = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation)
        if self._fuses(x, mean):
            if d.due:
                d.remember(x, mean)
            y, weight = x, self.fused()[0]
        else:
            y, weight = d.transform(x, mean), self.weight
            if d.due:
                d.remember(x, mean, y)
        y = in_layout(y.movedim(-1, 1), layout)
        out = F.conv_transpose2d(y, weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation)
        return out if batched else out.squeeze(0)

    def fused(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain transposed convolution that does the same."""
        d = self.decorrelation
        if mean is not None or d.bias is not None:
            raise ValueError(
                "a transposed convolution with a mean or a decorrelation bias is not a plain one: the constant that it "
                "adds differs between positions. Use center=None and decor_bias=False, or leave this layer unfused"
            )
        return self.composed(d.weight.detach().to(self.weight.dtype), self.weight), self.bias

    def composed(self, R: Tensor, weight: Tensor) -> Tensor:
        """R' W for a weight and an R of the shapes of this layer's, both of one dtype."""
        w = weight.flatten(1).unflatten(0, (self.groups, -1))
        R = R.reshape(self.groups, *R.shape[-2:])
        return shaped_like(weight, torch.einsum("goi,gom->gim", R, w).flatten(0, 1))

    def _fuses(self, x: Tensor, mean: Tensor | None) -> bool:
        d, learning = self.decorrelation, torch.is_grad_enabled()
        if mean is not None or d.bias is not None:
            return False
        sites = x.numel() // self.in_channels
        together = self.weight[0].numel() * (1 + learning) + d.due * d.fraction * sites
        return self._choose(together, sites * (1 + (learning and x.requires_grad)))
