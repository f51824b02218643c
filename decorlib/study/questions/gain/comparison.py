"""The runs of a setting: rates chosen on validation images, then every arm with new seeds under both budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from decorlib.study.experiments import arms, halving
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.places import choose_in_places
from decorlib.study.questions.gain import plan
from decorlib.study.questions.gain.plan import BASELINE, BUDGETS, CONTROLS, OURS, Setting


@dataclass(frozen=True)
class Compared:
    """What was run in a setting.

    Args:
        setting: where.
        ours: the arm with an R that the claims name: the best on validation images of those that were tuned.
        best: its arms at their rates, by budget.
        tries: all tries, of :func:`decorlib.study.experiments.halving.halve`.
        tables: by budget, a row per run (:func:`decorlib.study.experiments.arms.compare`).
        records: by budget, its records.
    """

    setting: Setting
    ours: str
    best: dict[str, dict[str, Experiment]]
    tries: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    records: dict[str, list[dict]]

    def endings(self, budget: str, value: str = "test_accuracy") -> pd.DataFrame:
        """Final measurements, a row per seed and a column per arm; missing where a run diverged."""
        return arms.by_seed(self.tables[budget], value)


def compare(
    these: Mapping[Setting, Mapping[str, Experiment]],
    grids: Mapping[Setting, Mapping[str, Mapping[str, Sequence[float]]]],
    tuning_seeds: Iterable[int],
    seeds: Iterable[int],
    rounds: Sequence[float] = halving.ROUNDS,
    moves: int = halving.MOST_MOVES,
    alone: bool = False,
    **engine: Any,
) -> list[Compared]:
    """Tune every arm, choose ours on validation images, run all with the seeds; the test set is read at the very end.

    Tries are as long as the time of plain backpropagation's ``epochs`` lets them be; their rates serve both budgets.
    Under equal epochs only what decides is run: the controls, plain backpropagation, and ours.

    Args:
        these: of each setting its arms (:func:`decorlib.study.questions.gain.plan.arms`), with the epochs of plain
            backpropagation.
        grids: of each setting the rates of its arms (:func:`decorlib.study.questions.gain.plan.rates`).
        tuning_seeds: of the tries; none of ``seeds``.
        seeds: of the comparison.
        rounds: of the halving. Default: 1/8, 1/4, 1/2, 1.
        moves: how often a grid may move. Default: 3.
        alone: only what lies beside the best try, one rate changed by one step. Default: False, the whole grid.
        engine: options of :func:`decorlib.study.sweep`.

    Returns:
        What was found in each setting, in their order. All run at once (:mod:`decorlib.study.experiments.places`).

    Raises:
        ValueError: a seed of the tries that is one of the comparison; arms of a setting with unequal epochs.
    """
    seeds, tuning_seeds = list(seeds), list(tuning_seeds)
    if both := sorted({*seeds} & {*tuning_seeds}):
        raise ValueError(f"seeds {both} are of the tries and of the comparison: a choice would be judged by itself")
    short = {
        setting: plan.within_budget({name: spec.but(split="both") for name, spec in own.items()}, _epochs(own))
        for setting, own in these.items()
    }
    options = {"rounds": rounds, "move": moves, "alone": alone, "quiet": True, "desc": "tries"}
    chosen = choose_in_places(halving.halve, short, grids, tuning_seeds, **options, **engine)
    ours = {setting: arms.best_try(tries, OURS, "test_accuracy") for setting, (_, tries) in chosen.items()}
    best = {setting: _budgets(tuned, these[setting], ours[setting]) for setting, (tuned, _) in chosen.items()}
    groups = {(setting, b): (own, seeds) for setting, by_budget in best.items() for b, own in by_budget.items()}
    ended = arms.compare_at_once(groups, desc="chosen rates", **engine)
    found = []
    for setting, (_, tries) in chosen.items():
        tables, records = ({b: ended[setting, b][i] for b in BUDGETS} for i in (0, 1))
        found.append(Compared(setting, ours[setting], best[setting], tries, tables, records))
    return found


def curves(found: Compared, cost: pd.DataFrame, budget: str) -> pd.DataFrame:
    """One row per arm, seed and measurement on validation images: accuracy, and the epochs and seconds spent by then.

    Args:
        found: of a setting.
        cost: of :func:`decorlib.study.questions.gain.plan.costs`, of its network.
        budget: which runs.
    """
    table = found.tables[budget]
    rows = [
        {"arm": arm, "seed": seed, "epoch": row["epoch"], "accuracy": row["validation_accuracy"]}
        for arm, seed, record in zip(table["arm"], table["seed"], found.records[budget], strict=True)
        for row in record["epochs"]
        if "validation_accuracy" in row
    ]
    curve = pd.DataFrame(rows, columns=["arm", "seed", "epoch", "accuracy"])
    of = cost.loc[curve["arm"]].reset_index(drop=True)
    # Turn by turn over the baseline's: a slow minute is then one of all arms.
    an_epoch = cost.loc[BASELINE, "seconds"] * of["of baseline"]
    curve["seconds"] = of["seconds before"] + curve["epoch"] * an_epoch
    curve["error"] = 100 * (1 - curve["accuracy"])
    return curve


def choices(founds: Iterable[Compared]) -> pd.DataFrame:
    """One row per setting and arm: what was chosen, how often its grid moved, an edge, how many tries diverged."""
    rows = []
    for found in founds:
        for arm, own in found.tries.groupby("arm", sort=False):
            best = own[own["chosen"]].iloc[0]
            rows.append(
                {
                    "setting": str(found.setting),
                    "arm": arm,
                    "lr": best["lr"],
                    "decor_lr": best["decor_lr"] if found.best[BUDGETS[0]][arm].rule else None,
                    "validation accuracy": best["test_accuracy"],
                    "tries": len(own),
                    "grid moved": own["moved"].max(),
                    "edge": best["edge"] or "-",
                    "diverged": (own["diverged"] > 0).sum(),
                    "named": arm == found.ours,
                }
            )
    return pd.DataFrame(rows)


def endings(founds: Iterable[Compared]) -> pd.DataFrame:
    """One row per run: where, arm, seed, final accuracy on the test set (missing where it diverged)."""
    parts = []
    for found in founds:
        for budget, table in found.tables.items():
            own = table[["arm", "seed"]].assign(test_accuracy=table.get("test_accuracy"))
            parts.append(own.assign(where=f"{found.setting}, {budget}"))
    return pd.concat(parts, ignore_index=True)[["where", "arm", "seed", "test_accuracy"]]


def _budgets(
    tuned: Mapping[str, Experiment], these: Mapping[str, Experiment], ours: str
) -> dict[str, dict[str, Experiment]]:
    """The arms of each budget: all that were tuned, and those that decide with the epochs of plain backpropagation."""
    equal_epochs = {name: tuned[name].but(epochs=these[name].epochs) for name in (BASELINE, *CONTROLS, ours)}
    return dict(zip(BUDGETS, (dict(tuned), equal_epochs), strict=True))


def _epochs(these: Mapping[str, Experiment]) -> int | float:
    lengths = {spec.epochs for spec in these.values()}
    if len(lengths) > 1:
        raise ValueError(f"arms have {sorted(lengths)} epochs; give all of them those of plain backpropagation")
    return lengths.pop()
