"""FSDP2 on two processes, beside DistributedDataParallel: R stays whole, and all learn what one process learns."""

import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from decorlib import DecorSGD, KappaRule, bp_parameters, decor_modules, decor_step, decorrelate, fuse
from decorlib.conversion import shard

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs gloo"),
    pytest.mark.filterwarnings("ignore:center='running' subtracts the mean:UserWarning"),
]
STEPS, D, BATCH, MICRO = 6, 6, 24, 2


def plain():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(D, D), nn.Tanh()) for _ in range(2)]
    return nn.Sequential(*blocks, nn.Linear(D, 2)).double()


def converted(model):
    return decorrelate(model, KappaRule(kappa=0.3), center="running", accumulate=True)


def data(step):
    mixing = torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    return torch.randn(BATCH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) @ mixing + 0.3


def learn(model, rank, world, synchronise=lambda last: None):
    """Steps of several micro-batches, gradients accumulated without synchronisation but for the last."""
    optimizer = torch.optim.SGD(bp_parameters(model), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        for i, batch in enumerate(data(step).chunk(MICRO)):
            synchronise(i == MICRO - 1)
            part = batch.chunk(world)[rank]
            (model(part).square().sum() * world / BATCH).backward()
        optimizer.step()
        decor_step(model, 0.02)


def whole(state):
    return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for k, v in state.items()}


def refused(model):
    try:
        fuse(model)
    except ValueError as error:
        return str(error)


def accumulating(model):
    return lambda last: model.set_requires_gradient_sync(last)


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}

    model = nn.parallel.DistributedDataParallel(converted(plain()))
    learn(model, rank, 2, lambda last: setattr(model, "require_backward_grad_sync", last))  # what no_sync() sets
    results["DDP"] = whole(model.module.state_dict())
    results["fuse DDP"] = refused(model)
    results["same"] = bool((fuse(model.module)(data(0)) - model.module.eval()(data(0))).abs().max() < 1e-10)

    model = shard(converted(plain()), units=[nn.Sequential, "2"])
    assert all(type(layer.weight) is nn.Parameter for _, layer in decor_modules(model))
    assert type(model[2].weight) is not nn.Parameter
    learn(model, rank, 2, accumulating(model))
    results["shard"] = whole(model.state_dict())
    results["fuse sharded"] = refused(model)

    from torch.distributed.fsdp import fully_shard

    model = plain()
    for block in (model[0], model[1], model):
        fully_shard(block)
    model = converted(model)
    learn(model, rank, 2, accumulating(model))
    results["decorrelated afterwards"] = whole(model.state_dict())

    model = fully_shard(converted(plain()))  # R sharded with the weights
    results["error"] = ""
    model(data(0).chunk(2)[rank]).sum().backward()
    try:
        decor_step(model, 0.02)
    except RuntimeError as error:
        results["error"] = str(error)

    # Without a backward the root keeps what it gathered: an R that looks whole, and is dropped with what it learned.
    model = fully_shard(converted(plain()))
    optimizers = {"decor_step": None, "DecorSGD": DecorSGD(model, 0.02)}
    for way, optimizer in optimizers.items():
        results[f"no backward, {way}"] = ""
        model(data(0).chunk(2)[rank])
        try:
            decor_step(model, 0.02) if optimizer is None else optimizer.step()
        except RuntimeError as error:
            results[f"no backward, {way}"] = str(error)
    model = shard(converted(plain()))
    model(data(0).chunk(2)[rank])
    decor_step(model, 0.02)
    results["no backward, whole"] = model[2].decorrelation.weight.detach().clone()
    model(data(0).chunk(2)[rank]).sum().backward()
    results["no backward, then one"] = model[2].decorrelation.weight.detach().clone()

    model = nn.parallel.DistributedDataParallel(decorrelate(plain(), accumulate=True))
    batches = [data(i) for i in range(2 + rank)]  # one process has a batch more
    results["join"] = ""
    try:
        with model.join(throw_on_early_termination=True):
            for batch in batches:
                model(batch).sum().backward()
                decor_step(model, 1e-3)
    except RuntimeError as error:
        results["join"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    mp.start_processes(worker, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one():
    model = converted(plain())
    learn(model, 0, 1)
    return model.state_dict()


@pytest.mark.parametrize("way", ["DDP", "shard", "decorrelated afterwards"])
def test_two_processes_learn_what_one_does(way, ranks, one):
    assert set(ranks[0][way]) == set(one)
    for key, value in one.items():
        torch.testing.assert_close(ranks[0][way][key], ranks[1][way][key], rtol=0, atol=0, msg=f"ranks differ in {key}")
        if not key.endswith("running_mean"):
            torch.testing.assert_close(
                ranks[0][way][key], value, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}"
            )
    moved = one["0.0.decorrelation.weight"] - torch.eye(D, dtype=torch.float64)
    assert moved.abs().max() > 1e-3


def test_a_step_of_a_sharded_r_names_the_way_out(ranks):
    for results in ranks:
        assert "decorlib.conversion.shard" in results["error"]
        assert "0.0.decorrelation" in results["error"]


@pytest.mark.parametrize("way", ["decor_step", "DecorSGD"])
def test_a_step_without_a_backward_of_a_sharded_r_is_not_lost(way, ranks):
    for results in ranks:
        assert "R is sharded" in results[f"no backward, {way}"]
        assert "decorlib.conversion.shard" in results[f"no backward, {way}"]
        kept = results["no backward, whole"]
        assert torch.equal(kept, results["no backward, then one"])
        assert (kept - torch.eye(D, dtype=torch.float64)).abs().max() > 1e-4


def test_fuse_refuses_what_is_wrapped_or_sharded(ranks):
    for results in ranks:
        assert "wrapped in DistributedDataParallel, which cannot be copied: fuse its .module" in results["fuse DDP"]
        assert results["same"]
        assert "sharded by fully_shard: gather its state_dict" in results["fuse sharded"]


def test_uneven_inputs_end_join_with_an_error_and_no_process_waits(ranks):
    for results in ranks:
        assert "exhausted" in results["join"]


def test_patterns_that_match_nothing_and_r_itself_are_refused():
    model = converted(plain())
    with pytest.raises(ValueError, match="'blocks' matches no module"):
        shard(model, units="blocks")
    with pytest.raises(ValueError, match=r"layer '2\.decorrelation' is a Decorrelation, which stays whole"):
        shard(model, units="2.decorrelation")
