"""What a layer may be given: its options, its rule, and the shape and type of its input."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor, nn

from decorlib.layers.options import Bound, Flag, Momentum, Part, Whole
from decorlib.rules.catalogue import RULES, make_rule
from decorlib.rules.rules import KappaRule, NotebookRule, Rule

EMPTY = "an empty batch has no statistics: skip it, or use model.eval() to pass it through"
CENTERS = (None, "batch", "running", "bias")


def check_options(
    in_features: Whole,
    groups: Whole,
    center: str | None,
    momentum: Momentum,
    bias_reduction: str,
    update_every: Whole,
    fraction: Part,
    **flags: Flag,
) -> None:
    """Raise ValueError for an option of :class:`~decorlib.layers.Decorrelation` that is out of its range."""
    _check(_whole(in_features) and in_features >= 1, "in_features", in_features, "a whole number, at least 1")
    divides = _whole(groups) and groups >= 1 and in_features % groups == 0
    _check(divides, "groups", groups, f"a divisor of in_features = {in_features}")
    _check(center in CENTERS, "center", center, "None, 'batch', 'running' or 'bias'")
    averages = momentum is None or (_number(momentum) and 0 < momentum <= 1)
    _check(averages, "momentum", momentum, "in (0, 1], or None for the plain average")
    _check(bias_reduction in ("mean", "sum"), "bias_reduction", bias_reduction, "'mean' or 'sum'")
    check_update_every(update_every)
    check_fraction(fraction)
    for name, value in flags.items():  # the fourth argument of nn.Linear is a device, and that of DecorLinear is one
        allowed = "True or False" if name != "bias" else "True or False (decor_bias of a layer; give device= by name)"
        _check(isinstance(value, bool | numbers.Integral) and value in (0, 1), name, value, allowed)


def check_update_every(update_every: Whole) -> None:
    """Raise ValueError unless it counts updates; it may also be set on a layer later."""
    rest = "a whole number, at least 1; to stop learning R, do not call update(), or set layer.learning = False"
    _check(_whole(update_every) and update_every >= 1, "update_every", update_every, rest)


def check_fraction(fraction: Part) -> None:
    """Raise ValueError unless it is a part of a batch; it may also be set on a layer later."""
    _check(_number(fraction) and 0 < fraction <= 1, "fraction", fraction, "in (0, 1], the part of the samples used")


def check_max_step(max_step: Bound) -> None:
    """Raise ValueError for a bound that no step stays below: a negative one would turn the step round."""
    bounds = max_step is None or (_number(max_step) and max_step > 0)
    _check(bounds, "max_step", max_step, "a number above 0 (0.5 is safe, 2.0 the edge of stability), or None: no bound")


def _whole(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check(holds: bool, name: str, value, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def chosen_rule(rule, eta: float | None = None, variance=None) -> Rule:
    """The rule that a layer's arguments name: kappa, or the 2024 rule where one of its two numbers is given.

    Raises:
        TypeError: something that is no rule, e.g. the class of one.
        ValueError: a rule together with ``eta`` or ``variance``; a name that is none.
    """
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise TypeError(f"rule is the class {rule.__name__}; give an instance: {rule.__name__}(...)")
    if rule is not None and not isinstance(rule, str | Rule) and not _looks_like_a_rule(rule):
        raise TypeError(f"rule is {rule!r}; give an instance of a Rule, or one of the names {', '.join(RULES)}")
    if rule is None:
        if eta is None and variance is None:
            return KappaRule()
        return NotebookRule(variance=variance, eta=1.0 if eta is None else eta)
    rule = make_rule(rule) if isinstance(rule, str) else rule
    if eta is not None or variance is not None:
        raise ValueError(
            f"eta={eta} and variance={variance} belong to the rule of the 2024 notebook; set them on {rule} instead"
        )
    return rule


def _looks_like_a_rule(rule) -> bool:
    # Not by its class alone: after a reload of the library the class is a new one.
    return not isinstance(rule, type) and all(hasattr(rule, name) for name in ("direction", "loss", "step_", "reads"))


def features_last(input: Tensor, in_features: Whole) -> Tensor:
    """The input with its features last, after checking that it has any."""
    if not input.is_floating_point():
        raise ValueError(f"input is {input.dtype}; a floating type is needed: scale it first, e.g. images / 255")
    if input.is_nested and input.layout is torch.strided:
        raise ValueError(
            "input is a nested tensor, of which no batch can be taken: pad it, and give a mask. torch's "
            "TransformerEncoder makes them of what its src_key_padding_mask hides, unless it was built with "
            "enable_nested_tensor=False, or decorlib.decorrelate(encoder) has switched it off"
        )
    if input.shape[-1:] == (in_features,):
        return input
    if input.dim() > 2 and math.prod(input.shape[1:]) == in_features:
        return input.flatten(1)
    raise ValueError(
        f"input of shape {tuple(input.shape)} does not fit in_features = {in_features}: its last size must be "
        f"{in_features}, or its sizes after the first must multiply to it"
    )


def frozen(layer: nn.Module, before: bool, kinds: tuple = ("weight",)) -> bool:  # of names
    """Whether backpropagation leaves the weights of a layer alone; ``before`` is what was last known.

    Where none of them needs a gradient now, the Parameters are asked. A weight that is computed of others at each
    forward (a parametrization, pruning, a hypernetwork) or lent by :func:`torch.func.functional_call` needs no gradient
    under ``torch.no_grad()`` either, and a look at the layer must not stop R.
    """
    if any(isinstance(w := getattr(layer, kind, None), Tensor) and w.requires_grad for kind in kinds):
        return False
    found: list[Tensor] = []
    for kind in kinds:
        held = layer._parameters.get(kind)
        if isinstance(held, nn.Parameter):
            found.append(held)
        elif held is None:
            starts = f"{kind}_", f"parametrizations.{kind}."
            own = [p for name, p in layer.named_parameters() if name.startswith(starts)]
            found += [p for p in own if isinstance(p, nn.Parameter)]  # what is lent is a plain tensor
    return not any(p.requires_grad for p in found) if found else before


def called(layer: nn.Module) -> str:
    """The name of a layer as the beginning of a message, where it is known."""
    # Not while compiling: a name that is given later would be another graph.
    return "" if torch.compiler.is_compiling() or layer.name is None else f"layer '{layer.name}': "
