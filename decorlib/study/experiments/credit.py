"""How a network learns which weight is to blame: backpropagation, or what needs less than that."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.study.experiments.feedback import DirectFeedback, FeedbackAlignment
from decorlib.study.experiments.networks import BACKPROPAGATION
from decorlib.study.experiments.perturbation import Perturbed

#: Names of the ways, as the settings of an experiment.
CREDITS = (
    BACKPROPAGATION,
    "feedback alignment",
    "direct feedback alignment",
    "node perturbation",
    "activity perturbation",
    "weight perturbation",
)


def assign(network: nn.Module, credit: str, seed: int) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """The model to train by the ordinary trainer, and its loss: the network itself, or the network in another's hands.

    Args:
        network: an MLP of :func:`decorlib.study.experiments.networks.build`.
        credit: one of :data:`CREDITS`.
        seed: of feedback matrices and noise, by a generator of their own.

    Raises:
        ValueError: an unknown name.
    """
    if credit not in CREDITS:
        raise ValueError(f"credit is {credit!r}; allowed: {', '.join(CREDITS)}")
    generator = torch.Generator().manual_seed(seed)
    if credit == BACKPROPAGATION:
        return network, F.cross_entropy
    if credit.endswith("alignment"):
        kind = FeedbackAlignment if credit == "feedback alignment" else DirectFeedback
        return kind(network, generator), F.cross_entropy
    model = Perturbed(network, credit.split()[0], generator)
    return model, model.loss
