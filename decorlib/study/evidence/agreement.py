"""When do two numbers, two sentences or two cells of a table say the same? The rules that a record holds for them.

A rule is plain JSON: ``{"within": 0.001}`` for an absolute change, ``{"factor": 1.25}`` for numbers of one sign that
may differ by that factor, ``None`` for what is not compared.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

Rule = dict[str, float] | None

TIMING: Rule = {"factor": 1.25}  # seconds over seconds of two runs that agree
CHOSEN: Rule = {"factor": 1.000001}  # counts, and what was chosen from a list
_CHOSEN = re.compile(r"(rate of .*|lr|decor_lr|shrinkage|kappa|n|seed|seeds|tries|D|B|accuracy level)$")
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
_SECONDS = re.compile(r"(?:[\d.]+(?: and [\d.]+)? s\b)|(?:[\d.]+(?= of (?:its|their|the) seconds))")
_TIMED = re.compile(r"\bseconds to [\d.]+%: ")  # what follows is one arm's seconds over another's


def within(tolerance: float | int | None) -> Rule:
    """The rule for an absolute change; None where there is no tolerance."""
    return None if tolerance is None else {"within": float(tolerance)}


def of_columns(
    name: str,
    columns: dict[str, list],
    tolerance: float | int | dict[str, float] | None,
    ratios: dict[str, float] | Iterable[str],
    skip: Iterable[str],
) -> dict[str, Rule]:
    """Rules of a table's columns, from what :meth:`decorlib.study.evidence.records.Record.table` is given.

    Args:
        name: of the table, for errors.
        columns: their cells by name.
        tolerance: as there, like all that follow.
        ratios: of columns.
        skip: columns.

    Raises:
        ValueError: a column that the table does not have, or one of measured numbers for which nothing is said.
    """
    factors = ratios if isinstance(ratios, dict) else dict.fromkeys(ratios, TIMING["factor"])
    single = tolerance if isinstance(tolerance, dict) else {}
    if unknown := sorted({*factors, *single, *skip} - {*columns, "*"}):
        raise ValueError(f"table {name!r} has no columns {unknown}; it has {list(columns)}")
    rules: dict[str, Rule] = {}
    for column, cells in columns.items():
        if "*" in skip or column in skip or re.match(r"p\b|Holm p", column):
            rules[column] = None
        elif column in factors:
            rules[column] = {"factor": float(factors[column])}
        elif column in single:
            rules[column] = within(single[column])
        elif _CHOSEN.match(column) or _counts(cells) or ((tolerance is None or single) and _whole(cells)):
            rules[column] = CHOSEN
        elif tolerance is None or single:
            raise ValueError(
                f"column {column!r} of table {name!r} holds measured numbers: say within which tolerance another run "
                "agrees, or by which ratio, or skip it"
            )
        else:
            rules[column] = within(tolerance)
    return rules


def number(x: Any) -> float | None:
    """A number of a record, also one that a table holds as text; None for anything else."""
    if isinstance(x, bool) or x is None:
        return None
    try:
        return float(x)
    except (TypeError, ValueError):
        return None


def agree(old: float, new: float, rule: Rule) -> bool:
    """Whether two numbers agree by a rule; numbers without one always do."""
    if rule is None or old == new:
        return True
    if "within" in rule:
        return abs(new - old) <= rule["within"] * (1 + 1e-9)
    return old * new > 0 and max(new / old, old / new) <= rule["factor"]


def same_cell(old: Any, new: Any, rule: Rule) -> bool:
    """Whether two cells of a table agree: numbers by the rule, text by :func:`same_text`, anything else if equal."""
    a, b = number(old), number(new)
    if a is not None and b is not None:
        return agree(a, b, rule)
    if isinstance(old, str) and isinstance(new, str):
        return same_text(old, new)
    return old == new


def _counts(cells: list) -> bool:
    """Whether none of the cells is a floating-point number."""
    return not any(isinstance(x, float) or (isinstance(x, str) and number(x) is not None) for x in cells)


def _whole(cells: list) -> bool:
    """Whether all numbers among the cells are whole."""
    return all(x is None or math.isinf(x) or x == round(x) for x in map(number, cells))


def same_text(old: str, new: str, rule: Rule = None) -> bool:
    """Words must be equal, seconds are not compared, other numbers within two units of their last printed digit.

    With a rule, numbers with a decimal point agree by that instead; those after "seconds to 98.0%: " as timings do.
    """
    if rule is None and (a := _TIMED.search(old)) and (b := _TIMED.search(new)):
        return _same(old[: a.end()], new[: b.end()], None) and _same(old[a.end() :], new[b.end() :], TIMING)
    return _same(old, new, rule)


def _same(old: str, new: str, rule: Rule) -> bool:
    old, new = (_SECONDS.sub("# s", text) for text in (old, new))
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    return all(_close(a, b, rule) for a, b in zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True))


def _close(a: str, b: str, rule: Rule) -> bool:
    old, new, unit = float(a.replace(",", "")), float(b.replace(",", "")), max(_unit(a), _unit(b))
    return agree(old, new, rule) if rule and unit else abs(new - old) <= 2.001 * unit


def _unit(text: str) -> float:
    """The value of the last digit of a printed number; whole numbers are counts and must be equal."""
    digits, _, power = text.partition("e")
    if "." not in digits and not power:
        return 0.0
    return 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
