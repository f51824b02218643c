"""What a run measures of its model, and when: where it validates, it reads the test set after its last step only."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from decorlib import metrics
from decorlib.layers import bp_parameters, decor_modules

VALIDATION = 10_000


def evaluation(
    spec, x: Tensor, t: Tensor, z: Tensor, u: Tensor, *test: Tensor
) -> Callable[[nn.Module], dict[str, float]]:
    """What the trainer calls after each pass: :func:`measure`, where ``evaluate_every`` wants it and at the end.

    Args:
        spec: the experiment.
        x: inputs to train on.
        t: their targets.
        z: inputs to evaluate on.
        u: their targets.
        test: the test set, where (z, u) are validation images: it is read once, after the last step.
    """
    done, everything, every = 0, spec.measures == "all", round(spec.evaluate_every * spec.parts)

    def evaluate(model: nn.Module) -> dict[str, float]:
        nonlocal done
        done += 1
        last = done == spec.passes
        if not (last or (every and done % every == 0)):
            return {}
        # Of the task alone, training accuracy is wanted at the end only, where it costs as much as the test set; of
        # tries, which validation images decide on, it is not wanted at all.
        training, name = everything or (last and spec.split != "validation"), "validation" if test else "test"
        found = measure(model, x, t, z, u, everything, training=training, name=name)
        return found | (on_task(model, "test", *test) if last and test and _has_a_task(model) else {})

    return evaluate


@torch.no_grad()
def measure(
    model: nn.Module,
    x: Tensor,
    t: Tensor,
    z: Tensor,
    u: Tensor,
    correlations: bool = True,
    training: bool = True,
    name: str = "test",
) -> dict[str, float]:
    """Accuracy and loss on held-out data (called ``name``) and on the first 10,000 training images, and what is left of
    correlations.
    """
    found: dict[str, float] = {}
    if _has_a_task(model):
        found |= on_task(model, name, z, u)
        found |= on_task(model, "train", x[:VALIDATION], t[:VALIDATION]) if training else {}
    first = next((layer for _, layer in decor_modules(model)), None)
    if correlations and first is not None and first.in_features == x.shape[1]:  # not a convolution's patches
        y = first(x[:2000]).double()
        found["correlation"] = metrics.mean_correlation(y)
        found["cosine"] = metrics.mean_correlation(y, centred=False)
        found["effective_rank"] = metrics.effective_rank(y)
        found["residual_mean"] = float(y.mean(0).square().mean().sqrt())
        found["residual_variance"] = float((y.square().mean(0) - 1).abs().mean())
    return found


@torch.no_grad()
def on_task(model: nn.Module, name: str, z: Tensor, u: Tensor) -> dict[str, float]:
    """Accuracy and loss on images (z, u), called by the name of their set."""
    scores = outputs(model, z)
    accuracy, loss = (scores.argmax(1) == u).double().mean(), nn.functional.cross_entropy(scores.double(), u)
    return {f"{name}_accuracy": float(accuracy), f"{name}_loss": float(loss)}


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, at_once: int = 2000) -> Tensor:
    """A model's outputs for all of x, so many samples at once; of a network with convolutions at most 250.

    The states of one convolution of 2,000 digits take 100 MB, of which each part would get new pages from the system:
    three to four times the time.
    """
    if any(p.dim() == 4 for p in model.parameters()):
        at_once = min(at_once, 250)
    return torch.cat([model(part) for part in x.split(at_once)])


def _has_a_task(model: nn.Module) -> bool:
    """Whether there are weights: R alone has no classes to tell."""
    return any(True for _ in bp_parameters(model))
