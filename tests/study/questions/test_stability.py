"""stability: the exact edge 2 / lambda_max, the bisection that finds it, the power law of the loss."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from decorlib.layers.decorrelation import Decorrelation
from decorlib.rules.rules import SeedRule
from decorlib.study.experiments import notebook_2024
from decorlib.study.experiments import stability as search
from decorlib.study.questions.scaling import stability
from decorlib.study.questions.scaling.stability import Search


@pytest.fixture
def x():
    """Correlated, with unequal variances and a mean."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return torch.randn(40, 6, generator=generator, dtype=torch.float64) @ mix + 1.0


@pytest.mark.parametrize(("share", "stable"), [(0.99, True), (1.01, False)])
def test_the_edge_is_sharp_without_a_target(x, share, stable):
    rate = share * 2 / stability.sharpness(x)
    assert stability.is_stable([x], SeedRule(), rate, steps=20) is stable


def test_every_mode_follows_its_own_map(x):
    """X keeps its eigenvectors, and each eigenvalue goes to lambda (1 - lr lambda)^2."""
    lr = 0.5 / stability.sharpness(x)
    X = x.T @ x / len(x)
    values, vectors = torch.linalg.eigh(X)
    R = torch.eye(6, dtype=torch.float64)
    for _ in range(3):
        R = R - lr * SeedRule().direction(stability.Moments.of(x @ R.T, x), R)
        values = values * (1 - lr * values) ** 2
    y = x @ R.T
    assert torch.allclose(y.T @ y / len(x), vectors @ torch.diag(values) @ vectors.T, rtol=1e-9, atol=1e-12)


def test_bisection_ends_within_the_tolerance_around_the_edge():
    low, high = search.bisect(lambda rate: rate < math.pi, 1.0, 10.0, 0.001)
    assert low < math.pi <= high
    assert high <= low * 1.001


@pytest.mark.parametrize("start", [1e-4, 1e3])
def test_bracket_from_either_side(start):
    low, high = search.bracket(lambda rate: rate < math.pi, start)
    assert low < math.pi <= high <= 4.001 * low


@pytest.mark.parametrize(("start", "expected"), [(1.0, 100.0), (1e4, 100.0)])
def test_a_search_ends_at_the_top_where_everything_is_stable(start, expected):
    assert search.largest_stable(lambda rate: True, start, 0.01, top=100.0) == (expected, expected)


def test_a_start_above_the_top_is_searched_downwards():
    low, high = search.largest_stable(lambda rate: rate < math.pi, 1e6, 0.001, top=100.0)
    assert low < math.pi <= high <= 1.001 * low


def test_a_loss_that_is_not_finite_is_not_bounded():
    assert search.bounded([1.0, 999.0], 1.0)
    assert not search.bounded([1.0, 1001.0], 1.0)
    assert not search.bounded([1.0, float("nan"), 1.0], 1.0)
    assert not search.bounded([float("inf")], 1.0)


def test_bracket_gives_up_with_its_range():
    with pytest.raises(RuntimeError, match="all stable"):
        search.bracket(lambda rate: True, 1.0)


def test_bisection_refuses_an_empty_bracket():
    with pytest.raises(ValueError, match="0 < low < high"):
        search.bisect(lambda rate: True, 1.0, 1.0, 0.01)


def test_search_on_digits_finds_the_prediction():
    found = stability.largest_stable_rate(Search(scaling="raw", images=64, tolerance=0.02, steps=16))
    assert found["rate"] == pytest.approx(found["predicted"], rel=0.03)
    assert found["rate"] < found["unstable"] <= 1.02 * found["rate"]


def test_rate_goes_with_the_inverse_square_of_the_scale():
    a, b = (
        stability.largest_stable_rate(Search(factor=f, images=64, tolerance=0.02, steps=16))["rate"]
        for f in (1.0, 0.25)
    )
    assert b / a == pytest.approx(16, rel=0.05)


def test_batch_must_not_be_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size = 100 is more than images = 64"):
        Search(images=64, batch_size=100).batches()


def test_sharpness_with_a_target_is_that_of_the_first_step(x):
    X = x.T @ x / len(x)
    N = torch.diag(2.0 / X.diagonal())
    H = torch.eye(6, dtype=torch.float64) - N + N @ X
    assert stability.sharpness(x, 2.0) == pytest.approx(float(torch.linalg.eigvals(H).real.max()), rel=1e-9)


@pytest.mark.parametrize("count", [3, 40])
def test_largest_eigenvalue_is_that_of_the_whole_spectrum(x, count):
    x = x[:count]
    assert stability.sharpness(x) == pytest.approx(float(torch.linalg.eigvalsh(x.T @ x / count)[-1]), rel=1e-9)


def test_nearly_dead_features_do_not_hide_the_largest_eigenvalue(x):
    x = torch.cat([x, torch.zeros(40, 1, dtype=x.dtype)], 1)
    x[0, -1] = 1 / 255  # n = 1 / v of some 2.6e6, so an eigenvalue of I - N + N X far below 0
    assert 1 < stability.sharpness(x, 1.0) < 7


def test_with_a_target_the_scale_cancels_from_what_multiplies_the_covariances(x):
    def off_diagonal(z):
        return (
            SeedRule(variance=1.0).direction(stability.Moments.of(z, z), torch.eye(6, dtype=z.dtype)).fill_diagonal_(0)
        )

    assert torch.allclose(off_diagonal(x), off_diagonal(7 * x), rtol=1e-9)


def test_loss_law_is_exact(x):
    law = stability.loss_law(x)
    assert law["loss"] == pytest.approx(law["rms"] ** 4 / law["participation"], rel=1e-9)
    assert law["off-diagonal"] < law["loss"]


def test_slope_is_four_without_a_target_and_less_with_one(x):
    factors = [0.5, 1.0, 2.0]
    laws = [stability.loss_law(f * x) for f in factors]
    for part in ("loss", "off-diagonal"):
        assert stability.slopes(factors, [law[part] for law in laws]) == pytest.approx([4, 4], abs=1e-9)
    assert max(abs(s - 4) for s in stability.slopes(factors, [law["with target 1"] for law in laws])) > 0.1


@pytest.mark.parametrize(("reduction", "weight"), [("mean", 1), ("sum", 32)])
def test_a_learned_bias_removes_the_mean_at_its_predicted_speed(reduction, weight):
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(0)) - 2.0
    found = stability.learned_bias([x], rate=1e-3, reduction=reduction, steps=50)
    assert found["predicted"] == pytest.approx((1 - 1e-3 * weight) ** 50)
    assert found["left"] == pytest.approx(found["predicted"], rel=1e-4)


def test_laws_hold_for_every_scaling():
    table = stability.laws(notebook_2024.images(100))
    assert len(table) == 10
    assert (table["rms^4 / participation"] / table["loss"]).tolist() == pytest.approx([1] * 10, rel=1e-9)
    assert table.loc[("notebook", "as it is"), "loss"] == pytest.approx(
        16 * table.loc[("unit", "as it is"), "loss"], rel=1e-5
    )


def test_search_table_pairs_every_search_with_its_result():
    searches = {"one": [Search()], "two": [Search(scaling="raw", demean=True)]}
    found = [{"rate": r, "lambda_max": 4.0, "predicted": 0.5, "input_lambda_max": 4.0, "tries": 3} for r in (0.5, 0.25)]
    table = stability.search_table(searches, found)
    assert table["scaling"].tolist() == ["notebook", "raw, demeaned"]
    assert table["rate / predicted"].tolist() == [1.0, 0.5]
    ax = stability.draw_edges(table).axes[0]
    assert [line.get_xydata().tolist() for line in ax.lines[:2]] == [[[4.0, 0.5]], [[4.0, 0.25]]]
    assert ax.lines[2].get_ydata().tolist() == pytest.approx([0.75, 1 / 3])
    plt.close("all")


def test_figures_show_the_numbers():
    table = stability.laws(notebook_2024.images(64), ["notebook", "raw"])
    left, right = stability.draw_laws(table, [0.5, 1.0], {"without a target": [1.0, 16.0]}).axes
    shown = sorted(y for line in left.lines[:2] for y in line.get_ydata())
    assert shown == pytest.approx(sorted(table["loss"]))
    assert right.lines[-1].get_ydata().tolist() == pytest.approx([1.0, 16.0])
    grid = pd.DataFrame({"a": [0.5, None]})
    axes = stability.draw_grids({"t": grid, "u": grid}).axes
    assert [text.get_text() for text in axes[0].texts] == ["0.5", "diverged"]
    plt.close("all")


def test_centrings_are_options_of_a_layer():
    for options in stability.CENTRINGS.values():
        Decorrelation(4, **dict(options))
