"""The training loop with its steps in the open, what it remembers, and checkpoints.

This room imports rules and layers.
"""

from decorlib.training.checkpoint import CheckpointDamaged, load_checkpoint, read_checkpoint, save_checkpoint
from decorlib.training.history import Epoch, History
from decorlib.training.train import SilentNoOp, decor_train, train

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
