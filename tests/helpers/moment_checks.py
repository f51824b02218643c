"""What Moments answers about a batch, against loops over its samples."""

import torch
from problems import normal
from reference import mean_gain, off_diagonal, second_moment

from decorlib.rules.moments import Moments

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def near(value, expected, dtype=torch.float64):
    expected = torch.as_tensor(expected, dtype=torch.float64).to(dtype)
    assert value.dtype == dtype
    assert value.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    assert float((value - expected).abs().max()) <= TOLERANCE[dtype] * scale


def check_against_samples(batch, features, dense, dtype=torch.float64):
    """Everything that Moments answers, against loops over samples."""
    exact = normal(batch, features, seed=batch) * torch.linspace(0.5, 2, features, dtype=torch.float64)
    x = normal(batch, features, seed=batch + 1) + 1  # inputs need not have anything to do with the states here
    R = normal(features, features, seed=7)
    m, X = Moments.of(exact.to(dtype), x.to(dtype), dense), second_moment(exact)
    assert m.count == batch
    near(m.variance, X.diagonal(), dtype)
    near(m.dense(), X, dtype)
    near(m.times(R.to(dtype)), X @ R, dtype)
    near(m.squared_norm(), sum(entry**2 for entry in X.flatten()), dtype)
    near(m.squared_off_diagonal(), sum(entry**2 for entry in off_diagonal(X).flatten()), dtype)
    near(m.input_variance(), second_moment(x).diagonal(), dtype)
    near(m.input_second_moment(), second_moment(x), dtype)
    if not dense:
        near(m.gain(), mean_gain(x, exact), dtype)
