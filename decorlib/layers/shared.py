"""One R for several layers that read the same input: queries, keys and values as layers of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decorlib.layers.checks import called, frozen
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.options import Flag
from decorlib.layers.recompute import compiled_around_checkpoint, recomputing


class SharedDecorrelation(Decorrelation):
    """A :class:`Decorrelation` that several layers hold: it sees their common input once, and learns from it once.

    The training forwards of the layers on one tensor are one forward of R: the first tracks the mean and remembers the
    batch, the others subtract the same mean. A layer that comes with another tensor before all have seen this one is
    refused. The ``state_dict`` has R under the name of each layer, as of any parameter that is shared.

    Args:
        in_features, **options: see :class:`Decorrelation`.
        sharers: how many layers hold it.
    """

    def __init__(self, in_features: int, bias: Flag = False, *, sharers: int, **options):
        super().__init__(in_features, bias, **options)
        self.sharers = sharers

    def _begin(self) -> None:
        super()._begin()
        self._seen: set[int] = set()  # the layers that have read the tensor
        self._source: tuple | None = None
        self._again, self._mean = False, None
        self._rest: dict[int, bool] = {}  # whether the weights of each layer are frozen
        self._prefixes: set[str] = set()

    def read_by(self, reader: nn.Module, x: Tensor) -> None:
        """Note the forward of one of the layers on x."""
        rested = self._rest.get(id(reader), False)
        self._rest[id(reader)] = frozen(reader, rested)
        self.frozen = len(self._rest) >= self.sharers and all(self._rest.values())
        if self.training and (torch.compiler.is_compiling() or compiled_around_checkpoint()):
            raise RuntimeError(  # while compiling, the layers then run as they are, but for fullgraph=True
                f"{called(self)}layers that share an R cannot be compiled in training, since whether their inputs are "
                "one tensor is not known then: compile the model without share=..., or without the layers"
            )
        self._again = False
        if not self.training or recomputing():
            return
        if self._source is None or id(reader) in self._seen:
            # Detached, it keeps its memory from being used for another tensor, and counts the same writes.
            # Of a tensor of inference mode nobody counts the writes, so that its values are compared.
            seen = x.clone() if x.is_inference() else x.detach()
            self._seen, self._mean, self._source = set(), None, (seen, _what(x))
        elif not _same(x, *self._source):
            self.forget_source()
            raise RuntimeError(
                f"{called(self)}{self.sharers} layers share this R, so in training they must read the same tensor, "
                "unchanged, with gradients on for all or none: another one came before all had read it. Leave them "
                "out of share=..., or give all of them the same tensor"
            )
        else:
            self._again = True
        self._seen.add(id(reader))
        if len(self._seen) == self.sharers:
            self._source = None

    def forget_source(self) -> None:
        """The next forward of any of the layers begins anew."""
        self._source, self._mean, self._again = None, None, False
        self._seen = set()

    @property
    def due(self) -> bool:
        """Whether a training forward has to remember its batch: the first of the layers' alone."""
        return not self._again and super().due

    def mean(self, x: Tensor) -> Tensor | None:
        """The mean to subtract: in training one for all of the layers."""
        mean = self._mean if self._again else super().mean(x)
        self._mean = mean if self.training and self._source is not None else None
        return mean

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if prefix in self._prefixes:
            self._prefixes = set()
        own = {**self._parameters, **self._buffers}
        given = {name: state_dict.get(prefix + name) for name in own if own[name] is not None}
        if self._prefixes:  # its values were loaded under the name of another layer
            for name, t in given.items():
                if t is not None and not t.is_meta and not torch.equal(t.to(own[name]), own[name]):
                    args[-1].append(
                        f"{prefix}{name} is another than that of {sorted(self._prefixes)}, and these layers share one "
                        "R: the checkpoint is of a model that was converted without share=..."
                    )
                    return
        if any(t is not None for t in given.values()):  # safetensors writes what is shared once, under any of its names
            self._prefixes.add(prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __getstate__(self):
        own = ("_seen", "_source", "_again", "_mean", "_rest", "_prefixes")
        return {k: v for k, v in super().__getstate__().items() if k not in own}


def _what(x: Tensor) -> tuple:
    version = None if x.is_inference() else x._version
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, x.requires_grad, version, torch.is_grad_enabled()


def _same(x: Tensor, before: Tensor, what: tuple) -> bool:
    if _what(x) != what:
        return False
    return torch.equal(x, before) if x.is_inference() else before._version == x._version
