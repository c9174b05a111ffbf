"""The configuration: Detectron2's YAML language, in the part that the embedded engine honours.

Names, defaults and meaning are Detectron2's. What Detectron2 cannot say lives in ``RESNET_DET``.
"""

import difflib
import logging
import re
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from .config_values import examples, explained, fits, near_it, wrong_value

logger = logging.getLogger(__name__)


class ConfigError(ValueError):
    """A config file, key or value that cannot be honoured."""


# Values that the embedded engine honours, where it does not honour all; the first is the default.
CHOICES = {
    "VERSION": (2,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "ProposalNetwork", "Classifier"),
    "MODEL.MASK_ON": (False,),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.LOAD_PROPOSALS": (False, True),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "PrecomputedProposals"),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "PaperROIHeads", "StandardROIHeads"),
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1], [-1, 0, 1], [0, -1, 1]),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0,),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign", "ROIPool"),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False,),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN", "GN", ""),  # "": VGG-16
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.FPN.NORM": ("",),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.CROP.ENABLED": (False, True),
    "INPUT.CROP.TYPE": ("relative_range", "absolute"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR",),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "TEST.AUG.ENABLED": (False, True),  # True: classifiers only
}

# Heads that MASK_ON and KEYPOINT_ON switch off: their keys say nothing here, as in Detectron2.
SWITCHED_OFF = ("MODEL.ROI_MASK_HEAD.", "MODEL.ROI_KEYPOINT_HEAD.")


def add_resnet_det_config(cfg):
    """Add the node ``RESNET_DET`` to a config, Detectron2's or ours."""
    cfg.RESNET_DET = type(cfg)()  # yacs merges nodes of one class only
    # Config of the classifier that MODEL.WEIGHTS comes from: it is trained first where that file
    # does not exist. Like all paths, relative to the working folder.
    cfg.RESNET_DET.PRETRAIN = ""
    # Layers that start fresh, whatever MODEL.WEIGHTS holds: the first parts of their parameters'
    # names, such as ("fc6", "fc7") or ("roi_heads.box_predictor",). Any other miss is an error.
    cfg.RESNET_DET.NEW_LAYERS = ()
    # Train on objects that VOC marks as difficult. Detectron2 does, py-faster-rcnn does not.
    cfg.RESNET_DET.USE_DIFFICULT = True
    # Classes of checkpoints and datasets are matched by name. True: by their order, where the same
    # classes have other names; their numbers must be equal.
    cfg.RESNET_DET.CLASSES_BY_ORDER = False
    # Leave out broken training images and annotations, with a count, instead of ending the run.
    cfg.RESNET_DET.SKIP_BAD_DATA = False
    # Decode the test images before training and stop if one is unusable; what was decoded before is
    # not decoded again (resnet_det/data/image_check.py). Images in tar shards are not checked.
    cfg.RESNET_DET.CHECK_IMAGES = True
    # Zero pixels around a classifier's training image before the crop (4 on CIFAR, section 4.2).
    cfg.RESNET_DET.CROP_PADDING = 0
    # Subtract the mean image of a classifier's training set (section 4.2) instead of PIXEL_MEAN,
    # which must be its mean: a detector on these weights subtracts that. Checkpoints carry it.
    cfg.RESNET_DET.PER_PIXEL_MEAN = False
    # Warm-up by a rule (section 4.2, 110 layers): a classifier stays at WARMUP_FACTOR * BASE_LR
    # until its running training error is below so many per cent. 0: by WARMUP_ITERS.
    cfg.RESNET_DET.WARMUP_UNTIL_ERROR = 0.0
    # AlexNet's colour augmentation of a classifier's training images (section 3.4).
    cfg.RESNET_DET.COLOR_PCA = False
    # Crops of a classifier's test image: 1 (the centre) or 10 (with the corners, and mirrored).
    cfg.RESNET_DET.TEST_CROPS = 1
    # Further checkpoints, each of which carries its config, for a test together with MODEL.WEIGHTS:
    # classifiers (Table 5: the mean of their softmax) or detectors (Appendix B).
    cfg.RESNET_DET.ENSEMBLE = ()
    # Fold constant batch norms, compute no cell that nobody reads, keep channels last: the same
    # results and checkpoints sooner (resnet_det/nets/fast.py). False to compare.
    cfg.RESNET_DET.FAST = True
    # Iterations of the 4 steps of alternating training (tools/train_alternating.py): RPN, Fast
    # R-CNN, RPN, Fast R-CNN. The released code's for VOC 07.
    cfg.RESNET_DET.ALTERNATING = (80000, 40000, 80000, 40000)
    # Appendix B (Table 9), see resnet_det/engines/appendix.py. Context is a part of the net, for
    # training and test; the others are for the test alone.
    cfg.RESNET_DET.GLOBAL_CONTEXT = False
    cfg.RESNET_DET.BOX_REFINEMENT = False
    cfg.RESNET_DET.MULTI_SCALE_TEST = ()  # shorter sides, ascending; the paper's 200, 400 ... 1000


def get_cfg():
    """A fresh config with the defaults; a key that is not in it is refused when merging."""
    cfg = CfgNode()
    cfg.MODEL = CfgNode()
    cfg.MODEL.DEVICE = "cuda"  # the CPU where there is no GPU
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    cfg.MODEL.BACKBONE = CfgNode({"NAME": "build_resnet_backbone", "FREEZE_AT": 2})
    cfg.MODEL.RESNETS = CfgNode({"DEPTH": 50, "OUT_FEATURES": ["res4"], "STRIDE_IN_1X1": True})
    cfg.MODEL.FPN = CfgNode({"IN_FEATURES": [], "OUT_CHANNELS": 256})
    cfg.MODEL.PROPOSAL_GENERATOR = CfgNode({"MIN_SIZE": 0})
    cfg.MODEL.ANCHOR_GENERATOR = CfgNode()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.0
    cfg.MODEL.RPN = CfgNode()
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.RPN.BOUNDARY_THRESH = -1
    cfg.MODEL.RPN.IOU_THRESHOLDS = [0.3, 0.7]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
    cfg.MODEL.RPN.POSITIVE_FRACTION = 0.5
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 1.0
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    cfg.MODEL.RPN.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.RPN.LOSS_WEIGHT = 1.0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 12000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 6000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.NMS_THRESH = 0.7
    cfg.MODEL.RPN.CONV_DIMS = [-1]
    cfg.MODEL.ROI_HEADS = CfgNode()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.5]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.25
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
    cfg.MODEL.ROI_BOX_HEAD = CfgNode()
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False

    cfg.INPUT = CfgNode()
    cfg.INPUT.MIN_SIZE_TRAIN = (800,)
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    cfg.INPUT.MAX_SIZE_TEST = 1333
    cfg.INPUT.CROP = CfgNode({"SIZE": [0.9, 0.9]})

    cfg.DATASETS = CfgNode({"TRAIN": (), "TEST": ()})
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = ()
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
    cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000
    cfg.DATALOADER = CfgNode({"NUM_WORKERS": 4})
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.MAX_ITER = 40000
    cfg.SOLVER.BASE_LR = 0.001
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.WEIGHT_DECAY = 0.0001
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None  # as WEIGHT_DECAY
    cfg.SOLVER.BIAS_LR_FACTOR = 1.0
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.STEPS = (30000,)
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 1000
    cfg.SOLVER.WARMUP_ITERS = 1000
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.CLIP_GRADIENTS = CfgNode({"ENABLED": False, "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0})
    cfg.SOLVER.AMP = CfgNode({"ENABLED": False})

    cfg.TEST = CfgNode()
    cfg.TEST.EXPECTED_RESULTS = []
    cfg.TEST.EVAL_PERIOD = 0
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    # Fully convolutional testing at several scales: classifiers only.
    cfg.TEST.AUG = CfgNode({"FLIP": True})
    cfg.TEST.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    cfg.TEST.PRECISE_BN = CfgNode({"ENABLED": False, "NUM_ITER": 200})

    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = -1
    cfg.CUDNN_BENCHMARK = False

    for key, values in CHOICES.items():
        *nodes, leaf = key.split(".")
        node = cfg
        for name in nodes:
            node = node[name]
        node[leaf] = values[0]
    add_resnet_det_config(cfg)
    return cfg


def flatten(node, prefix=""):
    """Nested config -> dict of dotted key -> value."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


MOST_BYTES = 2**16  # of a config: YAML's parser takes the square of some files' lengths


class _Small(CfgNode):
    """Opens files, not devices or addresses, of a config's size; those of ``_BASE_`` too."""

    @classmethod
    def _open_cfg(cls, filename):
        path = Path(filename)
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise OSError(f"{filename} is no file of at most {MOST_BYTES} bytes")
        return open(path, encoding="utf-8")


def _read(path):
    """The YAML file with its ``_BASE_`` chain merged, as a dict of dotted key -> value."""
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such config file")
    try:
        content = _Small.load_yaml_with_base(str(path))
    except Exception as error:  # of yaml, of what it constructs, of the merge with the base
        raise ConfigError(f"{path}: {unreadable(error)}") from error
    return {k: v for k, v in _flat(content, path).items() if not k.startswith(SWITCHED_OFF)}


MOST_VALUES = 10_000  # in one config


def _flat(content, where):
    """What YAML gave, as :func:`flatten`; anchors can make a few lines hold themselves or millions."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: not a YAML config: give keys and values such as MODEL: ...")
    stack, count = [content], 0
    while stack:
        value, count = stack.pop(), count + 1
        if count > MOST_VALUES:
            raise ConfigError(f"{where}: holds itself, or more than {MOST_VALUES} values")
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, str):
            if len(value) > MOST_VALUES or not value.isascii() and _unprintable(value):
                raise ConfigError(f"{where}: holds a text that is too long or no Unicode")
        elif value is not None and type(value) not in (bool, int, float):
            raise ConfigError(f"{where}: holds a {type(value).__name__}, which no key takes")
        elif type(value) is int and abs(value) >= 2**63:
            raise ConfigError(f"{where}: holds a number of more than 63 bits")
    return flatten(content)


def _unprintable(text):
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def unreadable(error):
    """What to say of a file that yaml refuses, by its error."""
    code = "python/object" in str(error)
    hint = " (one that runs code is refused: write the values out)" if code else ""
    return f"not a readable YAML config{hint}: {_short(error)}"


def _short(error):
    return ascii(str(error))[1:-1][:500] if _unprintable(str(error)) else str(error)[:500]


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


def _merge(cfg, content, where):
    """Merge dotted keys and values into ``cfg``, refusing what it does not know."""
    defaults, built = flatten(cfg), examples(flatten(get_cfg()))
    check_keys(content, defaults, where)
    for key, value in content.items():
        if value in (None, "None") and defaults[key] is not None:
            raise ConfigError(f"{where}: {key}: has no value")
    try:
        cfg.merge_from_list([x for pair in content.items() for x in pair])
        for key, value in flatten(cfg).items():
            if not fits(value, built[key]):
                raise ConfigError(wrong_value(key, value, built[key]))
    except Exception as error:  # yacs asserts, and evaluates texts as Python's literals
        raise ConfigError(f"{where}: {explained(_short(error), built)}") from error


def load_config(path, overrides=()):
    """Read a YAML file with its ``_BASE_`` chain and trailing ``KEY VALUE`` overrides.

    Returns:
        CfgNode: frozen and checked.

    Raises:
        ConfigError: names the file or the key, and the nearest valid key or values.
    """
    cfg = get_cfg()
    _merge(cfg, _read(path), path)
    return _finish(cfg, overrides)


def embedded_part(cfg):
    """The keys of ``cfg``, Detectron2's or ours, that the embedded engine knows, as YAML."""
    known, theirs = get_cfg(), flatten(cfg)
    pairs = [(key, theirs[key]) for key in flatten(known) if key in theirs]
    known.merge_from_list([x for pair in pairs for x in pair])
    return known.dump()


def parse_text(text, where):
    """What :func:`embedded_part` wrote, unchecked, as :func:`flatten`; ``where`` names its source."""
    try:
        content = yaml.safe_load(text[:MOST_BYTES])
    except Exception as error:  # of yaml, of what it constructs
        raise ConfigError(f"{where}: its config is no YAML: {_short(error)}") from error
    return _flat(content, where)


def parse_config(text, where, overrides=()):
    """The config that :func:`embedded_part` wrote, as :func:`load_config`; ``where`` names its source."""
    cfg = get_cfg()
    _merge(cfg, parse_text(text, where), where)
    return _finish(cfg, overrides)


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


def _finish(cfg, overrides):
    overrides, images = list(overrides), cfg.SOLVER.IMS_PER_BATCH
    if len(overrides) % 2:
        raise ConfigError(f"overrides {overrides}: give pairs KEY VALUE")
    _merge(cfg, dict(zip(overrides[::2], overrides[1::2])), "command line")
    check_values(cfg)
    check_batch(cfg, images, overrides)
    cfg.freeze()
    return cfg
