"""What the mathematics promises of the rules: fixed points, rates, edges of stability, invariances, published tables.

Data are non-exchangeable (unequal variances, no common correlation) unless a formula needs otherwise, and float64.
"""

import math
from itertools import pairwise

import pytest
import reference
import torch
from problems import D, covariance, distance, moment_of, moments, normal, off, run, samples_of, step, stream

from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.memory import NonFiniteInput
from decorlib.rules.maps import AdaptiveGainRule, FoldiakRule
from decorlib.rules.moments import Moments
from decorlib.rules.rules import KappaRule, NotebookRule, PlainDecorrelation, WhiteningRule
from decorlib.rules.variants import ColumnScaledKappaRule, TriangularRule
from decorlib.rules.whitening import cholesky, zca

EYE = torch.eye(D, dtype=torch.float64)


def random_R(seed=5):
    return EYE + 0.3 * normal(D, D, seed=seed)


def direction(rule, R, S, lr=0.01):
    return rule.direction(moments(R, samples_of(S)), R, lr)


def rotation(seed=21):
    return torch.linalg.qr(normal(D, D, seed=seed))[0]


# ---------------------------------------------------------------------------------------------------- rule and loss


def check_dissipation(rule, k):
    """Along dR the Gaussian divergence falls at exactly (1 - k)||C||^2 + k||v||^2."""
    for seed in range(5, 15):
        S, R = covariance(), random_R(seed)
        H, h = direction(rule, R, S), 1e-5
        after, before = (reference.gaussian_divergence(R - sign * h * H, S) for sign in (1, -1))
        X = moment_of(R, S)
        rate = (1 - k) * off(X).square().sum() + k * (X.diagonal() - 1).square().sum()
        assert float(before - after) / (2 * h) == pytest.approx(float(rate), rel=1e-7)


@pytest.mark.parametrize("k", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_rule_dissipates_the_gaussian_divergence(k):
    check_dissipation(KappaRule(kappa=k), k)


def test_the_published_column_scaling_does_not_dissipate_it():
    with pytest.raises(AssertionError):
        check_dissipation(ColumnScaledKappaRule(kappa=0.5), 0.5)


@pytest.mark.parametrize("k", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_reported_loss_falls_too(k):
    """dL/dt = -4 tr(H X H) for L = (1 - k)||C||^2 + k||v||^2, which is D^2 times the reported loss."""
    S, R, rule, h = covariance(), random_R(), KappaRule(kappa=k), 1e-5
    X, dR = moment_of(R, S), direction(rule, R, S)
    H = dR @ torch.linalg.inv(R)
    after, before = (float(rule.loss(moments(R - sign * h * dR, samples_of(S)))) * D**2 for sign in (1, -1))
    assert (after - before) / (2 * h) == pytest.approx(-4 * float((H @ X @ H).trace()), rel=1e-7)
    assert after < before


def test_at_kappa_one_half_the_rule_is_half_the_relative_gradient():
    S, R = covariance(), random_R()
    relative = (moment_of(R, S) - EYE) @ R
    assert distance(direction(KappaRule(kappa=0.5), R, S), relative / 2) < 1e-14
    assert distance(direction(WhiteningRule(), R, S), relative) < 1e-14
    variable = R.clone().requires_grad_()
    (euclidean,) = torch.autograd.grad(reference.gaussian_divergence(variable, S), variable)
    assert distance(euclidean @ R.T @ R, relative) < 1e-12


@pytest.mark.parametrize(("features", "k", "eta"), [(500, 0.1, 1.0), (100, 0.5, 0.01), (6, 0.01, 0.1), (2, 0.3, 0.2)])
def test_normalized_constants_are_standard_ones_at_another_kappa_and_rate(features, k, eta):
    a, b = eta * (1 - k) / (features - 1), 2 * eta * k
    x, R = normal(3, features), torch.eye(features, dtype=torch.float64) + 0.01 * normal(features, features, seed=1)
    normalized = eta * KappaRule(kappa=k, constants="normalized").direction(moments(R, x), R)
    standard = (a + b) * KappaRule(kappa=b / (a + b)).direction(moments(R, x), R)
    assert distance(normalized, standard) < 1e-14 * max(1.0, float(standard.abs().max()))
    if features == 500:  # printed in the literature notes
        assert (b / (a + b), a + b) == pytest.approx((0.99106, 0.202), abs=2e-4)


# Equivariance, whiteness of the fixed point, and the scale and order of features: for every rule in test_rules.py.


def test_a_rotated_start_stays_rotated_only_at_one_half():
    x, Q = samples_of(covariance()), rotation()

    def apart(k):
        rule = KappaRule(kappa=k)
        return distance(run(rule, x, 0.1, 300, R=Q), Q @ run(rule, x, 0.1, 300))

    assert apart(0.5) < 1e-13
    assert apart(0.3) > 0.01


@pytest.mark.parametrize(("k", "lr", "steps"), [(0.1, 0.1, 1_500), (0.5, 0.1, 400), (0.9, 0.1, 1_500)])
def test_every_kappa_ends_white(k, lr, steps):
    X = moment_of(run(KappaRule(kappa=k), samples_of(covariance()), lr, steps), covariance())
    assert float(off(X).norm()) < 1e-12
    assert distance(X.diagonal(), EYE.diagonal()) < 1e-10


@pytest.mark.slow
def test_a_tiny_kappa_ends_white_too_but_late():
    """Off-diagonals are gone after hundreds of steps; variances take 1 / (2 k lr)."""
    S, rule = covariance(), KappaRule(kappa=1e-3)
    R = run(rule, samples_of(S), 0.1, 300)
    assert distance(moment_of(R, S).diagonal(), EYE.diagonal()) > 0.1
    X = moment_of(run(rule, samples_of(S), 0.5, 30_000, R), S)
    assert float(off(X).norm()) < 1e-12
    assert distance(X.diagonal(), EYE.diagonal()) < 1e-10


def test_kappa_one_half_from_the_identity_ends_at_zca_and_triangular_at_cholesky():
    S = covariance()
    for rule in (KappaRule(kappa=0.5), WhiteningRule()):
        assert distance(run(rule, samples_of(S), 0.1, 600), zca(S)) < 1e-12
    other = run(KappaRule(kappa=0.3), samples_of(S), 0.1, 800)
    assert distance(moment_of(other, S), EYE) < 1e-12
    assert distance(other, other.T) > 0.01
    lower = run(TriangularRule(), samples_of(S), 0.1, 1_000)
    assert distance(lower, lower.tril()) == 0
    assert distance(lower, cholesky(S)) < 1e-12


def test_plain_decorrelation_conserves_the_determinant():
    S = covariance()
    drift = {}
    for lr in (1e-2, 1e-3):
        R = run(PlainDecorrelation(), samples_of(S), lr, round(10 / lr))
        drift[lr] = abs(float(torch.logdet(R)))
    assert drift[1e-2] / drift[1e-3] == pytest.approx(10, abs=1)
    X = moment_of(R, S)
    assert float(off(X).norm()) < 1e-3
    assert float(X.diagonal().log().mean().exp()) == pytest.approx(float(S.det()) ** (1 / D), abs=1e-3)


@pytest.mark.parametrize("k", [0.1, 0.5, 0.8])
def test_rates_of_convergence_near_whiteness(k):
    """Near X = I, off-diagonals shrink by 1 - 2 (1 - k) lr a step and variances by 1 - 2 k lr."""
    lr, steps = 0.05, 20
    E = normal(D, D, seed=3)
    E = (E + E.T) / 2
    R = run(KappaRule(kappa=k), samples_of(EYE), lr, steps, EYE + 1e-4 * E)
    before, after = moment_of(EYE + 1e-4 * E, EYE) - EYE, moment_of(R, EYE) - EYE
    large = off(E).abs() > 0.3
    ratios = after[large] / before[large]
    assert distance(ratios, torch.full_like(ratios, (1 - 2 * (1 - k) * lr) ** steps)) < 3e-3
    large = E.diagonal().abs() > 0.3
    ratios = (after.diagonal() / before.diagonal())[large]
    assert distance(ratios, torch.full_like(ratios, (1 - 2 * k * lr) ** steps)) < 3e-3


def plain_ends(features, correlation, share):
    """Largest entry of R after 60 steps of plain decorrelation at lr = share / lambda_max(C), equicorrelated data."""
    eye = torch.eye(features, dtype=torch.float64)
    S = correlation * torch.ones_like(eye) + (1 - correlation) * eye
    largest = float(torch.linalg.eigvalsh(off(S))[-1])
    return float(run(PlainDecorrelation(), samples_of(S), share / largest, 60).abs().max())


def test_edge_of_stability_of_plain_decorrelation():
    """From R = I the edge is lr * lambda_max(C) = 2, sharply, where one mode dominates C."""
    assert plain_ends(20, 0.7, 1.99) < 10
    assert not plain_ends(20, 0.7, 2.01) < 1e6


def test_the_edge_of_stability_is_lower_where_no_mode_dominates():
    """Then the other modes are not small beside it, and a step just below 2 diverges; half of it does not."""
    assert not plain_ends(6, 0.1, 1.9) < 1e6
    assert plain_ends(6, 0.1, 1.0) < 10


def scalar_variance(a, variance, steps=1_000):
    """Output variance of the whitening rule at rate a on one feature."""
    x = torch.tensor([[variance**0.5]], dtype=torch.float64)
    R = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(steps):
        R = step(WhiteningRule(), R, x, a)
        if not R.isfinite().all():
            break
    return float(R) ** 2 * variance


@pytest.mark.parametrize("a", [0.1, 0.5, 0.9])
def test_edge_of_stability_of_the_whitening_rule(a):
    """A variance below (2 + a) / a reaches 1, one above diverges."""
    assert scalar_variance(a, 0.99 * (2 + a) / a) == pytest.approx(1, abs=1e-6)
    assert not math.isfinite(scalar_variance(a, 1.01 * (2 + a) / a))


def test_the_whitening_rule_above_rate_one_does_not_settle():
    assert abs(scalar_variance(1.05, 0.9) - 1) > 0.1
    assert scalar_variance(0.95, 0.9) == pytest.approx(1, abs=1e-6)


# ------------------------------------------------------------------------------------------------------ dead features


def dead_samples():
    x = samples_of(covariance()).clone()
    x[:, 2] = 0
    return x


@pytest.mark.parametrize("constants", ["standard", "normalized"])
def test_a_dead_feature_explodes_in_the_published_rule_and_not_in_ours(constants):
    k, lr, steps, alive = 0.5, 0.1, 200, [0, 1, 3, 4, 5]
    published = run(KappaRule(kappa=k, constants=constants, dead_variance=0.0), dead_samples(), lr, steps)
    weight = k if constants == "standard" else 2 * k
    assert float(published[2, 2]) == pytest.approx((1 + lr * weight) ** steps, rel=1e-12)
    guarded = run(KappaRule(kappa=k, constants=constants), dead_samples(), lr, steps)
    assert torch.equal(guarded[2], EYE[2])
    assert distance(guarded[alive], published[alive]) < 1e-14


@pytest.mark.parametrize("rule", [TriangularRule(), WhiteningRule(), NotebookRule(variance=1.0)])
def test_the_other_rules_with_targets_leave_the_row_of_a_dead_feature_bounded(rule):
    R = run(rule, dead_samples(), 0.1, 200)
    assert float(R[2].abs().max()) <= 1
    exposed = run(type(rule)(**{**vars(rule), "dead_variance": 0.0}), dead_samples(), 0.1, 20)
    assert not float(exposed[2].abs().max()) < 2  # without the guard it grows, or is NaN (0 / 0)


def test_a_nearly_dead_feature_is_amplified_by_the_2024_rule():
    """The guard of 2024 knows exact zeros only: at v = 1e-4 a row grows by 1 + lr (t / v - 1 - eta t) in one step."""
    S, lr = torch.diag(torch.tensor([1.0, 1e-4], dtype=torch.float64)), 1e-2
    R = run(NotebookRule(variance=1.0), samples_of(S), lr, 1)
    assert float(R[1, 1]) == pytest.approx(1 + lr * (1 / 1e-4 - 2), rel=1e-9)
    assert float(R[0, 0]) == pytest.approx(1 - lr, rel=1e-9)


# ------------------------------------------------------------------------------------------ published tables, legacy


def golden(D, samples, strength, seed, scale, lr, k, constants, steps, rule):
    """(reported losses, mean |covariance|, mean variance) after stepping a legacy rule in float32, as published."""
    x, R, losses = scale * reference.equicorrelated(D, samples, strength, seed), torch.eye(D), []
    c, variance = reference.weights(D, k, constants)
    for _ in range(steps):
        y = x @ R.T
        X = y.T @ y / len(y)
        C, v = off(X), X.diagonal() - 1
        total = c * C.square().sum() + (k if constants == "normalized" else variance) * v.square().sum()
        losses.append(float(total) / (D if constants == "normalized" else D**2))
        R = rule(R, C, v, lr, c, variance, y)
    X = moment_of(R, x.T @ x / len(x))
    pairs = torch.tril_indices(D, D, -1)
    return losses, float(X[pairs[0], pairs[1]].abs().mean()), float(X.diagonal().mean())


def legacy(rule):
    return lambda R, C, v, lr, c, k, y: rule(R, C, v, lr, c, k)


def shipped(rule):
    return lambda R, C, v, lr, c, k, y: R - lr * rule.direction(Moments.of(y), R)


KAPPA_ANALYSIS = {"D": 100, "samples": 1000, "strength": 0.5, "seed": 40, "scale": 0.5, "lr": 1e-2, "steps": 300}


@pytest.mark.parametrize(
    ("k", "covariance", "variance"),
    [
        (0.0, 0.06970666, 0.19879635),
        (5 / 29, 0.17728691, 0.60279459),
        (19 / 29, 0.31537133, 0.96825868),
        (1.0, 0.48548242, 0.99998480),
    ],
)
def test_the_published_kappa_table_comes_from_one_mean_variance_for_all(k, covariance, variance):
    table = {"k": k, "constants": "normalized", **KAPPA_ANALYSIS}
    _, mean_covariance, mean_variance = golden(rule=legacy(reference.scalar_variance_step), **table)
    assert (mean_covariance, mean_variance) == pytest.approx((covariance, variance), abs=1e-6)


@pytest.mark.parametrize(
    ("k", "covariance", "variance"),
    [(0.02 / 19, 0.12894587, 0.42875504), (0.04 / 19, 0.17299744, 0.67491454), (0.02, 0.16237552, 0.99281931)],
)
def test_the_earlier_kappa_table_comes_from_the_missing_rate(k, covariance, variance):
    table = {"k": k, "constants": "normalized", **KAPPA_ANALYSIS}
    _, mean_covariance, mean_variance = golden(rule=legacy(reference.missing_rate_step), **table)
    assert (mean_covariance, mean_variance) == pytest.approx((covariance, variance), abs=1e-6)


def test_the_correct_rule_gives_another_kappa_table():
    """It differs in the fifth digit only, since these data are exchangeable; the variances behind it spread less."""
    table = {"k": 5 / 29, "constants": "normalized", **KAPPA_ANALYSIS}
    rule = KappaRule(kappa=5 / 29, constants="normalized")
    _, mean_covariance, mean_variance = golden(rule=shipped(rule), **table)
    assert (mean_covariance, mean_variance) == pytest.approx((0.177299, 0.602763), abs=2e-6)
    assert abs(mean_variance - 0.60279459) > 2e-5


COMPARISON = {"D": 500, "samples": 1000, "strength": 0.3, "seed": 42, "scale": 1.0, "steps": 6}


@pytest.mark.parametrize(
    ("rule", "setting", "expected"),
    [
        (
            legacy(reference.missing_rate_step),
            {"lr": 1e-2, "k": 0.5, "constants": "standard"},
            [0.047660, 0.000437, 0.000579, 0.000617, 0.000586, 0.000557],
        ),
        (
            shipped(KappaRule(kappa=0.5)),
            {"lr": 1e-2, "k": 0.5, "constants": "standard"},
            [0.047660, 0.000436, 0.000417, 0.000400, 0.000387, 0.000376],
        ),
        (
            shipped(ColumnScaledKappaRule(kappa=0.1, constants="normalized")),
            {"lr": 1.0, "k": 0.1, "constants": "normalized"},
            [0.085959, 0.025799, 0.016671, 0.011910],
        ),
    ],
    ids=["missing rate", "correct", "columns normalized"],
)
def test_the_published_comparison_of_methods(rule, setting, expected):
    losses, _, _ = golden(rule=rule, **COMPARISON, **setting)
    assert losses[: len(expected)] == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------------------------------- means


@pytest.mark.parametrize("center", [None, "batch", "running"])
def test_a_constant_added_to_the_inputs_changes_nothing_where_they_are_demeaned(center):
    """Demeaned, it changes nothing in training and in evaluation; otherwise it does."""
    batches, outputs, weights = stream(16, 20), {}, {}
    for shift in (0.0, 3.0):
        layer = Decorrelation(D, rule=KappaRule(), center=center, momentum=None, dtype=torch.float64)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.005)
        for _ in range(3):  # three epochs: with momentum=None the running mean ends at the mean of all
            for x in batches:
                layer(x + shift)
                layer.update()
                optimizer.step()
        layer.eval()
        outputs[shift], weights[shift] = layer(batches[0] + shift), layer.weight.clone()
    apart = max(distance(outputs[0.0], outputs[3.0]), distance(weights[0.0], weights[3.0]))
    assert (apart < 1e-12) if center else (apart > 0.1)


def gain_fixed_point(norm, mean):
    """(X / c - I, c, g) at the fixed point of the adaptive gain on zero-mean states, inputs shifted by ``mean``."""
    half = samples_of(covariance())
    x = torch.cat([half, -half])  # the mean is exactly 0, so centring only takes the shift away
    raw = x + mean if norm == "raw" else x
    R, rule, lr = EYE, AdaptiveGainRule(norm=norm), 0.02
    for _ in range(1_500):
        m = Moments.of(x @ R.T, raw, dense=False)
        R = R - lr * rule.direction(m, R, lr)
    X = moment_of(R, covariance())
    c = float(X.diagonal().mean())
    return distance(X / c, EYE), c, float(m.gain()) * (1 - lr * c)


def test_adaptive_gain_whitens_up_to_a_scale_that_follows_the_norm():
    results = {(norm, mean): gain_fixed_point(norm, mean) for norm in ("demeaned", "raw") for mean in (0.0, 2.0)}
    for white, _, balance in results.values():
        assert white < 1e-10
        assert balance == pytest.approx(1, abs=1e-10)  # what the decay takes, the gain gives back
    c = {key: value[1] for key, value in results.items()}
    assert c["demeaned", 2.0] == c["demeaned", 0.0] == c["raw", 0.0]
    assert c["raw", 2.0] > 2 * c["raw", 0.0]


# ----------------------------------------------------------------------------------------------------- other whiteners


def test_groups_leave_a_mode_that_they_share():
    """Within a block X = I; the canonical correlations between blocks are what they were; one block is full ZCA."""
    S, half = covariance(), D // 2
    x = samples_of(S)

    def whitened(groups):
        layer = Decorrelation(D, rule=WhiteningRule(), groups=groups, dtype=torch.float64)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(600):
            y = layer(x)
            layer.update()
            optimizer.step()
        return y.T @ y / len(y), layer.weight

    def canonical(X):
        W1, W2 = zca(X[:half, :half].clone()), zca(X[half:, half:].clone())
        return torch.linalg.svdvals(W1 @ X[:half, half:] @ W2)

    X, _ = whitened(groups=2)
    for block in (slice(0, half), slice(half, D)):
        assert distance(X[block, block], torch.eye(half, dtype=torch.float64)) < 1e-10
    assert distance(canonical(X), canonical(S)) < 1e-10
    assert float(canonical(S)[0]) > 0.3, "nothing is shared between these blocks: the test shows nothing"
    assert distance(whitened(groups=1)[1], zca(S)) < 1e-10


def test_foldiak_decorrelates_and_keeps_the_diagonal_of_M():
    S = covariance()
    R = run(FoldiakRule(), samples_of(S), 0.05, 3_000)
    X, M = moment_of(R, S), torch.linalg.inv(R)
    assert float(off(X).norm()) < 1e-12
    assert distance(M.diagonal(), EYE.diagonal()) < 1e-12
    assert distance(M, M.T) < 1e-12
    assert distance(X.diagonal(), EYE.diagonal()) > 0.1


def test_foldiak_with_the_diagonal_kept_grows_without_bound():
    """Why the rule leaves it out: M_ii = (3 lambda lr t)^(1/3)."""
    lr, steps = 0.01, 200_000
    values = [2.0, 0.5, 0.1]
    M, S = torch.eye(3, dtype=torch.float64), torch.diag(torch.tensor(values, dtype=torch.float64))
    scalars = [1.0, 1.0, 1.0]
    for t in range(steps):  # diagonal stays diagonal: the first steps in full, the rest as scalars
        if t < 50:
            M = reference.foldiak_with_diagonal(M, S, lr)
            scalars = [float(value) for value in M.diagonal()]
            assert distance(M, torch.diag(M.diagonal())) == 0
        else:
            scalars = [m + lr * value / m**2 for m, value in zip(scalars, values, strict=True)]
    for m, value in zip(scalars, values, strict=True):
        assert m == pytest.approx((3 * value * lr * steps) ** (1 / 3), rel=2e-3)


def test_the_rule_of_the_normalisation_layer_is_kappa_at_one_half():
    """SWBN's relative gradient is twice kappa 1/2; from R = I on full batches its symmetrisation changes nothing."""
    x, R, S = samples_of(covariance()), EYE, covariance()
    assert distance(direction(WhiteningRule(), random_R(), S), 2 * direction(KappaRule(), random_R(), S)) < 1e-14
    for _ in range(300):
        R = step(WhiteningRule(), R, x, 0.05)
        assert distance(R, R.T) < 1e-13


# ------------------------------------------------------------------------------------------------------ the 2024 rule


@pytest.mark.parametrize(("t", "eta"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.25), (1.0, 0.0)])
def test_the_2024_rule_does_not_reach_its_target(t, eta):
    """On uncorrelated features it settles at v = t / (1 + eta t)."""
    S = torch.diag(torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64))
    v = moment_of(run(NotebookRule(variance=t, eta=eta), samples_of(S), 0.1, 800), S).diagonal()
    assert distance(v, torch.full_like(v, t / (1 + eta * t))) < 1e-10


def test_the_2024_rule_with_one_target_per_feature_and_with_that_of_the_input():
    S = torch.diag(torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64))
    targets = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    v = moment_of(run(NotebookRule(variance=targets), samples_of(S), 0.1, 800), S).diagonal()
    assert distance(v, targets / (1 + targets)) < 1e-10
    v = moment_of(run(NotebookRule(variance="input"), samples_of(S), 0.1, 800), S).diagonal()
    assert distance(v, S.diagonal() / (1 + S.diagonal())) < 1e-10


def test_the_2024_rule_removes_covariances_on_gaussian_data():
    S = covariance()
    X = moment_of(run(NotebookRule(variance=1.0), samples_of(S), 0.1, 2_000), S)
    assert distance(X, EYE / 2) < 1e-9


def test_the_2024_rule_without_a_target_collapses():
    """dR = eta X R has no fixed point but 0: variances fall for ever, as 1 / (2 lr t)."""
    S, lr, variances = covariance(), 0.05, []
    R = EYE
    for _ in range(20):
        R = run(NotebookRule(), samples_of(S), lr, 200, R)
        variances.append(float(moment_of(R, S).diagonal().max()))
    assert all(later < earlier for earlier, later in pairwise(variances))
    assert variances[-1] == pytest.approx(1 / (2 * lr * 4_000), rel=0.1)


# -------------------------------------------------------------------------------------------------------------- safety


@pytest.mark.parametrize("rule", [NotebookRule(variance=1.0), KappaRule(), WhiteningRule(), PlainDecorrelation()])
def test_a_bound_on_the_step_keeps_a_diverging_run_finite(rule):
    batches = [4 * x for x in stream(16, 40)]

    def trained(max_step):
        layer = Decorrelation(D, rule=rule, dtype=torch.float64)
        optimizer, losses = torch.optim.SGD(layer.parameters(), lr=0.5), []
        for x in batches:
            try:
                layer(x)
            except NonFiniteInput as error:
                if "R has diverged" not in str(error):
                    raise
                return [*losses, math.inf]
            losses.append(float(layer.update(lr=0.5, max_step=max_step)))
            optimizer.step()
        return losses

    assert not math.isfinite(trained(None)[-1])
    bounded = trained(1.0)
    assert all(math.isfinite(loss) for loss in bounded)
    assert bounded[-1] < bounded[0] / 5
