"""PASCAL VOC average precision by the devkit's protocol (VOCevaldet.m, VOCap.m).

Detections of a class are ranked over all images by score. Each belongs to the object of its class
that it overlaps most; with IoU >= threshold it is a true positive, or a false positive if a
higher-ranked one had that object already, or neither if the object is difficult. Every other
detection is a false positive.

The devkit counts inclusive 1-based pixels: a side is ``max - min + 1``. The data layer made them
continuous by taking 1 from xmin and ymin only, so a side here is plainly ``x2 - x1``, and areas,
intersections and IoU are the devkit's own numbers.

Where this differs from Detectron2's evaluator, and why:

* scores and boxes are ranked and compared as they are (there: 3 decimals and 1 decimal);
* IoU equal to the threshold is a match, as in VOCevaldet.m (there: only above);
* a recall of exactly k/10 reaches the k-th of the 11 points (there, 3/10, 6/10 and 7/10 do not,
  because 0.1 is rounded);
* a class without (non-difficult) objects is NaN and left out of the mean (there: it counts 0);
* ties keep the order of the records, then of the detections within the image (there: unspecified);
* a crowd region, where the data has any, is ignored like a difficult object.
"""

from pathlib import Path

import numpy as np

from . import CONFIDENT, Evaluation, image_f1, read_predictions, read_truth

THRESHOLDS = np.arange(50, 100, 5) / 100


def evaluate(records, predictions, classes, metric="11-point"):
    """Evaluate boxes by the VOC protocol.

    Args:
        records, predictions: lists of dicts, see the package's docstring; exactly one prediction
            for every record.
        classes: names, indexed by ``category_id`` and by the predictions' ``classes``.
        metric: "11-point" (VOC 2007) or "area" under the envelope (VOC 2010 and later).

    Returns:
        Evaluation with metrics AP (mean over IoU .50:.05:.95), AP50, AP75, and for every class
        "AP-<class>" and "AP50-<class>".

    Raises:
        ValueError: naming the image and value, for a missing, repeated or unknown image, a class
            index out of range, a malformed array, NaN or infinity.
    """
    if metric not in _METRICS:
        raise ValueError(f"metric must be one of {list(_METRICS)}, got {metric!r}")
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)

    # One flat table of all detections; objects are numbered through all images.
    offset, nearest, overlap = 0, [], []
    for image, objects in truth.items():
        found = detections[image]
        index, iou = _nearest(found, objects)
        nearest.append(index + offset)
        overlap.append(iou)
        offset += len(objects.classes)
    nearest, overlap = np.concatenate([[], *nearest]).astype(int), np.concatenate([[], *overlap])
    scores = np.concatenate([[], *(d.scores for d in detections.values())])
    labels = np.concatenate([[], *(d.classes for d in detections.values())])
    object_labels = np.concatenate([[], *(t.classes for t in truth.values())])
    ignored = np.concatenate([[], *(t.difficult | t.crowd for t in truth.values())]).astype(bool)

    metrics, curves = {}, {}
    table = np.full((len(classes), len(THRESHOLDS)), np.nan)
    for label, name in enumerate(classes):
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        positives = int(np.sum((object_labels == label) & ~ignored))
        if positives == 0:
            continue
        for column, threshold in enumerate(THRESHOLDS):
            outcome = _outcomes(nearest[mine], overlap[mine], ignored, threshold)
            counted = outcome[outcome != 0]
            found = np.cumsum(counted > 0)
            precision = found / np.arange(1, len(found) + 1)
            table[label, column] = 100 * _METRICS[metric](found, precision, positives)
            if column == 0:
                curves[name] = found / positives, precision
    for name, columns in (("AP", slice(None)), ("AP50", 0), ("AP75", 5)):
        metrics[name] = _mean(table[:, columns])
    for prefix, columns in (("AP", slice(None)), ("AP50", slice(0, 1))):
        metrics |= {f"{prefix}-{n}": float(table[k, columns].mean()) for k, n in enumerate(classes)}
    images = {image: _confident_f1(detections[image], truth[image]) for image in truth}
    return Evaluation(metrics, curves, images)


def write_submission(folder, records, predictions, classes, image_set="test", competition="comp4"):
    """Write the devkit's results files, one for each class, and return their paths.

    ``<folder>/<competition>_det_<image_set>_<class>.txt`` holds lines ``image_id score xmin ymin
    xmax ymax`` with 1-based inclusive coordinates, at full precision. The records need no
    annotations. Raises ValueError as `evaluate` does.
    """
    for name in classes:
        if Path(name).name != name:
            raise ValueError(f"class name {name!r} cannot be part of a file name")
    detections = read_predictions(records, predictions, classes)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [[] for _ in classes]
    for image, found in detections.items():
        boxes = (found.boxes + [1, 1, 0, 0]).tolist()
        for box, score, label in zip(boxes, found.scores.tolist(), found.classes):
            lines[label].append(" ".join([str(image), *map(repr, [score, *box])]) + "\n")
    paths = [folder / f"{competition}_det_{image_set}_{name}.txt" for name in classes]
    for path, text in zip(paths, lines):
        path.write_text("".join(text))
    return paths


def _nearest(detections, truth):
    """For each detection the index of the object it overlaps most (the first of equals) and the IoU.

    IoU is 0 where the image has no object of the class; the index then means nothing.
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


def _outcomes(nearest, overlap, ignored, threshold):
    """1 true positive, -1 false positive, 0 ignored, for detections of one class in ranked order."""
    outcome = np.full(len(nearest), -1)
    hits = np.flatnonzero(overlap >= threshold)
    _, first = np.unique(nearest[hits], return_index=True)
    outcome[hits[first]] = 1
    outcome[hits[ignored[nearest[hits]]]] = 0
    return outcome


def _eleven_point(found, precision, positives):
    """Mean over recall 0, .1, ... 1 of the best precision at that recall or more (VOC 2007)."""
    total = 0.0
    for tenths in range(11):
        reached = precision[10 * found >= tenths * positives]  # integers: no rounding of recall
        total += reached.max() if reached.size else 0.0
    return total / 11


def _area(found, precision, positives):
    """Area under the precision made monotonically decreasing (VOCap.m, VOC 2010)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(found, prepend=0) * envelope) / positives)


_METRICS = {"11-point": _eleven_point, "area": _area}


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _confident_f1(detections, truth):
    keep = np.flatnonzero(detections.scores >= CONFIDENT)
    keep = keep[np.argsort(-detections.scores[keep], kind="stable")]
    found = type(detections)(*(values[keep] for values in detections))
    ignored = truth.difficult | truth.crowd
    outcome = _outcomes(*_nearest(found, truth), ignored, THRESHOLDS[0])
    hits = int(np.sum(outcome > 0))
    return image_f1(hits, int(np.sum(outcome < 0)), int(np.sum(~ignored)) - hits)
