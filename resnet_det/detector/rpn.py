"""The embedded detector's RPN: torchvision's, changed to compute what Detectron2's computes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from ..nets.layers import rename_parameters
from .matching import AnchorMatcher, Coder, Sampler, union
from .nms import nms_per_class


@dataclass(frozen=True)
class Sampling:
    """How an image's anchors or proposals are sampled for the loss.

    Attributes:
        batch_size_per_image: number of samples.
        positive_fraction: maximum share of positives among them.
        iou_thresholds: background is below the first, positives are at or above the second.
    """

    batch_size_per_image: int
    positive_fraction: float
    iou_thresholds: tuple[float, float]


@dataclass(frozen=True)
class BoxRegression:
    """How boxes are regressed.

    Attributes:
        weights: factors of (dx, dy, dw, dh).
        smooth_l1_beta: error below which the loss is quadratic; 0 means L1.
        loss_weight: factor of the loss.
    """

    weights: tuple[float, float, float, float]
    smooth_l1_beta: float
    loss_weight: float


@dataclass(frozen=True)
class ProposalLimits:
    """The limits by which decoded anchors become proposals.

    Attributes:
        pre_nms_topk: number per level before NMS, in training and in evaluation.
        post_nms_topk: number per image after NMS, in training and in evaluation.
        nms_thresh: NMS drops a proposal that overlaps a better one by at least this IoU.
        min_size: a proposal's width and height must exceed it, in pixels of the input.
    """

    pre_nms_topk: tuple[int, int]
    post_nms_topk: tuple[int, int]
    nms_thresh: float
    min_size: float


class Anchors(AnchorGenerator):
    """Detectron2's anchors: sizes before ratios, not rounded, at the true strides.

    Args:
        sizes: side lengths in pixels, one list per level.
        ratios: height / width, one list per level.
        strides: one per level, in pixels.
        offset: position of the first centre, in strides.
    """

    cell_anchors: list[Tensor]

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, ratios)))
        self.strides = strides
        self.cell_anchors = [a + offset * s for a, s in zip(self.cell_anchors, strides)]

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: Any = torch.float32, device: Any = "cpu"
    ) -> Tensor:
        cells = []
        for size in scales:
            for ratio in aspect_ratios:
                w = math.sqrt(size**2 / ratio)
                h = ratio * w
                cells.append([-w / 2, -h / 2, w / 2, h / 2])
        return torch.tensor(cells, dtype=dtype, device=device)

    def forward(self, images: Any, features: list[Tensor]) -> Any:
        device = features[0].device
        self.set_cell_anchors(torch.float32, device)
        sizes = [f.shape[-2:] for f in features]
        steps: Any = self.steps(sizes)  # torchvision passes tensors, which must be copied to a GPU
        anchors = torch.cat(self.grid_anchors(sizes, steps))
        return [anchors] * len(images.image_sizes)

    def steps(self, sizes: Sequence[torch.Size]) -> list[tuple[int, int]]:
        """The vertical and horizontal distances of the anchors on each level, in pixels."""
        return [(stride, stride) for stride in self.strides]


class TorchvisionAnchors(Anchors):
    """torchvision's anchors: corners rounded to whole pixels, and strides that divide the padded
    image by the size of the map. These are not the true strides where a map's size was rounded."""

    def generate_anchors(
        self, scales: Any, aspect_ratios: Any, dtype: Any = torch.float32, device: Any = "cpu"
    ) -> Tensor:
        return super().generate_anchors(scales, aspect_ratios, dtype, device).round()

    def steps(self, sizes: Sequence[torch.Size]) -> list[tuple[int, int]]:
        height, width = (side * self.strides[0] for side in sizes[0])
        return [(height // h, width // w) for h, w in sizes]


ANCHORS = {
    "DefaultAnchorGenerator": Anchors,
    "TorchvisionAnchorGenerator": TorchvisionAnchors,
}


class RPNHead(nn.Module):
    """A 3x3 convolution and two sibling 1x1 convolutions (section 3.1 of Faster R-CNN).

    Args:
        channels: channels of the maps.
        hidden: channels of the 3x3 convolution.
        anchors: number of anchors per cell.
    """

    def __init__(self, channels: int, hidden: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden, anchors, 1)
        self.anchor_deltas = nn.Conv2d(hidden, 4 * anchors, 1)
        for layer in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, h, w) -> logits (B, A, h, w) and deltas (B, 4 A, h, w) of each level."""
        hidden = [F.relu(self.conv(x)) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


class RPN(RegionProposalNetwork):
    """An RPN that ranks by logits, can ignore anchors across the image's border, and has
    Detectron2's losses.

    Args:
        anchors: the anchor generator.
        head: an :class:`RPNHead` for the same number of anchors per cell.
        sampling: how anchors are sampled for the losses.
        limits: which decoded anchors become proposals.
        regression: how boxes are regressed, relative to the anchors.
        objectness_loss_weight: factor of the classification loss.
        boundary_thresh: training ignores an anchor that extends beyond the image by more than this
            many pixels; a negative value ignores none.
        even_positives: draw the positives with :func:`keep_evenly`.
    """

    def __init__(
        self,
        anchors: Anchors,
        head: RPNHead,
        *,
        sampling: Sampling,
        limits: ProposalLimits,
        regression: BoxRegression,
        objectness_loss_weight: float = 1.0,
        boundary_thresh: float = -1,
        even_positives: bool = False,
    ) -> None:
        background, foreground = sampling.iou_thresholds
        super().__init__(
            anchors,
            head,
            fg_iou_thresh=foreground,
            bg_iou_thresh=background,
            batch_size_per_image=sampling.batch_size_per_image,
            positive_fraction=sampling.positive_fraction,
            pre_nms_top_n=dict(zip(("training", "testing"), limits.pre_nms_topk)),
            post_nms_top_n=dict(zip(("training", "testing"), limits.post_nms_topk)),
            nms_thresh=limits.nms_thresh,
        )
        self.box_coder = Coder(regression.weights)
        self.proposal_matcher = AnchorMatcher(foreground, background, True)
        self.fg_bg_sampler = Sampler(sampling.batch_size_per_image, sampling.positive_fraction)
        self.boundary_thresh, self.even_positives = boundary_thresh, even_positives
        self.min_size = limits.min_size
        self.smooth_l1_beta = regression.smooth_l1_beta
        self.loss_weight = {
            "loss_rpn_cls": objectness_loss_weight,
            "loss_rpn_loc": regression.loss_weight,
        }
        rename_parameters(self, {"head.": "rpn_head."})

    def forward(
        self, images: ImageList, features: list[Tensor], targets: list[dict] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Returns (proposals (N, 4) of each image, in pixels of the input; losses)."""
        proposals, _, losses = self.propose(images, features, targets)
        return proposals, losses

    def propose(
        self, images: ImageList, features: list[Tensor], targets: list[dict] | None = None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Returns (proposals (N, 4) of each image by descending logit, logits (N,), losses)."""
        objectness, deltas = self.head(features)
        counts = [x[0].numel() for x in objectness]
        anchors = self.anchor_generator(images, features)
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        exact = torch.promote_types(deltas.dtype, torch.float32)  # autocast gives half precision
        proposals = self.box_coder.decode_single(deltas.detach().to(exact), torch.cat(anchors))
        proposals = proposals.view(len(anchors), -1, 4)
        proposals, logits = self.filter_proposals(proposals, objectness, images.image_sizes, counts)
        if not self.training:
            return proposals, logits, {}
        labels, boxes = self.assign_targets_to_anchors(anchors, targets)
        if self.boundary_thresh >= 0:
            for label, anchor, (h, w) in zip(labels, anchors, images.image_sizes):
                low = (anchor[:, :2] < -self.boundary_thresh).any(1)
                right = anchor[:, 2] >= w + self.boundary_thresh
                below = anchor[:, 3] >= h + self.boundary_thresh
                label[low | right | below] = -1
        if self.even_positives:
            sampler = self.fg_bg_sampler
            count = int(sampler.batch_size_per_image * sampler.positive_fraction)
            for label, box in zip(labels, boxes):
                keep_evenly(label, box.unique(dim=0, return_inverse=True)[1], count)
        targets = self.box_coder.encode(boxes, anchors)
        return proposals, logits, self.compute_loss(objectness, deltas, labels, targets)

    def filter_proposals(
        self, proposals: Any, objectness: Tensor, image_shapes: Any, num_anchors_per_level: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        logits = objectness.detach().float().view(len(image_shapes), -1)
        top, level = self._top(logits, num_anchors_per_level)
        kept_boxes, kept_scores = [], []
        for boxes, scores, index, shape in zip(proposals, logits, top, image_shapes):
            boxes, scores = boxes[index].float(), scores[index]
            finite = boxes.isfinite().all(1) & scores.isfinite()
            boxes = clip_boxes_to_image(boxes, shape)
            keep = finite & ((boxes[:, 2:] - boxes[:, :2]) > self.min_size).all(1)
            keep = keep.nonzero()[:, 0]
            boxes, scores = boxes[keep], scores[keep]
            levels = None if level is None else level[keep]
            keep = nms_per_class(boxes, scores, levels, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[keep])
            kept_scores.append(scores[keep])
        return kept_boxes, kept_scores

    def _top(self, logits: Tensor, counts: list[int]) -> tuple[Tensor, Tensor | None]:
        """Returns the indices (B, n) of the best anchors of all levels, and their levels (n,), or
        None if there is one level."""
        indices, levels, first = [], [], 0
        for i, of_level in enumerate(logits.split(counts, 1)):
            number = torch.sym_min(self.pre_nms_top_n(), of_level.shape[1])
            indices.append(of_level.topk(number, dim=1).indices + first)
            levels.append(torch.full((number,), i, device=logits.device))
            first += of_level.shape[1]
        return torch.cat(indices, 1), torch.cat(levels) if len(levels) > 1 else None

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: Any, regression_targets: Any
    ) -> Any:
        samples = self.fg_bg_sampler(labels)
        firsts = [0, *accumulate(len(x) for x in labels)]
        sampled = torch.cat([x + first for x, first in zip(union(samples), firsts)])
        positive = torch.cat([x + first for (x, _), first in zip(samples, firsts)])
        labels, targets = torch.cat(labels), torch.cat(regression_targets)
        losses = {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(
                objectness.flatten()[sampled], labels[sampled], reduction="sum"
            ),
            "loss_rpn_loc": smooth_l1(
                pred_bbox_deltas[positive], targets[positive], self.smooth_l1_beta
            ),
        }
        # filter_proposals drops non-finite predictions, so the loss must show them, sampled or not.
        finite = pred_bbox_deltas.isfinite().all() & objectness.isfinite().all()
        losses["loss_rpn_loc"] = torch.where(finite, losses["loss_rpn_loc"], math.nan)
        normaliser = self.fg_bg_sampler.batch_size_per_image * len(regression_targets)
        return {k: v * (self.loss_weight[k] / normaliser) for k, v in losses.items()}


def keep_evenly(labels: Tensor, objects: Tensor, count: int) -> None:
    """Keep ``count`` positives of an image, drawn evenly over its objects; ignore the others.

    One positive of each object is kept, then a second one of each that has more, and so on. Which
    of an object's positives are kept, and which objects have one more at the end, is random.

    Args:
        labels: (N,), 1 for a positive and -1 for an anchor to ignore. It is changed in place.
        objects: (N,), the object that each anchor is matched with; read for positives only.
        count: number of positives to keep at most.
    """
    positive = torch.nonzero(labels == 1)[:, 0]
    positive = positive[torch.randperm(len(positive), device=labels.device)]
    grouped, order = objects[positive].sort(stable=True)
    turn = torch.empty_like(order)  # 0 for the first positive of its object, 1 for the second, ...
    turn[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(
        grouped, grouped
    )
    labels[positive[turn.argsort(stable=True)[count:]]] = -1


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum of the smooth L1 losses; a ``beta`` of 0 means L1."""
    return F.smooth_l1_loss(prediction.float(), target, beta=beta, reduction="sum")
