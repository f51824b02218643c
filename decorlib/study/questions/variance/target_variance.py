"""What a target variance does to the 2024 rule, on Gaussians: where the variances settle, how fast, and why.

With X = <y y'> and n_i = t_i / v_i the 2024 rule stands still where X is diagonal and n_i (1 - eta v_i) = 1. Hence

    v = t / (1 + eta t)                     with population moments, whatever the covariance of the inputs
    v = t / (1 + eta t) * B / (B - 2)       with Gaussian batches of B, since <1 / v_batch> = B / ((B - 2) v)
    R = (I + 2 eta lr steps S)^(-1/2)       without a target, from R = I, inputs of second moment S, small steps

The last line is the inverse square root of S with a ridge of 1 / (2 eta lr steps), times a factor that falls: without a
target the rule whitens, and shrinks. Everything here is float64 on the CPU; notebook 03 compares it with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from decorlib.layers.decorrelation import Decorrelation
from decorlib.rules.moments import Moments
from decorlib.rules.rules import Rule, SeedRule
from decorlib.study.experiments.experiment import Experiment, run
from decorlib.study.experiments.gaussians import draws, states_of, step, whiteness
from decorlib.study.sweeps.progress import progress
from decorlib.study.sweeps.runs import sweep


def settles_at(target, eta: float = 1.0, batch: int | None = None):
    """The variance t / (1 + eta t) at which the 2024 rule leaves a feature of target t; always below 1 / eta.

    Args:
        target: t, a number or a tensor of them.
        eta: weight of the decorrelating term. Default: 1.0.
        batch: samples per batch of Gaussians, at least 3. Default: None, population moments.
    """
    if batch is not None and batch < 3:
        raise ValueError(f"batch is {batch}; the mean of 1 / v over Gaussian batches exists from 3 samples on")
    return target / (1 + eta * target) * (1 if batch is None else batch / (batch - 2))


def setting_for(wanted: float, eta: float = 1.0) -> float:
    """The target to *set* in the 2024 rule so that variances settle at the one wanted: t / (1 - eta t).

    Raises:
        ValueError: ``wanted`` is not below 1 / eta, which no setting reaches.
    """
    highest = 1 / eta if eta else math.inf
    if not 0 < wanted < highest:
        raise ValueError(
            f"wanted is {wanted}; with eta = {eta} the 2024 rule settles between 0 and 1 / eta = {highest:g}, "
            "whatever its target: take a smaller eta, or a rule that reaches its target (KappaRule)"
        )
    return wanted / (1 - eta * wanted)


@dataclass(frozen=True)
class CorrectedSeedRule(SeedRule):
    """The 2024 rule with the diagonal of X left to the normaliser: dR = R - diag(n) (I - eta C) R, C = offdiag(X).

    In the 2024 rule the decorrelating term eta X shrinks every feature on top of what the normaliser asks for. With
    the covariances alone in its place the fixed point is C = 0 and v = t, for every eta and every target.
    """

    def rows(self, moments: Moments):
        if self.variance is None:
            return -self.eta * moments.variance, self.eta
        a, b = super().rows(moments)
        return a - b * moments.variance, b


def settle(rule: Rule, S: Tensor, *, lr: float = 0.02, steps: int = 1500) -> Tensor:
    """Variances (D) that a rule reaches from R = I, where each batch is a whole population of second moment S."""
    x, R = states_of(S), torch.eye(len(S), dtype=S.dtype)
    for _ in range(steps):
        R = step(rule, R, x, lr)
    return (R @ S @ R.mT).diagonal()


def settle_in_batches(
    rule: Rule, S: Tensor, *, batch: int, lr: float = 0.01, steps: int = 2000, seed: int = 0
) -> Tensor:
    """Variances (D) of a :class:`Decorrelation` layer trained on Gaussian batches, averaged over the second half.

    They are those of the population, R S R', not of the batch: what the rule learned, not what it saw.
    """
    draw = torch.Generator().manual_seed(seed)
    layer = Decorrelation(len(S), rule=rule, dtype=S.dtype)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    total, counted = torch.zeros(len(S), dtype=S.dtype), 0
    for done in range(steps):
        layer(draws(S, batch, draw))
        layer.update(lr)
        optimizer.step()
        if done >= steps // 2:
            total, counted = total + (layer.weight @ S @ layer.weight.mT).diagonal(), counted + 1
    return total / counted


def collapse(S: Tensor, *, eta: float = 1.0, lr: float = 0.01, steps: int = 3000, rows: int = 12) -> list[dict]:
    """The 2024 rule without a target, beside :func:`untargeted`: norm of R, mean variance, correlations left.

    Returns:
        ``rows`` rows, at steps evenly spaced in logarithm: ``step``, ``norm``, ``predicted_norm``, ``variance``,
        ``late_law`` (1 / (2 eta lr step), where v no longer remembers its start), ``cosine``.
    """
    wanted = {max(1, round(steps ** (i / (rows - 1)))) for i in range(rows)}
    x, R, found = states_of(S), torch.eye(len(S), dtype=S.dtype), []
    for done in range(1, steps + 1):
        R = step(SeedRule(None, eta), R, x, lr)
        if done in wanted:
            X = R @ S @ R.mT
            found.append(
                {
                    "step": done,
                    "norm": float(R.norm()),
                    "predicted_norm": float(untargeted(S, eta=eta, lr=lr, step=done).norm()),
                    "variance": float(X.diagonal().mean()),
                    "late_law": 1 / (2 * eta * lr * done),
                    "cosine": whiteness(X, condition=False)["cosine"],
                }
            )
    return found


def untargeted(S: Tensor, *, eta: float, lr: float, step: int) -> Tensor:
    """R after so many small steps of the 2024 rule without a target: (I + 2 eta lr step S)^(-1/2), symmetric."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * (1 + 2 * eta * lr * step * values).rsqrt()) @ vectors.mT


def steps_to_settle(target: float, lr: float, eta: float = 1.0) -> float:
    """Steps in which the logarithm of v comes e times nearer to where it settles: 1 / (2 lr (1 + eta t))."""
    return 1 / (2 * lr * (1 + eta * target))


def law_table(S: Tensor, etas: Iterable[float], targets: Iterable[float]) -> pd.DataFrame:
    """Where the 2024 rule and the corrected one settle on a population, for each eta and target.

    Returns:
        Columns eta, target, predicted (t / (1 + eta t)), measured and corrected (means over features), and the largest
        relative deviation of any feature: worst from the prediction, worst corrected from the target.
    """
    rows = []
    for eta, t in progress(list(product(etas, targets)), desc="populations"):
        law, v, corrected = settles_at(t, eta), settle(SeedRule(t, eta), S), settle(CorrectedSeedRule(t, eta), S)
        deviations = float((v / law - 1).abs().max()), float((corrected / t - 1).abs().max())
        rows.append((eta, t, law, float(v.mean()), float(corrected.mean()), *deviations))
    columns = ["eta", "target", "predicted", "measured", "corrected", "worst", "worst corrected"]
    return pd.DataFrame(rows, columns=columns)


def arms(targets: Iterable[float], base: Experiment) -> dict[str, Experiment]:
    """The 2024 rule with each target, with none, with the input's own variance; and kappa, which reaches 1."""
    named = {"no target": None} | {f"target {t:g}": t for t in targets} | {"input's own": "input"}
    found = {name: base.but(rule="notebook", rule_options=(("variance", t),)) for name, t in named.items()}
    return found | {"kappa (reaches 1)": base.but(rule="kappa", rule_options=(("variance", 1.0),))}


def untargeted_arm(spec: Experiment) -> Experiment:
    """The same experiment without a target: no normaliser in the 2024 rule, kappa 0 (covariances alone) in kappa."""
    options = {name: value for name, value in spec.rule_options if name not in ("variance", "kappa")}
    return spec.but(rule_options=(*options.items(), *([("kappa", 0.0)] if spec.rule == "kappa" else [])))


def rates(arms: dict[str, Experiment], products: Iterable[float], input_variance: float) -> dict[str, dict]:
    """For each arm as many rates of R, so that rate * target takes the same values in all of them.

    dR = R - t diag(1 / v) (I - eta X) R: the target multiplies what decorrelates. Where there is none, and for kappa,
    it counts as 1; where it is the input's, as the mean variance of the inputs.
    """
    found = {}
    for name, arm in arms.items():
        t = dict(arm.rule_options)["variance"]
        t = input_variance if t == "input" else 1.0 if t is None or arm.rule == "kappa" else t
        found[name] = {"decor_lr": [value / t for value in products]}
    return found


def correlations(
    arms: dict[str, Experiment], rates: dict[str, dict], products: Sequence[float], seeds: Iterable[int]
) -> pd.DataFrame:
    """What tuning saw of the arms with a number as target: arm, rate, rate x target, seed, cosine (NaN: diverged)."""
    named = [name for name in arms if name.startswith("target")]
    keys = [
        (name, rate, value, seed)
        for name in named
        for rate, value in zip(rates[name]["decor_lr"], products, strict=True)
        for seed in seeds
    ]
    specs = [arms[name].but(decor_lr=rate, seed=seed, split="validation") for name, rate, _, seed in keys]
    found = pd.DataFrame(keys, columns=["arm", "rate", "rate x target", "seed"])
    values = [record["final"].get("cosine") for record in sweep(specs, run, desc="correlations")]
    return found.assign(cosine=pd.to_numeric(pd.Series(values, dtype=object)))
