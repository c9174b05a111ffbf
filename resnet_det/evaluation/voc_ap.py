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
from pathlib import Path

import numpy as np

from ..files import write_whole
from .inputs import (
    Detections,
    Evaluation,
    Predictions,
    Records,
    Truth,
    image_f1,
    read_predictions,
    read_truth,
)
from .metrics import IOU_THRESHOLDS, PER_CLASS_METRICS, VOC_METRICS


def evaluate(
    records: Records, predictions: Predictions, classes: Sequence[str], metric: str = "11-point"
) -> Evaluation:
    """Evaluate boxes by the VOC protocol.

    Args:
        records, predictions: see `inputs`; exactly one prediction per record.
        classes: names, indexed by ``category_id`` and by the predictions' ``classes``.
        metric: "11-point" (VOC 2007) or "area" under the envelope (VOC 2010 and later).

    Returns:
        Evaluation with the `VOC_METRICS`.

    Raises:
        ValueError: an image is missing, repeated or unknown, a class index is out of range, or an
            array is malformed or not finite. The message names the image and the value.
    """
    if metric not in _AVERAGE_PRECISION:
        raise ValueError(f"metric must be one of {list(_AVERAGE_PRECISION)}, got {metric!r}")
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)

    # One flat table of all detections. Objects are numbered consecutively over all images.
    offset, nearest_parts, overlap_parts = 0, [], []
    for image, objects in truth.items():
        index, iou = _nearest(detections[image], objects)
        nearest_parts.append(index + offset)
        overlap_parts.append(iou)
        offset += len(objects.classes)
    nearest, overlap = _joined(nearest_parts).astype(int), _joined(overlap_parts)
    scores = _joined([d.scores for d in detections.values()])
    labels = _joined([d.classes for d in detections.values()])
    object_labels = _joined([t.classes for t in truth.values()])
    ignored = _joined([t.ignored for t in truth.values()]).astype(bool)

    curves = {}
    table = np.full((len(classes), len(IOU_THRESHOLDS)), np.nan)
    for label, name in enumerate(classes):
        positives = int(np.sum((object_labels == label) & ~ignored))
        if positives == 0:
            continue
        ranked = np.flatnonzero(labels == label)
        ranked = ranked[np.argsort(-scores[ranked], kind="stable")]
        for column, threshold in enumerate(IOU_THRESHOLDS):
            outcome = _outcomes(nearest[ranked], overlap[ranked], ignored, threshold)
            counted = outcome[outcome != 0]
            hits = np.cumsum(counted > 0)
            precision = hits / np.arange(1, len(hits) + 1)
            table[label, column] = 100 * _AVERAGE_PRECISION[metric](hits, precision, positives)
            if column == 0:
                curves[name] = hits / positives, precision
    overall = {name: _mean(table[:, m.thresholds()]) for name, m in VOC_METRICS.items()}
    per_class = {
        name: {key: _mean(table[label, VOC_METRICS[key].thresholds()]) for key in PER_CLASS_METRICS}
        for label, name in enumerate(classes)
    }
    images = {image: _confident_f1(detections[image], truth[image]) for image in truth}
    return Evaluation(overall, per_class, curves, images)


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[list[str]] = [[] for _ in classes]
    for image, found in detections.items():
        boxes = (found.boxes + np.array([1, 1, 0, 0])).tolist()  # 1-based, the last pixel included
        for box, score, label in zip(boxes, found.scores.tolist(), found.classes):
            lines[label].append(" ".join([str(image), *map(repr, [score, *box])]) + "\n")
    paths = [folder / f"{competition}_det_{image_set}_{name}.txt" for name in classes]
    for path, text in zip(paths, lines):
        write_whole(path, "".join(text))
    return paths


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[], *parts])  # works without any images, too


def _nearest(detections: Detections, truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Per detection, the index of the object that it overlaps most (the first if equal) and the
    IoU.

    If the image has no object of the class, the IoU is 0 and the index is meaningless.
    """
    if not len(detections.scores) or not len(truth.classes):
        return np.zeros(len(detections.scores), dtype=int), np.zeros(len(detections.scores))
    a, b = detections.boxes[:, None], truth.boxes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(axis=2)
    union = (a[..., 2:] - a[..., :2]).prod(axis=2) + (b[..., 2:] - b[..., :2]).prod(axis=2) - shared
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    iou[detections.classes[:, None] != truth.classes[None]] = 0
    best = iou.argmax(axis=1)
    return best, iou[np.arange(len(best)), best]


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


def _eleven_point(hits: np.ndarray, precision: np.ndarray, positives: int) -> float:
    """VOC 2007: mean over recalls 0, .1, ..., 1 of the best precision at that recall or above."""
    total = 0.0
    for tenths in range(11):
        reached = precision[10 * hits >= tenths * positives]  # integers: no rounding of recall
        total += reached.max() if reached.size else 0.0
    return total / 11


def _area(hits: np.ndarray, precision: np.ndarray, positives: int) -> float:
    """VOC 2010 (VOCap.m): area under the monotonically decreasing envelope of the precision."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * envelope) / positives)


_AVERAGE_PRECISION = {"11-point": _eleven_point, "area": _area}


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _confident_f1(detections: Detections, truth: Truth) -> float:
    found = detections.confident()
    outcome = _outcomes(*_nearest(found, truth), truth.ignored, IOU_THRESHOLDS[0])
    hits = int(np.sum(outcome > 0))
    return image_f1(hits, int(np.sum(outcome < 0)), int(np.sum(~truth.ignored)) - hits)
