"""Whether two models compute the same on a sample, but for rounding; if not, where they first differ."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from decorlib.conversion.watch import Sample, evaluating, map_tensors, run, tensors

TOLERANCE = 1e-5  # of the largest output


def assert_agree(model: nn.Module, other: nn.Module, sample: Sample, remake: Callable[[nn.Module], nn.Module]) -> None:
    """Raise ValueError where a model and what was made of it give different outputs in evaluation mode.

    They may differ by 1e-5 of the largest output. Where they differ by more, a copy of the model in float64 is compared
    with what ``remake`` makes of it: rounding shrinks with the digits, also that of the weights that are written, and a
    mistake does not. A model that does not run in float64 may differ by half the digits of its own dtype.

    Raises:
        ValueError: with the largest difference and the layer where outputs first differ; where nothing can be compared.
    """
    own = _largest(model, other, sample)
    if own[0] <= TOLERANCE * own[1]:
        return
    pair, allowed = (model, other), TOLERANCE
    try:
        exact = copy.deepcopy(model).double()
        exact = exact, remake(exact)
        inputs = map_tensors(sample, lambda t: t.double() if t.is_floating_point() else t)
        largest = _largest(*exact, inputs)
        pair, sample = exact, inputs
    except RuntimeError:  # operations that mix dtypes, or that float64 does not have
        largest, allowed = own, own[2] ** 0.5
    difference, scale = largest[:2]
    if difference <= allowed * scale:
        return
    raise ValueError(
        f"outputs on the sample differ by {difference:.3g} (the largest is {scale:.3g}), which is more than rounding"
        f"{_where(*pair, sample, allowed)}"
    )


def _outputs(model: nn.Module, sample: Sample):
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        # A model that writes into its input must not change what the other one is given.
        return run(model, map_tensors(sample, Tensor.clone))


def _largest(model: nn.Module, other: nn.Module, sample: Sample) -> tuple[float, float, float]:
    """The largest difference between outputs, the largest output, and the eps of its dtype."""
    pairs = [(_floating(_outputs(m, sample))) for m in (model, other)]
    if not pairs[0]:
        raise ValueError("the model returns no floating tensor on sample_input, so that nothing can be compared")
    difference, scale = _compare(*pairs)
    if scale != scale or scale == float("inf"):
        raise ValueError("the model's own outputs on sample_input are not finite: give another sample, or check R")
    return difference, scale, max(torch.finfo(t.dtype).eps for t in pairs[0])


def _floating(output) -> list[Tensor]:
    return [t for t in tensors(output) if t.is_floating_point()]


def _compare(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float]:
    """(largest difference, largest absolute value); places that are infinite in both, as masks are, do not count."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf"), max((float(t.abs().max()) for t in ours if t.numel()), default=0.0)
    difference, scale = 0.0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.double(), b.double()
        masked = a.isinf() & (a == b)
        gap = (a - b).abs().masked_fill(masked, 0)
        if gap.numel():
            worst, size = float(gap.max()), float(a.abs().masked_fill(masked, 0).max())  # max() of torch keeps NaN
            difference = worst if worst != worst else max(difference, worst)
            scale = size if size != size else max(scale, size)
    return difference, scale


def _where(model: nn.Module, other: nn.Module, sample: Sample, allowed: float) -> str:
    """The first module, in the order in which forwards end, whose outputs differ."""
    expected: dict[str, list[list[Tensor]]] = {}
    first: list[tuple[str, nn.Module, float, float]] = []

    def remember(name):
        return lambda _module, _inputs, output: expected.setdefault(name, []).append(_floating(output))

    def check(name):
        def hook(module, _inputs, output):
            if first or not expected.get(name):
                return
            difference, scale = _compare(expected[name].pop(0), _floating(output))
            if not difference <= allowed * scale:
                first.append((name, module, difference, scale))

        return hook

    for observed, hook in ((model, remember), (other, check)):
        hooks = [module.register_forward_hook(hook(name)) for name, module in observed.named_modules()]
        try:
            _outputs(observed, sample)
        finally:
            for handle in hooks:
                handle.remove()
    if not first:
        return ""
    name, module, difference, scale = first[0]
    kind = type(model.get_submodule(name)).__name__
    text = f"; they first differ in layer '{name}' ({kind}), by {difference:.3g} of {scale:.3g}"
    if next(module.children(), None) is None:
        return text
    return (
        f"{text}, though the layers in it agree: its own forward reads a weight past its layer. Leave that layer out: "
        "decorrelate(..., sample_input=...) finds it, or exclude=..."
    )
