"""Who steps R, and what grows whatever the rate: the helpers of notebook 04."""

import pytest

from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.optimizer import optimizers, wiring_mistakes
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
