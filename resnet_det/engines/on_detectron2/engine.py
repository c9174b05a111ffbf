"""The engine on Detectron2: its configs and processes, and a whole training or evaluation."""

import argparse
import logging
import os
import re
from pathlib import Path

import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import TrainerBase, default_setup
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    build_model,
)
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ...config.checks import check_batch, check_device, check_lengths
from ...config.defaults import ConfigError, add_resnet_det_config, flatten
from ...config.loading import find_config, unreadable
from ...config.messages import examples, explained, fits, near_it, wrong_value
from ...data.loader import check_share
from ...detector import appendix
from ...detector.weights import check_statistics, new_layers
from ...training import Checkpointer as Files
from ...training import alone_in, distributed
from ...training.distributed import launch
from ...training.loop import exit_code
from ..checks import (
    check_images,
    check_output,
    check_testable,
    check_trainable,
    refuse_classifier_keys,
)
from ..class_matching import match_test_sets
from ..provenance import check_conventions, say_changes
from ..results import check_expected
from ..run import make_datasets
from .checkpointer import trained
from .data import check_names, load_test_sets, local_records, training_records
from .evaluation import as_tested, evaluate_model
from .trainer import Trainer

__all__ = ["check", "check_schedule", "evaluate", "launch", "load_config", "train"]

logger = logging.getLogger(__name__)

# What every model takes from a registry.
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
}


def load_config(path, overrides=()):
    """Read a YAML file with its ``_BASE_`` chain and trailing ``KEY VALUE`` overrides.

    All of Detectron2's keys, and the node ``RESNET_DET``. YAML that runs code is refused.

    Returns:
        CfgNode: Detectron2's, frozen; ``MODEL.DEVICE`` is "cpu" where there is no GPU.

    Raises:
        ConfigError: names the file or the key, and the nearest valid keys.
    """
    cfg = get_cfg()
    add_resnet_det_config(cfg)
    path = find_config(path)
    overrides = list(overrides)
    if len(overrides) % 2:
        raise ConfigError(f"overrides {overrides}: give pairs KEY VALUE")
    known = examples(flatten(cfg))
    for where, merge in (
        (path, lambda: cfg.merge_from_file(str(path), allow_unsafe=False)),
        ("command line", lambda: cfg.merge_from_list(overrides)),
    ):
        images = cfg.SOLVER.IMS_PER_BATCH
        try:
            merge()
            _check_lists(cfg, known)
        except (KeyError, ValueError, AssertionError, TypeError, AttributeError, OSError) as error:
            raise ConfigError(f"{where}: {_explained(str(error.args[0]), known)}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: {unreadable(error)}") from error
    check_device(cfg)
    check_lengths(cfg)
    check_batch(cfg, images, overrides)
    if cfg.MODEL.META_ARCHITECTURE == "Classifier":
        raise ConfigError("MODEL.META_ARCHITECTURE: Classifier: Detectron2 trains detectors only")
    refuse_classifier_keys(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE: no CUDA device is usable here: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _check_lists(cfg, known):
    """What lists hold, which yacs leaves unchecked."""
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    for key in ("SIZES", "ASPECT_RATIOS", "ANGLES"):
        if anchors[key] and not isinstance(anchors[key][0], list | tuple):
            anchors[key] = [anchors[key]]  # Detectron2 takes one list for all levels so too
    for key, value in flatten(cfg).items():
        default = known.get(key)
        if isinstance(default, list | tuple) and not fits(value, default):
            raise ValueError(wrong_value(key, value, default))


def _explained(message, known):
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not unknown:
        return explained(message, known)
    return f"Detectron2 does not know the key {unknown[1]}{near_it(unknown[1], known)}"


def check_schedule(cfg):
    """Refuse a schedule that Detectron2 cannot build, and a batch that the processes cannot share.

    Raises:
        ConfigError, ValueError
    """
    world, solver = distributed.launch_info().world, cfg.SOLVER
    try:
        scaled = Trainer.auto_scale_workers(cfg, world)
        solver = scaled.SOLVER
        Trainer.build_lr_scheduler(scaled, torch.optim.SGD([torch.zeros(1)], solver.BASE_LR))
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"SOLVER: Detectron2 cannot build a schedule of BASE_LR {solver.BASE_LR}, STEPS "
            f"{solver.STEPS}, MAX_ITER {solver.MAX_ITER}, LR_SCHEDULER_NAME "
            f"{solver.LR_SCHEDULER_NAME} and what goes with them: {error}"
        ) from error
    check_share(solver.IMS_PER_BATCH, world)


def check(cfg, resume=False):
    """Refuse a config or data that cannot be trained, without weights: it may be days until these.

    Raises:
        ConfigError, DatasetError, ValueError: as :func:`train`.
    """
    _check(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_names(names)
    make_datasets(*names)
    _, classes = training_records(cfg)
    sets = load_test_sets(cfg)
    match_test_sets(sets, classes, "+".join(cfg.DATASETS.TRAIN), cfg)
    _check_images(cfg, sets)
    new_layers(build_model(cfg), cfg)


def train(cfg, resume=False):
    """Train, evaluate on DATASETS.TEST and write ``report.html``, as the config says.

    Args:
        cfg: from :func:`load_config`.
        resume: go on from the last checkpoint of OUTPUT_DIR, if there is one.

    Returns:
        dict: the final metrics in the main process: ``bbox/AP``, 0-100.

    Raises:
        ConfigError, DatasetError, WeightsError: what was given is wrong; names it.
        FolderInUse: another run goes on in ``OUTPUT_DIR``.
    """
    _check(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    _join(cfg)
    check_names((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    with alone_in(cfg.OUTPUT_DIR):
        check_output(cfg, resume)
        return _train(cfg, resume)


def _train(cfg, resume):
    _setup(cfg)
    make_datasets(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    _check_images(cfg, load_test_sets(cfg))
    latest = Files(cfg.OUTPUT_DIR).latest() if resume else None
    if comm.is_main_process() and not latest:
        (Path(cfg.OUTPUT_DIR) / "metrics.json").unlink(missing_ok=True)
    trainer = Trainer(cfg)
    if latest:
        rest = trainer.checkpointer.load(str(latest))
        say_changes(rest.get("meta", {}), trainer.cfg, cfg.OUTPUT_DIR)
        trainer.start_iter = trainer.iter + 1
    else:
        trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        if cfg.MODEL.WEIGHTS:
            check_conventions(trainer.checkpointer.facts, cfg, cfg.MODEL.WEIGHTS)
    check_statistics(trainer.checkpointer.model)
    TrainerBase.train(trainer, trainer.start_iter, trainer.max_iter)
    stop = trainer._trainer.resumable.received
    if stop:  # it came while the last iteration was saved or evaluated
        raise SystemExit(exit_code(stop))
    metrics = getattr(trainer, "_last_eval_results", {})
    if comm.is_main_process():
        check_expected(cfg, metrics)
    return metrics


def evaluate(cfg):
    """Evaluate the detector MODEL.WEIGHTS on DATASETS.TEST and write ``report.html``.

    Returns:
        dict of metrics in the main process, as :func:`train`.

    Raises:
        ConfigError, DatasetError, WeightsError, FolderInUse: as :func:`train`; and where the
            file lacks a tensor of the detector.
    """
    _check(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST: name at least one dataset")
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS: name the checkpoint to evaluate")
    check_names(cfg.DATASETS.TEST)
    _join(cfg)
    with alone_in(cfg.OUTPUT_DIR):
        _setup(cfg)
        make_datasets(*cfg.DATASETS.TEST)
        sets = load_test_sets(cfg)
        model, facts = trained(cfg)
        classes = facts.get("classes")
        tests = match_test_sets(sets, classes, cfg.MODEL.WEIGHTS, cfg)
        metrics = evaluate_model(cfg, as_tested(model, cfg, classes), tests, facts)
    if comm.is_main_process():
        check_expected(cfg, metrics)
    return metrics


def _check(cfg):
    check_testable(cfg)
    flat = flatten(cfg)
    for key, registry in REGISTRIES.items():
        name, known = flat[key], [name for name, _ in registry]
        if name and name not in known:
            hint = near_it(name, known) or f"; it has {', '.join(known)}"
            raise ConfigError(f"{key}: Detectron2 has no {name!r}{hint}")
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError("TEST.AUG.ENABLED: this engine evaluates at one scale")
    appendix.check(cfg)


def _join(cfg):
    """Form the group of all processes, and Detectron2's of those on this machine."""
    distributed.init(cfg.MODEL.DEVICE)
    world = distributed.get_world_size()
    if world > 1:
        comm.create_local_process_group(int(os.environ.get("LOCAL_WORLD_SIZE", world)))


def _check_images(cfg, sets):
    """Raise where images of the test sets cannot be used, before the training."""
    for name, dataset in sets.items():
        check_images(cfg, name, local_records(dataset.records))


def _setup(cfg):
    # Detectron2 adds a terminal and a file with each run; those of this process's run before go.
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        log = logging.getLogger(name)
        log.handlers[:] = [h for h in log.handlers if type(h) is not logging.StreamHandler]
    default_setup(cfg, argparse.Namespace())
    # Detectron2's logger has its files and its format; ours speaks through the same.
    ours = logging.getLogger("resnet_det")
    theirs = logging.getLogger("detectron2").handlers
    ours.handlers[:] = [h for h in theirs if type(h) is logging.StreamHandler]
    ours.setLevel(logging.INFO)
