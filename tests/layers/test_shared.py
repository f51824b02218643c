"""Layers that read one input share one R: beside the same layers with an R each, which then learn the same."""

import copy
import functools
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from decorlib import DecorSGD, KappaRule, calibrate, decor_modules, decorrelate, fuse
from decorlib.layers.summary import summary
from decorlib.rules import work

SHARE = [("*query", "*key", "*value")]


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Reading(nn.Module):
    """Three layers on one input, and one behind them; ``given`` changes what the three are given."""

    def __init__(self, given=lambda x: (x, x, x)):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key, self.value = (nn.Linear(6, size).double() for size in (6, 4, 5))
        self.out, self.given = nn.Linear(15, 2).double(), given

    def forward(self, x):
        q, k, v = self.given(x)
        return self.out(torch.cat([self.query(q), self.key(k), self.value(v)], -1).tanh())


def same(x):
    return x, x, x


def built(share=SHARE, given=same, **options):
    if options.get("center") and "sample_input" not in options:
        options["sample_input"] = draw(7, 6, seed=9)
    return decorrelate(Reading(given), KappaRule(kappa=0.3), share=share, **options)


@pytest.mark.parametrize("fused", [None, True, False])
@pytest.mark.parametrize("center", [None, "running", "batch"])
def test_one_r_learns_what_three_would(center, fused):
    """The same steps, means, gradients and outputs; without a word about several forwards."""
    ends = []
    for share in (SHARE, ()):
        model = built(share, center=center)
        for layer in (model.query, model.key, model.value):
            layer.fuse = fused
        optimizer, adam = DecorSGD(model, 0.05), torch.optim.SGD(model.parameters(), 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(5):
                x = draw(2, 8, 6, seed=step).requires_grad_()
                adam.zero_grad()
                model(x).square().sum().backward()
                adam.step()
                optimizer.step()
        learners = dict(decor_modules(model))
        assert len(learners) == (2 if share else 4)
        R = model.query.decorrelation
        counts = [] if center is None else [R.running_mean, R.num_batches_tracked]
        ends.append([R.weight, R.num_updates, model(x), x.grad, *counts, *(p for p in model.query.parameters())])
        assert (R.weight - torch.eye(6)).abs().max() > 1e-3
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("center", [None, "running", "batch"])
def test_converted_saved_loaded_copied_and_fused(center):
    x = draw(4, 8, 6)
    expected = Reading()(x)
    model = built(center=center, sample_input=x) if center else built()
    assert model.query.decorrelation is model.key.decorrelation is model.value.decorrelation
    torch.testing.assert_close(model.eval()(x), expected, rtol=0, atol=1e-12)
    optimizer = DecorSGD(model.train(), 0.05)
    for _ in range(3):
        model(x).sum().backward()
        optimizer.step()
    trained = model.eval()(x)
    assert (trained - expected).abs().max() > 1e-3
    state = model.state_dict()
    assert state["query.decorrelation.weight"].data_ptr() == state["value.decorrelation.weight"].data_ptr()
    other = built(center=center)
    other.load_state_dict(copy.deepcopy(state))
    model.given = other.given = same
    for twin in (other, pickle.loads(pickle.dumps(built(center=center)))):
        twin.load_state_dict(state)
        assert twin.key.decorrelation is twin.query.decorrelation
        assert torch.equal(twin.eval()(x), trained)
        twin.train()(x).sum().backward()
        DecorSGD(twin, 0.05).step()
    twin = copy.deepcopy(model)
    assert twin.key.decorrelation is twin.query.decorrelation is not model.query.decorrelation
    back = fuse(model, sample_input=x)
    assert {type(m) for m in back.children()} == {nn.Linear}
    torch.testing.assert_close(back(x), trained, rtol=1e-10, atol=1e-10)
    if center:
        moved = calibrate(copy.deepcopy(model), [(x + 3,)])
        torch.testing.assert_close(moved(x), trained, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(moved.key.decorrelation.running_mean, (x + 3).mean((0, 1)))


def test_a_checkpoint_with_three_r_does_not_load_into_one():
    apart = built(())
    apart.key.decorrelation.weight += 0.1
    model = built()
    with pytest.raises(RuntimeError, match=r"key.decorrelation.weight is another than that of \['query.decorrelation"):
        model.load_state_dict(apart.state_dict())


@pytest.mark.parametrize(
    "given",
    [
        lambda x: (x, x + 1, x),
        lambda x: (x, x.clone(), x),
        lambda x: (x, x, x[:, :4]),
        lambda x: (x, x.detach(), x),
    ],
)
def test_inputs_that_are_not_the_same_are_refused(given):
    """Also a copy of the same numbers: that they are the same is not asked of every forward."""
    model = built(given=given)
    x = draw(2, 8, 6).requires_grad_()
    with pytest.raises(RuntimeError, match=r"3 layers share this R.*same tensor.*Leave them out of share"):
        model(x * 1)
    model.given = same  # and the layers go on
    model.query.decorrelation.forget()
    model(x).sum().backward()
    DecorSGD(model, 0.05).step()
    model.given = lambda x: (x, x[:, :8] * 1, x)
    model.eval()(x)  # in evaluation there is nothing to learn, and each layer is what it is
    assert torch.isfinite(model(x)).all()


def test_an_input_that_was_written_to_between_the_layers_is_refused():
    model, write = built(), lambda x: x.add_(1) is None or None
    model.query.register_forward_hook(lambda _layer, inputs, _output: write(inputs[0]))
    with pytest.raises(RuntimeError, match="must read the same tensor, unchanged"):
        model(draw(1, 6))


def test_a_write_that_inference_mode_does_not_count_is_refused_too():
    model, write = built(accumulate=True), []
    model.query.register_forward_hook(lambda _layer, inputs, _output: write[0](inputs[0]) if write else None)
    with torch.inference_mode():
        x = draw(8, 6)
    for within in (True, False):  # a tensor of inference mode is one outside of it as well
        write.clear()
        with torch.inference_mode(within), torch.no_grad():
            model(x)
        DecorSGD(model, 0.05).step()
        write.append(lambda x: x.add_(1) is None or None)
        with torch.inference_mode(), pytest.raises(RuntimeError, match="must read the same tensor, unchanged"):
            model(x)


def test_views_and_two_forwards_on_one_tensor():
    model = built(given=lambda x: (x[0], x[0], x[0]), accumulate=True)
    x = draw(2, 8, 6)
    for _ in range(2):
        model(x)
    assert len(model.key.decorrelation.memory) == 2
    assert int(DecorSGD(model, 0.05).step() is None)


def test_it_rests_only_where_all_of_its_layers_do():
    model = built()
    model.query.requires_grad_(False)
    model(draw(3, 6))
    optimizer = DecorSGD(model, 0.05)
    optimizer.step()
    assert optimizer.losses["query.decorrelation"].isfinite()
    model.key.requires_grad_(False)
    model.value.requires_grad_(False)
    model(draw(3, 6))
    optimizer.step()
    assert optimizer.losses["query.decorrelation"] is None


@pytest.mark.parametrize("center", [None, "running", "batch"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(center, reentrant):
    ends = []
    for checkpointed in (True, False):
        model = built(center=center)
        x = draw(3, 8, 6).requires_grad_()
        run = functools.partial(checkpoint, model, use_reentrant=reentrant) if checkpointed else model
        out = run(x)
        out.square().sum().backward()
        R = model.query.decorrelation
        loss = R.step(0.05)
        ends.append([out, x.grad, model.key.weight.grad, loss, R.weight, *R.buffers()])
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (["*.query"], "groups of at least two patterns"),
        ([("query", "nothing")], r"beside \['query'\] no layer that is converted matches \['nothing'\]"),
        ([("a", "b")], "no layer that is converted matches any of"),
        ([("query", "out")], r"\['query', 'out'\] differ in size"),
        ([("query", "key"), ("key", "value")], r"layers \['key'\] are in two groups"),
    ],
)
def test_groups_that_cannot_share_are_named_and_nothing_is_changed(share, message):
    model = Reading()
    with pytest.raises(ValueError, match=message):
        decorrelate(model, share=share)
    assert not list(decor_modules(model))


def test_the_summary_counts_it_once():
    for options in ({}, {"update_every": 4}, {"fraction": 0.25}):
        rows = list(summary(built(**options), draw(4, 8, 6)))
        assert [(row.name, row.rows) for row in rows] == [("query.decorrelation", 32), ("out.decorrelation", 32)]
        apart = {row.name: row.cost for row in summary(built((), **options), draw(4, 8, 6))}
        rule, widths, sampled = (
            KappaRule(kappa=0.3),
            {"query": 6, "key": 4, "value": 5},
            8 if "fraction" in options else 32,
        )
        plain = {name: work.linear(32, 6, M).total for name, M in widths.items()}
        one = sum((apart[f"{name}.decorrelation"] - 1) * plain[name] for name in widths)
        # Two of three no longer learn, nor compute the states of a sample: they compose (W R), the cheaper form here.
        learning = work.learning(rule, sampled, 6, options.get("update_every", 1)).total
        states = 2 * sampled * 6**2 / options.get("update_every", 1)
        assert rows[0].cost == pytest.approx(1 + (one - 2 * learning - 2 * states) / sum(plain.values()))
        assert 1 < rows[0].cost < max(apart.values())


@pytest.mark.parametrize("kept", ["query", "key", "value"])
def test_a_file_that_has_the_shared_r_once_loads(kept):
    """safetensors writes what is shared once, under any of its names; that was refused, or warned of."""
    model = built()
    for _ in range(5):
        model(draw(32, 6))
        DecorSGD(model, 0.05).step()
    left = {"query", "key", "value"} - {kept}
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(tuple(f"{n}.decorrelation" for n in left))}
    other = built()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == left
    x = draw(4, 6, seed=3)
    torch.testing.assert_close(other.eval()(x), model.eval()(x), rtol=0, atol=0)
