"""decorlib.study.experiments.failed: the crossed comparison separates "R stood still" from the factor."""

import pandas as pd
import pytest

from decorlib.study.experiments import failed
from decorlib.study.experiments.experiment import run


def table(**cells):
    names = {"pu": ("present", "updated"), "ps": ("present", "standing still")}
    names |= {"ru": ("removed", "updated"), "rs": ("removed", "standing still")}
    index = pd.MultiIndex.from_tuples([names[c] for c in cells], names=["factor", "R"])
    return pd.DataFrame(list(cells.values()), index=index)


@pytest.mark.parametrize("removed_updated", [0.5, 1.2])
def test_answers(removed_updated):
    def answer(present_updated, removed_still):
        cells = {"pu": present_updated, "ps": [1.1, 1.0], "ru": [removed_updated] * 2, "rs": removed_still}
        return failed.explains(table(**cells))

    assert answer([0.2, 0.3], [1.0, 1.0]) == "no"
    assert answer([1.2, 1.3], [0.5, 0.4]) == "yes"
    assert answer([1.2, 1.3], [1.0, 1.0]) == "partly"
    assert answer([0.2, 0.3], [0.5, 0.4]) == "partly"
    assert answer([0.2, 1.3], [1.0, 1.0]) == "partly"  # one seed in which the loss rises is not a fall


def test_cells_differ_in_factor_and_rate_only():
    cells = failed.crossed([3], pixels="alive")
    assert len(cells) == 4
    assert cells["present", "updated", 3] == failed.RUN3.but(seed=3)
    assert cells["removed", "standing still", 3] == failed.RUN3.but(seed=3, pixels="alive", decor_lr=0.0)


def test_a_factor_must_be_named():
    with pytest.raises(ValueError, match="which fields take the factor away"):
        failed.crossed([0])


def test_real_runs_fall_only_where_R_moves():
    cells = failed.crossed([0], epochs=3, pixels="alive")
    ratios = failed.changes(cells, [run(spec) for spec in cells.values()])
    assert (ratios.xs("updated", level="R") < 0.9).all().all()
    assert (ratios.xs("standing still", level="R") > 0.95).all().all()
    assert failed.explains(ratios) == "no"


def test_diverged_runs_count_as_infinite():
    key = ("present", "updated", 0)
    ratios = failed.changes([key], [{"status": "diverged", "epochs": []}])
    assert ratios.loc[("present", "updated"), 0] == float("inf")
