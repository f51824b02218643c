"""Arms of a comparison: grids of specifications, rates chosen with an equal budget, tables paired by seed.

The order of a comparison: ``tune`` chooses each arm's rates on the validation split, ``compare`` runs the chosen arms
on the test set with the seeds of the comparison, ``by_seed`` lines the arms up so that differences stay within a seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from decorlib.study.evidence.stats import Interval, holm, paired
from decorlib.study.experiments import grids, side_by_side, tuning
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.places import run_in_groups

OPTIONS = ("rule_options", "layer_options")
_FIELDS = tuple(f.name for f in fields(Experiment))


def grid(base: Experiment, **lists: Iterable) -> list[Experiment]:
    """Every combination of the listed values of fields, the last field changing fastest.

    Args:
        base: what all of them share.
        lists: field of :class:`Experiment` = its values.

    Example::

        >>> specs = grid(Experiment(model="decorrelation"), decor_lr=[1e-5, 1e-4], seed=range(5))
    """
    grids.check_fields(base, lists)
    return [base.but(**values) for values in grids.combinations(lists)]


def frame(specs: Sequence[Experiment], records: Sequence[dict], arm: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per run: what differs between the specifications, the status, and the final measurements.

    Options of rule and layer get a column each (``eta``, ``center``, ...); where one is None or not given the column
    says "none", since ``groupby`` would drop rows with a missing key. A run that diverged has the epoch in
    ``diverged_at`` and missing measurements: it can be left out only on purpose.

    Args:
        specs: as given to ``sweep``.
        records: as ``sweep(specs, experiments.run)`` returned them.
        arm: name of each specification's arm, for a column ``arm``. Default: None, no such column.
    """
    described = _describe(specs, arm)
    finals = list(dict.fromkeys(k for r in records for k in r["final"] if k not in ("batches", "epoch")))
    rows = [
        first
        | {"status": record["status"], "diverged_at": record["diverged_at"]}
        | {name: record["final"].get(name) for name in finals}
        for first, record in zip(described, records, strict=True)
    ]
    return numeric(pd.DataFrame(rows), (*finals, "diverged_at"))


def curves(specs: Sequence[Experiment], records: Sequence[dict], arm: Sequence[str] | None = None) -> pd.DataFrame:
    """One row per run and epoch, with the columns of :func:`frame` that describe the run; for ``curves_by_seed``."""
    described = _describe(specs, arm)
    rows = [first | row for first, record in zip(described, records, strict=True) for row in record["epochs"]]
    return pd.DataFrame(rows)


def compare(
    arms: Mapping[str, Experiment], seeds: Iterable[int], *, desc: str = "", **engine: Any
) -> tuple[pd.DataFrame, list[dict]]:
    """Run every arm with every seed; return the :func:`frame` with columns ``arm`` and ``seed``, and the records.

    Args:
        arms: name -> specification; its own seed is replaced.
        seeds: the same for all arms, which are therefore paired by seed.
        desc: text before the progress bar. Default: "".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.
    """
    return compare_at_once({"": (arms, seeds)}, desc=desc, **engine)[""]


def compare_at_once(
    groups: Mapping[Any, tuple[Mapping[str, Experiment], Iterable[int]]], *, desc: str = "", **engine: Any
) -> dict[Any, tuple[pd.DataFrame, list[dict]]]:
    """:func:`compare` of several groups, arms and seeds of each, in one sweep: no process waits between two of them.

    Args:
        groups: key -> (name -> specification, seeds).
        desc: text before the progress bar. Default: "".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        For each key what :func:`compare` returns.
    """
    listed = {key: (arms, [int(seed) for seed in seeds]) for key, (arms, seeds) in groups.items()}
    runs = {
        key: [arm.but(seed=seed) for arm in arms.values() for seed in seeds] for key, (arms, seeds) in listed.items()
    }
    found = {}
    ended = run_in_groups(runs, lambda specs: side_by_side.sweep(specs, desc=desc, **engine))
    for key, (specs, records) in ended.items():
        arms, seeds = listed[key]
        table = frame(specs, records, [name for name in arms for _ in seeds])
        if "seed" not in table:  # a single seed does not differ
            table.insert(1, "seed", [spec.seed for spec in specs])
        found[key] = table, records
    return found


def by_seed(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """One row per seed and one column per arm, in the order of the arms; NaN where the run diverged.

    ``paired(wide[arm], wide[baseline])`` then compares within seeds.
    """
    missing = [name for name in ("arm", "seed", value) if name not in table]
    if missing:
        raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    return table.pivot(index="seed", columns="arm", values=value)[list(dict.fromkeys(table["arm"]))]


def effects(wide: pd.DataFrame, pairs: Mapping[str, tuple[str, str]]) -> dict[str, Interval]:
    """Paired difference a - b within seeds for each named pair (a, b) of arms.

    A pair is left out where an arm diverged in a seed, which the caller must say, or where there is one seed only.
    """
    whole = {name: pair for name, pair in pairs.items() if wide[list(pair)].notna().all(axis=None) and len(wide) > 1}
    return {name: paired(wide[a].tolist(), wide[b].tolist()) for name, (a, b) in whole.items()}


def effect_table(found: Mapping[str, Interval]) -> pd.DataFrame:
    """One row per effect: estimate, interval, n, p-value, and p-value by Holm over all rows (they are one family)."""
    table = pd.DataFrame({name: asdict(effect) for name, effect in found.items()}).T
    table["p, Holm"] = holm([effect.p_value for effect in found.values()])
    return table.rename(columns={"p_value": "p"})


def arm_table(table: pd.DataFrame, value: str, best: Mapping[str, Experiment]) -> pd.DataFrame:
    """One row per arm: its chosen rates; mean, lowest and highest of a measurement over seeds; how many diverged."""
    wide = by_seed(table, value)
    rows = {
        name: {
            "rate of weights": best[name].lr,
            "rate of R": best[name].decor_lr if best[name].rule else None,
            "mean": wide[name].mean(),
            "lowest": wide[name].min(),
            "highest": wide[name].max(),
            "diverged": int(wide[name].isna().sum()),
        }
        for name in wide
    }
    return pd.DataFrame(rows).T.rename_axis("arm")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """An :func:`arm_table` in words: rates to three digits however small, measurements to four places, counts whole."""
    formats = dict.fromkeys(("rate of weights", "rate of R"), "{:.3g}") | {"diverged": "{:.0f}"}
    told = {name: column.map(formats.get(name, "{:.4f}").format, na_action="ignore") for name, column in table.items()}
    return pd.DataFrame(told).astype(object).where(table.notna(), "–")


def spread(values: Sequence[float], count: int, beyond: float = 2**0.5) -> list[float]:
    """So many rates over the range of the given ones and further by a factor at each end, evenly on a log scale.

    For an arm without R: as many tries of its one rate as the others have of their two.
    """
    if not values or min(values) <= 0 or count < 1:
        raise ValueError(f"values = {list(values)}, count = {count}: positive rates and a count of at least 1 needed")
    low, high = min(values) / beyond, max(values) * beyond
    return [low * (high / low) ** (i / max(count - 1, 1)) for i in range(count)]


def tune(
    arms: Mapping[str, Experiment],
    rates: Mapping[str, Any],
    seeds: Iterable[int],
    metric: str = "test_loss",
    *,
    quiet: bool = False,
    desc: str = "tuning",
    **engine: Any,
) -> tuple[dict[str, Experiment], pd.DataFrame]:
    """Choose each arm's rates on the validation split, with the same number of tries for every arm.

    A try is one combination of rates, run with every seed. The best has the fewest diverged seeds, then the best mean
    of the metric; ties go to the smaller rates. A best rate on the edge of its grid is printed: a wider grid might
    have served that arm better.

    Args:
        arms: name -> specification, with any split and seed.
        rates: field -> values for all arms (``{"lr": [3e-4, 1e-3], "decor_lr": [1e-5, 1e-4]}``); or arm -> such a
            mapping, where an arm has no use for a rate (give it as many tries of another).
        seeds: seeds of the tries; use others for the comparison, or the same for all arms.
        metric: measurement to choose by, on the validation split; higher is better where it ends in "accuracy", else
            lower. Default: "test_loss".
        quiet: do not print edges. Default: False.
        desc: text before the progress bar. Default: "tuning".
        engine: ``jobs``, ``engine``, ``cache`` of :func:`decorlib.study.sweep`.

    Returns:
        The arms with their best rates and ``split="test"``, and a table of all tries: arm, rates, mean, lowest and
        highest over seeds (missing where any diverged), diverged seeds, chosen, edge.

    Raises:
        ValueError: arms with unequal numbers of tries, an unknown field, nothing to choose from.
    """
    tested = {name: arm.but(split="test") for name, arm in arms.items()}
    best, tries = tuning.choose(tested, rates, seeds, metric, quiet=quiet, desc=desc, **engine)
    return best, tries.drop(columns=["part", "moved"])


def best_try(tries: pd.DataFrame, among: Sequence[str], metric: str) -> str:
    """The arm, of those named, whose chosen try has the highest validation measurement; of equal ones the first named.

    The test set has no say. An arm whose chosen try diverged is not picked.
    """
    scores = tries[tries["chosen"] & tries["arm"].isin(among)].set_index("arm")[metric].astype(float).dropna()
    if scores.empty:
        raise ValueError(f"none of {', '.join(among)} has a chosen try that did not diverge")
    return max((name for name in among if name in scores.index), key=scores.__getitem__)


# ---------------------------------------------------------------------------------------------------------- internals


def _describe(specs: Sequence[Experiment], arm: Sequence[str] | None) -> list[dict]:
    """What differs between the specifications, one dict each."""
    if arm is not None and len(arm) != len(specs):
        raise ValueError(f"{len(arm)} names of arms for {len(specs)} specifications; give one each")
    plain = [name for name in _FIELDS if name not in OPTIONS]
    flat = [
        {name: getattr(spec, name) for name in plain}
        | {_column(field, option): value for field in OPTIONS for option, value in getattr(spec, field)}
        for spec in specs
    ]
    names = list(dict.fromkeys(name for row in flat for name in row))
    differing = [name for name in names if len({repr(row.get(name)) for row in flat}) > 1]
    return [
        ({} if arm is None else {"arm": arm[i]})
        | {name: "none" if row.get(name) is None else row[name] for name in differing}
        for i, row in enumerate(flat)
    ]


def _column(field: str, option: str) -> str:
    # A layer's option and a field of the experiment may have one name: then the layer's says whose it is.
    return f"{field.removesuffix('_options')}.{option}" if option in _FIELDS else option


def numeric(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """None in columns of numbers becomes NaN, so that they can be computed with."""
    return table.assign(**{name: pd.to_numeric(table[name]) for name in columns if name in table})
