"""FSDP2: shard a model's weights over processes, and leave R whole."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

from torch import nn

from decorlib.conversion.candidates import Pattern, listed
from decorlib.layers.steps import is_decorrelation


def shard(model: nn.Module, units: Pattern | Iterable[Pattern] = (), **options) -> nn.Module:
    """:func:`torch.distributed.fsdp.fully_shard` for a model with decorrelation layers, in place: R stays whole.

    Each process holds all of R, and learns it from the statistics of all processes, as under DistributedDataParallel.
    Sharded with the weights, R would be a DTensor between forwards, and no step of it could multiply it by anything.
    fully_shard takes what it is to leave alone as ``ignored_params``; this gives it every parameter of every R, for
    each unit and the root. A model may also be sharded first and decorrelated afterwards, which is the same.

    Optimizers are made afterwards, as always with fully_shard. A checkpoint's state_dict holds DTensors for weights and
    plain tensors for R, which ``torch.distributed.checkpoint`` saves and loads as they are. :func:`decorlib.fuse` needs
    an unsharded model: load the full state_dict (``get_model_state_dict`` with ``full_state_dict=True``) into one.

    Args:
        model: every process has the same one, R included, on its own device.
        units: the parts that are gathered by themselves, innermost first: name patterns, types, or both, as for
            ``decorrelate(include=...)``; only modules that match themselves. Default: none, the root is one unit.
        **options: what fully_shard takes: ``mesh``, ``reshard_after_forward``, ``mp_policy``, ``offload_policy``, ...
            ``ignored_params`` of your own are added to R's.

    Raises:
        ValueError: a pattern that matches no module; a unit that is a Decorrelation itself.

    Example::

        >>> model = decorrelate(Transformer(), center="running")
        >>> shard(model, units=nn.TransformerEncoderLayer)
        >>> optimizer = torch.optim.Adam(bp_parameters(model), lr=1e-3)
    """
    from torch.distributed.fsdp import fully_shard

    modules = dict(model.named_modules())
    chosen: dict[str, nn.Module] = {}
    for pattern in listed(units):
        matched = {name: m for name, m in modules.items() if name and _itself(name, m, pattern)}
        if not matched:
            raise ValueError(f"{pattern!r} matches no module; their names are e.g. {list(modules)[1:6]}")
        chosen |= matched
    for name, unit in chosen.items():
        if is_decorrelation(unit):
            raise ValueError(f"layer '{name}' is a Decorrelation, which stays whole: name the layer that holds it")
    whole = {p for m in modules.values() if is_decorrelation(m) for p in m.parameters(recurse=False)}
    ignored = whole | set(options.pop("ignored_params", None) or ())
    # Children come after their parents in named_modules: from the back, the innermost first.
    for unit in [*reversed([m for name, m in modules.items() if name in chosen]), model]:
        fully_shard(unit, ignored_params=ignored & set(unit.parameters()), **options)
    return model


def _itself(name: str, module: nn.Module, pattern: Pattern) -> bool:
    """Whether the module matches, and not only one that holds it."""
    return isinstance(module, pattern) if isinstance(pattern, type) else fnmatch.fnmatchcase(name, pattern)
