"""Question (a) of every hypothesis: is its factor why the seed's third run failed? A crossed comparison answers it.

The run failed with R standing still. So the factor is crossed with whether R is updated: if the loss falls wherever R
is updated, factor present or not, and nowhere else, then the factor neither made the run fail nor would removing it
have saved it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from decorlib.study.experiments import Experiment

#: The seed's third run as an experiment: its 1,000 digits, two layers, both rates; the draws of weights differ by seed.
RUN3 = Experiment(
    subset_seed=42,
    model="mlp",
    hidden=(100,),
    rule="seed",
    rule_options=(("variance", 1.0),),
    lr=1e-5,
    decor_lr=1e-5,
    epochs=20,
)


def crossed(seeds: Iterable[int], epochs: int = RUN3.epochs, **removed) -> dict[tuple[str, str, int], Experiment]:
    """The four cells by (factor, R, seed); ``removed`` are the fields of :data:`RUN3` that take the factor away.

    Args:
        seeds: of weights and batch order.
        epochs: passes over the digits. Default: 20, as in the seed.
        removed: for example ``pixels="alive"``.
    """
    if not removed:
        raise ValueError("say which fields take the factor away, for example pixels='alive'")
    changes = {"present": {}, "removed": removed}
    rates = {"updated": RUN3.decor_lr, "standing still": 0.0}
    return {
        (factor, R, seed): RUN3.but(seed=seed, epochs=epochs, decor_lr=rate, **change)
        for factor, change in changes.items()
        for R, rate in rates.items()
        for seed in seeds
    }


def changes(keys: Iterable[tuple[str, str, int]], records: Iterable[dict]) -> pd.DataFrame:
    """Decorrelation loss of the last epoch over that of the first, by cell and seed (columns); inf if it diverged."""
    rows = [
        (*key, record["epochs"][-1]["decor_loss"] / record["epochs"][0]["decor_loss"])
        if record["status"] == "finished"
        else (*key, float("inf"))
        for key, record in zip(keys, records, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["factor", "R", "seed", "last / first"])
    return table.pivot(index=["factor", "R"], columns="seed", values="last / first")


def explains(ratios: pd.DataFrame, falls: float = 0.9) -> str:
    """Answer (a): "yes", "no" or "partly", where a ratio below ``falls`` in every seed counts as a loss that falls.

    "no": R updated is what makes the loss fall, whatever the factor. "yes": the factor is what stops it from falling,
    whatever R does. Else "partly".
    """
    fell = {cell: bool((row < falls).all()) for cell, row in ratios.iterrows()}
    by_update = all(fell[factor, "updated"] and not fell[factor, "standing still"] for factor in ("present", "removed"))
    by_factor = all(fell["removed", R] and not fell["present", R] for R in ("updated", "standing still"))
    return "no" if by_update else "yes" if by_factor else "partly"
