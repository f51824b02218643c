"""Counted work of whole networks and experiments; that of one layer is :mod:`decorlib.rules.work`.

Counts say what a method asks for, seconds what a machine makes of it; the notebooks show both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from decorlib.rules.catalogue import make_rule
from decorlib.rules.rules import Rule
from decorlib.rules.work import (
    CHOLESKY,
    EIGEN,
    LU,
    SOLVES,
    TRIANGULAR_SOLVES,
    Flops,
    alone,
    decor_linear,
    learning,
    linear,
)
from decorlib.study.experiments import networks

__all__ = [
    "CHOLESKY",
    "EIGEN",
    "LU",
    "SOLVES",
    "TRIANGULAR_SOLVES",
    "Flops",
    "alone",
    "decor_linear",
    "experiment",
    "learning",
    "linear",
    "mlp",
]


def mlp(rule: Rule | None, batch: int, widths: Sequence[int], update_every: int = 1) -> Flops:
    """One step of a multilayer perceptron, plain (``rule=None``) or with every layer decorrelated."""
    total = Flops()
    for depth, (D, M) in enumerate(pairwise(widths)):
        plain = linear(batch, D, M, depth > 0)
        total += plain if rule is None else decor_linear(rule, batch, D, M, depth > 0, update_every)
    return total


# --------------------------------------------------------------------------------------------- whole experiments


def experiment(spec, features: int = 784) -> Flops:
    """One training step of an :class:`~decorlib.study.experiments.experiment.Experiment` by backpropagation.

    Raises:
        ValueError: another credit, whose passes are not counted here.
    """
    if spec.credit != networks.BACKPROPAGATION:
        raise ValueError(
            f"credit is {spec.credit!r}; the work of {networks.BACKPROPAGATION} is all that is counted here"
        )
    rule = None if spec.rule is None else make_rule(spec.rule, **dict(spec.rule_options))
    options = dict(spec.layer_options)
    every, fraction = options.get("update_every", 1), options.get("fraction", 1.0)
    total = Flops()
    for depth, (sites, pixels, C, kernel, M) in enumerate(networks.shapes(spec, features)):
        rows, D = spec.batch_size * sites, C * kernel
        if not networks.decorrelates(spec, depth):
            total += linear(rows, D, M, depth > 0)
        elif options.get("span") == "channel" and kernel > 1:
            over_channels = (rule, spec.batch_size * pixels, C, M * kernel, depth > 0, every, fraction)
            total += linear(rows, D, M, depth > 0) + _channels(*over_channels)
        else:
            total += decor_linear(rule, rows, D, M, depth > 0, every, fraction)
    return total


def _channels(rule: Rule, pixels: int, channels: int, outputs: int, gradient: bool, every: int, fraction: float):
    """R over channels: as a layer of its own in front of the convolution, or composed with its kernels."""
    whole = decor_linear(rule, pixels, channels, outputs, gradient, every, fraction)
    plain = linear(pixels, channels, outputs, gradient)
    return Flops(*(getattr(whole, n) - getattr(plain, n) for n in Flops.__dataclass_fields__))
