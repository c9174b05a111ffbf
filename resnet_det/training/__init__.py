"""Training: loop, schedules, checkpoints, processes, precision, precise batch norm, folder lock."""

from .checkpoint import Checkpointer
from .lock import FolderInUse, alone_in
from .loop import Plan, Trainer
from .metrics import read_metrics
from .schedule import build_optimizer, build_schedule, clip_gradients

__all__ = [
    "Checkpointer",
    "FolderInUse",
    "Plan",
    "Trainer",
    "alone_in",
    "build_optimizer",
    "build_schedule",
    "clip_gradients",
    "read_metrics",
]
