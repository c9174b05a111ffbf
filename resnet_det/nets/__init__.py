"""The paper's networks, in pure torch."""

from .catalog import NETS, build_net, meta_net
from .classifier import Classifier, Stages
from .layers import FrozenBatchNorm2d, freeze, without_statistics

__all__ = [
    "NETS",
    "Classifier",
    "FrozenBatchNorm2d",
    "Stages",
    "build_net",
    "freeze",
    "meta_net",
    "without_statistics",
]
