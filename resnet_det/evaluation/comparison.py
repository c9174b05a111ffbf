"""Compare two detectors that were tested on the same images, by COCO's AP."""

import math
from collections.abc import Sequence

from . import coco_ap
from .inputs import Predictions, Records, read_predictions, read_truth
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
        Markdown tables: the metrics with the difference B - A and its 95% interval, the AP of every
        class, and the images whose F1 score changed most.

    Raises:
        ValueError: see `coco_ap.evaluate`; or hotcoco is not installed.
    """
    if coco_ap.hotcoco is None:
        raise ValueError("comparing needs hotcoco: pip install hotcoco")
    truth = read_truth(records, classes)
    found = [read_predictions(records, each, classes) for each in predictions]
    runs = [coco_ap.evaluated(truth, each, classes) for each in found]
    a, b = (coco_ap.summary(run, truth, each, classes) for run, each in zip(runs, found))
    intervals = coco_ap.hotcoco.compare(*runs, n_bootstrap=samples)["ci"]

    def row(name: str, before: float, after: float) -> list:
        return [name, before, after, after - before]

    overall = [
        [
            *row(name, a.overall[name], b.overall[name]),
            *(100 * intervals[name][bound] for bound in ("lower", "upper")),
        ]
        for name in METRICS
        if not math.isnan(a.overall[name])
    ]
    per_class = [row(name, a.per_class[name]["AP"], b.per_class[name]["AP"]) for name in classes]
    # Without objects and detections, the F1 is undefined and the image is right.
    changed = [
        row(
            str(image),
            *(100 * (1 if math.isnan(e.images[image]) else e.images[image]) for e in (a, b)),
        )
        for image in truth
    ]
    changed = sorted((r for r in changed if r[3]), key=lambda r: -abs(r[3]))[:images]
    return "\n".join(
        [
            markdown_table(overall, ["", "A", "B", "B - A", "from", "to"], 2),
            markdown_table(per_class, ["AP of class", "A", "B", "B - A"]),
            markdown_table(changed, ["F1 of image", "A", "B", "B - A"]),
        ]
    )
