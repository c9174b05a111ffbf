"""Checks of configs, output folders and test images that every engine makes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError, get_cfg
from ..data.image_check import unusable
from ..data.loader import check_share
from ..records import together
from ..training import distributed
from ..training.schedule import check_steps

# Keys of RESNET_DET that a detector refuses.
FOR_CLASSIFIERS = (
    "CROP_PADDING", "PER_PIXEL_MEAN", "WARMUP_UNTIL_ERROR", "COLOR_PCA", "TEST_CROPS",
)  # fmt: skip


def refuse_classifier_keys(cfg):
    """
    Raises:
        ConfigError: a detector's config sets a key that is for classifiers.
    """
    default = get_cfg().RESNET_DET
    for key in FOR_CLASSIFIERS:
        if cfg.RESNET_DET[key] != default[key]:
            raise ConfigError(f"RESNET_DET.{key}: is for classifiers")


def check_trainable(cfg: CfgNode, resume: bool) -> None:
    """Check that there is something to train, and that it overwrites no earlier run.

    Raises:
        ConfigError: no training set, an ensemble, or as :func:`check_output`.
    """
    if cfg.RESNET_DET.ENSEMBLE:
        raise ConfigError("RESNET_DET.ENSEMBLE: is for tests: give --eval-only")
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN: name at least one dataset")
    check_output(cfg, resume)


def check_schedule(cfg: CfgNode) -> None:
    """Check that ``SOLVER.STEPS`` rise, and that the processes can share a batch equally.

    Raises:
        ValueError
    """
    check_steps(cfg.SOLVER.STEPS)
    check_share(cfg.SOLVER.IMS_PER_BATCH, distributed.launch_info().world)


def check_output(cfg: CfgNode, resume: bool) -> None:
    """Raise if the run would overwrite the checkpoints of an earlier one.

    Call this again while holding the lock: the run that we waited for may have saved checkpoints
    meanwhile.

    Raises:
        ConfigError
    """
    if not resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists():
        raise ConfigError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} holds the checkpoints of an earlier run: give --resume "
            "to continue it, give another OUTPUT_DIR, or remove this one"
        )


def check_images(cfg: CfgNode, name: str, records: Sequence[dict[str, Any]]) -> None:
    """Decode the images of a test set that were not found usable before; the processes share them.

    Args:
        name: of the test set.
        records: as :func:`resnet_det.data.image_check.unusable` takes them.

    Raises:
        DatasetError: names the images that cannot be used, up to ten.
    """
    if not cfg.RESNET_DET.CHECK_IMAGES:
        return
    own = records[distributed.get_rank() :: distributed.get_world_size()]
    parts = distributed.all_gather_objects(unusable(own, cfg.DATALOADER.NUM_WORKERS))
    faults = [fault for part in parts for fault in part]
    if faults:
        raise together(name, faults)


def check_testable(cfg: CfgNode) -> None:
    """Check that a ``ProposalNetwork``, which detects no objects, has no test sets.

    Raises:
        ConfigError
    """
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" and cfg.DATASETS.TEST:
        raise ConfigError(
            f"DATASETS.TEST: {cfg.DATASETS.TEST}: a ProposalNetwork detects no objects: give ()"
        )


def proposal_files(cfg: CfgNode, split: str) -> tuple[str, ...]:
    """The files of precomputed proposals of ``DATASETS.TRAIN`` or ``DATASETS.TEST``.

    Args:
        split: "TRAIN" or "TEST".

    Returns:
        one file per dataset; none without ``MODEL.LOAD_PROPOSALS``.

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
    """The name of each test set, and its file of precomputed proposals: one, or none.

    Raises:
        ConfigError: as :func:`proposal_files`.
    """
    names, files = cfg.DATASETS.TEST, proposal_files(cfg, "TEST")
    return [(name, files[i : i + 1]) for i, name in enumerate(names)]
