"""What a Decorrelation keeps of its training forwards until the next update: which samples, checked, detached."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from decorlib.layers.checks import EMPTY, called, check_fraction
from decorlib.layers.distributed import distributed
from decorlib.layers.options import Mask
from decorlib.layers.recompute import first_pass, only_once, recomputing

#: Forwards that ``accumulate=True`` keeps; of more, the oldest are dropped, with one warning.
ACCUMULATED = 64
#: Forwards without an update after which a layer says that its update may have been forgotten.
FORGOTTEN = 100


class NonFiniteInput(ValueError):
    """A layer was given NaN or infinity, or its R makes them.

    ``layer`` is the :class:`~decorlib.layers.Decorrelation` that noticed.
    """

    layer: nn.Module | None = None


class Batch(NamedTuple):
    """The samples (n, D) of one forward."""

    y: Tensor
    x: Tensor | None  # what the rule reads of the inputs
    with_gradients: bool  # whether the forward was one to backpropagate through
    source: tuple[Tensor, Tensor | None] | None  # (x, mean), where y was handed out and may be written to
    versions: tuple[int | None, int | None, int | None]  # of y, x and the source's x as the forward left them
    lent: Tensor | None = None  # the R of the forward, where torch.func.functional_call had put it in the layer's place


class BatchMemory:
    """The states of the last training forward since the last update, or of several (``accumulate``).

    A forward under ``torch.no_grad()`` (a look at the training accuracy, samples of dropout) never takes the place of
    one that is trained on, and gives way to it. What is kept are references, not copies; where something has written
    to them since, they are computed again or, where that cannot be, an error says so.
    """

    def __init__(self):
        self.batches: list[Batch] = []
        self.empty = False  # whether there was a forward without samples
        self.displaced, self.rows = 0, 0  # forwards that gave way to later ones, and their samples
        self.displaced_compiled = False  # the same where torch.compile would compile anew for each count
        self.tried = False  # whether an update has tried to learn from what is here (it may have failed)
        self.warned = False

    def __len__(self) -> int:
        return len(self.batches)

    def clear(self) -> None:
        """Forget all batches."""
        self.batches.clear()
        self.empty = self.displaced_compiled = self.tried = False
        self.displaced = self.rows = 0

    def add(
        self,
        y: Tensor,
        x: Tensor | None,
        source: tuple[Tensor, Tensor | None] | None,
        accumulate: bool,
        name: str,
        lent: Tensor | None = None,
    ) -> None:
        """Keep a batch; ``source`` is (x, mean) where y leaves the layer as its output."""
        compiling = torch.compiler.is_compiling()
        learning = torch.is_grad_enabled() or (not compiling and first_pass())
        if self.batches:
            if self.batches[0].with_gradients and not learning:
                return
            if (learning and not self.batches[0].with_gradients) or (self.tried and not accumulate):
                self.clear()
        if compiling:
            # Compiled backward writes over what it believes is needed no more, also where a batch is kept beyond it.
            # Where batches are added up, one that is computed again would count twice.
            y, x, source = (only_once if accumulate else kept)(y), None if x is None else kept(x), None
        else:
            x = x if x is None else _countable(x)
            y, source = (y, None) if source is None else (_countable(y), (_countable(source[0]), source[1]))
        versions = (None,) * 3 if compiling else (_version(y), _version(x), _version(source and source[0]))
        batch = Batch(y, x, learning, source, versions, lent)
        if not accumulate:
            if self.batches:
                self._displace(self.batches[0], compiling, name)
            self.batches.clear()
        elif len(self.batches) >= ACCUMULATED:
            self._displace(self.batches.pop(0), compiling, name)
        self.batches.append(batch)

    def _displace(self, batch: Batch, compiling: bool, name: str) -> None:
        if compiling:
            self.displaced_compiled = True
            return
        self.displaced += 1
        self.rows += batch.y.shape[0]
        if self.displaced >= FORGOTTEN:
            self.warn(name)

    def warn(self, name: str) -> None:
        """Say once what the next update leaves out, where it does."""
        if self.warned or not (self.displaced or self.displaced_compiled):
            return
        self.warned = True
        left = sum(batch.y.shape[0] for batch in self.batches)
        if len(self.batches) > 1:
            used = f"the last {len(self.batches)} alone, since accumulate=True keeps {ACCUMULATED} at most"
            way_out = ""
        else:
            used = f"the last alone ({left} of {self.rows + left} rows)" if self.displaced else "the last alone"
            way_out = "Micro-batches, or a layer called several times in one forward: accumulate=True uses all. "
        count = f"{self.displaced + len(self.batches)}" if self.displaced else "several"
        warnings.warn(
            f"{name}{count} training forwards since the last update of R, which learns from {used}. {way_out}If the "
            "step of R was forgotten, take it after each backward; if R is meant to rest, set layer.learning = False",
            RuntimeWarning,
            stacklevel=3,
        )

    def joined(self, transform: Callable[[Tensor, Tensor | None], Tensor]) -> tuple[Tensor, Tensor | None]:
        """States and inputs of all batches as one; ``transform`` gives y of (x, mean) where y was written to.

        Raises:
            RuntimeError: what is needed was changed in place since the forward.
        """
        if len(self.batches) == 1:
            return self._as_it_was(self.batches[0], transform)
        ys, xs = zip(*(self._as_it_was(batch, transform) for batch in self.batches), strict=True)
        return torch.cat(ys), None if xs[0] is None else torch.cat(xs)

    def _as_it_was(self, batch: Batch, transform) -> tuple[Tensor, Tensor | None]:
        y, x, source, versions = batch.y, batch.x, batch.source, batch.versions
        if x is not None and _version(x) != versions[1] and versions[1] is not None:
            raise RuntimeError(
                "the rule reads the inputs of the layer, and they were changed in place since its forward (x += ... "
                "after layer(x), or a buffer that is used again): write x = x + ..., or give the layer x.clone()"
            )
        if versions[0] is not None and _version(y) != versions[0]:
            if source is None or _version(source[0]) != versions[2]:
                raise RuntimeError(
                    "the outputs of the layer were changed in place since its forward (ReLU(inplace=True), y += ...), "
                    "and its inputs too, so that what R learns from is gone: use inplace=False, or y = y + ..."
                )
            y = transform(*source)
        return y, x


def _countable(t: Tensor) -> Tensor:
    """The tensor, or a copy that nobody else writes to where torch counts no writes (inference mode)."""
    return t.clone() if t.is_inference() else t


def _version(t: Tensor | None) -> int | None:
    """How often a tensor was written to; None where torch does not count (inference mode)."""
    return None if t is None or t.is_inference() else t._version


@torch.library.custom_op("decorlib::kept", mutates_args=(), schema="(Tensor x) -> Tensor")
def kept(x: Tensor) -> Tensor:
    """A copy that torch.compile cannot see into, and so cannot take for a buffer that is free to use again."""
    return x.clone()


@kept.register_fake
def _kept_shape(x: Tensor) -> Tensor:
    return torch.empty_like(x)


# ---------------------------------------------------------------------------------------------- what a forward keeps


def nothing(layer: nn.Module, count: int) -> bool:
    """Whether a training forward has no samples: a part of a model that is passed by, which is no error."""
    if count == 0 and distributed():
        raise ValueError(f"{called(layer)}{EMPTY}; other processes would wait for this one")
    if count == 0 and not torch.compiler.is_compiling():
        layer.memory.empty = True
    return count == 0


def chosen_rows(layer: nn.Module, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The rows of x and y (*, D) that the statistics use, detached, and which these are (None: all)."""
    real, D = real_rows(x, layer.padding_mask), x.shape[-1]
    x, y = x.detach().reshape(-1, D), None if y is None else y.detach().reshape(-1, D)
    chosen = layer.sample(x.shape[0], x.device, real)
    return (x, y, None) if chosen is None else (x[chosen], None if y is None else y[chosen], chosen)


@torch.no_grad()
def _states(layer: nn.Module, x: Tensor, mean: Tensor | None, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    y = layer.transform(x, mean) if y is None else y
    check_finite(layer, x, "input", witness=y)
    if layer.rule.reads is None:
        return y, None
    return y, x if layer.rule.reads == "raw input" or mean is None else x - mean.detach()


def remember(
    layer: nn.Module, x: Tensor, mean: Tensor | None, y: Tensor | None = None, handed_out: bool = False
) -> None:
    """Put samples (n, D) into a layer's memory, after checking that they are finite."""
    # Of a forward that torch.export looks at there are shapes and no numbers, and no batch was trained on.
    if torch.compiler.is_exporting() or recomputing() or nothing(layer, x.shape[0]):
        return
    y, inputs = _states(layer, x, mean, y)
    source = (x, None if mean is None else mean.detach()) if handed_out else None
    R = layer._parameters["weight"]
    lent = None if isinstance(R, nn.Parameter) or torch.compiler.is_compiling() else R.detach()
    layer.memory.add(y, inputs, source, layer.accumulate, called(layer), lent)


# ------------------------------------------------------------------------------------------ which samples, and checks


def checked_mask(mask: Mask) -> Tensor | None:
    """A padding mask, after checking that True means padding in it."""
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(f"padding_mask is a {type(mask).__name__}; it must be a tensor of torch.bool")
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(
            f"padding_mask is {mask.dtype}; it must be torch.bool, True where a token is padding. The attention_mask "
            "of a tokenizer is 1 where a token is real: use attention_mask == 0"
        )
    return mask


def real_rows(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """Which rows of x (*, D) are no padding, (rows,); None where all count."""
    if mask is None or (x.dim() == 2 and x.shape[0] != mask.numel() and x.shape[0] in mask.shape):
        return None  # a row per sequence (a head on pooled tokens): none is padding
    if x.shape[:-1] != mask.shape and x.shape[:-1] != (mask.numel(),):
        raise ValueError(
            f"padding_mask of shape {tuple(mask.shape)} does not fit an input of shape {tuple(x.shape)}: its "
            f"tokens need the shape {tuple(x.shape[:-1])}; for (tokens, batch) use padding(..., batch_first=False)"
        )
    return ~mask.reshape(-1).to(x.device)


def sample(layer: nn.Module, count: int, device, real: Tensor | None = None) -> Tensor | None:
    """Indices of the samples that a layer's statistics use; of none where a forward is computed again inside backward.

    There torch.utils.checkpoint has put torch's global generator back, and what comes after this layer must find it as
    it did the first time; a generator of the layer's own was not put back.
    """
    again = recomputing()
    if again and layer.generator is not None:
        return torch.empty(0, dtype=torch.long, device=device)
    chosen = _drawn(count, layer.fraction, layer.generator, device, real)
    return torch.empty(0, dtype=torch.long, device=device) if again else chosen


def _drawn(
    count: int, fraction: float, generator: torch.Generator | None, device, real: Tensor | None
) -> Tensor | None:
    candidates = None if real is None else real.nonzero().squeeze(1)
    count = count if candidates is None else candidates.numel()
    if fraction == 1 or count == 0:
        return candidates
    check_fraction(fraction)  # it may have been set since the layer was made
    size = max(1, round(fraction * count))
    where = device if generator is None else generator.device
    chosen = torch.randperm(count, generator=generator, device=where)[:size].to(device)
    return chosen if candidates is None else candidates[chosen]


def check_finite(layer: nn.Module, x: Tensor, what: str, witness: Tensor | None = None) -> None:
    """Raise NonFiniteInput where x holds NaN or infinity; ``witness`` is something that would hold them, too."""
    # One number finds any NaN or inf. Only where reading it back is free: a GPU would have to be waited for. What
    # x does to y shows in y, which the processor has just written and still holds; x it would have to fetch again.
    if not x.is_cpu or torch.compiler.is_compiling():
        return
    flat = x if witness is None else witness
    if flat.dim() != 1 or flat.requires_grad:  # else a mean, which every forward of a layer is here for
        flat = flat.detach().reshape(-1)
    if math.isfinite(float(flat.dot(flat))):  # of a sum or a norm, the quickest
        return
    if not bool(x.isfinite().all()):
        error = NonFiniteInput(
            f"{called(layer)}{what} of shape {tuple(x.shape)} holds NaN or infinity: check the data and the rates; "
            "where the data are finite, lower the rate of R"
        )
        error.layer = layer
        raise error
    if witness is not None and not bool(witness.isfinite().all()):
        error = NonFiniteInput(
            f"{called(layer)}R x of a finite input of shape {tuple(x.shape)} holds NaN or infinity: R has diverged. "
            "Lower the rate of R (or bound its steps by max_step), and load a checkpoint from before or call "
            "layer.reset_parameters()"
        )
        error.layer = layer
        raise error
