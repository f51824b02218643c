"""Timings that can be compared: the order of the calls, and what a number is the time of."""

import time

from decorlib.study.experiments import timing


def test_alternatives_take_turns_of_so_many_calls_and_warming_up_does_not_count():
    order = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = timing.take_turns(calls, repeats=2, warmup=1, calls=3)
    assert "".join(order) == "ab" + "aaabbb" * 2
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_time_is_that_of_one_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += 2.0

    assert timing.take_turns({"a": call}, repeats=3, calls=5) == {"a": [2.0, 2.0, 2.0]}
