"""Steps of R that leave the network's function as it is: the weights take up what R has changed.

A layer computes W (R (x - mu) + b_R) + b. Where R goes to R_new and b_R to c_new, the same function is

    W_new = W R R_new^-1        b_new = b + W b_R - W_new c_new

for all layers that read this R, as PRONG does when it whitens anew (Desjardins et al. 2015, arXiv 1507.00210).
Everything is computed before the first weight is written.

Each step rounds the weights once, so that they have to be float32 or float64. A weight that another layer has, too, is
refused, as far as the optimizer of R was given that layer: only given the whole model does it see all of them.
"""

from __future__ import annotations

import copy
import warnings
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

#: How far the effective weight W R may be off after a step (Frobenius norm of W_new R_new - W R over that of W R), in
#: units of the eps of the weights' dtype. The products are of that dtype, too, and their rounding makes it 3 to 20
#: times what is lost: where R whitens as it should it is 3 to 40, of which 0.2 to 4 are lost. From SAID on (1.2e-4 in
#: float32, where 6e-6 to 4e-5 are lost) there is a warning; above LOST R is all but singular, and the step is refused.
SAID, LOST = 1e3, 1e4
WAY_OUT = "; lower the rate of R, bound its steps (max_step=0.5), or leave preserve_function out"

Writes = list[tuple[Tensor, Tensor]]


class LostFunction(RuntimeError):
    """A step of R that no weights can make up for; nothing was written."""


class Readers:
    """Which layers read each R, found in what an optimizer of R was given.

    They are looked for anew at each step that learns (:meth:`look`), since weights may be tied at any time. Only a tie
    to what was given can be seen: given layers and no model, one to a layer outside is not.

    Args:
        given: a model, layers, (name, layer) pairs, or parameter groups of those.
    """

    def __init__(self, given: Layers = ()):
        self._roots: list[nn.Module] = []
        self._said: list[nn.Module] = []  # of which layers there was a warning
        self._found: dict[int, list[nn.Module]] = {}  # by id of the layer that holds R
        self._held: dict[tuple, list[tuple[int, int]]] = {}  # by storage: first and last byte of each tensor held
        self.add(given)

    def add(self, given: Layers) -> None:
        """Look in these, too."""
        self._roots += list(_modules(given))

    def look(self) -> None:
        """Find the layers that read each R, and what memory all weights and buffers are in, as they are now."""
        self._found, self._held = {}, {}
        for module in {id(m): m for root in self._roots for m in root.modules()}.values():
            inner = [getattr(module, "decorrelation", None), *getattr(module, "decorrelations", {}).values()]
            for layer in filter(is_decorrelation, inner):
                self._found.setdefault(id(layer), []).append(module)
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if (span := _span(tensor)) is not None:
                    self._held.setdefault(span[0], []).append(span[1:])

    def __getstate__(self):
        return {"_roots": self._roots, "_said": self._said, "_found": {}, "_held": {}}

    def of(self, layer: Decorrelation) -> list[nn.Module]:
        """The layers that read an R, of which there must be as many as hold it, each with weights of its own."""
        readers = self._found.get(id(layer), [])
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

    @torch.no_grad()
    def writes(self, layer: Decorrelation, before: tuple[Tensor, Tensor | None], after: tuple) -> Writes:
        """(tensor, new value) for all weights and biases that make up for a step of one R and its b_R.

        After :meth:`look`.

        Args:
            layer: that holds R.
            before: R and b_R of before the step.
            after: those of after it.

        Raises:
            LostFunction: R is singular, or so ill-conditioned that the weights would lose digits. A warning where
                they lose some.
            ValueError: a layer whose weights are not its own, or of half precision, or whose bias cannot take up b_R.
        """
        readers, written = self.of(layer), []
        M = _ratio(layer, before[0], after[0])
        for reader in readers:
            for weight, bias in _weights(layer, reader):
                self._refuse_foreign(layer, reader, weight, "weight")
                new = reader.composed(M, weight.to(M.dtype)).to(weight.dtype)
                self._check_digits(layer, reader, (weight, before[0]), (new, after[0]))
                written.append((weight, new))
                if after[1] is None:
                    continue
                if bias is None or getattr(reader, "transposed", False):
                    raise ValueError(
                        f"{called(layer)}preserve_function=True, and what its b_R adds is nothing that the bias of "
                        f"{type(reader).__name__} can take up (it has none, or it would differ between positions): use "
                        "decor_bias=False, or leave this layer to an optimizer without preserve_function"
                    )
                self._refuse_foreign(layer, reader, bias, "bias")
                shift = reader.constant(before[1], weight) - reader.constant(after[1], new)
                written.append((bias, bias + shift.to(bias.dtype)))
        return written

    def _refuse_foreign(self, layer: Decorrelation, reader: nn.Module, tensor: Tensor, what: str) -> None:
        """Raise unless a weight or bias is the reader's own, and takes a step with the digits that this asks for."""
        begins = f"{called(layer)}preserve_function=True, and "
        its = f"the {what} of its {type(reader).__name__}"
        leave = "leave this layer to an optimizer without preserve_function"
        owned = [p for p in reader._parameters.values() if p is not None and _base(tensor) is _base(p)]
        if not owned or type(owned[0]) is not nn.Parameter:
            raise ValueError(
                f"{begins}{its} is no plain Parameter of its own (pruned, parametrised, quantised, sharded): undo "
                f"that, or {leave}"
            )
        storage, first, last = _span(owned[0]) or (None, 0, 0)
        if sum(begin <= last and first <= end for begin, end in self._held.get(storage, [])) > 1:
            raise ValueError(
                f"{begins}other layers have the same {what} as its {type(reader).__name__}, so that they would change "
                f"with it: untie them, or {leave}"
            )
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{begins}{its} is {tensor.dtype}, in which rounding at each step changes what the layer computes: "
                f"keep the weights in torch.float32 (torch.autocast still computes in half precision), or {leave}"
            )

    def _check_digits(self, layer: Decorrelation, reader: nn.Module, before: tuple, after: tuple) -> None:
        """Say or raise where rounding of the new weight, times the new R, is not the effective weight of before."""
        (W, R), (W_new, R_new) = before, after
        old, new = reader.composed(R.to(W.dtype), W), reader.composed(R_new.to(W.dtype), W_new)
        scale, eps = old.norm(), torch.finfo(W.dtype).eps
        lost = float((new - old).norm() / scale) if bool(scale > 0) else float(new.norm())
        if not lost <= LOST * eps:
            raise LostFunction(
                f"{called(layer)}preserve_function=True, and the step makes R so ill-conditioned that the effective "
                f"weight would be off by {lost:.2g} of itself, where {LOST * eps:.2g} is allowed{WAY_OUT}"
            )
        if lost > SAID * eps and not any(one is layer for one in self._said):
            self._said.append(layer)
            warnings.warn(
                f"{called(layer)}preserve_function=True, and the step makes R so ill-conditioned that rounding moves "
                f"the effective weight by up to {lost:.2g} of itself{WAY_OUT}. This is said once for each R",
                RuntimeWarning,
                stacklevel=2,
            )


@torch.no_grad()
def take_in_place(readers: Readers, steps: Iterable[PreparedStep]) -> None:
    """Plain gradient steps of R, and the weights that make up for them: of all layers or of none."""
    targets = [(step, step.target()) for step in steps]
    if any(step.loss is not None for step, _ in targets):
        readers.look()
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
    if layers:
        readers.look()
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


def _span(tensor: Tensor | None) -> tuple[tuple, int, int] | None:
    """Which memory a tensor is in: its storage, its first and last byte there; None for what is in no plain memory.

    Two Parameters may be one weight: ``nn.Parameter(head.weight.data)`` is as tied as ``head.weight`` itself.
    """
    if tensor is None or type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return None
    if tensor.is_meta or tensor.numel() == 0:
        return None
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.storage_offset() * tensor.itemsize
    storage = tensor.device, tensor.untyped_storage().data_ptr()
    return storage, first, first + (steps + 1) * tensor.itemsize - 1
