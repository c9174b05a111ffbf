"""The datasets and mappers of the embedded engine's detectors, built from a config."""

import logging
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from ..data import Dataset, check_names, load_datasets
from ..data.detection.mapper import Copies, Crop, DetectionMapper, with_usable_annotations
from .checks import check_images, color_jitter, proposal_files, test_files
from .class_matching import TestSet, check_number, match_test_sets
from .results import check_best_metric
from .run import make_datasets
from .validation import Validation, validation_records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The datasets of a training run.

    Attributes:
        name: name of the training set.
        records: the records to train on, Detectron2's standard dicts.
        classes: class names, in the order of the detector's rows.
        tests: name -> test set, with its classes in the detector's order.
        validation: see :func:`.validation.validation_records`.
    """

    name: str
    records: list[dict]
    classes: tuple[str, ...]
    tests: dict[str, TestSet]
    validation: Validation


def prepare(cfg: CfgNode) -> Data:
    """Make, read and check the datasets that a config trains and tests on.

    Raises:
        ConfigError: the classes of the datasets or their number do not fit.
        DatasetError: a dataset is damaged, or test images are unusable.
    """
    make_datasets(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    dataset = _training_set(cfg)
    classes = dataset.metadata.classes
    check_number(cfg, classes, f"{dataset.name} (DATASETS.TRAIN)")
    sets = read_test_sets(cfg)
    check_best_metric(cfg, sets)
    tests = match_test_sets(sets, classes, dataset.name, cfg)
    for name, test_set in sets.items():
        check_images(cfg, name, test_set.records)
    _log_skipped(dataset)
    validation = validation_records(tests, cfg)
    return Data(dataset.name, _usable(dataset, cfg), classes, tests, validation)


def training_records(cfg: CfgNode) -> list[dict]:
    """The records to train on, Detectron2's standard dicts.

    Raises:
        DatasetError, UnknownDataset, ValueError: a dataset is absent, damaged or empty.
    """
    check_names(cfg.DATASETS.TRAIN)
    make_datasets(*cfg.DATASETS.TRAIN)
    return _usable(_training_set(cfg), cfg)


def _training_set(cfg):
    return load_datasets(
        cfg.DATASETS.TRAIN,
        skip_bad=cfg.RESNET_DET.SKIP_BAD_DATA,
        proposal_files=proposal_files(cfg, "TRAIN"),
    )


def _usable(dataset, cfg):
    """The records with annotations to train on, or all without FILTER_EMPTY_ANNOTATIONS."""
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return dataset.records
    return with_usable_annotations(dataset.records, use_difficult=cfg.RESNET_DET.USE_DIFFICULT)


def read_test_sets(cfg: CfgNode) -> dict[str, Dataset]:
    """Read ``DATASETS.TEST``. Returns name -> dataset, with the dataset's own class order."""
    skip_bad = cfg.RESNET_DET.SKIP_BAD_DATA
    sets = {
        name: load_datasets([name], skip_bad=skip_bad, proposal_files=files)
        for name, files in test_files(cfg)
    }
    _log_skipped(*sets.values())
    return sets


def training_mapper(cfg: CfgNode) -> DetectionMapper:
    """The dataset mapper for training."""
    crop = cfg.INPUT.CROP
    return DetectionMapper(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        flip=cfg.INPUT.RANDOM_FLIP,
        crop=Crop(crop.TYPE, tuple(crop.SIZE)) if crop.ENABLED else None,
        jitter=color_jitter(cfg),
        color_pca=cfg.RESNET_DET.COLOR_PCA,
        format=cfg.INPUT.FORMAT,
        train=True,
        use_difficult=cfg.RESNET_DET.USE_DIFFICULT,
        proposals=_max_proposals(cfg, "TRAIN"),
    )


def test_mapper(cfg: CfgNode, augmented: bool = False) -> DetectionMapper:
    """The dataset mapper for testing; ``augmented`` adds the copies of ``TEST.AUG``."""
    aug = cfg.TEST.AUG
    return DetectionMapper(
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
        format=cfg.INPUT.FORMAT,
        train=False,
        proposals=_max_proposals(cfg, "TEST"),
        scales=cfg.RESNET_DET.MULTI_SCALE_TEST,
        copies=Copies(tuple(aug.MIN_SIZES), aug.MAX_SIZE, aug.FLIP) if augmented else None,
    )


def _max_proposals(cfg, split):
    """Number of precomputed proposals to use per image; None without ``MODEL.LOAD_PROPOSALS``."""
    topk = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"]
    return topk if cfg.MODEL.LOAD_PROPOSALS else None


def _log_skipped(*datasets):
    for line in (line for dataset in datasets for line in dataset.skipped):
        logger.warning("skipped: %s", line)
