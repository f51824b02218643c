"""FOOF with exponential averages and damping: K-FAC's input factor alone, our own reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def average(moment: Tensor | None, rows: Tensor, decay: float) -> Tensor:
    """The exponential average of the inputs' second moment, A <- decay A + (1 - decay) <x x'>; (D, D).

    The first batch is taken whole, so that nothing has to be corrected for a start at 0.
    """
    now = rows.mT @ rows / len(rows)
    return now if moment is None else decay * moment + (1 - decay) * now


def damped(moment: Tensor, damping: float) -> Tensor:
    """A + damping tr(A)/D I: the damping is a part of the mean eigenvalue."""
    D = len(moment)
    return moment + damping * moment.trace() / D * torch.eye(D, dtype=moment.dtype, device=moment.device)


def direction(gradient: Tensor, factor: Tensor) -> Tensor:
    r"""FOOF's direction of a weight matrix (Benzing 2022, arXiv 2201.12250, equation 5 and algorithm 1).

    .. math:: \Delta W = -\eta\, \frac{\partial L}{\partial W} (A + \lambda I)^{-1}, \quad A = \langle x x^\top \rangle

    With plain SGD it is gradient descent on W where inputs are whitened exactly, y = W' A^(-1/2) x.

    Args:
        gradient: of W, (M, D).
        factor: Cholesky factor of the damped moment, (D, D).
    """
    return torch.cholesky_solve(gradient.mT, factor).mT


class FOOF(torch.optim.Optimizer):
    r"""Steps of every linear layer and convolution along :func:`direction`, with momentum; the rest by plain gradients.

    The inputs of a layer, with a 1 for its bias, are averaged and factored at every ``every``-th step, as K-FAC does.
    A convolution's inputs are its patches.

    Args:
        model: its layers are watched by hooks, in training mode.
        parameters: those to step; all others of the model are left alone.
        lr: η.
        momentum: heavy ball. Default: 0.9.
        decay: of the average. Default: 0.95.
        damping: λ over the mean eigenvalue of A. Default: 0.1.
        every: steps between looks at the inputs. Default: 10.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        lr: float,  # η
        momentum: float = 0.9,
        decay: float = 0.95,
        damping: float = 0.1,  # λ
        every: int = 10,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.decay, self.damping, self.every, self.steps = decay, damping, every, 0
        owned = {id(p) for p in parameters}
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and id(m.weight) in owned]
        self.moments: dict[nn.Module, Tensor] = {}
        self.factors: dict[nn.Module, Tensor] = {}
        self.handles = [layer.register_forward_pre_hook(self._look) for layer in self.layers]

    @torch.no_grad()
    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not layer.training or self.steps % self.every:
            return
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            x = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride).mT
        rows = F.pad(x.flatten(0, -2), (0, 1), value=1.0) if layer.bias is not None else x.flatten(0, -2)
        self.moments[layer] = average(self.moments.get(layer), rows, self.decay)
        # Not finite where the run diverges: it is left to say so itself, by its loss.
        self.factors[layer] = torch.linalg.cholesky_ex(damped(self.moments[layer], self.damping)).L

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Every layer along its direction, from the inputs seen so far."""
        if closure is not None:
            raise ValueError("closure must be None: the inputs are those of the forward that gave the gradients")
        directions: dict[nn.Parameter, Tensor] = {}
        for layer in self.layers:
            if (G := layer.weight.grad) is None:
                continue
            G = G.flatten(1)
            if layer.bias is None:
                directions[layer.weight] = direction(G, self.factors[layer]).view_as(layer.weight)
                continue
            both = direction(torch.cat([G, layer.bias.grad[:, None]], 1), self.factors[layer])
            directions[layer.weight], directions[layer.bias] = both[:, :-1].reshape_as(layer.weight), both[:, -1]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                towards = directions.get(p, p.grad)
                kept = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                kept.mul_(group["momentum"]).add_(towards)
                p.add_(kept, alpha=-group["lr"])
        self.steps += 1
        return None
