"""Evaluation: average precision (``voc_ap``, ``coco_ap``), tables, pictures and the report page.

Here is what both protocols share: the result (`Evaluation`) and the reading of what they compare.

A *record* is a standard dict of an image: ``image_id`` and ``annotations``, each with ``bbox``,
``bbox_mode`` (0: x1 y1 x2 y2, 1: x y w h), ``category_id`` and, where the data has them,
``difficult``, ``iscrowd`` and ``area``. A *prediction* is a dict of an image's detections:
``image_id``, ``boxes`` (N, 4) as x1 y1 x2 y2 in the original image, ``scores`` (N,) and
``classes`` (N,), indices into ``classes``. Coordinates are continuous pixels.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

__all__ = ["CONFIDENT", "Evaluation", "image_f1"]

CONFIDENT = 0.5  # from this score on a detection counts in an image's F1 and is shown in the report


@dataclass
class Evaluation:
    """What an evaluator found.

    metrics: Detectron2's keys without prefix -> 0-100, NaN where undefined.
    curves: class -> (recall, precision) at IoU 0.5, for classes with ground truth.
    images: image id -> F1 at IoU 0.5 of detections that score at least 0.5, NaN for an image with
        neither objects nor detections.
    """

    metrics: dict[str, float]
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    images: dict[str | int, float] = field(default_factory=dict)


class Truth(NamedTuple):
    boxes: np.ndarray  # (M, 4) float64, x1 y1 x2 y2
    xywh: np.ndarray  # (M, 4) float64, the same as x y w h; as annotated, bit for bit
    classes: np.ndarray  # (M,) int64
    difficult: np.ndarray  # (M,) bool
    crowd: np.ndarray  # (M,) bool
    areas: np.ndarray  # (M,) float64, the annotation's own area where it has one


class Detections(NamedTuple):
    boxes: np.ndarray  # (N, 4) float64, x1 y1 x2 y2
    scores: np.ndarray  # (N,) float64
    classes: np.ndarray  # (N,) int64


def read_truth(records, classes):
    """{image id: Truth} in the records' order; ValueError names what is wrong and where."""
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must differ, got {list(classes)}")
    truth = {}
    for record in records:
        image = record["image_id"]
        if image in truth:
            raise ValueError(f"image id {image!r} is in the records twice")
        if "annotations" not in record:
            raise ValueError(
                f"image {image!r} has no annotations, so nothing can be evaluated on it;"
                " write the submission file instead"
            )
        boxes, xywh, labels, difficult, crowd, areas = [], [], [], [], [], []
        for annotation in record["annotations"]:
            a, b, c, d = (float(value) for value in annotation["bbox"])
            mode = int(annotation["bbox_mode"])
            if mode not in (0, 1):
                raise ValueError(
                    f"image {image!r}: bbox_mode {mode} is neither 0 nor 1 (xyxy, xywh)"
                )
            boxes.append((a, b, c, d) if mode == 0 else (a, b, a + c, b + d))
            xywh.append((a, b, c - a, d - b) if mode == 0 else (a, b, c, d))
            labels.append(annotation["category_id"])
            difficult.append(bool(annotation.get("difficult", 0)))
            crowd.append(bool(annotation.get("iscrowd", 0)))
            areas.append(float(annotation.get("area", xywh[-1][2] * xywh[-1][3])))
        truth[image] = Truth(
            _floats(boxes, (len(boxes), 4), image, "annotated boxes"),
            np.array(xywh, dtype=np.float64).reshape(-1, 4),
            _labels(labels, len(labels), classes, image, "an annotation"),
            np.array(difficult, dtype=bool),
            np.array(crowd, dtype=bool),
            np.array(areas, dtype=np.float64),
        )
    return truth


def read_predictions(records, predictions, classes):
    """{image id: Detections} in the records' order, so that ties rank the same on every run.

    Nothing is skipped in silence: exactly one prediction (empty, if need be) for every record.
    """
    given = {}
    known = {record["image_id"] for record in records}
    for prediction in predictions:
        image = prediction["image_id"]
        if image not in known:
            raise ValueError(f"a prediction is for image id {image!r}, which no record has")
        if image in given:
            raise ValueError(f"image {image!r} has two predictions")
        count = len(prediction["scores"])
        given[image] = Detections(
            _floats(prediction["boxes"], (count, 4), image, "boxes"),
            _floats(prediction["scores"], (count,), image, "scores"),
            _labels(prediction["classes"], count, classes, image, "a prediction"),
        )
    missing = [record["image_id"] for record in records if record["image_id"] not in given]
    if missing:
        named = ", ".join(repr(image) for image in missing[:5]) + (", ..." if missing[5:] else "")
        raise ValueError(
            f"{len(missing)} of {len(records)} images have no prediction: {named};"
            " give an empty one where nothing was detected"
        )
    return {record["image_id"]: given[record["image_id"]] for record in records}


def image_f1(true_positives, false_positives, missed):
    """F1 of an image, NaN where there is nothing to find and nothing was found."""
    total = 2 * true_positives + false_positives + missed
    return 2 * true_positives / total if total else float("nan")


def _floats(values, shape, image, what):
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 and 0 in shape:
        array = array.reshape(shape)
    if array.shape != shape:
        raise ValueError(f"image {image!r}: {what} have shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"image {image!r}: {what} hold NaN or infinity: {array.tolist()}")
    return array


def _labels(values, count, classes, image, what):
    array = np.asarray(values)
    if array.shape != (count,):
        raise ValueError(f"image {image!r}: {array.shape} class indices for {count} boxes")
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"image {image!r}: class indices must be integers, got {array.dtype}")
    outside = array[(array < 0) | (array >= len(classes))]
    if outside.size:
        raise ValueError(
            f"image {image!r}: {what} has class index {outside[0]},"
            f" but there are {len(classes)} classes (0 to {len(classes) - 1})"
        )
    return array.astype(np.int64)
