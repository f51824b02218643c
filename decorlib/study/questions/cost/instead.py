"""What a step of training costs, with R and with what one would take instead: time, counted work, and memory."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import pairwise
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from decorlib.layers import integrity, memory, recompute, steps
from decorlib.layers.linear import DecorLinear
from decorlib.layers.models import bp_parameters
from decorlib.optim import DecorSGD
from decorlib.rules.rules import KappaRule, Rule
from decorlib.rules.whitening import ExactWhitening
from decorlib.rules.work import Flops, decor_linear, linear
from decorlib.study.experiments import flops

WIDTHS = (784, 256, 256, 10)
BATCH = 128
#: R in all layers but the first, centred, learned at every 25th step: the setting that paid in notebook 07.
PAID = {"center": "batch", "update_every": 25}
#: Why a method has no row, by what it needs.
MISSING = {"SOAP": "pytorch_optimizer"}


def network(rule: Rule | None = None, first: bool = False, normalised: bool = False, **options) -> nn.Sequential:
    """784-256-256-10 with leaky rectifiers; R in all layers but the first, or in that one, too."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for depth, (D, M) in enumerate(pairwise(WIDTHS)):
        plain = rule is None or (depth == 0 and not first)
        layers.append(nn.Linear(D, M) if plain else DecorLinear(D, M, rule=rule, **options))
        if depth < len(WIDTHS) - 2:
            layers += [nn.BatchNorm1d(M)] if normalised else []
            layers.append(nn.LeakyReLU())
    return nn.Sequential(*layers)


def training_step(model: nn.Module, optimizers: list[torch.optim.Optimizer], batch: int = BATCH) -> Callable[[], None]:
    """One step: forward, cross-entropy, backward, and each optimizer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, WIDTHS[0], generator=generator)
    t = torch.randint(WIDTHS[-1], (batch,), generator=generator)
    model.train()

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), t)
        optimizers[0].zero_grad()
        for other in optimizers[1:]:
            other.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def _adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4, fused=True)


def _decorrelated(batch: int, rule: Rule | None = None, **options) -> Callable[[], None]:
    model = network(KappaRule(kappa=0.5) if rule is None else rule, **options)
    rate = 1e-3 if isinstance(rule, ExactWhitening) else 1e-5  # of R: no matter for its cost, and nothing diverges
    return training_step(model, [_adam(bp_parameters(model)), DecorSGD(model, lr=rate)], batch)


def _with(matrices: Callable[[list], torch.optim.Optimizer], batch: int) -> Callable[[], None]:
    """Matrices of weights by one optimizer, biases by Adam."""
    model = network()
    weights = [p for p in model.parameters() if p.dim() == 2]
    return training_step(model, [matrices(weights), _adam([p for p in model.parameters() if p.dim() < 2])], batch)


def _soap(weights: list) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(weights, lr=1e-4)


def arms(batch: int = BATCH) -> dict[str, Callable[[], None]]:
    """Steps of training by name, the plain one first; those of :func:`missing` are left out."""
    plain, normalised = network(), network(normalised=True)
    whitening = {"rule": ExactWhitening(kind="cholesky"), "center": "batch"}
    made = {
        "plain": training_step(plain, [_adam(plain.parameters())], batch),
        "BatchNorm": training_step(normalised, [_adam(normalised.parameters())], batch),
        "R, every 25th": _decorrelated(batch, **PAID),
        "R everywhere, every step": _decorrelated(batch, first=True, center="batch"),
        "exact whitening, every 25th": _decorrelated(batch, **whitening, update_every=25),
        "exact whitening, every step": _decorrelated(batch, **whitening),
        "Muon": _with(lambda weights: torch.optim.Muon(weights, lr=1e-4), batch),
    }
    return made if missing() else made | {"SOAP": _with(_soap, batch)}


def missing() -> dict[str, str]:
    """Methods without a row, and why."""
    return {
        name: f"not measured: {package}, which the extra `study` installs, is not there"
        for name, package in MISSING.items()
        if importlib.util.find_spec(package) is None
    }


def work(batch: int = BATCH) -> dict[str, float | int]:
    """Counted operations of a step of each of :func:`arms`; SOAP's are not counted.

    Muon: five Newton-Schulz steps a matrix, n x m with n <= m, of two products with n m and one of n^3.
    """
    shapes = list(pairwise(WIDTHS))
    plain = flops.mlp(None, batch, WIDTHS).total

    def decorrelated(rule: Rule, every: int = 1, first: bool = False) -> float:
        total = Flops()
        for depth, (D, M) in enumerate(shapes):
            if depth == 0 and not first:
                total += linear(batch, D, M, input_gradient=False)
            else:
                total += decor_linear(rule, batch, D, M, depth > 0, every)
        return total.total

    kappa, exact = KappaRule(kappa=0.5), ExactWhitening(kind="cholesky")
    muon = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes)
    return {
        "plain": plain,
        "BatchNorm": plain,
        "R, every 25th": decorrelated(kappa, 25),
        "R everywhere, every step": decorrelated(kappa, first=True),
        "exact whitening, every 25th": decorrelated(exact, 25),
        "exact whitening, every step": decorrelated(exact),
        "Muon": plain + muon,
    }


def counted_by_torch(call: Callable[[], object]) -> int:
    """Operations of a call by torch's FlopCounterMode.

    It counts ``mm``, ``addmm`` and convolutions, and 0 for ``addmm_``, ``baddbmm_``, products with a vector and every
    factorisation: updates of R are seen in part, and whitening and SOAP look almost free.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@contextmanager
def unguarded() -> Iterator[None]:
    """Without the checks of each step: inputs finite, R in order, recomputation, gradients that others left or took."""
    checks = [(memory, "check_finite"), (integrity, "check")]
    checks += [(recompute.Passes, "begin"), (steps, "refuse_unstepped")]
    with ExitStack() as stack:
        for owner, name in checks:
            stack.enter_context(mock.patch.object(owner, name, _pass))
        yield


def _pass(*_, **__) -> None:
    """What stands for a check that is left out."""


def guards(repeats: int, batch: int = BATCH, calls: int = 25) -> list[float]:
    """What its guards add to a step of the setting that paid, as a part of it: one number for each pair of blocks."""
    step, added = _decorrelated(batch, **PAID), []
    for turn in range(-2, repeats):
        seconds = {}
        for guarded in (True, False) if turn % 2 else (False, True):
            with nullcontext() if guarded else unguarded():
                start = time.perf_counter()
                for _ in range(calls):
                    step()
                seconds[guarded] = time.perf_counter() - start
        if turn >= 0:
            added.append(seconds[True] / seconds[False] - 1)
    return added
