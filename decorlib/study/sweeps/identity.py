"""What a run is: settled once, at the door of a sweep, and carried from there to engines, workers, cache and back."""

import dataclasses
import hashlib
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from decorlib._io.plain import canonical, kind_of, plain
from decorlib._io.products import said
from decorlib.study.sweeps.source import Code, importable


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep. Its key names its record in the cache: all that the record depends on, hashed.

    Args:
        spec: the specification, an instance of a frozen dataclass.
        function: what computes the record from it.
        question: names of function and specification's class, and the fields of the specification, all plain.
        environment: what the answer depends on besides the question, as :func:`environment` found it at the door.
        key: of question and environment.
        seed: of whatever the function does not seed itself; no code or version in it, so that their edits show as such.
    """

    spec: Any
    function: Callable[[Any], dict]
    question: dict
    environment: dict
    key: str
    seed: int

    def moved(self, here: dict) -> list[str]:
        """Names of what is other in the environment `here` than it was at the door."""
        return [name for name, value in self.environment.items() if here[name] != value]


def settle(specs: Iterable[Any], function: Callable, environment: dict) -> list[Run]:
    """The runs of a sweep, one for each specification, in their order; equal specifications have equal keys."""
    runs = []
    for spec in specs:
        names = {"function": function, "type": type(spec)}
        question = {kind: f"{thing.__module__}.{thing.__qualname__}" for kind, thing in names.items()}
        question["spec"] = spec_dict(spec)
        key = sha256(canonical({"environment": environment, **question}))
        runs.append(Run(spec, function, question, environment, key, int(sha256(canonical(question))[:8], 16)))
    return runs


def environment(function: Callable, spec_type: type, code: Code | None = None) -> dict:
    """What the record of a run depends on besides its specification, in this process.

    * ``code``: hash of all code that the function can reach (:mod:`decorlib.study.sweeps.source`);
    * ``data``: what the modules among it say that they read: the names and results of the functions in a module's
      ``DEPENDS_ON``, such as ``{"mnist": partial(checksum, "mnist")}``;
    * ``device``: the kind, "cuda" or "cpu"; ``torch``: the version;
    * ``products``: where they are others than torch was installed with (:mod:`decorlib._io.products`).

    Args:
        function: computes a record.
        spec_type: class of its specifications.
        code: theirs, where it is known already. Default: None, it is read.
    """
    code = Code.of(importable(function), importable(spec_type)) if code is None else code
    return {
        "code": code.sha256,
        "data": {
            name: {kind: read() for kind, read in sys.modules[name].DEPENDS_ON.items()} for name in code.declaring
        },
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        **said(),
    }


def spec_dict(spec: Any) -> dict:
    """The fields of a specification, after checking that they are plain values.

    Args:
        spec: instance of a frozen dataclass with fields of int, float, str, bool, None, or tuples of these. A field
            with ``metadata={"if_set": True}`` is left out at its default: it came later, and runs that do without it
            are the same questions as before.

    Raises:
        TypeError, ValueError: naming the field, what it holds, and what it may hold.
    """
    if not dataclasses.is_dataclass(spec) or isinstance(spec, type) or not spec.__dataclass_params__.frozen:
        raise TypeError(f"a specification must be an instance of a frozen dataclass, got {spec!r}")
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    for field in dataclasses.fields(spec):
        if field.metadata.get("if_set") and fields[field.name] == field.default:
            del fields[field.name]
    for name, value in fields.items():
        plain(value, f"{type(spec).__name__}.{name}", _refuse, containers=(tuple,))
    return fields


def _refuse(value: Any, where: str) -> None:
    if type(value) is float and not math.isfinite(value):
        raise ValueError(f"{where} = {value} is not finite; use None or a string for a special case")
    advice = {"list": "use a tuple", "dict": "use a tuple of pairs, or more fields"}.get(
        type(value).__name__, "use .item(), a name, or more fields"
    )
    raise TypeError(
        f"{where} = {value!r} is a {kind_of(value)}; a specification holds int, float, str, bool, None, or tuples of "
        f"these: {advice}"
    )


def sha256(text: str) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
