"""Where does it pay? The arms, and the cells in which they are compared: one axis varied at a time.

A cell is an (axis, value), such as ("batch size", 8). In each the same four arms
run; what a cell does not vary is as in the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from decorlib.study.experiments.arms import spread
from decorlib.study.experiments.experiment import Experiment

ALONE, DEMEANED, NORMALISED, OURS = "alone", "demeaned, every layer", "BatchNorm", "R"
EVERYWHERE = "R, every layer"
CONTROLS = (DEMEANED, NORMALISED)
KAPPA = (("kappa", 0.5),)
UPDATES = 50  # of R in a run, about
TUNING_SEEDS = (100, 101)  # no comparison uses them

CREDIT, ANNEALED = "credit, constant rate", "credit, annealed rate"
CREDITS = (CREDIT, ANNEALED)
BATCH, DEPTH, WIDTH, DATA = "batch size", "hidden layers", "width", "training digits"
CONDITION, NOISE = "condition of Gaussian inputs", "noise of Gaussian inputs"

Cell = tuple[str, float | str]


def arms(base: Experiment, everywhere: bool = False) -> dict[str, Experiment]:
    """The arms of a cell, by name; rates are still to be chosen.

    R is centred and learns by the kappa rule in all layers but the first; in all layers where the inputs are Gaussian,
    whose correlation is the question. It learns at every step, or at every n-th where a run has n times 50 steps, so
    that a rate of R means about the same in a cell of few steps and in one of many.

    Args:
        base: data, sizes, credit, epochs.
        everywhere: a fifth arm, R in every layer. Default: False.
    """
    plain = base.but(rule=None, demean_inputs=True)
    steps = (base.train_size or 50_000) // base.batch_size * base.epochs
    options = (("update_every", max(1, int(steps // UPDATES))), ("center", "batch"))
    ours = plain.but(rule="kappa", rule_options=KAPPA, layer_options=options)
    found = {
        ALONE: plain,
        DEMEANED: plain.but(normalisation="mean"),
        NORMALISED: plain.but(normalisation="batch"),
        OURS: ours.but(decorrelated="all" if base.data == "gaussian" else "deeper"),
    }
    return found | ({EVERYWHERE: ours.but(decorrelated="all")} if everywhere else {})


def rates(
    found: Mapping[str, Experiment], lr: Sequence[float], decor_lr: Sequence[float]
) -> dict[str, dict[str, list[float]]]:
    """As many tries for every arm: rates of the weights times rates of R, or as many rates of the weights.

    Args:
        found: arms by name.
        lr: rates of the weights, Adam.
        decor_lr: rates of R.
    """
    many = spread(lr, len(lr) * len(decor_lr)) if len(lr) * len(decor_lr) > 1 else list(lr)
    return {
        name: {"lr": many} if spec.rule is None else {"lr": list(lr), "decor_lr": list(decor_lr)}
        for name, spec in found.items()
    }


def epochs(images: int, train_size: int) -> int:
    """Whole epochs in which about so many images are seen; one, where there are more."""
    return max(1, round(images / train_size))


def rounds(tries: int) -> list[float]:
    """Parts of the length at which tries are halved: a quarter and all of it, where there is more than one."""
    return [1 / 4, 1] if tries > 1 else [1]


def credits(base: Experiment, annealed: Sequence[str], constant: Sequence[str]) -> dict[Cell, Experiment]:
    """A cell for each way of assigning credit, where the rate of the weights is annealed and where it is constant."""
    found = {(ANNEALED, name): base.but(credit=name, lr_schedule="cosine_steps") for name in annealed}
    return found | {(CREDIT, name): base.but(credit=name) for name in constant}


def cells(
    base: Experiment, images: int, axes: Mapping[str, Sequence[float]], depth_width: int
) -> dict[Cell, Experiment]:
    """The cells of the map: backpropagation, each axis varied while the others stay as they are in ``base``; annealed.

    Every run sees as many images, so that what varies is not how long it trains: fewer digits are seen more often, and
    larger batches take fewer steps. Where there are more digits than that, each is seen once.

    Args:
        base: the middle of the map.
        images: seen by every run.
        axes: name -> its values.
        depth_width: width of the networks of different depth.
    """

    def at(axis: str, value: float) -> Experiment:
        if axis in (CONDITION, NOISE):
            spec = base.but(data="gaussian", **{{CONDITION: "condition", NOISE: "noise"}[axis]: float(value)})
        elif axis == DEPTH:
            spec = base.but(hidden=(depth_width,) * int(value))
        elif axis == WIDTH:
            spec = base.but(hidden=(int(value),) * len(base.hidden))
        elif axis == BATCH:
            spec = base.but(batch_size=int(value))
        elif axis == DATA:
            spec = base.but(train_size=int(value), batch_size=min(base.batch_size, max(1, int(value) // 4)))
        else:
            raise ValueError(f"no axis {axis!r}; there are {', '.join((BATCH, DEPTH, WIDTH, DATA, CONDITION, NOISE))}")
        return spec.but(epochs=epochs(images, spec.train_size), lr_schedule="cosine_steps")

    return {(axis, value): at(axis, value) for axis, values in axes.items() for value in values}


def named(cell: Cell, arm: str) -> str:
    """The name of a cell's arm among all arms of a comparison."""
    return f"{cell[0]} | {cell[1]} | {arm}"


def all_arms(found: Mapping[Cell, Experiment], everywhere: bool = False) -> dict[str, Experiment]:
    """The arms of all cells under their full names, ``everywhere`` as in :func:`arms`."""
    return {named(cell, arm): spec for cell, base in found.items() for arm, spec in arms(base, everywhere).items()}
