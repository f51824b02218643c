"""Counts against torch's own counter of products, and against cases small enough to count by hand."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decorlib import DecorConv2d, DecorLinear, Decorrelation
from decorlib.layers.models import decor_parameters, decor_update
from decorlib.rules.catalogue import make_rule
from decorlib.study.experiments import flops, networks
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.questions.rules.comparison import ARMS


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# what torch's counter does not know, in D^3
FACTORISATIONS = {"Foldiak": flops.LU + flops.SOLVES, "exact ZCA": flops.EIGEN, "exact PCA": flops.EIGEN}
FACTORISATIONS["exact Cholesky"] = flops.CHOLESKY + flops.TRIANGULAR_SOLVES


@pytest.mark.parametrize("batch", [4, 12, 20])  # B < D, B = D, B > D
@pytest.mark.parametrize("name", ARMS)
def test_counts_are_those_of_the_code(name, batch):
    D, rule = 12, ARMS[name].build()
    layer = Decorrelation(D, rule=rule)
    x = torch.randn(batch, D, generator=torch.Generator().manual_seed(0))

    def step():
        layer(x)
        layer.update(1e-3)

    expected = flops.alone(rule, batch, D).total - FACTORISATIONS.get(name, 0) * D**3
    assert counted(step) == pytest.approx(expected)


def test_by_hand_two_samples_of_three_features():
    work = flops.alone(make_rule("plain"), 2, 3)
    assert work.forward == 2 * 2 * 3 * 3  # 2 x 3 times 3 x 3: 18 products of one multiplication and one addition
    assert (work.statistics, work.update) == (36, 36)  # (2x3)(3x3) and (3x2)(2x3... x3): never a 3 x 3 x 3 product
    assert work.loss == 2 * 2 * 2 * 3  # the 2 x 2 Gram matrix
    assert work.total == 132
    dense = flops.learning(make_rule("plain"), 5, 3)
    assert (dense.statistics, dense.update, dense.loss) == (2 * 5 * 9, 2 * 27, 0)


def test_the_exact_update_is_cheaper_than_the_dense_one_where_the_readme_says():
    factored = flops.learning(make_rule("seed"), 64, 784)
    assert factored.statistics + factored.update == 4 * 64 * 784**2
    dense = 2 * 64 * 784**2 + 2 * 784**3
    assert dense / (factored.statistics + factored.update) == pytest.approx(6.6, abs=0.1)


def test_refresh_shares_the_work_among_the_steps():
    rule = make_rule("exact", kind="cholesky")
    once, shared = (flops.learning(rule, 8, 16, n) for n in (1, 10))
    assert shared.total == pytest.approx(once.total / 10)
    with pytest.raises(TypeError, match="newton_schulz"):
        flops.learning(make_rule("exact", solver="newton_schulz"), 8, 16)


@pytest.mark.parametrize("batch", [16, 100])  # the second fuses its last layer
@pytest.mark.parametrize("rule", [None, make_rule("kappa")])
def test_a_network_counts_as_it_runs(rule, batch):
    widths = (24, 12, 5)
    make = nn.Linear if rule is None else lambda D, M: DecorLinear(D, M, rule=rule)
    model = nn.Sequential(make(24, 12), nn.ReLU(), make(12, 5))
    x = torch.randn(batch, 24, generator=torch.Generator().manual_seed(0))

    def step():
        model(x).sum().backward()
        if rule is not None:
            decor_update(model, 1e-3)

    assert counted(step) == pytest.approx(flops.mlp(rule, batch, widths).total)


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_counted_layers_are_those_of_the_network(model):
    """One list of shapes serves counting, building and budgeting: it must be what is built."""
    for where in ("all", "first", "deeper"):
        spec = Experiment(model=model, hidden=(7, 5), rule="kappa", decorrelated=where)
        built = [m for m in networks.build(spec, 784).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        shapes = networks.shapes(spec)
        assert [M for *_, M in shapes] == [len(layer.weight) for layer in built]
        assert [C * kernel for _, _, C, kernel, _ in shapes] == [layer.weight[0].numel() for layer in built]
        has_R = [any(True for _ in decor_parameters(layer)) for layer in built]
        assert [networks.decorrelates(spec, depth) for depth in range(len(shapes))] == has_R


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("outputs", [2, 40])  # (W R) is the cheaper form, or R and then W
def test_counts_of_a_convolution_on_a_map_smaller_than_its_kernel_are_those_of_the_code(size, outputs):
    layer, rule = DecorConv2d(4, outputs, 3, padding=1, bias=False), make_rule("kappa")
    layer.decorrelation.learning = False
    x = torch.randn(8, 4, size, size, requires_grad=True)
    seen = 4 * (1 if size == 1 else 9)
    work = flops.decor_linear(rule, 8 * size**2, 36, outputs, update_every=10**9, seen=seen)  # it never learns
    counts = counted(lambda: layer(x).sum().backward())
    assert counts == pytest.approx(work.total, rel=1e-6)
