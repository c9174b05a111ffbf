"""The engine on Detectron2: check a config, train and evaluate."""

import argparse
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
    GeneralizedRCNN,
    build_model,
)
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ...config.checks import check_ranges
from ...config.defaults import ConfigError, flatten
from ...detector.net_keys import check_appendix
from ...detector.weights import new_layers
from ...hints import did_you_mean
from ...training import Checkpointer as CheckpointFolder
from ...training import alone_in, distributed
from ...weights.facts import check_stored
from ...weights.files import read_file
from ..checks import (
    as_predictor,
    check_batches,
    check_images,
    check_output,
    check_testable,
    check_trainable,
)
from ..class_matching import TestSet, class_names, match_test_sets
from ..own_classes import fit_to_weights
from ..results import check_best_metric, check_expected
from ..run import make_datasets, torch_settings
from ..scaling import for_processes
from ..validation import Validation, validation_records
from .checkpointer import load_trained
from .config import load_config, parse_config
from .data import (
    check_names,
    check_test_sets,
    known_classes,
    load_test_sets,
    load_training_set,
    local_records,
)
from .evaluation import Detector, as_tested, evaluate_model
from .trainer import Trainer

__all__ = [
    "check",
    "check_schedule",
    "evaluate",
    "load_config",
    "load_detector",
    "train",
    "training_records",
]

# The keys that name a registry entry.
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
}


def check_schedule(cfg: CfgNode) -> None:
    """Check that Detectron2 can build the schedule, and that the processes can share a batch.

    Raises:
        ConfigError: Detectron2 cannot build the schedule.
        ValueError: see :func:`..checks.check_batches`.
    """
    solver = cfg.SOLVER
    try:
        Trainer.build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1)], solver.BASE_LR))
    except (ValueError, AssertionError, ZeroDivisionError) as error:
        raise ConfigError(
            f"SOLVER: Detectron2 cannot build a schedule from BASE_LR {solver.BASE_LR}, STEPS "
            f"{solver.STEPS}, MAX_ITER {solver.MAX_ITER}, LR_SCHEDULER_NAME "
            f"{solver.LR_SCHEDULER_NAME} and related keys: {error}"
        ) from error
    check_batches(cfg)


def check(cfg: CfgNode, resume: bool = False) -> None:
    """Validate config and data before weights exist, so that mistakes surface before pretraining.

    Raises:
        ConfigError, DatasetError, ValueError: see :func:`train`.
    """
    cfg = for_processes(cfg, resume)
    check_config(cfg, resume)
    prepare(cfg)
    new_layers(build_model(cfg), cfg)


def train(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Train, evaluate on DATASETS.TEST and write ``report.html``.

    Args:
        cfg: from :func:`load_config`.
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        dict of the final metrics in the main process: ``bbox/AP``, ..., 0-100; {} in the others.

    Raises:
        ConfigError, DatasetError, WeightsError: a key, a dataset or a file is wrong. The message
            names it.
        FolderInUse: another run uses OUTPUT_DIR.
        RuntimeError: a metric is outside TEST.EXPECTED_RESULTS.
    """
    cfg = for_processes(cfg, resume)
    check_config(cfg, resume)
    with running(cfg, resume):
        data = prepare(cfg)
        latest = CheckpointFolder(cfg.OUTPUT_DIR).latest() if resume else None
        if comm.is_main_process() and not latest:
            (Path(cfg.OUTPUT_DIR) / "metrics.json").unlink(missing_ok=True)
        trainer = Trainer(cfg, *data)
        trainer.load(latest)
        metrics = trainer.train()
        if comm.is_main_process():
            check_expected(cfg, metrics)
    return metrics


def evaluate(cfg: CfgNode) -> dict[str, float]:
    """Evaluate the detector MODEL.WEIGHTS on DATASETS.TEST and write ``report.html``.

    Returns:
        dict of metrics, see :func:`train`.

    Raises:
        ConfigError, DatasetError, FolderInUse, RuntimeError: see :func:`train`.
        WeightsError: the file lacks a tensor of the detector.
    """
    check_model(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST: name at least one dataset")
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS: name the checkpoint to evaluate")
    check_names(cfg.DATASETS.TEST)
    check_test_sets(cfg)
    with running(cfg):
        make_datasets(*cfg.DATASETS.TEST)
        sets = load_test_sets(cfg)
        cfg = fit_to_weights(cfg)
        model, facts = load_trained(cfg)
        classes = facts.get("classes")
        tests = match_test_sets(sets, classes, cfg.MODEL.WEIGHTS, cfg)
        tested, augment = as_tested(model, cfg, classes), cfg.TEST.AUG.ENABLED
        metrics = evaluate_model(tested, tests, cfg, facts, augment=augment)
        if comm.is_main_process():
            check_expected(cfg, metrics)
    return metrics


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
    overrides = ["MODEL.WEIGHTS", str(weights), *overrides]
    if config is None:
        stored = check_stored(read_file(weights)[1].get("meta", {}), weights)
        cfg = parse_config(stored, weights, overrides)
        if "detectron2_config" not in stored:
            _check_whole(cfg)
    else:
        cfg = load_config(config, overrides)
    cfg = as_predictor(cfg, score_thresh)
    check_model(cfg)
    model, facts = load_trained(cfg)
    names = class_names(cfg, facts, classes, known_classes)
    return Detector(as_tested(model, cfg, names), cfg, names)


def _check_whole(cfg: CfgNode) -> None:
    """Raise ConfigError if the config of a checkpoint that carries only the keys of the embedded
    engine has an architecture that needs others."""
    try:
        check_ranges(cfg, "MODEL.")
    except ConfigError as error:
        raise ConfigError(
            f"{cfg.MODEL.WEIGHTS}: carries only a part of its config, without the keys of this "
            "architecture: name the config.yaml of its training"
        ) from error


class Data(NamedTuple):
    """The datasets of a training run: Detectron2's records, their class names, the test sets, and
    those for validation losses."""

    records: list[dict[str, Any]]
    classes: tuple[str, ...]
    tests: dict[str, TestSet]
    validation: Validation


def prepare(cfg: CfgNode) -> Data:
    """Make, read and check the datasets that a config trains and tests on.

    Raises:
        ConfigError, DatasetError, ValueError: a key or a dataset is wrong. The message names it.
    """
    make_datasets(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    records, classes = load_training_set(cfg)
    sets = load_test_sets(cfg)
    check_best_metric(cfg, sets)
    tests = match_test_sets(sets, classes, "+".join(cfg.DATASETS.TRAIN), cfg)
    for name, dataset in sets.items():
        check_images(cfg, name, local_records(dataset.records))
    return Data(records, classes, tests, validation_records(tests, cfg))


def training_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """The records to train on, Detectron2's standard dicts.

    Raises:
        ConfigError, DatasetError, ValueError: see :func:`.data.load_training_set`.
    """
    check_names(cfg.DATASETS.TRAIN)
    make_datasets(*cfg.DATASETS.TRAIN)
    return load_training_set(cfg)[0]


def check_config(cfg: CfgNode, resume: bool) -> None:
    """Check a config's keys for training, without reading data.

    Raises:
        ConfigError, UnknownDataset, ValueError: a key or a dataset's name is wrong.
    """
    check_model(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    check_names((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    check_test_sets(cfg)


def check_model(cfg: CfgNode) -> None:
    """Raise ConfigError if a config's keys for the detector or its test are wrong."""
    check_testable(cfg)
    flat = flatten(cfg)
    for key, registry in REGISTRIES.items():
        name, known = flat[key], [name for name, _ in registry]
        if name and name not in (*known, "PrecomputedProposals"):  # Detectron2 has no entry for it
            hint = did_you_mean(name, known, list_all=True)
            raise ConfigError(f"{key}: Detectron2 has no {name!r}{hint}")
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.TEST.AUG.ENABLED and not issubclass(META_ARCH_REGISTRY.get(name), GeneralizedRCNN):
        raise ConfigError(
            f"TEST.AUG.ENABLED: needs MODEL.META_ARCHITECTURE GeneralizedRCNN, not {name}"
        )
    check_appendix(cfg)


@contextlib.contextmanager
def running(cfg: CfgNode, resume: bool = True) -> Iterator[None]:
    """Join all processes, lock OUTPUT_DIR, and set up logs and seeds as Detectron2 does.

    Args:
        resume: whether OUTPUT_DIR may already hold checkpoints.

    Raises:
        FolderInUse: another run uses OUTPUT_DIR.
        ConfigError: OUTPUT_DIR holds checkpoints, and ``resume`` is False.
    """
    distributed.init(cfg.MODEL.DEVICE)
    world = distributed.get_world_size()
    if world > 1:  # Detectron2 needs a group for the processes on this machine
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        distributed.release_at_shutdown(_release_groups)
    with torch_settings(cfg), alone_in(cfg.OUTPUT_DIR):
        check_output(cfg, resume)  # again: a run that we waited for may have saved checkpoints
        _setup(cfg)
        yield


def _release_groups() -> None:
    """Drop the process groups that Detectron2 keeps in its module ``comm``."""
    comm._LOCAL_PROCESS_GROUP = None
    for function in (comm.create_local_process_group, comm._get_global_gloo_group):
        function.cache_clear()


def _setup(cfg: CfgNode) -> None:
    """Run Detectron2's ``default_setup``, and share its logger's handlers with our logger."""
    # Each run adds terminal and file handlers to Detectron2's loggers: remove those of earlier
    # runs.
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        log = logging.getLogger(name)
        log.handlers[:] = [h for h in log.handlers if type(h) is not logging.StreamHandler]
    default_setup(cfg, argparse.Namespace())
    ours = logging.getLogger("resnet_det")
    handlers = logging.getLogger("detectron2").handlers
    ours.handlers[:] = [h for h in handlers if type(h) is logging.StreamHandler]
    ours.setLevel(logging.INFO)
