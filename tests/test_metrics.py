"""Metrics on cases small enough to do by hand."""

import math

import jaxtyping
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


@pytest.mark.parametrize("centred", [False, True])
def test_participation_is_that_of_the_eigenvalues(centred):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 40, generator=generator) @ torch.randn(40, 40, generator=generator) + 1
    l = metrics.spectrum(x, centred)
    expected = (l.sum().square() / l.square().sum()).item()
    assert metrics.effective_rank(x, centred=centred) == pytest.approx(expected, rel=1e-12)


def test_centring_removes_a_shared_mode():
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) + 10
    assert metrics.effective_rank(x) < 1.1
    assert metrics.effective_rank(x, centred=True) > 4.9


def test_the_seeds_digits(tmp_path_factory):
    """The numbers in the docstring of effective_rank, and the shared mode that the study is about."""
    images, _ = datasets.tensors(datasets.mnist(root=tmp_path_factory.mktemp("data")))
    index = np.random.RandomState(42).permutation(60000)[:1000]
    x = datasets.scale(images[index], "notebook").flatten(1)
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


SCALE_FREE = {
    "correlation": metrics.mean_correlation,
    "participation": metrics.effective_rank,
    "entropy": lambda x: metrics.effective_rank(x, "entropy"),
    "condition": metrics.condition_number,
}


@pytest.mark.parametrize("name", SCALE_FREE)
@pytest.mark.parametrize("scale", [2.0**-450, 2.0**-300, 2.0**300, 2.0**450])  # 1e-135 to 1e135
def test_what_has_no_unit_is_the_same_at_every_scale(name, scale):
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert SCALE_FREE[name](scale * x) == pytest.approx(SCALE_FREE[name](x), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
def test_states_whose_squares_cannot_be_held_are_refused(scale):
    x = scale * torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for metric in (*SCALE_FREE.values(), metrics.decorrelation_loss, metrics.offdiagonal_loss):
        with pytest.raises(ValueError, match="outside what float64 can hold; scale the states"):
            metric(x)


def test_a_loss_that_cannot_be_held_is_refused():
    x = 1e80 * torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for loss in (metrics.decorrelation_loss, metrics.offdiagonal_loss):
        with pytest.raises(ValueError, match="fourth power is more than float64 can hold"):
            loss(x)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("x", [torch.ones(3, 2, 4), torch.ones(3), torch.ones(3, 2, dtype=torch.complex64)])
def test_states_that_are_no_real_matrix_are_refused(x):
    with pytest.raises(ValueError, match=r"give real states \(samples, features\)"):
        metrics.second_moment(x)


@pytest.mark.usefixtures("untyped")
def test_integer_states_are_those_numbers():
    x = torch.tensor([[200, 100], [100, 255]], dtype=torch.uint8)
    assert metrics.second_moment(x).tolist() == [[25000.0, 22750.0], [22750.0, 37512.5]]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("variance", "message"),
    [
        (-1.0, "variance is -1.0"),
        (math.nan, "variance is nan"),
        (torch.ones(2), r"shape \(2,\) for 3 features"),
        (torch.ones(3, 3), r"shape \(3, 3\) for 3 features"),
    ],
)
def test_a_target_that_no_second_moment_has_is_refused(variance, message):
    with pytest.raises(ValueError, match=message):
        metrics.decorrelation_loss(torch.ones(4, 3), variance)


def test_a_target_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="target is nan"):
        metrics.epochs_to(ROWS, math.nan, value="acc")


@pytest.fixture
def untyped():
    """As in use: types are not checked at run time, and the library's own messages are what a reader sees."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
