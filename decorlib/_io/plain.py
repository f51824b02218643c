"""Plain data: what JSON gives back as it was. One predicate and one text for specifications, records and parameters."""

import json
import math
from collections.abc import Callable
from typing import Any

Other = Callable[[Any, str], Any]


def plain(value: Any, where: str, other: Other, containers: tuple[type, ...] = (dict, list, tuple)) -> Any:
    """The value as JSON holds it: None, str, bool, int, a finite float, or containers of these (tuples become lists).

    Types are compared exactly: a numpy.float64 is a float to ``isinstance``, and is another thing when it comes back.

    Args:
        value: to be looked at, down to its last item.
        where: what it is called in messages; items are ``where[0]`` or ``where['name']``.
        other: called with everything that is not plain, and its place; raises, or returns the plain value that stands
            for it.
        containers: which of dict, list and tuple are allowed. Default: all three.

    Raises:
        TypeError: a dict has a key that is no string.
    """
    kind = type(value)
    if value is None or kind in (str, bool, int) or (kind is float and math.isfinite(value)):
        return value
    if kind not in containers:
        return other(value, where)
    if kind is not dict:
        return [plain(item, f"{where}[{i}]", other, containers) for i, item in enumerate(value)]
    for key in value:
        if type(key) is not str:
            raise TypeError(f"{where} has the key {key!r}; keys must be strings, use str(key)")
    return {key: plain(item, f"{where}[{key!r}]", other, containers) for key, item in value.items()}


def kind_of(value: Any) -> str:
    """The full name of a value's type, for messages: ``numpy.float64``."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def canonical(content: Any, indent: int | None = None) -> str:
    """The one JSON text of plain content: sorted keys, floats by repr; NaN is refused.

    Args:
        content: plain.
        indent: None: ASCII without a space, for hashes and the cache; 1: a line for each value and text as it is, for
            files that people read. Default: None.

    Raises:
        ValueError: a number is not finite.
    """
    form = {"separators": (",", ":")} if indent is None else {"indent": indent, "ensure_ascii": False}
    return json.dumps(content, sort_keys=True, allow_nan=False, **form)
