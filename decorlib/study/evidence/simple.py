"""What a record can hold: numbers of numpy and torch, tuples and dataclasses as plain data."""

import math
from dataclasses import asdict, is_dataclass
from typing import Any

from decorlib._io.plain import plain


def simplified(value: Any, where: str = "value") -> Any:
    """Plain data (:func:`decorlib._io.plain.plain`) of numbers of numpy and torch, tuples and dataclasses; NaN is None.

    Raises:
        TypeError: something that a record cannot hold, with the place where it is.
    """
    return plain(value, where, _simplify, containers=(list, tuple))


def _simplify(value: Any, where: str) -> Any:
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): simplified(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return simplified(list(value), where)
    if is_dataclass(value) and not isinstance(value, type):
        return simplified(asdict(value), where)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, torch tensors
        return simplified(value.tolist(), where)
    raise TypeError(
        f"{where} is a {type(value).__name__}; a record holds numbers, text, lists and dictionaries of them"
    )
