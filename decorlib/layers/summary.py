"""A table of a model's decorrelation layers: what they hold, what they last reported, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from decorlib.layers.attention import INPUTS, DecorProjection
from decorlib.layers.steps import is_decorrelation, last_losses, learners_of
from decorlib.rules import work


@dataclass(frozen=True)
class LayerSummary:
    """One layer.

    Args:
        name: of the R, as in errors and losses.
        features: D of each group.
        groups: blocks with an R of their own.
        numbers: entries of R and b_R.
        rows: samples that the layer sees in a step: batch, tokens, positions of a convolution.
        loss: of the last step of an optimizer of R; None before the first.
        cost: operations of a training step, as a multiple of the plain layer's (of all that read this R, where it is
            shared); None where there is no plain layer, or the work of the rule is not known.
    """

    name: str
    features: int
    groups: int
    numbers: int
    rows: int
    loss: float | None
    cost: float | None


@dataclass(frozen=True)
class Summary:
    """The rows of :func:`summary`; as text a table."""

    layers: tuple[LayerSummary, ...]

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        head = ("layer", "D", "groups", "numbers in R", "rows", "loss", "cost of a step")
        cells = [
            (
                row.name or "(the model)",
                str(row.features),
                str(row.groups),
                f"{row.numbers:,}",
                str(row.rows),
                "-" if row.loss is None else f"{row.loss:.4g}",
                "-" if row.cost is None else f"{row.cost:.2f} x plain",
            )
            for row in self.layers
        ]
        total = ("all", "", "", f"{sum(row.numbers for row in self.layers):,}", "", "", "")
        table = [head, *cells, total]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = (
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in table
        )
        return "\n".join(line.rstrip() for line in lines)


def summary(model: nn.Module, sample_input: Tensor | tuple | None = None, rows: int = 64) -> Summary:
    """What the decorrelation layers of a model hold, last reported, and cost in work.

    The cost is counted, not measured: products of matrices in a forward, a backward and a step of R, over those of the
    plain layer (:mod:`decorlib.rules.work`). ``update_every`` and ``fraction`` are in it; what a convolution saves
    where its map is smaller than its kernel is not.

    Args:
        model: any model with decorrelation layers.
        sample_input: an input, or a tuple of them; the model is run on it once, in evaluation mode, to count the rows
            that each layer sees. Default: None, ``rows`` for all.
        rows: samples that a layer sees in a step, where that is not counted. Default: 64.

    Raises:
        ValueError: a model without decorrelation layers.

    Example::

        >>> model = decorrelate(nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)))
        >>> print(summary(model, torch.randn(64, 784)))
        layer              D  groups  numbers in R  rows  loss  cost of a step
        0.decorrelation  784       1       614,656    64     -   11.67 x plain
        2.decorrelation  100       1        10,000    64     -   14.18 x plain
        all                                624,656
    """
    counted = {} if sample_input is None else _rows(model, sample_input)
    around, attending = _readers(model)
    found = []
    for name, layer in learners_of(model):
        readers = around.get(id(layer), [])
        seen = counted.get(id(readers[0] if readers else layer), (rows, rows))
        loss = last_losses.get(layer)
        found.append(
            LayerSummary(
                name,
                layer.weight.shape[-1],
                layer.groups,
                sum(p.numel() for p in layer.parameters(recurse=False)),
                seen[1],
                None if loss is None else float(loss),
                _cost(readers, attending.get(id(layer), 0), layer, *seen),
            )
        )
    return Summary(tuple(found))


def _readers(model: nn.Module) -> tuple[dict[int, list[nn.Module]], dict[int, int]]:
    """By the id of an R: the layers that hold it, and how many outputs of an attention's projections read it."""
    around: dict[int, list[nn.Module]] = {}
    attending: dict[int, int] = {}
    for module in model.modules():
        if is_decorrelation(inner := getattr(module, "decorrelation", None)):
            around.setdefault(id(inner), []).append(module)
        if any(map(is_decorrelation, getattr(module, "decorrelations", {}).values())):
            for name, W in zip(INPUTS[module.inputs], module.input_weights(), strict=True):
                inner = module.decorrelations[name]
                attending[id(inner)] = attending.get(id(inner), 0) + W.shape[0]
    return around, attending


def _cost(readers: list[nn.Module], attending: int, layer: nn.Module, inputs: int, outputs: int) -> float | None:
    """Work of a training step over that of the plain layers, for so many rows of the input and of the output."""
    try:
        if attending:
            return _cost_of_several(layer, inputs, [attending], composed=True)
        if len(readers) > 1:  # they read one input, and see as many rows
            return _cost_of_several(layer, inputs, [reader.weight.numel() // layer.in_features for reader in readers])
        return _cost_of_one(readers[0], layer, inputs, outputs) if readers else None
    except TypeError:  # a rule whose work is not known
        return None


def _cost_of_several(layer: nn.Module, rows: int, widths: list[int], composed: bool | None = None) -> float:
    """Each multiplies by R, or composes W R; what R learns is paid once, and so are the states of the sample."""
    D, every, sampled = layer.weight.shape[-1], layer.update_every, max(1, round(layer.fraction * rows))
    plain = sum(work.linear(rows, D, M).total for M in widths)
    more = work.learning(layer.rule, sampled, D, every).total
    for i, M in enumerate(widths):
        due, idle = (work.transform(rows, D, M, n * (i == 0), composed=composed) for n in (sampled, 0))
        more += work.mixed(due, idle, 1 / every).total
    return 1 + more / plain


def _cost_of_one(reader: nn.Module, layer: nn.Module, inputs: int, outputs: int) -> float:
    W, transposed = reader.weight, getattr(reader, "transposed", False)
    plain = work.linear(inputs if transposed else outputs, W.numel(), 1).total
    over_patches = not transposed and layer.in_features == W[0].numel() * getattr(reader, "groups", 1)
    rows, D, width = outputs if over_patches else inputs, layer.weight.shape[-1], W.numel() // layer.in_features
    ours = work.decor_linear(layer.rule, rows, D, width, update_every=layer.update_every, fraction=layer.fraction).total
    more = layer.groups * (ours - work.linear(rows, D, width).total)
    if isinstance(reader, DecorProjection):  # torch's attention multiplies by the identity in its place, see there
        more += work.linear(rows, D, D, input_gradient=False).total
    return 1 + more / plain


@torch.no_grad()
def _rows(model: nn.Module, sample_input: Tensor | tuple) -> dict[int, tuple[int, int]]:
    """(input rows, output rows) of every module that was called, by its id."""
    counted: dict[int, tuple[int, int]] = {}

    def count(module: nn.Module, args: tuple, output: Tensor) -> None:
        image = module.weight.dim() > 2 and not is_decorrelation(module)
        channels = -(module.weight.dim() - 1)  # from the end: one image may come without a batch dimension
        rows = [t.numel() // t.shape[channels if image else -1] for t in (args[0], output)]
        before = counted.get(id(module), (0, 0))
        counted[id(module)] = (before[0] + rows[0], before[1] + rows[1])

    def count_inputs(module: nn.Module, args: tuple, named: dict) -> None:
        given = dict(zip(("query", "key", "value"), args, strict=False)) | named
        for name, x in module.inputs_of(given["query"], given["key"], given["value"]).items():
            of, rows = id(module.decorrelations[name]), x.numel() // x.shape[-1]
            counted[of] = tuple(before + rows for before in counted.get(of, (0, 0)))

    hooks = [
        module.register_forward_pre_hook(count_inputs, with_kwargs=True)
        for module in model.modules()
        if any(map(is_decorrelation, getattr(module, "decorrelations", {}).values()))
    ]
    hooks += [
        module.register_forward_hook(count)
        for module in model.modules()
        if is_decorrelation(module) or is_decorrelation(getattr(module, "decorrelation", None))
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(*(sample_input if isinstance(sample_input, tuple) else (sample_input,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return counted
