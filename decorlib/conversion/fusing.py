"""From a decorrelated model back to a plain torch one with the same outputs."""

from __future__ import annotations

import copy

import torch
from torch import nn

from decorlib.conversion import attention
from decorlib.conversion.agree import assert_agree
from decorlib.conversion.candidates import PLAIN, plain_kind
from decorlib.conversion.fast_paths import switch_fast_paths
from decorlib.conversion.foreign import (
    ADDING,
    OF_ATTENTION,
    adapters,
    computed,
    forward_replaced,
    is_a,
    is_dtensor,
    kind_of_adapter,
    odd_tensor,
    on_meta,
)
from decorlib.conversion.watch import Sample
from decorlib.layers.centring import evaluation_mean
from decorlib.layers.steps import is_decorrelation


@torch.no_grad()
def fuse(model: nn.Module, sample_input: Sample | None = None) -> nn.Module:
    r"""A copy of the model in plain torch layers that computes in evaluation mode what the decorrelated one does.

    W (R (x - mu) + b_R) + b is one linear map: the weight becomes W R, the bias b + W (b_R - R mu) with the running
    mean mu, and is created where there was none. For convolutions this holds at the borders, too, since padding is
    centred and decorrelated like everything else. A bare :class:`Decorrelation` becomes a :class:`torch.nn.Linear`
    that takes features in the last dimension only. The ``state_dict`` has the plain model's keys, and ``torch.export``
    takes it.

    That holds where a layer's weight is read by the layer alone. A forward that reads it elsewhere (an autoencoder that
    decodes with the transposed weight) sees W R after fusing where it saw W before: with ``sample_input`` this is
    found, and refused.

    Tied weights end untied where their layers' R differ. The model itself is not changed, and what cannot be fused is
    refused before anything is copied. Adapters of peft: fuse first, then merge; an adapter sees x, and merged into the
    weight it would see R x. The page "Beside other tools" says which order works with what.

    Args:
        model: with or without decorrelation layers.
        sample_input: an input, a tuple of them, or a mapping of named ones (as tokenizers give): the model and its
            fused copy are run on it in evaluation mode, and must agree to 1e-5 of the largest output, or, where
            rounding is larger, in float64. Default: None, not checked.

    Raises:
        ValueError: outputs disagree, with the layer where they first do; or, naming the layer and the way out: a
            transposed convolution with a mean or a decorrelation bias, a subclass of our layers, a weight that is
            pruned, parametrised, quantised, sharded or on the meta device, an adapter that is merged or that reads the
            weight (DoRA), an R that is zero or not finite.
    """
    _refuse(model, verified=sample_input is not None)
    fused = _fused(model)
    if sample_input is not None:
        try:
            assert_agree(model, fused, sample_input, remake=_fused)
        except ValueError as error:
            raise ValueError(f"this {type(model).__name__} and its fused copy disagree: {error}") from error
    return fused


# ---------------------------------------------------------------------------------------------------------- internals


def _fused(model: nn.Module) -> nn.Module:
    written = {}
    for name, layer in model.named_modules():
        if attention.is_attention(layer):
            written[name] = attention.fused(layer)
        elif plain_kind(layer) is not None:
            try:
                written[name] = layer.fused(evaluation_mean(layer.decorrelation))
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error
    return _rewritten(copy.deepcopy(model), written)


def _rewritten(model: nn.Module, written: dict) -> nn.Module:
    modules = dict(model.named_modules())
    for name, tensors in written.items():
        layer = modules[name]
        if isinstance(tensors, dict):
            attention.rewrite(layer, tensors)
            continue
        weight, bias = tensors
        trains, bias_trains = (p is not None and p.requires_grad for p in (layer.weight, layer.bias))
        bias_trains = trains if layer.bias is None else bias_trains
        plain = plain_kind(layer)
        vars(layer).pop("forward", None)  # at most its class's own, see forward_replaced
        del layer.decorrelation, layer.fuse
        if hasattr(layer, "span"):
            del layer.span
        layer.__class__ = plain
        layer.weight = nn.Parameter(weight, trains)
        layer.bias = None if bias is None else nn.Parameter(bias, bias_trains)
    # What is left are bare ones: those inside other layers are gone.
    replaced = {layer: _as_linear(layer) for layer in model.modules() if is_decorrelation(layer)}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a second name of the same layer
            if child in replaced:
                setattr(parent, name, replaced[child])
    switch_fast_paths(model)
    return replaced.get(model, model)


def _refuse(model: nn.Module, verified: bool) -> None:
    """Raise ValueError for what cannot be fused, naming the layer and the way out."""
    for name, adapter in adapters(model):
        if any(plain_kind(m) or is_decorrelation(m) for m in getattr(adapter, "base_layer", nn.Module()).modules()):
            _check(name, _why_adapter(adapter, verified))
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            _check(name, "wrapped in DistributedDataParallel, which cannot be copied: fuse its .module")
        if isinstance(module, torch.jit.ScriptModule) and getattr(module, "original_name", "") == "Decorrelation":
            _check(name, "traced or scripted, so that its class is gone: fuse before torch.jit")
        if is_a(module, "FSDPModule", "torch.distributed") and any(map(is_decorrelation, module.modules())):
            _check(name, "sharded by fully_shard: gather its state_dict into an unsharded model and fuse that")
        if isinstance(module, tuple(PLAIN)) and plain_kind(module) is None:
            subclass = f"{type(module).__name__} is a subclass; write out what it computes"
            _check(name, computed(module) or subclass)
        elif attention.is_attention(module):
            _check(name, computed(module) or forward_replaced(module) or _why_tensors(module, OF_ATTENTION))
        elif plain_kind(module) is not None:
            _check(name, forward_replaced(module) or _why_values(module))
        elif is_decorrelation(module):
            _check(name, forward_replaced(module) or _why_values(module) or _why_matrix(module))


def _check(name: str, reason: str | None) -> None:
    if reason is not None:
        raise ValueError(f"layer '{name}': {reason}")


def _why_values(module: nn.Module) -> str | None:
    return computed(module) or _why_tensors(module, ("weight", "bias"))


def _why_tensors(module: nn.Module, kinds: tuple[str, ...]) -> str | None:
    for kind in kinds:
        tensor = getattr(module, kind)
        if tensor is not None and (odd := odd_tensor(tensor)) is not None:
            if is_dtensor(tensor):
                return f"its {kind} is {odd}: gather the state_dict into a model of one process and fuse that"
            return f"its {kind} is {odd}: fuse first, then quantise"
    if on_meta(module):
        return "its values are not here (on the meta device): load them first; accelerate's hooks come after fuse"
    return None


def _why_matrix(decorrelation: nn.Module) -> str | None:
    R = decorrelation.weight
    if not bool(R.isfinite().all()):
        return "its R holds NaN or infinity: it diverged, or was never loaded; reset_parameters() makes it the identity"
    if not bool(R.any()):
        return "its R is zero: it was never loaded; reset_parameters() makes it the identity"
    return None


def _why_adapter(adapter: nn.Module, verified: bool) -> str | None:
    kind = kind_of_adapter(adapter)
    if getattr(adapter, "merged_adapters", None):
        return (
            f"the adapters {adapter.merged_adapters} are merged into a weight that is multiplied by R, though they saw "
            "its input: unmerge_adapter() first, then fuse, then merge"
        )
    variants = getattr(adapter, "lora_variant", None)
    if variants:
        return (
            f"the adapter is no plain LoRA but {', '.join(sorted({type(v).__name__ for v in variants.values()}))}, "
            "which reads the weight of the layer: leave the model as it is, or fuse before get_peft_model"
        )
    if kind not in ADDING and not verified:
        return (
            f"adapters of the kind '{kind}' may read the weight past the layer: fuse(model, sample_input=...) tells "
            "whether outputs agree; or fuse before get_peft_model"
        )
    return None


def _as_linear(layer: nn.Module) -> nn.Linear:
    R = layer.weight if layer.groups == 1 else torch.block_diag(*layer.weight)
    shifts = [] if layer.bias is None else [layer.bias]
    mean = evaluation_mean(layer)
    shifts += [] if mean is None else [-R @ mean]
    linear = nn.Linear(layer.in_features, layer.in_features, bool(shifts), R.device, R.dtype)
    linear.weight.copy_(R)
    if shifts:
        linear.bias.copy_(sum(shifts))
    return linear.train(layer.training)
