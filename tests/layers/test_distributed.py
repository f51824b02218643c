"""Two processes with halves of the data learn what one process learns from all of it."""

import copy
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import decorlib
from decorlib import DecorConv2d, DecorLinear, KappaRule, SeedRule, decor_modules, decor_parameters, decor_update

pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs gloo")

STEPS, D, BATCH = 20, 6, 24
PARALLEL = ("rule kappa, unequal", "center batch, kappa, unequal", "learned bias, sum, unequal")

RULES = {
    "kappa": KappaRule(kappa=0.3),
    "seed": SeedRule(variance=1.0),
    "seed, variance of the input": SeedRule(variance="input"),
    "adaptive gain": decorlib.AdaptiveGainRule(),
    "adaptive gain, raw": decorlib.AdaptiveGainRule(norm="raw"),
    "triangular": decorlib.TriangularRule(kappa=0.3),
    "foldiak": decorlib.FoldiakRule(),
    "exact, averaged": decorlib.ExactWhitening(momentum=0.3),
}


def configurations():
    """name -> (options of the layers, shares of the two processes)."""
    even, uneven = (BATCH // 2, BATCH - BATCH // 2), (5, BATCH - 5)
    cases = {"rule kappa": ({"rule": RULES["kappa"]}, even)}
    cases |= {f"rule {name}, unequal": ({"rule": rule}, uneven) for name, rule in RULES.items()}
    for center, rule in [("batch", "kappa"), ("running", "adaptive gain"), ("batch", "adaptive gain, raw")]:
        cases[f"center {center}, {rule}, unequal"] = ({"rule": RULES[rule], "center": center}, uneven)
    for reduction in ("mean", "sum"):
        options = {"rule": RULES["kappa"], "decor_bias": True, "bias_reduction": reduction}
        cases[f"learned bias, {reduction}, unequal"] = (options, uneven)
    cases["every second, bounded step"] = ({"rule": RULES["kappa"], "update_every": 2, "center": "running"}, uneven)
    cases["accumulated"] = ({"rule": RULES["kappa"], "accumulate": True}, uneven)
    return cases


def model_of(options):
    torch.manual_seed(0)
    return nn.Sequential(
        DecorConv2d(2, 3, 2, **options),
        nn.Flatten(),
        nn.Tanh(),
        DecorLinear(12, D, **options),
        nn.Tanh(),
        DecorLinear(D, 2, **options),
    ).double()


def data(step):
    return torch.randn(BATCH, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) + 0.3


def learn(options, share, parallel=False):
    """20 steps on a share of each batch, with the loss of the joint batch's mean; the final state."""
    model = model_of(options)
    wrapped = nn.parallel.DistributedDataParallel(model) if parallel else model
    rate, bound = (0.02, 0.9 if options.get("update_every") else None)
    optimizer = torch.optim.SGD(decorlib.bp_parameters(model), lr=0.05)
    decor_optimizer = torch.optim.SGD(decor_parameters(model), lr=rate)
    world = dist.get_world_size() if dist.is_initialized() else 1
    losses = []
    for step in range(STEPS):
        part = data(step)[share]
        optimizer.zero_grad()
        # DDP averages gradients over processes: weighed by the size of the share, that is the mean over all samples.
        (wrapped(part).square().sum() * world / BATCH).backward()
        if world > 1 and not parallel:
            gradients = [p.grad for p in decorlib.bp_parameters(model)]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for g, pooled in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                g.copy_(pooled.view_as(g) / world)
        optimizer.step()
        if options.get("accumulate"):  # a second micro-batch, the same on purpose: it must not change the average
            model(part)
        losses += [loss for loss in decor_update(model, rate, bound).values() if loss is not None]
        decor_optimizer.step()
    return {"losses": torch.stack(losses)} | {name: t.clone() for name, t in model.state_dict().items()}


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {"alone": {}, "parallel": {}, "copy": copied(rank), "sharded": sharded()}
    for name, (options, sizes) in configurations().items():
        share = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        results["alone"][name] = learn(options, share)
        if name in PARALLEL:
            results["parallel"][name] = learn(options, share, parallel=True)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def copied(rank):
    """R of a copy that has learned from this process's data."""
    pair = dist.new_group([0, 1])
    layer = DecorLinear(3, 2, rule=KappaRule(), process_group=pair)
    twin = copy.deepcopy(layer)  # as torch does for averaged models, and decorlib.fuse
    assert twin.decorrelation.process_group is pair
    assert not list(decor_modules(decorlib.fuse(layer)))
    twin(torch.randn(4 + rank, 3))
    twin.step(0.1)
    return twin.decorrelation.weight.detach()


def sharded():
    """What a step of R says where R was sharded, and R after it where it was left whole."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    torn, whole = DecorLinear(4, 2), DecorLinear(4, 2)
    fully_shard(torn)
    fully_shard(whole, ignored_params=set(decor_parameters(whole)))
    x = torch.randn(8, 4)
    torn(x).sum().backward()
    said = ""
    try:
        torn.step(0.1)
    except RuntimeError as error:
        said = str(error)
    whole(x).sum().backward()
    whole.step(0.1)
    alone = DecorLinear(4, 2)
    alone(x)
    alone.step(0.1)
    return {"said": said, "R": whole.decorrelation.weight.detach(), "expected": alone.decorrelation.weight.detach()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes ended with."""
    folder = tmp_path_factory.mktemp("two")
    mp.start_processes(worker, (str(folder),), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_joint(name, ranks):
    options, _ = configurations()[name]
    one = learn(options, slice(None))
    for key, value in ranks[0].items():
        if key == "losses" or ".decorrelation." in key:
            assert torch.equal(value, ranks[1][key]), f"ranks differ in {key}"
        torch.testing.assert_close(value, one[key], rtol=1e-8, atol=1e-10, msg=lambda m, key=key: f"{key}: {m}")
    start = model_of(options).state_dict()
    moved = [key for key in start if key.endswith("decorrelation.weight")]
    assert len(moved) == 3
    for key in moved:
        assert (ranks[0][key] - start[key]).abs().max() > 1e-3, key


@pytest.mark.parametrize("name", configurations())
def test_two_processes_learn_what_one_does(name, ranks):
    assert_joint(name, [results["alone"][name] for results in ranks])


@pytest.mark.parametrize("name", PARALLEL)
def test_under_distributed_data_parallel(name, ranks):
    assert_joint(name, [results["parallel"][name] for results in ranks])


def test_statistics_of_one_share_alone_would_be_noticed():
    """The comparison has teeth: a process that pools nothing ends elsewhere."""
    options, sizes = configurations()["rule kappa, unequal"]
    alone, joint = learn(options, slice(0, sizes[0])), learn(options, slice(None))
    assert (alone["0.decorrelation.weight"] - joint["0.decorrelation.weight"]).abs().max() > 1e-3


def test_a_copy_shares_the_process_group(ranks):
    assert torch.equal(ranks[0]["copy"], ranks[1]["copy"])
    assert not torch.equal(ranks[0]["copy"], torch.eye(3))


def test_sharded_r_is_refused_with_the_way_that_works(ranks):
    for results in ranks:
        found = results["sharded"]
        assert "sharded (a DTensor)" in found["said"]
        assert "decorlib.conversion.shard(model) in place of fully_shard(model)" in found["said"]
        torch.testing.assert_close(found["R"], found["expected"])
        assert not torch.equal(found["R"], torch.eye(4))


def micro_batches(accumulate):
    """R after one step on a batch in four parts under DDP's no_sync, which R does not take part in."""
    torch.manual_seed(0)
    model = DecorLinear(6, 2, accumulate=accumulate, dtype=torch.float64)
    for part in data(0).flatten(1)[:, :6].split(6):
        model(part).square().sum().backward()
    model.step(0.1)
    return model.decorrelation.weight.detach()


def test_micro_batches_are_one_batch_with_accumulation_and_a_warning_without():
    whole = DecorLinear(6, 2, dtype=torch.float64)
    whole(data(0).flatten(1)[:, :6])
    whole.step(0.1)
    torch.testing.assert_close(micro_batches(True), whole.decorrelation.weight.detach(), rtol=1e-12, atol=1e-12)
    with pytest.warns(RuntimeWarning, match="accumulate=True uses all"):
        last = micro_batches(False)
    assert (last - whole.decorrelation.weight).abs().max() > 1e-3
