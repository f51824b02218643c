"""Is there a gain: arms and controls of the protocol, choices made before the test set is read, rows, their words."""

import math
import random
from dataclasses import asdict, fields

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decorlib.study.evidence.figures import use_style
from decorlib.study.evidence.stats import paired, simultaneous
from decorlib.study.experiments import flops, side_by_side
from decorlib.study.experiments.experiment import Experiment, build
from decorlib.study.questions.gain import comparison, figures, plan, rows, sentences
from decorlib.study.questions.gain.plan import BASELINE, BUDGETS, CONTROLS, OURS, Setting

BASE = Experiment(train_size=2048, hidden=(32, 16), batch_size=64, epochs=4, evaluate_every=0.25, measures="task")
MLP, CONV = Setting("MLP", "MNIST", "constant"), Setting("ConvNet", "Fashion-MNIST", "cosine to zero")
LR, DECOR_LR = [5e-4, 1e-3, 2e-3], [1e-4, 3e-4, 1e-3]
MARGIN, FACTOR = 0.002, 1.25

#: Final accuracy of each arm in the fake runs, beside its seed's own; and epochs that it needs to come near it.
ACCURACY = dict(zip(plan.ARMS, (0.95, 0.97, 0.975, 0.9845, 0.981, 0.9805, 0.983, 0.96), strict=True))
PACE = dict(zip(plan.ARMS, (2.0, 1.6, 1.2, 0.8, 1.0, 1.0, 0.6, 4.0), strict=True))


def name_of(spec):
    """The arm that a specification belongs to."""
    asked = ("scaling", "normalisation", "rule", "decorrelated", "demean_inputs", "preserve_function")
    known = plan.arms(BASE, MLP).items()
    return next(n for n, s in known if all(getattr(s, f) == getattr(spec, f) for f in asked))


def fake_run(spec):
    """Accuracy rises towards the arm's own; the choice of rates costs it a little; never a test set before the end."""
    arm, luck = name_of(spec), 0.0003 * ((7 * spec.seed) % 5)
    off = 0.002 * abs(math.log2(spec.lr / 1e-3)) + (0 if spec.rule is None else 0.001 * abs(math.log10(spec.decor_lr)))
    end, parts = ACCURACY[arm] + luck - off, spec.parts
    epochs = []
    for k in range(1, spec.passes + 1):
        row = {"epoch": k / parts, "loss": 0.1}
        here = end - 0.1 * 2 ** (-k / parts / PACE[arm] * 4)
        every = round(spec.evaluate_every * parts)
        if k == spec.passes or (every and k % every == 0):
            row |= {"validation_accuracy": here} if spec.split == "both" else {"test_accuracy": here}
        if k == spec.passes and spec.split == "both":
            # The test set would choose another arm than the validation images do.
            row["test_accuracy"] = here - 0.001 + 0.01 * (arm == "kappa, every layer")
        epochs.append(row)
    return {"status": "finished", "diverged_at": None, "epochs": epochs, "final": epochs[-1]}


@pytest.fixture
def asked(monkeypatch):
    """A sweep that trains nothing, and what it was asked for, in order."""
    specs = []

    def sweep(these, **options):
        specs.extend(these)
        return [fake_run(spec) for spec in these]

    monkeypatch.setattr(side_by_side, "sweep", sweep)
    return specs


def compared(setting=MLP, left_out=(), seeds=4):
    these = {n: s for n, s in plan.arms(BASE, setting).items() if n not in left_out}
    grids = {setting: plan.rates(these, LR, DECOR_LR)}
    return comparison.compare({setting: these}, grids, [100, 101], range(seeds))[0]


def cost_of(found, seconds=2.0):
    """Seconds of an epoch: those of plain backpropagation times what counting says."""
    best = found.best["equal seconds"]
    of = {name: plan.relative_time(spec) for name, spec in best.items()}
    table = {n: {"seconds": seconds * ratio, "of baseline": ratio, "seconds before": 0.1} for n, ratio in of.items()}
    return pd.DataFrame(table).T.rename_axis("arm")


# ------------------------------------------------------------------------------------------------ arms and budgets


def test_arms_differ_from_their_control_in_what_their_name_says():
    for setting in (MLP, CONV):
        arms = plan.arms(BASE, setting)
        assert tuple(arms) == (BASELINE, *CONTROLS, *OURS) == plan.ARMS

        def changed(a, b, arms=arms):
            return {f.name for f in fields(Experiment) if getattr(arms[a], f.name) != getattr(arms[b], f.name)}

        learning = {"rule", "rule_options", "layer_options"}
        assert changed("inputs in [0, 1]", BASELINE) == {"scaling"}
        assert changed("demeaned, every layer", BASELINE) == {"demean_inputs", "normalisation"}
        assert changed("BatchNorm", "demeaned, every layer") == {"normalisation"}
        assert changed("kappa, every layer", "kappa, deeper layers") == {"decorrelated"}
        assert changed("kappa, deeper layers, function preserved", "kappa, deeper layers") == {"preserve_function"}
        assert changed("kappa, every layer", "2024 rule, demeaned") == {"rule", "rule_options", "layer_options"}
        assert changed("kappa, deeper layers", "demeaned, every layer") == learning | {"normalisation", "decorrelated"}
        assert {s.lr_schedule for s in arms.values()} == {plan.SCHEDULES[setting.schedule]}
        assert {plan.DATA[s.data] for s in arms.values()} == {setting.data}
        assert {s.model for s in arms.values()} == {setting.network.lower()}
        assert dict(arms["kappa, deeper layers"].layer_options)["update_every"] == 25
        assert "update_every" not in dict(arms["2024 rule, demeaned"].layer_options)


@pytest.mark.parametrize("setting", [MLP, CONV])
def test_every_arm_gets_as_many_tries_of_what_it_has(setting):
    arms = plan.arms(BASE, setting)
    grids, times = plan.rates(arms, LR, DECOR_LR), 2 if setting is CONV else 1
    assert {math.prod(len(v) for v in grid.values()) for grid in grids.values()} == {9}
    for name in (BASELINE, *CONTROLS):
        assert set(grids[name]) == {"lr"}
        assert (min(grids[name]["lr"]), max(grids[name]["lr"])) == pytest.approx((2.5e-4 * times, 4e-3 * times))
    assert grids["kappa, deeper layers"]["lr"] == [times * rate for rate in LR]
    assert grids["kappa, deeper layers"]["decor_lr"] == pytest.approx([1e-3, 3e-3, 1e-2])
    assert grids["2024 rule, demeaned"]["decor_lr"] == pytest.approx([1e-5, 3e-5, 1e-4])


def test_every_arm_gets_the_epochs_that_fit_into_the_baselines_time():
    base = BASE.but(hidden=(256, 256), batch_size=128)
    arms = plan.within_budget(plan.arms(base, MLP), 5)
    work = {name: plan.work_of_epoch(spec) / plan.work_of_epoch(arms[BASELINE]) for name, spec in arms.items()}
    passes = {"BatchNorm": 2, "demeaned, every layer": 2, "kappa, deeper layers": 4, "kappa, every layer": 6}
    passes |= {"2024 rule, demeaned": 3, "kappa, deeper layers, function preserved": 4}
    for name, spec in arms.items():
        assert plan.relative_time(spec) == pytest.approx((1 + work[name]) / 2 + passes.get(name, 0) / 12)
        assert spec.epochs == round(8 * 5 / plan.relative_time(spec)) / 8
        assert abs(spec.epochs * plan.relative_time(spec) - 5) <= plan.relative_time(spec) / 16
    assert arms[BASELINE].epochs == arms["inputs in [0, 1]"].epochs == 5
    assert {s.epochs for s in plan.within_budget(plan.arms(BASE, MLP), 0.01).values()} == {0.125}


def test_a_data_set_that_is_not_there_is_left_out_aloud(monkeypatch, capsys):
    def missing(spec):
        if spec.data == "fashion_mnist":
            raise plan.DataUnavailable("no files")

    monkeypatch.setattr(plan, "arrays", missing)
    found = plan.settings(["mnist", "fashion_mnist"])
    assert found == [Setting(n, "MNIST", s) for n in ("MLP", "ConvNet") for s in ("constant", "cosine to zero")]
    assert "Fashion-MNIST is left out: no files" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_counted_work_of_a_plain_step_is_torchs_count(model):
    spec = BASE.but(rule=None, model=model)
    network, x = build(spec, 784), torch.randn(spec.batch_size, 784)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(x), torch.zeros(spec.batch_size, dtype=torch.long)).backward()
    assert flops.experiment(spec).total == counter.get_total_flops()


def test_counted_work_orders_the_arms():
    for setting in (MLP, CONV):
        work = {name: plan.work_of_epoch(spec) for name, spec in plan.arms(BASE, setting).items()}
        assert len({work[name] for name in (BASELINE, *CONTROLS)}) == 1
        assert work[BASELINE] < work["kappa, deeper layers"] < work["kappa, every layer"] < work["2024 rule, demeaned"]


def test_costs_cover_every_arm_and_are_relative_to_the_baseline():
    arms = {n: s for n, s in plan.arms(BASE, MLP).items() if n in (BASELINE, "BatchNorm", "kappa, every layer")}
    cost = plan.costs(arms, batches=2, repeats=1, threads=1)
    assert list(cost.index) == list(arms)
    assert cost.loc[BASELINE, ["of baseline", "GFLOP of baseline"]].tolist() == [1, 1]
    assert (cost["seconds"] > 0).all()
    assert cost.loc[BASELINE, "seconds before"] == 0
    assert cost.loc[BASELINE, "run of baseline's"] == 1


def test_a_convnet_demeaned_in_every_layer_subtracts_what_batchnorm_subtracts():
    """The slow reference: BatchNorm without its division, in training and in evaluation."""
    spec = plan.arms(BASE, CONV)["demeaned, every layer"]
    model, x = build(spec, 784), torch.randn(32, 784, generator=torch.Generator().manual_seed(0))
    entering = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda _, args, name=name: entering.update({name: args[0]}))
    model(x)
    means = [h.mean([0, *range(2, h.dim())]) for h in entering.values()]
    assert len(means) == 4
    assert all(mean.abs().max() < 1e-5 for mean in means[1:])
    assert means[0].abs() > 1e-5  # the images are demeaned once, by pixel, before
    demean = next(layer for layer in model if type(layer).__name__ == "Demean")
    h = torch.randn(64, 16, 5, 5, generator=torch.Generator().manual_seed(1)) + 3
    norm = nn.BatchNorm2d(16, affine=False, momentum=demean.momentum)
    norm.running_mean.copy_(demean.running_mean)
    demean(h), norm(h)
    torch.testing.assert_close(demean.running_mean, norm.running_mean)
    torch.testing.assert_close(demean.eval()(h), h - norm.running_mean.view(-1, 1, 1))


# --------------------------------------------------------------------------------------------------- what was run


def test_rates_and_the_named_arm_are_chosen_before_any_test_set_is_read(asked):
    found = compared()
    splits = [spec.split for spec in asked]
    first = splits.index("both")
    assert set(splits[:first]) == {"validation"}
    assert set(splits[first:]) == {"both"}
    assert {s.seed for s in asked[:first]} == {100, 101}
    assert {s.seed for s in asked[first:]} == {0, 1, 2, 3}
    on_validation = found.tries[found.tries["chosen"]].set_index("arm")["test_accuracy"]
    assert found.ours == on_validation[list(OURS)].idxmax() == "kappa, deeper layers"
    assert found.endings("equal seconds")[list(OURS)].mean().idxmax() == "kappa, every layer"
    for budget in BUDGETS:
        for record in found.records[budget]:
            assert [("test_accuracy" in row) for row in record["epochs"]].count(True) == 1


def test_both_budgets_have_every_control_and_the_named_arm(asked):
    found = compared()
    assert set(found.best["equal seconds"]) == set(plan.ARMS)
    assert set(found.best["equal epochs"]) == {BASELINE, *CONTROLS, found.ours}
    assert {spec.epochs for spec in found.best["equal epochs"].values()} == {4}
    seconds = found.best["equal seconds"]
    assert {n: s.epochs for n, s in seconds.items()} == {
        n: s.epochs for n, s in plan.within_budget(plan.arms(BASE, MLP), 4).items()
    }
    for name, spec in found.best["equal epochs"].items():  # the same rates in both
        assert (spec.lr, spec.decor_lr) == (seconds[name].lr, seconds[name].decor_lr)
    choices = comparison.choices([found]).set_index("arm")
    assert choices["named"].to_dict() == {name: name == found.ours for name in plan.ARMS}
    assert (choices["tries"] >= 9 + 4 + 2 + 1).all()
    assert math.isnan(choices.loc["BatchNorm", "decor_lr"])
    endings = comparison.endings([found])
    assert endings["where"].value_counts().to_dict() == {f"{MLP}, {BUDGETS[0]}": 8 * 4, f"{MLP}, {BUDGETS[1]}": 5 * 4}


def test_seeds_of_tries_are_refused_for_the_comparison(asked):
    these = plan.arms(BASE, MLP)
    grids = {MLP: plan.rates(these, LR, DECOR_LR)}
    with pytest.raises(ValueError, match=r"seeds \[101\] are of the tries and of the comparison"):
        comparison.compare({MLP: these}, grids, [100, 101], [101, 102])
    longer = these | {BASELINE: these[BASELINE].but(epochs=5)}
    with pytest.raises(ValueError, match=r"arms have \[4, 5\] epochs"):
        comparison.compare({MLP: longer}, grids, [100, 101], [0, 1])
    assert asked == []


def test_settings_compared_at_once_are_those_compared_one_by_one(asked):
    annealed = Setting("MLP", "MNIST", "cosine to zero")
    these = {setting: plan.arms(BASE, setting) for setting in (MLP, annealed)}
    grids = {setting: plan.rates(own, LR, DECOR_LR) for setting, own in these.items()}
    both = comparison.compare(these, grids, [100, 101], range(4))
    once = len(asked)
    apart = [compared(setting) for setting in these]
    assert once == len(asked) - once  # as many runs, no more
    for together, alone in zip(both, apart, strict=True):
        assert (together.setting, together.ours, together.best) == (alone.setting, alone.ours, alone.best)
        pd.testing.assert_frame_equal(together.tries, alone.tries)
        assert together.records == alone.records
        for budget in BUDGETS:
            pd.testing.assert_frame_equal(together.tables[budget], alone.tables[budget])


# ------------------------------------------------------------------------------------------------ levels and rows


def slow_passed(curve, level):
    """By hand: three in a row, then the crossing of the line between the two means around it."""
    a, e = curve["accuracy"].tolist(), curve["epoch"].tolist()
    before = None
    for k in range(2, len(a)):
        mean = (a[k] + a[k - 1] + a[k - 2]) / 3
        if mean > level:
            return math.nan if before is None else e[k - 1] + (e[k] - e[k - 1]) * (level - before) / (mean - before)
        before = mean
    return math.inf


def test_a_level_is_passed_by_the_mean_of_three_as_counted_by_hand():
    curve = pd.DataFrame({"epoch": [0.25, 0.5, 0.75, 1, 1.25], "accuracy": [0.97, 0.976, 0.979, 0.981, 0.983]})
    curve["seconds"] = 0.3 + 2 * curve["epoch"]
    epochs, seconds = rows.passed(curve, 0.978)
    assert epochs == pytest.approx(0.75 + 0.25 * 0.3 / (11 / 30))
    assert seconds == pytest.approx(0.3 + 2 * epochs)
    assert all(map(math.isnan, rows.passed(curve, 0.97)))  # the first mean that there is: since when, it does not say
    ended = pd.concat([curve, pd.DataFrame({"epoch": [1.3], "accuracy": [0.999], "seconds": [2.9]})], ignore_index=True)
    assert rows.passed(ended, 0.9829) == (math.inf, math.inf)  # that a run ends soon after a measurement, is no help
    assert rows.passed(curve, 0.983) == (math.inf, math.inf)
    spike = curve.assign(accuracy=[0.9, 0.9, 0.99, 0.9, 0.9])  # one lucky measurement passes nothing
    assert rows.passed(spike, 0.95) == (math.inf, math.inf)
    assert rows.passed(curve[:2], 0.5) == (math.inf, math.inf)  # too short for three


def test_passing_levels_is_the_slow_reference():
    draw = random.Random(0)
    for _ in range(200):
        accuracy = [0.9 + 0.05 * k / 12 + draw.gauss(0, 0.01) for k in range(draw.randint(1, 14))]
        curve = pd.DataFrame({"epoch": [0.5 * (k + 1) for k in range(len(accuracy))], "accuracy": accuracy})
        level = draw.uniform(0.9, 0.96)
        assert rows.passed(curve.assign(seconds=curve["epoch"]), level)[0] == pytest.approx(
            slow_passed(curve, level), nan_ok=True
        )


def test_accuracy_rows_are_the_named_arm_minus_each_control_by_seed(asked):
    found = compared()
    made = rows.accuracies(found)
    assert [(r.budget, r.control) for r in made] == [(b, c) for b in BUDGETS for c in CONTROLS]
    for row in made:
        wide = found.endings(row.budget)
        assert row.effect == paired(wide[found.ours].tolist(), wide[row.control].tolist())
        assert row.missing == (0, 0)
        assert row.key == f"MLP, MNIST, constant, {row.budget}: minus {row.control}"


def test_a_diverged_run_is_counted_and_its_row_decides_nothing(asked):
    found = compared()
    table = found.tables["equal epochs"]
    table.loc[(table["arm"] == found.ours) & (table["seed"] == 2), "test_accuracy"] = math.nan
    made = [row for row in rows.accuracies(found) if row.budget == "equal epochs"]
    assert {row.missing for row in made} == {(1, 0)}
    assert {row.effect.n for row in made} == {3}
    told = rows.table(made, MARGIN, FACTOR)
    assert set(told["outcome"]) == {"undecided"}
    assert set(told["left out"]) == {1}


def test_times_are_ratios_of_the_runs_of_their_budget(asked):
    found = compared()
    cost, levels = cost_of(found), {"MNIST": (0.965, 0.97)}
    made = rows.times(found, cost, levels)
    assert [(r.measure, r.budget, r.level, r.control) for r in made] == [
        (m, b, level, c) for m, b in rows.MEASURES.items() for level in levels["MNIST"] for c in CONTROLS
    ]
    one = next(r for r in made if (r.measure, r.level, r.control) == ("seconds", 0.965, "BatchNorm"))
    curves = comparison.curves(found, cost, "equal seconds")
    logs = []
    for seed in range(4):
        taken = {}
        for arm in (found.ours, "BatchNorm"):
            run = curves[(curves["arm"] == arm) & (curves["seed"] == seed)]
            epochs = slow_passed(run.reset_index(), 0.965)
            taken[arm] = cost.loc[arm, "seconds before"] + epochs * cost.loc[arm, "seconds"]
        logs.append(math.log(taken[found.ours] / taken["BatchNorm"]))
    assert one.effect.estimate == pytest.approx(sum(logs) / 4)


def test_runs_that_never_get_there_are_counted_and_said(asked):
    found = compared(left_out=["kappa, every layer"])
    cost = cost_of(found)
    high = {"MNIST": (0.97, 0.9795, 0.99)}
    told = rows.table(rows.times(found, cost, high), MARGIN, FACTOR)
    told = told[(told["measure"] == "epochs")].set_index(["level", "control"])
    alone = told.loc[("98.0%", "inputs in [0, 1]")]
    assert alone["outcome"] == "only R gets there"
    assert (alone["arm never"], alone["control never"], alone["of"]) == (0, 4, 4)
    assert pd.isna(alone["estimate"])
    assert set(told.loc["99.0%", "outcome"]) == {"neither gets there"}
    assert told.loc[("97.0%", "BatchNorm"), "arm never"] == 0
    swapped = [
        rows.Row(**{**{f.name: getattr(r, f.name) for f in fields(r)}, "missing": r.missing[::-1]})
        for r in rows.times(found, cost, high)
        if r.level == 0.9795 and r.control == "inputs in [0, 1]"
    ]
    assert set(rows.table(swapped, MARGIN, FACTOR)["outcome"]) == {"only the control gets there"}


def test_the_table_is_one_family_and_tells_ratios(asked):
    found = compared()
    made = rows.times(found, cost_of(found), {"MNIST": (0.965,)})
    told = rows.table(made, MARGIN, FACTOR)
    for row, line in zip(made, told.to_dict("records"), strict=True):
        wide = simultaneous(row.effect, len(made))
        assert (line["estimate"], line["low"], line["high"]) == pytest.approx(
            tuple(math.exp(x) for x in (wide.estimate, wide.low, wide.high))
        )
        inside = line["low"] > 1 / FACTOR and line["high"] < FACTOR
        assert (line["outcome"] == "refuted") == inside
        assert (line["outcome"] == "harmful") == (line["low"] > FACTOR)
        if line["high"] < 1 / FACTOR:
            assert line["outcome"] == "supported"
    accuracies = rows.accuracies(found)
    told = rows.table(accuracies, MARGIN, FACTOR).set_index("comparison")
    for row in accuracies:
        assert told.loc[row.key, "low"] == pytest.approx(simultaneous(row.effect, len(accuracies)).low)
    assert rows.least(accuracies).control == "BatchNorm"
    assert rows.most(accuracies).control == "inputs in [0, 1]"
    assert rows.least(made).effect.estimate == max(r.effect.estimate for r in made)
    assert rows.least([]) is rows.most([]) is None


# ------------------------------------------------------------------------------------------------ words, figures


def test_the_answer_tells_the_least_favourable_first_and_every_control(asked):
    founds = [compared(), compared(CONV)]
    accuracies = [r for f in founds for r in rows.accuracies(f)]
    times = [r for f in founds for r in rows.times(f, cost_of(f), {"MNIST": (0.965, 0.999), "Fashion-MNIST": (0.999,)})]
    scales = {"MLP": sentences.scale(BASE), "ConvNet": sentences.scale(BASE.but(train_size=0, epochs=1))}
    assert scales["MLP"] == "2,048 images, 4 epochs of plain backpropagation"
    assert scales["ConvNet"] == "50,000 images, 1 epoch of plain backpropagation"
    protocol, to_levels = (rows.table(these, MARGIN, FACTOR) for these in (accuracies, times))
    said = sentences.answer(protocol, to_levels, scales)
    worst = rows.least(accuracies)
    assert said[0].startswith(f"Least favourable: {worst.setting.network} on {worst.setting.data}")
    assert f"{100 * worst.effect.estimate:+.2f} points" in said[0]
    assert {line.split(":")[0] for line in said[1:4]} == {f"Over {control}" for control in CONTROLS}
    assert said[4].startswith("Most favourable: ")
    assert "MLP on MNIST, rate constant, seconds to 96.5%:" in " ".join(said)
    assert "of BatchNorm's (n = " in " ".join(said)
    assert "ConvNet on Fashion-MNIST, rate cosine to zero: no two pairs of runs pass 99.9%" in " ".join(said)
    nothing = protocol.assign(estimate=None)
    assert sentences.answer(nothing, to_levels, scales) == [
        "Nothing can be said: every pair of runs has one that diverged."
    ]

    claims = {v.hypothesis: v for v in sentences.verdicts(accuracies, times, MARGIN, FACTOR, scales)}
    assert list(claims) == [
        *("gain in accuracy, MLP, constant", "gain in time, MLP, constant"),
        "gain in accuracy, ConvNet, cosine to zero",  # no level is passed: nothing is claimed about its time
    ]
    mlp = [r for r in accuracies if r.setting == MLP]
    accuracy, time = list(claims.values())[:2]
    assert accuracy.estimate == min(r.effect.estimate for r in mlp)
    assert accuracy.control.endswith("least favourable of 6")
    assert (accuracy.margin, time.margin) == (MARGIN, math.log(FACTOR))
    seconds = [r for r in times if r.setting == MLP and r.measure == "seconds" and r.level == 0.965]
    assert time.estimate == max(r.effect.estimate for r in seconds)
    assert f"{math.exp(time.estimate):.3g} of the seconds" in str(time)
    assert "0.8 of each control's seconds to 96.5%" in time.claim
    assert all(row.verdict(MARGIN, FACTOR).as_dict().keys() == asdict(time).keys() for row in seconds)


def test_figures_have_one_colour_for_each_arm_and_count_who_never_gets_there(asked):
    found = compared(left_out=["kappa, every layer"])
    cost = cost_of(found)
    protocol = rows.table(rows.accuracies(found), MARGIN, FACTOR)
    times = rows.table(rows.times(found, cost, {"MNIST": (0.9795,)}), MARGIN, FACTOR)
    styles = figures.styles()
    assert set(styles) == set(plan.ARMS)
    assert len({style["color"] for style in styles.values()}) == len(plan.ARMS)
    with plt.rc_context():
        use_style()
        curves = comparison.curves(found, cost, "equal seconds")
        fig = figures.learning({"MLP": curves, "again": curves}, "seconds", "a finding")
        assert {text.get_text() for text in fig.legends[0].get_texts()} == set(found.best["equal seconds"])
        drawn = {line.get_label(): line.get_color() for line in fig.axes[0].lines if line.get_label() in styles}
        assert drawn == {arm: styles[arm]["color"] for arm in drawn}
        assert {"BatchNorm", found.ours} <= set(drawn)  # in one panel
        fig = figures.differences(protocol, MARGIN, "a finding")
        assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [f"MLP, MNIST\nconstant\n'{found.ours}'"]
        assert len(fig.axes[0].containers) == len(protocol)
        fig = figures.ratios(times[times["measure"] == "seconds"], FACTOR, "a finding")
        words = [text.get_text() for text in fig.axes[0].texts]
        assert "with R 0, inputs in [0, 1] 4 of 4 never" in words or "with R 4, inputs in [0, 1] 4 of 4 never" in words
        fig.canvas.draw()
    plt.close("all")
