"""The answer in plain sentences out of the rows of the protocol, the unfavourable ones first."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from decorlib.study.evidence import opening, to_levels
from decorlib.study.evidence.stats import WORST_FIRST
from decorlib.study.evidence.verdicts import Verdict
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.gain.rows import Row, least


def answer(accuracy: pd.DataFrame, times: pd.DataFrame, scales: dict[str, str]) -> list[str]:
    """The question of 2024, "Do we have a gain?", answered: accuracy over each control, then seconds to a level.

    Args:
        accuracy: rows of question 1 (:func:`decorlib.study.questions.gain.rows.table`).
        times: of question 2.
        scales: of each network, in words.
    """
    told = accuracy.dropna(subset=["estimate"]).sort_values("estimate", kind="stable")
    if told.empty:
        return ["Nothing can be said: every pair of runs has one that diverged."]
    said = [f"Least favourable: {opening.one(told.iloc[0])}."]
    for control, own in told.groupby("control", sort=False):
        counts = ", ".join(f"{name} in {n}" for name in WORST_FIRST if (n := (own["outcome"] == name).sum()))
        said.append(f"Over {control}: {counts} of {len(own)} comparisons.")
    said.append(f"Most favourable: {opening.one(told.iloc[-1])}.")
    for _, own in times[times["measure"] == "seconds"].groupby(["network", "data", "schedule"], sort=False):
        known = own[own["estimate"].notna()]
        if len(known):  # the highest level that some pairs reach
            at = known["level"].iloc[-1]
            first = known.iloc[-1]
            ratios = "; ".join(to_levels.ratio(row) for _, row in own[own["level"] == at].iterrows())
            said.append(f"{first['network']} on {first['data']}, rate {first['schedule']}, seconds to {at}: {ratios}.")
        else:
            row = own.iloc[0]
            where = f"{row['network']} on {row['data']}, rate {row['schedule']}"
            said.append(f"{where}: no two pairs of runs pass {row['level']}, the lowest level.")
    said.append("; ".join(f"{network}: {scale}" for network, scale in scales.items()) + ".")
    return said


def scale(base: Experiment) -> str:
    """Images and length of a network's runs, in words."""
    length = "1 epoch" if base.epochs == 1 else f"{base.epochs:g} epochs"
    return f"{base.train_size or 50_000:,} images, {length} of plain backpropagation"


def verdicts(
    accuracies: Sequence[Row], times: Sequence[Row], margin: float, factor: float, scales: dict[str, str]
) -> list[Verdict]:
    """The rows of the answer table: for each network and schedule the least favourable of its comparisons.

    Of accuracy over data sets, budgets and controls; of seconds over data sets and controls, at the highest level that
    every run of both arms passes. Where there is no such level, nothing is claimed about time.

    Args:
        accuracies: rows of question 1.
        times: of question 2.
        margin: of test accuracy.
        factor: of times.
        scales: of each network, in words.
    """
    found = []
    for network, schedule in dict.fromkeys((row.setting.network, row.setting.schedule) for row in accuracies):
        here = [r for r in accuracies if (r.setting.network, r.setting.schedule) == (network, schedule)]
        whole = [
            r
            for r in times
            if (r.setting.network, r.setting.schedule) == (network, schedule)
            and r.measure == "seconds"
            and not any(r.missing)
            and not r.soon
        ]
        highest = {(r.setting, r.control): r for r in whole}  # levels rise, so that the last one stays
        for kind, among in (("accuracy", here), ("time", list(highest.values()))):
            worst = least(among)
            if worst is not None:
                about = {"scale": f"{worst.setting.data}, {network}, {scales[network]}", "schedule": schedule}
                if any(worst.missing):
                    about["scale"] += f"; {sum(worst.missing)} runs diverged and are left out"
                about |= {"control": f"{worst.control}, {worst.budget}, least favourable of {len(among)}"}
                found.append(_told(worst, f"gain in {kind}, {network}, {schedule}", margin, factor, about))
    return found


def _told(row: Row, hypothesis: str, margin: float, factor: float, about: dict[str, str]) -> Verdict:
    by_itself = row.verdict(margin, factor)
    criterion = (
        f"{by_itself.criterion}; the least favourable by its estimate stands for all of its network and schedule"
    )
    claim = f"a learned R ('{row.arm}') gains over {100 * margin:g} points of test accuracy over each control"
    if row.level is not None:
        claim = f"'{row.arm}' needs less than {1 / factor:g} of each control's seconds to {100 * row.level:.1f}%"
    content = by_itself.as_dict() | about | {"hypothesis": hypothesis, "claim": claim, "criterion": criterion}
    return Verdict.from_dict(content)
