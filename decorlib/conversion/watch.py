"""Running a model once to see what it does: which layers it calls, which weights it reads past them, what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Sample = Tensor | tuple | Mapping  # one input, several, or named ones


def run(model: nn.Module, sample: Sample):
    """model(x), model(*inputs) or model(**inputs); of a compiled model the one that was compiled, which has hooks."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(sample, Mapping):
        return model(**sample)
    return model(*sample) if isinstance(sample, tuple) else model(sample)


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode, no gradients, no attention that reads past its layers; afterwards each module's own mode."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield model.eval()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


def called_and_read(model: nn.Module, sample: Sample) -> tuple[set[int], set[int]]:
    """ids of the modules whose forward runs on a sample, and of those whose weight something else reads."""
    reads = _Reads(model)
    hooks = [m.register_forward_pre_hook(reads.enter) for m in model.modules()]
    hooks += [m.register_forward_hook(reads.leave) for m in model.modules()]
    try:
        with evaluating(model), reads:
            run(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    return reads.called, reads.read


class _Reads(TorchFunctionMode):
    """Which weights a function of torch gets while no layer that owns them runs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.owners: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for name in ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if isinstance(weight := module._parameters.get(name), nn.Parameter):
                    self.owners.setdefault(id(weight), []).append(module)
        self.running: list[int] = []
        self.called: set[int] = set()
        self.read: set[int] = set()

    def enter(self, module, _inputs):
        self.called.add(id(module))
        self.running.append(id(module))

    def leave(self, _module, _inputs, _output):
        self.running.pop()

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        # Its shape, dtype or device is no value of a weight, and neither is a tensor made after its pattern.
        name = getattr(function, "__name__", "")
        if name.startswith("new_") or name.endswith("_like") or not any(True for _ in tensors(result)):
            return result
        for tensor in tensors([*arguments, *(keywords or {}).values()]):
            owners = self.owners.get(id(tensor), ())
            if owners and not any(id(owner) in self.running for owner in owners):
                self.read.update(map(id, owners))
        return result


def tensors(value) -> Iterator[Tensor]:
    """All tensors in an output: nested tuples, mappings (transformers' outputs too) and dataclasses are opened."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def map_tensors(value, change):
    """The same nest of tuples, lists and mappings with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map_tensors(part, change) for part in value)
    return value
