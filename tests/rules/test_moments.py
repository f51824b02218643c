"""Moments: factored and dense form against each other and against the mean of one outer product per sample."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moment_checks import check_against_samples, near
from problems import covariance, normal
from reference import mean_gain, second_moment
from torch.utils.flop_counter import FlopCounterMode

from decorlib.rules.moments import Moments, at_least_float32, largest_eigenvalue, second_moment_in_parts
from decorlib.rules.moments import second_moment as fast_second_moment

SHAPES = [(3, 6), (6, 6), (17, 6), (1, 4), (5, 1)]  # B < D, B = D, B > D, one sample, one feature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_moments_equal_the_mean_of_outer_products(batch, features, dense, dtype):
    check_against_samples(batch, features, dense, dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.floats(1e-3, 1e3), st.integers(0, 10_000))
def test_factored_equals_dense_at_every_shape_and_scale(batch, features, scale, seed):
    y, R = normal(batch, features, seed=seed) * scale, normal(features, features, seed=seed + 1)
    factored, dense = Moments.of(y, dense=False), Moments.of(y, dense=True)
    for a, b in (
        (factored.variance, dense.variance),
        (factored.dense(), dense.dense()),
        (factored.times(R), dense.times(R)),
        (factored.squared_norm(), dense.squared_norm()),
    ):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize(("batch", "dense"), [(5, False), (6, True), (7, True)])
def test_the_cheaper_form_is_chosen_by_shape(batch, dense):
    m = Moments.of(normal(batch, 6))
    assert (m.matrix is not None) == dense
    assert (m.samples is None) == dense


def flops(batch, features, dense):
    """Floating point operations of X R and ||X||^2, the forming of the moments included."""
    y, R = normal(batch, features), normal(features, features)
    with FlopCounterMode(display=False) as counter:
        m = Moments.of(y, dense=dense)
        m.times(R)
    return counter.get_total_flops()


def test_flops_are_those_of_the_table():
    """4BD^2 factored against 2BD^2 + 2D^3 dense, equal at B = D; so each form wins on its side of it."""
    for batch, features in ((8, 32), (32, 32), (64, 32)):
        assert flops(batch, features, dense=False) == 4 * batch * features**2
        assert flops(batch, features, dense=True) == 2 * batch * features**2 + 2 * features**3
        cheaper = min(flops(batch, features, dense=True), flops(batch, features, dense=False))
        assert flops(batch, features, dense=None) == cheaper


@pytest.mark.parametrize("dense", [True, False])
def test_leading_group_dimensions_are_independent_problems(dense):
    y, x, R = normal(2, 3, 9, 4), normal(2, 3, 9, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    m = Moments.of(y, x, dense)
    for i in range(2):
        for j in range(3):
            one = Moments.of(y[i, j], x[i, j], dense)
            near(m.variance[i, j], one.variance)
            near(m.times(R)[i, j], one.times(R[i, j]))
            near(m.squared_norm()[i, j], one.squared_norm())
            near(m.squared_off_diagonal()[i, j], one.squared_off_diagonal())
            near(m.input_variance()[i, j], one.input_variance())
            near(m.input_second_moment()[i, j], one.input_second_moment())
            if not dense:
                near(m.gain()[i, j], one.gain())


def test_averages_that_were_pooled_elsewhere_replace_those_of_the_samples():
    y, x, other = normal(9, 4), normal(9, 4, seed=1), covariance(4)
    m = Moments.of(y, x, dense=False).with_input_moment(other)
    assert torch.equal(m.input_second_moment(), other)
    assert torch.equal(m.input_variance(), other.diagonal())
    assert float(replace(m, gain_mean=torch.tensor(3.0, dtype=torch.float64)).gain()) == 3.0


@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_the_gain_is_taken_before_the_samples_are_let_go(batch, features):
    y, x = normal(batch, features), normal(batch, features, seed=1) + 1
    m = Moments.of(y, x, gain=True)
    assert (m.samples is None) == (batch >= features)
    near(m.gain(), mean_gain(x, y))


def test_many_samples_never_make_a_matrix_of_samples_by_samples():
    """It would be 1.3 TB here."""
    y = normal(400_000, 3)
    for m in (Moments.of(y, y, gain=True), Moments.of(y, y, dense=False)):
        near(m.squared_norm(), second_moment_of_columns(y).square().sum())


def second_moment_of_columns(y):
    return torch.tensor([[float((a * b).mean()) for a in y.T] for b in y.T], dtype=torch.float64)


def test_a_moment_in_parts_is_the_moment():
    x = normal(2, 1000, 5, seed=3) + 1
    near(second_moment_in_parts(x, rows=300), fast_second_moment(x))
    assert torch.equal(second_moment_in_parts(x, rows=1000), fast_second_moment(x))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)])
def test_an_empty_batch_is_refused(shape):
    with pytest.raises(ValueError, match=r"empty batch.*at least one sample"):
        Moments.of(torch.zeros(shape))


def test_what_was_not_kept_is_asked_for_by_name():
    y = normal(9, 4)
    with pytest.raises(RuntimeError, match=r"Moments\.of\(y, x\)"):
        Moments.of(y).input_variance()
    with pytest.raises(RuntimeError, match=r"Moments\.of\(y, x, gain=True\)"):
        Moments.of(y, y, dense=True).gain()


# -------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_before_anything_is_multiplied(half):
    y = normal(9, 4).to(half)
    m = Moments.of(y, y)
    assert m.variance.dtype == m.dense().dtype == m.input_second_moment().dtype == torch.float32
    near(m.dense(), second_moment(y.double()), torch.float32)
    assert at_least_float32(normal(1)).dtype == torch.float64


def test_a_large_half_precision_batch_does_not_overflow():
    """Unit variance, B = 1e5: the sum of squares is beyond float16, the mean is 1."""
    y = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0)).half()
    assert not torch.isfinite(y.mT @ y).all(), "the sum fits float16 on this machine: the test shows nothing"
    m = Moments.of(y)
    assert torch.isfinite(m.dense()).all()
    assert float((m.variance - 1).abs().max()) < 0.05


def test_large_values_are_divided_before_they_are_multiplied():
    """Sums over the batch would pass float32's largest number here; the means are far below it."""
    y = torch.full((10_000, 2), 1e17)
    assert not torch.isfinite(y.mT @ y).all() or float((y.mT @ y).max()) > 1e37
    assert float((fast_second_moment(y) / 1e34 - 1).abs().max()) < 1e-3


def test_off_diagonal_is_never_negative_by_rounding():
    y = torch.diag(torch.tensor([1.0, 3.0, 1e3])) * 3**0.5
    for dense in (True, False):
        assert float(Moments.of(y, dense=dense).squared_off_diagonal()) >= 0


# --------------------------------------------------------------------------------------------------- power iteration


@pytest.mark.parametrize("batch", [4, 40])
def test_largest_eigenvalue_is_estimated_from_below(batch):
    y = normal(batch, 6, seed=batch) * torch.linspace(0.5, 2, 6, dtype=torch.float64)
    m = Moments.of(y)
    exact = float(torch.linalg.eigvalsh(second_moment(y))[-1])
    estimates = [float(largest_eigenvalue(m.times, m.variance, steps)) for steps in (1, 3, 10, 300)]
    assert estimates == sorted(estimates)
    assert all(estimate <= exact * (1 + 1e-12) for estimate in estimates)
    assert estimates[2] > 0.8 * exact
    assert estimates[3] == pytest.approx(exact, rel=1e-9)


def test_largest_eigenvalue_by_group_and_of_nothing():
    y = normal(2, 30, 5) * torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None, None]
    m = Moments.of(y)
    exact = torch.linalg.eigvalsh(m.dense())[:, -1]
    assert torch.allclose(largest_eigenvalue(m.times, m.variance, 500), exact, rtol=1e-9)
    assert float(largest_eigenvalue(lambda v: 0 * v, normal(5))) < 1e-300
    negative = torch.diag(torch.tensor([-5.0, 1.0, 2.0], dtype=torch.float64))  # spectral radius, whatever the sign
    assert float(largest_eigenvalue(lambda v: negative @ v, normal(3), 100)) == pytest.approx(5)
