"""From records to the answer: tables by seed, decorrelation minus each peer, and where it is of use and where not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import pandas as pd

from decorlib.study.evidence.shared import points
from decorlib.study.evidence.stats import Interval, Outcome, decide, paired, simultaneous
from decorlib.study.evidence.verdicts import Verdict
from decorlib.study.experiments.arms import best_try, by_seed
from decorlib.study.experiments.places import choose_in_places, run_in_groups
from decorlib.study.questions.instead.peers import LEARNED, Peer
from decorlib.study.questions.instead.plan import OURS, PEERS, WITHOUT
from decorlib.study.questions.instead.tries import METRIC, in_a_row

MEASURES = ("test_accuracy", "test_loss", "test_calibration")
COLUMNS = (*MEASURES, LEARNED)
#: |R - I| / |I| below which R stayed where it was, so that what differs is not its doing.
STAYED = 0.01


@dataclass(frozen=True)
class Pairs(Interval):
    """A paired difference over the seeds in which neither run diverged, and how many pairs were left out.

    What is left is a selection: with a pair left out nothing is decided. With fewer than two whole pairs there is no
    interval, its ends are -1 and 1, which no accuracy leaves, and the estimate is that of the one pair, or 0.
    """

    left_out: int = 0

    @property
    def interval(self) -> Interval:
        """The same without what was left out."""
        return Interval(**{field.name: getattr(self, field.name) for field in fields(Interval)})

    def outcome(self, margin: float) -> Outcome:
        """What it says about a difference above the margin."""
        return decide(self, better="higher", margin=margin, left_out=self.left_out)


def pairs(a: pd.Series, b: pd.Series) -> Pairs:
    """The accuracies a minus b by seed; a diverged run has none (NaN), and its pair is left out."""
    whole = a.notna() & b.notna()
    lost, n = int((~whole).sum()), int(whole.sum())
    if n >= 2:
        return Pairs(**asdict(paired(a[whole].tolist(), b[whole].tolist())), left_out=lost)
    return Pairs(float((a - b)[whole].sum()), -1.0, 1.0, n, 1.0, lost)


def widened(one: Pairs, count: int) -> Pairs:
    """Its interval as it holds together with those of so many in all (Bonferroni)."""
    return simultaneous(one, count) if one.n >= 2 else one


def compare(chosen: Mapping[str, Peer], seeds: Iterable[int], desc: str = "") -> tuple[pd.DataFrame, list[dict]]:
    """Run every arm with every seed; one row per run, and the records.

    A run that diverged has the status "diverged" and no measurements.
    """
    return compare_at_once({"": chosen}, seeds, desc)[""]


def compare_at_once(
    groups: Mapping[str, Mapping[str, Peer]], seeds: Iterable[int], desc: str = ""
) -> dict[str, tuple[pd.DataFrame, list[dict]]]:
    """:func:`compare` of several groups of arms in one sweep, so that no process waits between two of them.

    Args:
        groups: key -> (arm -> specification).
        seeds: the same for all of them.
        desc: text before the progress bar.

    Returns:
        For each key what :func:`compare` returns.
    """
    seeds = list(seeds)
    runs = {
        key: [spec.but(seed=seed, test=True) for spec in chosen.values() for seed in seeds]
        for key, chosen in groups.items()
    }
    found = {}
    for key, (specs, records) in run_in_groups(runs, lambda these: in_a_row(these, desc)).items():
        names = [name for name in groups[key] for _ in seeds]
        rows = [
            {"arm": name, "seed": spec.seed, "lr": spec.lr, "steps": spec.steps, "status": record["status"]}
            | {measure: record["final"].get(measure) for measure in COLUMNS}
            for name, spec, record in zip(names, specs, records, strict=True)
        ]
        table = pd.DataFrame(rows)
        found[key] = table.assign(**{measure: pd.to_numeric(table[measure]) for measure in COLUMNS}), records
    return found


def curves(table: pd.DataFrame, records: Sequence[dict], made: Mapping[str, Peer], cost: pd.DataFrame) -> pd.DataFrame:
    """One row per run and measurement on validation images; seconds are steps times those of one in ``cost``."""
    rows = [
        {"arm": arm, "seed": seed, "step": made[arm].steps * (i + 1) // made[arm].points, **row}
        for arm, seed, record in zip(table["arm"], table["seed"], records, strict=True)
        for i, row in enumerate(record["epochs"])
    ]
    found = pd.DataFrame(rows)
    found["seconds"] = found["step"] * cost.loc[found["arm"], "ms"].to_numpy() / 1e3
    found["error"] = 100 * (1 - found["validation_accuracy"])
    return found


def final_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: its rate and steps, means over seeds, lowest and highest accuracy, how many diverged.

    The last column is how much its R has learned, of layers together, mean over seeds.
    """
    groups = table.groupby("arm", sort=False)
    found = groups[["lr", "steps"]].first()
    found[["accuracy", "loss", "calibration error"]] = groups[list(MEASURES)].mean()
    found["lowest"], found["highest"] = groups["test_accuracy"].min(), groups["test_accuracy"].max()
    found["diverged"] = groups["status"].agg(lambda values: int((values == "diverged").sum()))
    found["|R - I| / |I|"] = groups[LEARNED].mean()
    return found


def differences(wide: pd.DataFrame, ours: str, others: Sequence[str]) -> dict[str, Pairs]:
    """Accuracy of one arm minus each other, paired by seed, the least flattering first."""
    found = {name: pairs(wide[ours], wide[name]) for name in others if name in wide and name != ours}
    return dict(sorted(found.items(), key=lambda item: item[1].estimate))


def difference_table(found: Mapping[str, Pairs], margin: float, of: int | None = None) -> pd.DataFrame:
    """One row per peer in points, with simultaneous intervals over all rows and what they say by the margin.

    *Left out* are pairs in which a run diverged; where there are any, the outcome is "undecided". ``of`` is the number
    of rows where these are a part of a larger table.
    """
    rows = {}
    for name, one in found.items():
        wide = widened(one, of or len(found))
        rows[name] = {
            "points": 100 * one.estimate,
            "low": 100 * one.low,
            "high": 100 * one.high,
            "low, all rows": 100 * wide.low,
            "high, all rows": 100 * wide.high,
            "n": one.n,
            "left out": one.left_out,
            "outcome": wide.outcome(margin),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("minus")


def added(wide: pd.DataFrame) -> dict[str, Pairs]:
    """What R adds to the optimizer under it: each arm with R minus the same without, paired by seed."""
    there = {name: other for name, other in WITHOUT.items() if {name, other} <= set(wide)}
    return {f"{name} minus {other}": pairs(wide[name], wide[other]) for name, other in there.items()}


def as_good(tries: pd.DataFrame, among: Sequence[str], images: int) -> list[str]:
    """The arms whose chosen try is the best on validation images, or within one standard error of it.

    So many images tell no finer: of 2,000, one more that is right is no reason to compare with this peer and not that.
    """
    best = best_try(tries, among, METRIC)
    scores = tries[tries["chosen"]].set_index("arm")[METRIC].astype(float)
    error = (scores[best] * (1 - scores[best]) / images) ** 0.5
    return [arm for arm in among if arm in scores.index and scores[arm] >= scores[best] - error]


class Cell:
    """One network, data set and schedule: arms with their rates, tries, runs; which two are compared, and the result.

    Args:
        name: in words, "MLP, mnist, annealed".
        chosen: arm -> specification with its rates.
        tries: of :func:`decorlib.study.questions.instead.tries.choose`.
        table, records: of :func:`compare`.
    """

    def __init__(self, name: str, chosen: Mapping[str, Peer], tries: pd.DataFrame, table: pd.DataFrame, records: list):
        self.name, self.chosen, self.tries, self.table, self.records = name, dict(chosen), tries, table, records
        self.wide = by_seed(table, "test_accuracy")
        self.ours = best_try(tries, [arm for arm in OURS if arm in chosen], METRIC)
        rivals = as_good(tries, [arm for arm in PEERS if arm in chosen], min(p.validation for p in chosen.values()))
        self.peer = next(iter(differences(self.wide, self.ours, rivals)))
        self.learned = float(table.loc[table["arm"] == self.ours, LEARNED].mean())

    @property
    def effect(self) -> Pairs:
        """Accuracy of the arm with R, picked on validation images, minus the hardest of the best peers there."""
        return pairs(self.wide[self.ours], self.wide[self.peer])

    @property
    def stayed(self) -> bool:
        """Whether R of the arm with R hardly moved."""
        return self.learned < STAYED

    def outcome(self, effect: Pairs, margin: float) -> Outcome:
        """What a difference says about R above the margin; where R stayed it says nothing."""
        return "undecided" if self.stayed else effect.outcome(margin)

    @property
    def diverged(self) -> int:
        """Compared runs that diverged."""
        return int((self.table["status"] == "diverged").sum())


def cells(
    made: Mapping[str, Mapping[str, Peer]],
    grids: Mapping[str, Mapping[str, Mapping]],
    tuning_seeds: Iterable[int],
    seeds: Iterable[int],
    choose,
) -> dict[str, Cell]:
    """Tune and compare all cells at once; ``choose`` is that of :mod:`decorlib.study.questions.instead.tries`."""
    tuned = choose_in_places(choose, made, grids, tuning_seeds, desc="tries")
    ended = compare_at_once({name: chosen for name, (chosen, _) in tuned.items()}, seeds, "chosen rates")
    return {name: Cell(name, *tuned[name], *ended[name]) for name in made}


def verdict(cell: Cell, margin: float, scale: str, schedule: str) -> Verdict:
    """The row of the answer table: the arm with R minus the peer, see :class:`Cell`."""
    return Verdict.from_interval(
        cell.effect.interval,
        left_out=cell.effect.left_out,
        unsaid=f"R stayed within {STAYED:.0%} of the identity" if cell.stayed else "",
        hypothesis=f"over what I would use instead, {schedule}",
        claim=f"a decorrelated MLP ('{cell.ours}') ends more accurate than the hardest of its peers ('{cell.peer}')",
        criterion=f"test accuracy higher by more than {margin}, paired by seed, 95% interval; refuted inside ±{margin}",
        better="higher",
        margin=margin,
        unit="of test accuracy",
        remedy=f"{cell.peer}" if cell.effect.estimate < 0 else "",
        scale=scale,
        schedule=schedule,
        control=f"{cell.peer}, equal time",
        tolerance=margin / 2,
    )


def together(effects: Mapping[str, Pairs]) -> dict[str, Pairs]:
    """The same effects with intervals that hold for all of them together (Bonferroni)."""
    return {name: widened(one, len(effects)) for name, one in effects.items()}


def cell_table(found: Mapping[str, Cell], margin: float) -> pd.DataFrame:
    """The arm with R minus the peer, a row for each cell, with intervals that hold for all cells together."""
    rows = []
    for name, one in together({name: cell.effect for name, cell in found.items()}).items():
        row = {"cell": name, "ours": found[name].ours, "peer": found[name].peer}
        row |= {"estimate": one.estimate, "low": one.low, "high": one.high, "n": one.n, "left out": one.left_out}
        row["|R - I| / |I|"] = found[name].learned
        rows.append(row | {"outcome": found[name].outcome(one, margin)})
    return pd.DataFrame(rows)


def uses(found: Mapping[str, Cell], margin: float) -> tuple[str, str]:
    """(the best use of decorrelation that was found, when not to use it): of all cells, with simultaneous intervals.

    The best use is the cell with the highest lower end in which R moved, the worst, of the others, the one with the
    lowest upper end; since they were looked for among all, the intervals are those that hold for all cells together.
    """
    effects = together({name: cell.effect for name, cell in found.items()})

    def said(name: str) -> str:
        one, cell = effects[name], found[name]
        lost = f", {one.left_out} left out since a run diverged" if one.left_out else ""
        return f"{name}: '{cell.ours}' minus '{cell.peer}', the hardest of its best peers, {points(one)}{lost}"

    moved = [name for name in effects if not found[name].stayed]
    best = max(moved or effects, key=lambda name: effects[name].low)
    worst = min((name for name in effects if name != best or len(effects) == 1), key=lambda name: effects[name].high)
    outcomes: dict[str, Outcome] = {n: found[n].outcome(e, margin) for n, e in effects.items()}
    counts = f"{100 * margin:g} points"
    meaning = {
        "supported": f"a gain of more than {counts}",
        "refuted": f"no difference of {counts}",
        "harmful": f"a loss of more than {counts}",
        "undecided": f"undecided about {counts}",
    }
    left = {name: outcome for name, outcome in outcomes.items() if name != worst}
    harmed = [f"{name} ({points(effects[name])})" for name, outcome in left.items() if outcome == "harmful"]
    without = [name for name, outcome in left.items() if outcome in ("refuted", "undecided")]
    more = f"; nor for {'; '.join(harmed)}" if harmed else ""
    more += f"; a gain of {counts} was not shown for {'; '.join(without)}" if without else ""
    if still := [name for name in effects if name not in moved]:
        more += f"; R stayed within {STAYED:.0%} of the identity, and decides nothing, in {'; '.join(still)}"
    found_one = outcomes[best] == "supported"
    first = (
        "The best use found is" if found_one else f"No gain of {counts} was found in any cell; the nearest to one is"
    )
    return (
        f"{first} {said(best)}: {meaning[outcomes[best]]} (intervals of {len(effects)} cells together).",
        f"Do not use it for {said(worst)}: {meaning[outcomes[worst]]}{more}.",
    )
