"""Which layers of a model can be decorrelated, and why the others cannot: what :func:`decorlib.decorrelate` goes by."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from decorlib.conversion import attention
from decorlib.conversion.foreign import (
    adapters,
    computed,
    forward_replaced,
    gathered_for_forward,
    is_dtensor,
    odd_tensor,
)
from decorlib.conversion.watch import Sample, called_and_read
from decorlib.layers import gpt2
from decorlib.layers.conv import DecorConv2d, check_span
from decorlib.layers.conv_ranks import DecorConv1d, DecorConv3d
from decorlib.layers.conv_transpose import DecorConvTranspose2d
from decorlib.layers.linear import DecorLinear
from decorlib.layers.options import Span
from decorlib.layers.steps import is_decorrelation

DECORRELATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: DecorLinear,
    nn.Conv1d: DecorConv1d,
    nn.Conv2d: DecorConv2d,
    nn.Conv3d: DecorConv3d,
    nn.ConvTranspose2d: DecorConvTranspose2d,
    **attention.ATTENTION,
}
PLAIN = {decorrelated: plain for plain, decorrelated in DECORRELATED.items()}
# Transposed convolutions are converted for images alone.
_INSTEAD = {
    nn.ConvTranspose1d: ": of transposed convolutions ConvTranspose2d alone has one, which does the same with kernel "
    "size (1, k) on sequences unsqueezed to images of height 1",
    nn.ConvTranspose3d: ": of transposed convolutions ConvTranspose2d alone has one",
}
Pattern = str | type[nn.Module]
# R that holds this many numbers (8 MB) and this many times those of the weights that it multiplies is worth a word.
MANY, TIMES = 2_000_000, 4


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`decorrelate` does with each layer that has a weight matrix.

    Args:
        converted: layer name -> D, the features that one R covers (the root of a model is called "").
        left_alone: layer name -> why.
        excluded: names among ``left_alone`` that the caller left out: ``include``, ``exclude``, ``max_features``.
        numbers: name of a converted layer -> how many numbers its R holds, and how many its weight.
    """

    converted: dict[str, int] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    numbers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def dear(self) -> str | None:
        """What R costs where it costs far more than the layers it serves, and the ways out; None where it does not."""
        dear = {name: n for name, n in self.numbers.items() if n[0] > TIMES * n[1]}
        if sum(r for r, _ in dear.values()) < MANY:
            return None
        of_r, of_weights = (sum(column) for column in zip(*self.numbers.values(), strict=True))
        name = max(dear, key=lambda name: dear[name][0])
        features, (largest, weight) = self.converted[name], dear[name]
        return (
            f"R will hold {_millions(of_r)} numbers ({4 * of_r / 1e6:.0f} MB in float32) beside "
            f"{_millions(of_weights)} of the weights that it multiplies; the dearest is '{name}' with {features} "
            f"features, {_millions(largest)} beside {_millions(weight)}, and a step of it takes about "
            f"{2 * features * largest:.0e} operations. Ways out: span='channel' for convolutions, max_features=... to "
            "leave the largest alone, or "
            f"exclude=...; give max_features={max(self.converted.values())} to say that this is meant"
        )

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
    span: Span = "patch",
    max_features: int | None = None,
    sample_input: Sample | None = None,
) -> ConversionReport:
    """What :func:`decorlib.decorrelate` would do with the same arguments, and why; nothing is changed. Print it."""
    check_span(span)
    include, exclude = (None if include is None else listed(include)), listed(exclude)
    modules = dict(model.named_modules())
    for pattern in [*(include or []), *exclude]:
        if not any(_matches(name, modules, pattern) for name in modules):
            raise ValueError(f"{pattern!r} matches no module; their names are e.g. {list(modules)[1:6]}")
    called, read = (None, set()) if sample_input is None else called_and_read(model, sample_input)
    surroundings = _Surroundings(modules)
    converted, left_alone, excluded = {}, {}, set()
    for name, module in modules.items():
        if not _owns_a_matrix(module):
            continue
        reason = _why_not(module) or surroundings.why_not(name) or attention.why_not(name, modules, converted)
        projection = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)  # read by the attention
        if reason is None and max_features is not None and features_of(module, span)[0] > max_features:
            reason = f"R would cover {features_of(module, span)[0]} features, more than max_features = {max_features}"
            excluded.add(name)
        if reason is None and not projection and called is not None and id(module) not in called:
            reason = "the forward never calls it (its weights are read directly, or not used)"
        if reason is None and not projection and id(module) in read:
            reason = "its weight is read elsewhere in the forward, past the layer and its R"
        if any(_matches(name, modules, pattern) for pattern in exclude):
            reason, _ = "excluded", excluded.add(name)
        elif include is not None and not any(_matches(name, modules, pattern) for pattern in include):
            reason, _ = "not included", excluded.add(name)
        if reason is None:
            converted[name] = features_of(module, span)[0]
        else:
            left_alone[name] = reason
    numbers = {name: _numbers(modules[name], span) for name in converted}
    return ConversionReport(converted, left_alone, frozenset(excluded), numbers)


# ---------------------------------------------------------------------------------------------------------- internals


def _why_not(module: nn.Module) -> str | None:
    """Why a module that owns a matrix cannot be converted, or None."""
    kind = type(module)
    if plain_kind(module) or is_decorrelation(module) or attention.is_attention(module):
        return "decorrelated already"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "lazy: run a batch through the model first, so that its size is known"
    if parametrize.is_parametrized(module):
        return computed(module)
    if counterpart(kind) is None:
        base = next((plain for plain in DECORRELATED if isinstance(module, plain)), None)
        if base is None:
            return f"{kind.__name__} has no decorrelated counterpart{_INSTEAD.get(kind, '')}"
        return f"{kind.__name__} is a subclass of {base.__name__}, whose forward may not be that of {base.__name__}"
    if (reason := computed(module) or forward_replaced(module)) is not None:
        return reason
    weight = module.out_proj.weight if kind is nn.MultiheadAttention else module.weight
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return None


class _Surroundings:
    """What can only be told of a layer from the rest of the model: who holds it, and who shares its weight."""

    def __init__(self, modules: dict[str, nn.Module]):
        self.modules = modules
        self.adapters = [name for name, _ in adapters(modules[""])] if "" in modules else []
        self.owners: dict[int, list[str]] = {}
        for name, module in modules.items():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.owners.setdefault(id(parameter), []).append(name)

    def why_not(self, name: str) -> str | None:
        layer = self.modules[name]
        adapter = next((a for a in self.adapters if name.startswith(f"{a}." if a else "")), None)
        if adapter is not None:
            return (
                f"it is part of an adapter of peft ('{adapter}'), which is merged into the weight below it as if no R "
                "were there: decorrelate before get_peft_model, or after merge_and_unload"
            )
        for kind in ("weight", "bias", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            tensor = layer._parameters.get(kind)
            if tensor is None or (odd := odd_tensor(tensor)) is None:
                continue
            if is_dtensor(tensor):
                if gathered_for_forward(tensor, [self.modules[h] for h in _holders(name)]):
                    continue
                return f"its {kind} is {odd}: decorrelate before it is sharded, see decorlib.conversion.shard"
            return f"its {kind} is {odd}: decorrelate and train before quantising, then fuse, then quantise"
        for other in self.owners[id(layer.weight)] if isinstance(getattr(layer, "weight", None), nn.Parameter) else ():
            if counterpart(type(self.modules[other])) is None and plain_kind(self.modules[other]) is None:
                return (
                    f"its weight is also that of '{other}' ({type(self.modules[other]).__name__}), which would go on "
                    "without R: untie them first, layer.weight = nn.Parameter(layer.weight.detach().clone())"
                )
        return None


def _holders(name: str) -> list[str]:
    """The names of the modules that hold one, from the root, and its own."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts) + 1)]


def counterpart(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The decorrelated class for a plain one; None where there is none."""
    return gpt2.DecorConv1D if gpt2.is_conv1d(kind) else DECORRELATED.get(kind)


def plain_kind(module: nn.Module) -> type[nn.Module] | None:
    """torch's class for a layer of ours, also for one whose class was defined anew since; None for other modules."""
    kind = type(module)
    if kind in PLAIN:
        return PLAIN[kind]
    if (kind.__module__, kind.__qualname__) == (gpt2.__name__, "DecorConv1D"):
        return kind.plain
    names = {(ours.__module__, ours.__qualname__): plain for ours, plain in PLAIN.items()}
    return names.get((kind.__module__, kind.__qualname__))


def _numbers(layer: nn.Module, span: str) -> tuple[int, int]:
    features, groups = features_of(layer, span)
    if isinstance(layer, nn.MultiheadAttention):
        return 3 * features**2, 3 * layer.embed_dim * features  # at most
    return groups * features**2, layer.weight.numel()


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def features_of(layer: nn.Module, span: str) -> tuple[int, int]:
    """D of one R, and how many of them."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, 1
    if isinstance(layer, nn.MultiheadAttention):
        return max(layer.embed_dim, layer.kdim, layer.vdim), 1
    if gpt2.is_conv1d(type(layer)):
        return layer.nx, 1
    patch = math.prod(layer.kernel_size) if not layer.transposed and span == "patch" else 1
    return layer.in_channels // layer.groups * patch, layer.groups


def _owns_a_matrix(module: nn.Module) -> bool:
    lazy = nn.parameter.is_lazy
    if is_decorrelation(module):
        return False  # reported as the layer that holds it
    if parametrize.is_parametrized(module):
        return True
    if isinstance(module, parametrize.ParametrizationList):
        return False
    return any(lazy(p) or p.dim() > 1 for p in module.parameters(recurse=False))


def listed(patterns: Pattern | Iterable[Pattern]) -> list[Pattern]:
    return [patterns] if isinstance(patterns, str | type) else list(patterns)


def _matches(name: str, modules: dict[str, nn.Module], pattern: Pattern) -> bool:
    """Whether the module or one that holds it matches."""
    line = _holders(name)
    if isinstance(pattern, type):
        return any(isinstance(modules[holder], pattern) for holder in line)
    return any(fnmatch.fnmatchcase(holder, pattern) for holder in line[1:] or line)
