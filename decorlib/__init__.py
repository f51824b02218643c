"""decorlib: decorrelated neural networks in PyTorch.

>>> from decorlib import DecorLinear, DecorSGD, bp_parameters, decorrelate
"""

from decorlib.conversion import ConversionReport, calibrate, conversion_report, decorrelate, fuse
from decorlib.layers import (
    DecorConv1d,
    DecorConv2d,
    DecorConv3d,
    DecorConvTranspose2d,
    DecorLinear,
    DecorMultiheadAttention,
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
from decorlib.layers.pending import LostGradient
from decorlib.layers.rates import suggest_rate, suggest_rates
from decorlib.layers.summary import summary
from decorlib.layers.unmoved import SilentNoOp
from decorlib.optim import DecorOptimizer, DecorSGD
from decorlib.rules.catalogue import RULES, make_rule
from decorlib.rules.maps import AdaptiveGainRule, FoldiakRule
from decorlib.rules.rules import KappaRule, NotebookRule, PlainDecorrelation, Rule, SeedRule, WhiteningRule
from decorlib.rules.variants import ColumnScaledKappaRule, TriangularRule
from decorlib.rules.whitening import ExactWhitening
from decorlib.training.call_2024 import decor_train
from decorlib.training.checkpoint import CheckpointDamaged, load_checkpoint, read_checkpoint, save_checkpoint
from decorlib.training.history import Epoch, History
from decorlib.training.train import train

__version__ = "0.2.0"

__all__ = [
    "RULES",
    "AdaptiveGainRule",
    "CheckpointDamaged",
    "ColumnScaledKappaRule",
    "ConversionReport",
    "DecorConv1d",
    "DecorConv2d",
    "DecorConv3d",
    "DecorConvTranspose2d",
    "DecorLinear",
    "DecorMultiheadAttention",
    "DecorOptimizer",
    "DecorSGD",
    "Decorrelation",
    "Epoch",
    "ExactWhitening",
    "FoldiakRule",
    "History",
    "KappaRule",
    "LostGradient",
    "NonFiniteInput",
    "NotebookRule",
    "PlainDecorrelation",
    "Rule",
    "SeedRule",
    "SilentNoOp",
    "TriangularRule",
    "WhiteningRule",
    "bp_parameters",
    "calibrate",
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
    "suggest_rate",
    "suggest_rates",
    "summary",
    "train",
]
