"""Which layers of a model can be decorrelated, and why the others cannot: what :func:`decorlib.decorrelate` goes by."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from decorlib.layers.conv import DecorConv2d, check_span
from decorlib.layers.conv_transpose import DecorConvTranspose2d
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear

DECORRELATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: DecorLinear,
    nn.Conv2d: DecorConv2d,
    nn.ConvTranspose2d: DecorConvTranspose2d,
}
PLAIN = {decorrelated: plain for plain, decorrelated in DECORRELATED.items()}
Pattern = str | type[nn.Module]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`decorrelate` does with each layer that has a weight matrix.

    Args:
        converted: layer name -> D, the features that one R covers (the root of a model is called "").
        left_alone: layer name -> why.
        excluded: names among ``left_alone`` that the caller left out: ``include``, ``exclude``, ``max_features``.
    """

    converted: dict[str, int] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} layers decorrelated, {len(self.left_alone)} left alone"]
        lines += [f"  {name or '(the model)'}: R over {features} features" for name, features in self.converted.items()]
        lines += [f"  {name or '(the model)'}: left alone, {reason}" for name, reason in self.left_alone.items()]
        return "\n".join(lines)


def conversion_report(
    model: nn.Module,
    *,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] = (),
    span: str = "patch",
    max_features: int | None = None,
    sample_input: Tensor | tuple | None = None,
) -> ConversionReport:
    """What :func:`decorlib.decorrelate` would do with the same arguments, and why; nothing is changed. Print it."""
    check_span(span)
    include, exclude = (None if include is None else _listed(include)), _listed(exclude)
    modules = dict(model.named_modules())
    for pattern in [*(include or []), *exclude]:
        if not any(_matches(name, modules, pattern) for name in modules):
            raise ValueError(f"{pattern!r} matches no module; their names are e.g. {list(modules)[1:6]}")
    reached = None if sample_input is None else _reached(model, sample_input)
    converted, left_alone, excluded = {}, {}, set()
    for name, module in modules.items():
        if not _owns_a_matrix(module):
            continue
        reason = _why_not(module)
        if reason is None and max_features is not None and features_of(module, span)[0] > max_features:
            reason = f"R would cover {features_of(module, span)[0]} features, more than max_features = {max_features}"
            excluded.add(name)
        if reason is None and reached is not None and id(module) not in reached:
            reason = "the forward never calls it (its weights are read directly, or not used)"
        if any(_matches(name, modules, pattern) for pattern in exclude):
            reason, _ = "excluded", excluded.add(name)
        elif include is not None and not any(_matches(name, modules, pattern) for pattern in include):
            reason, _ = "not included", excluded.add(name)
        if reason is None:
            converted[name] = features_of(module, span)[0]
        else:
            left_alone[name] = reason
    return ConversionReport(converted, left_alone, frozenset(excluded))


# ---------------------------------------------------------------------------------------------------------- internals


def _why_not(module: nn.Module) -> str | None:
    """Why a module that owns a matrix cannot be converted, or None."""
    kind = type(module)
    if kind in PLAIN or isinstance(module, Decorrelation):
        return "decorrelated already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: run a batch through the model first, so that its size is known"
    if parametrize.is_parametrized(module):
        return "parametrised: remove the parametrization first (torch.nn.utils.parametrize)"
    if isinstance(module, nn.MultiheadAttention):
        return "attention's forward reads in_proj_weight directly, without calling a layer"
    if kind not in DECORRELATED:
        base = next((plain for plain in DECORRELATED if isinstance(module, plain)), None)
        if base is None:
            return f"{kind.__name__} has no decorrelated counterpart"
        return f"{kind.__name__} is a subclass of {base.__name__}, whose forward may not be that of {base.__name__}"
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from others (weight_norm, spectral_norm, pruning): remove that first"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}"
    return None


def features_of(layer: nn.Module, span: str) -> tuple[int, int]:
    """D of one R, and how many of them."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, 1
    patch = layer.kernel_size[0] * layer.kernel_size[1] if type(layer) is nn.Conv2d and span == "patch" else 1
    return layer.in_channels // layer.groups * patch, layer.groups


def _owns_a_matrix(module: nn.Module) -> bool:
    lazy = nn.parameter.is_lazy
    if isinstance(module, Decorrelation):
        return False  # reported as the layer that holds it
    if parametrize.is_parametrized(module):
        return True
    if isinstance(module, parametrize.ParametrizationList):
        return False
    return any(lazy(p) or p.dim() > 1 for p in module.parameters(recurse=False))


def _listed(patterns: Pattern | Iterable[Pattern]) -> list[Pattern]:
    return [patterns] if isinstance(patterns, str | type) else list(patterns)


def _matches(name: str, modules: dict[str, nn.Module], pattern: Pattern) -> bool:
    """Whether the module or one that holds it matches."""
    parts = name.split(".") if name else []
    line = [".".join(parts[:i]) for i in range(len(parts) + 1)]
    if isinstance(pattern, type):
        return any(isinstance(modules[holder], pattern) for holder in line)
    return any(fnmatch.fnmatchcase(holder, pattern) for holder in line[1:] or line)


def _reached(model: nn.Module, sample_input: Tensor | tuple) -> set[int]:
    """ids of the modules whose forward runs on a sample."""
    reached: set[int] = set()
    modes = {module: module.training for module in model.modules()}
    hooks = [m.register_forward_pre_hook(lambda module, _: reached.add(id(module))) for m in model.modules()]
    try:
        with torch.no_grad(), _no_attention_fast_path():
            model.eval()
            model(*sample_input) if isinstance(sample_input, tuple) else model(sample_input)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return reached


@contextmanager
def _no_attention_fast_path():
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
