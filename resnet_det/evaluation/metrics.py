"""The detection metrics, each defined once.

The evaluators compute what stands here; the tables, ``results.json`` and the report page show
whatever an `Evaluation` holds. A new metric is one line here.
"""

from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100


@dataclass(frozen=True)
class Metric:
    """What a metric averages over; the mean over the classes comes on top.

    iou: the IoU threshold, one of `IOU_THRESHOLDS`; None averages over all of them.
    area: the objects that count: "all", "small", "medium" or "large", as COCO bounds them.
    max_detections: per image and class, those with the highest scores; COCO allows 1, 10 and 100.
    recall: the highest recall instead of the average precision.

    The VOC protocol knows ``iou`` only.
    """

    iou: float | None = None
    area: str = "all"
    max_detections: int = 100
    recall: bool = False

    def thresholds(self) -> np.ndarray:
        """The indices into `IOU_THRESHOLDS`; ValueError if the threshold is none of them."""
        if self.iou is None:
            return np.arange(len(IOU_THRESHOLDS))
        found = np.flatnonzero(np.isclose(IOU_THRESHOLDS, self.iou))
        if not found.size:
            raise ValueError(f"IoU {self.iou} is not one of {IOU_THRESHOLDS.tolist()}")
        return found


# Detectron2's names; the recalls are named after its "AR@100" and "ARs@100" of proposals.
COCO_METRICS = {
    "AP": Metric(),
    "AP50": Metric(iou=0.5),
    "AP75": Metric(iou=0.75),
    "APs": Metric(area="small"),
    "APm": Metric(area="medium"),
    "APl": Metric(area="large"),
    "AR@1": Metric(recall=True, max_detections=1),
    "AR@10": Metric(recall=True, max_detections=10),
    "AR@100": Metric(recall=True),
    "ARs@100": Metric(recall=True, area="small"),
    "ARm@100": Metric(recall=True, area="medium"),
    "ARl@100": Metric(recall=True, area="large"),
}
VOC_METRICS = {name: COCO_METRICS[name] for name in ("AP", "AP50", "AP75")}
PER_CLASS_METRICS = ("AP", "AP50")  # also given per class, by both protocols
