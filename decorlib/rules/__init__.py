"""What R learns: learning rules as small frozen dataclasses of pure functions. Read ``rules.py`` first.

``moments`` is what a rule may ask of a batch; ``base`` what a rule is; ``rules``, ``variants``, ``maps`` and
``whitening`` hold the rules; ``catalogue`` gives them names. This room imports no other room of decorlib.
"""

from decorlib.rules.catalogue import RULES, make_rule
from decorlib.rules.maps import AdaptiveGainRule, FoldiakRule
from decorlib.rules.moments import Moments
from decorlib.rules.rules import KappaRule, NotebookRule, PlainDecorrelation, RowRule, Rule, SeedRule, WhiteningRule
from decorlib.rules.variants import ColumnScaledKappaRule, TriangularRule
from decorlib.rules.whitening import ExactWhitening

__all__ = [
    "RULES",
    "AdaptiveGainRule",
    "ColumnScaledKappaRule",
    "ExactWhitening",
    "FoldiakRule",
    "KappaRule",
    "Moments",
    "NotebookRule",
    "PlainDecorrelation",
    "RowRule",
    "Rule",
    "SeedRule",
    "TriangularRule",
    "WhiteningRule",
    "make_rule",
]
