"""The rate of R from the curvature of its own rule, so that nothing about R has to be tuned."""

from __future__ import annotations

import math

from torch import Tensor

from decorlib.rules.moments import Moments, largest_eigenvalue
from decorlib.rules.rules import RowRule, Rule, as_rows, check_range

#: What ``lr="auto"`` stands for: this over the curvature.
STEP = 0.1


def curvature(rule: Rule, moments: Moments) -> Tensor:
    """Largest eigenvalue of diag(b) X, b being what the rule weighs the rows of X R by (of X for rules of other forms).

    It bounds what a step takes off one mode of R: 1 - lr * curvature of it is left. Not ``rule.sharpness``, the largest
    eigenvalue of all that multiplies R, decay and growth together: at a rule's fixed point that is 0, while a mode of
    variance t still comes back to it at rate 2 b t. By power iteration, 10 products of X and a vector: 40 BD
    operations beside the 4BD^2 of an update.

    Returns:
        A number, or one for each group.
    """
    if not isinstance(rule, RowRule):
        return largest_eigenvalue(moments.times, moments.variance)
    b = as_rows(rule.rows(moments)[1], moments.variance.unsqueeze(-1))
    return largest_eigenvalue(lambda u: b * moments.times(u), moments.variance)


def auto_rate(rule: Rule, moments: Moments, step: float = STEP) -> float:
    r"""The rate of R at which the strongest mode of a batch moves by ``step`` of itself.

    .. math:: \mathrm{lr} = \mathrm{step} / \lambda_{\max}(\mathrm{diag}(b) X)

    Args:
        rule: the learning rule.
        moments: of the states of a batch.
        step: part of itself by which the strongest mode may move, in (0, 1]: 1 takes a mode to zero in one step, which
            a rule without a target never mends; far below the edge of stability a batch's noise is averaged over 1 /
            step updates. Default: 0.1.

    Raises:
        ValueError: a step out of its range; states that are all zero or not finite, which have no curvature.
    """
    check_range("step", step, 0, 1, "1 takes the strongest mode to zero in one step; 0.1 averages over batches")
    largest = float(curvature(rule, moments).max())
    if step == 0 or not (math.isfinite(largest) and largest > 1e-30):
        raise ValueError(
            f"no rate follows from step = {step} and a curvature of {largest}: the step must be above 0, and the "
            "states of the layer finite and not all 0 (check its inputs)"
        )
    return step / largest
