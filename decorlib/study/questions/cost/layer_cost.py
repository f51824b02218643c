"""What a decorrelation step is compared with: closures that take one step each, for ``experiments.timing``."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear
from decorlib.layers.models import bp_parameters
from decorlib.rules.moments import Moments
from decorlib.rules.rules import SeedRule


def decorrelation_step(features: int, batch: int, lr: float = 1e-6, **options) -> Callable[[], object]:
    """Forward, update and plain SGD step of one Decorrelation layer, as the trainer takes it, loss included."""
    layer = Decorrelation(features, **({"variance": 1.0} | options))
    x = _inputs(features, batch)

    def step() -> None:
        layer(x)
        layer.step(lr)

    return step


def dense_step(features: int, batch: int, lr: float = 1e-6, literal: bool = False) -> Callable[[], object]:
    """The same step of the 2024 rule as its equations are written: C in full, C R as a D^3 product, loss from C.

    ``literal`` multiplies by diag(n) as a matrix, too, which the equation says and a careful reader would not.
    """
    R = torch.eye(features)
    eye = torch.eye(features)
    x = _inputs(features, batch)

    def step() -> torch.Tensor:
        nonlocal R
        R, loss = dense_update(R, x, eye, lr, literal)
        return loss

    return step


def dense_update(
    R: torch.Tensor, x: torch.Tensor, eye: torch.Tensor, lr: float, literal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """R after one step on the inputs x, and the loss before it; with lr = 0 only the loss is computed."""
    y = x @ R.T
    C = y.T @ y / len(y)
    loss = (C - eye).square().mean()
    if lr == 0:
        return R, loss
    v = C.diagonal()
    n = torch.where(v < 1e-8, torch.ones_like(v), 1 / v)
    scaled = torch.diag(n) @ (eye - C) if literal else n[:, None] * (eye - C)
    return R - lr * (R - scaled @ R), loss


def linear_step(features: int, batch: int, lr: float = 1e-6) -> Callable[[], object]:
    """Forward, backward and SGD step of a plain nn.Linear, its input a leaf that needs no gradient."""
    return _layer_step(nn.Linear(features, features), _inputs(features, batch), lr)


def _layer_step(layer: nn.Linear, x: torch.Tensor, lr: float) -> Callable[[], object]:
    optimizer = torch.optim.SGD(bp_parameters(layer), lr=lr)

    def step() -> None:
        optimizer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()
        if isinstance(layer, DecorLinear):
            layer.step(lr)

    return step


def parts(features: int, batch: int) -> dict[str, Callable[[], object]]:
    """The pieces of a step of the 2024 rule, each alone, and the two it is compared with."""
    rule, x = SeedRule(variance=1.0), _inputs(features, batch)
    R = torch.eye(features)
    y = x @ R.T
    moments = Moments.of(y)
    return {
        "forward": lambda: x @ R.T,
        "statistics": lambda: Moments.of(y),
        "loss": lambda: rule.loss(moments),
        "update": lambda: rule.step_(moments, R, 1e-6),
        "whole step": decorrelation_step(features, batch),
        "dense step, as written": dense_step(features, batch, literal=True),
        "dense step, rows scaled": dense_step(features, batch),
        "plain linear step": linear_step(features, batch),
    }


def floats_moved(features: int, batch: int) -> dict[str, int]:
    """Numbers that each of :func:`parts` reads and writes at least, every pass over a matrix counted.

    An operand counts once for each operation that reads or writes it, and what stays inside a product (its blocks in
    the cache) does not: the horizontal place of a piece in the roofline figure is its operations over 4 times this.
    """
    states, R = batch * features, features**2
    forward = R + 2 * states
    loss = states + 2 * batch**2
    # Y R; Y' scaled by rows; R's own decay; the product added to R
    update = (R + 2 * states) + 2 * states + 2 * R + (2 * R + 2 * states)
    # y; C and its division; two differences, square and mean; rows scaled; the product; three more passes
    dense = forward + (2 * states + R) + 2 * R + 2 * 3 * R + 3 * R + 2 * R + 3 * R + 3 * R + 2 * R + 3 * R
    return {
        "forward": forward,
        "loss": loss,
        "update": update,
        "whole step": forward + 2 * states + loss + update,
        "dense step, as written": dense + 2 * R,  # diag(n) is a matrix, written and read
        "dense step, rows scaled": dense,
        "plain linear step": forward + (R + 2 * states) + 3 * R,  # z; the gradient; SGD
    }


class _Held(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.held, self.most, self.known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.known.update(_storages((args, kwargs)))  # what came from outside is not held by the call
        out = function(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage not in self.known:
                self.known.add(storage)
                self.held += storage.nbytes()
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return out

    def _freed(self, size: int) -> None:
        self.held -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory, in bytes, that a call's tensors hold at one time beyond what was there before it.

    Counted in a second call: buffers that are made once and kept (an optimizer's) do not count, nor does what an
    operation needs within itself.
    """
    call()
    with _Held() as mode:
        call()
    return mode.most


def layer_steps(features: int, outputs: int, batch: int, settings: dict[str, dict]) -> dict[str, Callable[[], object]]:
    """Forward, backward, SGD and R's step of a whole layer: plain, and decorrelated under each of the settings."""
    torch.manual_seed(0)
    layers: dict[str, nn.Linear] = {"plain": nn.Linear(features, outputs)}
    layers |= {name: DecorLinear(features, outputs, variance=1.0, **options) for name, options in settings.items()}
    x = _inputs(features, batch)
    return {name: _layer_step(layer, x, lr=1e-6) for name, layer in layers.items()}


def forms(features: int, batch: int) -> dict[str, Callable[[], object]]:
    """The update alone, with X factored and with X dense, statistics included."""
    rule, R, y = SeedRule(variance=1.0), torch.eye(features), _inputs(features, batch)
    return {
        name: lambda dense=dense: rule.step_(Moments.of(y, dense=dense), R, 1e-6)
        for name, dense in (("factored", False), ("dense", True))
    }


def orders(features: int, outputs: int, batch: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of a DecorLinear that is not its network's first, R-then-W and (W R)."""
    x = _inputs(features, batch).requires_grad_()
    layers = {
        "R, then W": DecorLinear(features, outputs, variance=1.0, fuse=False),
        "(W R)": DecorLinear(features, outputs, variance=1.0, fuse=True),
    }

    def step(layer: DecorLinear) -> Callable[[], object]:
        layer.decorrelation.eval()  # the transform alone: no statistics
        return lambda: torch.autograd.grad(layer(x).sum(), (x, layer.weight))

    return {name: step(layer) for name, layer in layers.items()}


def machine(size: int = 2048) -> dict[str, Callable[[], object]]:
    """A large product (2 n^3 operations) and a large copy (8 n^2 bytes): what this machine can do at best."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    return {"product": lambda: torch.mm(a, b, out=out), "copy": lambda: out.copy_(a)}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log(seconds) against log(size), by least squares."""
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(seconds, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def _inputs(features: int, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, features, generator=generator)
