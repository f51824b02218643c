"""What may happen to R behind a layer's back: initialisers, pruning, loading, moving, sharding. Found, or prevented."""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

from decorlib.layers.checks import called
from decorlib.layers.distributed import gathered


class Trust:
    """Which R was looked at and found sound. Another one, or the same after loading or moving, is looked at again."""

    def __init__(self, meta: bool):
        self.R: nn.Parameter | None = None
        self.unwritten = meta  # whether it began without numbers, and nothing that was noticed gave it any
        self.allocated: nn.Parameter | None = None  # R as it came out of the meta device: numbers that mean nothing
        self.version: int | None = None  # of R when it was last asked whether an initialiser wrote it
        self.in_shards = False  # whether R is a part of what fully_shard gathers for a forward
        self.left: int | None = None  # what its last step left, see unmoved; None where it was set since
        self.meant = False  # whether R was set on purpose (set_weight, loading) since protected() began to watch


def check(layer: nn.Module, input: Tensor | None = None) -> None:
    """Raise RuntimeError unless R is what this layer can use; costs a comparison where it was looked at before."""
    R, trust = layer._parameters.get("weight"), layer._trust
    if R is trust.R and R is not None and not R.requires_grad:
        if not layer._R_is_known:
            _refuse_noise(layer, R, input)
        if trust.in_shards and input is None:
            _refuse_shard(layer)
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
    trust.R, trust.unwritten, trust.version, trust.in_shards = R, False, None, gathered(layer)
    if not layer._R_is_known:
        _refuse_noise(layer, R, input)
    if trust.in_shards and input is None:
        _refuse_shard(layer)


def _refuse_noise(layer: nn.Module, R: nn.Parameter, input: Tensor | None) -> None:
    """Raise RuntimeError where an initialiser has made noise of R, until R is known to be meant.

    R is known to be meant when it has learned, was loaded, or was set by ``set_weight``. Until then it is looked at in
    training forwards, as often as somebody has written to it, and at the first step, which also finds what was written
    past the version counter (``p.data.normal_()``). Copies that are only evaluated (averages of weights, targets that
    follow a network) take R from where it was learned, and their own count of updates may stand at 0.
    """
    version = None if R.is_inference() else R._version
    if input is not None and (version == layer._trust.version or not (layer.training and torch.is_grad_enabled())):
        return
    layer._trust.version = version
    if layer._count.of(layer.num_updates):
        layer._R_is_known = True
    elif looks_like_noise(R):
        raise RuntimeError(
            f"{called(layer)}R is not the identity that it started as, and looks like what an initialiser draws: a "
            "loop over model.parameters() or model.modules() has written to it. Let the loop go over "
            "decorlib.bp_parameters(model), which leaves R out, or use model.apply(fn), which does, too; "
            "layer.reset_parameters() of the Decorrelation makes R the identity again. An R that you set on purpose is "
            "taken from layer.set_weight(R)"
        )


@torch.no_grad()
def set_weight(layer: nn.Module, R: Tensor) -> None:
    """Set R to a matrix of yours. What was remembered is forgotten.

    Written to ``weight`` itself, a matrix that looks like noise (a rotation, principal components) is taken for what an
    initialiser left, and refused in training.

    Args:
        layer: whose R it is.
        R: of the shape of ``weight``.

    Raises:
        ValueError: another shape; zero, NaN or infinity.
    """
    if R.shape != layer.weight.shape:
        raise ValueError(f"{called(layer)}R has the shape {tuple(R.shape)}; it must have {tuple(layer.weight.shape)}")
    if not bool(R.any() & R.isfinite().all()):
        raise ValueError(
            f"{called(layer)}R {'holds NaN or infinity' if bool(R.any()) else 'is zero'}: give another one"
        )
    layer.weight.copy_(R)
    layer.forget()  # states of the R that was there before say nothing about this one
    layer._R_is_known = layer._trust.meant = True
    layer._trust.left = None


def looks_like_noise(R: Tensor) -> bool:
    """Whether the trace of R (or the sum of those of its groups) is no larger than its Frobenius norm.

    Of a positive definite matrix, as R = I and what whitens symmetrically, the trace is the larger one; of entries that
    are drawn alike it is about 1 / sqrt(D) of the norm, as it is of a random rotation, and of a constant matrix it is
    equal. A rotation that somebody computed cannot be told from a random one.
    """
    R = R.detach()
    trace, norm = R.diagonal(dim1=-2, dim2=-1).sum(), R.norm(dim=(-2, -1)).sum()
    one = R.shape[-1] == 1  # for which both are equal, but for the sign
    return bool(trace < 0 if one else trace <= norm * (1 + 1e-5))


def _refuse_shard(layer: nn.Module) -> None:
    raise RuntimeError(
        f"{called(layer)}R is sharded (a DTensor), and its step needs all of it: decorlib.conversion.shard(model) "
        "in place of fully_shard(model) leaves R whole (its ignored_params), as does decorrelate(model) after it"
    )


def moved(layer: nn.Module, was_meta: bool) -> None:
    """After a move: R is looked at again; out of the meta device it comes without numbers."""
    R, trust = layer._parameters.get("weight"), layer._trust
    trust.R = trust.left = None
    if was_meta and R is not None and not R.is_meta:
        trust.unwritten, trust.allocated = True, R


def loaded(layer: nn.Module, state_dict: dict, prefix: str, assigned: bool, errors: list[str]) -> None:
    """After ``load_state_dict``: R needs no gradient, and what had no numbers and got none is as in a new layer.

    So the state_dict of a plain model loads (``strict=False``) into one that was decorrelated on the meta device. One
    whose counter says that R has learned, and that has no R, is none of a plain model: that goes to the ``errors``.
    """
    counter = state_dict.get(prefix + "num_updates")
    if prefix + "weight" not in state_dict and counter is not None and not counter.is_meta and int(counter):
        errors.append(
            f"{prefix}weight, an R that has learned ({prefix}num_updates is {int(counter)}), is not in the state_dict, "
            "and the weights that are mean nothing without it. It was saved without parameters that need no gradient "
            "(exclude_frozen_parameters, a loop over requires_grad): save all of model.state_dict()"
        )
    trust = layer._trust
    trust.R = trust.left = None
    for parameter in layer.parameters(recurse=False):
        parameter.requires_grad_(False)
    if prefix + "weight" in state_dict:
        layer.forget()  # states of the R that was there before say nothing about this one
        layer._R_is_known = trust.meant = True
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


def warn_of_old_R(holder: nn.Module, state_dict: dict, prefix: str) -> None:
    """Say that R stays what it was, where the weights that it was learned with give way to those of a plain model.

    Before the ``state_dict`` of the layer that holds R is loaded: later R is shown no more than its own part of it.
    """
    matrices = [name for name, p in holder._parameters.items() if p is not None and p.dim() > 1]
    if not any(prefix + name in state_dict for name in matrices):
        return
    for name, layer in holder.named_modules():
        R = layer._parameters.get("weight")
        if name.count(".") > 1 or not hasattr(layer, "_trust") or R is None or R.is_meta or layer._trust.unwritten:
            continue
        if _given(layer, name, state_dict, prefix) or not name.startswith("decorrelation") or is_identity(R):
            continue
        warnings.warn(
            f"layer '{prefix}{name}': the state_dict has the weights of the layer around it and no R, so that R stays "
            "what it has learned with other weights, and the layer computes what neither model did. For what the plain "
            "model computes call reset_parameters() of this Decorrelation; else load a state_dict with R",
            RuntimeWarning,
            stacklevel=2,
        )


def _given(layer: nn.Module, name: str, state_dict: dict, prefix: str) -> bool:
    """Whether a state_dict has an R; one that is shared may have come under the name of another layer."""
    others = getattr(layer, "_prefixes", set()) - {f"{prefix}{name}."}
    loaded_before = bool(others) and f"{prefix}{name}." not in layer._prefixes
    return loaded_before or f"{prefix}{name}.weight" in state_dict


def is_identity(R: Tensor) -> bool:
    """Whether R is the identity to the bit."""
    return torch.equal(R, torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(R))


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
    would make noise of R. What ends at R = I (``reset_parameters``) is let through, and so is an R that ``fn`` sets on
    purpose: by ``set_weight``, by loading a ``state_dict``, or in a step.
    """
    layer._trust.meant, steps = False, layer._count.of(layer.num_updates)
    kept = {name: p.detach().clone() for name, p in layer._parameters.items() if p is not None and not p.is_meta}
    fn(layer)
    R, b = layer._parameters.get("weight"), layer._parameters.get("bias")
    if R is None or R.is_meta or layer._trust.meant or layer._count.of(layer.num_updates) > steps:
        return
    if is_identity(R) and (b is None or not bool(b.any())):
        layer._trust.left = None
        return
    for name, value in kept.items():
        parameter = layer._parameters.get(name)
        if parameter is not None and parameter.shape == value.shape:
            parameter.copy_(value)
