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
