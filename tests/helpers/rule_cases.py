"""Every learning rule with its published equation, and the checks that hold it to it. A new rule is a row of CASES."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import reference
import torch
from problems import D, distance, moments, normal, stream

from decorlib.rules import maps, rules, variants, whitening
from decorlib.rules.rules import Rule

TARGETS = torch.linspace(0.5, 2.0, D, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """One row: a rule, its literal step (R, x, lr) -> R_new, its loss (y, x), and what it claims.

    Args:
        equivariant: what happens to y does not depend on how x is mixed.
        permutable: permuting the features permutes R.
        scales: x -> a x from R0 = I / a gives the same states.
        whitens: the only fixed point is X = level * I.
        batches: below and above D; one entry where the rule is not defined below.
    """

    name: str
    rule: Rule
    step: Callable
    loss: Callable
    lr: float = 0.05
    equivariant: bool = True
    permutable: bool = True
    scales: bool = True
    whitens: float | None = None
    batches: tuple[int, ...] = (4, 16)


def notebook_case(name, equivariant=True, permutable=True, **options):
    given = {"t": options.get("variance"), "eta": options.get("eta", 1.0)}
    return Case(
        name,
        rules.NotebookRule(**options),
        partial(reference.notebook_step, **given),
        partial(reference.notebook_loss, t=given["t"]),
        equivariant=equivariant,
        permutable=permutable,
        scales=equivariant,
    )


def kappa_case(name, kind, literal, k, t=1.0, constants="standard", pairs=1.0, **claims):
    rule = kind(kappa=k, variance=t, constants=constants)
    step = partial(literal, k=k, t=t, constants=constants)
    loss = partial(reference.kappa_loss, k=k, t=t, constants=constants, pairs=pairs)
    return Case(name, rule, step, loss, **claims)


def exact_case(kind, **claims):
    return Case(
        f"exact {kind}",
        whitening.ExactWhitening(kind=kind, shrinkage=0.1),
        partial(reference.exact_step, kind=kind, shrinkage=0.1),
        reference.whitening_loss,
        lr=0.5,
        equivariant=False,
        **claims,
    )


columns = {"equivariant": False, "whitens": 1.0}
CASES = [
    notebook_case("notebook"),
    notebook_case("notebook, variance 1", variance=1.0),
    notebook_case("notebook, variance 2, eta 0.5", variance=2.0, eta=0.5),
    notebook_case("notebook, per feature", variance=TARGETS, permutable=False),
    notebook_case("notebook, input", variance="input", equivariant=False),
    Case("plain", rules.PlainDecorrelation(), reference.copi_step, reference.covariance_loss),
    kappa_case("kappa 0.3", rules.KappaRule, reference.kappa_step, 0.3, whitens=1.0),
    kappa_case("kappa 0.5, variance 2", rules.KappaRule, reference.kappa_step, 0.5, 2.0, whitens=2.0),
    kappa_case("kappa 0", rules.KappaRule, reference.kappa_step, 0.0),
    kappa_case("kappa normalized", rules.KappaRule, reference.kappa_step, 0.3, 1.0, "normalized", whitens=1.0),
    kappa_case("columns", variants.ColumnScaledKappaRule, reference.column_kappa_step, 0.3, **columns),
    kappa_case(
        "columns normalized",
        variants.ColumnScaledKappaRule,
        reference.column_kappa_step,
        0.1,
        1.0,
        "normalized",
        **columns,
    ),
    kappa_case(
        "triangular",
        variants.TriangularRule,
        reference.triangular_step,
        0.4,
        pairs=0.5,
        permutable=False,
        whitens=1.0,
    ),
    kappa_case(
        "triangular normalized",
        variants.TriangularRule,
        reference.triangular_step,
        0.3,
        1.0,
        "normalized",
        0.5,
        permutable=False,
        whitens=1.0,
    ),
    Case("whitening", rules.WhiteningRule(), reference.whitening_step, reference.whitening_loss, whitens=1.0),
    Case(
        "whitening, variance 2",
        rules.WhiteningRule(variance=2.0),
        partial(reference.whitening_step, t=2.0),
        partial(reference.whitening_loss, t=2.0),
        whitens=2.0,
    ),
    Case(
        "adaptive gain",
        maps.AdaptiveGainRule(),
        reference.adaptive_gain_step,
        reference.covariance_loss,
        equivariant=False,
        scales=False,
    ),
    Case(
        "foldiak",
        maps.FoldiakRule(),
        reference.foldiak_step,
        reference.covariance_loss,
        equivariant=False,
        scales=False,
    ),
    exact_case("zca"),
    exact_case("pca", permutable=False, batches=(16,)),  # below D its null directions have no order
    exact_case("cholesky", permutable=False),
]


def start(features=D):
    """An R that is neither diagonal nor symmetric: from R = I several published bugs cannot be seen."""
    return torch.eye(features, dtype=torch.float64) + 0.1 * normal(features, features, seed=5)


def measured(case, R, x, dense=None):
    """Moments in either form; where a rule needs the samples, dense ones get the gain as if it had been pooled."""
    if not (case.rule.needs_rate and case.rule.reads):
        return moments(R, x, dense)
    factored = moments(R, x, dense=False)
    return replace(moments(R, x, dense=True), gain_mean=factored.gain()) if dense else factored


# ---------------------------------------------------------------------- checks: each holds for every case of CASES


def check_literal_equation(case, batch, steps=50):
    """Our rule, stepped beside the literal equation on the same batches."""
    ours = literal = start()
    for x in stream(batch, steps):
        ours = ours - case.lr * case.rule.direction(measured(case, ours, x), ours, case.lr)
        literal = case.step(literal, x, case.lr)
        assert distance(ours, literal) <= 1e-12 * max(1.0, float(literal.abs().max()))
    assert distance(ours, start()) > 0.05, "R hardly moved: the comparison would show nothing"


def check_step_in_place(case, batch, scale=0.7):
    """``step_`` is the step that plain SGD would take with the direction as gradient, times ``scale``."""
    R, x = start(), stream(batch, 1)[0]
    m = measured(case, R, x)
    expected = R - case.lr * scale * case.rule.direction(m, R, case.lr)
    stepped = R.clone()
    case.rule.step_(m, stepped, case.lr, scale)
    assert distance(stepped, expected) < 1e-13
    assert distance(stepped, R) > 1e-4


def check_loss(case, batch):
    R = start()
    for x in stream(batch, 3):
        value, expected = case.rule.loss(measured(case, R, x)), case.loss(x @ R.T, x)
        assert float(value) == pytest.approx(float(expected), rel=1e-12)
        assert float(expected) > 1e-3
