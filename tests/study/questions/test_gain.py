"""The comparison on full data: equal tries, when an arm reaches the baseline's best, what an epoch asks for."""

import math
from dataclasses import fields

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decorlib.study.evidence.figures import use_style
from decorlib.study.experiments import flops
from decorlib.study.experiments.experiment import Experiment, build
from decorlib.study.questions.gain import figures, plan, time_to_accuracy

BASE = Experiment(train_size=256, hidden=(32, 16), batch_size=64, epochs=3)


def curves() -> pd.DataFrame:
    """Backpropagation at its best in epoch 3; 'fast' there in epoch 1; 'slow' in one of two seeds; 'never' in none."""
    accuracy = {
        plan.BASELINE: ([0.7, 0.8, 0.9], [0.7, 0.9, 0.8]),
        "kappa": ([0.95, 0.9, 0.9], [0.9, 0.9, 0.9]),
        "demeaned": ([0.7, 0.8, 0.9], [0.7, 0.7, 0.7]),
        "BatchNorm": ([0.1] * 3, [0.1] * 3),
    }
    cost = {plan.BASELINE: 2.0, "kappa": 3.0, "demeaned": 2.0, "BatchNorm": 2.5}
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


ARMS = (plan.BASELINE, "kappa", "demeaned", "BatchNorm")


def test_every_arm_gets_as_many_tries_of_what_it_has():
    arms = plan.mlp_arms(BASE) | {f"conv {n}": s for n, s in plan.convnet_arms(BASE).items()}
    grids = plan.rates(arms, [5e-4, 1e-3], [1e-4, 1e-3], [0.5, 0.9])
    assert {math.prod(len(v) for v in grid.values()) for grid in grids.values()} == {4}
    assert min(grids[plan.BASELINE]["lr"]) == 2.5e-4
    assert max(grids[plan.BASELINE]["lr"]) == pytest.approx(2e-3)
    assert grids["kappa, demeaned"]["decor_lr"] == pytest.approx([1e-3, 1e-2])
    assert grids["kappa"]["decor_lr"] == grids["kappa, every step"]["decor_lr"] == [1e-4, 1e-3]
    assert grids["exact whitening"]["rule_options"] == [(("shrinkage", 0.5),), (("shrinkage", 0.9),)]
    with pytest.raises(ValueError, match="2 rates of R but 1 shrinkages"):
        plan.rates(arms, [1e-3], [1e-4, 1e-3], [0.5])


def test_reached_is_the_first_epoch_at_the_baselines_best_of_the_same_seed():
    found = time_to_accuracy.reached(curves(), ARMS).set_index(["arm", "seed"])
    assert found.loc[(plan.BASELINE, 0), "epochs"] == 3
    assert found.loc[(plan.BASELINE, 1), "epochs"] == 2
    assert found.loc[("kappa", 0), ["of epochs", "of seconds"]].tolist() == pytest.approx([1 / 3, 3 / 6])
    assert found.loc[("kappa", 1), ["of epochs", "of seconds"]].tolist() == pytest.approx([1 / 2, 3 / 4])
    assert math.isinf(found.loc[("demeaned", 1), "epochs"])
    middle = time_to_accuracy.medians(time_to_accuracy.reached(curves(), ARMS))
    assert middle["reached"].to_dict() == {plan.BASELINE: 2, "kappa": 2, "demeaned": 1, "BatchNorm": 0}
    assert math.isinf(middle.loc["BatchNorm", "epochs"])


def test_margins_take_the_worse_of_the_two_and_count_never_as_a_miss():
    times = time_to_accuracy.reached(curves(), ARMS)
    found = time_to_accuracy.margins(times, "kappa", 0.5, 0.8, most_epochs=3, slowest=3.0)
    assert found.estimate == pytest.approx(((0.5 - 1 / 3) + 0.0) / 2)  # bounded by epochs in both seeds
    never = time_to_accuracy.margins(times, "BatchNorm", 0.5, 0.8, most_epochs=3, slowest=2.5)
    assert never.estimate == pytest.approx(((0.8 - 10 / 6) + (0.8 - 10 / 4)) / 2)  # by seconds in both


def test_chosen_is_the_best_on_validation_among_those_named():
    tries = pd.DataFrame(
        {"arm": ["kappa", "kappa", "demeaned"], "chosen": [True, False, True], "test_accuracy": [0.8, 0.99, 0.9]}
    )
    assert time_to_accuracy.chosen(tries, ["kappa", "demeaned"]) == "demeaned"
    assert time_to_accuracy.chosen(tries, ["kappa"]) == "kappa"
    with pytest.raises(ValueError, match="none of BatchNorm"):
        time_to_accuracy.chosen(tries, ["BatchNorm"])


BOUNDS = {"of epochs": 0.45, "of seconds": 0.5}


def test_answer_says_never_what_was_asked_and_the_sign_of_the_gain():
    table = time_to_accuracy.medians(time_to_accuracy.reached(curves(), ARMS))
    effect = time_to_accuracy.interval([0.01, 0.011])
    text = " ".join(
        time_to_accuracy.answer(
            table, "kappa", "BatchNorm", effect, {"demeaning": effect}, BOUNDS, {"BatchNorm": effect}, 0.001
        )
    )
    assert "never reaches it (0 of 2 do)" in text
    assert "0.417 of its epochs (at most 0.45 was asked: met)" in text
    assert "0.625 of its seconds (at most 0.5 was asked: not met)" in text
    assert "over 'BatchNorm': yes (+1.05 points" in text
    assert "annealed to zero, in shorter runs of equal time" in text
    assert "over: BatchNorm +1.05 [" in text
    down = time_to_accuracy.interval([-0.01, -0.011])
    text = " ".join(time_to_accuracy.answer(table, "BatchNorm", "kappa", down, {}, BOUNDS, {}, 0.001))
    assert "over 'kappa': no (-1.05" in text
    for values, said in (([0.0010, 0.0011, 0.0012], "may be below the 0.1 points"), ([0.01, -0.01], "can show")):
        effect = time_to_accuracy.interval(values)
        assert said in " ".join(time_to_accuracy.answer(table, "kappa", "demeaned", effect, {}, BOUNDS, {}, 0.001))
    assert "no part of its epochs (at most 0.45 was asked: not met)" in text


def test_time_to_every_level_and_its_ratio_to_the_baselines():
    times = time_to_accuracy.time_to(curves(), ARMS)
    assert times["accuracy"].min() == 0.7
    assert times["accuracy"].max() == 0.95
    found = times.set_index(["arm", "seed", "accuracy"]).sort_index()
    assert found.loc[(plan.BASELINE, 0, 0.85)].tolist() == [3, 6]
    assert found.loc[("kappa", 1, 0.85)].tolist() == [1, 3]
    assert found.loc[("kappa", 1, 0.91)].tolist() == [math.inf, math.inf]
    ratios = time_to_accuracy.relative(times, "kappa")
    assert ratios.index.max() == 0.9  # the last that half of the baseline's seeds reach
    assert ratios.loc[0.9].tolist() == pytest.approx([2.5, 5, 1, 3, 1 / 2.5, 3 / 5])
    assert math.isinf(time_to_accuracy.relative(times, "BatchNorm").loc[0.9, "of seconds"])


def test_equal_epochs_and_who_was_still_rising():
    wide = time_to_accuracy.at_epoch(curves(), 2)
    assert list(wide) == list(ARMS)
    assert wide["kappa"].tolist() == [0.9, 0.9]
    short = curves()[lambda t: (t["arm"] != "demeaned") | (t["epoch"] < 2)]
    assert "demeaned" not in time_to_accuracy.at_epoch(short, 2)
    assert time_to_accuracy.still_rising(curves()) == 1  # seed 1 was at its best in epoch 2 of 3
    assert time_to_accuracy.still_rising(curves(), "kappa") == 0  # at its best at once: equal later is not higher


def test_every_arm_gets_the_epochs_that_fit_into_the_baselines_time():
    base = BASE.but(hidden=(256, 256), batch_size=128)
    arms = plan.within_budget(plan.mlp_arms(base), 10)
    work = {name: plan.work_of_epoch(spec) / plan.work_of_epoch(arms[plan.BASELINE]) for name, spec in arms.items()}
    passes = {"BatchNorm": 2, "demeaned, every layer": 2, "kappa, deeper layers": 4}
    passes |= dict.fromkeys(("exact whitening", "2024 rule", "2024 rule, demeaned"), 3)
    passes |= dict.fromkeys(("kappa", "kappa, demeaned", "kappa, every step"), 3)
    for name, spec in arms.items():
        assert plan.relative_time(spec) == pytest.approx((1 + work[name]) / 2 + passes.get(name, 0) / 12)
        assert spec.epochs == max(1, round(10 / plan.relative_time(spec)))
    assert arms[plan.BASELINE].epochs == arms["demeaned"].epochs == 10
    order = ("kappa, every step", "kappa, demeaned", "kappa, deeper layers", "BatchNorm", plan.BASELINE)
    assert [arms[name].epochs for name in order] == sorted({arms[name].epochs for name in order})
    assert {spec.epochs for spec in plan.within_budget(plan.mlp_arms(BASE), 0.1).values()} == {1}


def test_each_ingredient_is_switched_on_by_itself():
    """The two arms of a pair differ in that ingredient, and in nothing else that is not a rate."""
    arms = plan.mlp_arms(BASE)
    decorrelation = {"rule", "rule_options", "layer_options"}
    expected = {
        "scaling to [0, 1]": {"scaling"},
        "demeaning": {"demean_inputs"},
        "demeaning every layer": {"demean_inputs", "normalisation"},
        "decorrelation": decorrelation,
        "both": {"demean_inputs"} | decorrelation,
        "both, in deeper layers": {"demean_inputs", "decorrelated"} | decorrelation,
        "decorrelation, where inputs are demeaned": decorrelation,
        "decorrelation, where every layer is": {"normalisation", "decorrelated"} | decorrelation,
    }
    pairs = time_to_accuracy.ablation(pd.DataFrame(columns=list(arms)))
    assert set(pairs) == set(expected)
    for name, (a, b) in pairs.items():
        changed = {f.name for f in fields(Experiment) if getattr(arms[a], f.name) != getattr(arms[b], f.name)}
        assert changed == expected[name], name
    assert time_to_accuracy.ablation(pd.DataFrame(columns=[plan.BASELINE, "kappa"])) == {
        "decorrelation": ("kappa", plan.BASELINE)
    }


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_counted_work_of_a_plain_step_is_torchs_count(model):
    spec = BASE.but(rule=None, model=model)
    network, x = build(spec, 784), torch.randn(spec.batch_size, 784)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(x), torch.zeros(spec.batch_size, dtype=torch.long)).backward()
    assert flops.experiment(spec).total == counter.get_total_flops()


def test_counted_work_orders_the_arms():
    work = {name: plan.work_of_epoch(spec) for name, spec in plan.mlp_arms(BASE).items()}
    assert (
        work[plan.BASELINE]
        == work["demeaned"]
        < work["kappa, deeper layers"]
        < work["kappa, demeaned"]
        < work["kappa, every step"]
    )
    convs = {name: plan.work_of_epoch(spec) for name, spec in plan.convnet_arms(BASE).items()}
    assert convs[plan.BASELINE] < convs["kappa, channels"] < convs["kappa, patches"]


def test_costs_cover_every_arm_and_are_relative_to_the_baseline():
    arms = {n: s for n, s in plan.mlp_arms(BASE).items() if n in (plan.BASELINE, "whitened inputs", "kappa, demeaned")}
    cost = plan.costs(arms, batches=2, repeats=1, threads=1)
    assert list(cost.index) == list(arms)
    assert cost.loc[plan.BASELINE, ["of baseline", "GFLOP of baseline"]].tolist() == [1, 1]
    assert (cost["seconds"] > 0).all()
    assert cost.loc[plan.BASELINE, "seconds before"] == 0
    assert cost.loc[plan.BASELINE, "run of baseline's"] == 1


def test_a_second_data_set_that_is_not_there_is_left_out_aloud(monkeypatch, capsys):
    def missing(spec):
        raise plan.DataUnavailable("no files")

    monkeypatch.setattr(plan, "arrays", missing)
    assert plan.second_data_set("fashion_mnist", plan.mlp_arms(BASE), (plan.BASELINE,)) == {}
    assert "fashion_mnist is left out: no files" in capsys.readouterr().out


def test_figures_show_every_arm_and_say_never():
    with plt.rc_context():
        use_style()
        found = curves()
        fig = figures.against(found.assign(GFLOP=1.0), ["seconds", "GFLOP"], "a finding")
        legends = {text.get_text() for ax in fig.axes if ax.get_legend() for text in ax.get_legend().get_texts()}
        assert legends == set(ARMS)
        assert {ax.get_xlabel() for ax in fig.axes} == {"seconds of training", "counted GFLOP"}
        fig = figures.levels(time_to_accuracy.time_to(found, ARMS), "a finding")
        assert [text.get_text() for text in fig.axes[1].get_legend().get_texts()] == list(ARMS)
        fig = figures.reach(time_to_accuracy.reached(found, ARMS), {"of epochs": 0.3, "of seconds": 0.6}, "a finding")
        assert [t.get_text() for t in fig.axes[0].texts] == ["1 of 2", "2 of 2"]
        wide = pd.DataFrame({"kappa": [0.9, 0.91], plan.BASELINE: [0.8, 0.82]})
        fig = figures.differences(wide, plan.BASELINE, "a finding")
        assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["kappa (n = 2)"]
    plt.close("all")
