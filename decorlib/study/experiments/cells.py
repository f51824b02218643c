"""A table of effects, one row per cell (digits, rule): what a notebook shows of it, keeps of it and decides by it."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from decorlib.study.evidence.figures import paired_dots
from decorlib.study.evidence.stats import Interval, paired


@dataclass(frozen=True)
class Found:
    """What came out of :func:`decorlib.study.experiments.scales.compare`.

    Args:
        table: one row per cell, whose name is the index; see :func:`decorlib.study.experiments.scales.compare`.
        differences: by cell, treated minus control in each seed in which both finished.
        tries: every try of the tuning, of the grids that chose.
        margin: smallest difference that counts.
    """

    table: pd.DataFrame
    differences: dict[str, list[float]]
    tries: pd.DataFrame
    margin: float

    @property
    def primary(self) -> str:
        """The cell of the answer table: the largest scale of this run, with the first of the pairs."""
        return self.table.index[self.table["digits"] == self.table["digits"].max()][0]

    @property
    def about(self) -> dict:
        """What a verdict on the primary cell says about itself."""
        at = self.table.loc[self.primary]
        scale = f"{at['digits']:,} digits, 784-100-10, {at['epochs']} {'epoch' if at['epochs'] == 1 else 'epochs'}"
        said = {"better": "higher", "margin": self.margin, "unit": "test accuracy"}
        return {"scale": scale, "schedule": "constant", "left_out": int(at["seeds"] - at["n"]), **said}

    @property
    def decides(self) -> str:
        """The criterion of the primary cell, after what is compared."""
        return (
            f"{self.primary}, best rates, by seed: 95% interval above {self.margin:g}; refuted inside ±{self.margin:g}"
        )

    @property
    def agrees(self) -> dict:
        """How closely the table of another run agrees, for ``Record.table``."""
        ends = dict.fromkeys(("low", "high", "low, all", "high, all"), self.margin / 2)
        return {"tolerance": {"estimate": self.margin / 4, **ends}, "skip": ("n to decide",)}

    def interval(self, cell: str) -> Interval:
        """Estimate and 95 % interval of one cell, by itself.

        Raises:
            ValueError: there is no such cell, or it has no interval since runs diverged.
        """
        if cell not in self.differences:
            raise ValueError(f"no cell {cell!r}; there are {', '.join(map(repr, self.differences))}")
        if len(self.differences[cell]) < 2:
            raise ValueError(f"{cell}: {self.table.loc[cell, 'diverged']}, which leaves no interval; try smaller rates")
        return paired(self.differences[cell], [0.0] * len(self.differences[cell]))

    @property
    def shown(self) -> pd.DataFrame:
        """What a reader wants first, differences in points of test accuracy."""
        points = self.table[["estimate", "low", "high", "low, all", "high, all"]].astype(float) * 100
        beside = ["n", "diverged", "rates of control", "rates of treated", "edge", "outcome"]
        several = ["treated"] if (self.table["treated"] != "").any() else []
        return points.round(2).join(self.table[[*several, *beside]])

    def draw(self, what: str) -> tuple[Figure, str]:
        """Every seed of every cell, in points of test accuracy, with the margin; and its alternative text.

        Args:
            what: the difference in words, such as "demeaned minus not".
        """
        shown = {cell: [100 * d for d in values] for cell, values in self.differences.items() if values}
        told = [f"{cell} {100 * row['estimate']:+.2f} ({row['outcome']})" for cell, row in self.table.iterrows()]
        means = 100 * self.table["estimate"].astype(float)
        title = f"{what[0].upper()}{what[1:]}: {means.min():+.2f} to {means.max():+.2f} points of test accuracy"
        fig, ax = plt.subplots(figsize=(7.5, 1.2 + 0.5 * len(shown)))
        paired_dots(shown, ax=ax, xlabel="difference in test accuracy, points")
        for side in (-100 * self.margin, 100 * self.margin):
            ax.axvline(side, color="0.6", ls=":")
        fig.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        alt = f"Test accuracy, {what}, a dot per seed: {'; '.join(told)}; margin {100 * self.margin:g} points."
        return fig, alt
