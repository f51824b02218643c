"""Where does it pay: arms and cells that differ in what they say, gains, claims, and what is said of them."""

import math
from dataclasses import fields

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from decorlib.study.evidence.figures import use_style
from decorlib.study.evidence.stats import paired, simultaneous
from decorlib.study.experiments.credit import CREDITS
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.where import claims, figures, gains, plan

BASE = Experiment(hidden=(32, 32), batch_size=64, train_size=500, measures="task")
ARMS = (plan.ALONE, plan.DEMEANED, plan.NORMALISED, plan.OURS)
FA, NODE = "feedback alignment", "node perturbation"


def changed(a, b):
    return {f.name for f in fields(Experiment) if getattr(a, f.name) != getattr(b, f.name)}


# ---------------------------------------------------------------------------------------------------- the plan


def test_arms_differ_in_what_they_say_alone():
    found = plan.arms(BASE, everywhere=True)
    assert list(found) == [*ARMS, plan.EVERYWHERE]
    learned = {"rule", "rule_options", "layer_options", "decorrelated"}
    assert changed(found[plan.ALONE], found[plan.DEMEANED]) == {"normalisation"}
    assert changed(found[plan.ALONE], found[plan.NORMALISED]) == {"normalisation"}
    assert changed(found[plan.ALONE], found[plan.OURS]) == learned
    assert changed(found[plan.OURS], found[plan.EVERYWHERE]) == {"decorrelated"}
    assert dict(found[plan.OURS].layer_options) == {"update_every": 1, "center": "batch"}
    longer = plan.arms(BASE.but(train_size=6400, epochs=2))[plan.OURS]
    assert dict(longer.layer_options)["update_every"] == 200 // 50
    assert plan.arms(BASE.but(data="gaussian"))[plan.OURS].decorrelated == "all"
    assert plan.OURS not in plan.CONTROLS
    assert all(plan.arms(BASE)[name].rule is None for name in plan.CONTROLS)


def test_every_arm_gets_as_many_tries_and_none_has_two_values_of_a_rate():
    """Two values of a rate have nothing but edges: a grid that moves would move for ever."""
    found = plan.arms(BASE)
    grids = plan.rates(found, [1e-3, 3e-3, 9e-3], [1e-3, 3e-3, 1e-2])
    assert {math.prod(map(len, grid.values())) for grid in grids.values()} == {9}
    assert grids[plan.OURS] == {"lr": [1e-3, 3e-3, 9e-3], "decor_lr": [1e-3, 3e-3, 1e-2]}
    assert min(grids[plan.ALONE]["lr"]) < 1e-3 < 9e-3 < max(grids[plan.ALONE]["lr"])
    assert plan.rates(found, [1e-3], [1e-2])[plan.NORMALISED] == {"lr": [1e-3]}
    assert plan.rounds(9) == [0.25, 1]
    assert plan.rounds(1) == [1]


AXES = {
    plan.BATCH: [16, 128],
    plan.DEPTH: [1, 4],
    plan.WIDTH: [8, 64],
    plan.DATA: [100, 60_000],
    plan.CONDITION: [1, 100],
    plan.NOISE: [0, 0.5],
}


def test_a_cell_varies_its_axis_and_every_run_of_the_map_sees_as_many_images():
    cells = plan.cells(BASE, 500, AXES, depth_width=16)
    assert list(cells) == [(axis, value) for axis, values in AXES.items() for value in values]
    expected = {
        plan.BATCH: {"batch_size"},
        plan.DEPTH: {"hidden"},
        plan.WIDTH: {"hidden"},
        plan.DATA: {"train_size", "batch_size", "epochs"},
        plan.CONDITION: {"data", "condition"},
        plan.NOISE: {"data", "noise"},
    }
    middle = BASE.but(epochs=1, lr_schedule="cosine_steps")
    for (axis, _), spec in cells.items():
        assert changed(spec, middle) <= expected[axis], axis
        assert spec.epochs * spec.train_size == max(500, spec.train_size)
    assert cells[plan.DATA, 100].batch_size == 25
    assert cells[plan.DATA, 60_000].batch_size == 64
    assert [plan.epochs(500, size) for size in (100, 300, 499, 60_000)] == [5, 2, 1, 1]
    assert cells[plan.DEPTH, 4].hidden == (16,) * 4
    assert cells[plan.WIDTH, 8].hidden == (8, 8)
    assert cells[plan.NOISE, 0.5].condition == BASE.condition
    with pytest.raises(ValueError, match="no axis 'luck'; there are batch size, hidden layers"):
        plan.cells(BASE, 500, {"luck": [1]}, 16)


def test_credit_varies_under_both_schedules():
    found = plan.credits(BASE, [FA, NODE], [FA])
    assert list(found) == [(plan.ANNEALED, FA), (plan.ANNEALED, NODE), (plan.CREDIT, FA)]
    assert changed(found[plan.ANNEALED, FA], found[plan.CREDIT, FA]) == {"lr_schedule"}
    assert changed(found[plan.ANNEALED, FA], BASE) == {"lr_schedule", "credit"}
    assert list(plan.all_arms(found))[:2] == [f"{plan.ANNEALED} | {FA} | {arm}" for arm in ARMS[:2]]


# --------------------------------------------------------------------------------------------------- the gains

SEEDS = range(4)
ACCURACY = {  # of (axis, value): arm -> by seed
    (plan.ANNEALED, FA): dict(
        zip(
            ARMS,
            ([0.80, 0.81, 0.80, 0.79], [0.85] * 4, [0.90, 0.90, 0.91, 0.90], [0.95, 0.95, 0.96, 0.955]),
            strict=True,
        )
    ),
    (plan.ANNEALED, "backpropagation"): dict(
        zip(ARMS, ([0.90] * 4, [0.93] * 4, [0.95, 0.951, 0.95, 0.949], [0.95, 0.9505, 0.9502, 0.949]), strict=True)
    ),
    (plan.BATCH, 8): dict(zip(ARMS, ([0.9] * 4, [0.92] * 4, [0.88] * 4, [0.94, 0.941, 0.94, 0.939]), strict=True)),
    (plan.BATCH, 512): dict(zip(ARMS, ([0.9] * 4, [0.92] * 4, [0.90] * 4, [0.89, None, 0.89, 0.89]), strict=True)),
}


def tables():
    """Runs and tries of two groups of cells; one run with R diverged, and a control did in tuning."""
    groups = []
    for of_map in (False, True):
        cells = {cell: arms for cell, arms in ACCURACY.items() if (cell[0] == plan.BATCH) == of_map}
        rows = [
            {
                "arm": plan.named(cell, arm),
                "seed": seed,
                "status": "diverged" if value is None else "finished",
                "test_accuracy": value,
            }
            for cell, arms in cells.items()
            for arm, values in arms.items()
            for seed, value in enumerate(values)
        ]
        table = pd.DataFrame(rows)
        table["test_accuracy"] = pd.to_numeric(table["test_accuracy"])
        validated = [
            {"arm": plan.named(cell, arm), "chosen": chosen, "test_accuracy": values[0] if chosen else 0.99}
            for cell, arms in cells.items()
            for arm, values in arms.items()
            for chosen in (True, False)
        ]
        tries = pd.DataFrame(validated)
        tries.loc[tries["arm"] == plan.named((plan.BATCH, 512), plan.NORMALISED), "test_accuracy"] = float("nan")
        groups.append((table, tries))
    return [table for table, _ in groups], [tries for _, tries in groups]


def test_gains_are_paired_and_their_intervals_hold_together():
    found = gains.gains(*tables())
    assert len(found) == 4 * 3
    row = found[(found["value"] == FA) & (found["minus"] == plan.NORMALISED)].iloc[0]
    arms = ACCURACY[plan.ANNEALED, FA]
    alone = paired(arms[plan.OURS], arms[plan.NORMALISED])
    held = simultaneous(alone, 4)  # cells
    assert row[["estimate", "low", "high", "n", "p"]].tolist() == [
        alone.estimate,
        held.low,
        held.high,
        4,
        alone.p_value,
    ]
    assert held.low < alone.low < row["estimate"]
    assert row["accuracy"] == pytest.approx(sum(arms[plan.OURS]) / 4)
    assert row["control"] == pytest.approx(sum(arms[plan.NORMALISED]) / 4)


def test_a_diverged_run_counts_as_a_guess_and_is_counted():
    found = gains.gains(*tables()).set_index(["axis", "value", "minus"])
    row = found.loc[(plan.BATCH, 512, plan.DEMEANED)]
    assert row["diverged"] == 1
    assert row["n"] == 4
    assert row["estimate"] == pytest.approx((3 * -0.03 + 0.1 - 0.92) / 4)
    assert found["diverged"].sum() == 3  # the same run, minus each of three


def test_the_better_control_is_that_of_the_validation_images():
    best = gains.over_best(gains.gains(*tables())).set_index(["axis", "value"])["minus"].to_dict()
    assert best == {
        (plan.ANNEALED, FA): plan.NORMALISED,
        (plan.ANNEALED, "backpropagation"): plan.NORMALISED,
        (plan.BATCH, 8): plan.DEMEANED,
        (plan.BATCH, 512): plan.DEMEANED,  # the other diverged while it was tuned
    }


def test_the_two_sentences_say_where_it_pays_and_where_not():
    found = gains.gains(*tables())
    best, worst = gains.pays_most(found, 0.002), gains.do_not_use(found, 0.002)
    assert best.startswith("At equal epochs R pays the most at feedback alignment, annealed rate: +5.12 points [")
    assert "over BatchNorm, the better control there" in best
    assert "gains more than 0.2 points in 2 of 4 cells: feedback alignment (annealed rate); batch size 8." in best
    same = (
        "Do not use it where it makes no difference of 0.2 points (backpropagation (annealed rate)); the smallest gain "
    )
    assert worst.startswith(same + "is that at batch size 512: -22.75 points [")
    assert worst.endswith("; 1 of 4 cells are undecided.")
    harmed = found.assign(low=-0.2, high=-0.1, estimate=-0.15)
    costs = (
        "Do not use it where it costs accuracy (feedback alignment, annealed rate, -15.00 points [-20.00, -10.00], n = "
    )
    assert gains.do_not_use(harmed, 0.002).startswith(costs)
    row = gains.over_best(harmed).iloc[0]
    plain = found[(found["value"] == row["value"]) & (found["axis"] == row["axis"]) & (found["minus"] == plan.ALONE)]
    means = [f"{100 * mean:.1f}%" for mean in (row["accuracy"], row["control"], plain["control"].item())]
    means = f"({means[0]} with R, {means[1]} with it, {means[2]} with neither)"
    assert means in gains.do_not_use(harmed, 0.002)
    all_four = gains.do_not_use(harmed, 0.002)
    assert all_four.count("% with neither") == gains.SHOWN == 3
    last = gains.over_best(harmed).iloc[3]
    assert f"; and less at {gains.together([last])}); 0 of 4" in all_four
    gained = found.assign(low=0.1, high=0.2, estimate=0.15)
    said = gains.do_not_use(gained, 0.002)
    assert said.startswith("No cell says when not to use it; the smallest gain is that at feedback alignment")
    assert said.endswith("; 0 of 4 cells are undecided.")


def test_cells_stand_behind_the_name_of_their_axis():
    rows = [(plan.BATCH, 64), (plan.ANNEALED, FA), (plan.BATCH, 8), (plan.ANNEALED, "backpropagation")]
    cells = [{"axis": axis, "value": value} for axis, value in rows]
    assert gains.together(cells) == "batch size 8, 64; feedback alignment, backpropagation (annealed rate)"


# --------------------------------------------------------------------------------------------------- the claims


def test_a_claim_is_the_sum_of_its_terms_by_seed():
    runs = tables()[0]
    over, small = (
        claims.Claim("a", "b", "c", "d", ((1.0, plan.ANNEALED, FA, plan.OURS), (-1.0, plan.ANNEALED, FA, plan.ALONE))),
        next(claim for claim in claims.CLAIMS if "small batches" in claim.claim),
    )
    nowhere = claims.Claim("a", "b", "c", "d", ((1.0, plan.DEPTH, claims.LARGEST, plan.OURS),))
    every = claims.Claim("a", "b", "c", "d", ((1.0, plan.ANNEALED, FA, plan.EVERYWHERE),))
    found = claims.rows(runs, 0.002, [over, small, nowhere, every])
    arms = ACCURACY[plan.ANNEALED, FA]
    held = simultaneous(paired(arms[plan.OURS], arms[plan.ALONE]), 2)
    assert found.loc[0, ["estimate", "low", "high", "n"]].tolist() == [held.estimate, held.low, held.high, 4]
    assert found.loc[0, "holds"] == "holds"
    assert found.loc[1, "estimate"] == pytest.approx((0.94 - 0.88) - (3 * 0.89 + 0.1 - 4 * 0.9) / 4)
    assert found.loc[[2, 3], "holds"].tolist() == ["not run at this size"] * 2
    assert found.loc[[2, 3], "n"].tolist() == [0, 0]
    shown = claims.in_points(found)["ours, points"].tolist()
    assert shown[0] == f"{100 * held.estimate:+.2f} [{100 * held.low:.2f}, {100 * held.high:.2f}], n = 4"
    assert shown[2:] == ["–", "–"]
    other = claims.rows(runs, 0.002, [claims.Claim("a", "b", "c", "d", tuple((-f, *rest) for f, *rest in over.terms))])
    assert other.loc[0, "holds"] == "the other way round"


def test_approaching_is_a_smaller_gap_and_not_a_lead():
    """A gap of 0.3 points that was 10 has been approached; that it is not below zero refutes nothing."""
    gap = lambda arm: ((1.0, plan.ANNEALED, "backpropagation", plan.NORMALISED), (-1.0, plan.ANNEALED, FA, arm))  # noqa: E731
    closer = tuple((-f, *rest) for f, *rest in gap(plan.NORMALISED))
    made = claims.Claim("a", "b", "c", "d", (*gap(plan.ALONE), *closer), "approaches")
    further = claims.Claim("a", "b", "c", "d", tuple((-f, *rest) for f, *rest in made.terms), "approaches")
    found = claims.rows(tables()[0], 0.002, [made, further])
    assert found["holds"].tolist() == ["holds", "the other way round"]
    assert found.loc[0, "gap without R"] == pytest.approx(0.95 - 0.80)
    assert found.loc[0, "gap with R"] == pytest.approx(0.95 - 0.9025)  # still a gap, beyond the margin
    assert found.loc[0, "estimate"] == pytest.approx(0.1025)
    assert "; gap 15.00 without R, 4.75 with it" in claims.in_points(found)["ours, points"][0]
    (only,) = [claim for claim in claims.CLAIMS if "approaches" in claim.claim]
    assert only.kind == "approaches"


def test_every_claim_has_a_source_and_asks_what_the_study_runs():
    assert len({(claim.source, claim.claim, claim.ours) for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    for claim in claims.CLAIMS:
        assert all((claim.source, claim.claim, claim.theirs, claim.ours))
        for factor, axis, value, arm in claim.terms:
            assert abs(factor) == 1
            assert arm in (*ARMS, plan.EVERYWHERE)
            assert value in CREDITS if axis in plan.CREDITS else value in (claims.SMALLEST, claims.LARGEST)
        assert sum(factor for factor, *_ in claim.terms) == 0


# -------------------------------------------------------------------------------------------------- the figures


def test_figures_have_a_panel_for_each_axis_and_credit():
    runs, tries = tables()
    with plt.rc_context():
        use_style()
        fig = figures.by_credit(runs[0], "a finding", plan.ANNEALED)
        assert [ax.get_title("left") for ax in fig.axes if ax.get_visible()] == [FA, "backpropagation"]
        assert len(fig.axes[0].get_xticklabels()) == len(ARMS)
        fig = figures.gain_map(gains.gains(runs, tries), runs, 0.002, "a finding")
        seen = [ax for ax in fig.axes if ax.get_visible()]
        assert [ax.get_xlabel() for ax in seen] == [plan.ANNEALED, plan.BATCH]
        assert [text.get_text() for text in seen[1].get_xticklabels()] == ["8", "512"]
        legend = [text.get_text() for text in fig.legends[0].get_texts()]
        assert legend == [f"minus {control}" for control in plan.CONTROLS]
        fig.canvas.draw()
    plt.close("all")
