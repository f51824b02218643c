"""Parameter groups of R, made of layers: an optimizer of R has to know whom to ask for a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from decorlib.layers.options import Layers
from decorlib.layers.steps import Learner, learners_of


def groups(model: Layers) -> list[dict[str, Any]]:
    """Groups of layers, of which there is one where nothing else is said."""
    if isinstance(model, nn.Module):
        return [{"params": model}]
    given = list(model)
    if given and all(isinstance(one, dict) for one in given):
        return given
    return [{"params": given}]


def learners_in(layers) -> list[Learner]:
    """The layers that hold an R in a module, in several, or in (name, module) pairs."""
    if isinstance(layers, nn.Module):
        return learners_of(layers)
    if isinstance(layers, tuple) and all(isinstance(one, Learner) for one in layers):
        return list(layers)
    found: list[Learner] = []
    for i, one in enumerate(layers):
        prefix, module = one if isinstance(one, tuple) else (str(i), one)
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"{type(module).__name__} among the layers: an optimizer of R takes a model or layers, and finds R and "
                "its batches there; it cannot ask a parameter for its batch"
            )
        found += [m._replace(name=f"{prefix}.{m.name}".rstrip(".")) for m in learners_of(module)]
    if not found:
        raise ValueError("no layers were given: pass a model, or layers that hold an R")
    return found


def told_apart(found: list[Learner], others: Sequence[Sequence[Learner]]) -> list[Learner]:
    """Layers of a new group under names that those of the groups before do not have: else losses would be lost."""
    taken = {learner.name for group in others for learner in group}
    if not taken & {learner.name for learner in found}:
        return found
    return [learner._replace(name=f"{len(others)}.{learner.name}".rstrip(".")) for learner in found]


def groups_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """The groups of an optimizer that was built over :func:`decor_parameters`, as layers."""
    members = learners_of(model)
    owner = {id(p): member for member in members for p in member.parameters}
    found_groups = []
    for group in optimizer.param_groups:
        others = sum(id(p) not in owner for p in group["params"])
        if others:
            raise ValueError(f"the optimizer also owns {others} plain weights: build it over decor_parameters(model)")
        found = tuple({id(owner[id(p)].layer): owner[id(p)] for p in group["params"]}.values())
        found_groups.append({"params": found, "lr": group["lr"]})
    return found_groups


def take_away_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """What walks ``parameters()`` is to find none of them."""
    for parameter in parameters:
        parameter.grad = None
