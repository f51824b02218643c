"""Seconds to a level of accuracy, with R over each control, for the page with which README opens."""

import pandas as pd

from decorlib.study.evidence.records import Record

FEW = 3  # pairs of runs, below which a ratio's interval says nothing
TIMED = {"network": "MLP", "measure": "seconds"}  # whose seconds to a level are told


def seconds(studies: list[Record]) -> list[str]:
    """Seconds to a level over each control's, of the last study: where R is slowest, and where quickest."""
    for record in reversed(studies):
        frame = record.frame("time to levels")
        for name, value in TIMED.items():
            frame = frame[frame[name] == value]
        cases = [own for _, own in frame.groupby(["data", "schedule"], sort=False)]
        if cases:
            known = sorted((case for case in cases if len(at_level(case))), key=_slowest, reverse=True)
            if len(known) < 2:
                return [timed(case) for case in known or cases[:1]]
            ends = (("slowest", known[0]), ("quickest", known[-1]))
            return [f"{timed(case)} ({name} of {len(cases)} cases)" for name, case in ends]
    return []


def at_level(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the highest level at which most ratios are known, the least favourable first; none, where none is."""
    known = rows[rows["n"] >= FEW].groupby("level", sort=False).size()
    if known.empty:
        return rows.iloc[:0]
    level = known[known == known.max()].index[-1]
    return rows[rows["level"] == level].sort_values("estimate", ascending=False)


def _slowest(rows: pd.DataFrame) -> float:
    return at_level(rows)["estimate"].max()


def timed(rows: pd.DataFrame) -> str:
    """The ratios at a level; and at the highest level of all, where more runs of a control get there than with R."""
    first, shown = rows.iloc[0], at_level(rows)
    where = f"seconds of training, {TIMED['network']} on {first['data']}, rate {first['schedule']}"
    if shown.empty:
        lowest = first["level"]
        return (
            f"{where}: too few pairs of runs pass a validation accuracy of {lowest}, the lowest level, to tell a ratio"
        )
    level, top = shown["level"].iloc[0], rows[rows["level"] == rows["level"].iloc[-1]]
    text = f"{where}, to a validation accuracy of {level}: {'; '.join(ratio(row) for _, row in shown.iterrows())}"
    behind = top[top["control never"] < top["arm never"]]
    if level == top["level"].iloc[0] or behind.empty:
        return text
    reached = ", ".join(f"{row['of'] - row['control never']} with {row['control']}" for _, row in behind.iterrows())
    with_R = behind["of"].iloc[0] - behind["arm never"].iloc[0]
    return f"{text}; to {top['level'].iloc[0]}: {with_R} of {behind['of'].iloc[0]} runs with R, {reached}"


def ratio(row: pd.Series) -> str:
    """A time over a control's, with its interval; runs that never got there are counted."""
    arm, control = row["of"] - row["arm never"], row["of"] - row["control never"]
    there = f"of {row['of']} runs each {arm} get there with R, {control} with {row['control']}"
    if pd.isna(row["estimate"]) or row["n"] < FEW:
        return f"over {row['control']} not known ({there})"
    numbers = f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['control']}'s"
    missing = row["arm never"] or row["control never"]
    return f"{numbers} (n = {row['n']}, {row['outcome']}{'; ' + there if missing else ''})"
