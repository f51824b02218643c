"""How far the 2024 rule undoes its own work: the rise of the decorrelation loss from its lowest to the end of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from decorlib.study.evidence.stats import decide, interval

FACTOR = 2  # by which the loss must end above its lowest to count as undone (docs/protocol.md)
EVERY_RATE = "at the rate where it is least"


def doublings(record: dict, value: str = "decor_loss") -> float:
    """How often the loss doubled from its lowest to the end of the run, or to its last finite one."""
    losses = [row[value] for row in record["epochs"] if row[value] is not None]
    if not losses:
        raise ValueError("the run has no epoch with a finite loss: a smaller rate would have one")
    return math.log2(losses[-1] / min(losses))


def rises(arm: Iterable[str], seeds: Iterable[int], records: Iterable[dict]) -> pd.DataFrame:
    """:func:`doublings` of each run, a row per seed and a column per arm; and first the least of all arms.

    Args:
        arm: of each run.
        seeds: of each run.
        records: of runs long enough to turn.
    """
    columns = {"arm": list(arm), "seed": list(seeds), "doublings": [doublings(record) for record in records]}
    wide = pd.DataFrame(columns).pivot(index="seed", columns="arm", values="doublings")
    wide = wide[list(dict.fromkeys(columns["arm"]))]
    wide.insert(0, EVERY_RATE, wide.min(axis=1))
    return wide


def table(rises: pd.DataFrame, factor: float) -> pd.DataFrame:
    """How far the loss rose again, over seeds, and whether by more than the factor that counts.

    Returns:
        One row per column: estimate, low and high (95 %, by itself) in doublings, n and p of no rise; factor, 2 to the
        estimate; outcome.
    """
    rows = {}
    for name, values in rises.items():
        found = interval(values.tolist())
        row = {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n, "p": found.p_value}
        outcome = decide(found, better="higher", margin=math.log2(factor))
        rows[name] = row | {"factor": 2**found.estimate, "outcome": outcome}
    return pd.DataFrame(rows).T.rename_axis("arm").infer_objects()
