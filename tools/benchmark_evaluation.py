"""Compare the time of the COCO evaluation with that of plain pycocotools.

    python tools/benchmark_evaluation.py --images 5000

Draws a dataset of 80 classes and COCO's density, with 100 detections per image. One process
evaluates it, then lets pycocotools evaluate it, then evaluates it again. The AP must be equal. Prints
Markdown.
"""

import argparse
import contextlib
import io
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_det.evaluation import coco_ap
from resnet_det.evaluation.tables import markdown_table
from resnet_det.records import BoxMode

CLASSES = [f"class {number}" for number in range(80)]


def draw(images, seed=0):
    """Records and predictions: seven objects per image, half the detections on one of them."""
    rng = np.random.default_rng(seed)
    records, predictions = [], []
    for image in range(images):
        count = rng.poisson(7.3)
        corner, size = rng.random((count, 2)) * 400, 8 * np.exp(rng.random((count, 2)) * 3.3)
        boxes, labels = np.hstack([corner, size]), rng.integers(0, 80, count)
        annotations = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": label,
                "iscrowd": int(rng.random() < 0.01),
                "area": 0.6 * box[2] * box[3],
            }
            for box, label in zip(boxes.tolist(), labels.tolist())
        ]
        records.append({"image_id": image, "annotations": annotations})
        near = rng.integers(0, count, 50 if count else 0)
        found = boxes[near] + rng.normal(0, 0.1, (len(near), 4)) * boxes[near][:, [2, 3, 2, 3]]
        stray = rng.random((100 - len(near), 4)) * [400, 400, 200, 200] + [0, 0, 4, 4]
        found = np.vstack([found, stray])
        found[:, 2:] = found[:, :2] + np.abs(found[:, 2:])
        predictions.append(
            {
                "image_id": image,
                "boxes": found.astype(np.float32),
                "scores": rng.random(100).astype(np.float32),
                "classes": np.append(labels[near], rng.integers(0, 80, len(stray))),
            }
        )
    return records, predictions


def plain_pycocotools(records, predictions):
    """What Detectron2's evaluator does without its C++ code: dicts, then COCOeval."""
    annotations, results = [], []
    for record, found in zip(records, predictions):
        image = {"image_id": record["image_id"]}
        for each in record["annotations"]:
            annotations.append(image | each | {"id": len(annotations) + 1})
        boxes = found["boxes"].astype(float)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), found["scores"].tolist(), found["classes"]):
            results.append(image | {"bbox": box, "score": score, "category_id": int(label)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": record["image_id"]} for record in records],
            "categories": [{"id": label} for label in range(len(CLASSES))],
            "annotations": annotations,
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return 100 * run.stats[0]


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    args = parser.parse_args()
    data = draw(args.images)
    ours, seconds = timed(coco_ap.evaluate, *data, CLASSES)
    theirs, reference = timed(plain_pycocotools, *data)
    again = timed(coco_ap.evaluate, *data, CLASSES)[1]
    if ours.metrics["AP"] != theirs:
        raise SystemExit(f"AP is {ours.metrics['AP']}, but pycocotools' is {theirs}")
    seconds = (seconds + again) / 2
    row = [args.images, theirs, reference, seconds, reference / seconds]
    header = ["images", "AP", "pycocotools (s)", "resnet_det (s)", "times as fast"]
    print(markdown_table([row], header, 2))


if __name__ == "__main__":
    main()
