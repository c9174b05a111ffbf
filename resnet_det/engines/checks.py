"""What is refused in a config or an output folder, whichever the engine."""

from pathlib import Path

from ..config.checks import check_users
from ..config.defaults import LARGE, SMALL, ConfigError
from ..data.classification import large_images, small_images
from ..data.image_check import unusable
from ..data.loader import check_share
from ..detector.net_keys import net_options
from ..nets import meta_net
from ..records import together
from ..training import distributed
from ..training.schedule import check_steps


def check_classifier(cfg):
    """Raise if a config is not a classifier's, or has keys or values that its training cannot honour.

    Raises:
        ConfigError: names the key.
        UnknownDataset: there is no classification dataset of that name.
    """
    if cfg.MODEL.META_ARCHITECTURE != "Classifier":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} is not a classifier: "
            "train it with tools/train_net.py"
        )
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    for name in names:
        small_images.check_name(name)
    large = {name in large_images.NAMES for name in names}
    if len(large) > 1:
        raise ConfigError(f"DATASETS: {sorted(names)}: some are of small images, some of large")
    check_users(cfg, LARGE if True in large else SMALL)
    if cfg.TEST.AUG.ENABLED and cfg.RESNET_DET.TEST_CROPS > 1:
        raise ConfigError("TEST.AUG.ENABLED and RESNET_DET.TEST_CROPS: test whole images or crops?")
    if cfg.TEST.AUG.ENABLED and cfg.RESNET_DET.PER_PIXEL_MEAN:
        raise ConfigError("TEST.AUG.ENABLED: whole images have no RESNET_DET.PER_PIXEL_MEAN")
    crop = cfg.INPUT.CROP
    whole = all(type(side) is int and side > 0 for side in crop.SIZE)
    if not crop.ENABLED or crop.TYPE != "absolute" or len(set(crop.SIZE)) != 1 or not whole:
        raise ConfigError(
            "INPUT.CROP: a classifier takes square crops of a size in pixels: "
            "ENABLED: True, TYPE: absolute, SIZE: [32, 32]"
        )
    name = cfg.MODEL.BACKBONE.NAME
    net = meta_net(name, **net_options(cfg, name))
    if cfg.MODEL.RESNETS.NORM == "FrozenBN" and net.has_norm:
        raise ConfigError("MODEL.RESNETS.NORM: FrozenBN learns no statistics; use BN to pretrain")
    if cfg.TEST.PRECISE_BN.ENABLED and not net.has_batch_norm:
        raise ConfigError("TEST.PRECISE_BN.ENABLED: this net has no batch normalisation")


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
