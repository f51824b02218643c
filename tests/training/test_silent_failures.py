"""What once went wrong without a word, or could: each is an error or a warning that names the layer and the way out."""

import pytest
import torch
from torch import nn

import decorlib
from decorlib import DecorLinear, KappaRule, SilentNoOp, bp_parameters, decor_parameters, decor_step, decor_update
from decorlib.study.experiments import notebook_2024
from decorlib.training.train import train

D = 5
HALF = KappaRule(kappa=0.5)


def batches(count=3, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(count, 16, D, generator=generator)
    return [(part, part[:, :2].sum(1, keepdim=True).relu()) for part in x]


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(DecorLinear(D, 4, rule=HALF, **options), nn.ReLU(), DecorLinear(4, 1, rule=HALF, **options))


def trained(model, data=None, *, lr=0.01, decor_lr=0.01, epochs=3, loss=nn.functional.mse_loss, **options):
    owners = {
        "optimizer": torch.optim.SGD(bp_parameters(model), lr=lr),
        "decor_optimizer": torch.optim.SGD(decor_parameters(model), lr=decor_lr),
    }
    return train(model, loss, batches() if data is None else data, epochs=epochs, **(owners | options))


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def unchanged(model, before):
    return all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---------------------------------------------------------------------------------------------------- R not moving


@pytest.mark.parametrize("in_place", [True, False])
def test_a_rate_that_rounding_swallows_is_an_error_that_names_every_layer(in_place):
    said = r"the first step: .*'0\.decorrelation', '2\.decorrelation'.*1e-60 is lost in rounding.*allow_no_op=True"
    with pytest.raises(SilentNoOp, match=said):
        trained(network(), decor_lr=1e-60, in_place=in_place)


def test_one_layer_that_stands_still_among_others_is_a_warning_that_names_it():
    model = network()
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1)  # every unit is dead, so the second layer sees zeros only
    with pytest.warns(RuntimeWarning, match=r"R of \['2\.decorrelation'\] did not move: .*sees only zeros"):
        trained(model, epochs=1)


def test_a_rate_of_zero_was_asked_for_and_says_nothing():
    model = network()
    trained(model, decor_lr=0.0)
    assert torch.equal(model[0].decorrelation.weight, torch.eye(D))


def test_the_mistake_of_2024_is_caught_at_its_first_step(monkeypatch):
    """The library is edited under the running notebook: update() reports its loss and sets no gradient any more."""
    models, steps = [], []
    build, step = notebook_2024.model, torch.optim.SGD.step
    monkeypatch.setattr(notebook_2024, "model", lambda run: models.append(build(run)) or models[-1])
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(step(self)))
    with notebook_2024.hot_reloaded(), pytest.raises(SilentNoOp) as caught:
        notebook_2024.train(notebook_2024.RUNS[2], notebook_2024.loader())
    said = str(caught.value)
    assert said.startswith("the first step: ")
    assert "update() left no gradient on ['0.decorrelation', '2.decorrelation']" in said
    assert "Restart the kernel" in said
    assert len(steps) == 1
    assert torch.equal(models[0][0].decorrelation.weight, torch.eye(784))


# ------------------------------------------------------------------------------------------- what to learn from


@pytest.mark.parametrize("learn", [decor_update, decor_step])
def test_learning_twice_from_one_batch_is_an_error_that_names_the_layer(learn):
    model = network()
    model(batches()[0][0])
    learn(model, 0.1)
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"layer '0\.decorrelation': .*stale.*run a training forward before"):
        learn(model, 0.1)
    assert unchanged(model, before)


@pytest.mark.parametrize("learn", [decor_update, decor_step])
def test_learning_before_any_forward_is_an_error_that_names_the_layer(learn):
    model = network()
    before = weights(model)
    with pytest.raises(RuntimeError, match=r"layer '0\.decorrelation': .*before any training forward"):
        learn(model, 0.1)
    assert unchanged(model, before)


def test_a_hand_written_loop_in_evaluation_mode_is_an_error_that_names_the_layer():
    model = network().eval()
    model(batches()[0][0])
    with pytest.raises(RuntimeError, match=r"layer '0\.decorrelation': .*evaluation mode.*call model\.train\(\)"):
        decor_update(model)


def test_the_trainer_leaves_evaluation_mode_by_itself():
    model = network().eval()
    trained(model, epochs=1, evaluate=lambda model: {"training": float(model.training)})
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(D))
    assert model.training


def test_a_layer_that_stays_in_evaluation_mode_stands_still():
    """Frozen layers are often kept in evaluation mode by a train() of their own."""
    model = network()
    frozen = model[2].decorrelation
    frozen.train = lambda mode=True: frozen
    frozen.training = False
    history = trained(model)
    assert torch.equal(frozen.weight, torch.eye(4))
    assert not torch.equal(model[0].decorrelation.weight, torch.eye(D))
    assert [set(row.decor_losses) for row in history] == [{"0.decorrelation"}] * 3


class Forgetful(nn.Module):
    """Calls one of its layers and reads the weights of the other, as torch's attention does."""

    def __init__(self):
        super().__init__()
        self.used, self.read = nn.Linear(D, 4), nn.Linear(4, 1)

    def forward(self, x):
        return nn.functional.linear(self.used(x), self.read.weight, self.read.bias)


def test_a_layer_converted_but_never_reached_is_an_error_that_names_it():
    model = decorlib.decorrelate(Forgetful(), rule=HALF)
    with pytest.raises(RuntimeError, match=r"layer 'read\.decorrelation': .*never reached; is it used"):
        trained(model)


def test_with_a_sample_the_layer_that_would_never_be_reached_is_left_alone():
    model = decorlib.decorrelate(Forgetful(), rule=HALF, sample_input=batches()[0][0])
    assert [name for name, _ in decorlib.decor_modules(model)] == ["used.decorrelation"]
    assert trained(model).status == "finished"


# ------------------------------------------------------------------------------------------------ whose R is it


def test_two_optimizers_that_own_r_are_refused_before_anything_is_changed():
    model = network()
    before = weights(model)
    for optimizer in (torch.optim.Adam(model.parameters()), torch.optim.SGD(decor_parameters(model), lr=0.1)):
        said = r"optimizer also owns R of \['0\.decorrelation', '2\.decorrelation'\].*Build it over bp_parameters"
        with pytest.raises(ValueError, match=said):
            trained(model, optimizer=optimizer)
    assert unchanged(model, before)


def test_an_optimizer_of_r_that_owns_weights_is_refused():
    model = network()
    with pytest.raises(ValueError, match=r"decor_optimizer also owns 4 plain weights: build it over decor_parameters"):
        trained(model, decor_optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_layer_whose_r_nobody_owns_is_named():
    model = network()
    partial = torch.optim.SGD(decor_parameters(model[0]), lr=0.1)
    with pytest.raises(ValueError, match=r"no optimizer owns R of \['2\.decorrelation'\]: build decor_optimizer over"):
        trained(model, decor_optimizer=partial)


def test_the_optimizer_of_a_model_before_its_conversion_is_refused():
    """The usual slip: the optimizer is built, then the model is converted, and the new R belong to no one."""
    model = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, 1))
    before = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="decor_optimizer also owns 4 plain weights"):
        trained(decorlib.decorrelate(model, rule=HALF), decor_optimizer=before)


def test_a_plain_model_with_an_optimizer_for_r_is_refused():
    model = nn.Sequential(nn.Linear(D, 1))
    nothing = torch.optim.SGD([{"params": []}], lr=0.1)
    with pytest.raises(ValueError, match=r"no decorrelation layer: see decorlib\.decorrelate"):
        train(model, nn.functional.mse_loss, batches(), epochs=1, optimizer=None, decor_optimizer=nothing)


# -------------------------------------------------------------------------------------------------- not a number


def test_a_loss_that_is_nan_ends_the_run_in_its_first_epoch_with_the_layer_that_saw_it():
    history = trained(network(), loss=lambda y, target: y.sum() * float("nan"))
    assert (history.status, history.diverged_at, len(history)) == ("diverged", 1, 0)
    assert "batch 1: layer '2.decorrelation': " in history.cause
    assert history.cause.count("layer '") == 1
    assert "check the data and the rates" in history.cause


def test_a_loss_that_is_nan_is_seen_where_no_layer_comes_after_the_weights():
    history = trained(network()[:1], loss=lambda y, target: y.sum() * float("nan"))
    assert (history.status, history.diverged_at, len(history)) == ("diverged", 1, 0)
    assert history.cause == "the task loss is not finite over epoch 1"


def test_a_rate_of_r_that_explodes_ends_the_run_and_names_a_layer():
    history = trained(network(), batches(20, scale=30.0), decor_lr=10.0)
    assert history.status == "diverged"
    assert history.diverged_at == 1
    assert "layer '" in history.cause


def test_nan_in_the_data_is_no_divergence_but_an_error_that_names_the_batch():
    data = batches()
    data[1][0][3, 2] = float("nan")
    with pytest.raises(ValueError, match=r"batch 1 of epoch 1 holds NaN or infinity: clean the data"):
        trained(network(), data)
