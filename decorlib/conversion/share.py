"""Which layers share one R: those of one holder that match one group of patterns."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn

from decorlib.layers.gpt2 import is_conv1d

Share = Iterable[Sequence[str]]


def shared_groups(share: Share, converted: dict[str, int], modules: dict[str, nn.Module]) -> list[list[str]]:
    """The names of the layers of each shared R.

    Raises:
        ValueError: a group that is no group of at least two linear layers of one size and one holder, to be converted.
    """
    found: list[list[str]] = []
    for patterns in share:
        if isinstance(patterns, str) or len(patterns) < 2:
            raise ValueError(f"share={patterns!r}: give groups of at least two patterns, [('*.query', '*.key')]")
        holders: dict[str, list[str]] = {}
        for name in converted:
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                holders.setdefault(name.rpartition(".")[0], []).append(name)
        if not holders:
            raise ValueError(f"share: no layer that is converted matches any of {tuple(patterns)}")
        for names in holders.values():
            _check(names, patterns, modules)
            taken = {name for group in found for name in group} & set(names)
            if taken:
                raise ValueError(f"share: layers {sorted(taken)} are in two groups, and a layer has one R")
            found.append(names)
    return found


def _check(names: list[str], patterns: Sequence[str], modules: dict[str, nn.Module]) -> None:
    layers = [modules[name] for name in names]
    missing = [p for p in patterns if not any(fnmatch.fnmatchcase(name, p) for name in names)]
    if missing:
        raise ValueError(f"share: beside {names} no layer that is converted matches {missing}")
    odd = [n for n, m in zip(names, layers, strict=True) if type(m) is not nn.Linear and not is_conv1d(type(m))]
    if odd:
        raise ValueError(f"share: layers {odd} are no linear layers; convolutions and attention keep their own R")
    kinds = {(converted_size(m), m.weight.dtype, m.weight.device, m.training) for m in layers}
    if len(kinds) > 1:
        raise ValueError(f"share: layers {names} differ in size, dtype, device or mode, so they read no common input")


def converted_size(layer: nn.Module) -> int:
    """D of a linear layer."""
    return layer.nx if is_conv1d(type(layer)) else layer.in_features
