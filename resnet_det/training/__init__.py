"""Training: the loop, the schedule, checkpoints, several processes, precise batch norm."""

from .checkpoint import Checkpointer
from .loop import read_metrics, train
from .schedule import build_optimizer, build_schedule, clip_gradients

__all__ = [
    "Checkpointer",
    "build_optimizer",
    "build_schedule",
    "clip_gradients",
    "read_metrics",
    "train",
]
