"""One hypothesis at every scale: a treated arm minus its control, for each number of digits, at rates tuned for each.

An effect on 1,000 digits says little about 60,000. :func:`compare` asks the same of every cell (digits, and rule or
whatever else the pairs are named by) in the same way: both arms get as many tries, chosen on validation images with
seeds that the comparison does not use; then they are run on the test set, paired by seed. The rows of one table are one
family, and their intervals are told both ways: each by itself, and all together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from decorlib.study.evidence.stats import decide, paired, seeds_to_decide, simultaneous
from decorlib.study.experiments import arms
from decorlib.study.experiments.cells import Found
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.tuning import Moves, choose

#: What the suspects of the 2024 notebook are asked of: its own network and inputs with its rule, and with kappa.
BASES = {
    "2024 rule": Experiment(rule="notebook", rule_options=(("variance", 1.0),), measures="task"),
    "kappa": Experiment(rule="kappa", rule_options=(("kappa", 0.5),), measures="task"),
}
ARMS = (CONTROL, TREATED) = ("control", "treated")
MEASURE = "test_accuracy"
MARGIN = 0.002  # smallest difference in test accuracy that counts, in every row (docs/protocol.md)
TUNING_SEEDS = (1000, 1001)

Change = Mapping[str, object] | Callable[[Experiment], Experiment]


@dataclass(frozen=True)
class Scale:
    """How many digits, how often each is seen, and how many seeds compare the arms there."""

    digits: int
    epochs: int
    seeds: int

    @classmethod
    def listed(cls, numbers: Sequence[int]) -> list[Scale]:
        """Digits, epochs and seeds of each scale, one after the other, as a notebook's parameter holds them.

        Raises:
            ValueError: not three for each, or a number below its least (2 for seeds).
        """
        if len(numbers) % 3 or not numbers:
            raise ValueError(f"{list(numbers)} must be digits, epochs and seeds of each scale, one after the other")
        for name, values, least in zip(
            ("digits", "epochs", "seeds"), (numbers[i::3] for i in range(3)), (1, 1, 2), strict=True
        ):
            if low := [value for value in values if value < least]:
                raise ValueError(f"{name} = {low[0]} must be at least {least}")
        return [cls(*numbers[i : i + 3]) for i in range(0, len(numbers), 3)]


@dataclass(frozen=True)
class Pair:
    """A control, and what is compared with it: where there are several alternatives, the best of them by validation."""

    control: Experiment
    treated: Mapping[str, Experiment]


def name(digits: int, label: str) -> str:
    """A cell's name, such as "10,000 digits, kappa"."""
    return f"{digits:,} digits, {label}"


def grid(tries: int) -> dict[str, list[float]]:
    """So many rates of the weights, and of R, around usual ones: the tries that every arm begins with are their pairs.

    Args:
        tries: 1, or 3 to have neighbours on both sides.
    """
    if tries not in (1, 3):
        raise ValueError(f"tries = {tries} must be 1 or 3: a grid that can move has a middle")
    around = {"lr": [1e-3, 2e-3, 4e-3], "decor_lr": [3e-5, 1e-4, 3e-4]}
    return {field: values if tries == 3 else values[1:2] for field, values in around.items()}


def by_rule(treated: Change | Mapping[str, Change], control: Change | None = None) -> dict[str, Pair]:
    """The pair of each rule of :data:`BASES`.

    Args:
        treated: fields and their values, or a function of the base, that make the treated arm; or names of
            alternatives with such a change each.
        control: the same for the control. Default: None, the base as it is.

    Example::

        >>> pairs = by_rule({"pixels": "lively"})
        >>> pairs = by_rule({"Adam": {"decor_optimizer": "adam"}, "cosine": {"decor_schedule": "cosine"}})
    """
    several = isinstance(treated, Mapping) and all(isinstance(c, Mapping) or callable(c) for c in treated.values())
    alternatives = dict(treated) if several else {TREATED: treated}
    return {
        rule: Pair(_changed(base, control or {}), {n: _changed(base, change) for n, change in alternatives.items()})
        for rule, base in BASES.items()
    }


def compare(
    pairs: Mapping[str, Pair],
    scales: Iterable[Scale],
    rates: Mapping[str, Sequence[float]],
    *,
    tuning_seeds: Iterable[int] = TUNING_SEEDS,
    margin: float = MARGIN,
    moves: int = 3,
    first_seed: int = 0,
    desc: str = "",
    **engine,
) -> Found:
    """Treated minus control in test accuracy, for each pair at each scale.

    Every arm starts from the same grid of rates, which moves while the chosen rate lies on its edge
    (:func:`decorlib.study.experiments.tuning.choose`): in the end each has chosen among as many tries.

    Args:
        pairs: by label, such as the rule.
        scales: digits, epochs and seeds.
        rates: field -> values, evenly spaced on a log scale, for every arm.
        tuning_seeds: of the tries; none of those of the comparison. Default: :data:`TUNING_SEEDS`.
        margin: smallest difference that counts. Default: :data:`MARGIN`.
        moves: of a grid. Default: 3.
        first_seed: of the comparison. Default: 0.
        desc: text before the progress bar. Default: "".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        The table has digits, epochs, with (the label), treated (which alternative was compared; "" where there is one);
        estimate, low, high, n and p (of no difference) by itself; "low, all" and "high, all" at Bonferroni's level over
        the table; outcome by that interval, and the n that would decide; seeds, and how many runs diverged: their pairs
        are left out, what remains is a selection and its outcome "undecided"; the chosen rates of control and treated
        arm, the edges on which they still lie, and how often their grids moved.

    Raises:
        ValueError: no pairs or scales, seeds that are both for tuning and comparison, two scales of as many digits.
    """
    scales, tuning_seeds = list(scales), list(tuning_seeds)
    _check(pairs, scales, tuning_seeds, first_seed)
    cells = {name(scale.digits, label): (scale, label, pair) for scale in scales for label, pair in pairs.items()}
    specs = {
        _key(cell, arm): spec.but(train_size=scale.digits, epochs=scale.epochs, split="test")
        for cell, (scale, _, pair) in cells.items()
        for arm, spec in {CONTROL: pair.control, **pair.treated}.items()
    }
    options = {"moves": Moves(moves, forget=True, digits=3), "quiet": True, "desc": f"{desc}: rates"}
    best, tries = choose(specs, rates, tuning_seeds, "test_loss", **options, **engine)
    chosen, moved = tries[tries["chosen"]].set_index("arm"), tries.groupby("arm")["moved"].max()
    winner = {cell: _winner(chosen, cell, pair.treated) for cell, (_, _, pair) in cells.items()}
    groups = {
        scale.digits: (
            {key: best[key] for cell, (at, *_) in cells.items() if at is scale for key in _keys(cell, winner)},
            range(first_seed, first_seed + scale.seeds),
        )
        for scale in scales
    }
    ended: dict[str, pd.Series] = {}
    for table, _ in arms.compare_at_once(groups, desc=f"{desc}: chosen rates", **engine).values():
        ended |= dict(arms.by_seed(table, MEASURE).items())
    rows, differences = {}, {}
    for cell, (scale, label, pair) in cells.items():
        keys = _keys(cell, winner)
        both = ended[keys[1]] - ended[keys[0]]
        differences[cell] = both.dropna().tolist()
        rows[cell] = {
            "digits": scale.digits,
            "epochs": scale.epochs,
            "with": label,
            "treated": winner[cell] if len(pair.treated) > 1 else "",
            **_effect(differences[cell], len(cells), margin, left_out=int(both.isna().sum())),
            "seeds": scale.seeds,
            "diverged": _diverged(ended[keys[0]], ended[keys[1]]),
            "rates of control": _rates(best[keys[0]], rates),
            "rates of treated": _rates(best[keys[1]], rates),
            "edge": "; ".join(
                f"{arm}: {edge}" for arm, edge in zip(ARMS, chosen.loc[list(keys), "edge"], strict=True) if edge
            ),
            "moves": ", ".join(str(moved[key]) for key in keys),
        }
    return Found(pd.DataFrame(rows).T.rename_axis("cell").infer_objects(), differences, tries, margin)


# ---------------------------------------------------------------------------------------------------------- internals


def _check(pairs: Mapping[str, Pair], scales: list[Scale], tuning_seeds: list[int], first_seed: int) -> None:
    if not pairs or not scales:
        raise ValueError("nothing to compare: give at least one pair and one scale")
    digits = [scale.digits for scale in scales]
    if len(set(digits)) < len(digits):
        raise ValueError(f"digits = {digits}: two scales of as many digits would be one row")
    last = first_seed + max(scale.seeds for scale in scales)
    if both := sorted(seed for seed in tuning_seeds if first_seed <= seed < last):
        raise ValueError(f"tuning_seeds = {tuning_seeds} has {both}, which the comparison uses too: take others")


def _changed(base: Experiment, change: Change) -> Experiment:
    return change(base) if callable(change) else base.but(**change)


def _key(cell: str, arm: str) -> str:
    return f"{cell} | {arm}"


def _keys(cell: str, winner: Mapping[str, str]) -> tuple[str, str]:
    return _key(cell, CONTROL), _key(cell, winner[cell])


def _winner(chosen: pd.DataFrame, cell: str, treated: Mapping[str, Experiment]) -> str:
    """The alternative with the fewest diverged tries, then the lowest validation loss."""

    def rank(alternative: str) -> tuple[int, float]:
        row = chosen.loc[_key(cell, alternative)]
        return int(row["diverged"]), float("inf") if pd.isna(row["test_loss"]) else float(row["test_loss"])

    return min(treated, key=rank)


def _effect(values: list[float], family: int, margin: float, left_out: int) -> dict:
    if len(values) < 2:
        nothing = dict.fromkeys(("estimate", "low", "high", "p", "low, all", "high, all"), float("nan"))
        return nothing | {"n": len(values), "outcome": "undecided", "n to decide": None}
    own = paired(values, [0.0] * len(values))
    wide = simultaneous(own, family)
    outcome = decide(wide, better="higher", margin=margin, left_out=left_out)
    needed = seeds_to_decide(own, margin=margin, family=family) if outcome == "undecided" else None
    found = {"estimate": own.estimate, "low": own.low, "high": own.high, "n": own.n, "p": own.p_value}
    return found | {"low, all": wide.low, "high, all": wide.high, "outcome": outcome, "n to decide": needed}


def _diverged(control: pd.Series, treated: pd.Series) -> str:
    lost = dict(zip(ARMS, (int(each.isna().sum()) for each in (control, treated)), strict=True))
    return ", ".join(f"{count} of {len(control)} {arm}" for arm, count in lost.items() if count) or "none"


def _rates(spec: Experiment, fields: Iterable[str]) -> str:
    return ", ".join(f"{field} {getattr(spec, field):g}" for field in fields)
