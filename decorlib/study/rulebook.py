"""Every learning rule as an arm of a comparison: the same tries for all, where each is stable, what each costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from decorlib.catalogue import make_rule
from decorlib.decorrelation import Decorrelation
from decorlib.rules import Rule
from decorlib.study import timing
from decorlib.study.experiments import Experiment
from decorlib.study.following import Follow, stable, useful
from decorlib.study.seed import hot_reloaded
from decorlib.study.stats import holm, paired
from decorlib.train import SilentNoOp, train

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
    "seed": Arm("seed", (("variance", 1.0),)),
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


def tries(base: Follow, rates: Sequence[float], shrinkages: Sequence[float]) -> list[tuple[str, Follow]]:
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


def ranges(named: Sequence[tuple[str, Follow]], records: Sequence[dict]) -> pd.DataFrame:
    """Per arm: where it is stable and useful among its tries, and its best one (least remaining cosine).

    ``decades``: logarithm of largest stable over smallest useful rate; missing where nothing is useful, and for exact
    arms, which have no rate. ``best`` counts the tries from 0; an arm that is stable at none has no best one.
    """
    rows = []
    for name in dict.fromkeys(name for name, _ in named):
        runs = [(spec, record) for (n, spec), record in zip(named, records, strict=True) if n == name]
        fine = [i for i, (_, record) in enumerate(runs) if stable(record)]
        good = [i for i, (_, record) in enumerate(runs) if useful(record)]
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


def best_tries(named: Sequence[tuple[str, Follow]], table: pd.DataFrame) -> dict[str, Follow]:
    """Each arm's best try; arms that were stable at none are left out."""
    groups = {name: [spec for n, spec in named if n == name] for name in table.index}
    return {n: groups[n][int(best)] for n, best in table["best"].items() if pd.notna(best)}


def network_tries(
    base: Experiment, largest: Mapping[str, float], fractions: Sequence[float], shrinkages: Sequence[float]
) -> tuple[dict[str, Experiment], dict[str, dict[str, list]]]:
    """Arms and rates for :func:`decorlib.study.arms.tune`: the same fractions of each rule's largest stable rate."""
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


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with Holm's adjusted p over all of them that have one."""
    tested = table["p"].notna()
    table = table.assign(**{"Holm p": float("nan")})
    table.loc[tested, "Holm p"] = holm(table.loc[tested, "p"].tolist())
    return table


def step_seconds(data: str, repeats: int, batch: int = 64) -> dict[str, float]:
    """Median seconds of one step of R alone for each arm, taking turns in this process; 784 features for digits.

    An exact arm's step is a mean over its refresh interval: its medians with and without refresh, weighed.
    """
    features = 784 if data == "digits" else 8
    x = torch.randn(batch, features, generator=torch.Generator().manual_seed(0))
    found = {}
    calls = {name: _one_step(arm, x) for name, arm in ARMS.items()}
    calls |= {f"{name}, between": _one_step(arm, x, idle=True) for name, arm in ARMS.items() if arm.exact}
    medians = timing.medians(timing.take_turns(calls, repeats=repeats, warmup=1))
    for name, arm in ARMS.items():
        n = arm.update_every
        found[name] = (medians[name] + (n - 1) * medians[f"{name}, between"]) / n if arm.exact else medians[name]
    return found


def stands_still(arm: Arm, accident: bool) -> bool:
    """Whether the trainer finds that R does not move, in one step on random data.

    Args:
        arm: the rule.
        accident: replay what happened to the seed's third run, an update that sets no gradient.
    """
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    layer = Decorrelation(16, rule=make_rule(arm.rule, **dict(settings(arm, [1e-3], [0.5])[0][1])))
    optimizer = torch.optim.SGD([layer.weight], lr=1e-3)
    with hot_reloaded() if accident else nullcontext():
        try:
            # in_place=False: the step of the seed, an update that sets a gradient and an optimizer that uses it
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
