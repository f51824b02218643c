"""The count of updates of a layer is one fact, its buffer ``num_updates``; this saves asking a device for it."""

from __future__ import annotations

from torch import Tensor

from decorlib.layers.checks import check_update_every
from decorlib.layers.options import Whole


class UpdateCount:
    """What was last read of a counter. Who else writes to it (loading a checkpoint, in place or not) is noticed.

    torch counts writes to a tensor, and compares them for free. So a GPU is waited for only after a foreign write, and
    never where every update learns. (The counter itself lies where the layer lies: DistributedDataParallel sends
    buffers to all processes, and NCCL cannot send from a CPU.)
    """

    def __init__(self):
        self._counter: Tensor | None = None
        self._version, self._number, self._every = -1, 0, 1
        self.turn = True  # is_turn() when it was last asked, as a bool that torch.compile can guard on

    def of(self, counter: Tensor) -> int:
        """The counter as a number."""
        if counter.is_meta:
            return 0
        if not self._knows(counter):
            self._number = int(counter)
            counted = not counter.is_inference()
            self._counter, self._version = (counter, counter._version) if counted else (None, -1)
        return self._number

    def is_turn(self, counter: Tensor, every: Whole) -> bool:
        """Whether the next update learns."""
        if every is not self._every and every != 1:  # it may have been set since the layer was made
            check_update_every(every)
            self._every = every
        self.turn = every == 1 or self.of(counter) % every == 0
        return self.turn

    def advance(self, counter: Tensor, every: Whole) -> None:
        """Count an update."""
        known = self._knows(counter)
        counter.add_(1)
        if known:
            self._number, self._version = self._number + 1, counter._version
        self.is_turn(counter, every)

    def _knows(self, counter: Tensor) -> bool:
        return counter is self._counter and counter._version == self._version
