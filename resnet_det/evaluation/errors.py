"""Where a detector errs: by size of object, by kind of error, between classes, and in its scores.

Objects and detections are matched by COCO's protocol. Difficult objects and crowds are ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import coco_ap
from .inputs import Detections, ImageId, Truth
from .matching import FALSE_POSITIVE, match
from .metrics import Metric

# The errors of "TIDE: A General Toolbox for Identifying Object Detection Errors" (Bolya et al.,
# ECCV 2020): name and meaning.
TIDE = {
    "Cls": ("class", "IoU of at least 0.5 with an object of another class"),
    "Loc": ("location", "IoU of 0.1 to 0.5 with an object of its class"),
    "Both": ("class and location", "IoU of 0.1 to 0.5 with an object of another class"),
    "Dupe": ("duplicate", "a better detection has found the object"),
    "Bkg": ("background", "IoU below 0.1 with every object"),
    "Miss": ("missed", "an object that none of these detections is about"),
}
SIZES = {
    "small": "up to 32² pixels",
    "medium": "32² to 96² pixels",
    "large": "above 96² pixels",
}


@dataclass(frozen=True)
class SizeResult:
    """The metrics of the objects of one size; NaN if there are none."""

    objects: int
    AP: float
    AP50: float
    recall: float  # COCO's AR with 100 detections per image


@dataclass(frozen=True)
class ErrorKind:
    """How often an error occurs, and the points of AP50 that are gained if it is repaired."""

    count: int
    lost_ap50: float


@dataclass(frozen=True)
class Calibration:
    """The share of right detections by score, in bins of equal width.

    Attributes:
        scores: (B,) mean score of each bin that has detections.
        precision: (B,) share of its detections that match an object at IoU 0.5.
        counts: (B,) number of its detections.
        error: the expected calibration error, the mean distance between score and precision.
    """

    scores: np.ndarray
    precision: np.ndarray
    counts: np.ndarray
    error: float


@dataclass(frozen=True)
class Errors:
    """The result of :func:`analyse`.

    Attributes:
        sizes: result by name of `SIZES`.
        confusion: (K + 1, K + 1), see :func:`confusion_matrix`.
        kinds: result by key of `TIDE`; empty if hotcoco is not installed.
        calibration: None if there are no detections, or if hotcoco is not installed.
    """

    sizes: dict[str, SizeResult]
    confusion: np.ndarray
    kinds: dict[str, ErrorKind]
    calibration: Calibration | None


def analyse(
    truth: Mapping[ImageId, Truth],
    detections: Mapping[ImageId, Detections],
    classes: Sequence[str],
) -> Errors:
    """Analyse the errors of all detections; the confusion, of those that are confident.

    Args:
        truth, detections: from `read_truth` and `read_predictions`.
    """
    run = coco_ap.evaluated(truth, detections, classes)
    kinds, calibration = {}, None
    if coco_ap.hotcoco is not None:
        tide = run.tide_errors()
        kinds = {key: ErrorKind(tide["counts"][key], 100 * tide["delta_ap"][key]) for key in TIDE}
        calibration = _calibration(run)
    return Errors(
        {size: _of_size(run, size, truth) for size in SIZES},
        confusion_matrix(truth, detections, len(classes)),
        kinds,
        calibration,
    )


def confusion_matrix(
    truth: Mapping[ImageId, Truth], detections: Mapping[ImageId, Detections], classes: int
) -> np.ndarray:
    """Count the confident detections by the class of the object they find and their own class.

    Detections and objects are matched at IoU 0.5 within each class, and those that remain across
    classes. A detection that matches an ignored object of its class does not count.

    Returns:
        (K + 1, K + 1) int. Row: class of the object, the last one "no object". Column: class of the
        detection, the last one "not found".
    """
    matrix = np.zeros((classes + 1, classes + 1), dtype=int)
    for image, objects in truth.items():
        found = detections[image].confident()
        outcome = match(found, objects)
        right = outcome[outcome >= 0]
        np.add.at(matrix, (objects.classes[right], objects.classes[right]), 1)
        missed = ~objects.ignored
        missed[right] = False
        objects = Truth(*(array[missed] for array in objects))
        found = Detections(*(array[outcome == FALSE_POSITIVE] for array in found))
        outcome = match(
            found._replace(classes=np.zeros_like(found.classes)),
            objects._replace(classes=np.zeros_like(objects.classes)),
        )
        # Index -1 of a detection that matches nothing is the last row, and likewise for columns.
        rows = np.append(objects.classes, classes)[outcome]
        np.add.at(matrix, (rows, found.classes), 1)
        left = np.setdiff1d(np.arange(len(objects.classes)), outcome)
        np.add.at(matrix, (objects.classes[left], classes), 1)
    return matrix


def _of_size(run, size, truth):
    low, high = run.params.areaRng[run.params.areaRngLbl.index(size)]
    objects = sum(
        int(np.sum(~t.ignored & (t.areas >= low) & (t.areas <= high))) for t in truth.values()
    )
    metrics = Metric(area=size), Metric(iou=0.5, area=size), Metric(area=size, recall=True)
    return SizeResult(objects, *(coco_ap.mean(run, metric) for metric in metrics))


def _calibration(run):
    result = run.calibration()
    bins = [each for each in result["bins"] if each["count"]]
    if not bins:
        return None
    columns = zip(*((each["avg_confidence"], each["avg_accuracy"], each["count"]) for each in bins))
    return Calibration(*map(np.array, columns), error=result["ece"])
