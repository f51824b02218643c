"""Mistakes in wiring R to an optimizer, each made once, to hear what the trainer says."""

from __future__ import annotations

import torch
from torch import nn

from decorlib.layers import DecorLinear, bp_parameters, decor_parameters
from decorlib.layers.decorrelation import Decorrelation
from decorlib.study.experiments import notebook_2024
from decorlib.training.train import train


def mistakes() -> dict[str, str]:
    """Mistakes in wiring R to an optimizer, each made once on a small network, and what the trainer says to it.

    Returns:
        mistake -> "ErrorType: first sentence"; "nothing" where training went on without a word.
    """
    found = {}
    for name, make in _MISTAKES.items():
        torch.manual_seed(0)
        model = nn.Sequential(DecorLinear(6, 4, variance=1.0), nn.LeakyReLU(), DecorLinear(4, 3, variance=1.0))
        batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(3)]
        try:
            make(model, batches)
            found[name] = "nothing"
        except (RuntimeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {str(error).split('. ')[0].split('; ')[0]}"
    return found


def _train(model, batches, weights=None, R=None, in_place=None):
    adam = torch.optim.Adam(bp_parameters(model) if weights is None else weights, lr=1e-3)
    sgd = torch.optim.SGD(decor_parameters(model) if R is None else R, lr=1e-3)
    loss = nn.functional.cross_entropy
    train(model, loss, batches, epochs=1, optimizer=adam, decor_optimizer=sgd, in_place=in_place)


def _edited_update(model, batches):
    with notebook_2024.hot_reloaded():
        _train(model, batches, in_place=False)  # the form of 2024: update() sets a gradient, an optimizer steps


def _adam_owns_all(model, batches):
    _train(model, batches, weights=model.parameters())


def _sgd_owns_all(model, batches):
    _train(model, batches, R=model.parameters())


def _old_model(model, batches):
    other = nn.Sequential(DecorLinear(6, 4, variance=1.0), nn.LeakyReLU(), DecorLinear(4, 3, variance=1.0))
    _train(model, batches, R=[p for _, p in other.named_parameters() if not p.requires_grad])


def _forgotten_layer(model, batches):
    _train(model, batches, R=[next(iter(decor_parameters(model)))])


def _unreached_layer(model, batches):
    model.append(nn.Identity())
    model[-1].spare = Decorrelation(3, variance=1.0)
    _train(model, batches)


_MISTAKES = {
    "update() edited, sets no gradient": _edited_update,
    "Adam owns R as well": _adam_owns_all,
    "R's optimizer owns the weights": _sgd_owns_all,
    "R's optimizer was built for an older model": _old_model,
    "a layer's R belongs to no optimizer": _forgotten_layer,
    "a layer that the forward never reaches": _unreached_layer,
}
