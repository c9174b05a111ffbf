"""COCO average precision: pycocotools' COCOeval on our records and predictions.

The protocol (10 IoU thresholds, 101 recall points, area ranges, 1/10/100 detections per image,
crowds that take any number of detections) is pycocotools' own; here only the two languages meet.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from . import CONFIDENT, Evaluation, image_f1, read_predictions, read_truth

# COCOeval.stats in order. Detectron2's names; the recalls after its "AR@100", "ARs@100" of proposals.
STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
STATS += ("AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100")


def evaluate(records, predictions, classes):
    """Evaluate boxes by the COCO protocol.

    Args:
        records, predictions: lists of dicts, see the package's docstring; exactly one prediction
            for every record. An annotation without ``area`` has its box's; a difficult one is
            ignored like an object outside the area range: one detection may take it, unpunished.
        classes: names, indexed by ``category_id`` and by the predictions' ``classes``.

    Returns:
        Evaluation with metrics AP, AP50, AP75, APs, APm, APl, the six recalls AR@1 ... ARl@100, and
        for every class "AP-<class>" and "AP50-<class>". What has no ground truth is NaN; objects
        that nothing was detected for count 0 (Detectron2 gives NaN if nothing at all was detected).

    Raises:
        ValueError: naming the image and value, for a missing, repeated or unknown image, a class
            index out of range, a malformed array, NaN or infinity.
    """
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)
    # COCOeval ranks equal scores by image id: number the images in the order of their ids.
    images = sorted(truth)
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
        run.summarize()

    metrics = {name: _percent(value) for name, value in zip(STATS, run.stats)}
    # [IoU, recall, class], of all areas and with 100 detections per image
    precision = run.eval["precision"][:, :, :, 0, -1]
    for prefix, rows in (("AP", slice(None)), ("AP50", slice(0, 1))):
        for label, name in enumerate(classes):
            values = precision[rows, :, label]
            values = values[values > -1]
            metrics[f"{prefix}-{name}"] = _percent(values.mean() if values.size else -1)
    curves = {
        name: (run.params.recThrs.copy(), precision[0, :, label].copy())
        for label, name in enumerate(classes)
        if precision[0, 0, label] > -1
    }
    return Evaluation(metrics, curves, _f1(run, images, list(truth)))


def write_submission(file, records, predictions, category_ids):
    """Write the server's results json: ``[{image_id, category_id, bbox: [x, y, w, h], score}]``.

    ``category_ids`` holds the data set's own id of every class index. Full precision. The records
    need no annotations. Raises ValueError as `evaluate` does. Returns the path.
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
    def _prepare(self):
        super()._prepare()  # which sets "ignore" to "iscrowd", whatever the annotation says
        for objects in self._gts.values():
            for each in objects:
                each["ignore"] = each["ignore"] or each["difficult"]


def _annotation(image, label, box, area, crowd=False):
    """COCO's dict, without its id, in plain numbers: pycocotools takes no numpy arrays for boxes."""
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [float(value) for value in box],
        "area": float(area),
        "iscrowd": int(crowd),
    }


def _xywh(boxes):
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


def _coco(images, classes, annotations):
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number  # from 1: COCOeval takes a match with id 0 for no match
    coco = COCO()
    coco.dataset = {
        "images": [{"id": index} for index in range(images)],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _percent(value):
    return float(value) * 100 if value > -1 else float("nan")


def _f1(run, images, order):
    """F1 of every image from COCOeval's own matches at IoU 0.5 over all areas."""
    counts = dict.fromkeys(images, (0, 0, 0))
    for match in run.evalImgs:
        if match is None or match["aRng"] != run.params.areaRng[0]:
            continue
        counted = (np.array(match["dtScores"]) >= CONFIDENT) & ~match["dtIgnore"][0].astype(bool)
        hit = match["dtMatches"][0] > 0
        hits, objects = int(np.sum(counted & hit)), int(np.sum(np.array(match["gtIgnore"]) == 0))
        image = images[match["image_id"]]
        more = hits, int(np.sum(counted & ~hit)), objects - hits
        counts[image] = tuple(map(sum, zip(counts[image], more)))
    return {image: image_f1(*counts[image]) for image in order}
