"""The figures of notebooks 03 and 04 say in title and alternative text what their tables hold."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from decorlib.study.evidence.figures import use_style
from decorlib.study.evidence.stats import paired
from decorlib.study.questions.optimizer import figures as optimizer_figures
from decorlib.study.questions.optimizer.optimizers import ORDERS
from decorlib.study.questions.variance import figures as variance_figures


@pytest.fixture(autouse=True)
def _styled():
    """As in a notebook: the style of this project, whatever test came before in this process."""
    with plt.rc_context():
        use_style()
        yield
    plt.close("all")


def scaled() -> pd.DataFrame:
    rows = [(f"target {t}", p / t, p, 0, 1 - p + (0.3 if p == 4 and t == 2 else 0)) for t in (1, 2) for p in (1, 2, 4)]
    return pd.DataFrame(rows, columns=["arm", "rate", "rate x target", "seed", "cosine"])


def test_spreads_count_up_to_the_product_given_and_only_pairs():
    found = variance_figures.spreads(scaled(), up_to=2.0)
    assert found == {"rate": pytest.approx(1.0), "rate x target": pytest.approx(0.0)}
    assert variance_figures.spreads(scaled(), up_to=4.0)["rate x target"] == pytest.approx(0.3)


def test_factor_says_both_spreads():
    _, alt = variance_figures.factor(scaled(), up_to=2.0)
    assert "by 1.00" in alt
    assert "by 0.00" in alt


@pytest.mark.parametrize(("shift", "says"), [(0.2, "Beyond 0.1 of it: b"), (0.0, "None is surely beyond")])
def test_accuracy_names_what_is_beyond_the_margin(shift, says):
    wide = pd.DataFrame({"a": [0.5, 0.6, 0.7], "b": [0.501 + shift, 0.6 + shift, 0.699 + shift]})
    fig, _ = variance_figures.accuracy(wide, {"b": paired(wide["b"].tolist(), wide["a"].tolist())}, "a", margin=0.1)
    assert fig.axes[0].get_title(loc="left").startswith(says)


def test_orders_returns_the_effects_that_it_shows():
    wide = pd.DataFrame({order: [0.9 - 0.1 * i, 0.91 - 0.1 * i] for i, order in enumerate(ORDERS)})
    fig, alt, effects = optimizer_figures.orders(wide)
    assert effects[ORDERS[2]].estimate == pytest.approx(-0.2)
    assert "-0.300" in fig.axes[0].get_title(loc="left")
    assert ORDERS[1] in alt


def test_rate_maps_count_what_diverged_and_name_the_best():
    grid = pd.DataFrame({"lr": [1, 1, 2, 2], "decor_lr": [1, 2, 1, 2], "test_accuracy": [0.5, float("nan"), 0.8, 0.7]})
    fig, alt = optimizer_figures.rate_maps({"sgd": grid})
    assert "1 of 4 diverged, best accuracy 0.80 at rates 2 and 1 of R" in alt
    assert "1 of 4" in fig.axes[0].get_title(loc="left")
