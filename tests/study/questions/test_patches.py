"""The science of notebook 06: the definition, the sampling law, borders, a look inside, counted work."""

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decorlib import DecorConv2d, KappaRule, metrics
from decorlib.study.experiments.experiment import Experiment, build, run
from decorlib.study.questions.convolution import convnet, figures, patches, sampling_positions
from decorlib.study.questions.convolution.patches import Patches


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------ definition


def test_the_layer_is_its_definition_in_every_geometry():
    table = patches.against_definition(seed=1)
    assert list(table.index) == list(patches.GEOMETRIES)
    assert table.to_numpy().max() < 1e-12
    assert table.to_numpy().max() > 0  # two computations, not one with itself


def test_the_definition_by_hand():
    """R takes differences, W sums: the last pixel of each patch."""
    layer = DecorConv2d(1, 1, 2, bias=False, dtype=torch.float64)
    layer.weight.data.fill_(1.0)
    layer.decorrelation.weight.data[1:, :-1] -= torch.eye(3, dtype=torch.float64)
    x = torch.arange(9.0, dtype=torch.float64).reshape(1, 1, 3, 3)
    assert patches.definition(layer, x).tolist() == [[[[4.0, 5.0], [7.0, 8.0]]]]


@pytest.mark.parametrize("flaw", ["transposed R", "R on the other side of the rule"])
def test_a_planted_flaw_is_seen(flaw, monkeypatch):
    if flaw == "transposed R":
        whole = patches.whole
        monkeypatch.setattr(patches, "whole", lambda layer: whole(layer).T)
        column = "output"
    else:
        direction = KappaRule.direction
        monkeypatch.setattr(KappaRule, "step_", lambda rule, m, R, lr, scale=1.0: R.sub_(lr * direction(rule, m, R).mT))
        column = "R after a step"
    assert patches.against_definition()[column].min() > 1e-3


def test_channels_are_the_same_matrix_at_every_tap():
    layer = DecorConv2d(2, 3, 2, span="channel", dtype=torch.float64)
    layer.decorrelation.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    R = patches.whole(layer)
    assert R.shape == (8, 8)
    assert R[0].tolist() == [1, 0, 0, 0, 2, 0, 0, 0]
    assert R[5].tolist() == [0, 3, 0, 0, 0, 4, 0, 0]


# ---------------------------------------------------------------------------------------------- what R learns


def test_learning_on_patches_comes_near_exact_zca_and_longer_is_nearer():
    short, long = (patches.learn(Patches(kernel=3, train_size=100, steps=n, fraction=0.2)) for n in (5, 60))
    assert min(long["cosine"]) > 0.99 > min(short["cosine"])
    spread = {key: values[0] / values[-1] for key, values in long["spectrum"].items()}
    assert spread["before"] > 50 > 5 > spread["after"] > 1
    assert long["correlation"]["after"] < 0.2 * long["correlation"]["before"]
    assert long["correlation"]["exact"] < 0.1  # of other digits than it was computed from
    assert short["correlation"]["before"] == long["correlation"]["before"]


def test_seeds_are_other_digits():
    one, other = (patches.learn(Patches(kernel=3, train_size=50, steps=2, seed=s)) for s in (0, 1))
    assert one["zca"] != other["zca"]
    assert one["R"] != other["R"]


# ---------------------------------------------------------------------------------------------- sampled positions


def test_the_law_for_images_of_one_value_and_for_independent_pixels():
    """An image of one repeated value is worth one position; one of independent pixels is worth all of them."""
    constant = draw(400, 1, 1, 1).expand(400, 1, 4, 4)
    assert sampling_positions.sampling_law(constant, 1).effective == pytest.approx(1, rel=0.01)
    independent = draw(400, 1, 4, 4)
    assert sampling_positions.sampling_law(independent, 1).effective == pytest.approx(16, rel=0.2)


def test_the_law_at_its_ends():
    law = sampling_positions.sampling_law(draw(50, 1, 6, 6), 3)
    assert law.error(50, 50 * 16) == 0  # every position of every image
    assert law.error(10, 160) == pytest.approx(math.sqrt(0.8 * law.between / 10) / law.norm)
    assert law.error(10, 1) == pytest.approx(math.sqrt(law.total) / law.norm, rel=0.05)
    enough = law.enough(10, 0.1)
    assert 0 < enough < 1
    assert law.error(10, enough * 160) == pytest.approx(1.1 * law.error(10, 160), rel=1e-6)


@pytest.mark.parametrize("fraction", [0.02, 0.2, 1.0])
def test_measured_errors_follow_the_law(fraction):
    x = F.avg_pool2d(draw(200, 1, 12, 12), 3, stride=1)  # neighbours alike
    law = sampling_positions.sampling_law(x, 3)
    errors = sampling_positions.sampling_errors(x, 3, [fraction], trials=60, batch=16)
    n = int(errors["positions"].iloc[0])
    measured = math.sqrt(errors["error"].pow(2).mean())
    assert n == round(fraction * 16 * 64)
    assert measured == pytest.approx(law.error(16, n), rel=0.15)
    if fraction == 1:  # what independence would promise is far off
        assert measured > 1.5 * math.sqrt(law.total / n) / law.norm


# ---------------------------------------------------------------------------------------------- borders


def test_missing_pixels_by_counting():
    assert sampling_positions.missing(3, 28).reshape(3, 3).tolist() == [[55, 28, 55], [28, 0, 28], [55, 28, 55]]


@pytest.mark.parametrize("background", [-2.0, 0.0])
def test_the_mean_patch_under_zero_padding_is_predicted(background):
    x = torch.full((5, 1, 10, 10), background, dtype=torch.float64)
    x[:, :, 3:7, 3:7] = draw(5, 1, 4, 4).abs()  # ink away from the border
    measured, predicted = sampling_positions.padded_means(x, 5)
    torch.testing.assert_close(measured, predicted)
    assert (float(measured.max() - measured.min()) > 0.1) == (background != 0)


def test_zero_padding_is_no_news_on_a_background_of_zero():
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    ink = torch.Generator().manual_seed(0)
    images[:, 1:27, 1:27] = torch.randint(256, (40, 26, 26), dtype=torch.uint8, generator=ink)
    table = sampling_positions.padding_effects(images, ("raw", "notebook"), (3,)).set_index("scaling")
    assert table.loc["raw", ["mean", "moment"]].tolist() == [0, 0]
    assert table.loc["raw", "least cosine of R"] == pytest.approx(1)
    assert table.loc["notebook", "moment"] > 0.01
    assert table.loc["notebook", "background"] == -2
    assert table["touched"].tolist() == pytest.approx([1 - (26 / 28) ** 2] * 2)


def test_interior_positions_by_hand():
    assert sampling_positions.interior((4, 4), 3, 1).reshape(4, 4).int().tolist() == [
        [0, 0, 0, 0],
        [0, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 0],
    ]
    assert sampling_positions.interior((7, 7), 3, 1, stride=2).sum() == 4  # of 16, as in the ConvNet's third layer
    assert sampling_positions.interior((7, 7), 3, 0).all()


def test_border_effect_is_none_without_padding_and_large_on_small_maps():
    x = F.relu(draw(300, 4, 7, 7) + 1)
    without = sampling_positions.border_effect(x, padding=0)
    assert without["touched"] == 0 == without["moment"]
    assert without["left by R of all"] == without["left by R of the others"]
    with_padding = sampling_positions.border_effect(x)
    assert with_padding["touched"] == 0.75
    assert with_padding["left by R of all"] > 2 * with_padding["left by R of the others"]


# ---------------------------------------------------------------------------------------------- networks

BASE = Experiment(train_size=128, epochs=1, scaling="standard", lr=3e-3, decor_lr=1e-3)


@pytest.mark.parametrize("arm", ["plain", "patches", "channels"])
def test_looking_trains_the_same_network_as_running(arm):
    spec = convnet.designs(BASE, 2)[arm]
    looked, ran = convnet.look(spec), run(spec)
    assert looked["final"] == {name: ran["final"][name] for name in ("test_accuracy", "test_loss")}
    assert len(looked["layers"]) == 3
    assert [row["touched"] for row in looked["layers"]] == pytest.approx([1 - (13 / 14) ** 2, 1 - (6 / 7) ** 2, 0.75])
    changed = [row["states"] != pytest.approx(row["patches"], rel=1e-6) for row in looked["layers"]]
    assert changed == {"plain": [False] * 3, "patches": [True] * 3, "channels": [False, True, True]}[arm]


def test_looking_says_what_it_does_not_know_and_records_divergence():
    with pytest.raises(ValueError, match="convnet"):
        convnet.look(Experiment())
    wild = convnet.look(convnet.designs(BASE.but(decor_lr=1e3), 2)["patches"])
    assert wild["status"] == "diverged"
    assert wild["final"] == {}


def test_arms_start_equal_and_the_longer_one_is_longer():
    designs = convnet.designs(BASE, 3)
    images = draw(4, 784, seed=3).float()
    nets = {name: build(spec, 784) for name, spec in designs.items()}
    first = {name: next(p for p in net.parameters() if p.dim() == 4) for name, net in nets.items()}
    assert all(torch.equal(w, first["plain"]) for w in first.values())
    torch.testing.assert_close(nets["demeaned"](images), nets["patches"](images))  # R = I in both
    assert designs["plain, longer"].epochs == 3 * BASE.epochs


def test_effective_filters_are_w_times_r():
    layer = DecorConv2d(1, 2, 3)
    layer.decorrelation.weight.data = draw(9, 9).float()
    expected = (layer.weight.flatten(1) @ layer.decorrelation.weight).view(2, 3, 3)
    torch.testing.assert_close(convnet.effective(nn.Sequential(layer)), expected)
    assert convnet.mean_share(torch.ones(2, 3, 3)) == pytest.approx(1)
    assert convnet.mean_share(torch.tensor([[[1.0, -1.0]]])) == 0
    assert convnet.mean_share(draw(3000, 3, 3)) == pytest.approx(1 / 9, abs=0.01)
    assert convnet.alike(expected.tolist(), (-2 * expected).tolist()) == pytest.approx(-1)


# ---------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(("channels", "size", "batch"), [(2, 4, 2), (4, 8, 4), (8, 5, 1)])
@pytest.mark.parametrize("variant", convnet.VARIANTS)
def test_counted_work_is_that_of_the_code(variant, channels, size, batch):
    step = convnet.variants(channels, size, batch)[variant]
    with FlopCounterMode(display=False) as counter:
        step()
    options = convnet.VARIANTS[variant] or {}
    width = channels if options.get("span") == "channel" else 9 * channels
    n = max(1, round(options.get("fraction", 1.0) * batch * size**2))
    # torch's counter does not know the in-place product that ends a step
    unseen = 2 * min(n, width) * width**2 if variant != "plain" else 0
    expected = convnet.work(variant, channels, size, batch).total
    assert counter.get_total_flops() + unseen == pytest.approx(expected)


def test_forms_cross_at_as_many_positions_as_features():
    table = convnet.forms_table(24, [6, 12, 24, 48, 96], repeats=2)
    assert convnet.crossing(table, "GFLOP") == pytest.approx(24, rel=0.05)
    assert set(table["form"]) == {"factored", "dense"}
    assert convnet.crossing(table[table["positions"] < 24], "GFLOP") is None


def test_cost_table_has_every_variant_at_every_shape():
    table = convnet.cost_table([2, 4], 4, 2, repeats=2)
    assert len(table) == 2 * len(convnet.VARIANTS)
    plain = table[table["variant"] == "plain"]
    assert (plain["measured"] == 1).all()
    assert (plain["counted"] == 1).all()
    assert (table["ms"] > 0).all()


# ---------------------------------------------------------------------------------------------- figures


def test_figures_show_every_seed():
    specs = [Patches(rule, kernel=3, train_size=40, steps=2, seed=s) for rule in ("notebook", "kappa") for s in (0, 1)]
    found = [patches.learn(spec) for spec in specs]
    figure = figures.spectra(specs, found, "a title")
    long_lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 9]
    assert len(long_lines) == 3 * len(specs)
    assert "a title" in [figure.axes[0].get_title(loc=where) for where in ("left", "center")]
    layers = pd.DataFrame(
        {"layer": d, "fraction": f, "seed": s, "states": 0.1 * d, "patches": 0.3}
        for d in (1, 2, 3)
        for f in (0.1, 1.0)
        for s in (0, 1)
    )
    accuracy = pd.DataFrame({"fraction": f, "seed": s, "test_accuracy": 0.9} for f in (0.1, 1.0) for s in (0, 1))
    accuracy.loc[0, "test_accuracy"] = float("nan")
    figure = figures.fractions_in_training(layers, accuracy, "t")
    assert len(figure.axes[1].lines) == 2 + 1  # seeds, and a cross where one diverged
    assert [text.get_text().strip() for text in figure.axes[1].texts] == ["1 diverged"]
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 3 * (4 + 2)  # dots, and medians
    plt.close("all")


def test_filters_are_drawn_to_their_own_peak():
    figure = figures.filters({"a": 3 * draw(5, 3, 3).numpy()}, "t")
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 5
    assert all(image.get_clim() == (-abs(image.get_array()).max(), abs(image.get_array()).max()) for image in images)
    plt.close("all")


def test_patches_are_the_rows_that_the_layer_sees():
    x = draw(2, 3, 5, 5)
    p = patches.patches(x, 3, 1, 2)
    assert p.shape == (2, 9, 27)
    assert metrics.second_moment(p.flatten(0, 1)).shape == (27, 27)
    torch.testing.assert_close(p[1, 4], x[1, :, 1:4, 1:4].flatten())


# ------------------------------------------------------------------------------------------- on all digits (protocol)


def test_rates_of_the_comparison_with_three_controls_come_from_the_middle_of_the_protocols():
    assert convnet.controlled_rates(3, 6) == ([0.002, 0.004, 0.008], [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3])
    assert convnet.controlled_rates(1, 1) == ([0.004], [1e-4])
    assert convnet.controlled_rates(2, 4) == ([0.002, 0.004], [3e-5, 1e-4, 3e-4, 1e-3])
    for counts in ((0, 1), (1, 7)):
        with pytest.raises(ValueError, match=r"allowed: 1 to [36]"):
            convnet.controlled_rates(*counts)
