"""Functions over all decorrelation layers of a model: who they are, what they own, one step for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.memory import checked_mask
from decorlib.layers.options import Bound, Mask, Rate
from decorlib.layers.pending import expect_step
from decorlib.layers.steps import (
    as_gradients,
    check_rate,
    in_place,
    is_decorrelation,
    learn,
    learners_of,
    measure,
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def decor_modules(model: nn.Module) -> Iterator[tuple[str, Decorrelation]]:
    """(name, layer) of every Decorrelation in the model, each once; those inside DecorLinear and DecorConv2d too."""
    return ((name, m) for name, m in model.named_modules() if is_decorrelation(m))


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


def decor_step(
    model: nn.Module, lr: Rate, max_step: Bound = None, *, skip_unreached: bool = False
) -> dict[str, Tensor | None]:
    r"""One plain gradient step of every R in the model, from the batch that its layer has just seen.

    .. math:: R \leftarrow R - \mathrm{lr} \cdot \mathrm{direction}(\langle y y^\top \rangle, R)

    The whole of what training R takes, and the short form of :class:`decorlib.DecorSGD`: call it after ``backward()``.
    Nothing is left in ``.grad``. Either all layers step or, where one of them raises, none.

    Layers that are not to learn are skipped: those whose plain weight is frozen (``requires_grad=False``), those with
    ``learning = False``, and those in evaluation mode.

    Args:
        model: any model with decorrelation layers.
        lr: rate of R, a positive number without unit; or ``"auto"``, for each layer and step a tenth over the curvature
            of its rule (:func:`decorlib.rules.rates.auto_rate`).
        max_step: bound on rate times curvature; see :meth:`Decorrelation.update`. Default: no bound.
        skip_unreached: skip layers that have seen no batch since their last step (experts without tokens) instead of
            raising. Default: False.

    Returns:
        The decorrelation loss by layer name; None where the layer was skipped, or ``update_every`` says to wait.

    Raises:
        ValueError: a rate that is no positive number, or a model without decorrelation layers.
        RuntimeError: a layer has no batch to learn from, or no layer learns; the message names it.
        SilentNoOp: no R has moved although the rate is positive, at the first step or at a smaller rate than before.
            Later, a warning.

    Example::

        >>> losses = decor_step(model, lr=1e-4)
    """
    members, lr = learners_of(model), check_rate(lr)
    count = len(members)
    return learn(members, [lr] * count, [max_step] * count, in_place, skip_unreached=skip_unreached)


def decor_update(
    model: nn.Module, lr: Rate | None = None, max_step: Bound = None, *, skip_unreached: bool = False
) -> dict[str, Tensor | None]:
    """Set ``.grad`` of every R (and b_R) in the model for a torch optimizer over :func:`decor_parameters`.

    The call of 2024. Its optimizer has to step next and takes the gradients away again: where they are clipped,
    unscaled, zeroed, stepped by an optimizer of the weights, or not stepped before the next ``decor_update``, that is
    an error. :class:`decorlib.DecorSGD` and :func:`decor_step` leave nothing that could be touched.

    Args:
        model: any model with decorrelation layers.
        lr: rate of the step that will follow, that of the optimizer; see :meth:`Decorrelation.update`. Where the
            gradient depends on it, an optimizer that steps by another one is an error. Default: not known.
        max_step: see :meth:`Decorrelation.update`. Default: no bound.
        skip_unreached: as in :func:`decor_step`. Default: False.

    Returns:
        As :func:`decor_step`.

    Raises:
        LostGradient: the gradients of the call before were touched, or never stepped.
        ValueError: a model without decorrelation layers.
        RuntimeError: a layer has no batch to learn from, or no layer learns; the message names it.

    Example::

        >>> sgd = torch.optim.SGD(decor_parameters(model), lr=1e-4)
        >>> losses = decor_update(model)
        >>> sgd.step()
    """
    members = learners_of(model)
    count = len(members)
    rates = [None if lr is None else check_rate(lr, allow_zero=True)] * count
    losses = learn(
        members, rates, [max_step] * count, as_gradients, skip_unreached=skip_unreached, look=False, gradient=True
    )
    told = {m.name: rates[0] for m in members if max_step is not None or m.layer.rule.needs_rate}
    expect_step(model, ((member.name, p) for member in members for p in member.parameters), told)
    return losses


def decor_measure(model: nn.Module) -> dict[str, Tensor | None]:
    """The losses that :func:`decor_update` would return, without learning: for a pass that only measures."""
    return measure(learners_of(model))


@contextmanager
def padding(model: nn.Module, padding_mask: Mask, batch_first: bool = True):
    """Leave padding out of the statistics of the forwards inside: ``with padding(model, mask): model(tokens)``.

    Layers that see one row per sequence (a head on pooled tokens) and convolutions use all of their input.

    .. note:: True means padding, as in torch's ``key_padding_mask``. The ``attention_mask`` of transformers' tokenizers
       has it the other way round, as integers (1 is a token, 0 is padding): pass ``attention_mask == 0``.

    Args:
        model: any model with decorrelation layers.
        padding_mask: (batch, tokens), bool, True where a token is padding.
        batch_first: whether the layers see (batch, tokens, D), or (tokens, batch, D), torch's default for transformers.
            Default: True.

    Raises:
        ValueError: a mask that is not bool.

    Example::

        >>> with padding(model, attention_mask == 0):
        ...     outputs = model(tokens)
    """
    convolved = {
        id(m.decorrelation)
        for m in model.modules()
        if isinstance(m, _CONVOLUTIONS) and is_decorrelation(getattr(m, "decorrelation", None))
    }
    layers = [layer for _, layer in decor_modules(model) if id(layer) not in convolved]
    padding_mask = checked_mask(padding_mask)
    before = [layer.padding_mask for layer in layers]
    for layer in layers:
        layer.padding_mask = padding_mask if batch_first else padding_mask.mT
    try:
        yield
    finally:
        for layer, mask in zip(layers, before, strict=True):
            layer.padding_mask = mask
