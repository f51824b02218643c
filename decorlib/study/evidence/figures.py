"""One style for all figures, and the two figures that recur: curves by seed and paired differences.

Nothing here computes a finding: functions take data frames or arrays and return figures. Intervals are
Student-t over seeds; there is no bootstrap band, which at five seeds is too narrow and differs between runs.
"""

import io
import os
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats as sps

PALETTE = list(mpl.color_sequences["petroff6"])  # stays apart under the three colour-vision deficiencies
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
DPI = 192  # two image points per CSS pixel at 7 inches in a 672 pixel column

_count = 0


def use_style() -> None:
    """Set the style of every figure; :func:`decorlib.study.setup` calls it."""
    global _count
    _count = 0
    sns.set_theme(style="whitegrid", palette=PALETTE)
    mpl.rcParams.update(
        {
            "figure.figsize": (7.0, 3.8),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",  # also on a dark page: the colours were chosen against white
            "savefig.dpi": DPI,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "legend.frameon": False,
            "font.size": 10,
            "svg.hashsalt": "decorlib",
        }
    )


def arm_styles(arms) -> dict:
    """Colour, marker and line style of each arm, in the order given: never colour alone."""
    arms = list(arms)
    if len(arms) > len(PALETTE):
        raise ValueError(f"{len(arms)} arms, but at most {len(PALETTE)} can be told apart; split the figure")
    return {arm: {"color": PALETTE[i], "marker": MARKERS[i], "linestyle": LINES[i]} for i, arm in enumerate(arms)}


def png(fig: Figure) -> bytes:
    """The figure as a PNG with a palette of 256 colours: a third of the size, the same bytes each time."""
    raw = io.BytesIO()
    # `Software` would put matplotlib's version into the file.
    fig.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    image = Image.open(raw).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=0)
    out = io.BytesIO()
    image.save(out, format="png", optimize=True, dpi=(DPI, DPI))
    return out.getvalue()


def show(fig: Figure, alt: str, name: str | None = None) -> None:
    """Show a figure with its alternative text, and close it.

    The alternative text says in a sentence what the figure shows to someone who cannot see it; put computed
    numbers in by an f-string. The report does not build with a figure that has none. Under ``make reproduce``
    the figure is saved too, as ``figures/NN_name.png`` of the results.

    Args:
        fig: the figure.
        alt: the alternative text.
        name: file name without number and ending. Default: ``None``, a running number (``figure1``)

    Raises:
        ValueError: `alt` is empty, or `name` is not made of letters, digits, ``-`` and ``_``.
    """
    global _count
    alt = " ".join(alt.split())
    if not alt:
        raise ValueError("alt is empty: say in one sentence what the figure shows")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"name must be letters, digits, - and _, got {name!r}")
    _count += 1
    data = png(fig)
    width, height = (round(side * 96) for side in fig.get_size_inches())
    plt.close(fig)
    folder, notebook = os.environ.get("DECORLIB_RESULTS"), os.environ.get("DECORLIB_NOTEBOOK")
    if folder and notebook:
        target = Path(folder) / "figures" / f"{notebook}_{name or f'figure{_count}'}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    from IPython.display import display

    display(
        {"image/png": data, "text/plain": f"[figure: {alt}]"},
        raw=True,
        metadata={"image/png": {"alt": alt, "width": width, "height": height}},
    )


def curves_by_seed(
    df: pd.DataFrame, x: str, y: str, arm: str, seed: str = "seed", ax=None, log: bool = False, **labels
):
    """Every seed as a thin line, the median over seeds as a bold one, for each arm.

    Args:
        df: one row per arm, seed and `x`. Rows with a missing `y` (a diverged run) end that seed's line.
        x: column of the abscissa, such as the epoch.
        y: column of the ordinate.
        arm: column that names the arms.
        seed: column of the seed. Default: ``"seed"``
        ax: axes to draw into. Default: ``None``, a new figure
        log: logarithmic y axis. Default: ``False``
        labels: ``title=``, ``xlabel=``, ``ylabel=`` and whatever else ``Axes.set`` takes.

    Returns:
        The axes.
    """
    missing = [column for column in (x, y, arm, seed) if column not in df.columns]
    if missing:
        raise ValueError(f"no column {missing} in the table; it has {list(df.columns)}")
    ax = plt.subplots()[1] if ax is None else ax
    styles = arm_styles(df[arm].drop_duplicates())
    for name, style in styles.items():
        part = df[df[arm] == name]
        for _, run in part.groupby(seed):
            ax.plot(run[x], run[y], color=style["color"], linestyle=style["linestyle"], lw=0.8, alpha=0.45)
        # The median of the seeds that are still there would look better than the truth once one diverged.
        whole = part.groupby(x)[y].agg(lambda values: np.nan if values.isna().any() else values.median())
        n = part[seed].nunique()
        ax.plot(whole.index, whole, lw=2.2, markersize=4, label=f"{name} (median of {n})", **style)
    if log:
        ax.set_yscale("log")
    ax.set(**{"xlabel": x, "ylabel": y, **labels})
    ax.legend()
    return ax


def paired_dots(differences, level: float = 0.95, ax=None, seed: int = 0, **labels):
    """Differences between two arms, one dot per seed, with mean and Student-t interval beside them.

    Args:
        differences: mapping from a label (one row each) to the differences of that comparison, one per seed.
        level: level of the interval. Default: 0.95
        ax: axes to draw into. Default: ``None``, a new figure
        seed: seed of the vertical jitter, which carries no meaning. Default: 0
        labels: ``title=``, ``xlabel=`` and whatever else ``Axes.set`` takes.

    Returns:
        The axes. With one seed there is no interval, and none is drawn.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if not differences:
        raise ValueError("no comparison to draw: differences is empty")
    ax = plt.subplots(figsize=(7.0, 1.2 + 0.6 * len(differences)))[1] if ax is None else ax
    jitter = np.random.default_rng(seed)
    for row, (_, values) in enumerate(differences.items()):
        values = np.asarray(values, dtype=float)
        n = len(values)
        ax.plot(values, row + 0.18 + jitter.uniform(-0.08, 0.08, n), "o", color=PALETTE[0], ms=5, alpha=0.6)
        if n > 1:
            half = sps.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
            ax.errorbar(values.mean(), row - 0.1, xerr=half, fmt="D", color=PALETTE[1], capsize=4, lw=2)
    ax.axvline(0, color="black", lw=1)
    ax.set_yticks(range(len(differences)), [f"{label} (n = {len(v)})" for label, v in differences.items()])
    ax.set_ylim(len(differences) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set(**{"xlabel": "difference", **labels})
    return ax


def label_points(ax, points: dict[str, tuple[float, float]], size: float = 8.0) -> None:
    """Write each point's name beside it: right, left, above or below, the first place that no other label or point has.

    Args:
        ax: axes whose limits and scales are set already.
        points: name -> position in the data's units.
        size: of the letters, in points. Default: 8.0
    """
    renderer = ax.figure.canvas.get_renderer()
    ax.figure.draw_without_rendering()  # constrained layout moves the axes once more
    places = [((7, 0), "left", "center"), ((-7, 0), "right", "center")]
    places += [((0, 7), "center", "bottom"), ((0, -7), "center", "top")]
    marks = [ax.transData.transform(position) for position in points.values()]
    taken = [mpl.transforms.Bbox.from_extents(x - 6, y - 6, x + 6, y + 6) for x, y in marks]
    for i, (name, position) in enumerate(points.items()):
        others = [box for j, box in enumerate(taken) if j != i]
        for offset, horizontal, vertical in places:
            label = ax.annotate(
                name, position, offset, textcoords="offset points", fontsize=size, ha=horizontal, va=vertical
            )
            box = label.get_window_extent(renderer)
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
            if inside and not any(box.overlaps(other) for other in others):
                break
            label.remove()
        else:  # no place is free: to the right after all
            offset, horizontal, vertical = places[0]
            label = ax.annotate(
                name, position, offset, textcoords="offset points", fontsize=size, ha=horizontal, va=vertical
            )
        taken.append(label.get_window_extent(renderer))
