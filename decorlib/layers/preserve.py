"""Steps of R that leave the network's function as it is: the weights take up what R has changed.

A layer computes W (R (x - mu) + b_R) + b. Where R goes to R_new and b_R to c_new, the same function is

    W_new = W R R_new^-1        b_new = b + W b_R - W_new c_new

for all layers that read this R. Source: the reparametrisation of Desjardins et al. (2015), "Natural neural networks",
arXiv 1507.00210, section 3.2, and of PRONG there. Everything is computed before the first weight is written.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from decorlib.layers.attention import INPUTS
from decorlib.layers.checks import called
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.options import Layers
from decorlib.layers.step import PreparedStep, set_gradients
from decorlib.layers.steps import is_decorrelation

#: What a step may lose of the effective weight W R, in units of the dtype's eps: above, R is too ill-conditioned.
LOST = 1e4
WAY_OUT = "; lower the rate of R, bound its steps (max_step=0.5), or leave preserve_function out"

Writes = list[tuple[Tensor, Tensor]]


class LostFunction(RuntimeError):
    """A step of R that no weights can make up for; nothing was written."""


class Readers:
    """Which layers read each R, found in what an optimizer of R was given.

    Args:
        given: a model, layers, (name, layer) pairs, or parameter groups of those.
    """

    def __init__(self, given: Layers = ()):
        self._roots: list[nn.Module] = []
        self._found: list[tuple[nn.Module, list[nn.Module]]] | None = None
        self._tied: list[nn.Parameter] = []  # those that several layers hold
        self.add(given)

    def add(self, given: Layers) -> None:
        """Look in these, too."""
        self._roots += list(_modules(given))
        self._found = None

    def of(self, layer: Decorrelation) -> list[nn.Module]:
        """The layers that read an R, of which there must be as many as hold it, each with weights of its own."""
        if self._found is None:  # a list and no dict by id: it is copied and pickled with the optimizer
            self._found = list(self._search())
        readers = next((readers for one, readers in self._found if one is layer), [])
        if not readers:
            raise ValueError(
                f"{called(layer)}preserve_function=True, and no layer with weights reads this R (a bare Decorrelation, "
                "or an optimizer that was given R without the layer around it): give the optimizer the model, or leave "
                "this layer to one without preserve_function"
            )
        if len(readers) < layer.sharers:
            raise ValueError(
                f"{called(layer)}preserve_function=True, and {len(readers)} of the {layer.sharers} layers that share "
                "this R were given: give the optimizer the model"
            )
        return readers

    def _search(self) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
        modules = list({id(m): m for root in self._roots for m in root.modules()}.values())
        found: dict[int, tuple[nn.Module, list[nn.Module]]] = {}
        for module in modules:
            inner = [getattr(module, "decorrelation", None), *getattr(module, "decorrelations", {}).values()]
            for layer in filter(is_decorrelation, inner):
                found.setdefault(id(layer), (layer, []))[1].append(module)
        held = [p for module in modules for p in module._parameters.values() if p is not None]
        count = Counter(map(id, held))
        self._tied = [p for p in held if count[id(p)] > 1]
        return iter(found.values())

    @torch.no_grad()
    def writes(self, layer: Decorrelation, before: tuple[Tensor, Tensor | None], after: tuple) -> Writes:
        """(tensor, new value) for all weights and biases that make up for a step of one R and its b_R.

        Args:
            layer: that holds R.
            before: R and b_R of before the step.
            after: those of after it.

        Raises:
            LostFunction: R is singular, or so ill-conditioned that the weights would lose digits.
            ValueError: a layer whose weights are not its own, or whose bias cannot take up b_R.
        """
        readers, written = self.of(layer), []
        M = _ratio(layer, before[0], after[0])
        for reader in readers:
            for weight, bias in _weights(layer, reader):
                self._refuse_foreign(layer, reader, weight)
                new = reader.composed(M, weight.to(M.dtype)).to(weight.dtype)
                _check_digits(layer, reader, (weight, before[0]), (new, after[0]))
                written.append((weight, new))
                if after[1] is None:
                    continue
                if bias is None or getattr(reader, "transposed", False):
                    raise ValueError(
                        f"{called(layer)}preserve_function=True, and what its b_R adds is nothing that the bias of "
                        f"{type(reader).__name__} can take up (it has none, or it would differ between positions): use "
                        "decor_bias=False, or leave this layer to an optimizer without preserve_function"
                    )
                shift = reader.constant(before[1], weight) - reader.constant(after[1], new)
                written.append((bias, bias + shift.to(bias.dtype)))
        return written

    def _refuse_foreign(self, layer: Decorrelation, reader: nn.Module, weight: Tensor) -> None:
        owned = [p for p in reader._parameters.values() if p is not None and _base(weight) is _base(p)]
        if not owned or type(owned[0]) is not nn.Parameter:
            raise ValueError(
                f"{called(layer)}preserve_function=True, and the weight of its {type(reader).__name__} is no plain "
                "Parameter of its own (pruned, parametrised, quantised, sharded): undo that, or leave this layer to an "
                "optimizer without preserve_function"
            )
        if any(one is owned[0] for one in self._tied):
            raise ValueError(
                f"{called(layer)}preserve_function=True, and other layers have the same weight as its "
                f"{type(reader).__name__}, so that they would change with it: untie them, or leave this layer to an "
                "optimizer without preserve_function"
            )


@torch.no_grad()
def take_in_place(readers: Readers, steps: Iterable[PreparedStep]) -> None:
    """Plain gradient steps of R, and the weights that make up for them: of all layers or of none."""
    targets = [(step, step.target()) for step in steps]
    writes = [
        one
        for step, target in targets
        if step.loss is not None
        for one in readers.writes(step.layer, (step.layer.weight, step.layer.bias), target)
    ]
    for step, target in targets:
        step.commit_target(*target)
    _write(writes)


@contextmanager
def around_optimizer(readers: Readers, steps: Sequence[PreparedStep], optimizer: torch.optim.Optimizer):
    """Set the gradients of R, and have the weights make up for what the optimizer does with them in the ``with`` block.

    Where no weights can, R and the optimizer's state are put back as they were.
    """
    for step in steps:  # all that may fail, before the first gradient is set
        step.direct()
    layers = [step.layer for step in steps if step.loss is not None]
    before = [tuple(None if t is None else t.detach().clone() for t in (d.weight, d.bias)) for d in layers]
    state = {p: {k: _copy(v) for k, v in kept.items()} for p, kept in optimizer.state.items()}
    settings = [{k: _copy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        for step in steps:
            set_gradients(step.layer, *step.gradients())
        yield
        writes = [w for d, old in zip(layers, before, strict=True) for w in readers.writes(d, old, (d.weight, d.bias))]
    except BaseException:
        with torch.no_grad():
            for d, (R, b) in zip(layers, before, strict=True):
                d.weight.copy_(R)
                if b is not None:
                    d.bias.copy_(b)
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, setting in zip(optimizer.param_groups, settings, strict=True):
            group.update(setting)
        raise
    _write(writes)
    for step in steps:
        step.finish()


def _copy(value):
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


@torch.no_grad()
def _write(writes: Writes) -> None:
    for tensor, value in writes:
        tensor.copy_(value)


def _modules(given: Layers) -> Iterator[nn.Module]:
    if isinstance(given, nn.Module):
        yield given
        return
    for one in given:
        if isinstance(one, dict):
            yield from _modules(one["params"])
        elif isinstance(one, tuple):
            yield one[1]
        else:
            yield one


def _weights(layer: Decorrelation, reader: nn.Module) -> Iterable[tuple[Tensor, Tensor | None]]:
    """The weights of a reader that read this R, each with its bias: of attention parts of one tensor."""
    if not hasattr(reader, "decorrelations"):
        return [(reader.weight, reader.bias)]
    biases = [None] * 3 if reader.in_proj_bias is None else reader.in_proj_bias.chunk(3)
    parts = zip(reader.input_weights(), biases, INPUTS[reader.inputs], strict=True)
    return [(W, b) for W, b, name in parts if reader.decorrelations[name] is layer]


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def _ratio(layer: Decorrelation, R: Tensor, new: Tensor) -> Tensor:
    """R R_new^-1, in float64 where the device has it."""
    dtype = R.dtype if R.device.type == "mps" else torch.float64
    M, info = torch.linalg.solve_ex(new.to(dtype), R.to(dtype), left=False)
    if bool(info.any()) or not bool(M.isfinite().all()):
        raise LostFunction(
            f"{called(layer)}preserve_function=True, and the step makes R singular or not finite, so that no weights "
            f"make up for it{WAY_OUT}"
        )
    return M


def _check_digits(layer: Decorrelation, reader: nn.Module, before: tuple, after: tuple) -> None:
    """Raise where rounding of the new weight, times the new R, is no longer the effective weight of before."""
    (W, R), (W_new, R_new) = before, after
    old, new = reader.composed(R.to(W.dtype), W), reader.composed(R_new.to(W.dtype), W_new)
    scale = old.norm()
    lost = float((new - old).norm() / scale) if bool(scale > 0) else float(new.norm())
    allowed = min(LOST * torch.finfo(W.dtype).eps, 0.1)
    if not lost <= allowed:
        raise LostFunction(
            f"{called(layer)}preserve_function=True, and the step makes R so ill-conditioned that the effective weight "
            f"would be off by {lost:.2g} of itself, where {allowed:.2g} is allowed{WAY_OUT}"
        )
