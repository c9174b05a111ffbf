"""PASCAL VOC average precision by the devkit's protocol (VOCevaldet.m, VOCap.m).

The detections of a class are ranked over all images by score. Each is assigned to the object of
its class that it overlaps most. A detection whose IoU with its object is below the threshold is a
false positive. Otherwise it is ignored if the object is difficult, a false positive if a
higher-ranked detection has already matched the object, and a true positive if not.

The devkit uses inclusive 1-based pixels: a side is ``max - min + 1``. The dataset reader converts
them to continuous coordinates by subtracting 1 from xmin and ymin only. A side here is therefore
``x2 - x1``, and areas, intersections and IoU equal the devkit's.

Differences from Detectron2's evaluator:

* Scores and boxes are compared at full precision (Detectron2: 3 decimals and 1 decimal).
* An IoU equal to the threshold is a match, as in VOCevaldet.m (Detectron2: only above it).
* A recall of exactly k/10 reaches the k-th of the 11 points (Detectron2 misses 3/10, 6/10 and 7/10,
  because 0.1 is rounded).
* The AP of a class without (non-difficult) objects is NaN and excluded from the mean (Detectron2:
  0).
* Ties keep the order of the records, then of the detections in the image (Detectron2: unspecified).
* A crowd region, if the dataset has any, is ignored like a difficult object.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..files import write_whole
from .inputs import (
    SCORE_THRESH,
    Detections,
    Evaluation,
    Predictions,
    Records,
    Truth,
    image_f1,
    joined,
    read_predictions,
    read_truth,
)
from .metrics import IOU_THRESHOLDS, PER_CLASS_METRICS, VOC_METRICS

_MAX_PAIRS = 2**20  # of detections and objects, compared at a time


def evaluate(
    records: Records, predictions: Predictions, classes: Sequence[str], metric: str = "11-point"
) -> Evaluation:
    """Evaluate boxes by the VOC protocol.

    Args:
        records, predictions: see `inputs`; exactly one prediction per record.
        classes: names, indexed by ``category_id`` and by the predictions' ``classes``.
        metric: "11-point" (VOC 2007) or "area" under the envelope (VOC 2010 and later).

    Returns:
        Evaluation with the `VOC_METRICS`, and AP50 by the other metric: "AP50_area" or
        "AP50_11point".

    Raises:
        ValueError: there are no images, an image is missing, repeated or unknown, a class index is
            out of range, or an array is malformed or not finite. The message names the image and the
            value.
    """
    if metric not in _AVERAGE_PRECISION:
        raise ValueError(f"metric must be one of {list(_AVERAGE_PRECISION)}, got {metric!r}")
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)
    objects = Truth(*joined(truth.values()))
    found = Detections(*joined(detections.values()))
    object_image = np.repeat(np.arange(len(truth)), [len(t.classes) for t in truth.values()])
    image = np.repeat(np.arange(len(truth)), [len(d.classes) for d in detections.values()])
    nearest, overlap = _nearest(
        image * len(classes) + found.classes,
        found.boxes,
        object_image * len(classes) + objects.classes,
        objects.boxes,
    )
    ignored = objects.ignored

    (other,) = _AVERAGE_PRECISION.keys() - {metric}
    curves, others = {}, np.full(len(classes), np.nan)
    table = np.full((len(classes), len(IOU_THRESHOLDS)), np.nan)
    for label, name in enumerate(classes):
        positives = int(np.sum((objects.classes == label) & ~ignored))
        if positives == 0:
            continue
        ranked = _ranked(found.scores, found.classes == label)
        for column, threshold in enumerate(IOU_THRESHOLDS):
            outcome = _outcomes(nearest[ranked], overlap[ranked], ignored, threshold)
            counted = outcome[outcome != 0]
            hits = np.cumsum(counted > 0)
            precision = hits / np.arange(1, len(hits) + 1)
            table[label, column] = 100 * _AVERAGE_PRECISION[metric](hits, precision, positives)
            if column == 0:
                curves[name] = hits / positives, precision
                others[label] = 100 * _AVERAGE_PRECISION[other](hits, precision, positives)
    overall = {name: _mean(table[:, m.thresholds()]) for name, m in VOC_METRICS.items()}
    overall[f"AP50_{other.replace('-', '')}"] = _mean(others)
    per_class = {
        name: {key: _mean(table[label, VOC_METRICS[key].thresholds()]) for key in PER_CLASS_METRICS}
        for label, name in enumerate(classes)
    }
    sure = _ranked(found.scores, found.scores >= SCORE_THRESH)
    outcome = _outcomes(nearest[sure], overlap[sure], ignored, IOU_THRESHOLDS[0])
    f1 = _f1_scores(image[sure], outcome, object_image[~ignored], len(truth))
    return Evaluation(overall, per_class, curves, dict(zip(truth, f1)))


def write_submission(
    folder: str | Path,
    records: Records,
    predictions: Predictions,
    classes: Sequence[str],
    image_set: str = "test",
    competition: str = "comp4",
) -> list[Path]:
    """Write the devkit's results files, one per class.

    ``<folder>/<competition>_det_<image_set>_<class>.txt`` holds lines ``image_id score xmin ymin
    xmax ymax`` with 1-based inclusive coordinates, at full precision. The records need no
    annotations.

    Returns:
        The paths, in the order of the classes.

    Raises:
        ValueError: see `evaluate`; or a class name cannot be part of a file name.
    """
    for name in classes:
        if Path(name).name != name:
            raise ValueError(f"class name {name!r} cannot be part of a file name")
    detections = read_predictions(records, predictions, classes)
    lines: list[list[str]] = [[] for _ in classes]
    for image, found in detections.items():
        boxes = (found.boxes + np.array([1, 1, 0, 0])).tolist()  # 1-based, the last pixel included
        for box, score, label in zip(boxes, found.scores.tolist(), found.classes):
            lines[label].append(" ".join([str(image), *map(repr, [score, *box])]) + "\n")
    paths = [Path(folder) / f"{competition}_det_{image_set}_{name}.txt" for name in classes]
    for path, text in zip(paths, lines):
        write_whole(path, "".join(text))
    return paths


def _nearest(
    found_keys: np.ndarray, found_boxes: np.ndarray, keys: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection, the object with the same key (image and class) that it overlaps most.

    Returns:
        (N,) the object's index, the first if several overlap equally; and (N,) the IoU. Both are 0
        for a detection without such an object.
    """
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], found_keys)
    count = np.searchsorted(keys[order], found_keys, "right") - first
    end = np.cumsum(count)  # of each detection's pairs in the list of all pairs
    nearest, overlap = np.zeros(len(count), dtype=int), np.zeros(len(count))
    total = int(end[-1]) if len(end) else 0
    bounds = np.searchsorted(end, np.arange(0, total + _MAX_PAIRS, _MAX_PAIRS), "right")
    for low, high in pairwise(bounds):
        part = low + np.flatnonzero(count[low:high])
        row = np.repeat(part, count[part])
        start = np.cumsum(count[part]) - count[part]
        column = order[np.repeat(first[part] - start, count[part]) + np.arange(len(row))]
        iou = _iou(found_boxes[row], boxes[column])
        best = np.lexsort((-iou, row))[start]
        nearest[part], overlap[part] = column[best], iou[best]
    return nearest, overlap


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of each box of ``a`` (P, 4) with the one of ``b`` (P, 4) in the same place."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = sides.clip(0).prod(axis=1)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _outcomes(
    nearest: np.ndarray, overlap: np.ndarray, ignored: np.ndarray, threshold: float
) -> np.ndarray:
    """Outcomes of the ranked detections of one class: 1 true positive, -1 false positive, 0
    ignored."""
    outcome = np.full(len(nearest), -1)
    hits = np.flatnonzero(overlap >= threshold)
    _, first = np.unique(nearest[hits], return_index=True)
    outcome[hits[first]] = 1
    outcome[hits[ignored[nearest[hits]]]] = 0
    return outcome


def _ranked(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The indices of the chosen detections (a mask) by descending score."""
    indices = np.flatnonzero(chosen)
    return indices[np.argsort(-scores[indices], kind="stable")]


def _f1_scores(
    image: np.ndarray, outcome: np.ndarray, object_image: np.ndarray, images: int
) -> list[float]:
    """The F1 score of each image.

    Args:
        image, outcome: of each confident detection, its image and its outcome.
        object_image: the image of each object that is not ignored.
        images: number of images.
    """
    found = (image[outcome > 0], image[outcome < 0], object_image)
    counts = (np.bincount(each, minlength=images).tolist() for each in found)
    return [image_f1(right, wrong, wanted - right) for right, wrong, wanted in zip(*counts)]


def _eleven_point(hits: np.ndarray, precision: np.ndarray, positives: int) -> float:
    """VOC 2007: mean over recalls 0, .1, ..., 1 of the best precision at that recall or above."""
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)  # here or further on
    reached = np.searchsorted(10 * hits, positives * np.arange(11))  # integers: no rounding
    return float(best[reached].mean())


def _area(hits: np.ndarray, precision: np.ndarray, positives: int) -> float:
    """VOC 2010 (VOCap.m): area under the monotonically decreasing envelope of the precision."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * envelope) / positives)


_AVERAGE_PRECISION = {"11-point": _eleven_point, "area": _area}


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
