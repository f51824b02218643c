"""From a plain torch model to a decorrelated one with the same weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Unpack

from torch import nn

from decorlib.conversion import attention
from decorlib.conversion.calibrate import calibrate, check_biases
from decorlib.conversion.candidates import Pattern, conversion_report, counterpart, features_of, plain_kind
from decorlib.conversion.fast_paths import switch_fast_paths
from decorlib.conversion.share import Share, shared_groups
from decorlib.conversion.watch import Sample
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.fast_path import keep_off
from decorlib.layers.options import AnyRule, ConversionOptions, Span
from decorlib.layers.shared import SharedDecorrelation
from decorlib.rules.catalogue import make_rule
from decorlib.rules.rules import KappaRule

log = logging.getLogger("decorlib")


def decorrelate(
    model: nn.Module,
    rule: AnyRule | None = None,
    *,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] = (),
    span: Span = "patch",
    max_features: int | None = None,
    sample_input: Sample | None = None,
    calibration: Iterable | None = None,
    share: Share = (),
    decor_bias: bool = False,
    **options: Unpack[ConversionOptions],
) -> nn.Module:
    r"""Decorrelate the inputs of a model's linear and convolutional layers, in place.

    Each :class:`torch.nn.Linear`, :class:`~torch.nn.Conv1d`, :class:`~torch.nn.Conv2d`, :class:`~torch.nn.Conv3d`,
    :class:`~torch.nn.ConvTranspose2d`, :class:`~torch.nn.MultiheadAttention` and transformers' ``Conv1D`` (GPT-2)
    becomes its counterpart of :mod:`decorlib.layers` with R = I, so the model computes what it did (to rounding; a
    linear layer to the bit). As :func:`torch.nn.utils.parametrize.register_parametrization` does, it changes the
    class of the layer and keeps the object: its Parameters (tied ones stay tied, an optimizer built before stays
    right), hooks, device, dtype, ``requires_grad`` and mode. The ``state_dict`` gains ``<layer>.decorrelation.*``;
    one of the plain model loads with ``strict=False``. :func:`fuse` is the way back.

    Left alone, with a reason in the report: subclasses of these, whose forward may be anything, lazy, parametrised,
    pruned, weight- or spectral-normalised layers, weights that are quantised or sharded or of any other tensor
    subclass, all of an adapter of peft, a weight that a module of another kind shares (a head tied to an
    embedding), a forward that was replaced on the object, layers that are decorrelated already, and every other
    module that owns a matrix (embeddings, recurrent layers). What was left alone without being asked for is logged
    as a warning of the logger "decorlib", else the report as information; :func:`conversion_report` returns it.

    With ``center`` a layer subtracts a mean, so its bias has to take up W mu, or the model computes something else.
    Give ``calibration`` (or ``sample_input``), and it does: see :func:`decorlib.calibrate`. A layer without a bias then
    gets one. Without data a warning says so; a network that is trained from its random start does not need them.

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
        sample_input: an input, a tuple of them, or a mapping of named ones; the model is run on it, in evaluation mode,
            to leave layers alone that its forward never calls (they could not learn R) and those whose weight it reads
            elsewhere (they could not be fused), and to calibrate means where there is no ``calibration``. Default:
            None, not checked.
        calibration: with ``center``: batches of the data, a loader or any iterable; of a batch (inputs, labels) the
            first is the input. One pass in evaluation mode. Default: None, ``sample_input``.
        share: groups of name patterns of linear layers that read the same input, ``[("*.query", "*.key", "*.value")]``:
            those of one holder get one R, whose statistics and step are paid once. In training their inputs must be
            the same tensor, or an error says so. Default: none.
        decor_bias: learn b_R, see :class:`Decorrelation`. Default: False.
        **options: everything else that Decorrelation takes: ``center``, ``update_every``, ``fraction``, ...

    Returns:
        The model.

    Raises:
        ValueError: nothing to convert; a pattern that matches nothing; an option that does not fit; data that do not
            reach a centred layer, or a mean that its bias cannot take up. The model is then as it was.
        TypeError: a rule that is given as its class.

    Warns:
        UserWarning: with ``center`` and no data; where R would cost far more than the layers (more than 4 times their
            numbers, and over 2 million: resnet18 with patches) and ``max_features`` is not given.

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
    if isinstance(rule, type):
        raise TypeError(f"rule is the class {rule.__name__}: give one with its values, {rule.__name__}(...)")
    centred = options.get("center") in ("batch", "running")
    if calibration is not None and not centred:
        raise ValueError("calibration sets means, and no layer subtracts one: give center='batch' or center='running'")
    data = calibration if calibration is not None else None if sample_input is None else [(sample_input,)]
    modules = dict(model.named_modules())
    # All R first: an option that does not fit must not leave a model half converted.
    made = {}
    first_of = {name: group[0] for group in shared_groups(share, report.converted, modules) for name in group}
    attentions = [name for name in report.converted if isinstance(modules[name], nn.MultiheadAttention)]
    inputs = attention.settings(model, attentions, sample_input)
    for name in report.converted:
        layer = modules[name]
        if name in inputs:
            made[name] = attention.made_for(layer, inputs[name], bias=decor_bias, rule=rule, **options)
            continue
        if (first := first_of.get(name, name)) != name:
            made[name] = made[first]
            continue
        features, groups = features_of(layer, span)
        sharers = sum(one == name for one in first_of.values())
        kind, several = (SharedDecorrelation, {"sharers": sharers}) if sharers else (Decorrelation, {})
        made[name] = kind(
            features * groups,
            decor_bias,
            rule=rule,
            groups=groups,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            **several,
            **options,
        ).train(layer.training)
    layers = {name: modules[name] for name in made}
    if centred and data is not None:
        check_biases(model, layers)
    for name, decorrelation in made.items():
        if name in inputs:
            attention.convert(layers[name], decorrelation, inputs[name])
        else:
            _convert(layers[name], decorrelation, span)
    try:
        if centred and data is not None:
            calibrate(model, data)
    except BaseException:
        for layer in layers.values():
            _restore(layer)
        raise
    switch_fast_paths(model)
    if centred and data is None:
        warnings.warn(
            f"center={options['center']!r} subtracts the mean of inputs from the first training forward on, so that "
            "outputs change by W mu: give calibration=loader (or sample_input=...), and the biases take it up. "
            "A network at its random start has nothing to keep: give data, or ignore this",
            stacklevel=2,
        )
    if max_features is None and (cost := report.dear()) is not None:
        warnings.warn(cost, stacklevel=2)
    surprising = report.left_alone.keys() - report.excluded
    log.log(logging.WARNING if surprising else logging.INFO, "%s", report)
    return model


# ---------------------------------------------------------------------------------------------------------- internals


def _convert(layer: nn.Module, decorrelation: Decorrelation, span: str) -> None:
    if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
        layer.span = span
    vars(layer).pop("forward", None)  # at most its class's own, see forward_replaced
    layer.__class__, layer.fuse = counterpart(type(layer)), None
    layer.decorrelation = decorrelation
    keep_off(decorrelation)


def _restore(layer: nn.Module) -> None:
    """The plain layer, whose weights were not touched."""
    if attention.is_attention(layer):
        return attention.restore(layer)
    plain = plain_kind(layer)
    del layer.decorrelation, layer.fuse
    if hasattr(layer, "span"):
        del layer.span
    layer.__class__ = plain
