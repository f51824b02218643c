"""Running means from data, with the function kept: what a mean takes away the bias gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from decorlib.conversion.candidates import is_decorrelation, plain_kind
from decorlib.conversion.watch import Sample, evaluating, map_tensors, run
from decorlib.layers.decorrelation import Decorrelation


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable) -> nn.Module:
    r"""Set the running means mu of centred layers to those of the data, and keep what the model computes, in place.

    .. math:: W R (x - \mu_0) + b = W R (x - \mu) + b', \qquad b' = b + W R (\mu - \mu_0)

    so that each bias takes up what its mean takes away. In evaluation outputs stay what they were, for any R and any
    running mean before; in training with ``center="batch"`` they do up to the difference between the batch mean and mu.
    The pass is in evaluation mode (no dropout, batch norms at rest), each module's mode is its own again afterwards,
    and no layer remembers anything to learn from. :func:`decorlib.decorrelate` calls this with its ``calibration``.

    A layer without a bias gets one, which trains if its weight does: the ``state_dict`` gains ``<layer>.bias``, and an
    optimizer that was built before does not have it.

    Args:
        model: with layers whose ``center`` is "batch" or "running".
        batches: a loader, or any iterable. Of a batch that is a tuple or list (inputs, labels) the first element is the
            input, as in :func:`torch.optim.swa_utils.update_bn`; a mapping gives named inputs. Each is moved to the
            device of the model.

    Raises:
        ValueError: nothing is centred; no batch; a centred layer that the forward never reaches, that has no weight of
            its own (a bare Decorrelation), that shares its bias, or that is a transposed convolution, whose mean is
            another constant at each position. Nothing is changed then.
    """
    centred = {name: m for name, m in model.named_modules() if is_decorrelation(m) and m.center is not None}
    if not centred:
        raise ValueError("no layer is centred: decorrelate(model, center='batch') or center='running' first")
    layers = {name: layer for name, layer in model.named_modules() if plain_kind(layer) is not None}
    layers = {name: layer for name, layer in layers.items() if layer.decorrelation in centred.values()}
    held = {layer.decorrelation for layer in layers.values()}
    for name, decorrelation in centred.items():
        if decorrelation not in held:
            raise ValueError(f"layer '{name}' has no bias that could take up its mean: set its running mean yourself")
    check_biases(model, layers)
    totals, count = _means(model, layers, batches)
    unreached = [name for name, layer in layers.items() if layer.decorrelation not in totals]
    if unreached:
        raise ValueError(
            f"the pass of calibration never reached {_named(unreached)}: exclude them, or give data that reach them"
        )
    for layer in layers.values():
        _move_mean(layer, totals[layer.decorrelation], count)
    return model


def check_biases(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raise ValueError for a layer whose bias cannot take up a mean."""
    biases = [id(m._parameters["bias"]) for m in model.modules() if m._parameters.get("bias") is not None]
    for name, layer in layers.items():
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            raise ValueError(
                f"layer '{name}': the mean of a transposed convolution is another constant at each position, which no "
                "bias takes up: exclude it here, and decorrelate it in a second call with center=None"
            )
        if layer.bias is not None and biases.count(id(layer.bias)) > 1:
            raise ValueError(f"layer '{name}' shares its bias with another, and their means differ: untie it first")


def first_inputs(batches: Iterable[Sample]) -> Iterable[Sample]:
    """The inputs of each batch, (inputs, labels) or not."""
    return (batch[0] if isinstance(batch, tuple | list) else batch for batch in batches)


# ---------------------------------------------------------------------------------------------------------- internals


def _means(model: nn.Module, layers: dict[str, nn.Module], batches) -> tuple[dict[nn.Module, Tensor], int]:
    """The mean input of each layer, in float64, and the number of batches."""
    totals: dict[nn.Module, list] = {}
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    count = 0
    with evaluating(model), _recording([layer.decorrelation for layer in layers.values()], totals):
        for inputs in first_inputs(batches):
            if not isinstance(inputs, Tensor | tuple | Mapping):
                raise ValueError(f"a batch of calibration is a {type(inputs).__name__}: give tensors or mappings")
            run(model, map_tensors(inputs, lambda t: t.to(device)))
            count += 1
    if count == 0:
        raise ValueError("calibration holds no batch (an iterator that was used up?)")
    return {decorrelation: total / rows for decorrelation, (total, rows) in totals.items()}, count


@contextmanager
def _recording(decorrelations: list[Decorrelation], totals: dict[nn.Module, list]):
    """Layers report the means that they would track in training, and subtract what they do in evaluation."""

    def recorder(decorrelation):
        def track_mean(batch_mean: Tensor, count: int) -> Tensor:
            decorrelation._check_finite(batch_mean, "a batch mean")
            total = totals.setdefault(decorrelation, [0.0, 0])
            total[0] = total[0] + batch_mean.double() * count
            total[1] += count
            return decorrelation.running_mean

        return track_mean

    due = {decorrelation: decorrelation._due for decorrelation in decorrelations}
    try:
        for decorrelation in decorrelations:
            decorrelation.training, decorrelation._due = True, False  # nothing to remember
            decorrelation.track_mean = recorder(decorrelation)
        yield
    finally:
        for decorrelation in decorrelations:
            decorrelation.__dict__.pop("track_mean", None)
            decorrelation._due = due[decorrelation]


def _move_mean(layer: nn.Module, mean: Tensor, batches: int) -> None:
    d = layer.decorrelation
    mean = mean.to(d.running_mean)
    bias = layer.bias
    before, after = (layer.fused(m)[1] for m in (d.running_mean, mean))
    shift = before - after
    if bias is None:
        layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    else:
        bias.add_(shift)
    d.running_mean.copy_(mean)
    d.num_batches_tracked.fill_(batches)


def _named(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
