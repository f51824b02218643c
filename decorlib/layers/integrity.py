"""What may happen to R behind a layer's back: initialisers, pruning, loading, moving, sharding. Found, or prevented."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from decorlib.layers.checks import called


class Trust:
    """Which R was looked at and found sound. Another one, or the same after loading or moving, is looked at again."""

    def __init__(self, meta: bool):
        self.R: nn.Parameter | None = None
        self.unwritten = meta  # whether it began without numbers, and nothing that was noticed gave it any
        self.allocated: nn.Parameter | None = None  # R as it came out of the meta device: numbers that mean nothing


def check(layer: nn.Module, input: Tensor | None = None) -> None:
    """Raise RuntimeError unless R is what this layer can use; costs a comparison where it was looked at before."""
    R, trust = layer._parameters.get("weight"), layer._trust
    if R is trust.R and R is not None and not R.requires_grad:
        return
    if R is None and layer.training and getattr(layer, "_is_replica", False):
        raise RuntimeError(
            f"{called(layer)}torch.nn.DataParallel trains copies, and what R would learn from is lost with them: use "
            "torch.nn.parallel.DistributedDataParallel, one process for each device"
        )
    if R is None:
        if input is not None and not layer.training:
            return  # a pruned network may be evaluated
        raise RuntimeError(
            f"{called(layer)}R is no Parameter any more (pruning, or a parametrization of 'weight'), so it cannot "
            "learn, and a checkpoint would not hold it: undo that (torch.nn.utils.prune.remove, "
            "torch.nn.utils.parametrize.remove_parametrizations), and leave decor_parameters(model) out of it"
        )
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and isinstance(R, tensors.DTensor):
        return _refuse_shard(layer) if input is None else None
    if not isinstance(R, nn.Parameter) or (R.is_meta and (input is None or input.is_meta)):
        return  # torch.func.functional_call; shapes without numbers
    if R.is_meta:
        raise RuntimeError(
            f"{called(layer)}R is on the meta device and the input is not. Load a checkpoint, or call "
            "layer.reset_parameters(); where R was offloaded (accelerate's cpu_offload), its hook never runs, since "
            "the layer around R uses it without a call: decorlib.fuse(model) first, or name the layer in "
            "preload_module_classes"
        )
    # transformers marks what it has loaded; what it has not, it leaves as it was allocated.
    if trust.unwritten and getattr(layer, "_is_hf_initialized", False):
        if not getattr(R, "_is_hf_initialized", False):
            layer.reset_parameters()
        trust.unwritten = False
    if trust.unwritten and R is trust.allocated:
        raise RuntimeError(
            f"{called(layer)}R was made on the meta device and never given numbers: load a checkpoint, or call "
            "layer.reset_parameters()"
        )
    if not bool(R.any() & R.isfinite().all()):
        raise RuntimeError(
            f"{called(layer)}R {'holds NaN or infinity' if bool(R.any()) else 'is zero'}: it was overwritten, loaded "
            "from a damaged checkpoint, or never initialised. Load another one, or call layer.reset_parameters()"
        )
    if R.requires_grad:  # a loader made a Parameter of its own
        R.requires_grad_(False)
    trust.R, trust.unwritten = R, False


def _refuse_shard(layer: nn.Module) -> None:
    raise RuntimeError(
        f"{called(layer)}R is sharded (a DTensor), and its step needs all of it: decorlib.conversion.shard(model) "
        "in place of fully_shard(model) leaves R whole (its ignored_params), as does decorrelate(model) after it"
    )


def moved(layer: nn.Module, was_meta: bool) -> None:
    """After a move: R is looked at again; out of the meta device it comes without numbers."""
    R, trust = layer._parameters.get("weight"), layer._trust
    trust.R = None
    if was_meta and R is not None and not R.is_meta:
        trust.unwritten, trust.allocated = True, R


def loaded(layer: nn.Module, state_dict: dict, prefix: str, assigned: bool) -> None:
    """After ``load_state_dict``: R needs no gradient, and what had no numbers and got none is as in a new layer.

    So the state_dict of a plain model loads (``strict=False``) into one that was decorrelated on the meta device.
    """
    trust = layer._trust
    trust.R = None
    for parameter in layer.parameters(recurse=False):
        parameter.requires_grad_(False)
    if prefix + "weight" in state_dict:
        layer.forget()  # states of the R that was there before say nothing about this one
    own = {**layer._parameters, **layer._buffers}
    missing = [name for name, t in own.items() if t is not None and prefix + name not in state_dict]
    parent = prefix.removesuffix("decorrelation.") if prefix.endswith("decorrelation.") else prefix
    near = next((t.device for key, t in state_dict.items() if key.startswith(parent) and isinstance(t, Tensor)), "cpu")
    for name in missing:
        meta = own[name].is_meta
        if (meta and assigned and torch.device(near).type != "meta") or (not meta and trust.unwritten):
            if meta:
                empty = torch.empty_like(own[name], device=near)
                setattr(layer, name, nn.Parameter(empty, False) if name in layer._parameters else empty)
            initialise(layer, name)
    if "weight" in own and own["weight"] is not None and not layer.weight.is_meta:
        trust.unwritten = False


@torch.no_grad()
def initialise(layer: nn.Module, name: str) -> None:
    """Give one tensor of a layer its first value: R = I, all others 0."""
    tensor = getattr(layer, name)
    if name == "weight":
        tensor.copy_(torch.eye(tensor.shape[-1], dtype=tensor.dtype, device=tensor.device).expand_as(tensor))
    else:
        tensor.zero_()


@torch.no_grad()
def protected(layer: nn.Module, fn) -> None:
    """``fn(layer)`` as :meth:`torch.nn.Module.apply` calls it, without letting an initialiser have R and b.

    An initialiser of everything that has a matrix called ``weight`` (``m.weight.data.normal_()``) means weights, and
    would make noise of R. What ends at R = I (``reset_parameters``) is let through.
    """
    kept = {name: p.detach().clone() for name, p in layer._parameters.items() if p is not None and not p.is_meta}
    fn(layer)
    R, b = layer._parameters.get("weight"), layer._parameters.get("bias")
    if R is None or R.is_meta:
        return
    identity = torch.equal(R, torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(R))
    if identity and (b is None or not bool(b.any())):
        return
    for name, value in kept.items():
        parameter = layer._parameters.get(name)
        if parameter is not None and parameter.shape == value.shape:
            parameter.copy_(value)
