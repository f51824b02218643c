"""A task whose inputs have a known covariance: Gaussian latents, labelled by a linear teacher, seen mixed and noisy.

How correlated the inputs are, and how much of them is noise, are two numbers here; of digits nobody knows either. The
labels depend on the latents alone: what correlation and noise do to learning, they do through the inputs.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from decorlib.study.experiments import gaussians

FEATURES, CLASSES = 64, 10
HELD_OUT = 10_000
TRAIN, VALIDATION, TEST = range(3)


def covariance(condition: float, noise: float) -> Tensor:
    """That of the inputs: S + noise^2 I, S of trace D and that condition, its axes always the same."""
    S = gaussians.covariance(FEATURES, condition, seed=0)
    return S + noise**2 * torch.eye(FEATURES, dtype=S.dtype)


def draws(spec) -> tuple[Tensor, ...]:
    r"""(x, t) to train on and (x, t) to evaluate on, as :func:`decorlib.study.experiments.experiment.arrays`.

    .. math:: x = S^{1/2} z + \mathrm{noise} \cdot e, \quad t = \mathrm{argmax}\, T z

    with z and e standard normal. 64 features, 10 classes; T is always the same, its rows of length 1. Training,
    validation and test draws are of different generators, and of others than T and the axes of S.

    Args:
        spec: its ``train_size`` (0: 50,000), ``subset_seed`` or ``seed``, ``split``, ``condition`` of S, ``noise``,
            ``demean_inputs`` (by the mean of the training inputs), and ``whiten_inputs``: by the inverse square root of
            the known covariance.
    """
    seed = spec.seed if spec.subset_seed is None else spec.subset_seed
    kinds = {"test": (TEST,), "validation": (VALIDATION,), "both": (VALIDATION, TEST)}[spec.split]
    sets = [(TRAIN, spec.train_size or 50_000), *((kind, HELD_OUT) for kind in kinds)]
    root = _root(gaussians.covariance(FEATURES, spec.condition, seed=0))
    mean = torch.zeros(FEATURES, dtype=torch.float64)
    whitening = torch.linalg.inv(_root(covariance(spec.condition, spec.noise))) if spec.whiten_inputs else None
    found: list[Tensor] = []
    for kind, count in sets:
        generator = torch.Generator().manual_seed(3 * (seed + 1) + kind)  # 0 is the teacher's, and that of S's axes
        z, e = torch.randn(2, count, FEATURES, dtype=torch.float64, generator=generator)
        x = z @ root + spec.noise * e
        mean = x.mean(0) if kind == TRAIN else mean
        x = x - mean if spec.demean_inputs else x
        x = x if whitening is None else x @ whitening
        found += [x.float(), teacher(z)]
    return tuple(found)


def teacher(z: Tensor) -> Tensor:
    """The class of each latent, (N, D) -> (N)."""
    return (z @ _teacher().mT).argmax(1)


@lru_cache(maxsize=1)
def _teacher() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    T = torch.randn(CLASSES, FEATURES, dtype=torch.float64, generator=generator)
    return T / T.norm(dim=1, keepdim=True)


def _root(S: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(S)
    return vectors * values.sqrt() @ vectors.mT
