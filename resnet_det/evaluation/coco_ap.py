"""COCO average precision: pycocotools' COCOeval on records and predictions.

COCOeval defines the protocol: 10 IoU thresholds, 101 recall points, area ranges, 1, 10 or 100
detections per image, and crowds that match any number of detections.
"""

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .inputs import (
    SCORE_THRESH,
    Evaluation,
    ImageId,
    Predictions,
    Records,
    image_f1,
    read_predictions,
    read_truth,
)
from .metrics import COCO_METRICS, PER_CLASS_METRICS, Metric


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
        ValueError: an image is missing, repeated or unknown, a class index is out of range, or an
            array is malformed or not finite. The message names the image and the value.
    """
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)
    # COCOeval ranks equal scores by image id, so images are numbered in the order of their ids.
    images = sorted(truth)  # type: ignore[type-var]  # a dataset's ids are all int or all str
    objects, results = [], []
    for number, image in enumerate(images):
        real, found = truth[image], detections[image]
        for label, box, area, crowd, difficult in zip(
            real.classes, real.xywh, real.areas, real.crowd, real.difficult
        ):
            objects.append(_annotation(number, label, box, area, crowd) | {"difficult": difficult})
        for label, box, score in zip(found.classes, _xywh(found.boxes), found.scores):
            results.append(_annotation(number, label, box, box[2] * box[3]) | {"score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        sizes = len(images), len(classes)
        run = _BoxEvaluation(_coco(*sizes, objects), _coco(*sizes, results), "bbox")
        run.evaluate()
        run.accumulate()

    overall = {name: _mean(run, metric) for name, metric in COCO_METRICS.items()}
    per_class = {
        name: {key: _mean(run, COCO_METRICS[key], [label]) for key in PER_CLASS_METRICS}
        for label, name in enumerate(classes)
    }
    # Shape (recall, class): IoU 0.5, all areas, 100 detections per image.
    precision = run.eval["precision"][0, :, :, 0, -1]
    curves = {
        name: (run.params.recThrs.copy(), precision[:, label].copy())
        for label, name in enumerate(classes)
        if precision[0, label] > -1
    }
    return Evaluation(overall, per_class, curves, _images_f1(run, images, truth))


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
            found.classes, _xywh(found.boxes).tolist(), found.scores.tolist()
        )
    ]
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results))
    return file


class _BoxEvaluation(COCOeval):
    def _prepare(self) -> None:
        super()._prepare()  # which sets "ignore" to "iscrowd", whatever the annotation says
        for objects in self._gts.values():
            for each in objects:
                each["ignore"] = each["ignore"] or each["difficult"]


def _annotation(
    image: int, label: int, box: np.ndarray, area: float, crowd: bool = False
) -> dict[str, Any]:
    """COCO's annotation dict without its id. pycocotools needs boxes as lists of plain numbers."""
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [float(value) for value in box],
        "area": float(area),
        "iscrowd": int(crowd),
    }


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _coco(images: int, classes: int, annotations: list[dict[str, Any]]) -> COCO:
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number  # from 1: COCOeval treats id 0 as no match
    coco = COCO()
    coco.dataset = {
        "images": [{"id": index} for index in range(images)],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _mean(run: COCOeval, metric: Metric, classes: Any = slice(None)) -> float:
    """A metric in per cent over some class indices; NaN if none of them has ground truth."""
    values = run.eval["recall" if metric.recall else "precision"]  # IoU, [recall,] class, area, max
    area = run.params.areaRngLbl.index(metric.area)
    values = values[..., area, run.params.maxDets.index(metric.max_detections)]
    values = values[metric.thresholds()][..., classes]
    values = values[values > -1]
    return 100 * float(values.mean()) if values.size else float("nan")


def _images_f1(
    run: COCOeval, images: Sequence[ImageId], order: Iterable[ImageId]
) -> dict[ImageId, float]:
    """The F1 score of every image, from COCOeval's matches at IoU 0.5 over all areas."""
    counts = {image: np.zeros(3, dtype=int) for image in images}
    for match in run.evalImgs:  # one per class, area range and image
        if match is None or match["aRng"] != run.params.areaRng[0]:
            continue
        counted = (np.array(match["dtScores"]) >= SCORE_THRESH) & (match["dtIgnore"][0] == 0)
        hit = match["dtMatches"][0] > 0
        hits, objects = np.sum(counted & hit), np.sum(np.array(match["gtIgnore"]) == 0)
        counts[images[match["image_id"]]] += [hits, np.sum(counted & ~hit), objects - hits]
    return {image: image_f1(*counts[image].tolist()) for image in order}
