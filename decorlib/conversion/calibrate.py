"""Running means from data, with the function kept: what a mean takes away the bias gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from decorlib.conversion import attention
from decorlib.conversion.candidates import plain_kind
from decorlib.conversion.watch import evaluating, map_tensors, run
from decorlib.layers.steps import is_decorrelation


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
    layers = {name: layer for name, layer in layers.items() if any(d in centred.values() for d in _held(layer))}
    held = {d for layer in layers.values() for d in _held(layer)}
    for name, decorrelation in centred.items():
        if decorrelation not in held:
            raise ValueError(f"layer '{name}' has no bias that could take up its mean: set its running mean yourself")
    check_biases(model, layers)
    totals, count = _means(model, layers, batches)
    unreached = [name for name, layer in layers.items() if any(d not in totals for d in _held(layer))]
    if unreached:
        raise ValueError(
            f"the pass of calibration never reached {_named(unreached)}: exclude them, or give data that reach them"
        )
    means = {d: mean.to(d.running_mean) for d, mean in totals.items()}
    for layer in layers.values():  # all biases before the first mean: layers may share one
        _take_up(layer, means)
    for d, mean in means.items():
        d.running_mean.copy_(mean)
        d.num_batches_tracked.fill_(count)
    return model


def check_biases(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    """Raise ValueError for a layer whose bias cannot take up a mean."""
    kinds = ("bias", "in_proj_bias")
    biases = [id(m._parameters[k]) for m in model.modules() for k in kinds if m._parameters.get(k) is not None]
    for name, layer in layers.items():
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            raise ValueError(
                f"layer '{name}': the mean of a transposed convolution is another constant at each position, which no "
                "bias takes up: exclude it here, and decorrelate it in a second call with center=None"
            )
        bias = layer.in_proj_bias if isinstance(layer, nn.MultiheadAttention) else layer.bias
        if bias is not None and not isinstance(bias, nn.Parameter):
            raise ValueError(
                f"layer '{name}': its bias is computed from others at each forward (pruning), so that nothing it takes "
                "up would stay: torch.nn.utils.prune.remove(layer, 'bias') first"
            )
        if bias is not None and biases.count(id(bias)) > 1:
            raise ValueError(f"layer '{name}' shares its bias with another, and their means differ: untie it first")


def first_inputs(batches: Iterable) -> Iterable:
    """The inputs of each batch, (inputs, labels) or not."""
    return (batch[0] if isinstance(batch, tuple | list) else batch for batch in batches)


# ---------------------------------------------------------------------------------------------------------- internals


def _means(model: nn.Module, layers: dict[str, nn.Module], batches) -> tuple[dict[nn.Module, Tensor], int]:
    """The mean input of each layer, in float64, and the number of batches."""
    totals: dict[nn.Module, list] = {}
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    count = 0
    with evaluating(model), _recording(layers.values(), totals):
        for inputs in first_inputs(batches):
            if not isinstance(inputs, Tensor | tuple | Mapping):
                raise ValueError(f"a batch of calibration is a {type(inputs).__name__}: give tensors or mappings")
            run(model, map_tensors(inputs, lambda t: t.to(device)))
            count += 1
    if count == 0:
        raise ValueError("calibration holds no batch (an iterator that was used up?)")
    return {decorrelation: total / rows for decorrelation, (total, rows) in totals.items()}, count


@contextmanager
def _recording(layers: Iterable[nn.Module], totals: dict[nn.Module, list]):
    """At each forward of a layer, in evaluation mode as it is, add up the mean of what it is given."""

    def add(d: nn.Module, mean: Tensor, rows: int) -> None:
        total = totals.setdefault(d, [0.0, 0])
        total[0] = total[0] + mean.double() * rows
        total[1] += rows

    def record(layer: nn.Module, inputs: tuple, named: dict, output: Tensor | tuple) -> None:
        if attention.is_attention(layer):
            given = dict(zip(("query", "key", "value"), inputs, strict=False)) | named
            for name, x in layer.inputs_of(given["query"], given["key"], given["value"]).items():
                if x.numel():
                    rows = x.reshape(-1, x.shape[-1])
                    add(layer.decorrelations[name], rows.double().mean(0), rows.shape[0])
            return
        x = inputs[0] if inputs else next(iter(named.values()))
        if x.numel() == 0:
            return
        batch_mean = _mean_of(layer, x)
        of_patches = isinstance(layer, nn.modules.conv._ConvNd) and batch_mean.numel() > layer.in_channels
        rows = output.numel() // layer.out_channels if of_patches else x.numel() // batch_mean.numel()
        add(layer.decorrelation, batch_mean, rows)

    hooks = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mean_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What a training forward would take for the mean of its batch: it moves a running mean all the way there."""
    d = layer.decorrelation
    before = d.running_mean.clone(), d.num_batches_tracked.clone()
    settings = {name: getattr(d, name) for name in ("training", "learning", "center", "momentum", "sharers")}
    try:
        d.training, d.learning, d.center, d.momentum, d.sharers = True, False, "running", 1.0, 1
        type(layer).forward(layer, x)
        return d.running_mean.clone()
    finally:
        for name, value in settings.items():
            setattr(d, name, value)
        d.running_mean.copy_(before[0])
        d.num_batches_tracked.copy_(before[1])


def _held(layer: nn.Module) -> list[nn.Module]:
    return list(layer.decorrelations.values()) if attention.is_attention(layer) else [layer.decorrelation]


def _take_up(layer: nn.Module, means: dict[nn.Module, Tensor]) -> None:
    if attention.is_attention(layer):
        return attention.move_means(layer, {name: means[d] for name, d in layer.decorrelations.items()})
    d, bias = layer.decorrelation, layer.bias
    before, after = (layer.fused(m)[1] for m in (d.running_mean, means[d]))
    if bias is None:
        layer.bias = nn.Parameter((before - after).to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    else:
        bias.add_(before - after)


def _named(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
