"""DecorConv1d and DecorConv3d: what :mod:`decorlib.layers.conv` says of images, of sequences and of volumes."""

from __future__ import annotations

from torch import nn

from decorlib.layers.conv import DecorConvNd


class DecorConv1d(DecorConvNd, nn.Conv1d):
    r"""A convolution over a sequence on decorrelated patches or channels; all else as :class:`DecorConv2d`.

    A drop-in for :class:`torch.nn.Conv1d`. R over patches covers C_in / groups * k features.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in torch.
        decor_bias, eta, variance, span, fuse, **options: see :class:`DecorConv2d`.

    Shape:
        - Input: :math:`(N, C_{in}, L)` or :math:`(C_{in}, L)`.
        - Output: as :class:`torch.nn.Conv1d`.

    Example::

        >>> layer = DecorConv1d(8, 16, 5, padding="same", variance=1.0)
        >>> layer(torch.randn(4, 8, 100)).shape
        torch.Size([4, 16, 100])
    """


class DecorConv3d(DecorConvNd, nn.Conv3d):
    r"""A convolution over volumes or videos on decorrelated patches or channels; all else as :class:`DecorConv2d`.

    A drop-in for :class:`torch.nn.Conv3d`. R over patches covers C_in / groups * kd * kh * kw features, which is soon
    more than the layer is worth: 27 C_in for a kernel of 3. ``span="channel"`` is what is affordable.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in torch.
        decor_bias, eta, variance, span, fuse, **options: see :class:`DecorConv2d`.

    Shape:
        - Input: :math:`(N, C_{in}, D, H, W)` or :math:`(C_{in}, D, H, W)`.
        - Output: as :class:`torch.nn.Conv3d`.

    Example::

        >>> layer = DecorConv3d(3, 8, 3, padding=1, span="channel", center="running")
        >>> layer(torch.randn(2, 3, 8, 16, 16)).shape
        torch.Size([2, 8, 8, 16, 16])
    """
