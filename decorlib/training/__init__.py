"""The training loop with its steps in the open, what it remembers, and checkpoints.

This room imports rules, layers and the optimizers of R.
"""

from decorlib.layers.unmoved import SilentNoOp
from decorlib.training.call_2024 import decor_train
from decorlib.training.checkpoint import CheckpointDamaged, load_checkpoint, read_checkpoint, save_checkpoint
from decorlib.training.history import Epoch, History
from decorlib.training.train import train

__all__ = [
    "CheckpointDamaged",
    "Epoch",
    "History",
    "SilentNoOp",
    "decor_train",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "train",
]
