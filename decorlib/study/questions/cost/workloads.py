"""Whole workloads for the cost notebook: run 1 as a textbook would do it and as we do, and steps of models."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from decorlib.conversion.convert import decorrelate
from decorlib.data import datasets
from decorlib.layers.models import bp_parameters, decor_modules, decor_step
from decorlib.rules.rules import KappaRule
from decorlib.study.experiments import notebook_2024
from decorlib.study.questions.cost.layer_cost import dense_update
from decorlib.training.train import train


def textbook_loader(random_seed: int = 42) -> DataLoader:
    """The 2024 notebook's loader: 1,000 digits, transformed one by one at every pass."""
    torch.manual_seed(random_seed)
    np.random.seed(random_seed)  # noqa: NPY002 - the 2024 notebook's own generator
    digits = _transformed_digits()
    digits = Subset(digits, np.random.permutation(len(digits.data))[:1000])  # noqa: NPY002
    return DataLoader(digits, batch_size=64, shuffle=True, num_workers=0, drop_last=True)


@lru_cache(maxsize=1)
def _transformed_digits():
    from torchvision import transforms

    return datasets.mnist(
        train=True,
        transform=transforms.Compose(
            [transforms.ToTensor(), transforms.Grayscale(1), transforms.Normalize((0.5,), (0.25,))]
        ),
    )


def dense_run(batches: DataLoader, epochs: int, lr: float = 1e-5, literal: bool = True) -> list[float]:
    """Run 1 with the dense step; each epoch's decorrelation loss, summed over batches.

    ``literal`` does what the equation says, diag(n) as a matrix in a product; otherwise rows are multiplied by n.
    """
    R, eye, totals = torch.eye(784), torch.eye(784), []
    for epoch in range(epochs + 1):
        total = 0.0
        for x, _ in batches:
            R, loss = dense_update(R, x.flatten(1), eye, lr if epoch else 0, literal)
            total += float(loss)
        totals.append(total)
    return totals


def our_run(batches: DataLoader, epochs: int, lr: float = 1e-5) -> list[float]:
    """Run 1 with this library's trainer."""
    layer = notebook_2024.model(notebook_2024.RUNS[0])
    history = train(
        layer,
        lambda y, _: y.new_zeros(()),
        batches,
        epochs=epochs,
        optimizer=None,
        decor_optimizer=torch.optim.SGD([layer.weight], lr=lr),
        measure_first=True,
    )
    return [row["decorrelation_loss"] for row in history.as_printed_in_2024()]


def workload_2024(epochs: int) -> dict[str, Callable[[], list[float]]]:
    """Run 1 four ways, each from the same state of every generator; a call runs it whole and returns its losses.

    The files are read once, before any of them; what each then does to the digits, it does inside its call.
    """
    return {
        "as written, digits one by one": lambda: dense_run(textbook_loader(), epochs),
        "as written, digits in memory": lambda: dense_run(notebook_2024.loader(), epochs),
        "rows scaled, digits in memory": lambda: dense_run(notebook_2024.loader(), epochs, literal=False),
        "decorlib": lambda: our_run(notebook_2024.loader(), epochs),
    }


def training_step(model: nn.Module, shape: tuple[int, ...], classes: int = 10) -> Callable[[], None]:
    """A training step of a model: cross-entropy, Adam on the weights, and R's step where there is one."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)
    optimizer = torch.optim.Adam(bp_parameters(model), lr=1e-4)
    model.train()
    decorrelated = any(True for _ in decor_modules(model))

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if decorrelated:
            decor_step(model, lr=1e-6)

    return step


def mlp(**options) -> nn.Module:
    """784-256-256-10; decorrelated with the options, plain without any."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    return _decorrelated(nn.Sequential(*layers), options)


def convnet(**options) -> nn.Module:
    """Three 3 x 3 convolutions of stride 2 and a read-out, for 28 x 28 images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for C, M in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(C, M, 3, stride=2, padding=1), nn.ReLU()]
    return _decorrelated(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), options)


def resnet18(**options) -> nn.Module:
    """torchvision's, with 10 classes."""
    from torchvision import models

    torch.manual_seed(0)
    return _decorrelated(models.resnet18(num_classes=10), options)


def _decorrelated(model: nn.Module, options: dict) -> nn.Module:
    return decorrelate(model, KappaRule(kappa=0.5), **options) if options else model
