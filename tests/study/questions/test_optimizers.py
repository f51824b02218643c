"""Who steps R, and what grows whatever the rate: the helpers of notebook 04."""

import math

import pytest
import torch

from decorlib.study.evidence.figures import use_style
from decorlib.study.evidence.stats import interval
from decorlib.study.experiments import experiment
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.optimizer import optimizers, undoing, while_learning, wiring_mistakes
from decorlib.study.questions.optimizer.optimizers import ORDERS, Order, learn_in_order


@pytest.fixture(scope="module")
def runs():
    return {order: learn_in_order(Order(order, epochs=2, train_size=320)) for order in ORDERS}


def test_in_the_seeds_order_adam_never_moves_R(runs):
    assert runs["as in 2024"]["moved_by_adam"] == 0
    assert runs["own optimizers"]["moved_by_adam"] == 0
    assert runs["as in 2024"]["moved_by_own"] > 0


def test_in_the_other_orders_adam_moves_R_further_than_its_own_optimizer(runs):
    for order in ("update before step", "gradient not cleared"):
        assert runs[order]["moved_by_adam"] > 5 * runs[order]["moved_by_own"], order


def test_with_own_optimizers_the_order_is_free(runs):
    assert runs["own optimizers"]["epochs"] == runs["as in 2024"]["epochs"]
    assert runs["own optimizers"]["final"] == runs["as in 2024"]["final"]


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match="as in 2024"):
        Order("backwards")


def test_a_run_that_blows_up_is_recorded_as_diverged():
    found = learn_in_order(Order("as in 2024", decor_lr=1.0, epochs=1, train_size=640))
    assert (found["status"], found["diverged_at"], found["final"]) == ("diverged", 1, {})


@pytest.mark.parametrize("K", [2, 5])
@pytest.mark.parametrize("lr", [1e-2, 1e-3])
def test_copies_grow_with_rate_times_steps_at_every_rate(K, lr):
    found = optimizers.copies(K, lr=lr, steps=round(8 / K / lr))
    assert found["variance"] == pytest.approx(found["settles_at"], rel=1e-3)
    assert found["growth"] == pytest.approx(found["predicted"], rel=K * lr)


def test_copies_needs_two_of_them():
    with pytest.raises(ValueError, match="K is 1"):
        optimizers.copies(1, lr=0.1, steps=10)


def test_the_turn_of_a_run():
    rows = [{"epoch": e, "decor_loss": v} for e, v in ((1, 3.0), (2, 1.0), (3, 2.0))]
    found = optimizers.turn({"status": "finished", "epochs": rows})
    assert found == {"turns in epoch": 2, "last / lowest loss": 2.0, "status": "finished"}
    assert optimizers.turn({"status": "diverged", "epochs": rows})["last / lowest loss"] == float("inf")
    assert optimizers.turn({"status": "diverged", "epochs": []})["turns in epoch"] == 0


def test_arms_are_distinct_and_differ_where_they_say():
    base = Experiment(decor_lr=1e-5, rule_options=(("variance", 1.0),))
    R, W = optimizers.arms_of_R(base), optimizers.arms_of_weights(base, ["adam", "sgd"], decor_lr=1e-4)
    assert len(set(R.values())) == 5
    assert {arm.but(decor_optimizer="sgd", decor_schedule=None) for arm in R.values()} == {base}
    assert [arm.rule for arm in W.values()] == ["notebook", None, "notebook", None]
    assert len(set(optimizers.remedies(base).values())) == len(optimizers.remedies(base))


def test_spacings_keep_rate_times_steps():
    base = Experiment(decor_lr=1e-5)
    for name, arm in optimizers.spacings(base, every=(1, 5), sizes=(16, 256)).items():
        steps = 1 / arm.batch_size / dict(arm.layer_options).get("update_every", 1)
        assert arm.decor_lr * steps == pytest.approx(1e-5 / 64), name


def test_no_wiring_mistake_is_silent():
    said = wiring_mistakes.mistakes()
    assert len(said) == 6
    silent = [name for name, answer in said.items() if answer == "nothing"]
    assert not silent
    assert said["update() edited, sets no gradient"].startswith("SilentNoOp")


def test_a_sound_wiring_says_nothing(monkeypatch):
    monkeypatch.setattr(wiring_mistakes, "_MISTAKES", {"sound": wiring_mistakes._train})
    assert wiring_mistakes.mistakes() == {"sound": "nothing"}


def test_rates_are_scaled_by_kind_and_equally_many():
    base = Experiment()
    found = optimizers.rates(
        optimizers.arms_of_R(base), optimizers.arms_of_weights(base, ["sgd"], 1e-4), [1e-5, 1e-4], [1e-3, 1e-2]
    )
    assert found["SGD"] == {"decor_lr": [1e-5, 1e-4]}
    assert found["momentum"]["decor_lr"] == pytest.approx([1e-6, 1e-5])
    assert found["sgd, plain"]["lr"] == pytest.approx([1e-2, 1e-1])


def a_run(*losses):
    return {"status": "finished", "epochs": [{"epoch": e, "decor_loss": loss} for e, loss in enumerate(losses, 1)]}


def test_doublings_count_from_the_lowest_to_the_last_finite_loss():
    assert undoing.doublings(a_run(4.0, 1.0, 8.0)) == pytest.approx(3)
    assert undoing.doublings(a_run(4.0, 2.0, 1.0)) == 0
    assert undoing.doublings(a_run(1.0, 4.0, None)) == pytest.approx(2)
    with pytest.raises(ValueError, match="no epoch with a finite loss"):
        undoing.doublings(a_run(None))


def test_undoing_takes_the_least_rate_of_each_seed_and_decides_by_the_margin():
    """'slow' rises fourfold and by a bit more or less, 'fast' 64-fold; the least of both is 'slow' in every seed."""
    runs = {("slow", 0): 4.0, ("slow", 1): 4.4, ("slow", 2): 3.6}
    runs |= {("fast", 0): 64.0, ("fast", 1): 64.0, ("fast", 2): 64.0}
    arms, seeds = zip(*runs, strict=True)
    rises = undoing.rises(arms, seeds, [a_run(2.0, 1.0, end) for end in runs.values()])
    assert rises.loc[1].tolist() == pytest.approx([math.log2(4.4), math.log2(4.4), 6])
    table = undoing.table(rises, factor=2)
    assert list(table.index) == [undoing.EVERY_RATE, "slow", "fast"]
    assert table.loc["fast", "factor"] == pytest.approx(64)
    assert table.loc[undoing.EVERY_RATE, "estimate"] == table.loc["slow", "estimate"]
    logs = [math.log2(end) for (arm, _), end in runs.items() if arm == "slow"]
    expected = interval(logs)
    assert [table.loc["slow", name] for name in ("estimate", "low", "high")] == pytest.approx(
        [expected.estimate, expected.low, expected.high]
    )
    assert set(table["outcome"]) == {"supported"}
    at_4 = undoing.table(rises, factor=4)
    assert at_4["outcome"].tolist() == ["undecided", "undecided", "supported"]


class TestWhileLearning:
    def test_arms_cover_rates_and_spacings_and_hold_everything_else(self):
        start = while_learning.base(500, 1, 1e-3)
        arms = while_learning.arms(start, [1e-3, 1e-2], [1, 5])
        assert len(arms) == 9
        assert len(set(arms.values())) == 9
        assert arms[while_learning.REST].decor_lr == 0
        learning = [spec for name, spec in arms.items() if name != while_learning.REST]
        assert {(spec.decor_lr, dict(spec.layer_options).get("update_every")) for spec in learning} == {
            (rate, every) for rate in (1e-3, 1e-2) for every in (1, 5)
        }
        assert sum(spec.preserve_function for spec in learning) == 4
        own = {"decor_lr": 0.0, "layer_options": start.layer_options, "preserve_function": False}
        same = {spec.but(**own) for spec in arms.values()}
        assert same == {start.but(decor_lr=0.0)}

    def test_arms_may_be_changed_and_then_stand_beside_those_that_are_not(self):
        start = while_learning.base(500, 1)
        bounded = {"": {}, ", bounded": {"max_step": 0.5}}
        arms = while_learning.arms(start, [1e-2], [1], changes=bounded)
        assert list(arms) == [while_learning.REST, "rate 0.01, every 1", "rate 0.01, every 1, bounded"]
        assert arms["rate 0.01, every 1, bounded"] == arms["rate 0.01, every 1"].but(max_step=0.5)

    def test_cosines_are_those_of_what_the_weights_read(self):
        """Written out: the outputs of R of the deeper layers, the inputs of the first."""
        spec = while_learning.base(200, 1, 1e-3)
        model = experiment.build(spec, 784).eval()
        with torch.no_grad():
            model[2].decorrelation.weight += 0.1 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
        x = torch.randn(300, 784, generator=torch.Generator().manual_seed(1))
        found = while_learning.cosines(model, x)
        hidden = model[1](model[0](x)).detach()
        y = hidden @ model[2].decorrelation.weight.T
        unit = y.double() / y.double().norm(dim=0)
        cosines = (unit.T @ unit)[~torch.eye(256, dtype=torch.bool)]
        assert found["cosine/hidden 1"] == pytest.approx(float(cosines.square().mean().sqrt()), rel=1e-6)
        assert list(found) == [f"cosine/{layer}" for layer in while_learning.LAYERS]

    def test_learning_lowers_the_cosine_and_rest_is_the_zero_of_the_table(self, tmp_path):
        start = while_learning.base(1280, 2, 1e-3)
        arms = while_learning.arms(start, [1e-2], [1])
        curves = while_learning.curves(arms, range(2), engine="serial", cache=tmp_path)
        assert curves.groupby(["arm", "seed"]).size().tolist() == [4] * 6
        table = while_learning.summary(curves, arms)
        assert table.loc["rate 0.01, every 1", "cosine, hidden 1"] < table.loc[while_learning.REST, "cosine, hidden 1"]
        last = curves[curves["epoch"] == 2].pivot(index="seed", columns="arm", values="test_accuracy")
        gained = (last["rate 0.01, every 1"] - last[while_learning.REST]).mean()
        assert table.loc["rate 0.01, every 1", "minus R at rest"] == pytest.approx(gained)
        assert table.loc[while_learning.REST, "n"] == 0
        use_style()
        fig, alt = while_learning.draw(curves, arms, table)
        assert len(fig.axes) == 3
        assert all(len(ax.lines) == 9 for ax in fig.axes)  # three arms: two seeds and a median each
        assert all(name in alt for name in arms)
