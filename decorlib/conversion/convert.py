"""From a plain torch model to a decorrelated one with the same weights, and back to a plain one."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from decorlib.conversion.candidates import DECORRELATED, PLAIN, Pattern, conversion_report, features_of
from decorlib.layers.decorrelation import Decorrelation
from decorlib.rules.catalogue import make_rule
from decorlib.rules.rules import KappaRule, Rule

log = logging.getLogger("decorlib")


def decorrelate(
    model: nn.Module,
    rule: Rule | str | None = None,
    *,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] = (),
    span: str = "patch",
    max_features: int | None = None,
    sample_input: Tensor | tuple | None = None,
    decor_bias: bool = False,
    **options,
) -> nn.Module:
    r"""Decorrelate the inputs of a model's linear and convolutional layers, in place.

    Each :class:`torch.nn.Linear`, :class:`~torch.nn.Conv2d` and :class:`~torch.nn.ConvTranspose2d` becomes its
    counterpart of :mod:`decorlib.layers` with R = I, so the model computes what it did (to rounding; a linear layer to
    the bit). As :func:`torch.nn.utils.parametrize.register_parametrization` does, it changes the class of the layer and
    keeps the object: its Parameters (tied ones stay tied, an optimizer built before stays right), hooks, device, dtype,
    ``requires_grad`` and mode. The ``state_dict`` gains ``<layer>.decorrelation.*``; one of the plain model loads with
    ``strict=False``. :func:`fuse` is the way back.

    Left alone, with a reason in the report: subclasses of the three, whose forward may be anything (``out_proj`` of
    :class:`torch.nn.MultiheadAttention`, whose forward reads weights without calling layers; its ``in_proj`` too),
    lazy, parametrised, pruned, weight- or spectral-normalised layers, layers that are decorrelated already, and every
    other module that owns a matrix (embeddings, recurrent layers). What was left alone without being asked for is
    logged as a warning of the logger "decorlib", else the report as information; :func:`conversion_report` returns it.

    .. note:: :class:`torch.nn.TransformerEncoderLayer` has an inference fast path that reads the weights of its linear
       layers and would skip R without a word. Here it is switched off in layers that were converted (and nested
       tensors in their encoder: outputs at padded positions are then numbers, not zeros); :func:`fuse` restores it.

    .. note:: What paid in the study (notebook 07): leave out the first layer (``exclude`` its name), whose R is the
       dearest, demean its inputs once instead, and decorrelate the others with ``center="batch", update_every=25``.
       Between updates a layer then costs one product more than a plain one. A rate for every step serves updates at
       every n-th when multiplied by about n, as far as it stays stable.

    Args:
        model: any model; it is changed and returned (the root, too, keeps its identity).
        rule: a :class:`Rule`, or a key of :data:`decorlib.RULES` for one with its defaults. Default: KappaRule(0.5).
        include: convert only what matches, itself or a module that holds it: a name pattern (``fnmatch``:
            ``"features.*"``), a type, or several. Default: None, all.
        exclude: leave out what matches, likewise. Default: none.
        span: of convolutions: R over whole patches or over channels, see :class:`DecorConv2d`. Default: patch.
        max_features: leave layers alone whose R would cover more features than this: R costs 4 D^2 bytes, and a dense
            step 2 D^3 operations. Default: None, no limit.
        sample_input: an input, or a tuple of them; the model is run on it once, in evaluation mode, to leave layers
            alone that its forward never calls (they could not learn R). Default: None, not checked.
        decor_bias: learn b_R, see :class:`Decorrelation`. Default: False.
        **options: everything else that Decorrelation takes: ``center``, ``update_every``, ``fraction``, ...

    Returns:
        The model.

    Raises:
        ValueError: nothing to convert; a pattern that matches nothing; an option that does not fit.

    Example::

        >>> model = decorrelate(torchvision.models.resnet18(), exclude="fc", span="channel", center="running")
        >>> optimizer = torch.optim.Adam(bp_parameters(model), lr=1e-3)
        >>> decor_optimizer = torch.optim.SGD(decor_parameters(model), lr=1e-4)
    """
    report = conversion_report(
        model, include=include, exclude=exclude, span=span, max_features=max_features, sample_input=sample_input
    )
    if not report.converted:
        raise ValueError(f"nothing to decorrelate in this {type(model).__name__}:\n{report}")
    rule = make_rule(rule) if isinstance(rule, str) else KappaRule(kappa=0.5) if rule is None else rule
    modules = dict(model.named_modules())
    # All R first: an option that does not fit must not leave a model half converted.
    made = {}
    for name in report.converted:
        layer = modules[name]
        features, groups = features_of(layer, span)
        made[name] = Decorrelation(
            features * groups,
            decor_bias,
            rule=rule,
            groups=groups,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            **options,
        ).train(layer.training)
    for name, decorrelation in made.items():
        layer = modules[name]
        if type(layer) is nn.Conv2d:
            layer.span = span
        layer.__class__, layer.fuse = DECORRELATED[type(layer)], None
        layer.decorrelation = decorrelation
    _switch_fast_paths(model)
    surprising = report.left_alone.keys() - report.excluded
    log.log(logging.WARNING if surprising else logging.INFO, "%s", report)
    return model


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    r"""A copy of the model in plain torch layers that computes in evaluation mode what the decorrelated one does.

    W (R (x - mu) + b_R) + b is one linear map: the weight becomes W R, the bias b + W (b_R - R mu) with the running
    mean mu, and is created where there was none. For convolutions this holds at the borders, too, since padding is
    centred and decorrelated like everything else. A bare :class:`Decorrelation` becomes a :class:`torch.nn.Linear`
    that takes features in the last dimension only. The ``state_dict`` has the plain model's keys, and ``torch.export``
    takes it.

    Tied weights end untied where their layers' R differ. The model itself is not changed.

    Args:
        model: with or without decorrelation layers.

    Raises:
        ValueError: a transposed convolution with a mean or a decorrelation bias, or a subclass of our layers; the
            message names the layer.
    """
    model = copy.deepcopy(model)
    replaced = {}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, tuple(PLAIN)):
            if type(layer) not in PLAIN:
                raise ValueError(f"layer '{name}': {type(layer).__name__} is a subclass; write out what it computes")
            try:
                weight, bias = layer.fused(layer.decorrelation.running_mean)
            except ValueError as error:
                raise ValueError(f"layer '{name}': {error}") from error
            trains, bias_trains = (p is not None and p.requires_grad for p in (layer.weight, layer.bias))
            bias_trains = trains if layer.bias is None else bias_trains
            del layer.decorrelation, layer.fuse
            if hasattr(layer, "span"):
                del layer.span
            layer.__class__ = PLAIN[type(layer)]
            layer.weight = nn.Parameter(weight, trains)
            layer.bias = None if bias is None else nn.Parameter(bias, bias_trains)
    # What is left are bare ones: those inside other layers are gone.
    for layer in [m for m in model.modules() if isinstance(m, Decorrelation)]:
        replaced[layer] = _as_linear(layer)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a second name of the same layer
            if child in replaced:
                setattr(parent, name, replaced[child])
    _switch_fast_paths(model)
    return replaced.get(model, model)


# ---------------------------------------------------------------------------------------------------------- internals


def _switch_fast_paths(model: nn.Module) -> None:
    """Off where a layer's weights may no longer be read past its forward, and back on where they may again."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            decorrelated = any(isinstance(m, Decorrelation) for m in module.modules())
            _switch(module, "activation_relu_or_gelu", 0, decorrelated)
        elif isinstance(module, nn.TransformerEncoder):
            decorrelated = any(isinstance(m, Decorrelation) for m in module.layers.modules())
            _switch(module, "use_nested_tensor", False, decorrelated)


def _switch(module: nn.Module, attribute: str, off, decorrelated: bool) -> None:
    remembered = f"_{attribute}_when_plain"
    if decorrelated and not hasattr(module, remembered):
        setattr(module, remembered, getattr(module, attribute))
        setattr(module, attribute, off)
    elif not decorrelated and hasattr(module, remembered):
        setattr(module, attribute, getattr(module, remembered))
        delattr(module, remembered)


def _as_linear(layer: Decorrelation) -> nn.Linear:
    R = layer.weight if layer.groups == 1 else torch.block_diag(*layer.weight)
    shifts = [] if layer.bias is None else [layer.bias]
    shifts += [] if layer.running_mean is None else [-R @ layer.running_mean]
    linear = nn.Linear(layer.in_features, layer.in_features, bool(shifts), R.device, R.dtype)
    linear.weight.copy_(R)
    if shifts:
        linear.bias.copy_(sum(shifts))
    return linear.train(layer.training)
