"""Layers that one would use instead of R: IterNorm and network deconvolution, from the equations of their papers.

Small and plain: references to compare with, whose whitening is differentiated through, as in both papers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def block_size(features: int, largest: int = 64) -> int:
    """The largest divisor of a number of features that is at most so large: features are whitened in such blocks."""
    return next(size for size in range(min(features, largest), 0, -1) if features % size == 0)


def covariance(blocks: Tensor, eps: float) -> Tensor:
    """Of centred features in blocks, with eps on the diagonal; (G, N, D) -> (G, D, D)."""
    eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return blocks.mT @ blocks / blocks.shape[-2] + eps * eye


def iterative_root(S: Tensor, iterations: int) -> Tensor:
    r"""The inverse root of a covariance by IterNorm's iteration (Huang et al. 2019, arXiv 1904.03441, eqs. 4 to 6).

    .. math:: P_k = \tfrac12 (3 P_{k-1} - P_{k-1}^3 S / \mathrm{tr} S), \quad P_0 = I, \quad
       S^{-1/2} \approx P_T / \sqrt{\mathrm{tr} S}

    .. note:: Of T = 5, as in the paper, or a dozen: once it has converged, further steps amplify what is rounded.

    Shape: (..., D, D) -> (..., D, D).
    """
    trace = S.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    P = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device).expand_as(S)
    for _ in range(iterations):
        P = 1.5 * P - 0.5 * (P @ P @ P) @ (S / trace)
    return P / trace.sqrt()


def coupled_root(S: Tensor, iterations: int) -> Tensor:
    r"""The inverse root by the coupled Newton-Schulz iteration of network deconvolution (Ye et al. 2020, arXiv
    1905.11926, section 3.4).

    .. math:: T = \tfrac12 (3 I - Z Y), \quad Y \leftarrow Y T, \quad Z \leftarrow T Z, \quad
       Y_0 = S / \lVert S \rVert_F, \quad Z_0 = I, \quad S^{-1/2} \approx Z / \sqrt{\lVert S \rVert_F}

    Shape: (..., D, D) -> (..., D, D).
    """
    norm = torch.linalg.matrix_norm(S)[..., None, None]
    eye = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    Y, Z = S / norm, eye.expand_as(S)
    for _ in range(iterations):
        T = 1.5 * eye - 0.5 * Z @ Y
        Y, Z = Y @ T, T @ Z
    return Z / norm.sqrt()


class IterNorm(nn.Module):
    r"""Whitens the activations of a batch, in groups, in BatchNorm's place (Huang et al. 2019, arXiv 1904.03441).

    .. math:: \hat x = \gamma\, S^{-1/2} (x - \mu) + \beta,
       \quad S = \langle (x - \mu)(x - \mu)^\top \rangle + \epsilon I

    In evaluation the running averages of the mean and of the whitening matrix are used.

    Args:
        features: D, or channels.
        iterations: T. Default: 5, as in the paper.
        largest: features of a group at most. Default: 64.
        eps: ε. Default: 1e-5.
        momentum: of the running averages. Default: 0.1.

    Shape: (B, D) or (B, C, H, W), the same out; in the second case each pixel is a sample.
    """

    def __init__(self, features: int, iterations: int = 5, largest: int = 64, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.features, self.iterations, self.eps, self.momentum = features, iterations, eps, momentum
        self.size = block_size(features, largest)
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_root", torch.eye(self.size).repeat(features // self.size, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.movedim(1, -1).reshape(-1, self.features)
        if self.training:
            mean = rows.mean(0)
            blocks = (rows - mean).unflatten(1, (-1, self.size)).movedim(1, 0)
            root = iterative_root(covariance(blocks, self.eps), self.iterations)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_root.lerp_(root, self.momentum)
        else:
            blocks = (rows - self.running_mean).unflatten(1, (-1, self.size)).movedim(1, 0)
            root = self.running_root
        white = (blocks @ root).movedim(0, 1).reshape(rows.shape) * self.weight + self.bias
        return white.unflatten(0, (x.shape[0], *x.shape[2:])).movedim(-1, 1) if x.dim() == 4 else white


class _Deconvolution(nn.Module):
    """What both layers share: mean and inverse root of the inputs' covariance, and their running averages."""

    def remember(self, D: int, iterations: int, largest: int, eps: float, momentum: float) -> None:
        self.iterations, self.eps, self.momentum, self.size = iterations, eps, momentum, block_size(D, largest)
        self.register_buffer("running_mean", torch.zeros(D))
        self.register_buffer("running_root", torch.eye(self.size).repeat(D // self.size, 1, 1))

    def statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse root, of these inputs while training; (N, D) -> (D,), (G, d, d)."""
        if not self.training:
            return self.running_mean, self.running_root
        mean = rows.mean(0)
        blocks = (rows - mean).unflatten(1, (-1, self.size)).movedim(1, 0)
        root = coupled_root(covariance(blocks, self.eps), self.iterations)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_root.lerp_(root, self.momentum)
        return mean, root

    def composed(self, W: Tensor, b: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias that do both, W S^(-1/2) and b - W S^(-1/2) mean; W is (M, D)."""
        mean, root = self.statistics(rows)
        both = (W.unflatten(1, (-1, self.size)).movedim(1, 0) @ root).movedim(0, 1).flatten(1)
        return both, b - both @ mean


class DeconvolvedLinear(nn.Linear, _Deconvolution):
    r"""A linear layer whose inputs are whitened by network deconvolution (Ye et al. 2020, arXiv 1905.11926).

    .. math:: y = W S^{-1/2} (x - \mu) + b

    Args:
        in_features, out_features: as for :class:`torch.nn.Linear`.
        iterations: of :func:`coupled_root`. Default: 5, as in the paper.
        largest: features of a block at most. Default: 64.
        eps: ε, on the diagonal of S. Default: 1e-5.
        momentum: of the running averages, which evaluation uses. Default: 0.1.

    Shape: (..., D) -> (..., M).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        iterations: int = 5,
        largest: int = 64,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        super().__init__(in_features, out_features)
        self.remember(in_features, iterations, largest, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.composed(self.weight, self.bias, x.flatten(0, -2)))


class DeconvolvedConv2d(nn.Conv2d, _Deconvolution):
    """The same for a convolution: its patches are whitened. Borders are padded with zeros, as in the paper's code.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as for :class:`torch.nn.Conv2d`.
        iterations, largest, eps, momentum: as for :class:`DeconvolvedLinear`.

    Shape: (B, C, H, W) -> (B, M, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        iterations: int = 5,
        largest: int = 64,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.remember(in_channels * kernel_size**2, iterations, largest, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.new_zeros((0, self.running_mean.numel()))
        if self.training:
            rows = F.unfold(x, self.kernel_size, padding=self.padding, stride=self.stride).mT.flatten(0, 1)
        W, b = self.composed(self.weight.flatten(1), self.bias, rows)
        return F.conv2d(x, W.view_as(self.weight), b, self.stride, self.padding)
