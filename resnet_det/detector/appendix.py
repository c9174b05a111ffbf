"""The improvements of the paper's Appendix B (Table 9), for any detector of the contract below.

* Global context (training and test): the head also processes the whole image as a region, and its
  vector is concatenated to each region's vector before the sibling layers.
* Box refinement (test): each region is classified a second time from the regressed box of its best
  class. NMS and then box voting merge the old and the new predictions.
* Multi-scale testing: the proposals come from one scale. Each region is pooled and run through the
  head at the two scales where its area is closest to 224^2 pixels. Its vector is the element-wise
  maximum of the two (maxout).
* Ensembles (test): each detector scores the union of all detectors' proposals, and the scores and
  boxes are averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

from .nms import nms_per_class

CANONICAL_PIXELS = 224**2  # the size of the classifier's training images
VOTING_IOU = 0.5  # as in MR-CNN

Size = tuple[int, int]  # (height, width) in pixels
Detections = tuple[Tensor, Tensor, Tensor]  # boxes (N, 4), scores (N,), classes (N,)


class Images(Protocol):
    """A batch of images: torchvision's or Detectron2's ``ImageList``."""

    image_sizes: list[Size]


class Detector(Protocol):
    """The steps of a detector, which both engines implement. Boxes are in pixels of the input."""

    training: bool

    @property
    def context(self) -> bool:
        """Whether the sibling layers take each region's vector followed by the whole image's."""

    def trunk(self, pictures: Sequence[Tensor]) -> tuple[Any, Any]:
        """Compute the features: uint8 pictures (3, h, w) -> (:class:`Images`, any type)."""

    def propose(self, images: Any, features: Any, batch: Sequence[Mapping]) -> list[Tensor]:
        """Return the proposals (N_i, 4) of each image; ``batch`` may hold precomputed ones."""

    def regions(self, features: Any, boxes: list[Tensor]) -> Tensor:
        """Pool the boxes (N_i, 4) of each image and run the head: -> vectors (sum N_i, C)."""

    def classify(
        self, vectors: Tensor, boxes: list[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return scores (N_i, K), without the background, and boxes (N_i, K, 4) of each image."""

    def finish(
        self, batch: Sequence[Mapping], sizes: list[Size], found: list[Detections]
    ) -> list[Any]:
        """Return the detector's own output, with boxes in pixels of the original images."""


class Level(NamedTuple):
    """One scale of a batch: the trunk's features, and the size of each image in pixels."""

    features: Any
    sizes: list[Size]


@dataclass(frozen=True)
class Thresholds:
    """The thresholds by which predictions become the detections of an image.

    Attributes:
        score_thresh: a detection's score must exceed it.
        nms_thresh: NMS drops a box that overlaps a better one of the same class by at least this
            IoU.
        max_detections: maximum number of detections per image; no limit if negative.
    """

    score_thresh: float
    nms_thresh: float
    max_detections: int


def vector(like: Tensor, values: Sequence[float]) -> Tensor:
    """``like.new_tensor(values)``, for values that are symbols while the detector is exported."""
    return torch.stack([like.new_full((), value) for value in values])


def with_context(
    vectors: Callable[[list[Tensor]], Tensor], boxes: Sequence[Tensor], sizes: Sequence[Size]
) -> Tensor:
    """Global context: append to each region's vector the vector of the whole image.

    Args:
        vectors: function that maps a list of boxes (N_i, 4) to vectors (sum N_i, C).
        boxes: boxes (N_i, 4) of each image.
        sizes: (height, width) of each image, in the same pixels as the boxes.

    Returns:
        (sum N_i, 2 C)
    """
    whole = [vector(b, [0, 0, w, h])[None] for b, (h, w) in zip(boxes, sizes)]
    x = vectors([torch.cat(pair) for pair in zip(boxes, whole)])
    images = x.split([b.shape[0] + 1 for b in boxes])
    return torch.cat([torch.cat((v[:-1], v[-1:].expand_as(v[:-1])), 1) for v in images])


def two_scales(pixels: Tensor) -> Tensor:
    """Choose each region's two scales: the adjacent ones at which its area is closest to 224^2.

    Of two equally close scales the smaller one is chosen.

    Args:
        pixels: area (S, R) of each of R regions at S ascending scales.

    Returns:
        int64 (2, R), indices of the scales.
    """
    return (pixels - CANONICAL_PIXELS).abs().argsort(dim=0, stable=True)[:2]


def refined(scores: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """The box of each region's best class, clipped to the image: (R, K), (R, K, 4) -> (R, 4).

    A region whose box is not finite is dropped.
    """
    best = boxes[torch.arange(len(boxes), device=boxes.device), scores.argmax(1)]
    return clip_boxes_to_image(best[best.isfinite().all(1)], size)


def vote(keep: Tensor, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
    """Box voting (MR-CNN): average each kept box with its neighbours, weighted by their scores.

    The neighbours of a box are the boxes of its class with an IoU of at least 0.5 with it.

    Args:
        keep: indices of the boxes that NMS kept.
        boxes, scores, classes: the inputs of NMS, (R, 4), (R,), (R,).

    Returns:
        (len(keep), 4)
    """
    near = (box_iou(boxes[keep], boxes) >= VOTING_IOU) & (classes[keep][:, None] == classes)
    near[torch.arange(len(keep), device=keep.device), keep] = True  # an empty box overlaps nothing
    weights = near * scores
    return weights @ boxes / weights.sum(1, keepdim=True)


def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, thresholds: Thresholds) -> Tensor:
    """NMS per class: the indices of the best detections of one image, by descending score.

    Args:
        boxes, scores, classes: (N, 4), clipped to the image, (N,), (N,).
    """
    keep = nms_per_class(boxes, scores, classes, thresholds.nms_thresh)
    return keep[: thresholds.max_detections] if thresholds.max_detections >= 0 else keep


def select(
    scores: Tensor, boxes: Tensor, size: Size, thresholds: Thresholds, voting: bool = False
) -> Detections:
    """Select the detections of one image: score threshold, NMS per class, then the best ones.

    Args:
        scores: (R, K), without the background.
        boxes: (R, K, 4).
        size: (height, width) of the image, to which the boxes are clipped.
        voting: apply :func:`vote`, over all boxes above the score threshold.

    Returns:
        boxes (N, 4), scores (N,), classes (N,), by descending score.
    """
    finite = boxes.flatten(1).isfinite().all(1) & scores.isfinite().all(1)
    scores, boxes = scores[finite], clip_boxes_to_image(boxes[finite], size)
    region, label = torch.nonzero(scores > thresholds.score_thresh, as_tuple=True)
    boxes, scores = boxes[region, label], scores[region, label]
    keep = suppress(boxes, scores, label, thresholds)
    chosen = vote(keep, boxes, scores, label) if voting else boxes[keep]
    return chosen, scores[keep], label[keep]


@dataclass(frozen=True)
class View:
    """A batch as seen by one detector of an ensemble, at one or several scales.

    Attributes:
        order: the detector's index of each class, or None for its own order.
    """

    detector: Detector
    levels: list[Level]
    order: list[int] | None = None

    def predict(
        self, boxes: list[Tensor], sizes: list[Size]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Boxes (N_i, 4) in pixels of ``sizes`` -> scores (N_i, K), boxes (N_i, K, 4)."""
        vectors = partial(self.vectors, sizes)
        x = with_context(vectors, boxes, sizes) if self.detector.context else vectors(boxes)
        scores, found = self.detector.classify(x, boxes)
        if self.order is not None:
            scores, found = ([x[:, self.order] for x in part] for part in (scores, found))
        return scores, found

    def vectors(self, sizes: list[Size], boxes: list[Tensor]) -> Tensor:
        """The vectors (sum N_i, C) of ``boxes`` in pixels of ``sizes``: the maxout of two
        scales."""
        regions, levels = self.detector.regions, self.levels
        if [level.sizes for level in levels] == [sizes] or not sum(map(len, boxes)):
            return regions(levels[0].features, boxes)
        scaled = [
            [b * b.new_tensor([w / v, h / u] * 2) for b, (h, w), (u, v) in zip(boxes, own, sizes)]
            for _, own in levels
        ]
        chosen = two_scales(torch.stack([box_area(torch.cat(b)) for b in scaled]))
        parts = []
        for i, (level, here) in enumerate(zip(levels, scaled)):
            wanted = (chosen == i).any(0)
            if wanted.any():
                masks = wanted.split([len(b) for b in boxes])
                picked = [b[mask] for b, mask in zip(here, masks)]
                parts.append((wanted, regions(level.features, picked)))
        wanted, x = parts[0]
        best = x.new_full((len(wanted), x.shape[1]), -torch.inf)
        for wanted, x in parts:
            best[wanted] = torch.maximum(best[wanted], x)
        return best


def mean_predictions(
    views: Sequence[View], boxes: list[Tensor], sizes: list[Size]
) -> list[tuple[Tensor, Tensor]]:
    """Scores (N_i, K) and boxes (N_i, K, 4) of each image, averaged over an ensemble."""
    scores, found = zip(*(view.predict(boxes, sizes) for view in views))
    return [
        (torch.stack(s).mean(0), torch.stack(b).mean(0))
        for s, b in zip(zip(*scores), zip(*found))
    ]  # fmt: skip


class Improved(nn.Module):
    """One detector or an ensemble, tested with box refinement or at several scales.

    Args:
        detectors: modules that satisfy :class:`Detector`. The output has the form of the first
            one's.
        thresholds: which predictions become detections.
        refine: use box refinement and box voting.
        multi_scale: each sample holds ``scales``, its image at ascending sizes, beside ``image``.
        orders: for each detector, its index of each of the first detector's classes, or None if the
            order is the same.

    Raises:
        ValueError: when called with ``multi_scale``, if a sample has no ``scales``.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        thresholds: Thresholds,
        *,
        refine: bool = False,
        multi_scale: bool = False,
        orders: Sequence[list[int] | None] | None = None,
    ) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(cast("Sequence[nn.Module]", detectors))
        self.training = detectors[0].training
        self.thresholds, self.refine, self.multi_scale = thresholds, refine, multi_scale
        self.orders = orders or [None] * len(detectors)

    def forward(self, batch: Sequence[Mapping]) -> list[Any]:
        return cast(Detector, self.detectors[0]).finish(batch, *self.detect(batch))

    def detect(self, batch: Sequence[Mapping]) -> tuple[list[Size], list[Detections]]:
        """The size of each input image, and its detections in pixels of it."""
        proposals, views = [], []
        for module, order in zip(self.detectors, self.orders):
            detector = cast(Detector, module)
            images, features = detector.trunk([x["image"] for x in batch])
            sizes = images.image_sizes
            proposals.append(detector.propose(images, features, batch))
            levels = [Level(features, sizes)]
            if self.multi_scale:
                levels = _at_scales(detector, batch, *levels)
            views.append(View(detector, levels, order))
        boxes = [torch.cat(of_image) for of_image in zip(*proposals)]
        found = mean_predictions(views, boxes, sizes)
        if self.refine:
            again = [refined(s, b, size) for (s, b), size in zip(found, sizes)]
            second = mean_predictions(views, again, sizes)
            found = [
                (torch.cat((s, s2)), torch.cat((b, b2)))
                for (s, b), (s2, b2) in zip(found, second)
            ]  # fmt: skip
        return sizes, [
            select(s, b, size, self.thresholds, voting=self.refine)
            for (s, b), size in zip(found, sizes)
        ]


def _at_scales(detector: Detector, batch: Sequence[Mapping], test_scale: Level) -> list[Level]:
    """Run the trunk at each scale of the samples. Reuse ``test_scale`` if it is one of them."""
    if any("scales" not in sample for sample in batch):
        raise ValueError(
            "RESNET_DET.MULTI_SCALE_TEST: the samples lack 'scales', the list of each image at "
            "several sizes: use the dataset mapper of resnet_det"
        )
    levels = []
    for pictures in zip(*(sample["scales"] for sample in batch)):
        if all(p.shape == x["image"].shape for p, x in zip(pictures, batch)):
            levels.append(test_scale)
        else:
            images, features = detector.trunk(pictures)
            levels.append(Level(features, images.image_sizes))
    return levels
