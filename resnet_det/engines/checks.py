"""What is refused in a config or an output folder, whichever the engine."""

from pathlib import Path

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


def check_trainable(cfg, resume):
    """Refuse to train on nothing or an ensemble, or in an earlier run's folder.

    Raises:
        ConfigError
    """
    if cfg.RESNET_DET.ENSEMBLE:
        raise ConfigError("RESNET_DET.ENSEMBLE: is for tests: give --eval-only")
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN: name at least one dataset")
    check_output(cfg, resume)


def check_schedule(cfg):
    """Refuse SOLVER.STEPS that do not rise, and a batch that the processes cannot share equally.

    Raises:
        ValueError
    """
    check_steps(cfg.SOLVER.STEPS)
    check_share(cfg.SOLVER.IMS_PER_BATCH, distributed.launch_info().world)


def check_output(cfg, resume):
    """Refuse to write over an earlier run's checkpoints.

    A run that was waited for may have saved some, so this comes again where the folder is held.

    Raises:
        ConfigError
    """
    if not resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists():
        raise ConfigError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} holds the checkpoints of an earlier run: give --resume "
            "to go on, or another OUTPUT_DIR, or remove it"
        )


def check_images(cfg, name, records):
    """Decode the images of a test set, shared by all processes, unless they are known to be usable.

    Args:
        name: of the set.
        records: as :func:`resnet_det.data.image_check.unusable` takes them.

    Raises:
        DatasetError: names the images that cannot be used, up to ten.
    """
    if not cfg.RESNET_DET.CHECK_IMAGES:
        return
    mine = records[distributed.get_rank() :: distributed.get_world_size()]
    parts = distributed.all_gather_objects(unusable(mine, cfg.DATALOADER.NUM_WORKERS))
    faults = [fault for part in parts for fault in part]
    if faults:
        raise together(name, faults)


def check_testable(cfg):
    """Refuse test sets for a net that proposes regions and detects nothing.

    Raises:
        ConfigError
    """
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" and cfg.DATASETS.TEST:
        raise ConfigError(
            f"DATASETS.TEST: {cfg.DATASETS.TEST}: a ProposalNetwork detects no objects: give ()"
        )


def proposal_files(cfg, split):
    """The files of precomputed proposals of DATASETS.``split``, as many as datasets, or none.

    Raises:
        ConfigError: another number.
    """
    names, files = cfg.DATASETS[split], cfg.DATASETS[f"PROPOSAL_FILES_{split}"]
    if not cfg.MODEL.LOAD_PROPOSALS:
        return ()
    if len(names) != len(files):
        raise ConfigError(
            f"DATASETS.PROPOSAL_FILES_{split}: {len(files)} files for {len(names)} datasets"
        )
    return tuple(files)


def test_files(cfg):
    """[(name, its files of proposals: one, or none)] of each of DATASETS.TEST.

    Raises:
        ConfigError: as :func:`proposal_files`.
    """
    names, files = cfg.DATASETS.TEST, proposal_files(cfg, "TEST")
    return [(name, files[i : i + 1]) for i, name in enumerate(names)]
