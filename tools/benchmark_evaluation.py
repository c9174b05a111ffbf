"""Compare the time of the evaluation with that of plain pycocotools or Detectron2's VOC evaluator.

    python tools/benchmark_evaluation.py coco --images 5000
    python tools/benchmark_evaluation.py voc --images 4952

Draws a dataset of COCO's or VOC's number of classes and density, with 100 detections per image. One
process evaluates it both ways in turn, and the table shows the medians. The AP must be equal (for
VOC up to 0.1, because Detectron2 rounds boxes and scores). VOC needs Detectron2, whose reading of
the annotation files is not counted. Prints Markdown.
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_det.commands.cli import positive
from resnet_det.evaluation import coco_ap, voc_ap
from resnet_det.evaluation.tables import markdown_table
from resnet_det.records import BoxMode

COCO_CLASSES = [f"class{number}" for number in range(80)]
VOC_CLASSES = COCO_CLASSES[:20]


def draw(images, classes, objects, seed=0):
    """Records and predictions, half of the detections on an object.

    Args:
        classes: number of classes.
        objects: mean number of objects per image. Their corners are whole numbers, as in VOC.
    """
    rng = np.random.default_rng(seed)
    records, predictions = [], []
    for image in range(images):
        count = rng.poisson(objects)
        corner, size = rng.random((count, 2)) * 400, 8 * np.exp(rng.random((count, 2)) * 3.3)
        boxes, labels = np.hstack([corner, size]).round(), rng.integers(0, classes, count)
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
                "classes": np.append(labels[near], rng.integers(0, classes, len(stray))),
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
            "categories": [{"id": label} for label in range(len(COCO_CLASSES))],
            "annotations": annotations,
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return 100 * run.stats[0]


def detectron2_evaluator(records, predictions, folder):
    """Detectron2's evaluator of VOC, as a function, with the ground truth written as XML files."""
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
    from detectron2.structures import Boxes, Instances

    folders = [Path(folder) / "Annotations", Path(folder) / "ImageSets" / "Main"]
    for each in folders:
        each.mkdir(parents=True)
    (folders[1] / "test.txt").write_text("".join(f"{r['image_id']}\n" for r in records))
    for record in records:
        objects = []
        for each in record["annotations"]:
            x, y, width, height = (int(number) for number in each["bbox"])
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
            box = "".join(f"<{name}>{value}</{name}>" for name, value in corners.items())
            objects.append(
                f"<object><name>{VOC_CLASSES[each['category_id']]}</name><pose/>"
                f"<truncated>0</truncated><difficult>{each['iscrowd']}</difficult>"
                f"<bndbox>{box}</bndbox></object>"
            )
        file = folders[0] / f"{record['image_id']}.xml"
        file.write_text(f"<annotation>{''.join(objects)}</annotation>")
        pascal_voc_evaluation.parse_rec(str(file))  # cached from here on
    metadata = MetadataCatalog.get("drawn_voc_test")
    metadata.set(dirname=str(folder), split="test", year=2012, thing_classes=VOC_CLASSES)
    logging.disable()
    outputs = [
        {
            "instances": Instances(
                (600, 600),
                pred_boxes=Boxes(torch.from_numpy(found["boxes"])),
                scores=torch.from_numpy(found["scores"]),
                pred_classes=torch.from_numpy(found["classes"]),
            )
        }
        for found in predictions
    ]

    def evaluate(records, _):
        evaluator = PascalVOCDetectionEvaluator("drawn_voc_test")
        evaluator.reset()
        evaluator.process(records, outputs)
        return evaluator.evaluate()["bbox"]["AP"]

    return evaluate


def timed(function, *args):
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("protocol", choices=("coco", "voc"))
    parser.add_argument("--images", type=positive, default=5000)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.protocol == "coco":
            data = draw(args.images, len(COCO_CLASSES), 7.3)
            name, reference, tolerance = "pycocotools", plain_pycocotools, 0

            def evaluate(*data):
                return coco_ap.evaluate(*data, COCO_CLASSES)
        else:
            data = draw(args.images, len(VOC_CLASSES), 2.4)
            name, reference, tolerance = "Detectron2", detectron2_evaluator(*data, folder), 0.1

            def evaluate(*data):
                return voc_ap.evaluate(*data, VOC_CLASSES, "area")

        seconds, reference_seconds = [], []
        for _ in range(args.rounds):
            result, duration = timed(evaluate, *data)
            seconds.append(duration)
            expected, duration = timed(reference, *data)
            reference_seconds.append(duration)
            if not abs(result.metrics["AP"] - expected) <= tolerance:
                raise SystemExit(f"AP is {result.metrics['AP']}, but {name}'s is {expected}")
    ratios = [b / a for a, b in zip(seconds, reference_seconds)]
    row = [
        *(args.images, expected, statistics.median(reference_seconds), statistics.median(seconds)),
        *(statistics.median(ratios), min(ratios), max(ratios)),
    ]
    header = ["images", "AP", f"{name} (s)", "resnet_det (s)", "times as fast", "least", "most"]
    print(markdown_table([row], header, 2))


if __name__ == "__main__":
    main()
