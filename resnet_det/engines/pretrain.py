"""Pretrain the classifier that a detector's config asks for."""

import logging
import os
from pathlib import Path

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..config.loading import load_config
from ..data import DatasetError, missing
from ..detector.build import net_name
from ..nets import NETS
from ..training import distributed
from ..weights.loading import read
from . import classifier
from .provenance import check_conventions, pixel_facts, say_changes
from .run import start

logger = logging.getLogger(__name__)


def needed(cfg: CfgNode) -> bool:
    """Whether ``MODEL.WEIGHTS`` must be pretrained: ``RESNET_DET.PRETRAIN`` is set, the file absent.

    Raises:
        ConfigError: the classifier's config would not write ``MODEL.WEIGHTS``, or those of another
            net or other pixels, or into the detector's own folder.
        DatasetError: the detector's own data is absent.
    """
    path = cfg.RESNET_DET.PRETRAIN
    if not path or _weights_exist(cfg):
        return False
    classifier_cfg = _classifier_config(cfg)
    result = _result(classifier_cfg)
    if result.resolve() != Path(cfg.MODEL.WEIGHTS).resolve():
        raise ConfigError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS!r}: no such file, and RESNET_DET.PRETRAIN, {path}, "
            f"writes {result}: name that, or a file that exists, or set RESNET_DET.PRETRAIN ''"
        )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        absent = missing(name)
        if absent:
            raise DatasetError(absent, f"is absent; {name} needs it (datasets/README.md)")
    net, trained = net_name(cfg)[0], classifier_cfg.MODEL.BACKBONE.NAME
    if net in NETS and net != trained:
        raise ConfigError(f"MODEL.BACKBONE.NAME: {net}, but RESNET_DET.PRETRAIN, {path}: {trained}")
    if result.parent.resolve() == Path(cfg.OUTPUT_DIR).resolve():
        raise ConfigError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR}: is that of RESNET_DET.PRETRAIN, {path}: give another"
        )
    check_conventions(pixel_facts(classifier_cfg), cfg, path, "trains")
    return True


def ensure_weights(cfg: CfgNode) -> None:
    """Train the classifier of a detector's config if it is :func:`needed`.

    An interrupted pretraining continues where it stopped. Let the engine check the detector's own
    config and data first: a pretraining may take days.

    Raises:
        ConfigError, DatasetError: as :func:`needed`, and as :func:`.classifier.train`.
    """
    path = cfg.RESNET_DET.PRETRAIN
    if needed(cfg):
        logger.info("%s does not exist: pretraining with %s", cfg.MODEL.WEIGHTS, path)
        classifier.train(_classifier_config(cfg), resume=True)
    elif path and os.path.exists(path) and distributed.is_main():
        classifier_cfg = _classifier_config(cfg)
        result = _result(classifier_cfg)
        if result.resolve() == Path(cfg.MODEL.WEIGHTS).resolve():
            say_changes(read(result)[1], classifier_cfg, str(result), "SOLVER.")


def _weights_exist(cfg):
    """The same answer in every process, whenever the file appears."""
    start(cfg)
    return distributed.all_gather_objects(os.path.exists(cfg.MODEL.WEIGHTS))[0]


def _classifier_config(cfg):
    return load_config(cfg.RESNET_DET.PRETRAIN, ["MODEL.DEVICE", cfg.MODEL.DEVICE])


def _result(classifier_cfg):
    return Path(classifier_cfg.OUTPUT_DIR) / "model_final.pth"
