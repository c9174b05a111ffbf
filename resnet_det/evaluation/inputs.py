"""The inputs and the result of both protocols: records, predictions, `Evaluation`.

A *record* describes an image. It is a dict with ``image_id`` and a list of ``annotations``. Each
annotation has ``bbox``, ``bbox_mode`` (a ``BoxMode``), ``category_id`` and, if the dataset has
them, ``difficult``, ``iscrowd`` and ``area``. A *prediction* holds the detections in an image. It
is a dict with ``image_id``, ``boxes`` (N, 4) as x1 y1 x2 y2 in the original image, ``scores`` (N,)
and ``classes`` (N,), indices into the class names. Coordinates are continuous pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..records import BoxMode

SCORE_THRESH = 0.5  # lowest score of the detections that are drawn and count in an image's F1

Records = Sequence[Mapping[str, Any]]
Predictions = Sequence[Mapping[str, Any]]
ImageId = str | int


@dataclass
class Evaluation:
    """The result of an evaluator.

    Attributes:
        overall: metric -> 0-100, over all classes; NaN if undefined.
        per_class: class -> {metric: 0-100}; the same metrics for every class.
        curves: class -> (recall, precision) at IoU 0.5, for the classes with ground truth.
        images: image id -> F1 score at IoU 0.5 of the detections that score at least
            `SCORE_THRESH`; NaN for an image with neither objects nor detections.
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    images: dict[ImageId, float] = field(default_factory=dict)

    @property
    def class_metrics(self) -> list[str]:
        """The names of the metrics that every class has."""
        return list(next(iter(self.per_class.values()), {}))

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics, under Detectron2's keys without prefix: "AP", ..., "AP-<class>", ..."""
        return self.overall | {
            f"{name}-{label}": values[name]
            for name in self.class_metrics
            for label, values in self.per_class.items()
        }


def as_xywh(boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4), x1 y1 x2 y2, as COCO writes them: x y w h."""
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


class Truth(NamedTuple):
    """The annotated objects of an image."""

    boxes: np.ndarray  # (M, 4) float64, x1 y1 x2 y2
    xywh: np.ndarray  # (M, 4) float64, the same boxes as x y w h, bit for bit as annotated
    classes: np.ndarray  # (M,) int64
    difficult: np.ndarray  # (M,) bool
    crowd: np.ndarray  # (M,) bool
    areas: np.ndarray  # (M,) float64, the annotation's area if it has one, else the box's

    @property
    def ignored(self) -> np.ndarray:
        """(M,) bool: difficult objects and crowds, which a detector need not find."""
        return self.difficult | self.crowd


class Detections(NamedTuple):
    """The detections in an image."""

    boxes: np.ndarray  # (N, 4) float64, x1 y1 x2 y2
    scores: np.ndarray  # (N,) float64
    classes: np.ndarray  # (N,) int64

    def confident(self) -> "Detections":
        """The detections that score at least `SCORE_THRESH`, by descending score."""
        keep = np.flatnonzero(self.scores >= SCORE_THRESH)
        keep = keep[np.argsort(-self.scores[keep], kind="stable")]
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])


def read_truth(records: Records, classes: Sequence[str]) -> dict[ImageId, Truth]:
    """Read the ground truth of every image, in the order of the records.

    Raises:
        ValueError: an image's annotations are invalid. The message names the image and the fault.
    """
    if not records:
        raise ValueError("there are no images to evaluate")
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must be unique, got {list(classes)}")
    truth: dict[ImageId, Truth] = {}
    for record in records:
        image = record["image_id"]
        if image in truth:
            raise ValueError(f"image id {image!r} occurs twice in the records")
        if "annotations" not in record:
            raise ValueError(
                f"image {image!r} has no annotations, so nothing can be evaluated on it;"
                " write the submission file instead"
            )
        annotations = record["annotations"]
        count = len(annotations)
        given = _floats([a["bbox"] for a in annotations], (count, 4), image, "annotated boxes")
        modes = np.array([int(a["bbox_mode"]) for a in annotations], dtype=int)
        for mode in set(modes.tolist()) - set(BoxMode):
            raise ValueError(f"image {image!r}: bbox_mode {mode} is neither 0 nor 1 (xyxy, xywh)")
        start, rest, is_xywh = given[:, :2], given[:, 2:], modes[:, None] == BoxMode.XYWH_ABS
        boxes = np.hstack([start, np.where(is_xywh, start + rest, rest)])
        xywh = np.hstack([start, np.where(is_xywh, rest, rest - start)])
        areas = [float(a.get("area", w * h)) for a, (_, _, w, h) in zip(annotations, xywh)]
        labels = [a["category_id"] for a in annotations]
        truth[image] = Truth(
            boxes,
            xywh,
            _labels(labels, count, classes, image, "an annotation"),
            np.array([bool(a.get("difficult", 0)) for a in annotations], dtype=bool),
            np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            np.array(areas, dtype=np.float64),
        )
    return truth


def read_predictions(
    records: Records, predictions: Predictions, classes: Sequence[Any]
) -> dict[ImageId, Detections]:
    """Read the detections in every image, in the order of the records, so that ties always rank in
    the same order.

    Raises:
        ValueError: a record has no prediction (pass an empty one) or two, a prediction has no
            record, or its arrays are malformed. The message names the image.
    """
    given: dict[ImageId, Detections] = {}
    known = {record["image_id"] for record in records}
    for prediction in predictions:
        image = prediction["image_id"]
        if image not in known:
            raise ValueError(f"there is a prediction for image id {image!r}, but no record of it")
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
            " pass an empty prediction for an image without detections"
        )
    return {record["image_id"]: given[record["image_id"]] for record in records}


def joined(parts: Iterable[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The arrays of all images, one after the other."""
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def image_f1(true_positives: int, false_positives: int, false_negatives: int) -> float:
    """The F1 score of an image, NaN if it has neither objects nor detections."""
    total = 2 * true_positives + false_positives + false_negatives
    return 2 * true_positives / total if total else float("nan")


def _floats(values: Any, shape: tuple[int, ...], image: ImageId, what: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 and 0 in shape:
        array = array.reshape(shape)
    if array.shape != shape:
        raise ValueError(f"image {image!r}: {what} have shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"image {image!r}: {what} hold NaN or infinity: {array.tolist()}")
    return array


def _labels(
    values: Any, count: int, classes: Sequence[Any], image: ImageId, what: str
) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (count,):
        raise ValueError(f"image {image!r}: classes have shape {array.shape}, expected ({count},)")
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
