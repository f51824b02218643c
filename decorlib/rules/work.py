"""Counted work: multiplications and additions per step, by rule and shape. An n x m by m x p product counts 2nmp.

Products of matrices and factorisations are counted; entrywise work is not: it is smaller by a factor of the batch size
or of D. Counts say what a method asks for, seconds what a machine makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from decorlib.rules.maps import AdaptiveGainRule, FoldiakRule
from decorlib.rules.rules import RowRule, Rule
from decorlib.rules.variants import TriangularRule
from decorlib.rules.whitening import ExactWhitening

# Textbook counts for an n x n matrix, in n^3 (Golub & Van Loan): LU, n right-hand sides; Cholesky and its inverse by n
# triangular solves; the symmetric eigenproblem with vectors, whose constant depends on the algorithm.
LU, SOLVES = 2 / 3, 2
CHOLESKY, TRIANGULAR_SOLVES = 1 / 3, 1
EIGEN = 9


@dataclass(frozen=True)
class Flops:
    """Work of one step, by what it is for."""

    forward: int | float = 0
    backward: int | float = 0
    statistics: int | float = 0
    update: int | float = 0
    loss: int | float = 0

    @property
    def total(self) -> int | float:
        return self.forward + self.backward + self.statistics + self.update + self.loss

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def learning(rule: Rule, batch: int, features: int, update_every: int = 1) -> Flops:
    """Statistics, update and reported loss of one R of D features; those of a rule that learns at every n-th step / n.

    Args:
        rule: the rule.
        batch: B, samples that the statistics use.
        features: D.
        update_every: n. Default: 1.

    Raises:
        TypeError: a rule whose work is not known here.
    """
    B, D = batch, features
    factored = B < D  # as Moments chooses: X is never formed
    moment = 2 * B * D**2
    loss = 2 * B**2 * D if factored else 0
    if isinstance(rule, TriangularRule):
        work = (moment, 2 * D**3, loss)
    elif isinstance(rule, RowRule | AdaptiveGainRule):
        work = (moment, moment if factored else 2 * D**3, loss)
    elif isinstance(rule, FoldiakRule):
        work = (moment, 4 * D**3 + (LU + SOLVES) * D**3, loss)
    elif isinstance(rule, ExactWhitening):
        if rule.solver != "eigh":
            raise TypeError("the work of solver='newton_schulz' depends on its steps and is not counted here")
        solving = {"zca": EIGEN + 2, "pca": EIGEN, "cholesky": CHOLESKY + TRIANGULAR_SOLVES}[rule.kind]
        # the moment of the inputs; that of the states is only formed where it is not kept factored
        work = (moment + (0 if factored else moment), solving * D**3, loss)
    else:
        raise TypeError(f"the work of {type(rule).__name__} is not known: add its counts to decorlib.rules.work")
    return Flops(**dict(zip(("statistics", "update", "loss"), (w / update_every for w in work), strict=True)))


def alone(rule: Rule, batch: int, features: int, update_every: int = 1) -> Flops:
    """One step of a Decorrelation layer on its own: y = R x, and what the rule does."""
    return Flops(forward=2 * batch * features**2) + learning(rule, batch, features, update_every)


def linear(batch: int, inputs: int, outputs: int, input_gradient: bool = True) -> Flops:
    """Forward and backward of a plain linear layer; the first layer of a network needs no gradient of its input."""
    product = 2 * batch * inputs * outputs
    return Flops(forward=product, backward=product * (1 + input_gradient))


def decor_linear(
    rule: Rule,
    batch: int,
    inputs: int,
    outputs: int,
    input_gradient: bool = True,
    update_every: int = 1,
    fraction: float = 1.0,
) -> Flops:
    """A DecorLinear layer, in the form that it picks by shape: R and then W, or (W R) as one matrix.

    For a convolution with R over patches, ``batch`` counts positions, ``inputs`` the features of a patch.
    """
    sampled = max(1, round(fraction * batch))
    due, idle = (transform(batch, inputs, outputs, rows, input_gradient) for rows in (sampled, 0))
    learns = learning(rule, sampled, inputs, update_every)
    return linear(batch, inputs, outputs, input_gradient) + mixed(due, idle, 1 / update_every) + learns


def transform(
    batch: int,
    inputs: int,
    outputs: int,
    sampled: int = 0,
    input_gradient: bool = True,
    composed: bool | None = None,
) -> Flops:
    """What R adds to the products of a linear layer in one step: R x for all rows, or (W R) composed.

    ``sampled`` rows have their states remembered, none in a step that does not learn; ``composed`` says whether it is
    (W R), and None that it is where that is cheaper, see DecorLinear.
    """
    B, D, M = batch, inputs, outputs
    if composed or (composed is None and B * (1 + input_gradient) > 2 * M + sampled):
        return Flops(forward=2 * M * D**2, backward=2 * M * D**2, statistics=2 * sampled * D**2)
    return Flops(forward=2 * B * D**2, backward=2 * B * D**2 * input_gradient)


def mixed(a: Flops, b: Flops, share: float) -> Flops:
    """The mean work of steps of which a share is a and the rest b."""
    if share == 1:
        return a
    return Flops(*(share * getattr(a, n) + (1 - share) * getattr(b, n) for n in Flops.__dataclass_fields__))
