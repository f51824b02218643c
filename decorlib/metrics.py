"""How correlated states are, and how fast a run reached a target: pure functions of what was measured.

States are (samples, features). Moments are about zero unless ``centred`` is asked for, because that is what the
learning rules see; they are taken in float64 over all samples given.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

States = Float[Tensor, "samples features"]


def second_moment(x: States, centred: bool = False) -> Float64[Tensor, "features features"]:
    """C = <x x'>, or the covariance <(x - <x>)(x - <x>)'> where `centred`; a mean over samples, not over n - 1.

    Args:
        x: states.
        centred: subtract each feature's mean first. Default: False.

    Shape:
        (samples, features) -> (features, features), float64.

    Raises:
        ValueError: x is no matrix of real numbers, there is no sample, a state is not finite, or the squares of the
            states are outside what float64 can hold.
    """
    if x.dim() != 2 or x.is_complex():
        raise ValueError(
            f"x is a {x.dtype} tensor of shape {tuple(x.shape)}; give real states (samples, features), images by "
            "x.flatten(1)"
        )
    if x.numel() == 0:
        raise ValueError(f"x is empty, its shape is {tuple(x.shape)}; give at least one sample of one feature")
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or inf; a run that diverged has no spectrum, leave it out by its status")
    x = x.detach().double()
    if centred:
        x = x - x.mean(0)
    c = x.T @ x / len(x)
    total, number = c.diagonal().sum().item(), torch.finfo(c.dtype)
    if not math.isfinite(total) or (total < number.tiny / number.eps and bool((x != 0).any())):
        raise ValueError(
            f"the largest state is {x.abs().max().item():.3g}: its square is outside what float64 can hold; scale the "
            "states"
        )
    return c


def _near_one(c: Tensor) -> Tensor:
    """``c`` times a power of two, which rounds nothing, so that squares of its entries can be held."""
    return c * math.ldexp(1.0, -math.frexp(c.abs().max().item())[1])


def _finite(loss: float, y: Tensor) -> float:
    if not math.isfinite(loss):
        raise ValueError(
            f"the largest state is {y.abs().max().item():.3g}: its fourth power is more than float64 can hold; scale "
            "the states"
        )
    return loss


def decorrelation_loss(y: States, variance: float | Float[Tensor, " features"] | None = None) -> float:
    """Mean over all D^2 entries of (C - diag(s2))^2, or of C^2 where there is no target.

    Of one batch it is the loss that the 2024 notebook prints.

    Args:
        y: states after decorrelation.
        variance: target s2 of each feature's second moment, one number or one per feature. Default: None, no target:
            the mean of C^2.

    Raises:
        ValueError: a target that is negative or not finite, or not one per feature.
    """
    c = second_moment(y)
    if variance is not None:
        target = torch.as_tensor(variance, dtype=c.dtype, device=c.device)
        if target.dim() > 1 or (target.dim() == 1 and len(target) not in (1, len(c))):
            raise ValueError(f"variance has shape {tuple(target.shape)} for {len(c)} features: give one, or one each")
        if not (target.isfinite() & (target >= 0)).all():
            raise ValueError(f"variance is {variance}; a second moment is finite and not negative")
        c.diagonal().sub_(target)
    return _finite(c.square().mean().item(), y)


def offdiagonal_loss(y: States, centred: bool = False) -> float:
    """Mean square of the D(D - 1) entries of C off its diagonal; 0 exactly where no two features are correlated.

    It has the unit of y to the fourth power: to compare states of different scale use :func:`mean_correlation`.

    Args:
        y: states.
        centred: of the covariance instead of the second moment. Default: False.
    """
    c = second_moment(y, centred)
    d = len(c)
    if d == 1:
        return 0.0
    # the clamp only catches rounding: the squares that are taken off are among those summed
    return max(_finite((c.square().sum() - c.diagonal().square().sum()).item() / (d * (d - 1)), y), 0.0)


def mean_correlation(y: States, centred: bool = True) -> float | None:
    """Root mean square correlation between different features, between 0 and 1, whatever their scale.

    Features that are always zero (after centring: that are constant) have no correlation; they are left out, and
    where fewer than two others remain the answer is None.

    Args:
        y: states.
        centred: correlation in the usual sense; False: cosine about zero. Default: True.
    """
    c = _near_one(second_moment(y, centred))
    v = c.diagonal()
    alive = v > v.max() * torch.finfo(v.dtype).eps  # below that, rounding of the mean is all there is
    c, d = c[alive][:, alive], int(alive.sum())
    if d < 2:
        return None
    r = c / torch.outer(c.diagonal(), c.diagonal()).sqrt()
    return math.sqrt(max(r.square().sum().item() - d, 0.0) / (d * (d - 1)))


def spectrum(x: States, centred: bool = False) -> Float64[Tensor, " features"]:
    """Eigenvalues of C, largest first, none below 0.

    Args:
        x: states.
        centred: of the covariance instead of the second moment. Default: False.
    """
    return torch.linalg.eigvalsh(second_moment(x, centred)).flip(0).clamp_(min=0)


def effective_rank(
    x: States, definition: Literal["participation", "entropy"] = "participation", centred: bool = False
) -> float:
    r"""How many directions the states really use: between 1 (one mode) and D (white).

    There are two common definitions, and they differ much where one mode is far above a long tail:

    * ``"participation"``: (sum l)^2 / sum l^2, the participation ratio. Counts the dominant modes; 2.0 for the 2024
      notebook's 1,000 digits, whose first eigenvalue is 25 times the second.
    * ``"entropy"``: exp(-sum p log p) with p = l / sum l (Roy and Vetterli, 2007, on the eigenvalues of C). Counts the
      tail too; 6.0 for the same digits.

    Args:
        x: states.
        definition: which of the two. Default: "participation".
        centred: of the covariance instead of the second moment. Default: False.

    Raises:
        ValueError: unknown definition, or states that are all zero.
    """
    if definition not in ("participation", "entropy"):
        raise ValueError(f"definition = {definition!r} is unknown; choose 'participation' or 'entropy'")
    c = second_moment(x, centred)
    if not c.diagonal().any():
        raise ValueError("all states are zero (or constant, where centred): their rank is 0 and has no effective size")
    if definition == "participation":  # sums over eigenvalues without them: of l the trace, of l^2 the squared norm
        c = _near_one(c)
        return (c.diagonal().sum().square() / c.square().sum()).item()
    l = _near_one(torch.linalg.eigvalsh(c).clamp_(min=0))
    p = l[l > 0] / l.sum()
    return torch.exp(-(p * p.log()).sum()).item()


def condition_number(x: States, centred: bool = False) -> float:
    """Largest eigenvalue of C over its smallest; inf where C is singular, as it is with fewer samples than features.

    An eigenvalue below D eps times the largest is rounding, and counts as zero.

    Args:
        x: states.
        centred: of the covariance instead of the second moment. Default: False.
    """
    l = spectrum(x, centred)
    smallest = l[-1].item()
    return math.inf if smallest <= len(l) * torch.finfo(l.dtype).eps * l[0].item() else l[0].item() / smallest


def epochs_to(history: Any, target: float, *, value: str, better: Literal["higher", "lower"] = "higher") -> int | None:
    """First epoch in which `value` was at least as good as `target`; None, never left out, where none was.

    Args:
        history: a :class:`decorlib.training.history.History`, or its ``rows()``: one mapping per epoch, with "epoch".
        target: level to be reached; reaching it exactly counts.
        value: name of the column, for example the name that ``evaluate`` gave to its accuracy.
        better: which way is better. Default: "higher".

    Raises:
        KeyError: no row has the column.

    Example::

        >>> epochs_to([{"epoch": 1, "acc": 0.9}, {"epoch": 2, "acc": 0.98}], 0.98, value="acc")
        2
    """
    row = _first(_rows(history), target, value, better)
    return None if row is None else row["epoch"]


def seconds_to(
    history: Any, target: float, *, value: str, better: Literal["higher", "lower"] = "higher"
) -> float | None:
    """Training time up to the end of that epoch, the sum of "seconds" of the rows; None where none got there.

    Args:
        history: as in :func:`epochs_to`; its rows have "seconds" too.
        target: as in :func:`epochs_to`.
        value: as in :func:`epochs_to`.
        better: as in :func:`epochs_to`. Default: "higher".
    """
    rows = _rows(history)
    row = _first(rows, target, value, better)
    return None if row is None else sum(r["seconds"] for r in rows[: rows.index(row) + 1])


def _rows(history: Any) -> list[Mapping]:
    return list(history.rows() if hasattr(history, "rows") else history)


def _first(rows: Iterable[Mapping], target: float, value: str, better: str) -> Mapping | None:
    if better not in ("higher", "lower"):
        raise ValueError(f"better = {better!r} must be 'higher' or 'lower'")
    if math.isnan(target):
        raise ValueError("target is nan, which no epoch reaches; give a number")
    rows = list(rows)
    if rows and not any(value in row for row in rows):
        raise KeyError(f"no epoch has {value!r}; there are {', '.join(map(str, rows[-1]))}")
    sign = 1 if better == "higher" else -1
    for row in rows:
        found = row.get(value)  # None: not measured in that epoch, or not finite
        if found is not None and sign * found >= sign * target:
            return row
    return None
