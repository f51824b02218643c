"""torch.compile, in a process of its own: the shape checks that tests switch on cannot be traced."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import torch
from torch import nn
from decorlib import (
    DecorConv2d,
    DecorConvTranspose2d,
    DecorLinear,
    KappaRule,
    decor_parameters,
    decor_step,
    decor_update,
)

torch.set_num_threads(1)
graphs = []

def backend(graph, _):
    graphs.append(graph)
    return graph.forward

def linear(**options):
    return nn.Sequential(DecorLinear(5, 7, **options), nn.ReLU(), DecorLinear(7, 3, **options)), (12, 5)

def conv(**options):
    up = {} if options.get("center") is None else {"rule": KappaRule()}
    layers = DecorConv2d(2, 4, 3, padding=1, **options), nn.ReLU(), DecorConv2d(4, 4, 2, span="channel", **options)
    return nn.Sequential(*layers, DecorConvTranspose2d(4, 2, 2, rule=KappaRule())), (6, 2, 5, 5)

for make in (linear, conv):
    for options, expected in [
        ({}, 1),
        ({"center": "running", "decor_bias": True}, 1),
        ({"center": "batch", "momentum": None, "fraction": 0.5}, 1),
        ({"update_every": 3}, 2),  # one that remembers, one that does not
    ]:
        results = []
        for compiled in (True, False):
            torch._dynamo.reset()
            torch.manual_seed(0)
            net, shape = make(rule=KappaRule(), **options)
            forward = torch.compile(net, backend=backend, fullgraph=True) if compiled else net
            graphs.clear()
            for step in range(7):
                torch.manual_seed(step)
                forward(torch.randn(shape)).sum().backward()
                decor_step(net, 0.01)
            results.append(net.state_dict())
            if compiled:
                # more would be a graph per step: something in forward that changes with every step
                allowed = expected + (make is conv and "update_every" in options)
                assert len(graphs) <= allowed, (make, options, len(graphs))
                assert len(graphs) >= expected
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        start = make(rule=KappaRule(), **options)[0].state_dict()
        moved = [k for k in start if k.endswith("decorrelation.weight")]
        assert moved and all(not torch.equal(results[0][k], start[k]) for k in moved)
print("compiled")
"""


@pytest.mark.slow
def test_compiled_without_a_break_and_without_compiling_again_at_every_step():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]


INDUCTOR = """
import torch
from torch import nn
from decorlib import AdaptiveGainRule, DecorLinear, ExactWhitening, KappaRule, SeedRule, decor_modules, decor_step

torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.randn(64, 8)
# kappa first: compiled code is found again in inductor's cache by the next ones
for rule in (KappaRule(), AdaptiveGainRule(), ExactWhitening(), SeedRule(variance="input")):
    torch._dynamo.reset()
    torch.manual_seed(0)
    compiled = nn.Sequential(DecorLinear(8, 8, rule=rule), nn.ReLU(), DecorLinear(8, 8, rule=rule))
    torch.manual_seed(0)
    eager = nn.Sequential(DecorLinear(8, 8, rule=rule), nn.ReLU(), DecorLinear(8, 8, rule=rule))
    for step in range(2):
        for forward in (torch.compile(compiled, fullgraph=True), eager):
            forward(x).square().sum().backward()
        for (_, one), (_, other) in zip(decor_modules(compiled), decor_modules(eager), strict=True):
            kept, expected = (layer.memory.joined(layer.transform) for layer in (one, other))
            torch.testing.assert_close(kept, expected, rtol=1e-4, atol=1e-4)
        decor_step(compiled, 1e-3), decor_step(eager, 1e-3)
print("kept")
"""


@pytest.mark.slow
def test_what_is_remembered_outlives_the_compiled_backward(tmp_path):
    """Compiled backward writes over buffers that it takes for its own; a clone in the graph is one of them."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", INDUCTOR], capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.stdout.strip() == "kept", done.stderr[-3000:]


CHECKPOINTED = """
import warnings
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from decorlib import DecorLinear, decor_step, decorrelate

torch.set_num_threads(1)
x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 3

class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key = (nn.Linear(6, size).double() for size in (6, 4))
    def forward(self, x):
        return torch.cat([self.query(x), self.key(x)], -1).tanh()

def built(share, **options):
    torch.manual_seed(0)
    more = {} if options.get("center") is None else {"sample_input": x}
    model = Reading() if share else nn.Sequential(nn.Linear(6, 6).double(), nn.Tanh())
    return decorrelate(model, share=[("query", "key")] if share else (), **more, **options)

def checked(f, reentrant):
    return lambda x: checkpoint(f, x, use_reentrant=reentrant)

def trained(way, backend, reentrant, share=False, **options):
    torch._dynamo.reset()
    model = built(share, **options)
    run = {
        "eager": lambda: model,
        "checkpoint(compiled)": lambda: checked(torch.compile(model, backend=backend), reentrant),
        "compiled(checkpoint)": lambda: torch.compile(checked(model, reentrant), backend=backend),
    }[way]()
    found = []
    for _ in range(3):
        z = x.clone().requires_grad_()
        model.zero_grad()
        run(z).square().sum().backward()
        layer = next(m for m in model.modules() if isinstance(m, DecorLinear))
        decor_step(model, 0.01)
        found += [z.grad, layer.weight.grad.clone(), layer.decorrelation.weight.detach().clone()]
    return [*found, *(b.clone() for b in model.buffers())]

outcomes = {}
for share in (False, True):
    for options in ({}, {"accumulate": True}, {"center": "batch"}, {"center": "running"}, {"update_every": 2}):
        expected = trained("eager", None, False, share, **options)
        for backend in ("eager", "aot_eager"):
            for reentrant in (False, True):
                for way in ("checkpoint(compiled)", "compiled(checkpoint)"):
                    if way == "compiled(checkpoint)" and reentrant:
                        continue  # torch does not trace it
                    try:
                        with warnings.catch_warnings():
                            warnings.simplefilter("error", RuntimeWarning)
                            found = trained(way, backend, reentrant, share, **options)
                    except RuntimeError as error:
                        said = str(error)
                        assert "compile what calls checkpoint" in said or "share an R cannot be compiled" in said, said
                        outcomes[share, way, *options.values()] = "refused"
                        continue
                    except RuntimeWarning as warning:  # of several forwards, of which it cannot tell that they are one
                        assert share and way == "checkpoint(compiled)" and "several training forwards" in str(warning)
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore", RuntimeWarning)
                            found = trained(way, backend, reentrant, share, **options)
                    torch.testing.assert_close(found, expected, msg=lambda m: f"{share, options, backend, way}: {m}")
                    outcomes.setdefault((share, way, *options.values()), "right")
for outcome in sorted((f"{key} {value}" for key, value in outcomes.items())):
    print(outcome)
"""


@pytest.mark.slow
def test_checkpoints_around_and_inside_of_compiled_layers_are_right_or_refused():
    """Compiled code does not know whether it is a forward or its recomputation, and tracks no batch twice unnoticed."""
    done = subprocess.run([sys.executable, "-c", CHECKPOINTED], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert len(outcomes) == 20
    inside = [value for key, value in outcomes.items() if key.startswith("(False, 'compiled(checkpoint)'")]
    assert inside == ["right"] * 5
    around = {key: value for key, value in outcomes.items() if key.startswith("(False, 'checkpoint(compiled)'")}
    assert sorted(around.values()) == ["refused", "refused", "right", "right", "right"]
    assert around["(False, 'checkpoint(compiled)', 'batch')"] == "right"
    assert around["(False, 'checkpoint(compiled)', 'running')"] == "refused"
    shared = {value for key, value in outcomes.items() if key.startswith("(True, 'compiled(checkpoint)'")}
    assert shared == {"refused"}


PART_OF_A_KERNEL = """
import copy
import torch
import torch._dynamo.testing
from decorlib import DecorConv2d, KappaRule
from decorlib.layers import conv_part

torch.set_num_threads(1)
for fuse in (True, False):
    torch._dynamo.reset()
    torch.manual_seed(0)
    eager = DecorConv2d(2, 3, 3, padding=1, center="batch", fuse=fuse, rule=KappaRule(kappa=0.5), dtype=torch.float64)
    eager.decorrelation.weight.data += 0.3 * torch.randn_like(eager.decorrelation.weight)
    twin = copy.deepcopy(eager)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(twin, backend=graphs, fullgraph=True)
    for _ in range(3):
        x = torch.randn(4, 2, 1, 1, dtype=torch.float64, requires_grad=True)
        assert conv_part.seen_part(eager, x) is not None
        results = []
        for forward, layer in ((eager, eager), (compiled, twin)):
            z = forward(x)
            gradients = torch.autograd.grad(z.square().sum(), (x, layer.weight, layer.bias))
            loss = layer.step(1e-2)
            results.append([z, *gradients, layer.decorrelation.weight.detach().clone(), loss])
        torch.testing.assert_close(*results)
    assert graphs.frame_count == 1
print("compiled")
"""


def test_a_part_of_a_kernel_compiles_to_one_graph_that_learns_the_same():
    done = subprocess.run([sys.executable, "-c", PART_OF_A_KERNEL], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "compiled", done.stderr[-3000:]
