"""Functions over all decorrelation layers of a model: who they are, what they own, one update for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from decorlib.layers.conv import DecorConv2d
from decorlib.layers.conv_transpose import DecorConvTranspose2d
from decorlib.layers.decorrelation import Decorrelation


def decor_modules(model: nn.Module) -> Iterator[tuple[str, Decorrelation]]:
    """(name, layer) of every Decorrelation in the model, each once; those inside DecorLinear and DecorConv2d too."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, Decorrelation))


def decor_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """R and b_R of every layer: what the optimizer of the decorrelation owns, and no other."""
    for _, layer in decor_modules(model):
        yield layer.weight
        if layer.bias is not None:
            yield layer.bias


def bp_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """All parameters that backpropagation trains: every one that :func:`decor_parameters` does not give."""
    decorrelating = {id(p) for p in decor_parameters(model)}
    return (p for p in model.parameters() if id(p) not in decorrelating)


def decor_update(model: nn.Module, lr: float | None = None, max_step: float | None = None) -> dict[str, Tensor | None]:
    """``update()`` every decorrelation layer; losses by layer name. An error names the layer that raised it."""
    return {name: _named(name, layer.update, lr, max_step) for name, layer in decor_modules(model)}


def decor_step(model: nn.Module, lr: float, max_step: float | None = None) -> dict[str, Tensor | None]:
    """``step()`` every decorrelation layer, in place: :func:`decor_update` and plain SGD of rate ``lr`` in one."""
    return {name: _named(name, layer.step, lr, max_step) for name, layer in decor_modules(model)}


def decor_measure(model: nn.Module) -> dict[str, Tensor | None]:
    """The losses that :func:`decor_update` would return, without learning: for a pass that only measures."""
    return {name: _named(name, layer.measure) for name, layer in decor_modules(model)}


def _named(name: str, call, *arguments) -> Tensor | None:
    try:
        return call(*arguments)
    except (RuntimeError, ValueError) as error:
        raise (RuntimeError if isinstance(error, RuntimeError) else ValueError)(f"layer '{name}': {error}") from error


@contextmanager
def padding(model: nn.Module, padding_mask: Tensor, batch_first: bool = True):
    """Leave padding out of the statistics of the forwards inside: ``with padding(model, mask): model(tokens)``.

    Layers that see one row per sequence (a head on pooled tokens) and convolutions use all of their input.

    Args:
        model: any model with decorrelation layers.
        padding_mask: (batch, tokens), True where a token is padding, as ``key_padding_mask`` in torch.
        batch_first: whether the layers see (batch, tokens, D), or (tokens, batch, D), torch's default for transformers.
            Default: True.
    """
    convolved = {id(m.decorrelation) for m in model.modules() if isinstance(m, DecorConv2d | DecorConvTranspose2d)}
    layers = [layer for _, layer in decor_modules(model) if id(layer) not in convolved]
    before = [layer.padding_mask for layer in layers]
    for layer in layers:
        layer.padding_mask = padding_mask if batch_first else padding_mask.mT
    try:
        yield
    finally:
        for layer, mask in zip(layers, before, strict=True):
            layer.padding_mask = mask
