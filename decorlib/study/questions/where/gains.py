"""From runs to gains: accuracies by cell, arm and seed; R minus each control with its interval; what follows in words.

A run that diverged can tell nothing: it counts with the accuracy of a guess, and is counted. None is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from decorlib.study.evidence.shared import of_row, points
from decorlib.study.evidence.shared import outcome_of_row as outcome
from decorlib.study.evidence.stats import WORST_FIRST, Interval, paired, simultaneous
from decorlib.study.experiments.arms import by_seed
from decorlib.study.questions.where.plan import ALONE, CONTROLS, CREDITS, OURS, Cell, named

GUESS = 0.1  # of ten classes
SHOWN = 3  # cells with a loss that are told with their numbers; all are in the notebook's table


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """One row per seed, columns (cell, arm) as named by :func:`plan.named`; a diverged run has a guess's accuracy."""
    return by_seed(table, "test_accuracy").fillna(GUESS)


def of_cells(wide: pd.DataFrame) -> list[Cell]:
    """The cells of a table of accuracies, in their order; values that are numbers are numbers."""
    parts = (name.split(" | ") for name in wide)
    return list(dict.fromkeys((axis, _number(value)) for axis, value, _ in parts))


def _number(text: str) -> float | int | str:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def chosen_accuracy(tries: pd.DataFrame) -> dict[str, float]:
    """The validation accuracy of each arm's chosen try."""
    return tries[tries["chosen"]].set_index("arm")["test_accuracy"].to_dict()


def gains(
    tables: Sequence[pd.DataFrame], tries: Sequence[pd.DataFrame], ours: str = OURS, level: float = 0.95
) -> pd.DataFrame:
    """R minus each control, a row for each cell and control, with intervals that hold together over all cells.

    Over all cells for one control, or for the better one of each cell, which test images have no part in choosing.

    Args:
        tables: of :func:`decorlib.study.experiments.arms.compare`, one for each group of cells.
        tries: of their tuning, in the same order.
        ours: the arm with R. Default: that in the deeper layers.
        level: of the intervals of all cells together (Bonferroni). Default: 0.95.

    Returns:
        Columns axis, value, minus, best (whether it is the better of the two controls, by validation accuracy),
        estimate, low, high, n, p, accuracy (mean, with R), control (mean), diverged (runs of the two arms).
    """
    rows: list[dict] = []
    count = sum(len(of_cells(accuracies(table))) for table in tables)
    for table, tried in zip(tables, tries, strict=True):
        wide, seen = accuracies(table), chosen_accuracy(tried)
        broke = table[table["status"] == "diverged"].groupby("arm").size()
        for cell in of_cells(wide):
            validated = {c: seen[named(cell, c)] for c in CONTROLS}
            for control in (ALONE, *CONTROLS):
                a, b = named(cell, ours), named(cell, control)
                found = paired(wide[a].tolist(), wide[b].tolist())
                row = {"axis": cell[0], "value": cell[1], "minus": control}
                row["best"] = control in CONTROLS and control == max(validated, key=_of(validated))
                means = {"accuracy": wide[a].mean(), "control": wide[b].mean()}
                rows.append(row | asdict(found) | means | {"diverged": int(broke.get(a, 0) + broke.get(b, 0))})
    for row in rows:
        held = simultaneous(Interval(*(row[k] for k in ("estimate", "low", "high", "n", "p_value"))), count, level)
        row |= {"low": held.low, "high": held.high}
    return pd.DataFrame(rows).rename(columns={"p_value": "p"})


def _of(validated: Mapping[str, float]):
    # A control that diverged in tuning has no accuracy: it is never the better one.
    return lambda name: -1.0 if pd.isna(validated[name]) else validated[name]


def over_best(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of the better control of each cell."""
    return found[found["best"]].reset_index(drop=True)


def where(row: Mapping | pd.Series) -> str:
    """A cell in words."""
    if row["axis"] in CREDITS:
        return f"{row['value']}, {row['axis'].removeprefix('credit, ')}"
    return f"{row['axis']} {row['value']:g}"


def together(rows: Iterable[Mapping | pd.Series]) -> str:
    """Cells in words, those of an axis behind its name."""
    rows, said = list(rows), []
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis]
        if axis in CREDITS:
            said.append(f"{', '.join(row['value'] for row in own)} ({axis.removeprefix('credit, ')})")
        else:
            said.append(f"{axis} {', '.join(f'{value:g}' for value in sorted(row['value'] for row in own))}")
    return "; ".join(said)


def told(row: Mapping | pd.Series) -> str:
    """A row's gain in points, with its interval and n."""
    return points(of_row(row))


def pays_most(found: pd.DataFrame, margin: float) -> str:
    """One sentence: the cell with the largest gain over its better control, and every cell that gains at all."""
    best = over_best(found)
    gained = [row for _, row in best.iterrows() if outcome(row, margin) == "supported"]
    top = best.loc[best["estimate"].idxmax()]
    named = f": {together(gained)}" if gained else ""
    return (
        f"At equal epochs R pays the most at {where(top)}: {told(top)} over {top['minus']}, the better control there; "
        f"it gains more than {100 * margin:g} points in {len(gained)} of {len(best)} cells{named}."
    )


def _means(row: pd.Series, found: pd.DataFrame) -> str:
    """Mean accuracies of a cell: with R, with its control, and with neither, which may be no better than with R."""
    same = found[(found["axis"] == row["axis"]) & (found["value"] == row["value"]) & (found["minus"] == ALONE)]
    plain = f", {100 * same['control'].iloc[0]:.1f}% with neither" if len(same) else ""
    return f" ({100 * row['accuracy']:.1f}% with R, {100 * row['control']:.1f}% with it{plain})"


def do_not_use(found: pd.DataFrame, margin: float) -> str:
    """One sentence: where R is worse or no different by as much as counts, and how many cells are undecided.

    Of the cells where it is worse the first :data:`SHOWN` by size have their numbers.
    """
    best = over_best(found).sort_values("estimate", kind="stable")
    by = {word: [row for _, row in best.iterrows() if outcome(row, margin) == word] for word in WORST_FIRST}
    shown, more = by["harmful"][:SHOWN], by["harmful"][SHOWN:]
    costs = "; ".join(f"{where(row)}, {told(row)} over {row['minus']}{_means(row, found)}" for row in shown)
    costs += f"; and less at {together(more)}" if more else ""
    same = together(by["refuted"])
    parts = [f"where it costs accuracy ({costs})"] * bool(costs)
    parts += [f"where it makes no difference of {100 * margin:g} points ({same})"] * bool(same)
    said = [f"Do not use it {' or '.join(parts)}" if parts else "No cell says when not to use it"]
    if not costs:
        worst = best.iloc[0]
        said.append(f"the smallest gain is that at {where(worst)}: {told(worst)} over {worst['minus']}")
    return "; ".join([*said, f"{len(by['undecided'])} of {len(best)} cells are undecided."])
