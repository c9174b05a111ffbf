"""Checks that need several keys, the data or the output folder, and what several parts of an engine
read from a config: schedule, colour jitter, proposal files. All engines share this module."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from .. import training
from ..config.checks import check_users
from ..config.defaults import LARGE, SMALL, ConfigError, with_values
from ..data.catalog import classification_spec
from ..data.image_check import unusable
from ..data.jitter import UNCHANGED, ColorJitter
from ..data.loader import check_share
from ..data.pixels import FORMATS
from ..detector.net_keys import TEST_IMPROVEMENTS, check_even_positives, net_options
from ..nets import meta_net
from ..records import together
from ..training import distributed
from ..training.accumulate import check_parts
from ..training.schedule import Schedule

# The values of MODEL.META_ARCHITECTURE, Detectron2's included, whose models make no detections.
NO_DETECTORS = ("ProposalNetwork", "SemanticSegmentor")


def check_classifier(cfg: CfgNode) -> None:
    """Check that a config is a classifier's and that each key is supported.

    Raises:
        ConfigError: it is not. The message names the key.
        UnknownDataset: a dataset is unknown. The message names similar classification datasets.
    """
    if cfg.MODEL.META_ARCHITECTURE != "Classifier":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} is not a classifier: "
            "train it with tools/train_net.py"
        )
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    large = {classification_spec(name).large for name in names}
    if len(large) > 1:
        raise ConfigError(
            f"DATASETS: {sorted(names)}: use only datasets of small images, or only of large ones"
        )
    check_users(cfg, LARGE if True in large else SMALL)
    check_deterministic(cfg)
    check_scales(cfg)
    if cfg.TEST.AUG.ENABLED and cfg.RESNET_DET.TEST_CROPS > 1:
        raise ConfigError(
            "TEST.AUG.ENABLED tests whole images and RESNET_DET.TEST_CROPS crops: use one of them"
        )
    if cfg.TEST.AUG.ENABLED and cfg.RESNET_DET.PER_PIXEL_MEAN:
        raise ConfigError(
            "TEST.AUG.ENABLED: RESNET_DET.PER_PIXEL_MEAN does not fit whole images: set one of "
            "them to False"
        )
    if cfg.INPUT.RANDOM_FLIP == "vertical":
        raise ConfigError("INPUT.RANDOM_FLIP: 'vertical' is only for detectors")
    crop = cfg.INPUT.CROP
    whole = all(type(side) is int and side > 0 for side in crop.SIZE)
    if not crop.ENABLED or crop.TYPE != "absolute" or len(set(crop.SIZE)) != 1 or not whole:
        raise ConfigError(
            "INPUT.CROP: a classifier needs square crops with a size in pixels, such as "
            "ENABLED: True, TYPE: absolute, SIZE: [32, 32]"
        )
    name = cfg.MODEL.BACKBONE.NAME
    net = meta_net(name, **net_options(cfg, name))
    if cfg.MODEL.RESNETS.NORM == "FrozenBN" and net.has_norm:
        raise ConfigError("MODEL.RESNETS.NORM: FrozenBN learns no statistics; use BN to pretrain")
    if cfg.TEST.PRECISE_BN.ENABLED and not net.has_batch_norm:
        raise ConfigError("TEST.PRECISE_BN.ENABLED: this net has no batch normalisation")


def check_trainable(cfg: CfgNode, resume: bool) -> None:
    """Raise ConfigError if a config's keys for training do not fit together, or :func:`check_output`
    does."""
    if cfg.RESNET_DET.ENSEMBLE:
        raise ConfigError("RESNET_DET.ENSEMBLE: is only for testing: give --eval-only")
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN: name at least one dataset")
    if cfg.RESNET_DET.COLOR_PCA and cfg.INPUT.FORMAT not in ("BGR", "RGB"):
        raise ConfigError(
            f"RESNET_DET.COLOR_PCA: True: needs INPUT.FORMAT BGR or RGB, not {cfg.INPUT.FORMAT}"
        )
    check_jitter(cfg)
    check_crop(cfg)
    check_deterministic_pooling(cfg)
    if cfg.RESNET_DET.VAL_LOSS and not cfg.DATASETS.TEST:
        raise ConfigError("RESNET_DET.VAL_LOSS: True: name a dataset in DATASETS.TEST")
    check_best(cfg)
    check_output(cfg, resume)


def check_jitter(cfg: CfgNode) -> None:
    """Raise ConfigError if a key of RESNET_DET.COLOR_JITTER is no range of factors, or does not fit
    INPUT.FORMAT."""
    for name, ends in cfg.RESNET_DET.COLOR_JITTER.items():
        key = f"RESNET_DET.COLOR_JITTER.{name}: {ends}"
        if len(ends) != 2 or not 0 <= ends[0] <= ends[1] < math.inf:
            raise ConfigError(f"{key}: give a range of factors, such as (0.8, 1.2)")
        formats = ("BGR", "RGB") if name == "SATURATION" else FORMATS
        if tuple(ends) != UNCHANGED and cfg.INPUT.FORMAT not in formats:
            raise ConfigError(
                f"{key}: needs INPUT.FORMAT {' or '.join(formats)}, not {cfg.INPUT.FORMAT}"
            )


def color_jitter(cfg: CfgNode) -> ColorJitter:
    """The colour jitter of training images."""
    keys = cfg.RESNET_DET.COLOR_JITTER
    return ColorJitter(
        tuple(keys.BRIGHTNESS), tuple(keys.CONTRAST), tuple(keys.SATURATION), cfg.INPUT.FORMAT
    )


def check_crop(cfg: CfgNode) -> None:
    """Raise ConfigError if INPUT.CROP.SIZE does not fit INPUT.CROP.TYPE."""
    type, size = cfg.INPUT.CROP.TYPE, list(cfg.INPUT.CROP.SIZE)
    if type.startswith("relative"):
        what, good = "two numbers above 0 and at most 1", all(0 < part <= 1 for part in size)
    else:
        what = "two whole numbers of pixels"
        good = all(isinstance(side, int) and side > 0 for side in size)
        if type == "absolute_range":
            what, good = f"{what}, the smallest and the largest", good and size == sorted(size)
    if cfg.INPUT.CROP.ENABLED and not (good and len(size) == 2):
        raise ConfigError(f"INPUT.CROP.SIZE: {size}: INPUT.CROP.TYPE {type!r} needs {what}")


def check_deterministic(cfg: CfgNode) -> None:
    """Raise ConfigError if a run could not be deterministic because cuDNN chooses algorithms."""
    if cfg.RESNET_DET.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ConfigError(
            "RESNET_DET.DETERMINISTIC: True: cuDNN may choose other algorithms in each run: set "
            "CUDNN_BENCHMARK False"
        )


def check_deterministic_pooling(cfg: CfgNode) -> None:
    """Raise ConfigError if training needs RoI max pooling's backward pass to be deterministic."""
    pooler = cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE
    pools = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and pooler == "ROIPool"
    if cfg.RESNET_DET.DETERMINISTIC and pools and cfg.MODEL.DEVICE.startswith("cuda"):
        raise ConfigError(
            "RESNET_DET.DETERMINISTIC: True: the backward pass of MODEL.ROI_BOX_HEAD.POOLER_TYPE "
            "ROIPool has no deterministic kernel on a GPU: use ROIAlignV2"
        )


def check_best(cfg: CfgNode) -> None:
    """Raise ConfigError if RESNET_DET.BEST lacks the evaluations that it needs."""
    metric, tests = cfg.RESNET_DET.BEST.METRIC, cfg.DATASETS.TEST
    if not metric:
        if cfg.RESNET_DET.BEST.PATIENCE:
            raise ConfigError("RESNET_DET.BEST.PATIENCE: needs RESNET_DET.BEST.METRIC: bbox/AP")
        return
    if not tests or cfg.TEST.EVAL_PERIOD < 1:
        raise ConfigError(
            f"RESNET_DET.BEST.METRIC: {metric}: needs evaluations on the way: name a dataset in "
            "DATASETS.TEST, and give TEST.EVAL_PERIOD"
        )
    if cfg.RESNET_DET.BEST.PATIENCE and cfg.TEST.AUG.ENABLED:
        raise ConfigError(
            "RESNET_DET.BEST.PATIENCE: TEST.AUG follows only the evaluation after SOLVER.MAX_ITER: "
            "set TEST.AUG.ENABLED False, and test the checkpoint with it by --eval-only"
        )


def build_schedule(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Schedule:
    """The learning rate schedule that ``SOLVER`` describes.

    Raises:
        ValueError: names the key.
    """
    solver = cfg.SOLVER
    return training.build_schedule(
        optimizer,
        name=solver.LR_SCHEDULER_NAME,
        steps=solver.STEPS,
        gamma=solver.GAMMA,
        max_iter=solver.MAX_ITER,
        base_lr_end=solver.BASE_LR_END,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
        until_error=cfg.RESNET_DET.WARMUP_UNTIL_ERROR,
    )


def check_schedule(cfg: CfgNode) -> None:
    """Raise ValueError if the schedule is impossible, and see :func:`check_batches`."""
    build_schedule(cfg, torch.optim.SGD([torch.zeros(1)], cfg.SOLVER.BASE_LR))
    check_batches(cfg)


def check_batches(cfg: CfgNode) -> None:
    """Raise ValueError if the processes cannot share a batch equally, or a process cannot cut its
    share into RESNET_DET.ACCUMULATE equal parts; or if RESNET_DET.CUDA_GRAPH has several."""
    images, world = cfg.SOLVER.IMS_PER_BATCH, distributed.launch_info().world
    check_share(images, world)
    check_parts(images, world, cfg.RESNET_DET.ACCUMULATE)
    if cfg.RESNET_DET.CUDA_GRAPH and world > 1:
        raise ConfigError(
            f"RESNET_DET.CUDA_GRAPH: True: needs one process, not {world}: set it to False"
        )


def check_output(cfg: CfgNode, resume: bool) -> None:
    """Raise ConfigError instead of overwriting checkpoints, of an earlier run or put there by hand,
    unless the run resumes.

    Call this again while holding the lock: the run that we waited for may have saved checkpoints.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if resume:
        return
    if (folder / "last_checkpoint").exists():
        raise ConfigError(
            f"OUTPUT_DIR: {folder} holds the checkpoints of an earlier run: give --resume "
            "to continue it, or another OUTPUT_DIR, or remove the folder"
        )
    names = sorted(path.name for path in folder.glob("model_*.pth"))
    if held := [name for name in names if re.fullmatch(r"model_(final|best|\d+)\.pth", name)]:
        raise ConfigError(
            f"OUTPUT_DIR: {folder} holds {held[0]}, which this run may replace: give another "
            "OUTPUT_DIR, or move the file"
        )


def check_images(cfg: CfgNode, name: str, records: Sequence[dict[str, Any]]) -> None:
    """Decode all images of a test set, unless RESNET_DET.CHECK_IMAGES is off. The processes share
    the work.

    Args:
        name: name of the dataset.
        records: see :func:`resnet_det.data.image_check.unusable`.

    Raises:
        DatasetError: images are unusable. The message lists up to ten.
    """
    if not cfg.RESNET_DET.CHECK_IMAGES:
        return
    own = records[distributed.get_rank() :: distributed.get_world_size()]
    parts = distributed.all_gather_objects(unusable(own, cfg.DATALOADER.NUM_WORKERS))
    faults = [fault for part in parts for fault in part]
    if faults:
        raise together(name, faults)


def check_testable(cfg: CfgNode) -> None:
    """Raise ConfigError if the config is not fitted to its data, if one of ``NO_DETECTORS`` has test
    sets, or if TEST.AUG, CUDNN_BENCHMARK or EVEN_POSITIVES does not fit the config's other keys."""
    if cfg.RESNET_DET.FIT_TO_DATA:
        raise ConfigError(
            "RESNET_DET.FIT_TO_DATA: True: this config is not fitted to its data: train it with "
            "tools/train_net.py, or call resnet_det.engines.fit_to_data.fitted. A trained detector "
            "carries the fitted config: give the checkpoint alone"
        )
    name = cfg.MODEL.META_ARCHITECTURE
    if name in NO_DETECTORS and cfg.DATASETS.TEST:
        raise ConfigError(
            f"DATASETS.TEST: {cfg.DATASETS.TEST}: a {name} makes no detections to test: give ()"
        )
    check_deterministic(cfg)
    check_even_positives(cfg)
    if not cfg.TEST.AUG.ENABLED:
        return
    others = [f"RESNET_DET.{key}" for key in TEST_IMPROVEMENTS if cfg.RESNET_DET[key]]
    others += [f"MODEL.{key}" for key in ("LOAD_PROPOSALS", "KEYPOINT_ON") if cfg.MODEL[key]]
    if others:
        raise ConfigError(f"TEST.AUG.ENABLED and {others[0]} cannot be combined: use one of them")
    check_scales(cfg)


def check_scales(cfg: CfgNode) -> None:
    """Raise ConfigError if TEST.AUG is enabled and TEST.AUG.MIN_SIZES does not hold sizes."""
    sizes = list(cfg.TEST.AUG.MIN_SIZES)
    if cfg.TEST.AUG.ENABLED and (not sizes or min(sizes) < 1):
        raise ConfigError(f"TEST.AUG.MIN_SIZES: {sizes}: give one or more shorter sides in pixels")


def as_predictor(cfg: CfgNode, score_thresh: float) -> CfgNode:
    """A copy of a detector's config whose score threshold is at most ``score_thresh``.

    A lower threshold stays, because box voting also uses the boxes of lower scores.

    Raises:
        ConfigError: the config's model does not find objects in an image alone.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name in NO_DETECTORS:
        raise ConfigError(f"MODEL.META_ARCHITECTURE: {name}: finds no objects: give a detector")
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError(
            "MODEL.LOAD_PROPOSALS: True: this detector needs the proposals of each image: evaluate "
            "it with tools/train_net.py"
        )
    lowest = {
        f"MODEL.{node}.SCORE_THRESH_TEST": min(cfg.MODEL[node].SCORE_THRESH_TEST, score_thresh)
        for node in ("ROI_HEADS", "RETINANET")  # the second is Detectron2's alone
        if node in cfg.MODEL
    }
    return with_values(cfg, lowest)


def proposal_files(cfg: CfgNode, split: str) -> tuple[str, ...]:
    """The files of precomputed proposals, one per dataset, or () without MODEL.LOAD_PROPOSALS.

    Args:
        split: "TRAIN" or "TEST".

    Raises:
        ConfigError: there are more or fewer files than datasets.
    """
    names, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
    if not cfg.MODEL.LOAD_PROPOSALS:
        return ()
    if len(names) != len(files):
        raise ConfigError(
            f"DATASETS.PROPOSAL_FILES_{split}: {len(files)} files for {len(names)} datasets"
        )
    return tuple(files)


def test_files(cfg: CfgNode) -> list[tuple[str, tuple[str, ...]]]:
    """Each of DATASETS.TEST with its proposal files: a tuple of one file, or ().

    Raises:
        ConfigError: see :func:`proposal_files`.
    """
    names, files = cfg.DATASETS.TEST, proposal_files(cfg, "TEST")
    return [(name, files[i : i + 1]) for i, name in enumerate(names)]
