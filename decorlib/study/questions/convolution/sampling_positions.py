"""Which positions a convolution's statistics are taken from: a random part of them, and those at the border."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from decorlib import metrics
from decorlib.data import inputs
from decorlib.layers import DecorConv2d
from decorlib.rules.rules import SeedRule
from decorlib.rules.whitening import shrink, zca
from decorlib.study.questions.convolution.patches import patches

# ------------------------------------------------------------------------------------ statistics from some positions


@dataclass(frozen=True)
class SamplingLaw:
    """Expected error of the second moment X of patches, from B images and n of their positions.

    Images are drawn at random, positions at random within the batch, so that with L positions in an image

        <||X_est - X||^2> = (1 - B/N) between / B + (1 - n / (B L)) (total - between / B) / n.

    Args:
        total: <||p p' - X||^2> over patches p.
        between: <||mean over an image of p p' - X||^2> over images.
        norm: ||X||, which errors are relative to.
        images: N, that are drawn from.
        positions: L.
    """

    total: float
    between: float
    norm: float
    images: int
    positions: int

    @property
    def effective(self) -> float:
        """How many independent positions one image is worth: L if they were, 1 if they all said the same."""
        return self.total / self.between

    def error(self, batch: int, n: float | int) -> float:
        """Root mean square relative error."""
        of_images = (1 - batch / self.images) * self.between / batch
        of_positions = (1 - n / (batch * self.positions)) * (self.total - self.between / batch) / n
        return math.sqrt(of_images + of_positions) / self.norm

    def enough(self, batch: int, excess: float = 0.1) -> float:
        """The fraction at which the error is by ``excess`` larger than with all positions."""
        least = self.error(batch, batch * self.positions)
        rest = ((1 + excess) ** 2 - 1) * (least * self.norm) ** 2
        per_sample = self.total - self.between / batch
        return 1 / (1 + rest * batch * self.positions / per_sample)


def sampling_law(x: Tensor, kernel: int, padding: int = 0) -> SamplingLaw:
    """The law's constants, computed from all patches of the images x (N, 1, H, W); nothing is fitted."""
    p = patches(x, kernel, padding)
    each = p.mT @ p / p.shape[1]
    X = each.mean(0)
    norm = float(X.square().sum())
    total = float(p.square().sum(2).square().mean()) - norm
    between = float((each - X).square().sum((1, 2)).sum()) / (len(x) - 1)
    return SamplingLaw(total, between, math.sqrt(norm), len(x), p.shape[1])


def sampling_errors(
    x: Tensor, kernel: int, fractions: Sequence[float], trials: int, padding: int = 0, batch: int = 64, seed: int = 0
) -> pd.DataFrame:
    """Relative errors of X as a layer with these fractions sees it; one row per fraction and trial.

    What the layer sees is read off its update: without a target, the 2024 rule asks for dR = X R, at R = I.
    """
    p = patches(x, kernel, padding)
    X = (p.mT @ p).mean(0) / p.shape[1]
    generator, rows = torch.Generator().manual_seed(seed), []
    for fraction in fractions:
        options = {"fraction": fraction, "generator": generator, "dtype": torch.float64}
        layer = DecorConv2d(1, 1, kernel, padding=padding, rule=SeedRule(), **options)
        for trial in range(trials):
            with torch.no_grad():
                layer(x[torch.randperm(len(x), generator=generator)[:batch]].double())
            layer.update()
            error = float((layer.decorrelation.weight.grad - X).norm() / X.norm())
            n = max(1, round(fraction * batch * p.shape[1]))
            rows.append({"fraction": fraction, "positions": n, "trial": trial, "error": error})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------ zeros at the border


def missing(kernel: int, size: int) -> Tensor:
    """How many pixels of a size x size image each tap never sees with "same" padding and stride 1, (kernel^2,)."""
    offset = (torch.arange(kernel) - kernel // 2).abs()
    seen = size - offset
    return (size**2 - seen[:, None] * seen).flatten().double()


def padded_means(x: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Mean of every tap with zero padding: measured, and predicted by m - c missing / size^2.

    m is the mean of all pixels, c the background. Exact where all that a tap misses is background.
    """
    background = float(x.min())
    measured = patches(x, kernel, kernel // 2).mean((0, 1))
    return measured, x.double().mean() - background * missing(kernel, x.shape[-1]) / x.shape[-1] ** 2


def padding_effects(images: Tensor, scalings: Sequence[str], kernels: Sequence[int]) -> pd.DataFrame:
    """Zeros against background as padding, by scaling and kernel, "same" padding: what it does to X, about zero.

    Args:
        images: uint8 (N, 28, 28).
        scalings: names of :func:`decorlib.data.inputs.scale`.
        kernels: odd sides of a patch.

    Returns:
        The background's value; share of positions whose patch has padding in it; root mean square change of the mean
        patch over that of the pixels; change of X relative to X with background; top eigenvalue both ways; smallest
        cosine between rows of the two ZCA matrices.
    """
    rows = []
    for how in scalings:
        x = inputs.scale(images, how, reference=images).unsqueeze(1)
        background = float(x.min())
        for kernel in kernels:
            pad = kernel // 2
            zeros = patches(x, kernel, pad)
            same = patches(F.pad(x, (pad,) * 4, value=background), kernel)
            X, Y = (metrics.second_moment(p.flatten(0, 1)) for p in (zeros, same))
            m, n = zeros.mean((0, 1)), same.mean((0, 1))
            touched = float((~interior(x.shape[2:], kernel, pad)).double().mean())
            tops = [float(torch.linalg.eigvalsh(S)[-1]) for S in (X, Y)]
            likeness = float(F.cosine_similarity(zca(X), zca(Y), dim=1).min())
            rms = float(x.double().square().mean().sqrt())
            rows.append(
                {
                    "scaling": how,
                    "kernel": kernel,
                    "background": background,
                    "touched": touched,
                    "mean": float((m - n).square().mean().sqrt()) / rms,
                    "moment": float((X - Y).norm() / Y.norm()),
                    "top, zeros": tops[0],
                    "top, background": tops[1],
                    "least cosine of R": likeness,
                }
            )
    return pd.DataFrame(rows)


def interior(size: Sequence[int], kernel: int, padding: int, stride: int = 1) -> Tensor:
    """Which positions have a patch without padding, bool (positions,)."""
    return F.unfold(torch.ones(1, 1, *size), kernel, padding=padding, stride=stride)[0].amin(0) > 0


def border_effect(x: Tensor, kernel: int = 3, padding: int = 1, stride: int = 2, shrinkage: float = 0.01) -> dict:
    """What border positions do to the statistics of a layer's input x (N, C, H, W), centred.

    Returns:
        Share of positions that see padding; relative distance of the covariance over all positions from that over the
        others; correlation left at the others after exact whitening (with shrinkage) by either.
    """
    inside = interior(x.shape[2:], kernel, padding, stride)
    p = patches(x, kernel, padding, stride)
    everywhere, others = p.flatten(0, 1), p[:, inside].flatten(0, 1)
    S_all, S_in = (metrics.second_moment(rows, centred=True) for rows in (everywhere, others))
    left = [metrics.mean_correlation(others @ zca(shrink(S, shrinkage))) for S in (S_all, S_in)]
    return {
        "touched": 1 - float(inside.double().mean()),
        "moment": float((S_all - S_in).norm() / S_in.norm()),
        "left by R of all": left[0],
        "left by R of the others": left[1],
    }
