"""torch's encoder layer in inference: it multiplies by the weights of its linear layers and attention itself, past R.

It does so unless a module inside it has a hook, which it looks for at each forward
(:meth:`torch.nn.TransformerEncoderLayer.forward`). An R inside a layer is used and never called, so that a hook there
costs nothing, and goes wherever the layer goes: also into an encoder layer that is built by hand, or of which a part
was decorrelated by itself.
"""

from __future__ import annotations

from torch import nn


def keep_off(decorrelation: nn.Module) -> None:
    """Have torch call the layers that this R belongs to, in inference too."""
    if _nothing not in decorrelation._forward_pre_hooks.values():
        decorrelation.register_forward_pre_hook(_nothing)


def _nothing(_module: nn.Module, _inputs: tuple) -> None:
    """Never called: the layer around R uses it without a call."""
