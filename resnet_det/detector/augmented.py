"""Test-time augmentation (TEST.AUG), as Detectron2's ``GeneralizedRCNNWithTTA`` computes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from .appendix import Detector, Improved, Size, Thresholds, suppress, vector

# Detectron2 runs as many copies of an image together. The smaller ones are padded, which changes
# their features near the border, so another number would give slightly other boxes.
COPIES = 3
LEAST_SCORE = 1e-8  # a merged detection's score must exceed it, as in Detectron2


class Augmented(nn.Module):
    """A detector that is tested on resized and mirrored copies of each image.

    It detects objects in each copy. Their boxes move to the original image, and NMS per class
    merges the detections of all copies.

    Args:
        detector: a module that satisfies :class:`.appendix.Detector`.
        thresholds: which predictions become detections of a copy. The NMS threshold and the maximum
            number hold again when they are merged.
    """

    def __init__(self, detector: Detector, thresholds: Thresholds) -> None:
        super().__init__()
        self.model, self.thresholds = Improved([detector], thresholds), thresholds

    def forward(self, batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Samples with ``copies``, ``height`` and ``width`` (:class:`..data.detection.mapper.Copies`)
        -> dicts with ``boxes`` (N, 4) in pixels of the original image, ``scores`` (N,) and
        ``classes`` (N,)."""
        return [self._detect(s["copies"], (s["height"], s["width"])) for s in batch]

    def _detect(self, copies: Sequence[Mapping[str, Any]], original: Size) -> dict[str, Tensor]:
        found = []
        for first in range(0, len(copies), COPIES):
            part = copies[first : first + COPIES]
            sizes, detections = self.model.detect(part)
            for copy, size, (boxes, *rest) in zip(part, sizes, detections):
                found.append((original_boxes(boxes, size, copy["mirrored"], original), *rest))
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*found))
        seen = scores > LEAST_SCORE
        merged = clip_boxes_to_image(boxes[seen], original), scores[seen], classes[seen]
        keep = suppress(*merged, self.thresholds)
        return dict(zip(("boxes", "scores", "classes"), (part[keep] for part in merged)))


def original_boxes(boxes: Tensor, size: Size, mirrored: bool, original: Size) -> Tensor:
    """Move boxes (N, 4) of a copy to the original image.

    Args:
        size, original: (height, width) of the copy and of the original image.
        mirrored: whether the copy is mirrored horizontally.
    """
    (h, w), (height, width) = size, original
    if mirrored:
        x0, y0, x1, y1 = boxes.unbind(1)
        boxes = torch.stack((w - x1, y0, w - x0, y1), 1)
    return boxes * vector(boxes, [width / w, height / h]).repeat(2)
