"""pixels: the kinds of pixels, the blocks of the loss, and the law that a nearly dead pixel follows."""

import math

import pandas as pd
import pytest
import torch

from decorlib.data import inputs
from decorlib.metrics import decorrelation_loss
from decorlib.rules.rules import SeedRule
from decorlib.study.experiments import notebook_2024
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.zero_pixels import pixels


@pytest.fixture(scope="module")
def images():
    return notebook_2024.images()


def test_kinds_split_all_pixels_and_count_the_constant_ones(images):
    masks = pixels.kinds(images)
    assert sum(mask.int() for mask in masks.values()).eq(1).all()
    assert int(masks["constant"].sum()) == 181
    assert torch.equal(masks["constant"], images.flatten(1).float().std(0) == 0)
    rare = (images.flatten(1) != 0).sum(0)[masks["nearly constant"]]
    assert int((rare == 0).sum()) == 0
    assert int(rare.max()) < 10


def test_shares_are_those_of_the_loss(images):
    x = inputs.scale(images[:200], "notebook").flatten(1)
    masks = pixels.kinds(images[:200])
    shares = pixels.loss_shares(x, masks)
    assert float(shares.to_numpy().sum()) == pytest.approx(1)
    without = decorrelation_loss(x[:, ~masks["constant"]], 1.0) * int((~masks["constant"]).sum()) ** 2
    assert 1 - pixels.involving(shares, "constant") == pytest.approx(without / (decorrelation_loss(x, 1.0) * 784**2))


def test_spectrum_of_one_shared_mode():
    x = torch.full((10, 4), -2.0)
    found = pixels.spectra(x)
    assert found["top eigenvalue"] == pytest.approx(16)
    assert found["participation ratio"] == pytest.approx(1)


def test_amplification_counts_ink_and_guards_dead_pixels():
    x = torch.zeros(4, 3)
    x[0, 1], x[:, 2] = 0.5, 2.0
    table = pixels.amplification(x, batch_size=4)
    assert table["images with ink"].tolist() == [0, 1, 4]
    assert table["n"].tolist() == pytest.approx([1, 16, 0.25])


@pytest.mark.parametrize("grey", [1, 16, 255])
def test_one_step_writes_a_copy_of_the_image_with_gain_lr_over_a(grey):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 20, generator=generator, dtype=torch.float64)
    a, rate = grey / 255, 1e-3
    x[:, 0] = 0
    x[0, 0] = a
    v = pixels.one_step(x, rate, SeedRule(variance=1.0))[0]
    overlap = x @ x[0]  # of every image with the one that has the ink
    own = torch.zeros(8, dtype=torch.float64)
    own[0] = a * (1 + rate * (8 / a**2 - 1))
    assert float(v) == pytest.approx(float((own - rate * overlap / a).square().mean()), rel=1e-9)


def test_states_need_a_loss_below_the_start():
    spec = Experiment(model="decorrelation", train_size=128, rule_options=(("variance", 1.0),))
    start = pixels.initial_loss(spec)
    assert start == pytest.approx(7.0, rel=0.05)
    records = [
        {"status": "finished", "diverged_at": None, "epochs": [{"decor_loss": start * f}]} for f in (0.5, 1.5)
    ] + [{"status": "diverged", "diverged_at": 3, "epochs": []}]
    specs = [spec.but(decor_lr=r) for r in (1e-5, 1e-4, 1e-3)]
    table = pixels.states(["a"] * 3, specs, records)
    assert table["state"].tolist() == ["fell", "rose", "diverged"]
    assert table["last / initial"][:2].tolist() == pytest.approx([0.5, 1.5])
    assert pixels.largest_falling(table)["a"] == 1e-5


def test_largest_falling_needs_every_seed_and_may_not_exist():
    rows = [("a", 1e-5, 0, "fell"), ("a", 1e-5, 1, "fell"), ("a", 1e-4, 0, "fell"), ("a", 1e-4, 1, "rose")]
    rows += [("b", 1e-5, 0, "rose"), ("b", 1e-5, 1, "fell")]
    rates = pixels.largest_falling(pd.DataFrame(rows, columns=["arm", "decor_lr", "seed", "state"]))
    assert rates["a"] == 1e-5
    assert math.isnan(rates["b"])


def test_the_map_says_when_runs_diverged():
    import matplotlib.pyplot as plt

    rows = [("a", 1e-5, 0, "fell", None, 0.5), ("a", 1e-4, 0, "diverged", 2, None)]
    columns = ["arm", "decor_lr", "seed", "state", "diverged_at", "last / initial"]
    fig, ax = plt.subplots()
    texts = [t.get_text() for t in pixels.draw_states(pd.DataFrame(rows, columns=columns), ax).texts]
    plt.close(fig)
    assert texts == ["× 0.5", "NaN in epoch 2"]


def test_growth_is_that_of_the_faintest_pixel_and_a_floor_stops_it():
    x = torch.zeros(4, 2, dtype=torch.float64)
    x[:, 0], x[0, 1] = 1.0, 1 / 16
    rate = 1e-3
    own, others = 1 / 16 * (1 + rate * 1022) - rate * 16, -rate * 16
    expected = (own**2 + 3 * others**2) / (1 / 16) ** 2
    assert pixels.growth(x, rate, SeedRule(variance=1.0), batch_size=4) == pytest.approx(expected, rel=1e-9)
    assert pixels.growth(x, rate, SeedRule(variance=1.0, dead_variance=0.01), batch_size=4) < 1


def test_designs_differ_from_the_seed_in_what_they_are_called():
    original = Experiment(rule_options=(("variance", 1.0),))
    arms, references = pixels.designs(original, jitter=0.2, floor=0.03)
    assert arms["as in 2024"] == original
    assert len(set(arms.values()) | set(references.values())) == 12
    assert all(("dead_variance", 0.03) in s.rule_options for name, s in arms.items() if "floor" in name)
    assert {s.jitter for name, s in arms.items() if "jitter" in name} == {0.2}
    assert all(s.rule is None for s in references.values())


def test_figures_show_every_set_and_every_pixel(images):
    import matplotlib.pyplot as plt

    x = inputs.scale(images[:128], "raw").flatten(1)
    everything = torch.ones(784, dtype=torch.bool)
    lines = (
        pixels.draw_spectra({"0": x, "again": x}, {"all": everything, "half": everything.cumsum(0) > 392}).axes[1].lines
    )
    assert [line.get_label() for line in lines] == ["all", "half"]
    assert lines[0].get_ydata()[0] == pytest.approx(pixels.spectra(x)["top eigenvalue"])
    dots, limit = pixels.draw_amplification({"0": x, "again": x}, 1e6).axes[0].lines
    assert len(dots.get_xdata()) == 2 * 784
    assert limit.get_ydata()[0] == 1e6
    plt.close("all")
