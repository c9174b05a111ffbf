"""The detection metrics, each defined once.

The evaluators compute the metrics listed here. The tables, ``results.json`` and the report page
show all metrics of an `Evaluation`. To add a metric, add one line here.
"""

from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.arange(50, 100, 5) / 100


@dataclass(frozen=True)
class Metric:
    """A metric: the average precision or the recall of a class. Metrics are averaged over classes.

    The VOC protocol supports ``iou`` only.

    Attributes:
        iou: the IoU threshold, one of `IOU_THRESHOLDS`; None averages over all of them.
        area: the size of the objects that count: COCO's "all", "small", "medium" or "large".
        max_detections: number of detections per image and class that count, by descending score:
            1, 10 or 100.
        recall: measure the maximum recall instead of the average precision.
    """

    iou: float | None = None
    area: str = "all"
    max_detections: int = 100
    recall: bool = False

    def thresholds(self) -> np.ndarray:
        """The indices into `IOU_THRESHOLDS`. Raises ValueError if ``iou`` is not one of them."""
        if self.iou is None:
            return np.arange(len(IOU_THRESHOLDS))
        found = np.flatnonzero(np.isclose(IOU_THRESHOLDS, self.iou))
        if not found.size:
            raise ValueError(f"IoU {self.iou} is not one of {IOU_THRESHOLDS.tolist()}")
        return found


# Detectron2's names. The recalls are named like its "AR@100" and "ARs@100" for proposals.
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
PER_CLASS_METRICS = ("AP", "AP50")  # both protocols also report these per class
