"""Training: the loop, the schedule, checkpoints, several processes, precise batch norm, the lock."""

from .checkpoint import Checkpointer
from .lock import FolderInUse, alone_in
from .loop import read_metrics, train
from .schedule import build_optimizer, build_schedule, clip_gradients

__all__ = [
    "Checkpointer",
    "FolderInUse",
    "alone_in",
    "build_optimizer",
    "build_schedule",
    "clip_gradients",
    "read_metrics",
    "train",
]
