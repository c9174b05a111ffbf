"""Choose image sizes, anchors and schedule by the training data (``RESNET_DET.FIT_TO_DATA``)."""

import logging
import math
import shlex
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError, flatten
from ..config.loading import find_config, parse_text, read_yaml
from ..data.detection.mapper import usable, xyxy
from ..detector.build import net_name
from ..nets import NETS, meta_net
from ..training import Checkpointer
from ..weights.loading import read
from . import Engine
from .class_matching import class_count
from .run import start
from .scaling import scaled_iterations

logger = logging.getLogger(__name__)

# By the size of the images that the net was made for (``NetSpec.image_size``: 32 for a CIFAR net, 224
# for an ImageNet net): the limits of the shorter side, and the least number of images of a run.
SHORTER_SIDES = {32: (192, 320), 224: (480, 800)}
LEAST_IMAGES = {32: 4800, 224: 24000}
EPOCHS = 12  # as in Detectron2's 1x schedule
LEAST_PERIOD = 100  # iterations between evaluations
CELLS = 5  # width of the median object of the class with the smallest objects
SIZES_PER_LEVEL = 3
LEAST_FACTOR = 1.2  # between neighbouring anchor sizes
# The keys that are fitted.
KEYS = (
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


def fitted(
    cfg: CfgNode,
    engine: Engine,
    path: str | Path,
    overrides: Sequence[Any],
    *,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> CfgNode:
    """Fit a config to its training data, if ``RESNET_DET.FIT_TO_DATA`` asks for it.

    Keys that the file, its ``_BASE_`` or the overrides set keep their values. The others are logged
    as they would stand on a command line. Call this in every process.

    Args:
        cfg: from ``engine.load_config(path, overrides)``.
        checkpoint: the file that the run evaluates or replays. If it carries a config, the keys
            take their values from there, and the training data are not read.
        resume: without ``checkpoint``, use the run's last one, if there is any.

    Returns:
        The config to train or evaluate with, in which FIT_TO_DATA is False.

    Raises:
        ConfigError, DatasetError, ValueError: a key or a dataset is wrong. The message names it.
    """
    if not cfg.RESNET_DET.FIT_TO_DATA:
        return cfg
    start(cfg)
    given = {*flatten(read_yaml(find_config(path))), *overrides[::2]}
    if resume and not checkpoint:
        checkpoint = Checkpointer(cfg.OUTPUT_DIR).latest()
    facts = read(checkpoint)[1] if checkpoint else {}
    if checkpoint and "config" in facts:
        before = parse_text(facts["config"], checkpoint)
        chosen = {key: before[key] for key in KEYS if key in before and key not in given}
        # A run's checkpoint holds the schedule for its number of processes, which is scaled again.
        written = before.get("SOLVER.REFERENCE_WORLD_SIZE", 0)
        chosen = scaled_iterations(chosen, written, cfg.SOLVER.REFERENCE_WORLD_SIZE)
        source = f"the config of {checkpoint}"
    elif cfg.DATASETS.TRAIN:
        chosen = fit(engine.training_records(cfg), cfg, given)
        source = " + ".join(cfg.DATASETS.TRAIN)
    else:
        raise ConfigError("DATASETS.TRAIN: RESNET_DET.FIT_TO_DATA needs at least one dataset")
    words = [word for pair in chosen.items() for word in pair]
    logger.info("fitted to %s: %s", source, " ".join(shlex.quote(str(word)) for word in words))
    words += [*class_count(cfg), "RESNET_DET.FIT_TO_DATA", False]
    return engine.load_config(path, [*overrides, *words])


def fit(
    records: Sequence[Mapping[str, Any]], cfg: CfgNode, given: Collection[str] = ()
) -> dict[str, Any]:
    """Choose image sizes, anchors and schedule for training records.

    * The shorter side shows the median object of the class with the smallest objects ``CELLS``
      cells of the RPN's finest map wide, within ``SHORTER_SIDES``.
    * Anchor sizes run in equal factors from the smallest to the largest objects, without the
      outermost 5 % of each class; the finest maps get the smallest ones. There is one aspect ratio
      if those of nine objects in ten are within a factor of 3, otherwise three.
    * The run sees every image ``EPOCHS`` times, but at least ``LEAST_IMAGES``. The learning rate
      falls after 2/3 and 8/9 of it. It is evaluated ten times, but at most once per
      ``LEAST_PERIOD`` iterations and at its end.

    Args:
        records: Detectron2's standard dicts, with at least one object.
        cfg: a detector's config, of either engine.
        given: keys that keep their values in ``cfg``. The other keys are chosen accordingly.

    Returns:
        Dotted keys and their values, without those given.

    Raises:
        ConfigError: the detector is no Faster R-CNN on one of ``NETS``.
    """
    strides = rpn_strides(cfg)
    image_size = NETS[net_name(cfg)[0]].image_size
    sizes, ratios = object_shapes(records, cfg.RESNET_DET.USE_DIFFICULT)

    side = max(cfg.INPUT.MIN_SIZE_TRAIN)
    if "INPUT.MIN_SIZE_TRAIN" not in given:
        smallest = min(np.median(of_class) for of_class in sizes.values())
        low, high = SHORTER_SIDES[image_size]
        side = min(max(32 * math.ceil(CELLS * min(strides) / smallest / 32), low), high)
    longest = math.ceil(side * 5 / 3)  # Detectron2's 1333 to 800

    ends = [np.percentile(of_class, (5, 95)) * side for of_class in sizes.values()]
    first, last = min(end[0] for end in ends), max(end[1] for end in ends)
    anchors = geometric(first, last, SIZES_PER_LEVEL * len(strides))
    wide, middle, tall = np.percentile(ratios, (5, 50, 95))

    iterations = cfg.SOLVER.MAX_ITER
    if "SOLVER.MAX_ITER" not in given:
        images = max(EPOCHS * len(records), LEAST_IMAGES[image_size])
        iterations = math.ceil(images / cfg.SOLVER.IMS_PER_BATCH)
    tenth = math.ceil(iterations / 10)
    period = max(tenth, min(iterations, LEAST_PERIOD))

    chosen = {
        "INPUT.MIN_SIZE_TRAIN": (side,),
        "INPUT.MAX_SIZE_TRAIN": longest,
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TEST": longest,
        "MODEL.ANCHOR_GENERATOR.SIZES": [
            anchors[i : i + SIZES_PER_LEVEL] for i in range(0, len(anchors), SIZES_PER_LEVEL)
        ],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [
            [round(float(r), 2) for r in ([wide, middle, tall] if tall > 3 * wide else [middle])]
        ],
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": tuple(sorted({iterations * 2 // 3, iterations * 8 // 9} - {0})),
        "SOLVER.WARMUP_ITERS": min(1000, tenth // 2),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
    }
    return {key: value for key, value in chosen.items() if key not in given}


def rpn_strides(cfg: CfgNode) -> list[int]:
    """The strides of the maps that the RPN runs on.

    Raises:
        ConfigError: the detector is no Faster R-CNN on one of ``NETS``.
    """
    name, _ = net_name(cfg)
    if name not in NETS:
        raise ConfigError(
            f"RESNET_DET.FIT_TO_DATA: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} is not one of "
            "resnet_det.NETS, with or without _fpn"
        )
    strides = meta_net(name).strides | {f"p{level}": 2**level for level in range(10)}
    unknown = [m for m in cfg.MODEL.RPN.IN_FEATURES if m not in strides]
    if unknown:
        raise ConfigError(f"MODEL.RPN.IN_FEATURES: {name} has no map {unknown[0]!r}")
    return [strides[m] for m in cfg.MODEL.RPN.IN_FEATURES]


def object_shapes(
    records: Sequence[Mapping[str, Any]], use_difficult: bool
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Measure the objects that are trained on.

    Args:
        use_difficult: whether those that VOC marks as difficult are.

    Returns:
        ``(sizes, ratios)``: per class the square roots of the boxes' areas, as parts of the image's
        shorter side; and the ratios of height to width of all boxes.

    Raises:
        ValueError: there is no object.
    """
    sizes, ratios = defaultdict(list), []
    for record in records:
        objects = [a for a in record["annotations"] if usable(a, use_difficult)]
        for annotation, (x0, y0, x1, y1) in zip(objects, xyxy(objects)):
            width, height = x1 - x0, y1 - y0
            if min(width, height) > 0:
                side = min(record["height"], record["width"])
                sizes[annotation["category_id"]].append(math.sqrt(width * height) / side)
                ratios.append(height / width)
    if not ratios:
        raise ValueError(f"none of the {len(records)} training images has an object")
    return {name: np.array(values) for name, values in sizes.items()}, np.array(ratios)


def geometric(first: float, last: float, count: int) -> list[float]:
    """``count`` numbers in equal factors from ``first`` to ``last``, rounded to 0.1.

    If the factor would be below ``LEAST_FACTOR``, the ends move apart.
    """
    factor = max((last / first) ** (1 / (count - 1)), LEAST_FACTOR)
    middle = math.sqrt(first * last)
    return [round(float(middle * factor ** (i - (count - 1) / 2)), 1) for i in range(count)]
