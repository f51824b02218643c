"""Question (a) of every hypothesis: is its factor why run 3 of the 2024 notebook failed? A crossed comparison.

The run failed with R standing still. So the factor is crossed with whether R is updated: if the loss falls with the
factor present once R is updated, and does not with the factor removed while R stands still, then the factor neither
made the run fail nor would removing it have saved it.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from decorlib.study.experiments.experiment import Experiment

#: Run 3 of the 2024 notebook as an experiment: its 1,000 digits, two layers, both rates; weights are drawn by seed.
RUN3 = Experiment(
    subset_seed=42,
    model="mlp",
    hidden=(100,),
    rule="notebook",
    rule_options=(("variance", 1.0),),
    lr=1e-5,
    decor_lr=1e-5,
    epochs=20,
)


def crossed(seeds: Iterable[int], epochs: int = RUN3.epochs, **removed) -> dict[tuple[str, str, int], Experiment]:
    """The four cells by (factor, R, seed); ``removed`` are the fields of :data:`RUN3` that take the factor away.

    Args:
        seeds: of weights and batch order.
        epochs: passes over the digits. Default: 20, as in the 2024 notebook.
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

    "no": with the factor present the loss falls once R is updated, and with the factor removed it does not while R
    stands still. "yes": the other way round. Else "partly". The cell (removed, updated) shows what removal does to a
    run that works; it decides nothing.
    """
    fell = {cell: bool((row < falls).all()) for cell, row in ratios.iterrows()}
    updating_saves, removing_saves = fell["present", "updated"], fell["removed", "standing still"]
    if updating_saves == removing_saves:
        return "partly"
    return "no" if updating_saves else "yes"
