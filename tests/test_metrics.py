"""Metrics on cases small enough to do by hand."""

import math

import numpy as np
import pytest
import torch

from decorlib import metrics
from decorlib.data import datasets
from decorlib.training.history import Epoch, History


def test_second_moment_by_hand():
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert metrics.second_moment(x).tolist() == [[5.0, 1.0], [1.0, 2.0]]
    assert metrics.second_moment(x, centred=True).tolist() == [[1.0, -1.0], [-1.0, 1.0]]
    assert metrics.second_moment(x).dtype == torch.float64


def test_losses_by_hand():
    y = torch.tensor([[1.0, 2.0], [3.0, 0.0]])  # C = [[5, 1], [1, 2]]
    assert metrics.decorrelation_loss(y) == (25 + 1 + 1 + 4) / 4
    assert metrics.decorrelation_loss(y, 1.0) == (16 + 1 + 1 + 1) / 4
    assert metrics.decorrelation_loss(y, torch.tensor([5.0, 2.0])) == 0.5
    assert metrics.offdiagonal_loss(y) == 1.0
    assert metrics.offdiagonal_loss(y[:, :1]) == 0.0


def test_mean_correlation_ignores_scale_and_dead_features():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = x[:, 0] + x[:, 1]
    r = np.corrcoef(x.double().numpy().T)
    expected = math.sqrt((r[0, 1] ** 2 + r[0, 2] ** 2 + r[1, 2] ** 2) / 3)
    assert metrics.mean_correlation(x) == pytest.approx(expected, rel=1e-9)
    scaled = torch.cat([x * torch.tensor([1.0, 100.0, 0.01]) + 5, torch.full((500, 2), -2.0)], 1)
    assert metrics.mean_correlation(scaled) == pytest.approx(expected, rel=1e-4)  # float32 of x + 5
    assert metrics.mean_correlation(torch.full((4, 3), -2.0)) is None
    assert metrics.mean_correlation(torch.full((4, 3), -2.0), centred=False) == pytest.approx(1.0)


def states(*eigenvalues: float) -> torch.Tensor:
    """States with exactly these eigenvalues of C, in a rotated basis."""
    d = len(eigenvalues)
    q = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    return math.sqrt(d) * torch.diag(torch.tensor(eigenvalues, dtype=torch.float64).sqrt()) @ q


def test_spectrum_rank_and_condition_by_hand():
    x = states(1.0, 3.0, 2.0, 0.0)
    torch.testing.assert_close(metrics.spectrum(x), torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    assert metrics.effective_rank(x) == pytest.approx(36 / 14)
    entropy = -sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6))
    assert metrics.effective_rank(x, "entropy") == pytest.approx(math.exp(entropy))
    assert metrics.condition_number(x) == math.inf
    assert metrics.condition_number(states(8.0, 2.0)) == pytest.approx(4.0)


@pytest.mark.parametrize("definition", ["participation", "entropy"])
def test_effective_rank_of_the_two_extremes(definition):
    assert metrics.effective_rank(states(2.0, 2.0, 2.0), definition) == pytest.approx(3)
    assert metrics.effective_rank(states(2.0, 0.0, 0.0), definition) == pytest.approx(1)
    assert metrics.effective_rank(1e3 * states(3.0, 1.0), definition) == pytest.approx(
        metrics.effective_rank(states(3.0, 1.0), definition)
    )


def test_centring_removes_a_shared_mode():
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) + 10
    assert metrics.effective_rank(x) < 1.1
    assert metrics.effective_rank(x, centred=True) > 4.9


def test_the_seeds_digits(tmp_path_factory):
    """The numbers in the docstring of effective_rank, and the shared mode that the study is about."""
    images, _ = datasets.tensors(datasets.mnist(root=tmp_path_factory.mktemp("data")))
    index = np.random.RandomState(42).permutation(60000)[:1000]
    x = datasets.scale(images[index], "seed").flatten(1)
    l = metrics.spectrum(x)
    assert l[0].item() == pytest.approx(2070, abs=1)
    assert l[1].item() == pytest.approx(82, abs=1)
    assert round(metrics.effective_rank(x), 1) == 2.0
    assert round(metrics.effective_rank(x, "entropy"), 1) == 6.0
    assert round(metrics.decorrelation_loss(x, 1.0), 1) == 7.0
    assert metrics.condition_number(x) == math.inf


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), torch.zeros(3, 0)])
def test_empty_states_are_refused(bad):
    with pytest.raises(ValueError, match="x is empty"):
        metrics.spectrum(bad)


def test_states_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="NaN or inf"):
        metrics.offdiagonal_loss(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match="all states are zero"):
        metrics.effective_rank(torch.zeros(3, 2))


ROWS = [
    {"epoch": 0, "seconds": 0.0, "loss": 2.3, "acc": 0.10},
    {"epoch": 1, "seconds": 2.0, "loss": 0.5, "acc": None},
    {"epoch": 2, "seconds": 3.0, "loss": 0.4, "acc": 0.98},
    {"epoch": 3, "seconds": 4.0, "loss": 0.6, "acc": 0.97},
]


def test_epochs_and_seconds_to_a_target():
    assert metrics.epochs_to(ROWS, 0.98, value="acc") == 2  # exactly is enough
    assert metrics.seconds_to(ROWS, 0.98, value="acc") == 5.0
    assert metrics.epochs_to(ROWS, 0.5, value="loss", better="lower") == 1
    assert metrics.epochs_to(ROWS, 0.05, value="acc") == 0
    assert metrics.epochs_to(ROWS, 0.99, value="acc") is None
    assert metrics.seconds_to(ROWS, 0.99, value="acc") is None
    assert metrics.epochs_to([], 0.99, value="acc") is None


def test_epochs_to_reads_a_history():
    epochs = [Epoch(k, 1.5, 10, 1 / (k + 1), {"a": 1.0}, {"acc": 0.3 * k}) for k in range(4)]
    history = History(epochs, status="diverged", diverged_at=3)
    assert metrics.epochs_to(history, 0.6, value="acc") == 2
    assert metrics.seconds_to(history, 0.6, value="acc") == 4.5
    assert metrics.epochs_to(history, 0.25, value="loss", better="lower") == 3


def test_epochs_to_with_a_wrong_name():
    with pytest.raises(KeyError, match=r"no epoch has 'accuracy'; there are epoch, seconds, loss, acc"):
        metrics.epochs_to(ROWS, 0.98, value="accuracy")
