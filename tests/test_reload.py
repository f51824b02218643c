"""The library is edited and reloaded under a running notebook, as %autoreload does: its layers stay what they are."""

import subprocess
import sys
import textwrap

SCRIPT = """
import copy, importlib, sys
import torch
from torch import nn
from torch.optim import optimizer as hooks
from decorlib import DecorSGD, bp_parameters, decor_parameters, decor_step, decorrelate

torch.manual_seed(0)
x = torch.randn(64, 8) @ torch.randn(8, 8)
model = decorrelate(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
other = copy.deepcopy(model)
optimizer = DecorSGD(model, lr=1e-2)
for _ in range(20):
    model(x)
    decor_step(model, 1e-2)
    other(x)
    decor_step(other, 1e-2)
pairs = len(hooks._global_optimizer_pre_hooks)
names = [name for name in sys.modules if name.split(".")[0] == "decorlib"]
for name in 2 * sorted(names, key=lambda name: -name.count(".")):  # packages hand on what their modules define
    importlib.reload(sys.modules[name])
import decorlib

assert type(model[0]) is not decorlib.DecorLinear, "nothing was reloaded"
assert len(hooks._global_optimizer_pre_hooks) == pairs
before = model[0].decorrelation.weight.clone()
model(x)
assert set(decorlib.decor_step(model, 1e-2)) == {"0.decorrelation", "2.decorrelation"}
other(x)
decor_step(other, 1e-2)
assert not torch.equal(before, model[0].decorrelation.weight)
model(x)
optimizer.step()
other(x)
decorlib.DecorSGD(other, lr=1e-2).step()
assert torch.equal(other[0].decorrelation.weight, model[0].decorrelation.weight)
sgd = torch.optim.SGD(decorlib.decor_parameters(model), lr=1e-2)
model(x)
decorlib.decor_update(model)
sgd.step()
assert all(p.grad is None for p in decor_parameters(model))
assert len(list(decorlib.bp_parameters(model))) == 4
history = decorlib.train(model, nn.functional.cross_entropy, [(x, torch.randint(2, (64,)))] * 3, epochs=1,
                         optimizer=torch.optim.Adam(bp_parameters(model)), decor_optimizer=optimizer)
assert set(history[0].decor_losses) == {"0.decorrelation", "2.decorrelation"}
plain = decorlib.fuse(model.eval())
assert [type(layer) for layer in plain] == [nn.Linear, nn.ReLU, nn.Linear]
assert torch.allclose(plain(x), model(x), atol=1e-4)
print("R moved")
"""


def test_steps_go_on_after_every_module_was_reloaded():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "R moved", done.stderr
