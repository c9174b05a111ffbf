"""Match the detections in an image with its objects, as COCOeval does at one IoU threshold."""

import numpy as np

from .inputs import Detections, Truth

IOU = 0.5
FALSE_POSITIVE, IGNORED = -1, -2


def match(found: Detections, truth: Truth) -> np.ndarray:
    """Match detections at IoU `IOU`, each with the free object that it overlaps most.

    A detection prefers objects that count to ignored ones, and the later of two with the same IoU.
    A crowd matches any number of detections; its IoU is the share of the detection inside it.

    Args:
        found: by descending score, as :meth:`Detections.confident` returns them.

    Returns:
        (N,) int: the index of each detection's object, or FALSE_POSITIVE, or IGNORED if the object
        is difficult or a crowd.
    """
    outcome = np.full(len(found.scores), FALSE_POSITIVE)
    iou = _iou(found, truth)
    iou[found.classes[:, None] != truth.classes] = 0
    rows, columns = np.nonzero(iou >= IOU)
    ignored = truth.ignored
    order = np.lexsort((-columns, -iou[rows, columns], ignored[columns], rows))
    taken, last = set(), -1
    for row, column in zip(rows[order].tolist(), columns[order].tolist()):
        if row != last and (column not in taken or truth.crowd[column]):
            outcome[row] = IGNORED if ignored[column] else column
            taken.add(column)
            last = row
    return outcome


def _iou(found: Detections, truth: Truth) -> np.ndarray:
    a, b = found.boxes[:, None], truth.boxes[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides[..., 0].clip(0) * sides[..., 1].clip(0)
    own = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    other = truth.xywh[:, 2] * truth.xywh[:, 3]
    total = np.where(truth.crowd, own, own + other - shared)
    return np.divide(shared, total, out=np.zeros_like(shared), where=shared > 0)
