r"""Learning from noise: perturb nodes or weights, see by how much the loss rises, move against that.

No error is sent back. With dL_i = L(noisy) - L(clean) of each sample, u_l what enters the nonlinearity of layer l
(the scores in the last), and v_l what enters its weights:

* **node perturbation** (arXiv 2310.00965): sigma eps is added to u on top of the noise that comes from below, and
  dL_i eps / sigma is an estimate of dL/du; its mean over eps is the gradient for sigma -> 0;
* **activity perturbation** (its "ANP"): N dL_i Du / \|Du\|^2, Du the whole change of u over the N nodes of all layers,
  noise from below in it: the directional derivative along what did happen, which needs no knowledge of eps;
* **weight perturbation**: sigma Xi is added to W for each sample, and dL_i Xi / sigma is an estimate of dL/dW. Xi of a
  sample is (r s') o Z, one Gaussian Z a batch and random signs r and s a sample: Gaussian for each, uncorrelated
  between samples, at the price of two products (Wen et al. 2018, arXiv 1803.04386).

Between nodes and weights of one layer the derivative is exact: it is local. What a batch's statistics hold (means of
demeaning and of R, mean and variance of BatchNorm) is kept at its clean value in the noisy pass, so that a layer is
affine up to its nonlinearity and the noisy pass is one of *differences*: no digit is lost for small sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers import Decorrelation
from decorlib.study.experiments.networks import Demean, blocks

HOW = ("node", "activity", "weight")


def node_signals(rise: Tensor, noise: Sequence[Tensor], sigma: float) -> list[Tensor]:
    r"""Estimates of dL/du of every layer by node perturbation.

    .. math:: \hat\delta_l = \Delta L \, \epsilon_l / \sigma

    Args:
        rise: \Delta L, noisy minus clean loss of each sample.
        noise: \epsilon_l, standard normal, one for each layer.
        sigma: standard deviation of what was added, sigma \epsilon_l.

    Shape: rise (batch), noise (batch, M_l) each -> (batch, M_l) each.
    """
    return [rise[:, None] * eps / sigma for eps in noise]


def activity_signals(rise: Tensor, changes: Sequence[Tensor]) -> list[Tensor]:
    r"""Estimates of dL/du of every layer by activity perturbation.

    .. math:: \hat\delta_l = N \, \Delta L \, \Delta u_l / \sum_k \lVert \Delta u_k \rVert^2

    Args:
        rise: \Delta L of each sample.
        changes: \Delta u_l, one for each layer; N is their number of features in all.

    Shape: rise (batch), changes (batch, M_l) each -> (batch, M_l) each.
    """
    length = sum(change.square().sum(1) for change in changes)
    nodes = sum(change.shape[1] for change in changes)
    return [(nodes * rise / length)[:, None] * change for change in changes]


def weight_gradient(rise: Tensor, r: Tensor, s: Tensor, Z: Tensor, sigma: float) -> Tensor:
    r"""Estimate of the gradient of the mean loss by weight perturbation with Xi_i = (r_i s_i') o Z.

    .. math:: \frac{1}{B \sigma} \sum_i \Delta L_i \, \Xi_i
              = \frac{1}{B \sigma} \left( r^\top \mathrm{diag}(\Delta L)\, s \right) \circ Z

    Shape: rise (batch), r (batch, M), s (batch, D), Z (M, D) -> (M, D).
    """
    return (r * rise[:, None]).mT @ s * Z / (len(rise) * sigma)


def passed(last: nn.Module, h: Tensor, d: Tensor) -> Tensor:
    """The difference after a nonlinearity: of a leaky ReLU the slope times d, unless d crosses the kink.

    Where it does, h is no larger than d, so that what is subtracted is as small as the difference.
    """
    if isinstance(last, nn.Identity):
        return d
    subtracted = last(h + d) - last(h)
    if not isinstance(last, nn.LeakyReLU):
        return subtracted
    exact = torch.where(h > 0, d, last.negative_slope * d)
    return torch.where((h > 0) == (h + d > 0), exact, subtracted)


class Perturbed(nn.Module):
    """A network that learns by perturbation; in evaluation the network itself.

    Train it on :meth:`loss` of what its forward returned, not on another loss.

    Args:
        network: of linear and decorrelated linear layers, normalisations and leaky ReLUs, in a row.
        how: ``"node"``, ``"activity"`` or ``"weight"``.
        generator: of the noise.
        sigma: its standard deviation, in units of what it is added to. Default: 1e-3.

    Shape: (batch, D) -> (batch, K).

    Raises:
        ValueError: an unknown way, or a sigma that is not positive.
    """

    def __init__(self, network: nn.Sequential, how: str, generator: torch.Generator, sigma: float = 1e-3):
        super().__init__()
        if how not in HOW or not sigma > 0:
            raise ValueError(f"how = {how!r}, sigma = {sigma}: one of {', '.join(HOW)}, and a positive number")
        self.network, self.blocks = network, blocks(network)
        self.how, self.generator, self.sigma = how, generator, sigma

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.network(x)
        self.nodes, self.changes, self.noise = [], [], []
        d = torch.zeros_like(x)
        for block in self.blocks:
            *linear, last = block if block is not self.blocks[-1] else (*block, nn.Identity())
            h = x  # made without a graph: a signal stays in its layer
            for step in linear:
                before, h = h, F.linear(h, step.weight, step.bias) if isinstance(step, nn.Linear) else step(h)
                with torch.no_grad():
                    d = self._difference(step, before, d)
            self.nodes.append(h)
            with torch.no_grad():
                if self.how != "weight":
                    self.noise.append(self._normal(h.shape, h))
                    d = d + self.sigma * self.noise[-1]
                self.changes.append(d)
                x = last(h)
                d = passed(last, h, d)
        return h

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the clean pass, whose backward gives each weight its estimate."""
        with torch.no_grad():
            # float64: the rise is small beside the loss.
            clean = F.cross_entropy(scores.double(), targets, reduction="none")
            noisy = F.cross_entropy(scores.double() + self.changes[-1].double(), targets, reduction="none")
            rise = (noisy - clean).to(scores.dtype)
            value = clean.mean().to(scores.dtype)
        if self.how == "weight":
            carried = sum(((self._estimate(rise, draw) * weight).sum() for weight, *draw in self.noise), value * 0)
        else:
            signals = (
                node_signals(rise, self.noise, self.sigma)
                if self.how == "node"
                else activity_signals(rise, self.changes)
            )
            carried = sum((s * u).sum() / len(u) for s, u in zip(signals, self.nodes, strict=True))
        return value + (carried - carried.detach())

    def _estimate(self, rise: Tensor, draw: Sequence[Tensor]) -> Tensor:
        if len(draw) == 3:
            return weight_gradient(rise, *draw, self.sigma)
        return (rise[:, None] * draw[0]).mean(0) / self.sigma  # of a vector, drawn for each sample

    def _difference(self, step: nn.Module, x: Tensor, d: Tensor) -> Tensor:
        """What a difference d of what enters a module makes of what leaves it, with noise on its weights."""
        noisy = self.how == "weight"
        if isinstance(step, Demean):
            return d
        if isinstance(step, Decorrelation):
            return d @ step.weight.mT
        if isinstance(step, nn.BatchNorm1d):
            scale = (x.var(0, unbiased=False) + step.eps).rsqrt()
            out = d * scale * step.weight
            if not noisy:
                return out
            gain, shift = self._vectors(step.weight, len(x)), self._vectors(step.bias, len(x))
            return out + self.sigma * (gain * (x + d - x.mean(0)) * scale + shift)
        if not isinstance(step, nn.Linear):
            raise TypeError(f"{type(step).__name__} is no module that perturbations know how to pass")
        out = d @ step.weight.mT
        if not noisy:
            return out
        r, s = (self._signs(len(x), size, x) for size in (step.out_features, step.in_features))
        Z = self._normal(step.weight.shape, x)
        self.noise.append((step.weight, r, s, Z))
        return out + self.sigma * (((x + d) * s) @ Z.mT * r + self._vectors(step.bias, len(x)))

    def _vectors(self, parameter: nn.Parameter, samples: int) -> Tensor:
        draw = self._normal((samples, *parameter.shape), parameter)
        self.noise.append((parameter, draw))
        return draw

    def _normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=like.dtype)

    def _signs(self, samples: int, features: int, like: Tensor) -> Tensor:
        return torch.randint(0, 2, (samples, features), generator=self.generator).to(like.dtype) * 2 - 1
