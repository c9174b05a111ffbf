"""The embedded engine: trains and evaluates the detectors of :mod:`resnet_det.detector`.

It needs no Detectron2. This module implements the interface :class:`resnet_det.engines.Engine`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from ..config import loading
from ..config.checks import check_users
from ..config.defaults import DETECTOR, ConfigError
from ..config.loading import parse_config, parse_text
from ..data import check_names, load_dataset, published_classes
from ..data.detection import proposals
from ..data.loader import training_batches
from ..detector.build import build_model
from ..detector.weights import new_layers
from ..training import distributed
from ..weights.loading import read
from .checks import (
    as_predictor,
    check_schedule,
    check_testable,
    check_trainable,
)
from .class_matching import class_names, match_test_sets
from .embedded_data import prepare, read_test_sets, training_mapper, training_records
from .embedded_evaluation import (
    Detector,
    as_tested,
    detect,
    evaluate_model,
    load_to_train,
    load_trained,
)
from .own_classes import fit_to_training_set, fit_to_weights
from .provenance import check_resumed, checkpoint_facts, stored_config
from .results import check_expected
from .run import (
    build_trainer,
    final_results,
    last_checkpoint,
    make_datasets,
    running,
    start,
    torch_settings,
)
from .scaling import for_processes
from .validation import validation_config, validation_losses

__all__ = [
    "check",
    "check_schedule",
    "evaluate",
    "load_config",
    "load_detector",
    "train",
    "training_records",
]

logger = logging.getLogger(__name__)


def load_config(path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Read a config as :func:`.loading.load_config` does. It has as many classes as the user's own
    training set, if it names one.

    Raises:
        ConfigError, DatasetError: a file, key or value is invalid, or the dataset is absent.
    """
    return fit_to_training_set(loading.load_config(path, overrides), overrides)


def check_model(cfg: CfgNode) -> None:
    """Raise ConfigError if a config's keys for the detector or its test are wrong."""
    if cfg.MODEL.META_ARCHITECTURE == "Classifier":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} is not a detector: "
            "train it with tools/pretrain.py"
        )
    check_testable(cfg)
    check_users(cfg, DETECTOR)


def check_config(cfg: CfgNode, resume: bool) -> None:
    """Check a config's keys for training, without reading data.

    Raises:
        ConfigError, UnknownDataset, ValueError: a key or a dataset's name is wrong.
    """
    check_model(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    check_names((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))


def check(cfg: CfgNode, resume: bool = False) -> None:
    """Validate config and data before weights exist, so that mistakes surface before pretraining.

    Raises:
        ConfigError, DatasetError, ValueError: see :func:`train`.
    """
    cfg = for_processes(cfg, resume)
    check_config(cfg, resume)
    prepare(cfg)
    with torch.device("meta"):
        new_layers(build_model(cfg), cfg)


def train(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Train the detector of a config, and evaluate it on ``DATASETS.TEST``.

    Args:
        cfg: from :func:`load_config`.
        resume: continue from the last checkpoint of ``OUTPUT_DIR``, if there is one.

    Returns:
        dict of the final metrics in the main process: ``bbox/AP``..., 0-100.

    Raises:
        ConfigError, DatasetError, WeightsError: a key, a dataset or a file is wrong. The message
            names it.
        FolderInUse: another process runs in ``OUTPUT_DIR``.
    """
    cfg = for_processes(cfg, resume)
    check_config(cfg, resume)
    with running(cfg, resume) as (device, seed):
        return _train(cfg, resume, device, seed)


def _train(cfg, resume, device, seed):
    data = prepare(cfg)
    logger.info("training on %d images of %s", len(data.records), data.name)
    model = build_model(cfg)
    state, seed = last_checkpoint(cfg, resume, seed)
    if state is None:
        load_to_train(model, cfg, data.classes)
    else:
        check_resumed(state.get("meta", {}), cfg, data.classes)
    trainer = build_trainer(cfg, model.to(device), checkpoint_facts(cfg, data.classes, seed), state)
    batches = training_batches(
        data.records,
        training_mapper(cfg),
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        rank=distributed.get_rank(),
        world=distributed.get_world_size(),
        start_iter=trainer.iteration,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        skip_bad=cfg.RESNET_DET.SKIP_BAD_DATA,
    )

    def test(model):
        last = trainer.iteration == cfg.SOLVER.MAX_ITER
        tested, augment = as_tested(model, cfg, device), cfg.TEST.AUG.ENABLED and last
        metrics = evaluate_model(
            tested, data.tests, cfg, augment=augment, iteration=trainer.iteration - 1
        )
        mapper = training_mapper(validation_config(cfg))
        workers = cfg.DATALOADER.NUM_WORKERS
        return metrics | validation_losses(model, data.validation, mapper, workers)

    trainer.run(batches, test if data.tests else None)
    return final_results(cfg, trainer)


def evaluate(cfg: CfgNode) -> dict[str, float]:
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Returns:
        dict of metrics in the main process, see :func:`train`.

    Raises:
        ConfigError, DatasetError, WeightsError, FolderInUse: see :func:`train`.
    """
    check_model(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST: name at least one dataset")
    check_names(cfg.DATASETS.TEST)
    with running(cfg) as (device, _):
        make_datasets(*cfg.DATASETS.TEST)
        sets = read_test_sets(cfg)
        cfg = fit_to_weights(cfg)
        model, facts = load_trained(cfg, device)
        classes = facts.get("classes")
        tests = match_test_sets(sets, classes, cfg.MODEL.WEIGHTS, cfg)
        tested, augment = as_tested(model, cfg, device, classes), cfg.TEST.AUG.ENABLED
        metrics = evaluate_model(tested, tests, cfg, facts, augment=augment)
    if distributed.is_main():
        check_expected(cfg, metrics)
    return metrics


def propose(cfg: CfgNode, name: str, path: str) -> None:
    """Write the proposals of a ``ProposalNetwork`` (``MODEL.WEIGHTS``) for a dataset to a file.

    The file has Detectron2's format. It holds as many proposals per image as the RPN returns in
    evaluation mode, and none for an image that ``RESNET_DET.SKIP_BAD_DATA`` skips.
    """
    check_model(cfg)
    check_names([name])
    device = start(cfg)
    make_datasets(name)
    skip_bad = cfg.RESNET_DET.SKIP_BAD_DATA
    dataset = load_dataset(name, skip_bad=skip_bad)
    model = load_trained(cfg, device)[0]
    with torch_settings(cfg):
        predictions = detect(model, dataset, cfg, skip_bad=skip_bad)
    if distributed.is_main():
        found = {record["image_id"]: (np.zeros((0, 4)), np.zeros(0)) for record in dataset.records}
        found |= {p["image_id"]: (p["boxes"], p["logits"]) for p in predictions}
        proposals.write(path, [(image_id, *of_image) for image_id, of_image in found.items()])
    distributed.barrier()


def load_detector(
    weights: str | Path,
    config: str | Path | None = None,
    overrides: Sequence[Any] = (),
    *,
    score_thresh: float,
    classes: Sequence[str] | None = None,
) -> Detector:
    """Load a trained detector, as its config tests it.

    Args:
        weights, config, overrides, score_thresh, classes: see
            :meth:`resnet_det.engines.Engine.load_detector`.

    Raises:
        ConfigError, WeightsError: a key or the file is wrong. The message names it.
    """
    state, facts = read(weights)
    overrides = ["MODEL.WEIGHTS", str(weights), *overrides]
    if config is None:
        rest = parse_text(facts.get("detectron2_config", "{}"), weights)
        if rest.get("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"):
            raise ConfigError(
                f"{weights}: was trained with MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True, so its scores "
                "need Detectron2: use engine detectron2"
            )
        cfg = parse_config(stored_config(facts, weights), weights, overrides)
    else:
        cfg = load_config(config, overrides)
    cfg = as_predictor(cfg, score_thresh)
    check_model(cfg)
    names = class_names(cfg, facts, classes, published_classes)
    model, _ = load_trained(cfg, cfg.MODEL.DEVICE, (state, facts))
    return Detector(as_tested(model, cfg, cfg.MODEL.DEVICE, names), cfg, names)
