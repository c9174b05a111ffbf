"""The number of classes in a config, taken from the user's own datasets. Both engines share it."""

import logging
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError, with_values
from ..data import own_spec, scan_dataset
from ..weights.loading import read
from .class_matching import class_count

logger = logging.getLogger(__name__)


def fit_to_training_set(cfg: CfgNode, overrides: Sequence[Any]) -> CfgNode:
    """The config with as many classes as the user's own training set, if it names any.

    Args:
        overrides: KEY, VALUE, ... from the command line.

    Raises:
        ConfigError: the command line gives another number.
        DatasetError, UnknownDataset: the classes of the training set cannot be read.
    """
    names = [name for name in cfg.DATASETS.TRAIN if own_spec(name)]
    if not names or cfg.MODEL.META_ARCHITECTURE == "Classifier":  # which counts them itself
        return cfg
    classes = scan_dataset(names[0])[0].classes
    key, count = class_count(cfg)
    if key in overrides[::2] and count != len(classes):
        raise ConfigError(
            f"{key}: {count}, but {names[0]} has {len(classes)} classes ({', '.join(classes)}): "
            "leave the key out, or choose classes with &classes=A,B"
        )
    return _with_count(cfg, len(classes), names[0])


def fit_to_weights(cfg: CfgNode) -> CfgNode:
    """The config with as many classes as MODEL.WEIGHTS names, to test it on the user's own datasets.

    Raises:
        WeightsError: the file is unreadable.
    """
    path = cfg.MODEL.WEIGHTS
    if not path or not any(map(own_spec, cfg.DATASETS.TEST)):
        return cfg
    classes = read(path)[1].get("classes")
    return _with_count(cfg, len(classes), path) if classes else cfg


def _with_count(cfg: CfgNode, count: int, source: str) -> CfgNode:
    key, before = class_count(cfg)
    if before == count:
        return cfg
    logger.warning("%s is %d, as %s has, instead of the config's %d", key, count, source, before)
    return with_values(cfg, {key: count})
