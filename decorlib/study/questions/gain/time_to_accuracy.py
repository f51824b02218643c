"""Is there a gain? When each arm reaches a given accuracy, what each ingredient adds, and the answer in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from decorlib.study.evidence.stats import Interval, interval
from decorlib.study.questions.gain.plan import BASELINE


def learning_curves(table: pd.DataFrame, records: Sequence[dict], cost: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, seed and epoch: measurements, and the seconds and GFLOP spent by then.

    Args:
        table: of :func:`decorlib.study.experiments.arms.compare`, a row per record.
        records: its records.
        cost: of :func:`decorlib.study.questions.gain.plan.costs`.
    """
    rows = [
        {"arm": arm, "seed": seed, **row}
        for arm, seed, record in zip(table["arm"], table["seed"], records, strict=True)
        for row in record["epochs"]
    ]
    found = pd.DataFrame(rows)
    of = cost.loc[found["arm"]].reset_index(drop=True)
    found["seconds"] = of["seconds before"] + found["epoch"] * of["seconds"]
    found["GFLOP"] = found["epoch"] * of["GFLOP"]
    found["error"] = 100 * (1 - found["test_accuracy"])
    return found


def _first_at(run: pd.DataFrame, accuracy: float) -> tuple[float, float]:
    """Epochs and seconds of a run's first measurement at that test accuracy; infinite where it has none."""
    there = run[run["test_accuracy"] >= accuracy]
    if there.empty:
        return math.inf, math.inf
    return float(there["epoch"].iloc[0]), float(there["seconds"].iloc[0])


def reached(curves: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row per arm and seed: epochs and seconds until the baseline's best test accuracy *of the same seed*.

    Columns ``epochs``, ``seconds``, and the same over the baseline's own; infinite where a run never gets there.
    """
    rows = []
    for seed, part in curves.groupby("seed"):
        own = part[part["arm"] == BASELINE]
        level = own["test_accuracy"].max()
        own_epochs, own_seconds = _first_at(own, level)
        for arm in arms:
            epochs, seconds = _first_at(part[part["arm"] == arm], level)
            relative = {"of epochs": epochs / own_epochs, "of seconds": seconds / own_seconds}
            rows.append({"arm": arm, "seed": seed, "level": level, "epochs": epochs, "seconds": seconds} | relative)
    return pd.DataFrame(rows)


def time_to(curves: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """One row per arm, accuracy and seed: epochs and seconds until that test accuracy; infinite where never reached.

    The baseline's best is one level, and where its noisy curve has its maximum is a matter of luck. What is true of an
    arm is true at the levels around it. Levels are tenths of a point, from where the baseline is at its first
    measurement (median over seeds) to the best of any arm.
    """
    first = curves[curves["arm"] == BASELINE].sort_values("epoch").groupby("seed")["test_accuracy"].first().median()
    best = curves.loc[curves["arm"].isin(arms), "test_accuracy"].max()
    accuracies = [n / 1000 for n in range(math.floor(1000 * first), math.floor(1000 * best) + 1)]
    rows = []
    for (arm, seed), run in curves[curves["arm"].isin(arms)].groupby(["arm", "seed"], sort=False):
        for accuracy in accuracies:
            epochs, seconds = _first_at(run, accuracy)
            rows.append({"arm": arm, "seed": seed, "accuracy": accuracy, "epochs": epochs, "seconds": seconds})
    return pd.DataFrame(rows)


def relative(times: pd.DataFrame, arm: str) -> pd.DataFrame:
    """One row per accuracy that most seeds of the baseline reach: median epochs and seconds of both, and their ratios.

    Args:
        times: of :func:`time_to`.
        arm: which to compare with the baseline.
    """
    middle = times.groupby(["arm", "accuracy"])[["epochs", "seconds"]].median()
    base, own = middle.loc[BASELINE], middle.loc[arm]
    base = base[base["epochs"].map(math.isfinite)]
    found = base.add_prefix("baseline's ").join(own)
    for what in ("epochs", "seconds"):
        found[f"of {what}"] = own[what] / base[what]
    return found


def at_epoch(curves: pd.DataFrame, epoch: int | float, value: str = "test_accuracy") -> pd.DataFrame:
    """One row per seed and one column per arm: a measurement after that epoch, for arms that came so far."""
    rows = curves[(curves["epoch"] - epoch).abs() < 1e-9]
    order = [arm for arm in dict.fromkeys(curves["arm"]) if arm in set(rows["arm"])]
    return rows.pivot(index="seed", columns="arm", values=value)[order]


def still_rising(curves: pd.DataFrame, arm: str = BASELINE) -> int:
    """In how many seeds an arm is at its best at the very end: more epochs might have raised it further."""
    own = curves[curves["arm"] == arm]
    best = own.loc[own.groupby("seed")["test_accuracy"].idxmax(), "epoch"]  # the first, where equal
    return int((best == own["epoch"].max()).sum())


def medians(times: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: median epochs and seconds over seeds, and how many seeds got there."""
    by_arm = times.groupby("arm", sort=False)
    found = by_arm[["epochs", "seconds", "of epochs", "of seconds"]].median()
    found["reached"] = by_arm["epochs"].agg(lambda values: int(values.map(math.isfinite).sum()))
    found["of"] = by_arm.size()
    return found


def margins(times: pd.DataFrame, arm: str, epochs: float, seconds: float, most_epochs: int, slowest: float) -> Interval:
    """By how much an arm stays below both bounds, the worse of the two, per seed; a run that never gets there counts
    as one that gets there an epoch after the last, which flatters it and is still a miss.

    Args:
        times: of :func:`reached`.
        arm: which.
        epochs: the bound on epochs, as a part of the baseline's own.
        seconds: the bound on seconds, likewise.
        most_epochs: epochs of a run.
        slowest: seconds of an epoch of this arm.
    """
    base = times[times["arm"] == BASELINE].set_index("seed")
    own = times[times["arm"] == arm].set_index("seed")
    late = {"epochs": most_epochs + 1.0, "seconds": (most_epochs + 1) * slowest}
    below = [
        min(
            bound - min(own.loc[seed, what], late[what]) / base.loc[seed, what]
            for what, bound in (("epochs", epochs), ("seconds", seconds))
        )
        for seed in base.index
    ]
    return interval(below)


def chosen(tries: pd.DataFrame, among: Sequence[str], metric: str = "test_accuracy") -> str:
    """The arm, of those named, whose best try has the best validation measurement."""
    picked = tries[tries["chosen"] & tries["arm"].isin(among)].set_index("arm")[metric].dropna()
    if picked.empty:
        raise ValueError(f"none of {', '.join(among)} has a try that did not diverge")
    return picked.idxmax()


def answer(
    table: pd.DataFrame,
    best: str,
    control: str,
    effect: Interval,
    within: Mapping[str, Interval],
    bounds: Mapping[str, float],
    annealed: Mapping[str, Interval],
    margin: float,
) -> list[str]:
    """The question of 2024, answered in plain sentences out of the numbers: a gain in epochs, seconds or accuracy?

    Args:
        table: of :func:`medians`.
        best: the decorrelated arm.
        control: the arm without R that it has to beat.
        effect: final test accuracy of best minus control.
        within: what each ingredient adds to plain backpropagation, by name.
        bounds: what was asked of the columns ``of epochs`` and ``of seconds``.
        annealed: final test accuracy of best minus other arms, by name, where the weights' rate is annealed.
        margin: smallest gain in accuracy that counts.
    """

    def points(effects: Mapping[str, Interval]) -> str:
        return "; ".join(
            f"{name} {100 * e.estimate:+.2f} [{100 * e.low:.2f}, {100 * e.high:.2f}]" for name, e in effects.items()
        )

    def times(arm: str) -> str:
        row, base = table.loc[arm], table.loc[BASELINE]
        if not math.isfinite(row["epochs"]):
            return f"in most seeds never reaches it ({int(row['reached'])} of {int(row['of'])} do)"
        return (
            f"needs {row['epochs']:g} epochs and {row['seconds']:.2g} s where backpropagation needs "
            f"{base['epochs']:g} and {base['seconds']:.2g} s"
        )

    def asked(what: str) -> str:
        value, bound = table.loc[best, f"of {what}"], bounds[f"of {what}"]
        if not math.isfinite(value):
            return f"no part of its {what} (at most {bound:.3g} was asked: not met)"
        return f"{value:.3g} of its {what} (at most {bound:.3g} was asked: {'met' if value <= bound else 'not met'})"

    small = f"one that may be below the {100 * margin:g} points that count"
    sure = "yes" if effect.low > margin else small if effect.low > 0 else "not one that these seeds can show"
    sure = "no" if effect.high < margin else sure
    return [
        f"To come to the best accuracy that tuned backpropagation reaches, '{best}' {times(best)} (medians).",
        f"Within a seed, in the median, that is {asked('epochs')} and {asked('seconds')}.",
        f"'{control}', which has no R at all, {times(control)}.",
        f"A gain in final accuracy over '{control}': {sure} ({100 * effect.estimate:+.2f} points, 95% interval "
        f"[{100 * effect.low:.2f}, {100 * effect.high:.2f}], n = {effect.n}).",
        f"In points over plain backpropagation: {points(within)}.",
        "Where the rate of the weights is annealed to zero, in shorter runs of equal time, R in the deeper layers "
        f"gains, in points, over: {points(annealed)}.",
    ]


def ablation(wide: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Pairs (with, without) of arms, each ingredient switched on its own."""
    pairs = {
        "scaling to [0, 1]": ("inputs in [0, 1]", BASELINE),
        "demeaning": ("demeaned", BASELINE),
        "demeaning every layer": ("demeaned, every layer", BASELINE),
        "decorrelation": ("kappa", BASELINE),
        "both": ("kappa, demeaned", BASELINE),
        "both, in deeper layers": ("kappa, deeper layers", BASELINE),
        "decorrelation, where inputs are demeaned": ("kappa, demeaned", "demeaned"),
        "decorrelation, where every layer is": ("kappa, deeper layers", "demeaned, every layer"),
    }
    return {name: pair for name, pair in pairs.items() if set(pair) <= set(wide)}
