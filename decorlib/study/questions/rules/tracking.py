"""R alone, tracking a stream of batches at a given rate: what a rule does before any network is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from decorlib.data import inputs
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.memory import NonFiniteInput
from decorlib.rules.catalogue import make_rule
from decorlib.study.experiments import gaussians
from decorlib.study.experiments.experiment import Experiment, arrays
from decorlib.study.experiments.stability import still_decorrelates


@dataclass(frozen=True)
class Track:
    """R alone, tracking a stream of batches.

    Args:
        rule, rule_options, lr, update_every: as in :class:`decorlib.study.experiments.experiment.Experiment`.
        data: ``"gaussian"``, fresh draws of a known covariance that the seed turns, float64; or ``"digits"``, 1,000
            digits at the 2024 notebook's scaling, drawn by the seed (42: the 2024 notebook's own), float32.
        demean_inputs: digits only: subtract their mean, once.
        features, condition: of the Gaussian.
        batch_size, steps, seed: as everywhere.
        points: how often to measure, evenly in the logarithm of the step; the start and the end always. A row has the
            those of :func:`decorlib.study.experiments.gaussians.whiteness` and ``mean``, the RMS mean of y.
    """

    rule: str = "notebook"
    rule_options: tuple[tuple[str, object], ...] = ()
    data: str = "gaussian"
    demean_inputs: bool = False
    features: int = 8
    condition: float = 30.0
    lr: float = 1e-3
    update_every: int = 1
    batch_size: int = 64
    steps: int = 100
    points: int = 10
    seed: int = 42

    def __post_init__(self):
        if self.data not in ("gaussian", "digits"):
            raise ValueError(f"data is {self.data!r}; allowed: 'gaussian', 'digits'")
        if self.steps < 1 or self.points < 1:
            raise ValueError(f"steps is {self.steps} and points {self.points}; both must be at least 1")


@dataclass(frozen=True)
class Edge:
    """The largest stable rate of a rule on the population of a Gaussian; see :func:`edge`."""

    rule: str
    rule_options: tuple[tuple[str, object], ...] = ()
    features: int = 8
    condition: float = 30.0
    steps: int = 200
    seed: int = 0


def edge(spec: Edge) -> dict:
    """Predicted and measured largest stable rate."""
    rule = make_rule(spec.rule, **dict(spec.rule_options))
    S = gaussians.covariance(spec.features, spec.condition, spec.seed)
    return {
        "predicted": gaussians.predicted_edge(rule, S),
        "measured": gaussians.largest_stable(rule, S, spec.steps),
    }


def track(spec: Track) -> dict:
    """Step R along the stream; returns status, a row of measures per measured step, and the last row."""
    batches, second_moment, mean = _stream(spec)
    layer = Decorrelation(
        second_moment.shape[0],
        rule=make_rule(spec.rule, **dict(spec.rule_options)),
        update_every=spec.update_every,
        dtype=second_moment.dtype,
    )
    optimizer = torch.optim.SGD([layer.weight], lr=spec.lr)
    due = measured_steps(spec.steps, spec.points)
    curve = [{"step": 0, **_look(layer.weight, second_moment, mean)}]
    for step in range(1, spec.steps + 1):
        try:
            layer(next(batches))
            layer.update(spec.lr)
        except NonFiniteInput:  # cannot come from the data: R has blown up
            return _diverged(curve, step)
        optimizer.step()
        if step in due or step % 10 == 0:
            if not bool(layer.weight.isfinite().all()) or float(layer.weight.abs().max()) > 1e12:
                return _diverged(curve, step)
            if step in due:
                curve.append({"step": step, **_look(layer.weight, second_moment, mean)})
    return {"status": "finished", "diverged_at": None, "curve": curve, "final": curve[-1]}


def measured_steps(steps: int, points: int) -> set[int]:
    """Steps from 1 to the last, evenly in the logarithm."""
    return {round(math.exp(math.log(steps) * (i + 1) / points)) for i in range(points)} | {steps}


def stable(record: dict) -> bool:
    """Finished, and :func:`decorlib.study.experiments.stability.still_decorrelates` there."""
    return record["status"] == "finished" and still_decorrelates(record["curve"][0], record["final"])


def useful(record: dict, factor: float = 0.5) -> bool:
    """Stable, and the remaining cosine at most ``factor`` of the one at the start."""
    return stable(record) and record["final"]["cosine"] <= factor * record["curve"][0]["cosine"]


# ---------------------------------------------------------------------------------------------------------- internals


def _look(R: Tensor, second_moment: Tensor, mean: Tensor) -> dict:
    # 1,000 digits have constant pixels: their second moment is singular, and most of the work would be to find that.
    found = gaussians.whiteness(R @ second_moment @ R.mT, condition=len(R) <= 64)
    return found | {"mean": float((R @ mean).square().mean().sqrt())}


def _diverged(curve: list[dict], step: int) -> dict:
    return {"status": "diverged", "diverged_at": step, "curve": curve, "final": {}}


def _stream(spec: Track) -> tuple[Iterator[Tensor], Tensor, Tensor]:
    """Batches without end, and what R is judged by: second moment and mean of the Gaussian, or of all the digits."""
    generator = torch.Generator().manual_seed(spec.seed)
    if spec.data == "gaussian":
        S = gaussians.covariance(spec.features, spec.condition, spec.seed)
        return iter(lambda: gaussians.draws(S, spec.batch_size, generator), None), S, S.new_zeros(len(S))
    x, moment, mean = _digits(spec.seed, spec.demean_inputs)
    return _epochs(inputs.loader(x, x, spec.batch_size, generator=generator)), moment, mean


def _epochs(batches) -> Iterator[Tensor]:
    while True:
        for x, _ in batches:
            yield x


@lru_cache(maxsize=4)
def _digits(seed: int, demean: bool) -> tuple[Tensor, Tensor, Tensor]:
    x = arrays(Experiment(seed=seed, demean_inputs=demean))[0]
    return x, x.T @ x / len(x), x.mean(0)
