"""COCO average precision on records and predictions, by hotcoco or pycocotools.

COCOeval defines the protocol: 10 IoU thresholds, 101 recall points, area ranges, 1, 10 or 100
detections per image, and crowds that match any number of detections. hotcoco computes the same
numbers many times faster than pycocotools, which serves where hotcoco cannot be imported.
"""

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..files import write_whole
from .inputs import (
    Detections,
    Evaluation,
    ImageId,
    Predictions,
    Records,
    Truth,
    as_xywh,
    image_f1,
    joined,
    read_predictions,
    read_truth,
)
from .matching import FALSE_POSITIVE, match
from .metrics import COCO_METRICS, PER_CLASS_METRICS, Metric

hotcoco: Any
try:
    import hotcoco
except ImportError:  # a platform that it has no wheel for
    hotcoco = None

_OUTSIDE = 1e11  # an area outside of every area range, so that COCOeval ignores the object


def evaluate(records: Records, predictions: Predictions, classes: Sequence[str]) -> Evaluation:
    """Evaluate boxes by the COCO protocol.

    Args:
        records, predictions: see `inputs`; exactly one prediction per record. An annotation
            without ``area`` has the area of its box. A difficult object is ignored like an object
            outside the area range: one detection may match it without penalty.
        classes: names, indexed by ``category_id`` and by the predictions' ``classes``.

    Returns:
        Evaluation with the `COCO_METRICS`. A metric without ground truth is NaN. Objects in images
        without any detection count as missed, so their AP is 0 (Detectron2 returns NaN if there
        are no detections at all).

    Raises:
        ValueError: there are no images, an image is missing, repeated or unknown, a class index is
            out of range, or an array is malformed or not finite. The message names the image and
            the value.
    """
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)
    return summary(evaluated(truth, detections, classes), truth, detections, classes)


def summary(
    run: Any,
    truth: Mapping[ImageId, Truth],
    detections: Mapping[ImageId, Detections],
    classes: Sequence[str],
) -> Evaluation:
    """What :func:`evaluate` returns, from a COCOeval of :func:`evaluated`."""
    overall = {name: mean(run, metric) for name, metric in COCO_METRICS.items()}
    per_class = {
        name: {key: mean(run, COCO_METRICS[key], [label]) for key in PER_CLASS_METRICS}
        for label, name in enumerate(classes)
    }
    # Shape (recall, class): IoU 0.5, all areas, 100 detections per image.
    precision, recall = run.eval["precision"][0, :, :, 0, -1], np.array(run.params.recThrs)
    curves = {
        name: (recall.copy(), precision[:, label].copy())
        for label, name in enumerate(classes)
        if precision[0, label] > -1
    }
    images = {image: _confident_f1(detections[image], truth[image]) for image in truth}
    return Evaluation(overall, per_class, curves, images)


def evaluated(
    truth: Mapping[ImageId, Truth],
    detections: Mapping[ImageId, Detections],
    classes: Sequence[str],
) -> Any:
    """Run a COCOeval, hotcoco's or pycocotools', up to ``accumulate()``.

    Images are numbered in the order of their ids, by which COCOeval ranks equal scores, and
    categories are numbered like the classes.
    """
    images = sorted(truth)  # type: ignore[type-var]  # a dataset's ids are all int or all str
    real = Truth(*joined([truth[image] for image in images]))
    found = Detections(*joined([detections[image] for image in images]))
    objects: dict[str, Any] = {
        "image_ids": np.repeat(np.arange(len(images)), [len(truth[i].classes) for i in images]),
        "category_ids": real.classes,
        "boxes": real.xywh,
        "area": np.where(real.difficult, _OUTSIDE, real.areas),
        "iscrowd": real.crowd.astype(int),
    }
    numbers = np.repeat(np.arange(len(images)), [len(detections[i].scores) for i in images])
    results = np.column_stack([numbers, as_xywh(found.boxes), found.scores, found.classes])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        head = (
            [{"id": number} for number in range(len(images))],
            [{"id": label, "name": name} for label, name in enumerate(classes)],
        )
        if hotcoco is not None:
            annotated = hotcoco.COCO.from_arrays(*head, **objects)
            run = hotcoco.COCOeval(annotated, annotated.loadRes(results), "bbox")
        else:
            annotated = _pycocotools(*head, **objects)
            given = annotated.loadRes(results) if len(results) else _pycocotools(*head)
            run = COCOeval(annotated, given, "bbox")
        run.evaluate()
        run.accumulate()
    return run


def mean(run: Any, metric: Metric, classes: Any = slice(None)) -> float:
    """A metric in per cent over some class indices; NaN if none of them has ground truth."""
    values = run.eval["recall" if metric.recall else "precision"]  # IoU, [recall,] class, area, max
    area = run.params.areaRngLbl.index(metric.area)
    values = values[..., area, run.params.maxDets.index(metric.max_detections)]
    values = values[metric.thresholds()][..., classes]
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else float("nan")


def write_submission(
    file: str | Path, records: Records, predictions: Predictions, category_ids: Sequence[int]
) -> Path:
    """Write the JSON for COCO's server: ``[{image_id, category_id, bbox, score}, ...]``.

    Boxes are x y w h; all numbers have full precision.

    Args:
        file: file to write; its folder is created if absent.
        records: records of the images; they need no annotations.
        category_ids: the dataset's category id of every class index.

    Returns:
        The path of the file.

    Raises:
        ValueError: see `evaluate`.
    """
    results = [
        {"image_id": image, "category_id": int(category_ids[label]), "bbox": box, "score": score}
        for image, found in read_predictions(records, predictions, category_ids).items()
        for label, box, score in zip(
            found.classes, as_xywh(found.boxes).tolist(), found.scores.tolist()
        )
    ]
    write_whole(file, json.dumps(results))
    return Path(file)


def read_submission(
    file: str | Path, records: Records, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Read a file of :func:`write_submission` as predictions, one per record.

    Raises:
        ValueError: the file cannot be read, or it has an image or a category that is not in the
            dataset.
    """
    label = {number: index for index, number in enumerate(category_ids)}
    rows: dict[ImageId, list[tuple]] = {record["image_id"]: [] for record in records}
    try:
        for row in json.loads(Path(file).read_text()):
            x, y, width, height = row["bbox"]
            box = [x, y, x + width, y + height]
            rows[row["image_id"]].append((box, row["score"], label[row["category_id"]]))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}: evaluate the run again") from None
    except KeyError as error:
        raise ValueError(f"{file}: {error} is not in the dataset: evaluate the run again") from None
    return [
        {
            "image_id": image,
            "boxes": [box for box, _, _ in found],
            "scores": [score for _, score, _ in found],
            "classes": [index for _, _, index in found],
        }
        for image, found in rows.items()
    ]


def _pycocotools(images: list, categories: list, **columns: np.ndarray) -> COCO:
    """hotcoco's ``COCO.from_arrays`` for pycocotools."""
    coco = COCO()
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = zip(*(column.tolist() for column in columns.values()))
    # Ids start at 1: COCOeval treats id 0 as no match.
    annotations = [dict(zip(names, row)) | {"id": number} for number, row in enumerate(rows, 1)]
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco


def _confident_f1(detections: Detections, truth: Truth) -> float:
    outcome = match(detections.confident(), truth)
    hits = int(np.sum(outcome >= 0))
    wrong = int(np.sum(outcome == FALSE_POSITIVE))
    return image_f1(hits, wrong, int(np.sum(~truth.ignored)) - hits)
