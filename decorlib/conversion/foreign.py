"""What other libraries have done to a layer, recognised by what it is: none of them is imported here.

Classes are known by name, so that this also holds for a class that was defined twice (a reloaded module).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# Adapters of peft whose forward is base_layer(x) and something beside it, so that the layer below may change its form.
ADDING = ("lora", "adalora", "ia3", "loha", "lokr", "vera")

#: Weights and biases that attention has of its own.
OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")


def is_a(module: nn.Module, name: str, package: str) -> bool:
    """Whether one of the classes of a module is called ``name`` and defined in ``package``."""
    return any(c.__name__ == name and f"{c.__module__}.".startswith(f"{package}.") for c in type(module).__mro__)


def adapters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of peft's adapters: each holds the layer that it adapts as ``base_layer``."""
    return ((name, module) for name, module in model.named_modules() if is_a(module, "BaseTunerLayer", "peft"))


def kind_of_adapter(adapter: nn.Module) -> str:
    """The name of the package of peft that defines it: lora, ia3, boft, ..."""
    tuner = next(c for c in type(adapter).__mro__ if c.__module__.startswith("peft.tuners."))
    return tuner.__module__.split(".")[2]


def odd_tensor(tensor: Tensor) -> str | None:
    """What a tensor is that is no plain one: quantised, sharded, a subclass; None for a plain one."""
    if type(tensor) in (Tensor, nn.Parameter, nn.Buffer):
        return None
    if is_dtensor(tensor):
        return "sharded over processes (a DTensor)"
    return f"a {type(tensor).__name__} of {type(tensor).__module__.split('.')[0]}, not a plain tensor"


def is_dtensor(tensor: Tensor) -> bool:
    """Without importing torch.distributed.tensor, which takes a while."""
    return any(c.__name__ == "DTensor" and c.__module__.startswith("torch.distributed") for c in type(tensor).__mro__)


def gathered_for_forward(tensor: Tensor, holders: list[nn.Module]) -> bool:
    """Whether a DTensor is one that FSDP2 (fully_shard) gathers before each forward: the layer then sees all of it."""
    shards = sum(placement.is_shard() for placement in tensor.placements)
    return shards <= 1 and any(is_a(holder, "FSDPModule", "torch.distributed") for holder in holders)


def computed(module: nn.Module) -> str | None:
    """How a weight or bias is computed from others at each forward, and the way out; None where it is a Parameter."""
    if parametrize.is_parametrized(module):
        return "parametrised: remove the parametrization first (torch.nn.utils.parametrize)"
    for name in ("weight", "bias", *OF_ATTENTION):
        if hasattr(module, f"{name}_mask"):
            return f"its {name} is computed from others (pruning): torch.nn.utils.prune.remove(layer, '{name}') first"
        held = module._parameters.get(name)
        if held is None and isinstance(getattr(module, name, None), Tensor):
            return (
                f"its {name} is computed from others (weight_norm, spectral_norm, pruning): remove that first, with "
                "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
            )
    return None


def forward_replaced(module: nn.Module) -> str | None:
    """Why a forward that was set on the object, not on its class, hides the class's; None where there is none."""
    own = vars(module).get("forward")
    if own is None or own == type(module).forward.__get__(module):  # accelerate leaves it there when it takes hooks off
        return None
    by = "accelerate (remove_hook_from_module takes it off)" if hasattr(module, "_hf_hook") else "other code"
    return f"its forward was replaced on the object by {by}, and would go on as it was"


def on_meta(module: nn.Module) -> bool:
    """Whether a module's values are elsewhere, or nowhere."""
    return any(t.device == torch.device("meta") for t in (*module.parameters(), *module.buffers()))
