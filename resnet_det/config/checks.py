"""What is refused in a config's keys, lengths and values."""

import difflib
import logging
import re

from .defaults import CHOICES, ConfigError, flatten
from .messages import near_it

logger = logging.getLogger(__name__)


def check_keys(flat, known, where):
    """Refuse keys that ``known`` lacks, naming the nearest ones that it has.

    Raises:
        ConfigError: names the place, the key and its nearest neighbours.
    """
    for key in flat:
        if key not in known:
            raise ConfigError(
                f"{where}: the embedded engine does not know the key {key}{near_it(key, known)}. "
                f"A key that only Detectron2 honours needs --engine detectron2"
            )


def check_device(cfg):
    """Refuse a device that neither engine runs on; ``meta`` is for models without weights.

    Raises:
        ConfigError
    """
    device = cfg.MODEL.DEVICE
    if not re.fullmatch(r"cpu|meta|cuda(:\d+)?", device):
        why = ": it has no float64, in which losses and scores are averaged"
        raise ConfigError(
            f"MODEL.DEVICE: {device!r}: cannot be used{why if device.startswith('mps') else ''}; "
            "give cuda, cuda:0 (one of several GPUs), or cpu"
        )


def check_lengths(cfg):
    """Lists that need so many numbers, in both engines.

    Raises:
        ConfigError: names the key and says how many.
    """
    corners = 5 if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RRPN" else 4
    for node in ("RPN", "ROI_BOX_HEAD"):
        weights = cfg.MODEL[node].BBOX_REG_WEIGHTS
        if len(weights) != corners or min(weights) <= 0:
            raise ConfigError(
                f"MODEL.{node}.BBOX_REG_WEIGHTS: {weights}: give {corners} numbers above 0"
            )
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ConfigError("INPUT.MIN_SIZE_TRAIN: (): give at least one size")
    count = "one number" if cfg.INPUT.FORMAT == "L" else "three numbers"
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[key]) != (1 if cfg.INPUT.FORMAT == "L" else 3):
            raise ConfigError(
                f"MODEL.{key}: {cfg.MODEL[key]}: give {count}, in the order INPUT.FORMAT"
            )
    if min(cfg.MODEL.PIXEL_STD) <= 0:
        raise ConfigError(f"MODEL.PIXEL_STD: {cfg.MODEL.PIXEL_STD}: must be above 0")


def check_values(cfg):
    """Refuse values that the embedded engine cannot honour.

    Raises:
        ConfigError: names the key, its value and those that are honoured.
    """
    flat = flatten(cfg)
    for key, values in CHOICES.items():
        if flat[key] not in values:
            near = difflib.get_close_matches(str(flat[key]), map(str, values), n=1, cutoff=0.5)
            raise ConfigError(
                f"{key}: the embedded engine cannot honour {flat[key]!r}; it takes "
                f"{' or '.join(map(repr, values))}" + (f" (near it: {near[0]!r})" if near else "")
            )
    m = cfg.MODEL
    if len(m.RPN.CONV_DIMS) != 1:
        raise ConfigError(f"MODEL.RPN.CONV_DIMS: {m.RPN.CONV_DIMS}: the embedded engine takes one")
    for name, head in (("RPN", m.RPN), ("ROI_HEADS", m.ROI_HEADS)):
        if len(head.IOU_LABELS) != len(head.IOU_THRESHOLDS) + 1:
            raise ConfigError(
                f"MODEL.{name}.IOU_LABELS {head.IOU_LABELS}: needs one more entry than "
                f"MODEL.{name}.IOU_THRESHOLDS {head.IOU_THRESHOLDS}"
            )
    if m.LOAD_PROPOSALS != (m.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"):
        raise ConfigError(
            f"MODEL.LOAD_PROPOSALS: {m.LOAD_PROPOSALS} does not fit "
            f"MODEL.PROPOSAL_GENERATOR.NAME: {m.PROPOSAL_GENERATOR.NAME}"
        )
    if m.LOAD_PROPOSALS and m.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ConfigError(f"MODEL.LOAD_PROPOSALS: {m.META_ARCHITECTURE} takes no proposals")
    for least, keys in (
        (1, ("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD",
             "TEST.PRECISE_BN.NUM_ITER")),
        (0, ("MODEL.BACKBONE.FREEZE_AT", "DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD",
             "SOLVER.BASE_LR", "RESNET_DET.CROP_PADDING", "RESNET_DET.WARMUP_UNTIL_ERROR")),
    ):  # fmt: skip
        for key in keys:
            if flat[key] < least:
                raise ConfigError(f"{key}: {flat[key]}: must be at least {least}")
    check_device(cfg)
    check_lengths(cfg)
    sizes = list(cfg.INPUT.MIN_SIZE_TRAIN)
    pair = len(sizes) == 2 and sizes == sorted(sizes)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and not pair:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN: {cfg.INPUT.MIN_SIZE_TRAIN}: "
            "the sampling 'range' takes two sizes, the least and the greatest"
        )


def check_batch(cfg, images, overrides):
    """Warn where the command line changes the batch of ``images`` and leaves the learning rate.

    Linear scaling keeps what a recipe was tuned for: the step an image, and the number of epochs.
    """
    now = cfg.SOLVER.IMS_PER_BATCH
    if now != images and "SOLVER.BASE_LR" not in overrides[::2]:
        factor = now / images
        logger.warning(
            "SOLVER.IMS_PER_BATCH: %d instead of the file's %d, with its BASE_LR %g: the linear "
            "rule says SOLVER.BASE_LR %g, and MAX_ITER and STEPS times %g",
            now, images, cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR * factor, 1 / factor,
        )  # fmt: skip
