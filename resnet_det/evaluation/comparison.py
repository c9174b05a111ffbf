"""Compare two detectors that were tested on the same images, by COCO's AP."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from . import coco_ap
from .inputs import Evaluation, ImageId, Predictions, Records, read_predictions, read_truth
from .tables import markdown_table

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def compare(
    records: Records,
    predictions: Sequence[Predictions],
    classes: Sequence[str],
    samples: int = 1000,
    images: int = 10,
) -> str:
    """Compare the predictions of two detectors, A and B.

    Args:
        samples: number of bootstrap samples. Each draws the images with replacement, the same ones
            for A and B.
        images: number of images to list.

    Returns:
        Markdown tables: the metrics with the difference B - A and its 95% interval, the same of the
        AP of every class, and the images whose F1 score changed most.

    Raises:
        ValueError: see `coco_ap.evaluate`; or hotcoco is not installed.
    """
    if coco_ap.hotcoco is None:
        raise ValueError("comparing needs hotcoco: pip install hotcoco")
    truth = read_truth(records, classes)
    found = [read_predictions(records, each, classes) for each in predictions]
    runs = [coco_ap.evaluated(truth, each, classes) for each in found]
    a, b = (coco_ap.summary(run, truth, each, classes) for run, each in zip(runs, found))

    ends = _intervals(runs, samples)
    overall = [
        _row(name, a.overall[name], b.overall[name]) + ends[name]
        for name in METRICS
        if not math.isnan(a.overall[name])
    ]
    per_class = []
    for label, name in enumerate(classes):
        interval = [math.nan] * 2
        if not math.isnan(a.per_class[name]["AP"]):
            alone = _only(truth, label)
            own = [coco_ap.evaluated(alone, _only(each, label), [name]) for each in found]
            interval = _intervals(own, samples)["AP"]
        per_class.append(_row(name, a.per_class[name]["AP"], b.per_class[name]["AP"]) + interval)
    changed = _changed_images(a, b)[:images]
    header = ["A", "B", "B - A", "from", "to"]
    return "\n".join(
        [
            markdown_table(overall, ["", *header], 2),
            markdown_table(per_class, ["AP of class", *header]),
            markdown_table(changed, ["F1 of image", *header[:3]])
            if changed
            else "The F1 score of no image changed.\n",
        ]
    )


def _row(name: str, a: float, b: float) -> list[Any]:
    return [name, a, b, b - a]


def _intervals(runs: Sequence[Any], samples: int) -> dict[str, list[float]]:
    """The 95% interval of the difference of each metric, from two COCOevals."""
    found = coco_ap.hotcoco.compare(*runs, n_bootstrap=samples)["ci"]
    return {name: [100 * found[name][end] for end in ("lower", "upper")] for name in METRICS}


def _changed_images(a: Evaluation, b: Evaluation) -> list[list[Any]]:
    """A row per image whose F1 score differs, the largest difference first."""
    # Without objects and detections, the F1 is undefined and the image is right.
    scores = [
        {image: 100 * (1 if math.isnan(f1) else f1) for image, f1 in each.images.items()}
        for each in (a, b)
    ]
    rows = [_row(str(image), f1, scores[1][image]) for image, f1 in scores[0].items()]
    return sorted((row for row in rows if row[3]), key=lambda row: -abs(row[3]))


def _only(images: Mapping[ImageId, Any], label: int) -> dict[ImageId, Any]:
    """The objects or detections of one class, whose index becomes 0."""
    kept = {}
    for image, of_image in images.items():
        rows = of_image.classes == label
        part = type(of_image)(*(column[rows] for column in of_image))
        kept[image] = part._replace(classes=part.classes * 0)
    return kept
