"""What was published about decorrelation, beside the same comparison at our scale.

What the papers say is quoted from abstracts, code and stored outputs, which ``source`` names; the bodies of the papers
were not read. Theirs and ours differ in data, size and length: "holds" says that the sign and the size above the margin
are found here, not that a number was reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from decorlib.study.evidence.stats import Interval, decide, paired, simultaneous
from decorlib.study.questions.where.gains import accuracies
from decorlib.study.questions.where.plan import ALONE, ANNEALED, BATCH, DEPTH, EVERYWHERE, NORMALISED, OURS, named

SMALLEST, LARGEST = "smallest", "largest"  # value of an axis
Term = tuple[float, str, str, str]  # factor, axis, value, arm


@dataclass(frozen=True)
class Claim:
    """A published claim and the sum of accuracies, paired by seed, that says whether it holds here.

    Args:
        source: where it stands.
        claim: what is claimed.
        theirs: their number, with its scale; "no number" where only words were read.
        ours: what is measured here, in words.
        terms: (factor, axis, value, arm): the accuracies that are added; the claim says that the sum is above 0.
    """

    source: str
    claim: str
    theirs: str
    ours: str
    terms: tuple[Term, ...]


def _gain(credit: str, control: str, arm: str = OURS) -> tuple[Term, Term]:
    return (1.0, ANNEALED, credit, arm), (-1.0, ANNEALED, credit, control)


AHMAD, DALM = "Ahmad 2024, arXiv 2407.10780, abstract", "Dalm et al., arXiv 2310.00965 v7, abstract"
WORDS = "approximations of backpropagation benefit significantly in accuracy"
NOISE = "input decorrelation brings much higher performance on test data"
BP, FA, DFA = "backpropagation", "feedback alignment", "direct feedback alignment"
NODE, ACTIVITY, WEIGHT = "node perturbation", "activity perturbation", "weight perturbation"
PLAIN = "R minus the network alone"

CLAIMS = (
    Claim(AHMAD, f"{WORDS}: {FA}", "no number read", PLAIN, _gain(FA, ALONE)),
    Claim(AHMAD, f"{WORDS}: {FA}", "no number read", "R minus BatchNorm", _gain(FA, NORMALISED)),
    Claim(AHMAD, f"{WORDS}: {DFA}", "no number read", PLAIN, _gain(DFA, ALONE)),
    Claim(AHMAD, f"{WORDS}: {NODE}", "no number read", PLAIN, _gain(NODE, ALONE)),
    Claim(
        "Safaai et al. 2026, arXiv 2607.18574, report",
        f"under {DFA} decorrelation is above BatchNorm",
        "66.00% against 65.51%, CIFAR-10, 2 seeds",
        "R minus BatchNorm",
        _gain(DFA, NORMALISED),
    ),
    Claim(DALM, f"{NOISE}: {NODE}", "no number read", PLAIN, _gain(NODE, ALONE)),
    Claim(DALM, f"{NOISE}: {ACTIVITY}", "no number read", PLAIN, _gain(ACTIVITY, ALONE)),
    Claim(DALM, f"the same, R in every layer: {ACTIVITY}", "no number read", PLAIN, _gain(ACTIVITY, ALONE, EVERYWHERE)),
    Claim(
        DALM,
        "with it, performance approaches backpropagation's",
        "no number read",
        f"{ACTIVITY} with R minus backpropagation alone",
        ((1.0, ANNEALED, ACTIVITY, OURS), (-1.0, ANNEALED, BP, ALONE)),
    ),
    Claim(
        "Ahmad 2024, stored output of the demo at b8277df",
        "backpropagation is more accurate with it",
        "50.95% against 49.33%, CIFAR-10, MLP, 10 epochs, 1 run",
        PLAIN,
        _gain(BP, ALONE),
    ),
    Claim(
        "Dalm et al. 2024, arXiv 2405.02385, abstract",
        "backpropagation is more accurate with it",
        "no number read, ImageNet",
        "R minus BatchNorm",
        _gain(BP, NORMALISED),
    ),
    Claim(
        "Ahmad et al. 2023, arXiv 2203.13203, stored output",
        f"with it, {FA} stays below backpropagation",
        "52.07% against 57.30%, CIFAR-10, 5 seeds, peaks chosen on the test set",
        f"with R, backpropagation minus {FA}",
        ((1.0, ANNEALED, BP, OURS), (-1.0, ANNEALED, FA, OURS)),
    ),
    Claim(
        "Kucukoglu et al. 2025, arXiv 2501.19133",
        "gains are mostly at small batches",
        "no number read (reinforcement learning)",
        "gain over BatchNorm at the smallest batch minus that at the largest",
        (
            *((s, BATCH, SMALLEST, arm) for s, arm in ((1.0, OURS), (-1.0, NORMALISED))),
            *((s, BATCH, LARGEST, arm) for s, arm in ((-1.0, OURS), (1.0, NORMALISED))),
        ),
    ),
    Claim(
        "decorbp, stored output of depth_analysis at 63d5908",
        "in a deep network the task is learned worse with R",
        "training loss 1.261 against 0.983, 20 linear layers, 1 run",
        "the network alone minus R, in the deepest network",
        ((1.0, DEPTH, LARGEST, ALONE), (-1.0, DEPTH, LARGEST, OURS)),
    ),
)


def rows(tables: Sequence[pd.DataFrame], margin: float, claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """A row for each claim: theirs, ours with an interval that holds together with the others', whether it holds.

    Args:
        tables: of :func:`decorlib.study.experiments.arms.compare`.
        margin: smallest difference of test accuracy that counts.
        claims: which. Default: all. One whose cells were not run says so and has no number.
    """
    sums = [_sum([accuracies(table) for table in tables], claim) for claim in claims]
    count = sum(found is not None for found in sums)
    out = []
    for claim, found in zip(claims, sums, strict=True):
        told = {name: value for name, value in asdict(claim).items() if name != "terms"}
        if found is None:
            out.append(told | {"estimate": None, "low": None, "high": None, "n": 0, "holds": "not run at this size"})
            continue
        held = simultaneous(found, count)
        decided = decide(held, better="higher", margin=margin)
        words = {"supported": "holds", "refuted": "no difference", "harmful": "the other way round"}
        numbers = {"estimate": held.estimate, "low": held.low, "high": held.high, "n": held.n}
        out.append(told | numbers | {"holds": words.get(decided, decided)})
    return pd.DataFrame(out)


def in_points(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as a reader wants them: numbers in points, one column for estimate and interval."""

    def told(row: pd.Series) -> str:
        if row["n"] == 0:
            return "–"
        estimate, low, high = (100 * row[name] for name in ("estimate", "low", "high"))
        return f"{estimate:+.2f} [{low:.2f}, {high:.2f}], n = {row['n']}"

    points = [told(row) for _, row in table.iterrows()]
    return table.drop(columns=["estimate", "low", "high", "n"]).assign(**{"ours, points": points})


def _sum(wides: Sequence[pd.DataFrame], claim: Claim) -> Interval | None:
    """The sum of a claim's terms by seed; None where a cell or an arm is not there."""
    total: pd.Series | float = 0.0
    for factor, axis, value, arm in claim.terms:
        wide = next((w for w in wides if any(name.startswith(f"{axis} | ") for name in w)), None)
        if wide is None:
            return None
        there = [name.split(" | ")[1] for name in wide if name.startswith(f"{axis} | ")]
        picked = {SMALLEST: min, LARGEST: max}[value](there, key=float) if value in (SMALLEST, LARGEST) else value
        name = named((axis, picked), arm)
        if name not in wide or (value == SMALLEST and len(set(there)) < 2):
            return None
        total = total + factor * wide[name]
    return paired(list(total), [0.0] * len(total))
