"""Credit other than backpropagation's: beside slow versions, beside the gradient, and in the networks of the study."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from torch import nn

from decorlib.layers import Decorrelation, bp_parameters, decor_modules
from decorlib.study.experiments import credit, experiment, flops, networks, side_by_side
from decorlib.study.experiments.experiment import Experiment
from decorlib.study.experiments.feedback import DirectFeedback, FeedbackAlignment
from decorlib.study.experiments.perturbation import Perturbed, passed

OURS = {"rule": "kappa", "decorrelated": "deeper", "layer_options": (("center", "batch"),)}
ARMS = {
    "plain": {"rule": None},
    "demeaned": {"rule": None, "normalisation": "mean"},
    "BatchNorm": {"rule": None, "normalisation": "batch"},
    "R": OURS,
    "R, not centred": OURS | {"layer_options": ()},
}
WIDTHS = (5, 4)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def problem(arm="R", batch=6, features=7, seed=0):
    """A small network in float64 whose R and BatchNorm are no longer the identity, inputs and targets."""
    torch.manual_seed(seed)
    network = networks.build(Experiment(hidden=WIDTHS, seed=seed, **ARMS[arm]), features).double()
    for _, layer in decor_modules(network):
        layer.weight.data += 0.3 * torch.randn(layer.weight.shape, dtype=torch.float64)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.weight.data += 0.3 * torch.randn(layer.weight.shape, dtype=torch.float64)
    return network, torch.randn(batch, features, dtype=torch.float64), torch.randint(10, (batch,))


def linears(network):
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def parts(network, x):
    """(R, mean, W, b) of each layer as lists, from a clean pass in training mode."""
    entering = []
    hooks = [layer.register_forward_pre_hook(lambda _, a: entering.append(a[0].detach())) for layer in linears(network)]
    network(x)
    for hook in hooks:
        hook.remove()
    eye = [torch.eye(layer.in_features, dtype=x.dtype) for layer in linears(network)]
    R = [getattr(layer, "decorrelation", None) for layer in linears(network)]
    Rs = [I if r is None else r.weight.detach() for I, r in zip(eye, R, strict=True)]
    centred = [r is not None and r.center is not None for r in R]
    means = [h.mean(0) if c else torch.zeros(h.shape[1], dtype=x.dtype) for h, c in zip(entering, centred, strict=True)]
    return Rs, means, [w.weight.detach() for w in linears(network)], [w.bias.detach() for w in linears(network)]


def gradients(network):
    return [(layer.weight.grad, layer.bias.grad) for layer in linears(network)]


def close(found, expected, tolerance=1e-12):
    for mine, theirs in zip(found, expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def learn(model, loss, x, t):
    model.zero_grad()
    loss(model(x), t).backward()


def backpropagated(network, x, t):
    learn(network, F.cross_entropy, x, t)
    return [tuple(g.clone() for g in pair) for pair in gradients(network)]


@pytest.mark.parametrize("arm", ["plain", "R, not centred"])
def test_feedback_alignment_is_its_equations(arm):
    """The mean that a centred R subtracts has a derivative, which is backpropagation's: see the next test."""
    network, x, t = problem(arm)
    model = FeedbackAlignment(network, generator()).double()
    constants = parts(network, x)
    learn(model, F.cross_entropy, x, t)
    backwards = [getattr(model, f"B{depth}") for depth in range(3)]
    close(gradients(network), reference.credit_gradients(x, t, *constants, backwards))


@pytest.mark.parametrize("arm", ARMS)
def test_feedback_through_the_weights_themselves_is_backpropagation(arm):
    network, x, t = problem(arm)
    expected = backpropagated(network, x, t)
    model = FeedbackAlignment(network, generator()).double()
    for depth, layer in enumerate(linears(network)):
        assert getattr(model, f"B{depth}").shape == layer.weight.shape
        setattr(model, f"B{depth}", layer.weight.detach().clone())
    learn(model, F.cross_entropy, x, t)
    close(gradients(network), expected)


def test_another_feedback_gives_another_gradient_below_the_last_layer_alone():
    network, x, t = problem("R")
    expected = backpropagated(network, x, t)
    for kind in (FeedbackAlignment, DirectFeedback):
        learn(kind(network, generator()).double(), F.cross_entropy, x, t)
        close(gradients(network)[-1:], expected[-1:])
        for mine, theirs in zip(gradients(network)[:-1], expected[:-1], strict=True):
            assert (mine[0] - theirs[0]).norm() > 0.1 * theirs[0].norm()


@pytest.mark.parametrize("arm", ["plain", "R"])
def test_direct_feedback_is_its_equations(arm):
    """With R and its demeaning too: nothing passes through them on the way back."""
    network, x, t = problem(arm)
    model = DirectFeedback(network, generator()).double()
    constants = parts(network, x)
    learn(model, F.cross_entropy, x, t)
    backwards = [model.B0, model.B1]
    assert [B.shape for B in backwards] == [(10, 5), (10, 4)]
    close(gradients(network), reference.credit_gradients(x, t, *constants, backwards, direct=True))


@pytest.mark.parametrize("arm", ["plain", "R"])
@pytest.mark.parametrize("how", ["node", "activity"])
def test_perturbed_nodes_are_their_equations(arm, how):
    network, x, t = problem(arm)
    model = Perturbed(network, how, generator(), sigma=0.1)
    constants = parts(network, x)
    learn(model, model.loss, x, t)
    expected = reference.node_estimate(x, t, *constants, model.noise, 0.1, activity=how == "activity")
    close(gradients(network), expected, 1e-10)


@pytest.mark.parametrize("arm", ["plain", "R"])
def test_perturbed_weights_are_their_equations(arm):
    network, x, t = problem(arm)
    model = Perturbed(network, "weight", generator(), sigma=0.1)
    constants = parts(network, x)
    learn(model, model.loss, x, t)
    of = {id(parameter): draw for parameter, *draw in model.noise}
    draws = []
    for layer in linears(network):
        (r, s, Z), (xi,) = of[id(layer.weight)], of[id(layer.bias)]
        draws.append(([torch.outer(r[i], s[i]) * Z for i in range(len(x))], xi))
        assert {1.0, -1.0} == set(r.unique().tolist()) == set(s.unique().tolist())
    close(gradients(network), reference.weight_estimate(x, t, *constants, draws, 0.1), 1e-10)


def estimates(model, x, t, exact, draws):
    """Of many draws: length along the gradient over its own, with standard error; the same of every number."""
    found = []
    for _ in range(draws):
        learn(model, model.loss, x, t)
        found.append(torch.cat([p.grad.flatten() for p in bp_parameters(model)]))
    found = torch.stack(found)
    along = found @ exact / exact.square().sum()
    return (along.mean(), along.std() / draws**0.5), (found.mean(0), found.std(0) / draws**0.5)


def is_unbiased(model, draws):
    """As long as the gradient along it, so that a tenth more or less is seen; across it nothing beyond chance."""
    x = torch.randn(32, 7, generator=generator(), dtype=torch.float64)
    t = torch.randint(10, (32,), generator=generator(2))
    learn(model.network, F.cross_entropy, x, t)
    exact = torch.cat([p.grad.flatten() for p in bp_parameters(model)])
    (along, error), (mean, errors) = estimates(model, x, t, exact, draws)
    assert float(error) < 0.025, "too few draws to tell a tenth apart"
    assert abs(float(along) - 1) < 3 * float(error)
    z = (mean - exact) / errors
    assert float(z.abs().max()) < 4.5
    assert 0.6 < float(z.square().mean()) < 1.4


@pytest.mark.parametrize(("how", "draws"), [("node", 3000), ("weight", 6000)])
def test_the_mean_estimate_is_the_gradient(how, draws):
    """Where no statistics of the batch are in the way."""
    is_unbiased(Perturbed(problem("plain")[0], how, generator(), sigma=1e-4), draws)


def test_activity_perturbation_is_the_gradient_on_average_where_there_is_one_layer():
    """Of more layers the noise that comes from below is in the change, so that the mean is another direction."""
    torch.manual_seed(0)
    is_unbiased(Perturbed(nn.Sequential(nn.Linear(7, 10)).double(), "activity", generator(), sigma=1e-4), 2000)


@pytest.mark.parametrize("how", ["node", "weight"])
@pytest.mark.parametrize("arm", ["BatchNorm", "demeaned", "R"])
def test_the_noisy_pass_is_that_of_the_network_with_its_statistics_held(arm, how):
    """Passing on differences is passing on the noisy values, where sigma is large."""
    network, x, _ = problem(arm)
    model = Perturbed(network, how, generator(), sigma=0.3)
    scores = model(x).detach()
    torch.testing.assert_close(scores, network(x).detach())
    torch.testing.assert_close(scores + model.changes[-1], noisy_pass(network, model, x), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def noisy_pass(network, model, x):
    """Clean and noisy values side by side, with the draws of a perturbed model, and weights of every sample's own."""
    draws, clean, noisy, sigma = iter(model.noise), x, x, model.sigma
    for depth, block in enumerate(networks.blocks(network)):
        for step in block:
            if isinstance(step, nn.LeakyReLU):
                continue
            mean, variance = clean.mean(0), clean.var(0, unbiased=False)
            if isinstance(step, nn.Linear | nn.BatchNorm1d):
                of_weight, of_bias = torch.zeros(len(x), *step.weight.shape), torch.zeros(len(x), *step.bias.shape)
                if model.how == "weight" and isinstance(step, nn.Linear):
                    (_, r, s, Z), (_, of_bias) = next(draws), next(draws)
                    of_weight = torch.stack([torch.outer(r[i], s[i]) * Z for i in range(len(x))])
                elif model.how == "weight":
                    (_, of_weight), (_, of_bias) = next(draws), next(draws)
                weights, biases = step.weight + sigma * of_weight, step.bias + sigma * of_bias
            if isinstance(step, nn.Linear):
                clean = clean @ step.weight.T + step.bias
                noisy = torch.stack([weights[i] @ noisy[i] + biases[i] for i in range(len(x))])
            elif isinstance(step, nn.BatchNorm1d):
                clean, noisy = ((part - mean) / (variance + step.eps).sqrt() for part in (clean, noisy))
                clean, noisy = clean * step.weight + step.bias, noisy * weights + biases
            else:  # demeaning, and R
                R = step.weight if isinstance(step, Decorrelation) else torch.eye(len(mean), dtype=x.dtype)
                clean, noisy = ((part - mean) @ R.T for part in (clean, noisy))
        if model.how == "node":
            noisy = noisy + sigma * next(draws)
        if depth < len(WIDTHS):
            clean, noisy = block[-1](clean), block[-1](noisy)
    return noisy


@pytest.mark.parametrize("name", credit.CREDITS[1:])
@pytest.mark.parametrize("arm", ARMS)
def test_a_network_is_itself_in_evaluation_and_all_of_it_learns(name, arm):
    network, x, t = problem(arm)
    weights = {n: p.detach().clone() for n, p in network.named_parameters()}
    model, loss = credit.assign(network, name, seed=3)
    model.double().eval()
    torch.testing.assert_close(model(x), network(x))
    model.train()
    learn(model, loss, x, t)
    assert torch.isfinite(loss(model(x), t))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in bp_parameters(model))
    assert all(torch.equal(p, weights[n]) for n, p in network.named_parameters())
    assert [id(p) for p in bp_parameters(model)] == [id(p) for p in bp_parameters(network)]


def test_the_loss_of_a_perturbed_network_is_that_of_the_clean_pass():
    network, x, t = problem("R")
    expected = F.cross_entropy(network(x), t).item()
    for how in ("node", "activity", "weight"):
        model = Perturbed(network, how, generator())
        assert math.isclose(model.loss(model(x), t).item(), expected, rel_tol=1e-12)


def test_feedback_and_noise_leave_the_global_generator_alone():
    network, x, t = problem("R")
    before = torch.get_rng_state()
    for name in credit.CREDITS:
        model, loss = credit.assign(network, name, seed=3)
        learn(model.double(), loss, x, t)
    assert torch.equal(torch.get_rng_state(), before)


def test_who_only_backpropagates_refuses_another_credit():
    """Timings, counts and trainers of other notebooks would take it for backpropagation without a word."""
    spec = Experiment(credit="feedback alignment", hidden=(8,))
    with pytest.raises(ValueError, match=r"'feedback alignment' is credit.assign"):
        networks.build(spec, 784)
    with pytest.raises(ValueError, match="credit is 'feedback alignment'; the work of backpropagation is all"):
        flops.experiment(spec)


def test_what_is_not_there_is_refused():
    network, *_ = problem("plain")
    with pytest.raises(ValueError, match="credit is 'luck'; allowed: backpropagation, feedback alignment"):
        credit.assign(network, "luck", 0)
    for how, sigma in (("luck", 1.0), ("node", 0.0), ("node", math.nan)):
        with pytest.raises(ValueError, match=r"how = .*sigma = "):
            Perturbed(network, how, generator(), sigma)
    model = Perturbed(
        nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.LeakyReLU(), nn.Linear(3, 2)), "node", generator()
    )
    with pytest.raises(TypeError, match="LayerNorm is no module that perturbations know"):
        model(torch.randn(2, 3))


def test_experiments_learn_by_every_credit_and_say_which():
    base = Experiment(train_size=1280, hidden=(32, 32), epochs=4, batch_size=32, demean_inputs=True, seed=1, lr=3e-3)
    base, found = base.but(measures="task", decor_lr=1e-3), {}
    for name in credit.CREDITS:
        for arm in ("plain", "R"):
            spec = base.but(credit=name, **ARMS[arm])
            assert (side_by_side.kind(spec) is None) == (name != credit.BACKPROPAGATION)
            record = experiment.run(spec)
            assert record["status"] == "finished"
            found[name, arm] = record["final"]
    assert len({final["train_loss"] for final in found.values()}) == len(found)
    assert all(final["train_loss"] < math.log(10) - 0.1 for final in found.values())
    assert all(final["test_accuracy"] > 0.5 for (name, _), final in found.items() if name != "weight perturbation")
    again = experiment.run(base.but(credit="node perturbation", rule=None))["final"]
    assert again == found["node perturbation", "plain"]


def test_a_credit_is_for_mlps():
    with pytest.raises(ValueError, match="credit is 'node perturbation'; allowed: backpropagation"):
        Experiment(model="convnet", credit="node perturbation")


def test_a_small_difference_passes_a_leaky_relu_without_losing_digits():
    """In float32 h + d - h of d = 1e-7 h has hardly a digit; where d crosses the kink the subtraction has them all."""
    last = nn.LeakyReLU()
    h = torch.randn(1000, generator=generator())
    d = 1e-7 * h.roll(1)
    exact = last(h.double() + d.double()) - last(h.double())
    assert (
        (passed(last, h, d).double() - exact).abs() <= 1e-6 * exact.abs() + 1e-15
    ).all()  # the latter: float64's own
    assert ((last(h + d) - last(h)).double() - exact).abs().max() > 0.1 * exact.abs().max()
    across = passed(last, torch.tensor([1e-4, -1e-4]), torch.tensor([-3e-4, 3e-4]))
    torch.testing.assert_close(across, torch.tensor([-0.02e-4 - 1e-4, 2e-4 + 0.01e-4]))
    assert passed(nn.Identity(), h, d) is d
