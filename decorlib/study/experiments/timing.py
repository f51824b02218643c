"""Timings that can be compared: alternatives take turns within one process, so that a slow minute hits all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch


def take_turns(
    alternatives: dict[str, Callable[[], object]],
    repeats: int = 30,
    warmup: int = 3,
    synchronize: bool = False,
    calls: int = 1,
) -> dict[str, list[float]]:
    """Seconds of a call in each turn, A B C A B C ..., after some turns that do not count.

    Args:
        alternatives: name -> function without arguments.
        repeats: counted turns of each.
        warmup: turns of each before that, of one call.
        synchronize: wait for the CUDA device after each turn.
        calls: calls in a row in each turn, as a loop makes them. In turns of one, each call also pays for bringing
            what it works on back into the cache.
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for turn in range(-warmup, repeats):
            for name, call in alternatives.items():
                start = time.perf_counter()
                for _ in range(calls if turn >= 0 else 1):
                    call()
                if synchronize:
                    torch.cuda.synchronize()
                if turn >= 0:
                    seconds[name].append((time.perf_counter() - start) / calls)
    finally:
        if enabled:
            gc.enable()
    return seconds


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch inside, and as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ratio(seconds: dict[str, list[float]], name: str, of: str) -> float:
    """Median of the turn-by-turn ratios of one alternative to another."""
    return median(a / b for a, b in zip(seconds[name], seconds[of], strict=True))


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of each alternative."""
    return {name: median(values) for name, values in seconds.items()}
