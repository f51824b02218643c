"""Whitening in closed form, and what it means for learning."""

import itertools

import pytest
import reference
import torch
from problems import D, covariance, distance, moment_of, normal, off, samples_of, stream

from decorlib import metrics
from decorlib.data import datasets, inputs
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear
from decorlib.rules.moments import Moments
from decorlib.rules.whitening import ExactWhitening, cholesky, newton_schulz, pca, shrink, zca

EYE = torch.eye(D, dtype=torch.float64)
KINDS = {"zca": zca, "pca": pca, "cholesky": cholesky}
each_kind = pytest.mark.parametrize("whitener", KINDS.values(), ids=KINDS)


# --------------------------------------------------------------------------------------------------------- closed forms


@each_kind
def test_whitens(whitener):
    for seed in range(5):
        S = covariance(seed=seed, condition=100.0)
        assert distance(moment_of(whitener(S), S), EYE) < 1e-12


def test_each_kind_is_what_its_name_says():
    S = covariance()
    Z, P, L = zca(S), pca(S), cholesky(S)
    assert distance(Z, Z.T) < 1e-14
    assert torch.equal(L, L.tril())
    assert float(L.diagonal().min()) > 0
    axes = P @ P.T  # principal axes are orthogonal, of squared length 1 / eigenvalue: ascending, largest variance first
    assert float(off(axes).abs().max()) < 1e-12
    assert bool((axes.diagonal().diff() > 0).all())
    assert bool((P.gather(-1, P.abs().argmax(-1, keepdim=True)) > 0).all())
    for a, b in itertools.combinations((Z, P, L), 2):  # they differ by a rotation, and do differ
        Q = a @ torch.linalg.inv(b)
        assert distance(Q @ Q.T, EYE) < 1e-12
        assert distance(a, b) > 0.1


def test_zca_changes_the_data_least():
    """Among all whiteners, the symmetric one has the smallest E||y - x||^2."""
    S = covariance()

    def change(R):
        return float(moment_of(R - EYE, S).trace())

    rivals = [pca(S), cholesky(S), *(torch.linalg.qr(normal(D, D, seed=seed))[0] @ zca(S) for seed in range(20))]
    assert all(change(zca(S)) < change(R) for R in rivals)


@each_kind
def test_leading_dimensions_are_independent(whitener):
    S = torch.stack([covariance(seed=seed) for seed in range(6)]).reshape(2, 3, D, D)
    R = whitener(S)
    for i, j in itertools.product(range(2), range(3)):
        assert distance(R[i, j], whitener(S[i, j])) < 1e-13


@each_kind
def test_a_singular_moment_is_refused_with_the_ways_out(whitener):
    singular = {
        "dead feature": torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)),
        "fewer samples than features": normal(4, D).T @ normal(4, D) / 4,
    }
    for S in singular.values():
        with pytest.raises(ValueError, match=r"singular\. Use shrinkage > 0, more samples than features"):
            whitener(S)
        assert bool(whitener(shrink(S, 0.01)).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [(), (3,), (2, 2)])
@pytest.mark.parametrize(("batch", "features"), [(1, 2), (2, 3), (3, 4), (4, 6), (5, 6), (20, 50), (49, 50)])
@each_kind
def test_a_singular_moment_is_refused_whatever_rounding_makes_of_it(whitener, batch, features, groups, dtype):
    """Rounding leaves the last pivots and the null eigenvalues positive in some of these, which ones by processor."""
    for seed in range(100 if features < 20 else 20):
        x = normal(*groups, batch, features, seed=seed).to(dtype)
        S = x.mT @ x / batch
        with pytest.raises(ValueError, match="singular"):
            whitener(S)
        if groups:  # one of several is enough
            good = torch.eye(features, dtype=dtype).expand_as(S).clone()
            good[(-1,) * len(groups)] = S[(-1,) * len(groups)]
            with pytest.raises(ValueError, match="singular"):
                whitener(good)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [(), (3,), (2, 2)])
@each_kind
def test_a_regular_moment_is_never_refused(whitener, groups, dtype):
    """Up to a condition number of 100 / (D eps), at any scale and with leading dimensions."""
    for seed, features in itertools.product(range(20), (1, 2, 6, 50)):
        condition = 0.01 / (features * torch.finfo(dtype).eps)
        for scale in (1e-12, 1.0, 1e12):
            S = scale * covariance(features, seed=seed, condition=condition)
            R = whitener(S.to(dtype).expand(*groups, features, features)).double()
            apart = distance(moment_of(R, S.to(dtype).double()), torch.eye(features, dtype=torch.float64))
            assert apart < 0.1  # eps times the condition number is 0.01 / D, and eigh errs by a few of these


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [100, 10_000, 200_000])
@pytest.mark.parametrize("kind", KINDS)
def test_dependent_features_are_refused_however_many_samples(kind, batch, dtype):
    rule = ExactWhitening(kind=kind, shrinkage=0.0)
    for seed in range(5):
        x = normal(batch, D, seed=seed).to(dtype)
        x[:, 4], x[:, 5] = x[:, 0] + x[:, 1], 3 * x[:, 2] - x[:, 0]
        with pytest.raises(ValueError, match="singular"):
            rule.direction(Moments.of(x, x), torch.eye(D, dtype=dtype))


@pytest.mark.parametrize(("scale", "message"), [(1e20, "too large"), (1e-18, "too small"), (1e-16, "too small")])
@each_kind
def test_what_float32_cannot_square_is_refused(whitener, scale, message):
    x = scale * normal(50, D).float()
    with pytest.raises(ValueError, match=message):
        whitener(x.T @ x / 50)
    with pytest.raises(ValueError, match=message):
        newton_schulz(x.T @ x / 50)


@each_kind
def test_one_singular_group_among_good_ones_is_refused(whitener):
    S = torch.stack([covariance(), torch.zeros(D, D, dtype=torch.float64)])
    with pytest.raises(ValueError, match="singular"):
        whitener(S)


@pytest.mark.parametrize("a", [0.0, 0.1, 1.0])
def test_shrinkage_keeps_the_trace_and_bounds_the_condition_number(a):
    S = covariance(condition=1e6)
    shrunk, mean = shrink(S, a), S.trace() / D
    assert float(shrunk.trace()) == pytest.approx(float(S.trace()), rel=1e-12)
    assert distance(shrunk, (1 - a) * S + a * mean * EYE) < 1e-14
    values = torch.linalg.eigvalsh(shrunk)
    assert float(values[0]) >= a * float(mean) * (1 - 1e-12)


@pytest.mark.parametrize("a", [-0.1, 1.5, float("nan")])
def test_shrinkage_outside_its_range_is_refused(a):
    with pytest.raises(ValueError, match=r"shrinkage is .*must lie in \[0, 1\]"):
        shrink(covariance(), a)


def test_uncentred_whitening_leaves_a_mean():
    """||R mu||^2 = s / (1 + s), one centred variance of 1 / (1 + s), the rest 1; s = mu' S^-1 mu."""
    S, mu = covariance(), normal(D, seed=4)
    s = float(mu @ torch.linalg.solve(S, mu))
    R = zca(S + torch.outer(mu, mu))
    assert float((R @ mu).square().sum()) == pytest.approx(s / (1 + s), rel=1e-12)
    values = torch.linalg.eigvalsh(moment_of(R, S))
    assert float(values[0]) == pytest.approx(1 / (1 + s), rel=1e-12)
    assert distance(values[1:], torch.ones(D - 1, dtype=torch.float64)) < 1e-12


# -------------------------------------------------------------------------------------------------------- Newton-Schulz


@pytest.mark.parametrize("condition", [2.0, 8.0, 100.0, 1e4])
@pytest.mark.parametrize("steps", [20, 25, 100])
def test_newton_schulz_ends_at_zca_and_stays_there(condition, steps):
    """The textbook form P^3 S blows up by rounding where it is iterated on."""
    S = covariance(condition=condition)
    tolerance = 1e-3 if condition == 1e4 and steps == 20 else 1e-10
    assert distance(newton_schulz(S, steps=steps), zca(S)) < tolerance
    assert distance(newton_schulz(S, steps=3), zca(S)) > 0.01


def test_newton_schulz_holds_in_float32_at_the_width_of_an_image():
    S = covariance(100, condition=100.0).float()
    whitened = moment_of(newton_schulz(S).double(), S.double())
    assert distance(whitened, torch.eye(100, dtype=torch.float64)) < 1e-3


def test_newton_schulz_refuses_a_moment_without_variance():
    with pytest.raises(ValueError, match="trace 0: the second moment is singular"):
        newton_schulz(torch.stack([covariance(), torch.zeros(D, D, dtype=torch.float64)]))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_iterates_of_newton_schulz_are_the_published_ones(steps):
    """P <- (3 P - P^3 S_N) / 2, while rounding has had no time to grow."""
    S, P = covariance(), EYE
    for _ in range(steps):
        P = 1.5 * P - 0.5 * P @ P @ P @ S / S.trace()
    assert distance(newton_schulz(S, steps), P / S.trace().sqrt()) < 1e-13


@pytest.mark.parametrize(
    ("features", "printed"),
    [
        (16, [0.513, 0.966, 1.000, 1.000]),
        (64, [0.163, 0.586, 0.983, 1.000]),
        (256, [0.044, 0.201, 0.668, 0.994]),
        (512, [0.022, 0.106, 0.429, 0.930]),
    ],
)
def test_few_steps_of_newton_schulz_under_whiten_even_white_inputs(features, printed):
    """Output variance f^2 / D with f <- 1.5 f - 0.5 f^3 / D from f = 1, as tabulated for T = 3, 5, 7, 9."""
    white = torch.eye(features, dtype=torch.float64)
    for steps, expected in zip((3, 5, 7, 9), printed, strict=True):
        f = 1.0
        for _ in range(steps):
            f = 1.5 * f - 0.5 * f**3 / features
        variance = moment_of(newton_schulz(white, steps), white).diagonal()
        assert distance(variance, torch.full_like(variance, f**2 / features)) < 1e-12
        assert f**2 / features == pytest.approx(expected, abs=1e-3)
        if 1.5**steps < features**0.5:  # the docstring's condition
            assert f**2 / features < 0.9


# ------------------------------------------------------------------------------------------------------- ExactWhitening


def refreshed(rule, batches, lr=1.0):
    layer = Decorrelation(D, rule=rule, dtype=torch.float64)
    for x in batches:
        layer(x)
        layer.update(lr=lr)
        layer.weight.data -= lr * layer.weight.grad
    return layer.weight.data


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_at_rate_one_is_the_closed_form(kind):
    (x,) = stream(40, 1)
    S = reference.second_moment(x)
    assert distance(refreshed(ExactWhitening(kind=kind, shrinkage=0.0), [x]), KINDS[kind](S)) < 1e-12
    shrunk = refreshed(ExactWhitening(kind=kind, shrinkage=0.3), [x])
    assert distance(shrunk, KINDS[kind](0.7 * S + 0.3 * S.trace() / D * EYE)) < 1e-12


def test_newton_schulz_as_the_solver_gives_the_same():
    batches = stream(40, 1)
    eigh, products = (refreshed(ExactWhitening(solver=solver), batches) for solver in ("eigh", "newton_schulz"))
    assert distance(eigh, products) < 1e-6


def test_momentum_averages_the_second_moment_over_batches():
    """The first batch counts in full, as there is nothing before it; each later one with ``momentum``."""
    batches, average = stream(40, 5), None
    for x in batches:
        S = reference.second_moment(x)
        average = S if average is None else 0.75 * average + 0.25 * S
    R = refreshed(ExactWhitening(shrinkage=0.0, momentum=0.25), batches)
    assert distance(R, zca(average)) < 1e-12
    assert distance(R, refreshed(ExactWhitening(shrinkage=0.0), batches)) > 0.01


def test_a_singular_batch_is_refused_without_shrinkage_and_fine_with_it():
    (x,) = stream(4, 1)
    with pytest.raises(ValueError, match="shrinkage > 0"):
        refreshed(ExactWhitening(shrinkage=0.0), [x])
    assert bool(refreshed(ExactWhitening(), [x]).isfinite().all())


SOLUTIONS = {kind: {"kind": kind} for kind in KINDS} | {"newton_schulz": {"solver": "newton_schulz"}}


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("features", [10, 100, 290, 784, 1000])
def test_the_default_works_where_one_mode_dominates(features, solution):
    """R S R' = I for the shrunk S of pixels between 0 and 1, whose mean is most of them; to 1%, in float32."""
    rule = ExactWhitening(**SOLUTIONS[solution])
    for batch in (8, 64):
        x = torch.rand(batch, features, generator=torch.Generator().manual_seed(batch))
        S, R = shrink(reference.second_moment(x.double()), rule.shrinkage), torch.eye(features)
        rule.step_(Moments.of(x, x), R, 1.0)
        assert distance(moment_of(R.double(), S), torch.eye(features, dtype=torch.float64)) < 0.01


@pytest.mark.parametrize("scaling", ["notebook", "raw", "standard"])
@pytest.mark.parametrize("solution", SOLUTIONS)
def test_the_default_works_on_digits(solution, scaling, digits):
    x = inputs.scale(digits, scaling, reference=digits).flatten(1)[:64]
    rule = ExactWhitening(**SOLUTIONS[solution])
    layer = Decorrelation(784, rule=rule)
    layer(x)
    layer.step(1.0)
    S = shrink(reference.second_moment(x.double()), rule.shrinkage)
    assert distance(moment_of(layer.weight.data.double(), S), torch.eye(784, dtype=torch.float64)) < 0.01


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return datasets.tensors(datasets.mnist(root=tmp_path_factory.mktemp("data")))[0][:1000]


@pytest.mark.parametrize("solution", SOLUTIONS)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6, 1e7, 1e8, 1e12])
def test_inputs_of_any_scale_come_out_with_variance_one(scale, solution):
    """In one step from R = I: R - (R - W) would be rounding where W is 1e-6 and less."""
    layer = Decorrelation(D, rule=ExactWhitening(shrinkage=0.0, **SOLUTIONS[solution]))
    x = (scale * samples_of(covariance())).float()
    layer(x)
    layer.step(1.0)
    assert distance(layer.eval()(x).double().square().mean(0), torch.ones(D, dtype=torch.float64)) < 1e-3


def test_a_part_of_a_step_is_that_part_at_any_scale():
    x = (1e7 * samples_of(covariance())).float().expand(2, -1, -1)
    R = torch.eye(D).repeat(2, 1, 1)
    ExactWhitening(shrinkage=0.0).step_(Moments.of(x, x), R, 0.5, torch.tensor([1.0, 0.5]))
    W = zca(1e14 * covariance())
    assert distance(R[0].double(), 0.5 * EYE + 0.5 * W) < 1e-7
    assert distance(R[1].double(), 0.75 * EYE + 0.25 * W) < 1e-7


@pytest.mark.parametrize("scale", [1e6, 1e8])
def test_a_gradient_that_cannot_hold_the_step_is_refused(scale):
    layer = Decorrelation(D, rule=ExactWhitening(shrinkage=0.0))
    layer(scale * samples_of(covariance()).float())
    with pytest.raises(ValueError, match=r"decor_step\(model, lr=1\.0\), which writes W itself, or scale the inputs"):
        layer.update(lr=1.0)
    assert torch.equal(layer.weight.data, torch.eye(D))


def test_fewer_samples_than_features_say_nothing_about_fresh_data():
    """The note of ExactWhitening."""
    mix = torch.linalg.cholesky(covariance(128, condition=100.0)).T
    fresh, left = normal(4000, 128, seed=1) @ mix, {}
    for batch in (8, 1280):
        x, R = normal(batch, 128, seed=2) @ mix, torch.eye(128, dtype=torch.float64)
        ExactWhitening().step_(Moments.of(x, x), R, 1.0)
        left[batch] = metrics.mean_correlation(fresh @ R.T) / metrics.mean_correlation(fresh)
    assert left[8] > 0.9
    assert left[1280] < 0.4


# ----------------------------------------------------------------------------------- what whitening does to learning


def regression(seed=0):
    """(x, targets) of a linear problem with noise, x with second moment covariance()."""
    x = samples_of(covariance())
    x = torch.cat([x, -x])
    return x, x @ normal(3, D, seed=seed).T + 0.1 * normal(len(x), 3, seed=seed + 1)


def stepped(R, W, optimizer, lr):
    """Effective weight A = W R after one step of ``optimizer`` on W for squared error, and dL/dA before it."""
    x, goal = regression()
    layer = DecorLinear(D, 3, bias=False, dtype=torch.float64)
    layer.decorrelation.set_weight(R)
    layer.weight.data.copy_(W)
    loss = (layer(x) - goal).square().sum() / (2 * len(x))
    loss.backward()
    error = x @ (W @ R).T - goal
    optimizer([layer.weight], lr=lr).step()
    return layer.fused()[0].detach(), error.T @ x / len(x)


@each_kind
def test_sgd_on_whitened_inputs_is_foof(whitener):
    """One step on W moves A = W R by -lr dL/dA S^-1, whatever the square root of S^-1."""
    S, A = covariance(), normal(3, D, seed=9)
    R = whitener(S)
    after, gradient = stepped(R, A @ torch.linalg.inv(R), torch.optim.SGD, 0.1)
    assert distance(after, A - 0.1 * gradient @ torch.linalg.inv(S)) < 1e-13


def test_under_adam_the_rotation_of_the_whitening_matters():
    S, A = covariance(), normal(3, D, seed=9)
    results = [stepped(R, A @ torch.linalg.inv(R), torch.optim.Adam, 0.1)[0] for R in (zca(S), pca(S))]
    assert distance(*results) > 0.01


@each_kind
def test_foof_at_rate_one_solves_least_squares_in_one_step(whitener):
    x, goal = regression()
    R = whitener(covariance())
    after, before = stepped(R, normal(3, D, seed=9) @ torch.linalg.inv(R), torch.optim.SGD, 1.0)
    assert float((x @ after.T - goal).T.matmul(x).abs().max()) / len(x) < 1e-12
    assert float(before.abs().max()) > 0.1


def test_weights_can_make_up_for_a_change_of_R():
    """W <- W R1 R2^-1 leaves the layer's function as it was."""
    x, _ = regression()
    R1, R2 = zca(covariance()), cholesky(covariance(seed=8))
    layer = DecorLinear(D, 3, dtype=torch.float64)
    layer.decorrelation.weight.data.copy_(R1)
    before, fused = layer(x), layer.fused()[0].clone()
    layer.decorrelation.weight.data.copy_(R2)
    assert distance(layer(x), before) > 0.1
    layer.weight.data.copy_(layer.weight @ R1 @ torch.linalg.inv(R2))
    assert distance(layer(x), before) < 1e-12
    assert distance(layer.fused()[0], fused) < 1e-12
