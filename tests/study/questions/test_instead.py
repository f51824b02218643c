"""Notebook 10: every peer's update beside its published equation, and the machinery that compares them."""

import importlib.metadata
import importlib.util
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from decorlib import bp_parameters
from decorlib.data import own
from decorlib.data.inputs import loader
from decorlib.study import paired
from decorlib.study.questions.instead import comparison, figures, optimizers, plan, tries
from decorlib.study.questions.instead.foof import FOOF, average, damped, direction
from decorlib.study.questions.instead.networks import KINDS, NETWORKS, NORMALISATIONS, network
from decorlib.study.questions.instead.optimizers import MuonAndAdam, hidden_matrices, missing, optimizer
from decorlib.study.questions.instead.peers import (
    Batches,
    Peer,
    arrays,
    calibration_error,
    owners,
    relative_change,
    run,
)
from decorlib.study.questions.instead.whiteners import (
    DeconvolvedConv2d,
    DeconvolvedLinear,
    IterNorm,
    block_size,
    coupled_root,
    iterative_root,
)
from decorlib.study.sweeps import identity

SMALL = {"train_size": 300, "validation": 200, "steps": 4, "points": 2, "batch_size": 50}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlated(count, features, seed=0, amount=1.0):
    mix = amount * draw(features, features, seed=seed + 1) / features**0.5 + torch.eye(features, dtype=torch.float64)
    return draw(count, features, seed=seed) @ mix + 1.5


# ------------------------------------------------------------------------------------------ optimizers, by their papers


def test_muons_step_is_five_quintic_steps_on_the_singular_values():
    """torch.optim.Muon: W - 0.2 sqrt(max(n, m)) lr U p(p(...(S/|S|)...)) V', p(s) = a s + b s^3 + c s^5."""
    W = nn.Parameter(draw(24, 12, dtype=torch.float32))
    before, gradient = W.detach().clone(), draw(24, 12, seed=1, dtype=torch.float32)
    rest = [nn.Parameter(torch.ones(3))]
    muon = MuonAndAdam({W: 1}, rest, lr=0.1)
    W.grad, rest[0].grad = gradient.clone(), torch.ones(3)
    muon.step()
    step = (before - W.detach()).double() / (0.1 * 0.2 * math.sqrt(24))
    U, s, Vt = torch.linalg.svd(gradient.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert torch.allclose(step, U * s @ Vt, atol=0.03)  # bfloat16
    assert ((torch.linalg.svdvals(step) > 0.6) & (torch.linalg.svdvals(step) < 1.25)).all()  # near 1
    assert torch.linalg.svdvals(gradient).max() / torch.linalg.svdvals(gradient).min() > 3  # they were not
    assert torch.allclose(rest[0].detach(), torch.full((3,), 0.9))  # Adam's first step is its rate


@pytest.mark.parametrize("shape", [(24, 12), (12, 24), (64, 64)])
def test_muons_products_through_float32_are_those_in_bfloat16(shape, monkeypatch):
    def change(capability):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        W = nn.Parameter(draw(*shape, dtype=torch.float32))
        before, muon = W.detach().clone(), MuonAndAdam({W: 1}, [nn.Parameter(torch.ones(3))], lr=0.1)
        W.grad = draw(*shape, seed=1, dtype=torch.float32)
        muon.step()
        return (before - W.detach()) / (0.1 * 0.2 * math.sqrt(max(shape)))

    slow, fast = change("AVX512"), change("AVX2")
    # Entries near 1 / sqrt(n), each the end of 15 products: a few roundings to 8 bits between the two
    assert (slow - fast).norm() / slow.norm() < 4 * torch.finfo(torch.bfloat16).eps


def test_only_bfloat16_products_go_through_float32():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((func, [a.dtype for a in args if isinstance(a, torch.Tensor)]))
            return func(*args, **(kwargs or {}))

    half, single = torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2)
    with Watch(), optimizers._ThroughFloat32():
        products = half @ half, torch.addmm(half, half, half, beta=2, alpha=3), single @ single, half + half
    assert [p.dtype for p in products] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.bfloat16]
    assert [p[0, 0].item() for p in products] == [2, 8, 2, 2]
    multiplied = [dtypes for func, dtypes in seen if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    assert multiplied == [[torch.float32] * n for n in (2, 3, 2)]


def test_muon_takes_kernels_as_matrices_and_attention_as_three():
    model = network(Peer(network="convnet", optimizer="muon"))
    assert [tuple(p.shape) for p in hidden_matrices(model)] == [(32, 16, 3, 3), (32, 32, 3, 3)]
    owner = optimizer(Peer(network="convnet", optimizer="muon", lr=0.1), model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randn(8, 784)).square().sum().backward()
    owner.step()
    for name, p in model.named_parameters():
        change = (before[name] - p.detach()).flatten(1) if p.dim() > 1 else before[name] - p.detach()
        if any(p is q for q in hidden_matrices(model)):
            values = torch.linalg.svdvals(change) / (0.1 * 0.2 * math.sqrt(max(change.shape)))
            assert ((values > 0.3) & (values < 1.25)).all(), name
        else:
            slope = p.grad.flatten(1) if p.dim() > 1 else p.grad
            assert (change[slope.abs() > 1e-4].abs() - 0.1).abs().max() < 1e-3, name  # Adam: eps is 1e-8
    layers = hidden_matrices(network(Peer(network="transformer")))
    assert [n for p, n in layers.items() if p.shape[0] == 3 * p.shape[1]] == [3, 3]


def test_soaps_first_step_is_adams_in_the_eigenbasis_of_shampoo():
    """Vyas et al. 2024, arXiv 2409.11321, algorithm 3: the first gradient makes the basis and is not stepped by."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    W = nn.Parameter(draw(5, 4))
    soap = pytorch_optimizer.SOAP([W], lr=0.01, weight_decay=0.0)
    first, second, before = draw(5, 4, seed=1), draw(5, 4, seed=2), W.detach().clone()
    W.grad = first.clone()
    soap.step()
    assert torch.equal(W.detach(), before)
    W.grad = second.clone()
    soap.step()
    QL, QR = (torch.linalg.eigh(0.05 * S)[1].flip(1) for S in (first @ first.T, first.T @ first))
    m, v = 0.05 * (QL.T @ second @ QR), 0.05 * (QL.T @ second @ QR) ** 2  # betas are (0.95, 0.95)
    rotated = (m / (1 - 0.95)) / ((v / (1 - 0.95)).sqrt())
    assert torch.allclose(before - W.detach(), 0.01 * QL @ rotated @ QR.T, atol=1e-7)  # eps 1e-8 beside the root of v


def test_krons_first_step_is_its_whitening_criterions():
    """Li 2018, arXiv 1512.04202, and Li 2024, 2402.11858: Q <- Q - mu triu(G G' - V V') Q, then Q'Q on each side."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    pytest.importorskip("opt_einsum")
    W, G = nn.Parameter(draw(5, 4, dtype=torch.float32)), draw(5, 4, seed=1, dtype=torch.float32)
    before = W.detach().clone()
    W.grad = G.clone()
    torch.manual_seed(3)
    np.random.seed(0)  # noqa: NPY002 - no balancing in the first step
    pytorch_optimizer.Kron([W], lr=0.01).step()
    torch.manual_seed(3)
    V = torch.randn_like(G)

    def bound(S):  # of the largest eigenvalue: a step of power iteration from the row of the largest norm
        S = S / S.abs().max()
        x = S[S.square().sum(0).argmax()] @ S
        return float((x / x.norm() @ S.T).norm())

    Q = []
    for g, v in ((G, V), (G.T, V.T)):
        term, noise = g @ g.T, v @ v.T
        largest = (term + noise).abs().max()
        step = 0.1 * torch.triu(term - noise) / (bound(term + noise) * largest)
        Q.append(torch.eye(len(g)) - step)
    P = Q[0].T @ Q[0] @ G @ Q[1].T @ Q[1]
    P = P * min(1.0, 1.1 / (float(P.square().mean().sqrt()) + 1e-6))
    assert torch.allclose(before - W.detach(), 0.01 * P, atol=1e-7)


@pytest.mark.parametrize("bias", [False, True])
def test_foof_is_gradient_descent_on_an_exactly_whitened_layer(bias):
    x, t = correlated(40, 6), draw(40, 3, seed=5)
    layer = nn.Linear(6, 3, bias=bias, dtype=torch.float64)
    whole = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1) if bias else x
    A = whole.mT @ whole / 40
    values, vectors = torch.linalg.eigh(A)
    R = vectors * values.rsqrt() @ vectors.mT
    effective = torch.cat([layer.weight, layer.bias[:, None]], 1).detach() if bias else layer.weight.detach().clone()
    W = (effective @ torch.linalg.inv(R)).requires_grad_()  # y = W (R x), R R = A^-1
    nn.functional.mse_loss(whole @ R.mT @ W.mT, t).backward()
    expected = (W - 0.1 * W.grad) @ R
    foof = FOOF(layer, list(layer.parameters()), lr=0.1, damping=0.0)
    nn.functional.mse_loss(layer(x), t).backward()
    foof.step()
    found = torch.cat([layer.weight, layer.bias[:, None]], 1) if bias else layer.weight
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_foof_sees_a_convolutions_patches_averages_damps_and_keeps_momentum():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, dtype=torch.float64)
    x = draw(4, 2, 8, 8)
    foof = FOOF(conv, list(conv.parameters()), lr=0.1, momentum=0.5, decay=0.7, damping=0.2, every=2)
    moment, kept, before = None, 0.0, conv.weight.detach().clone()
    for step in range(3):
        conv.zero_grad()
        data = x * (step + 1)
        conv(data).square().sum().backward()
        if step % 2 == 0:
            patches = [data_.unfold(1, 3, 2).unfold(2, 3, 2) for data_ in nn.functional.pad(data, (1, 1, 1, 1))]
            rows = torch.cat([p.permute(1, 2, 0, 3, 4).reshape(-1, 18) for p in patches])
            moment = average(moment, torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], 1), 0.7)
        A = moment + 0.2 * moment.trace() / 19 * torch.eye(19, dtype=torch.float64)
        G = torch.cat([conv.weight.grad.flatten(1), conv.bias.grad[:, None]], 1)
        kept = 0.5 * kept + G @ torch.linalg.inv(A)
        foof.step()
        before = before - 0.1 * kept[:, :-1].view_as(before)
        assert torch.allclose(conv.weight, before, atol=1e-9 * float(before.abs().max()))
    assert torch.equal(damped(torch.eye(2), 0.5), 1.5 * torch.eye(2))
    G, A = draw(2, 3), correlated(9, 3).mT @ correlated(9, 3)
    assert torch.allclose(direction(G, torch.linalg.cholesky(A)), G @ torch.linalg.inv(A))
    with pytest.raises(ValueError, match="closure must be None"):
        foof.step(lambda: None)


def test_an_optimizer_without_its_package_says_which_and_why(monkeypatch):
    assert missing("adam") == ""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "opt_einsum" else real(name))
    assert "161 GB" in missing("kron")
    assert "opt_einsum" in missing("kron")
    made, absent = plan.arms(Peer(network="transformer"))
    assert set(absent) == {"PSGD-Kron", "BatchNorm", "IterNorm"}
    assert not set(made) & set(absent)
    with pytest.raises(RuntimeError, match="opt_einsum not installed"):
        run(Peer(optimizer="kron", **SMALL))


# ---------------------------------------------------------------------------------------------- layers, by their papers


def test_both_iterations_are_their_recursions_and_end_at_the_inverse_root():
    S = torch.cov(correlated(50, 5, amount=0.3).mT)
    values, vectors = torch.linalg.eigh(S)
    exact = vectors * values.rsqrt() @ vectors.mT
    assert torch.allclose(iterative_root(S, 12), exact, atol=1e-8)
    assert torch.allclose(coupled_root(S, 60), exact, atol=1e-8)
    P = torch.eye(5, dtype=torch.float64)
    for _ in range(2):
        P = (3 * P - P @ P @ P @ S / S.trace()) / 2
    assert torch.allclose(iterative_root(S, 2), P / S.trace() ** 0.5, atol=1e-12)
    # In exact arithmetic the two are one iteration from different norms of S: equal where the norms are.
    D = torch.eye(1, dtype=torch.float64) * 3.0
    assert torch.allclose(iterative_root(D, 3), coupled_root(D, 3), atol=1e-12)
    assert [block_size(n) for n in (784, 256, 48, 9, 288)] == [56, 64, 48, 9, 48]


@pytest.mark.parametrize("shape", [(500, 6), (40, 6, 5, 5)])
def test_iternorm_whitens_and_evaluates_by_running_averages(shape):
    x = correlated(math.prod(shape) // 6, 6, amount=0.3).view(shape[0], *shape[2:], 6).movedim(-1, 1)
    layer = IterNorm(6, iterations=12, largest=3, eps=0.0, momentum=1.0).double()
    y = layer(x).movedim(1, -1).reshape(-1, 6)
    for group in y.split(3, 1):
        assert torch.allclose(group.mT @ group / len(group), torch.eye(3, dtype=torch.float64), atol=1e-8)
    assert y.mean(0).abs().max() < 1e-9
    assert torch.allclose(layer.eval()(x), layer.train()(x), atol=1e-9)  # of momentum 1
    assert layer.eval()(x).shape == x.shape


def test_deconvolution_is_a_layer_on_whitened_patches_and_passes_gradients_through():
    torch.manual_seed(0)
    x = correlated(300, 6)
    layer = DeconvolvedLinear(6, 4, iterations=40, largest=3, eps=0.0).double()
    mean, root = layer.statistics(x)
    white = torch.cat([(x - mean)[:, i : i + 3] @ r for i, r in zip((0, 3), root, strict=True)], 1)
    for block in white.split(3, 1):
        assert torch.allclose(block.mT @ block / 300, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(layer(x), white @ layer.weight.mT + layer.bias, atol=1e-9)
    conv = DeconvolvedConv2d(2, 3, 3, stride=2, padding=1, iterations=40, eps=1e-6, momentum=1.0).double()
    images = draw(6, 2, 8, 8)
    rows = nn.functional.unfold(images, 3, padding=1, stride=2).mT.flatten(0, 1)
    mean, root = conv.statistics(rows)
    slow = (rows - mean) @ root[0] @ conv.weight.flatten(1).mT + conv.bias
    found = conv(images).flatten(2).mT.flatten(0, 1)
    assert torch.allclose(found, slow, atol=1e-8)
    assert torch.allclose(conv.eval()(images), conv.train()(images), atol=1e-9)
    a = draw(12, 3).requires_grad_()
    small = DeconvolvedLinear(3, 2, eps=1e-3).double()
    assert torch.autograd.gradcheck(lambda x: small(x), (a,))


def test_arms_of_one_seed_start_from_equal_weights_in_every_network():
    for kind in NETWORKS:
        plain = {n: p for n, p in network(Peer(network=kind)).named_parameters() if p.dim() > 1}
        for layers in KINDS:
            if kind == "transformer" and layers in NORMALISATIONS:
                with pytest.raises(ValueError, match="has LayerNorm"):
                    network(Peer(network=kind, layers=layers))
                continue
            model = network(Peer(network=kind, layers=layers))
            found = [p for p in bp_parameters(model) if p.dim() > 1]
            assert len(found) == len(plain)
            assert all(torch.equal(a, b) for a, b in zip(plain.values(), found, strict=True)), (kind, layers)


# ------------------------------------------------------------------------------------------------------------- one run


def test_calibration_error_by_hand():
    p = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.45, 0.55]])
    t = torch.tensor([0, 1, 1, 1])
    # Bins of 1/10: (0.9, 1]: accuracy 1/2, confidence .95; (0.6, 0.7]: 1, .65; (0.5, 0.6]: 1, .55.
    assert calibration_error(p, t, bins=10) == pytest.approx((2 * 0.45 + 0.35 + 0.45) / 4)
    assert calibration_error(torch.tensor([[1.0, 0.0]]), torch.tensor([0])) == 0


def test_batches_go_on_pass_after_pass():
    x = torch.arange(10)
    parts = Batches(loader(x, x, 3, generator=torch.Generator().manual_seed(0)), [2, 1, 3])
    found = [[b[0].tolist() for b in parts] for _ in range(3)]
    whole = loader(x, x, 3, generator=torch.Generator().manual_seed(0))
    expected = [b[0].tolist() for b in whole] + [b[0].tolist() for b in whole]
    assert [len(part) for part in found] == [2, 1, 3]
    assert [batch for part in found for batch in part] == expected


@pytest.mark.parametrize("name", plan.ARMS)
def test_every_arm_runs_measures_and_reads_the_test_set_only_where_asked(name):
    made, absent = plan.arms(Peer(**SMALL), [name])
    if absent:
        pytest.fail(f"{name} cannot run here: {absent[name]}")
    record = run(made[name].but(lr_schedule="cosine"))
    assert record["status"] == "finished"
    assert [row["epoch"] for row in record["epochs"]] == [2 / 6, 4 / 6]
    assert 0 <= record["final"]["validation_accuracy"] <= 1
    assert record["epochs"][0]["validation_loss"] != record["epochs"][1]["validation_loss"]
    assert "test_accuracy" not in record["final"]
    short = run(made[name].but(lr_schedule="cosine", curve=False))
    assert short["final"] == record["final"]
    assert "validation_loss" not in short["epochs"][0]
    again = run(made[name].but(lr_schedule="cosine", test=True))
    assert again["epochs"] == record["epochs"]  # to the bit, and the test set has changed nothing
    assert {"test_accuracy", "test_loss", "test_calibration"} < set(again["final"])


def test_validation_images_are_not_trained_on_and_the_mean_is_the_training_images():
    (x, _), (z, _), (test, _) = arrays(Peer(**SMALL))
    assert (len(x), len(z), len(test)) == (300, 200, 10_000)
    assert x.mean(0).abs().max() < 1e-5
    rows = {tuple(row.tolist()) for row in x}
    assert not any(tuple(row.tolist()) in rows for row in z)
    with pytest.raises(ValueError, match="validation is 60000; allowed: 1 to 59999"):
        arrays(Peer(validation=60_000))


def test_a_stored_run_is_named_by_the_versions_of_the_packages_that_step_it(monkeypatch):
    def versions():
        return identity.environment(run, Peer)["data"]["decorlib.study.questions.instead.optimizers"]

    assert versions() == {name: importlib.metadata.version(name) for name in ("pytorch_optimizer", "opt_einsum")}
    assert set(identity.environment(run, Peer)["data"]) >= {"decorlib.data.datasets"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    assert versions() == {"pytorch_optimizer": "9.9", "opt_einsum": "9.9"}


def test_a_run_that_diverges_is_recorded_as_such():
    record = run(Peer(lr=1e30, **SMALL))
    assert record["status"] == "diverged"
    assert record["final"] == {}
    assert record["cause"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "rnn"}, "network is 'rnn'; allowed: mlp, convnet, transformer"),
        ({"layers": "none"}, "layers is 'none'"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"decor_lr": "fast"}, "decor_lr is 'fast'; allowed: a rate, or \"auto\""),
        ({"data": "photos"}, "give content="),
        ({"points": 5, "steps": 4}, "points is 5; allowed: 1 to 4"),
    ],
)
def test_a_specification_names_what_it_may_hold(change, message):
    with pytest.raises(ValueError, match=message):
        Peer(**change)


def test_own_images_run_and_are_refused_where_they_changed(tmp_path):
    path, draws = tmp_path / "own.npz", np.random.default_rng(0)
    sets = {f"x_{k}": draws.integers(0, 256, (n, 28, 28), dtype=np.uint8) for k, n in (("train", 120), ("test", 30))}
    np.savez(path, **sets, y_train=np.arange(120) % 3, y_test=np.arange(30) % 3)
    spec = Peer(**plan.data_sets([str(path)])[str(path)], validation=40, steps=3, points=1, batch_size=20, test=True)
    found = run(spec)
    assert found["status"] == "finished"
    assert network(spec, 3)[-1].out_features == 3
    np.savez(path, **sets, y_train=np.arange(120) % 2, y_test=np.arange(30) % 2)
    with pytest.raises(own.DataDamaged, match="changed since the notebook looked"):
        run(spec.but(content="0" * 64))
    with pytest.raises(own.DataUnavailable, match="is not there"):
        plan.data_sets([str(tmp_path / "nowhere")])


# -------------------------------------------------------------------------------------------------------- tries, plans


def fake(best, spoiled=()):
    """A sweep whose accuracy falls with the distance of log lr from `best`."""

    def sweep(specs, _, desc="", order=None):
        return [
            {"status": "diverged", "final": {}}
            if spec.lr in spoiled
            else {"status": "finished", "final": {tries.METRIC: 1 - abs(math.log(spec.lr / best)) / 100}}
            for spec in specs
        ]

    return sweep


def test_every_arm_gets_as_many_tries_and_the_best_of_full_length_is_chosen(monkeypatch):
    monkeypatch.setattr(tries, "sweep", fake(1e-3))
    made = {"a": Peer(), "b": Peer(layers="R")}
    grids = {"a": {"lr": [1e-4 * 2**i for i in range(9)]}, "b": {"lr": [3e-4, 9e-4, 2.7e-3], "decor_lr": [1, 2, 3]}}
    chosen, table = tries.choose(made, grids, [100])
    assert chosen["a"].lr == 8e-4
    assert chosen["b"].lr == 9e-4
    counts = table[table["moved"] == 0].groupby(["arm", "part"]).size().unstack()
    assert counts.loc["a"].tolist() == counts.loc["b"].tolist() == [9, 3, 1]
    assert table["chosen"].sum() == 2
    alone = {"a": {"lr": [1e-3]}, "b": {"lr": [1e-3], "decor_lr": [1]}}
    assert tries.choose(made, alone, [100])[1]["part"].tolist() == [1, 1]  # one try has nothing to be halved for
    with pytest.raises(ValueError, match="unequal numbers of tries"):
        tries.choose(made, grids | {"a": {"lr": [1e-3]}}, [100])
    with pytest.raises(ValueError, match="parts that rise to 1"):
        tries.choose(made, grids, [100], rounds=(1, 0.5))


def test_a_rate_on_the_edge_moves_the_grid_until_it_is_none_or_eight_times(monkeypatch):
    monkeypatch.setattr(tries, "sweep", fake(1e-2, spoiled=[1e-3 * 2**2]))
    chosen, table = tries.choose({"a": Peer()}, {"a": {"lr": [2.5e-4, 5e-4, 1e-3, 2e-3]}}, [100])
    assert chosen["a"].lr == 2e-3  # 4e-3 diverged: no edge
    assert table["diverged"].sum() == 1
    monkeypatch.setattr(tries, "sweep", fake(1e-2))
    chosen, table = tries.choose({"a": Peer()}, {"a": {"lr": [2.5e-4, 5e-4, 1e-3, 2e-3]}}, [100])
    assert chosen["a"].lr == pytest.approx(8e-3)
    assert table["moved"].max() == 3
    monkeypatch.setattr(tries, "sweep", fake(1.0))
    _, table = tries.choose({"a": Peer()}, {"a": {"lr": [2.5e-4, 5e-4, 1e-3, 2e-3]}}, [100])
    assert table["moved"].max() == 8
    assert table.loc[table["chosen"], "edge"].tolist() == ["lr = 0.512 is the largest of 12"]


def test_arms_get_steps_by_their_cost_and_rates_by_their_optimizer():
    made, absent = plan.arms(Peer(steps=400))
    assert absent == {}
    budget = plan.within_budget(made, 400)
    assert budget[plan.ADAM].steps == 400
    assert budget["SOAP"].steps < budget["BatchNorm"].steps < 400
    assert {spec.update_every for spec in budget.values() if spec.layers not in plan.LEARNING} == {Peer().update_every}
    assert set(plan.STEP) == set(NETWORKS)
    assert all(set(own) | {plan.ADAM} >= set(plan.ARMS) - {"BatchNorm", "IterNorm"} for own in plan.STEP.values())
    found = plan.rates(made, [1e-3, 2e-3, 4e-3], [1e-4, 1e-3], {"damping": [0.1, 1.0], "shrinkage": [0.5, 0.9]})
    assert {math.prod(len(v) for v in own.values()) for own in found.values()} == {6}
    assert set(found["R"]) == {"lr", "decor_lr"}
    assert set(found["R, auto rate"]) == {"lr"}
    assert found["Muon with R"]["lr"] == pytest.approx([2e-3, 4e-3, 8e-3])
    with pytest.raises(ValueError, match="give as many of each"):
        plan.rates(made, [1e-3], [1e-4, 1e-3], {"damping": [0.1], "shrinkage": [0.5, 0.9]})
    with pytest.raises(ValueError, match="no such arm"):
        plan.arms(Peer(), ["Lion"])
    assert set(plan.OURS) | set(plan.PEERS) >= set(plan.ARMS)
    assert set(plan.WITHOUT) == set(plan.OURS)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("steps", [16, 40, 400, 1600])
def test_an_R_learns_about_fifty_times_in_runs_of_every_length_and_is_paid_for(kind, steps):
    made, _ = plan.arms(Peer(network=kind))
    budget = plan.within_budget(made, steps)
    learning = {name: spec for name, spec in budget.items() if spec.layers in plan.LEARNING}
    assert set(learning) == {*plan.OURS, "exact whitening"}
    for name, spec in learning.items():
        updates = spec.steps // spec.update_every
        assert updates == spec.steps if spec.update_every == 1 else 50 <= updates < 110, name
        a_step = plan.relative_time(name, spec)
        assert spec.steps == spec.points or spec.steps * a_step == pytest.approx(steps, abs=a_step), name
        if steps == 1600:
            assert updates >= 50
            assert tries._trial(spec, 1 / 8).steps // spec.update_every >= 6
    at = {every: plan.relative_time("R", made["R"].but(update_every=every)) for every in (1, 5, 25)}
    assert at[25] == plan.STEP[kind]["R"]  # where it was measured
    assert at[1] - at[5] == pytest.approx(0.8 * plan.UPDATE[kind]["R"])
    assert plan.of_length(learning["R"], 80).update_every == 1
    assert plan.of_length(learning["R"], 200).update_every == 4


def test_how_much_R_has_learned_is_recorded():
    still, moved = (run(Peer(**SMALL, layers="R", update_every=1, decor_lr=rate))["final"] for rate in (1e-12, 1e-2))
    assert still["decor_change"] < 1e-9 < 1e-3 < moved["decor_change"] < 1
    assert "decor_change" not in run(Peer(**SMALL))["final"]
    assert relative_change([torch.eye(4)] * 2, [torch.eye(4), 2 * torch.eye(4)]) == pytest.approx(0.5**0.5)


def test_steps_are_timed_in_as_many_as_an_update_comes_around(monkeypatch):
    counts = {}
    real = plan.some_steps
    monkeypatch.setattr(plan, "some_steps", lambda s, n: counts.update({s.layers: n}) or real(s, n))
    made = {plan.ADAM: Peer(**SMALL), "R": Peer(**SMALL, layers="R", update_every=3)}
    plan.costs(made, batches=4, repeats=1)
    assert counts == {"plain": 4, "R": 6}


def test_memory_counts_every_tensor_once():
    parameters = 784 * 256 + 256 + 256 * 256 + 256 + 2560 + 10
    made, _ = plan.arms(Peer(**SMALL))
    plain = plan.megabytes(made[plan.ADAM])
    assert plain == pytest.approx(3 * 4 * parameters / 1e6, rel=1e-4)  # weights and Adam's two averages
    assert plan.megabytes(made["Muon"]) == pytest.approx(plain - 4 * 256**2 / 1e6, rel=1e-4)  # one average there
    assert plan.megabytes(made["FOOF"]) > 4 * 2 * 785**2 / 1e6
    found = plan.costs({n: made[n] for n in (plan.ADAM, "R")}, batches=2, repeats=1)
    assert found.loc[plan.ADAM, "of Adam"] == 1
    assert (found["ms"] > 0).all()


def test_as_many_steps_are_timed_as_asked_also_where_images_are_fewer(monkeypatch):
    seen, real = [], plan.F.cross_entropy
    monkeypatch.setattr(plan.F, "cross_entropy", lambda y, t: seen.append(len(t)) or real(y, t))
    call = plan.some_steps(Peer(**SMALL), batches=8)  # there are 6 in a pass
    call()
    call()
    assert seen == [50] * 16


def test_updates_that_preserve_the_function_leave_the_outputs_as_they_were():
    made, _ = plan.arms(Peer(**SMALL, update_every=1), ["R", "R, function preserved"])
    apart = {}
    for name, spec in made.items():
        (x, t), *_ = arrays(spec)
        model = network(spec)
        _, R = owners(spec, model)
        before = model.train()(x[:50])
        nn.functional.cross_entropy(before, t[:50]).backward()
        R.step()
        apart[name] = float((model(x[:50]) - before).detach().abs().max())
    assert apart["R, function preserved"] < 1e-5 < apart["R"] / 10


# ---------------------------------------------------------------------------------------------------------- comparison


def cell(ours, peer, name="MLP, mnist", other=None, learned=0.5, scores=()):
    """A cell with given accuracies of 'R' and 'Muon' by seed; validation prefers these two."""
    accuracies = {"Adam": [0.9] * len(ours) if other is None else other, "Muon": peer, "R": ours}
    table = pd.DataFrame(
        [
            {"arm": a, "seed": s, "lr": 1e-3, "steps": 5, "status": "diverged" if v is None else "finished"}
            | dict.fromkeys(comparison.COLUMNS, v)
            for a, values in accuracies.items()
            for s, v in enumerate(values)
        ]
    )
    table[list(comparison.COLUMNS)] = table[list(comparison.COLUMNS)].astype(float)
    table[comparison.LEARNED] = learned
    scores = {"Adam": 0.5, "Muon": 0.7, "R": 0.6} | dict(scores)
    chosen = pd.DataFrame([{"arm": a, tries.METRIC: v, "chosen": True} for a, v in scores.items()])
    return comparison.Cell(name, dict.fromkeys(accuracies, Peer()), chosen, table, [])


def test_the_compared_pair_is_picked_on_validation_images_and_the_least_flattering_peer_stands_first():
    one = cell([0.97, 0.98, 0.975], [0.96, 0.97, 0.966], other=[0.99, 1.0, 0.995])
    assert (one.ours, one.peer) == ("R", "Muon")  # Adam's better test accuracy has no say
    assert one.effect.interval == paired([0.97, 0.98, 0.975], [0.96, 0.97, 0.966])
    found = comparison.differences(one.wide, "R", ["Muon", "Adam"])
    assert list(found) == ["Adam", "Muon"]
    table = comparison.difference_table(found, 0.002)
    assert table.loc["Adam", "outcome"] == "harmful"
    assert table.loc["Muon", "low, all rows"] < table.loc["Muon", "low"]
    assert set(comparison.added(one.wide)) == {"R minus Adam"}
    verdict = comparison.verdict(one, 0.002, "small", "annealed")
    assert verdict.outcome == "supported"
    assert verdict.hypothesis == "over what I would use instead, annealed"


def test_a_diverged_run_leaves_out_its_pair_and_decides_nothing():
    """The others stand in every table, sentence and verdict, and say how many were left out."""
    one = cell([0.97, None, 0.975], [0.96, 0.97, 0.965])
    assert one.diverged == 1
    assert one.effect.interval == paired([0.97, 0.975], [0.96, 0.965])
    assert one.effect.interval.low > 0.002  # without what was left out it would be decided
    assert comparison.final_table(one.table).loc["R", "diverged"] == 1
    table = comparison.difference_table(comparison.differences(one.wide, "R", ["Muon", "Adam"]), 0.002)
    assert table["left out"].to_dict() == {"Adam": 1, "Muon": 1}
    assert set(table["outcome"]) == {"undecided"}
    verdict = comparison.verdict(one, 0.002, "", "annealed")
    assert (verdict.outcome, verdict.left_out, verdict.n) == ("undecided", 1, 2)
    best, _ = comparison.uses({"only": one}, 0.002)
    assert best.startswith("No gain of 0.2 points was found in any cell; the nearest to one is only: ")
    assert "n = 2, 1 left out since a run diverged" in best
    assert "undecided" in best
    assert set(comparison.added(one.wide)) == {"R minus Adam"}


@pytest.mark.parametrize(("ours", "n", "estimate"), [([None, None, 0.975], 1, 0.01), ([None] * 3, 0, 0.0)])
def test_where_no_two_pairs_are_whole_the_row_stays_and_says_nothing(ours, n, estimate):
    one = cell(ours, [0.96, 0.97, 0.965])
    assert (one.effect.n, one.effect.left_out) == (n, 3 - n)
    assert (one.effect.low, one.effect.estimate, one.effect.high) == (-1, pytest.approx(estimate), 1)
    other = cell([0.97, 0.98, 0.975], [0.96, 0.97, 0.966])
    _, worst = comparison.uses({"broken": one, "whole": other}, 0.002)
    assert "broken" in worst
    assert comparison.difference_table({"Muon": one.effect}, 0.002).loc["Muon", "outcome"] == "undecided"
    with plt.rc_context():
        figures.differences(one.wide, "R", ["Muon"], 0.002, "a finding")
        figures.forest({"broken": one.effect}, 0.002, "a finding").canvas.draw()
    plt.close("all")


def test_best_use_and_when_not_to_use_it_are_computed():
    good = cell([0.97, 0.98, 0.975, 0.972], [0.95, 0.961, 0.955, 0.952], "ConvNet")
    bad = cell([0.95, 0.961, 0.955, 0.952], [0.97, 0.98, 0.975, 0.972], "MLP")
    best, worst = comparison.uses({"ConvNet": good, "MLP": bad}, 0.002)
    assert best.startswith(
        "The best use found is ConvNet: 'R' minus 'Muon', the hardest of its best peers, +1.98 points [1."
    )
    assert "a gain of more than 0.2 points" in best
    assert "MLP: 'R' minus 'Muon', the hardest of its best peers, -1.98" in worst
    assert "a loss of more than 0.2 points" in worst
    assert worst.startswith("Do not use it for MLP: ")
    assert worst.endswith("a loss of more than 0.2 points.")
    open_ = cell([0.95, 0.96, 0.97], [0.96, 0.95, 0.969], "transformer")
    _, worst = comparison.uses({"ConvNet": good, "MLP": bad, "transformer": open_}, 0.002)
    assert worst.startswith("Do not use it for MLP: ")
    assert worst.endswith("; a gain of 0.2 points was not shown for transformer.")
    less = cell([0.955, 0.965, 0.975], [0.96, 0.97, 0.98], "transformer")
    _, worst = comparison.uses({"ConvNet": good, "MLP": bad, "transformer": less}, 0.002)
    assert "of more than 0.2 points; nor for transformer (-0.50 points [" in worst
    assert "was not shown" not in worst


def test_where_r_stayed_at_the_identity_nothing_is_said_for_it():
    """Whatever made the difference, it was not R: no best use, and a row that is undecided."""
    still = cell([0.97, 0.98, 0.975, 0.972], [0.90, 0.911, 0.905, 0.902], "transformer", learned=0.0003)
    less = cell([0.97, 0.98, 0.975, 0.972], [0.95, 0.961, 0.955, 0.952], "MLP", learned=0.3)
    assert (still.stayed, less.stayed) == (True, False)
    best, worst = comparison.uses({"transformer": still, "MLP": less}, 0.002)
    assert best.startswith("The best use found is MLP: ")
    assert worst.endswith("R stayed within 1% of the identity, and decides nothing, in transformer.")
    table = comparison.cell_table({"transformer": still, "MLP": less}, 0.002).set_index("cell")
    assert table["outcome"].to_dict() == {"transformer": "undecided", "MLP": "supported"}
    assert table["|R - I| / |I|"].to_dict() == {"transformer": pytest.approx(0.0003), "MLP": pytest.approx(0.3)}
    best, _ = comparison.uses({"transformer": still}, 0.002)
    assert "undecided about 0.2 points" in best
    rows = [comparison.verdict(one, 0.002, "1,000 images", "annealed") for one in (still, less)]
    assert [row.outcome for row in rows] == ["undecided", "supported"]
    assert rows[0].unsaid == "R stayed within 1% of the identity"


def test_of_peers_that_validation_cannot_tell_apart_the_least_favourable_one_decides():
    scores = {"Adam": 0.9605, "BatchNorm": 0.9610, "Muon": 0.9560}
    chosen = pd.DataFrame([{"arm": a, tries.METRIC: v, "chosen": True} for a, v in scores.items()])
    assert comparison.as_good(chosen, list(scores), 2000) == ["Adam", "BatchNorm"]  # a standard error is 0.43 points
    assert comparison.as_good(chosen, list(scores), 200_000) == ["BatchNorm"]
    one = cell([0.97, 0.98, 0.975], [0.96, 0.97, 0.966], other=[0.99, 1.0, 0.995], scores={"Adam": 0.699})
    assert one.peer == "Adam"


def test_curves_have_the_seconds_of_their_steps_and_figures_show_every_arm_and_cell(monkeypatch, tmp_path):
    monkeypatch.setenv("DECORLIB_ENGINE", "serial")
    monkeypatch.setenv("DECORLIB_CACHE", str(tmp_path))
    made, _ = plan.arms(Peer(**SMALL), [plan.ADAM, "BatchNorm", "Muon", "R"])
    grids = plan.rates(made, [1e-3], [1e-3], {"damping": [0.1], "shrinkage": [0.9]})
    found = comparison.cells({"MLP": made}, {"MLP": grids}, [100], range(2), tries.choose)["MLP"]
    assert found.ours == "R"
    assert found.diverged == 0
    cost = pd.DataFrame({"ms": [1.0, 2.0, 3.0, 4.0]}, index=list(made))
    rows = comparison.curves(found.table, found.records, found.chosen, cost)
    assert rows.loc[rows["arm"] == "R", "seconds"].tolist() == [0.008, 0.016] * 2
    assert rows.loc[rows["arm"] == "R", "epoch"].tolist() == [2 / 6, 4 / 6] * 2
    fig = figures.against(rows, "seconds", ["error", "validation_loss"], "a finding")
    assert [ax.get_title() or ax.get_title(loc="left") for ax in fig.axes[:3]] == list(plan.GROUPS)
    assert [t.get_text() for t in fig.axes[-1].get_legend().get_texts()] == [plan.ADAM, "R"]
    others = comparison.differences(found.wide, "R", plan.PEERS)
    assert set(others) == {plan.ADAM, "BatchNorm", "Muon"}
    fig = figures.differences(found.wide, "R", list(others), 0.002, "a finding")
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [f"minus {name} (n = 2)" for name in others]
    fig = figures.forest({"MLP: R minus Adam": others[plan.ADAM]}, 0.002, "a finding")
    assert fig.axes[0].get_yticklabels()[0].get_text() == "MLP\nR minus Adam (n = 2)"
    plt.close("all")
