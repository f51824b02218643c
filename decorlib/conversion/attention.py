"""Attention: from torch's to a decorrelated one in place, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from decorlib.conversion.watch import Sample, evaluating, run
from decorlib.layers.attention import DecorMultiheadAttention, DecorProjection, decorrelations
from decorlib.layers.centring import evaluation_mean
from decorlib.layers.steps import is_decorrelation

ATTENTION = {nn.MultiheadAttention: DecorMultiheadAttention, NonDynamicallyQuantizableLinear: DecorProjection}


def why_not(name: str, modules: dict[str, nn.Module], converted) -> str | None:
    """Why an output projection cannot be converted: it goes with the attention whose forward reads it."""
    module = modules[name]
    if type(module) is not NonDynamicallyQuantizableLinear:
        return None
    holder, _, attribute = name.rpartition(".")
    if type(modules.get(holder)) is nn.MultiheadAttention and attribute == "out_proj" and holder in converted:
        return None
    return "only an attention that is decorrelated itself calls its output projection as a layer"


def settings(model: nn.Module, names: list[str], sample: Sample | None) -> dict[str, str]:
    """``inputs`` of each attention: known for those of torch's transformers, else seen on a sample, else separate."""
    modules, found = dict(model.named_modules()), {}
    for name in names:
        holder, _, attribute = name.rpartition(".")
        parent = modules[holder] if name else None
        if type(parent) in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer):
            found[name] = {"self_attn": "self", "multihead_attn": "memory"}.get(attribute, "separate")
    unknown = [name for name in names if name not in found]
    if unknown and sample is not None:
        found |= _seen(model, unknown, modules, sample)
    return {name: found.get(name, "separate") for name in names}


def _seen(model: nn.Module, names: list[str], modules: dict[str, nn.Module], sample: Sample) -> dict[str, str]:
    order, seen = ("self", "memory", "separate"), {}

    def note(name):
        def hook(module, arguments, named):
            given = dict(zip(("query", "key", "value"), arguments, strict=False)) | named
            q, k, v = (given[one] for one in ("query", "key", "value"))
            kind = "separate" if k is not v else "self" if q is k else "memory"
            seen[name] = max(seen.get(name, kind), kind, key=order.index)

        return hook

    hooks = [modules[name].register_forward_pre_hook(note(name), with_kwargs=True) for name in names]
    try:
        with evaluating(model):
            run(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def convert(layer: nn.MultiheadAttention, made: nn.ModuleDict, inputs: str) -> None:
    vars(layer).pop("forward", None)
    layer.__class__, layer.inputs, layer.decorrelations = DecorMultiheadAttention, inputs, made


def made_for(layer: nn.MultiheadAttention, inputs: str, **options) -> nn.ModuleDict:
    weight = layer.out_proj.weight
    options |= {"device": weight.device, "dtype": weight.dtype}
    return decorrelations(layer, inputs, **options).train(layer.training)


def restore(layer: nn.Module) -> None:
    """The plain attention, with the weights as they are."""
    del layer.decorrelations, layer.inputs
    layer.__class__ = nn.MultiheadAttention


def fused(layer: DecorMultiheadAttention) -> dict[str, Tensor | None]:
    """The parameters of the plain attention that computes the same in evaluation."""
    weights, bias = layer.fused_inputs({name: evaluation_mean(d) for name, d in layer.decorrelations.items()})
    names = ("in_proj_weight",) if len(weights) == 1 else ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    return {**dict(zip(names, weights, strict=True)), "in_proj_bias": bias}


def rewrite(layer: nn.Module, written: dict[str, Tensor | None]) -> None:
    trains = any(W.requires_grad for W in layer._weights())
    for name, tensor in written.items():
        old = getattr(layer, name)
        keep = trains if old is None else old.requires_grad
        setattr(layer, name, None if tensor is None else nn.Parameter(tensor.clone(), keep))
    restore(layer)


@torch.no_grad()
def move_means(layer: DecorMultiheadAttention, means: dict[str, Tensor]) -> None:
    """The bias takes up what other means take away."""
    old = {name: d.running_mean for name, d in layer.decorrelations.items()}
    before, after = (layer.fused_inputs(m)[1] for m in (old, means))
    if layer.in_proj_bias is None:
        trains = any(W.requires_grad for W in layer._weights())
        layer.in_proj_bias = nn.Parameter(before - after, requires_grad=trains)
    else:
        layer.in_proj_bias.add_(before - after)


def is_attention(module: nn.Module) -> bool:
    """Whether a module is ours, by what it holds: after a reload of the library its class is another one."""
    return type(module).__name__ == "DecorMultiheadAttention" and any(
        map(is_decorrelation, getattr(module, "decorrelations", nn.ModuleDict()).values())
    )
