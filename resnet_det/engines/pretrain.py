"""Pretrain the classifier that a detector's config asks for."""

import logging
import os
from pathlib import Path

from ..config.defaults import ConfigError
from ..config.loading import find_config, load_config
from ..data import DatasetError, missing
from ..detector.build import net_name
from ..nets import NETS
from ..training import distributed
from ..weights.facts import check_facts, config_facts
from ..weights.loading import read
from .classifier import train
from .provenance import say_changes
from .run import start

logger = logging.getLogger(__name__)


def ensure_weights(cfg, check):
    """Train the classifier ``RESNET_DET.PRETRAIN`` where ``MODEL.WEIGHTS`` does not exist yet.

    An interrupted pretraining goes on where it stopped.

    Args:
        cfg: of a detector.
        check: function that raises what is wrong with the detector's own part, called before a
            pretraining: better known now than after days.

    Raises:
        ConfigError: the classifier's config would not write ``MODEL.WEIGHTS``, or those of another
            net or other pixels, or into the detector's own folder.
        DatasetError: the detector's own data is absent.
    """
    path = cfg.RESNET_DET.PRETRAIN
    if not path:
        return
    start(cfg)
    there = distributed.all_gather_objects(os.path.exists(cfg.MODEL.WEIGHTS))[0]
    try:
        path = find_config(path, "RESNET_DET.PRETRAIN")
    except ConfigError:
        if there:
            return
        raise
    pretrain = load_config(path, ["MODEL.DEVICE", cfg.MODEL.DEVICE])
    result = Path(pretrain.OUTPUT_DIR) / "model_final.pth"
    own = result.resolve() == Path(cfg.MODEL.WEIGHTS).resolve()
    if there:
        if own and distributed.is_main():
            say_changes(read(result)[1], pretrain, result, "SOLVER.")
        return
    if not own:
        raise ConfigError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS!r}: no such file, and RESNET_DET.PRETRAIN, {path}, "
            f"writes {result}: name that, or a file that exists, or set RESNET_DET.PRETRAIN ''"
        )
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        absent = missing(name)
        if absent:
            raise DatasetError(absent, f"is absent; {name} needs it (datasets/README.md)")
    net, trained = net_name(cfg)[0], pretrain.MODEL.BACKBONE.NAME
    if net in NETS and net != trained:
        raise ConfigError(f"MODEL.BACKBONE.NAME: {net}, but RESNET_DET.PRETRAIN, {path}: {trained}")
    if result.parent.resolve() == Path(cfg.OUTPUT_DIR).resolve():
        raise ConfigError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR}: is that of RESNET_DET.PRETRAIN, {path}: give another"
        )
    check_facts(config_facts(pretrain), cfg, path, "trains")
    check()
    logger.info("%s does not exist: pretraining with %s", cfg.MODEL.WEIGHTS, path)
    train(pretrain, resume=True)
