"""Every learning rule as an arm of a comparison: the same tries for all, where each is stable, what each costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from decorlib.layers.decorrelation import Decorrelation
from decorlib.rules.catalogue import make_rule
from decorlib.rules.rules import Rule
from decorlib.study.evidence.stats import holm, paired
from decorlib.study.experiments import flops, timing
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.notebook_2024 import hot_reloaded
from decorlib.study.questions.rules.tracking import Track, stable, track, useful
from decorlib.study.sweeps.runs import sweep
from decorlib.training import SilentNoOp, train

REFRESH = 10  # steps between refreshes of an exact whitening matrix


@dataclass(frozen=True)
class Arm:
    """A rule with its hyperparameters; ``exact`` ones are references: they have no rate and are refreshed."""

    rule: str
    options: tuple[tuple[str, object], ...] = ()

    @property
    def exact(self) -> bool:
        return self.rule == "exact"

    @property
    def update_every(self) -> int:
        return REFRESH if self.exact else 1

    def build(self) -> Rule:
        return make_rule(self.rule, **dict(self.options))


ARMS: dict[str, Arm] = {
    "2024 rule": Arm("notebook", (("variance", 1.0),)),
    "plain (C only)": Arm("plain"),
    "kappa 0.1": Arm("kappa", (("kappa", 0.1),)),
    "kappa 0.5": Arm("kappa", (("kappa", 0.5),)),
    "kappa 0.9": Arm("kappa", (("kappa", 0.9),)),
    "kappa 0.5, columns": Arm("kappa_columns", (("kappa", 0.5),)),
    "whitening": Arm("whitening"),
    "triangular": Arm("triangular"),
    "adaptive gain": Arm("adaptive_gain"),
    "Foldiak": Arm("foldiak"),
    "exact ZCA": Arm("exact", (("kind", "zca"),)),
    "exact PCA": Arm("exact", (("kind", "pca"),)),
    "exact Cholesky": Arm("exact", (("kind", "cholesky"),)),
}


# ------------------------------------------------------------------------------------------- tries, the same for all


def tries(base: Track, rates: Sequence[float], shrinkages: Sequence[float]) -> list[tuple[str, Track]]:
    """Every arm with as many tries: the rates, or for an exact arm, which has none, the shrinkages."""
    if len(rates) != len(shrinkages):
        raise ValueError(f"{len(rates)} rates but {len(shrinkages)} shrinkages: every arm must get as many tries")
    return [
        (name, replace(base, rule=arm.rule, rule_options=options, lr=lr, update_every=arm.update_every))
        for name, arm in ARMS.items()
        for lr, options in settings(arm, rates, shrinkages)
    ]


def settings(arm: Arm, rates: Sequence[float], shrinkages: Sequence[float]) -> list[tuple[float, tuple]]:
    """(rate, options) of each try of an arm."""
    if arm.exact:
        return [(1.0, (*arm.options, ("momentum", 0.1), ("shrinkage", float(s)))) for s in shrinkages]
    return [(float(rate), arm.options) for rate in rates]


def ranges(named: Sequence[tuple[str, Track]], records: Sequence[dict], factor: float = 0.5) -> pd.DataFrame:
    """Per arm: where it is stable and useful among its tries, and its best one (least remaining cosine).

    ``factor`` of the cosine at the start is the most that a useful try may leave. ``decades``: logarithm of largest
    stable over smallest useful rate; missing where nothing is useful, and for exact arms, which have no rate.
    ``best`` counts the tries from 0; an arm that is stable at none has no best one.
    """
    rows = []
    for name in dict.fromkeys(name for name, _ in named):
        runs = [(spec, record) for (n, spec), record in zip(named, records, strict=True) if n == name]
        fine = [i for i, (_, record) in enumerate(runs) if stable(record)]
        good = [i for i, (_, record) in enumerate(runs) if useful(record, factor)]
        best = min(fine, key=lambda i: runs[i][1]["final"]["cosine"], default=None)
        row = {"arm": name, "tries": len(runs), "stable": len(fine), "useful": len(good), "best": best}
        row["start"] = runs[0][1]["curve"][0]["cosine"]
        row["left"] = None if best is None else runs[best][1]["final"]["cosine"]
        if not ARMS[name].exact:
            largest = max((runs[i][0].lr for i in fine), default=None)
            smallest = min((runs[i][0].lr for i in good), default=None)
            row |= {"smallest useful": smallest, "largest stable": largest}
            row["decades"] = None if smallest is None else math.log10(largest / smallest)
        rows.append(row)
    table = pd.DataFrame(rows).set_index("arm")
    return table.astype(dict.fromkeys(("start", "left", "smallest useful", "largest stable", "decades"), float))


def run_all(named: Mapping[str, Sequence[tuple[str, Track]]], desc: str = "", **engine) -> dict[str, list[dict]]:
    """Track everything in one sweep; setting -> records, in the order of ``named``."""
    records = iter(sweep([spec for these in named.values() for _, spec in these], track, desc=desc, **engine))
    return {setting: [next(records) for _ in these] for setting, these in named.items()}


def over_seeds(best: Mapping[str, Track], seeds: Sequence[int], **changes) -> list[tuple[str, Track]]:
    """The chosen tries with every seed, and with some other fields changed."""
    return [(name, replace(spec, seed=seed, **changes)) for name, spec in best.items() for seed in seeds]


def best_tries(named: Sequence[tuple[str, Track]], table: pd.DataFrame) -> dict[str, Track]:
    """Each arm's best try; arms that were stable at none are left out."""
    groups = {name: [spec for n, spec in named if n == name] for name in table.index}
    return {n: groups[n][int(best)] for n, best in table["best"].items() if pd.notna(best)}


def curves(
    named: Sequence[tuple[str, Track]], records: Sequence[dict], per_step: Mapping | None = None
) -> pd.DataFrame:
    """One row per run and measured step: arm, seed, step and measures of whiteness, and what was spent until then.

    Args:
        named: (arm, specification).
        records: of :func:`decorlib.study.questions.rules.tracking.track`.
        per_step: column -> {arm: (cost of a step that does not learn, cost of one that does)}, for columns such as
            "GFLOP" and "seconds". Default: None, none.
    """
    rows = [
        {"arm": name, "seed": spec.seed, **row}
        | {column: spent(ARMS[name], row["step"], *costs[name]) for column, costs in (per_step or {}).items()}
        for (name, spec), record in zip(named, records, strict=True)
        for row in record["curve"]
    ]
    return pd.DataFrame(rows)


def spent(arm: Arm, steps: int, idle: float, learning: float) -> float:
    """What so many steps cost: an exact arm learns at the first and at every tenth after it, the others at each."""
    learned = -(-steps // arm.update_every)
    return learned * learning + (steps - learned) * idle


def finals(named: Sequence[tuple[str, Track]], records: Sequence[dict]) -> pd.DataFrame:
    """One row per run: arm, seed, status and the last measures of whiteness, missing where it diverged."""
    rows = [
        {"arm": name, "seed": spec.seed, "status": record["status"], **record["final"]}
        for (name, spec), record in zip(named, records, strict=True)
    ]
    table = pd.DataFrame(rows)
    measured = [c for c in table.columns if c not in ("arm", "seed", "status")]
    return table.assign(**{c: pd.to_numeric(table[c]) for c in measured})


def reached(curve: pd.DataFrame, target: float, columns: Sequence[str]) -> pd.DataFrame:
    """One row per arm and seed: the columns at the first measured step that is at the target; missing where none is."""
    rows = []
    for (arm, seed), run in curve.groupby(["arm", "seed"], sort=False):
        there = run[run["cosine"] <= target]
        first = there.iloc[0] if len(there) else pd.Series(dict.fromkeys(columns, float("nan")))
        rows.append({"arm": arm, "seed": seed, **{c: float(first[c]) for c in columns}})
    return pd.DataFrame(rows)


def network_tries(
    base: Experiment, largest: Mapping[str, float], fractions: Sequence[float], shrinkages: Sequence[float]
) -> tuple[dict[str, Experiment], dict[str, dict[str, list]]]:
    """Arms and rates for ``arms.tune``: the same fractions of each rule's largest stable rate."""
    arms, rates = {}, {}
    for name, arm in ARMS.items():
        each = settings(arm, [f * largest.get(name, 0.0) for f in fractions], shrinkages)
        every = (("update_every", arm.update_every),) if arm.exact else ()
        arms[name] = base.but(rule=arm.rule, rule_options=arm.options, layer_options=every, decor_lr=1.0)
        rates[name] = {"rule_options": [o for _, o in each]} if arm.exact else {"decor_lr": [lr for lr, _ in each]}
    return arms, rates


def compared(wide: pd.DataFrame, baseline: str, inputs: str) -> pd.DataFrame:
    """Paired differences of every arm to a baseline, with interval, n and p; ``wide`` as from ``arms.by_seed``.

    An arm with a diverged run has no number there and says so by n = 0.
    """
    rows = []
    for name in wide.columns.drop(baseline):
        row = {"arm": name, "to": baseline, "inputs": inputs, "estimate": None, "low": None, "high": None, "n": 0}
        if wide[[name, baseline]].notna().all(axis=None):
            found = paired(wide[name].tolist(), wide[baseline].tolist())
            row |= {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n, "p": found.p_value}
        rows.append(row)
    return pd.DataFrame(rows)


def recommend(tuning: Mapping[str, pd.DataFrame], ranges: Mapping[str, pd.DataFrame], metric: str) -> str:
    """The rule to use, chosen without the test set: the smallest sum of validation losses over the settings.

    Candidates are local rules other than the 2024 notebook's that are useful somewhere in every setting of R alone.

    Args:
        tuning: setting -> table of tries from :func:`decorlib.study.experiments.arms.tune`.
        ranges: setting -> table of :func:`ranges`.
        metric: column of the tuning table; lower is better.
    """
    usable = [
        name for name, arm in ARMS.items()
        if not arm.exact and name != "2024 rule" and all(table.loc[name, "useful"] > 0 for table in ranges.values())
    ]  # fmt: skip
    sums = {name: sum(_chosen(table, name, metric) for table in tuning.values()) for name in usable}
    if not sums:
        raise ValueError("no rule is useful in every setting: try more rates, or ask for less than factor")
    return min(sums, key=sums.__getitem__)


def _chosen(table: pd.DataFrame, name: str, metric: str) -> float:
    value = float(table.loc[(table["arm"] == name) & table["chosen"], metric].iloc[0])
    return math.inf if math.isnan(value) else value


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with Holm's adjusted p over all of them that have one."""
    tested = table["p"].notna()
    table = table.assign(**{"Holm p": float("nan")})
    table.loc[tested, "Holm p"] = holm(table.loc[tested, "p"].tolist())
    return table


def work_table(batch: int, widths: Sequence[int]) -> pd.DataFrame:
    """GFLOP per step of every arm, refreshes shared out: R alone on the first width, and a network of the widths."""
    rows = {}
    for name, arm in ARMS.items():
        own = flops.alone(arm.build(), batch, widths[0], arm.update_every)
        network = flops.mlp(arm.build(), batch, widths, arm.update_every).total
        rows[name] = {
            "transform": own.forward / 1e9,
            "learning": (own.total - own.forward) / 1e9,
            "R alone": own.total / 1e9,
            "network": network / 1e9,
            "times plain network": network / flops.mlp(None, batch, widths).total,
        }
    return pd.DataFrame(rows).T


def step_flops(batch: int = 64, features: int = 784) -> dict[str, tuple[float, float]]:
    """GFLOP of one step of R alone for each arm: (one that does not learn, one that does)."""
    work = {name: flops.alone(arm.build(), batch, features) for name, arm in ARMS.items()}
    return {name: (w.forward / 1e9, w.total / 1e9) for name, w in work.items()}


def step_seconds(repeats: int, batch: int = 64, features: int = 784) -> dict[str, tuple[float, float]]:
    """Median seconds of one step of R alone for each arm, likewise; all take turns in this process."""
    x = torch.randn(batch, features, generator=torch.Generator().manual_seed(0))
    calls = {name: _one_step(arm, x) for name, arm in ARMS.items()} | {
        "idle": _one_step(ARMS["plain (C only)"], x, True)
    }
    medians = timing.medians(timing.take_turns(calls, repeats=repeats, warmup=1))
    return {name: (medians["idle"], medians[name]) for name in ARMS}


def stands_still(arm: Arm, unmoved: bool) -> bool:
    """Whether the trainer finds that R does not move, in one step on random data.

    Args:
        arm: the rule.
        unmoved: replay what happened to the 2024 notebook's third run, an update that sets no gradient.
    """
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    layer = Decorrelation(16, rule=make_rule(arm.rule, **dict(settings(arm, [1e-3], [0.5])[0][1])))
    optimizer = torch.optim.SGD([layer.weight], lr=1e-3)
    with hot_reloaded() if unmoved else nullcontext():
        try:
            # in_place=False: the step of 2024, an update that sets a gradient and an optimizer that uses it
            options = {"optimizer": None, "decor_optimizer": optimizer, "in_place": False}
            train(layer, lambda y, _: y.sum(), [(x, x)], epochs=1, **options)
        except SilentNoOp:
            return True
    return False


# ---------------------------------------------------------------------------------------------------------- internals


def _one_step(arm: Arm, x: Tensor, idle: bool = False) -> Callable[[], object]:
    options = dict(settings(arm, [1e-6], [0.5])[0][1])
    layer = Decorrelation(x.shape[1], rule=make_rule(arm.rule, **options), update_every=10**9 if idle else 1)
    optimizer = torch.optim.SGD([layer.weight], lr=1e-6)
    if idle:  # the one that learns is behind it
        layer(x)
        layer.update(1e-6)

    def step() -> None:
        layer(x)
        layer.update(1e-6)
        optimizer.step()

    return step
