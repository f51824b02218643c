"""Calls as users write them. A type checker has to refuse each line that ends with ``# bad``, and no other.

Read by mypy --strict and pyright (tests/test_types.py), and never run.
"""

import torch
from torch import nn

from decorlib import (
    DecorConv2d,
    DecorConvTranspose2d,
    DecorLinear,
    DecorOptimizer,
    Decorrelation,
    DecorSGD,
    KappaRule,
    NotebookRule,
    bp_parameters,
    conversion_report,
    decor_step,
    decorrelate,
    fuse,
    make_rule,
    train,
)

net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

# ------------------------------------------------------------------------------------------------- decorrelate and fuse
model = decorrelate(net)
decorrelate(net, "kappa")
decorrelate(net, KappaRule(kappa=0.3))
decorrelate(net, rule="seed")
decorrelate(net, rule=None)
decorrelate(net, rule=NotebookRule(variance=1.0), include=["0", nn.Conv2d], exclude="2", max_features=100)
decorrelate(net, "whitening", span="channel", sample_input=torch.zeros(1, 4), decor_bias=True)
decorrelate(net, center="batch", momentum=None, bias_reduction="sum", update_every=25, fraction=0.1)
decorrelate(net, center=None, accumulate=True, generator=torch.Generator(), calibration=[torch.zeros(2, 4)])
plain: nn.Module = fuse(model.eval())
print(conversion_report(net, span="patch").converted)

decorrelate(net, rule="kapa")  # bad
decorrelate(net, "Kappa")  # bad
decorrelate(net, KappaRule)  # bad
decorrelate(net, rule=0.5)  # bad
decorrelate(net, centre="batch")  # bad
decorrelate(net, center="mean")  # bad
decorrelate(net, center=True)  # bad
decorrelate(net, span="channels")  # bad
decorrelate(net, update_every=0.5)  # bad
decorrelate(net, fraction="0.1")  # bad
decorrelate(net, bias_reduction="max")  # bad
decorrelate(net, groups=2)  # bad
decorrelate(net, eta=1.0)  # bad
decorrelate(net, generator=0)  # bad
decorrelate("resnet18")  # bad
conversion_report(net, span="pixel")  # bad
fuse(net, 3, 4)  # bad

# --------------------------------------------------------------------------------------------------------------- layers
Decorrelation(4)
Decorrelation(4, True, 1.0, 1.0)
Decorrelation(4, variance="input")
Decorrelation(4, variance=torch.ones(4))
Decorrelation(4, rule="exact", groups=2, center="running")
Decorrelation(4, rule="kappa").update(lr=1e-3, max_step=0.5)

Decorrelation(4, rule="exakt")  # bad
Decorrelation(4, centre="batch")  # bad
Decorrelation(4, center="on")  # bad
Decorrelation("4")  # bad
Decorrelation(4, variance="inputs")  # bad
Decorrelation()  # bad
Decorrelation(4).update(rate=1e-3)  # bad

linear = DecorLinear(4, 8)
DecorLinear(4, 8, False, rule="kappa", groups=2, center="bias", fuse=True)
DecorLinear(in_features=4, out_features=8, bias=False, variance=1.0, eta=1.0, device="cpu", dtype=torch.float64)
y: torch.Tensor = linear.forward(torch.zeros(2, 4))

DecorLinear(4, 8, rule="kapa")  # bad
DecorLinear(4, 8, centre="batch")  # bad
DecorLinear(4, 8, center="mean")  # bad
DecorLinear(4, 8, span="patch")  # bad
DecorLinear(4)  # bad
DecorLinear(4, 8, accumulate="yes")  # bad

DecorConv2d(3, 16, 3, padding=1, rule="kappa", span="channel", fraction=0.1)
DecorConv2d(3, 16, (3, 3), 1, "same", groups=1, center="batch", update_every=5)

DecorConv2d(3, 16, 3, rule="kapa")  # bad
DecorConv2d(3, 16, 3, span="channels")  # bad
DecorConv2d(3, 16, 3, centre="batch")  # bad
DecorConv2d(3, 16)  # bad
DecorConv2d(3, 16, 3, update_each=5)  # bad
DecorConv2d(3, 16, "3")  # bad
DecorConv2d(3, 16, 3, padding="full")  # bad

DecorConvTranspose2d(3, 16, 3, stride=2, output_padding=1, rule="foldiak", fraction=0.5)

DecorConvTranspose2d(3, 16, 3, rule="földiák")  # bad
DecorConvTranspose2d(3, 16, 3, centre="batch")  # bad
DecorConvTranspose2d(3, 16, 3, span="channel")  # bad

# ---------------------------------------------------------------------------------------------------- rules, optimizers
KappaRule(kappa=0.5)
make_rule("kappa", kappa=0.5)

KappaRule(kapa=0.5)  # bad
make_rule(KappaRule)  # bad

weights = torch.optim.Adam(bp_parameters(model), lr=1e-3)
matrices = DecorSGD(model, lr=1e-4)
DecorSGD(model, 1e-4, max_step=0.5, skip_unreached=True).step()
DecorSGD([linear], lr="auto")
DecorSGD([("first", linear)], lr=1e-4)
DecorSGD([{"params": model, "lr": 1e-3}, {"params": [linear]}], lr=1e-4)
DecorOptimizer(model, torch.optim.Adam, lr=1e-4, betas=(0.9, 0.99)).zero_grad()
DecorOptimizer(model, torch.optim.SGD, 1e-4, momentum=0.9)
torch.optim.lr_scheduler.StepLR(matrices, step_size=10)
losses: dict[str, torch.Tensor | None] = decor_step(model, lr=1e-4)
train(
    model,
    nn.functional.cross_entropy,
    [(torch.zeros(2, 4), torch.zeros(2).long())],
    epochs=1,
    optimizer=weights,
    decor_optimizer=matrices,
)

DecorSGD(model)  # bad
DecorSGD(model, lr="1e-4")  # bad
DecorSGD(model, rate=1e-4)  # bad
DecorSGD(model, lr=1e-4, momentum=0.9)  # bad
DecorSGD(model.parameters(), lr=1e-4)  # bad
DecorOptimizer(model, "adam", lr=1e-4)  # bad
DecorOptimizer(model, lr=1e-4)  # bad
DecorOptimizer(model, torch.optim.Adam, lr="1e-4")  # bad
decor_step(model)  # bad
decor_step(model, lr=None)  # bad
