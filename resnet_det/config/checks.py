"""Checks of a config's keys, list lengths and values."""

import functools
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from ..hints import did_you_mean
from .defaults import KEYS, ConfigError, Users, flatten

logger = logging.getLogger(__name__)


def check_keys(flat: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ConfigError for a key that ``known`` lacks. The error suggests the nearest keys.

    Args:
        where: the source of the keys, such as a file.
    """
    for key in flat:
        if key not in known:
            raise ConfigError(
                f"{where}: the embedded engine does not know the key {key}"
                f"{did_you_mean(key, known) or '.'} "
                "Keys that only Detectron2 supports need --engine detectron2"
            )


def check_users(cfg: CfgNode, user: Users, prefix: str = "") -> None:
    """Raise ConfigError for a key that is set although ``user`` does not read it.

    The keys of a node with ENABLED: False have no effect and may have any value.

    Args:
        prefix: check only the keys that begin with it.
    """
    flat = flatten(cfg)
    for name, key in KEYS.items():
        if user in key.users or not name.startswith(prefix) or flat[name] == key.default:
            continue
        if flat.get(name.rpartition(".")[0] + ".ENABLED", True):
            raise ConfigError(f"{name}: {flat[name]!r}: this key is only for {key.users}")


def resolve_device(cfg: CfgNode) -> None:
    """Set ``MODEL.DEVICE`` to the CPU if it is a GPU and this machine has none.

    Raises:
        ConfigError: neither engine runs on this device. (``meta`` is for models without weights.)
    """
    device = cfg.MODEL.DEVICE
    if not re.fullmatch(r"cpu|meta|cuda(:\d+)?", device):
        why = " does not support float64, in which losses and scores are averaged"
        raise ConfigError(
            f"MODEL.DEVICE: {device!r}{why if device.startswith('mps') else ' is not supported'}; "
            "use cuda, cuda:0 (one of several GPUs) or cpu"
        )
    if device.startswith("cuda") and not torch.cuda.is_available():
        _warn_once(f"MODEL.DEVICE is {device}, but no CUDA device is available: using the CPU")
        cfg.MODEL.DEVICE = "cpu"


@functools.cache  # a process may load many configs
def _warn_once(message: str) -> None:
    logger.warning(message)


def check_lengths(cfg: CfgNode) -> None:
    """Raise ConfigError for a list of the wrong length, for either engine."""
    corners = 5 if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RRPN" else 4
    for node in ("RPN", "ROI_BOX_HEAD"):
        weights = cfg.MODEL[node].BBOX_REG_WEIGHTS
        if len(weights) != corners or min(weights) <= 0:
            raise ConfigError(
                f"MODEL.{node}.BBOX_REG_WEIGHTS: {weights}: give {corners} numbers above 0"
            )
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ConfigError("INPUT.MIN_SIZE_TRAIN: (): give at least one size")
    sizes = list(cfg.INPUT.MIN_SIZE_TRAIN)
    pair = len(sizes) == 2 and sizes == sorted(sizes)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not pair:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN: {cfg.INPUT.MIN_SIZE_TRAIN}: MIN_SIZE_TRAIN_SAMPLING 'range' "
            "needs two sizes, the smallest and the largest"
        )
    count, words = (1, "one number") if cfg.INPUT.FORMAT == "L" else (3, "three numbers")
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != count:
            raise ConfigError(
                f"MODEL.{key}: {cfg.MODEL[key]}: give {words}, in the channel order of INPUT.FORMAT"
            )
    if min(cfg.MODEL.PIXEL_STD) <= 0:
        raise ConfigError(f"MODEL.PIXEL_STD: {cfg.MODEL.PIXEL_STD}: must be above 0")


def check_ranges(cfg: CfgNode, prefix: str = "") -> None:
    """Raise ConfigError for a value outside the ``choices`` of its key, or below its ``least``.

    Args:
        prefix: check only the keys that begin with it. Those of RESNET_DET hold in both engines.
    """
    flat = flatten(cfg)
    for name, key in KEYS.items():
        if not name.startswith(prefix):
            continue
        value = flat[name]
        if key.choices and value not in key.choices:
            where = "" if name.startswith("RESNET_DET.") else " by the embedded engine"
            raise ConfigError(
                f"{name}: {value!r} is not supported{where}; "
                f"use {' or '.join(map(repr, key.choices))}"
            )
        if key.least is not None and value < key.least:
            raise ConfigError(f"{name}: {value}: must be at least {key.least}")


def check_values(cfg: CfgNode) -> None:
    """Raise ConfigError for a value, or values together, that the embedded engine cannot honour."""
    check_ranges(cfg)
    check_lengths(cfg)
    _check_together(cfg)


def _check_together(cfg: CfgNode) -> None:
    m = cfg.MODEL
    if len(m.RPN.CONV_DIMS) != 1:
        raise ConfigError(
            f"MODEL.RPN.CONV_DIMS: {m.RPN.CONV_DIMS}: the embedded engine supports one convolution"
        )
    for name, head in (("RPN", m.RPN), ("ROI_HEADS", m.ROI_HEADS)):
        if len(head.IOU_LABELS) != len(head.IOU_THRESHOLDS) + 1:
            raise ConfigError(
                f"MODEL.{name}.IOU_LABELS {head.IOU_LABELS}: needs one more entry than "
                f"MODEL.{name}.IOU_THRESHOLDS {head.IOU_THRESHOLDS}"
            )
    if m.LOAD_PROPOSALS != (m.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"):
        raise ConfigError(
            f"MODEL.LOAD_PROPOSALS: {m.LOAD_PROPOSALS} does not fit "
            f"MODEL.PROPOSAL_GENERATOR.NAME: {m.PROPOSAL_GENERATOR.NAME}"
        )
    if m.LOAD_PROPOSALS and m.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ConfigError(
            f"MODEL.LOAD_PROPOSALS: True: {m.META_ARCHITECTURE} does not read proposals"
        )


def check_pairs(overrides: Any) -> None:
    """Raise ConfigError unless overrides are a list KEY, VALUE, ..."""
    if not isinstance(overrides, list | tuple) or len(overrides) % 2:
        raise ConfigError(f"overrides {overrides!r}: give a list of pairs KEY VALUE")


def check_batch(cfg: CfgNode, images: int, overrides: Sequence[Any]) -> None:
    """Warn if the command line changes the batch size but not the learning rate.

    The linear scaling rule keeps the learning rate per image and the number of epochs.

    Args:
        images: images per batch in the config file.
        overrides: KEY, VALUE, ... from the command line.
    """
    now = cfg.SOLVER.IMS_PER_BATCH
    if now != images and "SOLVER.BASE_LR" not in overrides[::2]:
        factor = now / images
        logger.warning(
            "SOLVER.IMS_PER_BATCH is %d instead of the file's %d, but BASE_LR is still %g. By the "
            "linear scaling rule, SOLVER.BASE_LR would be %g, and MAX_ITER and STEPS times %g",
            now, images, cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR * factor, 1 / factor,
        )  # fmt: skip
