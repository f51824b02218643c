"""The suite can fail: each bug that this field has published, and some that are easy to make, turns a check red.

Every row plants one bug in the library and names the checks that must notice it. The same checks pass without the bug.
"""

import argparse
import importlib
from dataclasses import replace

import pytest
import reference
import torch
from moment_checks import check_against_samples
from problems import D, distance, normal, stream
from rule_cases import CASES, check_literal_equation, check_loss, check_step_in_place

import decorlib.layers.decorrelation
import decorlib.layers.models
import decorlib.optim
import decorlib.rules.base
import decorlib.rules.moments
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear
from decorlib.layers.step import PreparedStep
from decorlib.rules.moments import Moments
from decorlib.rules.rules import KappaRule, PlainDecorrelation, RowRule, SeedRule
from decorlib.rules.variants import TriangularRule

the_call = importlib.import_module("decorlib.training.call_2024")
trainer = importlib.import_module("decorlib.training.train")  # in the package, the name is the function's

# -------------------------------------------------------------------------------------------------------------- checks

CASE = {case.name: case for case in CASES}


def literal(name, batch):
    return lambda: check_literal_equation(CASE[name], batch)


def loss(name, batch):
    return lambda: check_loss(CASE[name], batch)


def in_place(name, batch):
    return lambda: check_step_in_place(CASE[name], batch)


def samples(batch, dense):
    return lambda: check_against_samples(batch, D, dense)


def problem():
    """A small regression: 3 batches, and the layer that is to learn it."""
    batches = [(x, x @ normal(2, D, seed=1).T + 1) for x in stream(8, 3)]
    torch.manual_seed(0)
    return batches, DecorLinear(D, 2, variance=1.0, dtype=torch.float64)


def check_training(separate=True, epochs=3, lr=0.02, rate=0.05):
    """The trainer beside the 2024 notebook's loop written out: R, weights and reported losses, by either step."""
    batches, model = problem()
    W, b = model.weight.detach().clone(), model.bias.detach().clone()
    squared = torch.nn.MSELoss()
    if separate:
        args = argparse.Namespace(lr=lr, eta=rate, epochs=epochs)
        history = the_call.decor_train(args, model, squared, batches, "cpu", verbose=False, allow_no_op=True)
    else:
        history = trainer.train(
            model,
            squared,
            batches,
            epochs=epochs,
            optimizer=torch.optim.Adam(decorlib.layers.models.bp_parameters(model), lr=lr),
            decor_optimizer=torch.optim.SGD(decorlib.layers.models.decor_parameters(model), lr=rate),
            measure_first=True,
            allow_no_op=True,
        )
    R, W, b, rows = reference.train_literally(W, b, batches, epochs, lr, rate, t=1.0)
    assert distance(model.decorrelation.weight, R) < 1e-10
    assert distance(model.weight, W) < 1e-10
    assert distance(model.bias, b) < 1e-10
    for epoch, (task, decor) in zip(history, rows, strict=True):
        assert (epoch.loss, epoch.decor_loss) == pytest.approx((task, decor), rel=1e-10)


def training_in_place():
    check_training(separate=False)


def check_every_layer_learns():
    batches, model = problem()
    model = torch.nn.Sequential(model, DecorLinear(2, 2, variance=1.0, dtype=torch.float64))
    args = argparse.Namespace(lr=0.02, eta=0.05, epochs=1)
    the_call.decor_train(args, model, torch.nn.MSELoss(), batches, "cpu", verbose=False, allow_no_op=True)
    for layer in model:
        R = layer.decorrelation.weight
        assert distance(R, torch.eye(len(R), dtype=R.dtype)) > 1e-3


# --------------------------------------------------------------------------------------------------------- planted bugs


def columns_instead_of_rows(patch):
    def as_columns(c, R):
        return c.to(R.dtype).unsqueeze(-2) if isinstance(c, torch.Tensor) and c.dim() else c

    patch.setattr(decorlib.rules.base, "as_rows", as_columns)


def mean_over_n_minus_1(patch):
    true = Moments.of.__func__

    def of(cls, y, x=None, dense=None, **options):
        m = true(cls, y, x, dense, **options)
        f = m.count / (m.count - 1)
        scaled = {"matrix": m.matrix * f} if m.samples is None else {"samples": m.samples * f**0.5}
        return replace(m, variance=m.variance * f, **scaled)

    patch.setattr(Moments, "of", classmethod(of))


def R_X_instead_of_X_R(patch):
    patch.setattr(Moments, "times", lambda self, R: R @ self.dense())


def diagonal_left_in_C(patch):
    patch.setattr(PlainDecorrelation, "rows", lambda self, m: (0.0, 1.0))
    patch.setattr(KappaRule, "rows", lambda self, m: (self.weights(D)[1] * self._excess(m), self.weights(D)[0]))


def diagonal_left_in_the_triangle(patch):
    def direction(self, m, R, lr=None):
        c, k = self.weights(D)
        return (c * m.dense().tril() + k * torch.diag(self._excess(m))) @ R

    patch.setattr(TriangularRule, "direction", direction)


def diagonal_left_in_the_loss(patch):
    patch.setattr(Moments, "squared_off_diagonal", Moments.squared_norm)


def target_left_out_of_the_loss(patch):
    patch.setattr(SeedRule, "loss", lambda self, m: m.squared_norm() / m.variance.shape[-1] ** 2)


def one_variance_for_all(patch):
    patch.setattr(KappaRule, "_excess", lambda self, m: (m.variance - self.variance).mean().expand_as(m.variance))


def gram_divided_once(patch):
    true = Moments.squared_norm
    patch.setattr(Moments, "squared_norm", lambda self: true(self) * (1 if self.samples is None else self.count))


def centred_moments(patch):
    true = Moments.of.__func__
    patch.setattr(
        Moments, "of", classmethod(lambda cls, y, *given, **options: true(cls, y - y.mean(-2), *given, **options))
    )


def rate_left_out(patch):
    true = RowRule.step_
    patch.setattr(RowRule, "step_", lambda self, m, R, lr, scale=1.0: true(self, m, R, 1.0, scale))


def bound_left_out(patch):
    true = RowRule.step_
    patch.setattr(RowRule, "step_", lambda self, m, R, lr, scale=1.0: true(self, m, R, lr))


def update_skipped(patch):
    """The update reports a loss and sets no gradient: what happened in the 2024 notebook's third run."""
    true = PreparedStep.commit_gradient

    def commit(self):
        loss = true(self)
        self.layer.weight.grad = None
        return loss

    patch.setattr(PreparedStep, "commit_gradient", commit)
    patch.setattr(PreparedStep, "commit_in_place", commit)


def one_layer_skipped(patch):
    true = decorlib.optim.as_gradients

    def as_gradients(steps):
        true(steps[:1])
        for step in steps[1:]:
            step.layer.forget()

    patch.setattr(decorlib.optim, "as_gradients", as_gradients)


def stale_states(patch):
    """Every update learns from the first batch that was ever seen."""
    true = Decorrelation.remember_samples

    def remember_samples(self, x, *others):
        self.__dict__.setdefault("first", (x, *others))
        true(self, *self.__dict__["first"])

    patch.setattr(Decorrelation, "remember_samples", remember_samples)


def R_stepped_by_the_weights_kind_of_optimizer(patch):
    class AdamInDisguise(torch.optim.SGD):
        """Each entry is divided by the size of its gradient, as Adam does at its first step."""

        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data -= self.param_groups[0]["lr"] * p.grad / (p.grad.abs() + 1e-8)

    patch.setattr(torch.optim, "SGD", AdamInDisguise)


def R_owned_by_the_weights_optimizer(patch):
    """Adam over all parameters, which finds the last update's gradient of R: as if update() came before the step."""

    class Adam(torch.optim.Adam):
        def zero_grad(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad = None if p.requires_grad else p.grad

    patch.setattr(torch.optim, "Adam", Adam)
    patch.setattr(the_call, "bp_parameters", lambda model: model.parameters())
    patch.setattr(trainer, "check_ownership", lambda *optimizers: None)
    patch.setattr(decorlib.optim, "take_away_gradients", lambda parameters: None)


SEED, KAPPA = "notebook, variance 2, eta 0.5", "kappa 0.3"
PLANTED = [
    (columns_instead_of_rows, [literal(SEED, 4), literal(SEED, 16), literal(KAPPA, 4), literal(KAPPA, 16)]),
    (mean_over_n_minus_1, [literal(SEED, 4), literal(SEED, 16), literal(KAPPA, 16), loss(SEED, 16), samples(17, True)]),
    (mean_over_n_minus_1, [samples(3, False), check_training, training_in_place]),
    (centred_moments, [literal(SEED, 4), literal(KAPPA, 16), samples(17, True), check_training, training_in_place]),
    (R_X_instead_of_X_R, [literal(SEED, 4), literal(KAPPA, 16), literal("plain", 4), samples(3, False)]),
    (diagonal_left_in_C, [literal("plain", 4), literal(KAPPA, 16), literal("kappa normalized", 4)]),
    (diagonal_left_in_the_triangle, [literal("triangular", 4), literal("triangular normalized", 16)]),
    (diagonal_left_in_the_loss, [loss("plain", 4), loss(KAPPA, 16), loss("whitening", 4), samples(17, True)]),
    (target_left_out_of_the_loss, [loss("notebook, variance 1", 4), loss("notebook, input", 16), check_training]),
    (one_variance_for_all, [literal(KAPPA, 4), literal("kappa normalized", 16), literal("triangular", 4)]),
    (gram_divided_once, [loss(SEED, 4), loss(KAPPA, 4), samples(3, False)]),
    (rate_left_out, [in_place(SEED, 4), in_place(KAPPA, 16), training_in_place]),
    (bound_left_out, [in_place(SEED, 4), in_place(KAPPA, 16)]),
    (update_skipped, [check_training, training_in_place, check_every_layer_learns]),
    (one_layer_skipped, [check_every_layer_learns]),
    (stale_states, [check_training, training_in_place]),
    (R_stepped_by_the_weights_kind_of_optimizer, [check_training]),
    (R_owned_by_the_weights_optimizer, [check_training]),
]
EACH = [(bug, check) for bug, checks in PLANTED for check in checks]


@pytest.mark.parametrize(("bug", "check"), EACH, ids=[f"{bug.__name__}-{i}" for i, (bug, _) in enumerate(EACH)])
def test_a_planted_bug_turns_the_check_red(bug, check, monkeypatch):
    with monkeypatch.context() as patch:
        bug(patch)
        with pytest.raises(AssertionError):
            check()
    check()


def test_an_optimizer_that_owns_R_is_refused_before_it_can_step(monkeypatch):
    monkeypatch.setattr(the_call, "bp_parameters", lambda model: model.parameters())
    with pytest.raises(ValueError, match=r"optimizer also owns R of .*bp_parameters"):
        check_training()


@pytest.mark.parametrize("separate", [True, False])
def test_a_skipped_update_is_an_error_at_the_first_step(separate, monkeypatch):
    update_skipped(monkeypatch)
    batches, model = problem()
    before = model.weight.detach().clone()
    with pytest.raises(decorlib.SilentNoOp, match="the first step"):
        trainer.train(
            model,
            torch.nn.MSELoss(),
            batches,
            epochs=5,
            optimizer=torch.optim.SGD(decorlib.layers.models.bp_parameters(model), lr=0.1),
            decor_optimizer=torch.optim.SGD(decorlib.layers.models.decor_parameters(model), lr=0.05),
            in_place=not separate,
        )
    assert distance(model.weight, before) > 0  # one step was taken, and no more than one
