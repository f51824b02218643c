"""The inference path of torch's encoder layers, which reads weights past their layers: off while there is an R."""

from __future__ import annotations

from torch import nn

from decorlib.layers.steps import is_decorrelation


def switch_fast_paths(model: nn.Module) -> None:
    """Off where a layer's weights may no longer be read past its forward, and back on where they may again."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            decorrelated = any(map(is_decorrelation, module.modules()))
            _switch(module, "activation_relu_or_gelu", 0, decorrelated)
        elif isinstance(module, nn.TransformerEncoder):
            decorrelated = any(map(is_decorrelation, module.layers.modules()))
            _switch(module, "use_nested_tensor", False, decorrelated)


def _switch(module: nn.Module, attribute: str, off, decorrelated: bool) -> None:
    remembered = f"_{attribute}_when_plain"
    if decorrelated and not hasattr(module, remembered):
        setattr(module, remembered, getattr(module, attribute))
        setattr(module, attribute, off)
    elif not decorrelated and hasattr(module, remembered):
        setattr(module, attribute, getattr(module, remembered))
        delattr(module, remembered)
