"""What rate to give R: from the curvature of each layer's rule on a batch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from decorlib.layers.step import batch_moments
from decorlib.layers.steps import learners_of
from decorlib.rules.rates import STEP, auto_rate


def suggest_rates(model: nn.Module, batch: Tensor | tuple, step: float = STEP) -> dict[str, float]:
    """The rate of R of each layer at which the strongest mode of its states moves by ``step`` of itself, by name.

    The model is left as it was: a copy of it sees the batch, in training mode. Layers that stand still have no rate.

    Args:
        model: a model with decorrelation layers.
        batch: what the model is called with, a tensor, or a tuple of its arguments. Larger than usual batches
            overrate the rate: statistics of few samples are steeper.
        step: see :func:`decorlib.rules.rates.auto_rate`. Default: 0.1.

    Raises:
        ValueError: a model without decorrelation layers; a layer that the batch never reaches, or whose states have no
            curvature; the message names it.

    Example::

        >>> rates = suggest_rates(model, x)
    """
    learners_of(model)
    twin = copy.deepcopy(model).train()
    members = learners_of(twin)
    for member in members:
        member.layer.num_updates.zero_()  # its turn, whatever update_every says
        member.layer.forget()
    with torch.random.fork_rng(), torch.no_grad():
        twin(*batch) if isinstance(batch, tuple) else twin(batch)
        rates = {}
        for member in members:
            if member.layer.frozen or not member.layer.learning:
                continue
            if len(member.layer.memory) == 0:
                raise ValueError(f"layer '{member.name}' is not reached by this batch, so no rate can be told for it")
            moments = batch_moments(member.layer)[0]
            rates[member.name] = member.named(auto_rate, member.layer.rule, moments, step)
    if not rates:
        raise ValueError("no layer learns: all are frozen, or have learning = False")
    return rates


def suggest_rate(model: nn.Module, batch: Tensor | tuple, step: float = STEP) -> float:
    """One rate for all layers, the smallest of :func:`suggest_rates`.

    Example::

        >>> optimizer = DecorSGD(model, lr=suggest_rate(model, x))
    """
    return min(suggest_rates(model, batch, step).values())
