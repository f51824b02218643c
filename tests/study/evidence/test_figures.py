import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from decorlib.study.evidence import figures


@pytest.fixture(autouse=True)
def style():
    import matplotlib as mpl

    with mpl.rc_context():
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    calls = []
    monkeypatch.setattr("IPython.display.display", lambda data, **more: calls.append((data, more)))
    return calls


def line(values=(1, 2)):
    fig, ax = plt.subplots()
    ax.plot(values)
    return fig


def test_show_gives_image_text_and_alternative_text(shown):
    fig = line()
    figures.show(fig, alt="  A line\n that rises. ")
    ((data, more),) = shown
    assert data["text/plain"] == "[figure: A line that rises.]"
    assert more["metadata"]["image/png"]["alt"] == "A line that rises."
    image = Image.open(io.BytesIO(data["image/png"]))
    assert image.width == 2 * more["metadata"]["image/png"]["width"]  # two points per CSS pixel
    assert not plt.fignum_exists(fig.number)


def test_show_wants_a_text(shown):
    with pytest.raises(ValueError, match="alt is empty"):
        figures.show(line(), alt=" \n ")
    with pytest.raises(ValueError, match="name must be letters"):
        figures.show(line(), alt="x", name="../x")
    assert shown == []


def test_show_saves_only_in_a_full_run(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures.show(line(), alt="x")
    assert not list(tmp_path.rglob("*.png"))
    figures.use_style()  # a new notebook counts from one
    monkeypatch.setenv("DECORLIB_RESULTS", str(tmp_path))
    monkeypatch.setenv("DECORLIB_NOTEBOOK", "03")
    figures.show(line(), alt="x")
    figures.show(line(), alt="x", name="rates")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"03_figure1.png", "03_rates.png"}
    assert (tmp_path / "figures" / "03_rates.png").read_bytes() == shown[-1][0]["image/png"]


def test_equal_figures_give_equal_bytes_and_small_ones():
    one, two = figures.png(line()), figures.png(line())
    assert one == two
    assert one != figures.png(line((2, 1)))
    assert len(one) < 40_000


def runs(diverged=False):
    rows = [
        {"epoch": epoch, "loss": 10.0 * seed + epoch, "arm": arm, "seed": seed}
        for arm in ("plain", "decorrelated")
        for seed in range(3)
        for epoch in range(4)
    ]
    df = pd.DataFrame(rows)
    if diverged:
        df.loc[(df.arm == "plain") & (df.seed == 2) & (df.epoch >= 2), "loss"] = np.nan
    return df


def test_curves_show_every_seed_and_the_median():
    ax = figures.curves_by_seed(runs(), "epoch", "loss", "arm", title="t", ylabel="loss (nats)")
    assert len(ax.lines) == 2 * (3 + 1)
    bold = [drawn for drawn in ax.lines if drawn.get_linewidth() > 2]
    np.testing.assert_allclose(bold[0].get_ydata(), [10, 11, 12, 13])  # seed 1 is the middle one
    assert ax.get_ylabel() == "loss (nats)"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "plain (median of 3)",
        "decorrelated (median of 3)",
    ]
    looks = {(drawn.get_color(), drawn.get_marker(), drawn.get_linestyle()) for drawn in bold}
    assert len(looks) == 2
    assert len({look[1:] for look in looks}) == 2  # not by colour alone


def test_a_diverged_seed_ends_the_median_instead_of_flattering_it():
    ax = figures.curves_by_seed(runs(diverged=True), "epoch", "loss", "arm")
    bold = next(drawn for drawn in ax.lines if drawn.get_linewidth() > 2)
    np.testing.assert_allclose(bold.get_ydata(), [10, 11, np.nan, np.nan])


def test_wrong_columns_and_too_many_arms():
    with pytest.raises(ValueError, match=r"no column \['los'\]"):
        figures.curves_by_seed(runs(), "epoch", "los", "arm")
    with pytest.raises(ValueError, match="7 arms"):
        figures.arm_styles(range(7))


def test_paired_dots_draw_each_seed_and_the_t_interval():
    differences = {"a": [1.0, 2.0, 4.0], "b": [0.5]}
    ax = figures.paired_dots(differences)
    dots = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
    assert [list(drawn.get_xdata()) for drawn in dots] == [[1, 2, 4], [0.5]]
    assert len(ax.containers) == 1  # one seed has no interval
    (segment,) = ax.containers[0].lines[2][0].get_segments()
    expected = stats.ttest_1samp(differences["a"], 0).confidence_interval(0.95)
    np.testing.assert_allclose(sorted(segment[:, 0]), expected)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a (n = 3)", "b (n = 1)"]


def test_paired_dots_refuse_nothing_and_odd_levels():
    with pytest.raises(ValueError, match="no comparison"):
        figures.paired_dots({})
    with pytest.raises(ValueError, match=r"between 0 and 1, got 95\.0"):
        figures.paired_dots({"a": [1, 2]}, level=95.0)


def test_labels_of_near_points_stand_apart():
    """The second label would run over the third point, were it written to the right like the first."""
    fig, ax = plt.subplots(figsize=(6, 3))
    ax.set(xlim=(0, 10), ylim=(0, 10))
    points = {"first of them": (1, 8), "a long label": (4, 5), "beside it": (5, 5), "right edge": (9.9, 2)}
    figures.label_points(ax, points)
    fig.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert set(boxes) == set(points)
    names = list(boxes)
    assert not any(boxes[a].overlaps(boxes[b]) for a in names for b in names if a < b)
    for name, box in boxes.items():
        assert not any(box.contains(*ax.transData.transform(at)) for other, at in points.items() if other != name)
    assert boxes["right edge"].x1 < ax.transData.transform((9.9, 2))[0], "it would leave the axes on the right"
    plt.close(fig)
