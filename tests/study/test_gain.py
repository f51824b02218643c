"""The comparison on full data: equal tries, when an arm reaches the baseline's best, what an epoch asks for."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decorlib.study import flops, gain, gain_figures
from decorlib.study.experiments import Experiment, build
from decorlib.study.figures import use_style

BASE = Experiment(train_size=256, hidden=(32, 16), batch_size=64, epochs=3)


def curves() -> pd.DataFrame:
    """Backpropagation at its best in epoch 3; 'fast' there in epoch 1; 'slow' in one of two seeds; 'never' in none."""
    accuracy = {
        gain.BASELINE: ([0.7, 0.8, 0.9], [0.7, 0.9, 0.8]),
        "kappa": ([0.95, 0.9, 0.9], [0.9, 0.9, 0.9]),
        "demeaned": ([0.7, 0.8, 0.9], [0.7, 0.7, 0.7]),
        "BatchNorm": ([0.1] * 3, [0.1] * 3),
    }
    cost = {gain.BASELINE: 2.0, "kappa": 3.0, "demeaned": 2.0, "BatchNorm": 2.5}
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "epoch": epoch,
            "test_accuracy": a,
            "seconds": epoch * cost[arm],
            "error": 100 - 100 * a,
        }
        for arm, seeds in accuracy.items()
        for seed, values in enumerate(seeds)
        for epoch, a in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


ARMS = (gain.BASELINE, "kappa", "demeaned", "BatchNorm")


def test_every_arm_gets_as_many_tries_of_what_it_has():
    arms = gain.mlp_arms(BASE) | {f"conv {n}": s for n, s in gain.convnet_arms(BASE).items()}
    grids = gain.rates(arms, [5e-4, 1e-3], [1e-4, 1e-3], [0.5, 0.9])
    assert {math.prod(len(v) for v in grid.values()) for grid in grids.values()} == {4}
    assert min(grids[gain.BASELINE]["lr"]) == 2.5e-4
    assert max(grids[gain.BASELINE]["lr"]) == pytest.approx(2e-3)
    assert grids["kappa, amortised"]["decor_lr"] == pytest.approx([1e-3, 1e-2])
    assert grids["exact whitening"]["rule_options"] == [(("shrinkage", 0.5),), (("shrinkage", 0.9),)]
    with pytest.raises(ValueError, match="2 rates of R but 1 shrinkages"):
        gain.rates(arms, [1e-3], [1e-4, 1e-3], [0.5])


def test_reached_is_the_first_epoch_at_the_baselines_best_of_the_same_seed():
    found = gain.reached(curves(), ARMS).set_index(["arm", "seed"])
    assert found.loc[(gain.BASELINE, 0), "epochs"] == 3
    assert found.loc[(gain.BASELINE, 1), "epochs"] == 2
    assert found.loc[("kappa", 0), ["of epochs", "of seconds"]].tolist() == pytest.approx([1 / 3, 3 / 6])
    assert found.loc[("kappa", 1), ["of epochs", "of seconds"]].tolist() == pytest.approx([1 / 2, 3 / 4])
    assert math.isinf(found.loc[("demeaned", 1), "epochs"])
    middle = gain.medians(gain.reached(curves(), ARMS))
    assert middle["reached"].to_dict() == {gain.BASELINE: 2, "kappa": 2, "demeaned": 1, "BatchNorm": 0}
    assert math.isinf(middle.loc["BatchNorm", "epochs"])


def test_margins_take_the_worse_of_the_two_and_count_never_as_a_miss():
    times = gain.reached(curves(), ARMS)
    found = gain.margins(times, "kappa", 0.5, 0.8, most_epochs=3, slowest=3.0)
    assert found.estimate == pytest.approx(((0.5 - 1 / 3) + 0.0) / 2)  # bounded by epochs in both seeds
    never = gain.margins(times, "BatchNorm", 0.5, 0.8, most_epochs=3, slowest=2.5)
    assert never.estimate == pytest.approx(((0.8 - 10 / 6) + (0.8 - 10 / 4)) / 2)  # by seconds in both


def test_chosen_is_the_best_on_validation_among_those_named():
    tries = pd.DataFrame(
        {"arm": ["kappa", "kappa", "demeaned"], "chosen": [True, False, True], "test_accuracy": [0.8, 0.99, 0.9]}
    )
    assert gain.chosen(tries, ["kappa", "demeaned"]) == "demeaned"
    assert gain.chosen(tries, ["kappa"]) == "kappa"
    with pytest.raises(ValueError, match="none of BatchNorm"):
        gain.chosen(tries, ["BatchNorm"])


def test_answer_says_never_and_the_sign_of_the_gain():
    table = gain.medians(gain.reached(curves(), ARMS))
    effect = gain.interval([0.01, 0.011])
    text = gain.answer(table, "kappa", "BatchNorm", effect, {"demeaning": effect})
    assert "never reaches it (0 of 2 do)" in text
    assert "over 'BatchNorm': yes (+1.05 points" in text
    assert "over 'BatchNorm': no (-1.05" in gain.answer(table, "kappa", "BatchNorm", gain.interval([-0.01, -0.011]), {})


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_counted_work_of_a_plain_step_is_torchs_count(model):
    spec = BASE.but(rule=None, model=model)
    network, x = build(spec, 784), torch.randn(spec.batch_size, 784)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(x), torch.zeros(spec.batch_size, dtype=torch.long)).backward()
    assert flops.experiment(spec).total == counter.get_total_flops()


def test_counted_work_orders_the_arms():
    work = {name: gain.work_of_epoch(spec) for name, spec in gain.mlp_arms(BASE).items()}
    assert (
        work[gain.BASELINE]
        == work["demeaned"]
        < work["kappa, deeper layers"]
        < work["kappa, amortised"]
        < work["kappa"]
    )
    convs = {name: gain.work_of_epoch(spec) for name, spec in gain.convnet_arms(BASE).items()}
    assert convs[gain.BASELINE] < convs["kappa, channels"] < convs["kappa, patches"]


def test_costs_cover_every_arm_and_are_relative_to_the_baseline():
    arms = {n: s for n, s in gain.mlp_arms(BASE).items() if n in (gain.BASELINE, "whitened inputs", "kappa, amortised")}
    cost = gain.costs(arms, batches=2, repeats=1, threads=1)
    assert list(cost.index) == list(arms)
    assert cost.loc[gain.BASELINE, ["of baseline", "GFLOP of baseline"]].tolist() == [1, 1]
    assert (cost["seconds"] > 0).all()
    assert cost.loc[gain.BASELINE, "seconds before"] == 0


def test_a_second_data_set_that_is_not_there_is_left_out_aloud(monkeypatch, capsys):
    def missing(spec):
        raise gain.DataUnavailable("no files")

    monkeypatch.setattr(gain, "arrays", missing)
    assert gain.second_data_set("fashion_mnist", gain.mlp_arms(BASE), (gain.BASELINE,)) == {}
    assert "fashion_mnist is left out: no files" in capsys.readouterr().out


def test_figures_show_every_arm_and_say_never():
    with plt.rc_context():
        use_style()
        found = curves()
        fig = gain_figures.against(found, "seconds", "seconds", "a finding")
        legends = {text.get_text() for ax in fig.axes for text in ax.get_legend().get_texts()}
        assert legends == set(ARMS)
        fig = gain_figures.reach(gain.reached(found, ARMS), {"of epochs": 0.3, "of seconds": 0.6}, "a finding")
        assert [t.get_text() for t in fig.axes[0].texts] == ["1 of 2", "2 of 2"]
        wide = pd.DataFrame({"kappa": [0.9, 0.91], gain.BASELINE: [0.8, 0.82]})
        fig = gain_figures.differences(wide, gain.BASELINE, "a finding")
        assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["kappa (n = 2)"]
    plt.close("all")
