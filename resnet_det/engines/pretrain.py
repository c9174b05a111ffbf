"""The pretraining that a detector's config requires (``RESNET_DET.PRETRAIN``)."""

import logging
import os
from pathlib import Path

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..config.loading import find_config, load_config
from ..data import DatasetError, missing
from ..detector.build import net_name
from ..download import how_to_get
from ..nets import NETS
from ..training import distributed
from ..weights.facts import check_facts, config_facts
from ..weights.loading import read
from ..weights.published import is_address
from .provenance import say_changes
from .run import start

logger = logging.getLogger(__name__)


def needed(cfg: CfgNode) -> CfgNode | None:
    """The config of the classifier to pretrain (``RESNET_DET.PRETRAIN``), or None.

    None if the detector's config names no pretraining, or if ``MODEL.WEIGHTS`` exists. Pretraining
    may take days, so let the engine check the detector's own config and data first. Then train the
    classifier with ``resume``, so that an interrupted pretraining continues.

    Raises:
        ConfigError: the classifier's config does not write ``MODEL.WEIGHTS``, has another net or
            preprocessing, or writes into the detector's own folder.
        DatasetError: the detector's own data is absent.
    """
    path = cfg.RESNET_DET.PRETRAIN
    if not path:
        return None
    start(cfg)
    exists = is_address(cfg.MODEL.WEIGHTS) or os.path.exists(cfg.MODEL.WEIGHTS)
    exists = distributed.all_gather_objects(exists)[0]
    try:
        path = find_config(path, "RESNET_DET.PRETRAIN")
    except ConfigError:
        if exists:
            return None
        raise
    pretraining = load_config(path, ["MODEL.DEVICE", cfg.MODEL.DEVICE])
    result = Path(pretraining.OUTPUT_DIR) / "model_final.pth"
    own = result.resolve() == Path(cfg.MODEL.WEIGHTS).resolve()
    if exists:
        if own and distributed.is_main():
            say_changes(read(result)[1], pretraining, str(result), "SOLVER.")
        return None
    if not own:
        raise ConfigError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS!r}: no such file, and RESNET_DET.PRETRAIN, {path}, "
            f"writes {result}: name that, or a file that exists, or set RESNET_DET.PRETRAIN ''"
        )
    _check(cfg, pretraining, path)
    logger.info("%s does not exist: pretraining with %s", cfg.MODEL.WEIGHTS, path)
    return pretraining


def _check(cfg: CfgNode, pretraining: CfgNode, path: str | Path) -> None:
    """Check that a detector can start from the classifier of the config ``path``, and that its own
    data exist. For the errors see :func:`needed`."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        absent = missing(name)
        if absent:
            raise DatasetError(absent, f"is absent; {name} needs it; {how_to_get(absent)}")
    net, trained = net_name(cfg)[0], pretraining.MODEL.BACKBONE.NAME
    if net in NETS and net != trained:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME: {net}, but RESNET_DET.PRETRAIN, {path}, trains {trained}"
        )
    if Path(pretraining.OUTPUT_DIR).resolve() == Path(cfg.OUTPUT_DIR).resolve():
        raise ConfigError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR}: RESNET_DET.PRETRAIN, {path}, has the same folder: give "
            "another one"
        )
    check_facts(config_facts(pretraining), cfg, path, "trains")
