"""The Gaussian task: its covariance is the one that was asked for, and its labels know nothing of mixing and noise."""

import pytest
import torch

from decorlib.study.experiments import experiment, labelled
from decorlib.study.experiments.experiment import Experiment

SPEC = Experiment(data="gaussian", train_size=40_000, condition=100.0, noise=0.5, seed=3)


def second_moment(x):
    return x.double().mT @ x.double() / len(x)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_inputs_have_the_covariance_that_was_asked_for(noise):
    x, t, z, u = experiment.arrays(SPEC.but(noise=noise))
    S = labelled.covariance(SPEC.condition, noise)
    values = torch.linalg.eigvalsh(S)
    assert float((values[-1] - noise**2) / (values[0] - noise**2)) == pytest.approx(100)
    assert float(S.trace()) == pytest.approx(64 * (1 + noise**2))
    spread = torch.sqrt((S.diagonal().outer(S.diagonal()) + S.square()) / len(x))  # of a Gaussian's second moment
    away = (second_moment(x) - S) / spread
    assert float(away.abs().max()) < 5
    assert 0.8 < float(away.square().mean()) < 1.2
    assert (x.shape, z.shape, x.dtype, t.dtype) == ((40_000, 64), (10_000, 64), torch.float32, torch.int64)
    assert len(u) == 10_000


def test_labels_depend_on_the_latents_alone_and_all_classes_are_there():
    of = {c: experiment.arrays(SPEC.but(condition=c, noise=n)) for c, n in ((1.0, 0.0), (100.0, 0.5), (1000.0, 0.0))}
    assert all(torch.equal(found[1], of[1.0][1]) and torch.equal(found[3], of[1.0][3]) for found in of.values())
    share = of[1.0][1].bincount(minlength=10) / 40_000
    assert 0.05 < float(share.min()) < float(share.max()) < 0.2


def test_training_validation_and_test_are_different_draws_and_seeds_too():
    found = {s: experiment.arrays(SPEC.but(split="both", seed=s, noise=0.0)) for s in (3, 4, 5)}
    first = torch.cat([part[:100] for three in found.values() for part in three[::2]])
    assert len(first.unique(dim=0)) == len(first) == 900
    both = experiment.arrays(SPEC.but(split="both"))
    assert torch.equal(both[2], experiment.arrays(SPEC.but(split="validation"))[2])
    assert torch.equal(both[4], experiment.arrays(SPEC)[2])
    assert torch.equal(both[0], experiment.arrays(SPEC.but(subset_seed=3, seed=9))[0])


def test_no_latent_is_a_row_of_the_teacher_or_an_axis_of_the_covariance():
    """Drawn by one generator from one seed, the first latents would be the teacher's rows, which label them."""
    T, axes = labelled._teacher(), torch.linalg.eigh(labelled.covariance(100.0, 0.0))[1].mT
    for seed in (0, 1):
        spec = SPEC.but(train_size=200, condition=1.0, noise=0.0, split="both", seed=seed, demean_inputs=False)
        for latents in experiment.arrays(spec)[::2]:
            z = latents[:200].double()
            z = z / z.norm(dim=1, keepdim=True)
            assert float((z @ torch.cat([T, axes]).mT).abs().max()) < 0.7  # of 64 features, by chance


def test_whitening_is_by_the_known_covariance_and_demeaning_by_the_training_mean():
    whitened, plain = experiment.arrays(SPEC.but(whiten_inputs=True)), experiment.arrays(SPEC)
    W = torch.linalg.lstsq(plain[0].double(), whitened[0].double()).solution
    S = labelled.covariance(SPEC.condition, SPEC.noise)
    torch.testing.assert_close(W.mT @ S @ W, torch.eye(64, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    x, _, z, _ = experiment.arrays(SPEC.but(demean_inputs=True))
    assert float(x.mean(0).abs().max()) < 1e-6
    torch.testing.assert_close(z, plain[2] - plain[0].double().mean(0).float(), rtol=0, atol=1e-6)
