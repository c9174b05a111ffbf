"""Non-maximum suppression that can be exported."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms


def nms_per_class(
    boxes: Tensor, scores: Tensor, classes: Tensor | None, threshold: float
) -> Tensor:
    """torchvision's ``batched_nms``, which branches on the number of boxes and therefore cannot be
    exported. An export shifts the boxes of each class apart instead, as ``batched_nms`` does for
    few boxes.

    Args:
        boxes: (N, 4), clipped to the image.
        scores: (N,).
        classes: int64 (N,). Boxes of different classes do not suppress each other. None means one
            class.
        threshold: a box is dropped if its IoU with a better one exceeds this.

    Returns:
        Indices of the boxes to keep, by descending score.
    """
    if classes is None:
        return nms(boxes, scores, threshold)
    if not torch.compiler.is_compiling():
        return batched_nms(boxes, scores, classes, threshold)
    zero = boxes.new_zeros(1)  # the maximum of no boxes is undefined
    side = torch.cat((boxes.flatten(), zero)).max() + 1
    return nms(boxes + (classes * side)[:, None], scores, threshold)
