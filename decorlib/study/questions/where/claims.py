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
GAPS = ("gap without R", "gap with R")


@dataclass(frozen=True)
class Claim:
    """A published claim and the sum of accuracies, paired by seed, that says whether it holds here.

    Args:
        source: where it stands.
        claim: what is claimed.
        theirs: their number, with its scale; "no number" where only words were read.
        ours: what is measured here, in words.
        terms: (factor, axis, value, arm): the accuracies that are added; the claim says that the sum is above 0.
        kind: ``"differs"``: by more than the margin; ``"approaches"``: two gaps, the first minus the second, in halves;
            any narrowing counts (margin 0), and both gaps are shown.
    """

    source: str
    claim: str
    theirs: str
    ours: str
    terms: tuple[Term, ...]
    kind: str = "differs"


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
        f"the gap of {ACTIVITY} to backpropagation alone: without R minus with it",
        (
            *((1.0, ANNEALED, BP, ALONE), (-1.0, ANNEALED, ACTIVITY, ALONE)),
            *((-1.0, ANNEALED, BP, ALONE), (1.0, ANNEALED, ACTIVITY, OURS)),
        ),
        "approaches",
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
    wides = [accuracies(table) for table in tables]
    sums = [_sum(wides, claim.terms) for claim in claims]
    count = sum(found is not None for found in sums)
    out = []
    for claim, found in zip(claims, sums, strict=True):
        told = {name: value for name, value in asdict(claim).items() if name not in ("terms", "kind")}
        if found is None:
            nothing = dict.fromkeys(("estimate", "low", "high", *GAPS))
            out.append(told | nothing | {"n": 0, "holds": "not run at this size"})
            continue
        held = simultaneous(found, count)
        decided = decide(held, better="higher", margin=0.0 if claim.kind == "approaches" else margin)
        words = {"supported": "holds", "refuted": "no difference", "harmful": "the other way round"}
        if claim.kind == "approaches":  # there is no "no difference" where the margin is 0
            words["refuted"] = "the other way round"
        numbers = {"estimate": held.estimate, "low": held.low, "high": held.high} | _gaps(wides, claim) | {"n": held.n}
        out.append(told | numbers | {"holds": words.get(decided, decided)})
    return pd.DataFrame(out)


def in_points(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as a reader wants them: numbers in points, one column for estimate and interval."""

    def told(row: pd.Series) -> str:
        if row["n"] == 0:
            return "–"
        estimate, low, high = (100 * row[name] for name in ("estimate", "low", "high"))
        said = f"{estimate:+.2f} [{low:.2f}, {high:.2f}], n = {row['n']}"
        if pd.isna(row[GAPS[0]]):
            return said
        return f"{said}; gap {100 * row[GAPS[0]]:.2f} without R, {100 * row[GAPS[1]]:.2f} with it"

    points = [told(row) for _, row in table.iterrows()]
    return table.drop(columns=["estimate", "low", "high", *GAPS, "n"]).assign(**{"ours, points": points})


def _gaps(wides: Sequence[pd.DataFrame], claim: Claim) -> dict[str, float | None]:
    """The two gaps of a claim that something approaches; None each for any other claim."""
    if claim.kind != "approaches":
        return dict.fromkeys(GAPS)
    half = len(claim.terms) // 2
    halves = _sum(wides, claim.terms[:half]), _sum(wides, claim.terms[half:])
    return {name: sign * found.estimate for name, sign, found in zip(GAPS, (1, -1), halves, strict=True) if found}


def _sum(wides: Sequence[pd.DataFrame], terms: Sequence[Term]) -> Interval | None:
    """The sum of terms by seed; None where a cell or an arm is not there."""
    total: pd.Series | float = 0.0
    for factor, axis, value, arm in terms:
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
