"""Every learning rule, held to its published equation. A new rule is one row of CASES in ``helpers/rule_cases.py``."""

import doctest
import inspect
import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import D, covariance, distance, moments, normal, run, samples_of, step, stream
from rule_cases import CASES, check_literal_equation, check_loss, check_step_in_place, measured, start

import decorlib
from decorlib.layers.decorrelation import Decorrelation
from decorlib.rules import base, maps, rules, variants, whitening
from decorlib.rules.catalogue import RULES, make_rule
from decorlib.rules.moments import Moments


def name_of(case):
    return case.name


each_case = pytest.mark.parametrize("case", CASES, ids=name_of)


# ------------------------------------------------------------------------------------------------------- each rule


@each_case
def test_fifty_steps_beside_the_literal_equation(case):
    for batch in case.batches:
        check_literal_equation(case, batch)


@each_case
def test_a_step_in_place_is_the_step_of_sgd(case):
    for batch in case.batches:
        check_step_in_place(case, batch)


@each_case
def test_a_step_in_place_by_group(case):
    for batch in case.batches:
        x = torch.stack(stream(batch, 6)).reshape(2, 3, batch, D)
        R = torch.stack([start() * s for s in (1, 0.9, 0.8, 1.1, 1.2, 0.7)]).reshape(2, 3, D, D)
        m, scale = measured(case, R, x), torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).double()
        expected = R - case.lr * scale[..., None, None] * case.rule.direction(m, R, case.lr)
        case.rule.step_(m, R, case.lr, scale)
        assert distance(R, expected) < 1e-13


@each_case
def test_loss_is_its_definition(case):
    for batch in case.batches:
        check_loss(case, batch)


@each_case
def test_factored_and_dense_moments_give_the_same(case):
    for batch in (*case.batches, D) if len(case.batches) > 1 else case.batches:
        x, R = stream(batch, 1)[0], start()
        factored, dense = measured(case, R, x, dense=False), measured(case, R, x, dense=True)
        assert distance(case.rule.direction(factored, R, case.lr), case.rule.direction(dense, R, case.lr)) < 1e-13
        assert float(case.rule.loss(factored)) == pytest.approx(float(case.rule.loss(dense)), rel=1e-12)
        assert float(case.rule.sharpness(factored)) == pytest.approx(float(case.rule.sharpness(dense)), rel=1e-10)


@each_case
def test_direction_and_loss_change_nothing_they_are_given(case):
    for dense in (False, True):
        R, x = start(), stream(16, 1)[0]
        m = measured(case, R, x, dense)
        tensors = {k: v for k, v in vars(m).items() if isinstance(v, torch.Tensor)} | {"R": R}
        before = {k: v.clone() for k, v in tensors.items()}
        first = case.rule.direction(m, R, case.lr)
        case.rule.loss(m), case.rule.sharpness(m)
        for k, v in tensors.items():
            assert torch.equal(v, before[k]), k
        assert torch.equal(case.rule.direction(m, R, case.lr), first)
        assert first.data_ptr() not in {v.data_ptr() for v in tensors.values()}


@each_case
def test_leading_group_dimensions_equal_a_loop(case):
    batch = case.batches[-1]
    x = torch.stack(stream(batch, 6)).reshape(2, 3, batch, D)
    R = torch.stack([start() * s for s in (1, 0.9, 0.8, 1.1, 1.2, 0.7)]).reshape(2, 3, D, D)
    m = measured(case, R, x)
    direction, loss, sharpness = case.rule.direction(m, R, case.lr), case.rule.loss(m), case.rule.sharpness(m)
    assert direction.shape == R.shape
    assert loss.shape == sharpness.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = measured(case, R[i, j], x[i, j])
            assert distance(direction[i, j], case.rule.direction(one, R[i, j], case.lr)) < 1e-12
            assert float(loss[i, j]) == pytest.approx(float(case.rule.loss(one)), rel=1e-12)
            assert float(sharpness[i, j]) == pytest.approx(float(case.rule.sharpness(one)), rel=1e-9)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_of_R_is_kept(case, dtype):
    R, x = start().to(dtype), stream(16, 1)[0].to(dtype)
    m = measured(case, R, x)
    assert case.rule.direction(m, R, case.lr).dtype == case.rule.loss(m).dtype == dtype


@each_case
def test_a_layer_steps_by_the_rule(case):
    """The direction reaches ``.grad`` through Decorrelation.update, which chooses the form of the moments itself."""
    layer = Decorrelation(D, rule=case.rule, dtype=torch.float64)
    layer.weight.data.copy_(start())
    x = stream(16, 1)[0]
    layer(x)
    loss = layer.update(lr=case.lr)
    assert distance(layer.weight.data - case.lr * layer.weight.grad, case.step(start(), x, case.lr)) < 1e-12
    assert float(loss) == pytest.approx(float(case.loss(x @ start().T, x)), rel=1e-12)


@each_case
def test_permuting_features_permutes_R(case):
    """The triangular rules, PCA's order and one target per feature are about the order of the features."""
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    x, R = stream(16, 1)[0], start()
    straight = step(case.rule, R, x, case.lr)
    permuted = step(case.rule, R[order][:, order], x[:, order], case.lr)
    apart = distance(permuted, straight[order][:, order])
    assert (apart < 1e-12) if case.permutable else (apart > 1e-3)


@each_case
def test_equivariance(case):
    """The best single discriminator: X does not see how x was mixed if H reads y alone and stands on the left."""
    S, P, lr = covariance(), normal(D, D, seed=11), 0.02
    x, R = samples_of(S), torch.eye(D, dtype=torch.float64)
    mixed, Q = x @ P.T, torch.linalg.inv(P)
    apart = 0.0
    for _ in range(300):
        apart = max(apart, distance(R @ S @ R.T, Q @ P @ S @ P.T @ Q.T))
        if not math.isfinite(apart) or apart > 1e3:  # without equivariance the mixed problem may blow up
            break
        R, Q = step(case.rule, R, x, lr), step(case.rule, Q, mixed, lr)
    assert (apart < 1e-12) if case.equivariant else not (apart < 1e-3)


@pytest.mark.parametrize("case", [c for c in CASES if c.whitens], ids=name_of)
def test_fixed_point_is_white(case):
    """Every variance, not their mean."""
    S = covariance()
    R = run(case.rule, samples_of(S), 0.15, 1_500 if isinstance(case.rule, variants.TriangularRule) else 800)
    X = R @ S @ R.T
    assert distance(X, case.whitens * torch.eye(D, dtype=torch.float64)) < 1e-10
    assert float(case.rule.loss(moments(R, samples_of(S)))) < 1e-14


@pytest.mark.parametrize("module", [base, rules, maps, whitening])
def test_examples_of_the_docstrings(module):
    results = doctest.testmod(module, extraglobs={"torch": torch, "Moments": Moments, "KappaRule": rules.KappaRule})
    assert results.failed == 0
    assert results.attempted > 0 or module is maps


def test_every_rule_of_the_catalogue_has_a_case():
    assert {type(case.rule) for case in CASES} == set(RULES.values())
    for name in RULES:
        assert isinstance(make_rule(name), RULES[name])
    assert make_rule("kappa", kappa=0.25).kappa == 0.25
    with pytest.raises(ValueError, match="no rule is called 'capa'; there are: notebook, plain"):
        make_rule("capa")


def test_the_rule_of_the_2024_notebook_keeps_its_old_name():
    assert decorlib.SeedRule is decorlib.NotebookRule is rules.SeedRule is RULES["notebook"]
    assert make_rule("seed", variance=1.0) == make_rule("notebook", variance=1.0) == decorlib.NotebookRule(1.0)
    assert repr(decorlib.SeedRule(1.0)) == "NotebookRule(variance=1.0, eta=1.0, dead_variance=1e-08)"


HYPERPARAMETERS = {
    "notebook": ("variance", "eta", "dead_variance"),
    "plain": (),
    "kappa": ("kappa", "variance", "constants", "dead_variance"),
    "kappa_columns": ("kappa", "variance", "constants", "dead_variance"),
    "triangular": ("kappa", "variance", "constants", "dead_variance"),
    "whitening": ("variance", "dead_variance"),
    "adaptive_gain": ("norm",),
    "foldiak": (),
    "exact": ("kind", "solver", "shrinkage", "momentum"),
}


@pytest.mark.parametrize("name", RULES)
def test_only_hyperparameters_are_arguments_and_stand_in_the_repr(name):
    """The repr names a layer in checkpoints: it holds all that tells two rules apart, no more."""
    kind = RULES[name]
    assert tuple(inspect.signature(kind).parameters) == HYPERPARAMETERS[name]
    rule = kind()
    assert repr(rule) == f"{kind.__name__}({', '.join(f'{h}={getattr(rule, h)!r}' for h in HYPERPARAMETERS[name])})"
    assert eval(repr(rule), {kind.__name__: kind}) == rule
    for constant in {n for c in kind.__mro__ for n in vars(c).get("__annotations__", {})} - {*HYPERPARAMETERS[name]}:
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{constant}'"):
            kind(**{constant: 3.0})


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([c for c in CASES if c.scales]), st.floats(0.05, 20.0))
def test_scale_equivariance(case, a):
    """x -> a x with R0 = I / a gives the same states at every step."""
    assert scaled_apart(case, a) < 1e-12


@pytest.mark.parametrize("case", [c for c in CASES if not c.scales], ids=name_of)
def test_rules_that_read_inputs_or_lengths_do_see_the_scale(case):
    assert scaled_apart(case, 2.0) > 1e-3


def scaled_apart(case, a, steps=5):
    x, R = samples_of(covariance()), torch.eye(D, dtype=torch.float64)
    scaled = R / a
    for _ in range(steps):
        R, scaled = step(case.rule, R, x, 0.05), step(case.rule, scaled, a * x, 0.05)
    return distance(x @ R.T, a * x @ scaled.T)


# ------------------------------------------------------------------------------------------------- bad hyperparameters

NAN = float("nan")
BAD = [
    (lambda: rules.NotebookRule(variance=-1.0), r"variance is -1\.0; allowed: None .*positive number"),
    (lambda: rules.NotebookRule(variance=0.0), r"variance is 0\.0"),
    (lambda: rules.NotebookRule(variance=NAN), "variance is nan"),
    (lambda: rules.NotebookRule(variance=float("inf")), "variance is inf"),
    (lambda: rules.NotebookRule(variance=True), "variance is True"),
    (lambda: rules.NotebookRule(variance="imput"), "variance is 'imput'; allowed: .*'input'"),
    (lambda: rules.NotebookRule(variance=torch.tensor([1.0, -1.0])), "positive number"),
    (lambda: rules.NotebookRule(variance=torch.tensor([1, 2])), "positive number"),
    (lambda: rules.NotebookRule(variance=torch.tensor([1.0, NAN])), "positive number"),
    (lambda: rules.NotebookRule(variance=torch.tensor([1.0, float("inf")])), "positive number"),
    (lambda: rules.NotebookRule(variance=torch.ones(2, 2)), "one dimension"),
    (lambda: rules.NotebookRule(eta=-0.5), r"eta is -0\.5; it must lie in \[0, inf"),
    (lambda: rules.NotebookRule(eta=NAN), "eta is nan"),
    (lambda: rules.NotebookRule(eta=float("inf")), "eta is inf"),
    (lambda: rules.NotebookRule(dead_variance=-1e-8), "dead_variance is -1e-08"),
    (lambda: rules.KappaRule(kappa=1.5), r"kappa is 1\.5; it must lie in \[0, 1\]"),
    (lambda: rules.KappaRule(kappa=-0.1), r"kappa is -0\.1"),
    (lambda: rules.KappaRule(kappa=NAN), "kappa is nan"),
    (lambda: rules.KappaRule(variance=-1.0), r"variance is -1\.0"),
    (lambda: rules.KappaRule(variance=None), "variance is None; this rule takes one positive number"),
    (lambda: rules.KappaRule(variance="input"), "variance is 'input'; this rule takes one positive number"),
    (lambda: rules.KappaRule(constants="standart"), "constants is 'standart'; allowed: 'standard', 'normal"),
    (lambda: variants.TriangularRule(kappa=2.0), r"kappa is 2\.0"),
    (lambda: variants.ColumnScaledKappaRule(dead_variance=-1.0), r"dead_variance is -1\.0"),
    (lambda: rules.WhiteningRule(variance=0.0), r"variance is 0\.0"),
    (lambda: maps.AdaptiveGainRule(norm="mean"), "norm is 'mean'; allowed: 'demeaned', 'raw'"),
    (lambda: whitening.ExactWhitening(kind="svd"), "kind is 'svd'; allowed: 'zca', 'pca', 'cholesky'"),
    (lambda: whitening.ExactWhitening(solver="qr"), "solver is 'qr'; allowed: 'eigh'"),
    (lambda: whitening.ExactWhitening(kind="pca", solver="newton_schulz"), "'newton_schulz' for kind='zca'"),
    (lambda: whitening.ExactWhitening(shrinkage=1.1), r"shrinkage is 1\.1; it must lie in \[0, 1\]"),
    (lambda: whitening.ExactWhitening(momentum=0.0), r"momentum is 0\.0; it must lie in \(0, 1\]"),
    (lambda: whitening.ExactWhitening(momentum=NAN), "momentum is nan"),
]


@pytest.fixture
def untyped():
    """As in use: types are not checked at run time, and the library's own messages are what a reader sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_hyperparameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@each_case
def test_every_rule_takes_many_samples_of_few_features(case):
    """No rule makes a matrix of samples by samples, which would be 320 GB here."""
    x = stream(200_000, 1)[0]
    layer = Decorrelation(D, rule=case.rule, dtype=torch.float64)
    layer.weight.data.copy_(start())
    layer(x)
    assert float(layer.step(case.lr)) == pytest.approx(float(case.loss(x @ start().T, x)), rel=1e-9)
    small = Moments.of(x @ start().T, x, gain=True)
    assert distance(layer.weight.data, start() - case.lr * case.rule.direction(small, start(), case.lr)) < 1e-12


@pytest.mark.parametrize("rule", [maps.AdaptiveGainRule(), maps.FoldiakRule()])
@pytest.mark.parametrize("lr", [None, 0.0, -0.1, NAN])
def test_rules_that_need_their_rate_say_so(rule, lr):
    y = normal(9, D)
    with pytest.raises(ValueError, match=r"update\(lr=\.\.\.\)"):
        rule.direction(Moments.of(y, y, dense=False), start(), lr)


def test_a_target_of_the_wrong_length_names_both_lengths():
    y = normal(9, D)
    rule = rules.NotebookRule(variance=torch.ones(D + 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"variance has {D + 1} .*{D} features"):
        rule.direction(Moments.of(y), start())


def test_the_gain_of_samples_that_are_zero_is_one():
    """They have no length to regain: half of them must not halve R at every step, nor all of them make it zero."""
    x = torch.randn(20, D, dtype=start().dtype, generator=torch.Generator().manual_seed(0))
    y = x @ start().T
    rule, R = maps.AdaptiveGainRule(), start()
    whole = rule.direction(Moments.of(y, x, gain=True), R, 0.1)
    zero = torch.zeros_like(x)
    half = rule.direction(Moments.of(torch.cat([y, zero]), torch.cat([x, zero]), gain=True), R, 0.1)
    # To first order in the rate half of the samples ask for half of the step.
    g = Moments.of(y, x, gain=True).gain()
    X = y.T @ y / len(y)
    expected = R * (1 - (1 + g) / 2) / 0.1 + (1 + g) / 2 * (X / 2) @ R
    torch.testing.assert_close(half, expected)
    torch.testing.assert_close(whole, R * (1 - g) / 0.1 + g * X @ R)
    assert not rule.direction(Moments.of(zero, zero, gain=True), R, 0.1).any()


def test_inputs_too_short_for_the_gain_are_refused():
    x = torch.full((20, D), 1e-6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the gain needs lengths above 1e-4.*scale the inputs up"):
        maps.AdaptiveGainRule().direction(Moments.of(x, x, gain=True), torch.eye(D, dtype=x.dtype), 0.1)
