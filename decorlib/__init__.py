"""decorlib: decorrelated neural networks in PyTorch.

>>> from decorlib import DecorLinear, decor_parameters, bp_parameters, decor_update
"""

from decorlib.conversion.candidates import ConversionReport, conversion_report
from decorlib.conversion.convert import decorrelate, fuse
from decorlib.layers import (
    DecorConv2d,
    DecorConvTranspose2d,
    DecorLinear,
    Decorrelation,
    NonFiniteInput,
    bp_parameters,
    decor_measure,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_update,
    padding,
)
from decorlib.rules.catalogue import RULES, make_rule
from decorlib.rules.maps import AdaptiveGainRule, FoldiakRule
from decorlib.rules.rules import KappaRule, NotebookRule, PlainDecorrelation, Rule, SeedRule, WhiteningRule
from decorlib.rules.variants import ColumnScaledKappaRule, TriangularRule
from decorlib.rules.whitening import ExactWhitening
from decorlib.training.checkpoint import CheckpointDamaged, load_checkpoint, read_checkpoint, save_checkpoint
from decorlib.training.history import Epoch, History
from decorlib.training.train import SilentNoOp, decor_train, train

__version__ = "0.2.0"

__all__ = [
    "RULES",
    "AdaptiveGainRule",
    "CheckpointDamaged",
    "ColumnScaledKappaRule",
    "ConversionReport",
    "DecorConv2d",
    "DecorConvTranspose2d",
    "DecorLinear",
    "Decorrelation",
    "Epoch",
    "ExactWhitening",
    "FoldiakRule",
    "History",
    "KappaRule",
    "NonFiniteInput",
    "NotebookRule",
    "PlainDecorrelation",
    "Rule",
    "SeedRule",
    "SilentNoOp",
    "TriangularRule",
    "WhiteningRule",
    "bp_parameters",
    "conversion_report",
    "decor_measure",
    "decor_modules",
    "decor_parameters",
    "decor_step",
    "decor_train",
    "decor_update",
    "decorrelate",
    "fuse",
    "load_checkpoint",
    "make_rule",
    "padding",
    "read_checkpoint",
    "save_checkpoint",
    "train",
]
