"""The embedded detector's RoI heads: pooling, the head per region, classification, regression."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.ops import box_area, roi_align, roi_pool

from ..nets.roi_align import pool_exactly, strided_roi_align
from .appendix import Detections, Size, Thresholds, select, with_context
from .matching import Coder, Sampler, union
from .rpn import BoxRegression, Sampling, smooth_l1


@dataclass(frozen=True)
class RegionSampling(Sampling):
    """How an image's regions are sampled for the loss.

    Attributes:
        append_gt: add the ground-truth boxes to the proposals.
        ignore_low_overlaps: ignore regions below the first IoU threshold, and treat those between
            the two as background: Fast R-CNN's [0.1, 0.5). By default it is the other way round.
    """

    append_gt: bool = True
    ignore_low_overlaps: bool = False


class Pooler(nn.Module):
    """RoI max pooling or RoIAlign. Each region is pooled from the level that fits its size.

    Args:
        kind: "ROIPool" (the paper's), "ROIAlign", or "ROIAlignV2" (aligned to pixel centres).
        resolution: height and width of the output.
        strides: one per level, in pixels.
        sampling_ratio: RoIAlign's samples per bin and axis; 0 uses one per cell that the bin
            covers.
        step: compute only every ``step``-th bin of the grid (RoIAlign on one level).
    """

    CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4

    def __init__(
        self,
        kind: str,
        resolution: int,
        strides: Sequence[int],
        sampling_ratio: int,
        step: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.resolution, self.strides = kind, resolution, strides
        self.sampling_ratio, self.step = sampling_ratio, step
        self.min_level = int(math.log2(strides[0]))

    def pool(self, features: Tensor, rois: Tensor, stride: int) -> Tensor:
        """Pool regions (R, 5), rows of (image index, box), from one level."""
        if self.kind == "ROIPool":
            return pool_exactly(roi_pool, features, rois, self.resolution, 1 / stride)
        grid = (self.resolution, 1 / stride, self.sampling_ratio, self.kind == "ROIAlignV2")
        if self.step > 1:
            return strided_roi_align(features, rois, *grid, self.step)
        return pool_exactly(roi_align, features, rois, *grid)

    def forward(
        self, features: list[Tensor], proposals: list[Tensor], image_shapes: list[Size] | None
    ) -> Tensor:
        """Pool boxes (N_i, 4) from the maps of all levels: -> (sum N_i, C, resolution,
        resolution)."""
        index = [torch.full_like(box[:, :1], i) for i, box in enumerate(proposals)]
        boxes = torch.cat(proposals)
        rois = torch.cat((torch.cat(index), boxes), 1)  # float32, even for bfloat16 maps
        if len(features) == 1:
            return self.pool(features[0], rois, self.strides[0])
        size = box_area(boxes).sqrt()
        level = torch.floor(self.CANONICAL_LEVEL + torch.log2(size / self.CANONICAL_SIZE + 1e-8))
        level = (level - self.min_level).clamp(0, len(features) - 1)
        shape = (rois.shape[0], features[0].shape[1], self.resolution, self.resolution)
        regions = features[0].new_zeros(shape)
        for i, (x, stride) in enumerate(zip(features, self.strides)):
            at = torch.nonzero(level == i)[:, 0]
            regions.index_put_((at,), self.pool(x, rois[at], stride))
        return regions


class Predictor(nn.Module):
    """The two sibling layers: scores of K+1 classes, the background last, and boxes.

    Args:
        channels: length of a region's vector.
        num_classes: K, without the background.
        class_agnostic: predict one box for all classes.
    """

    def __init__(self, channels: int, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * (1 if class_agnostic else num_classes))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C) -> logits (R, K+1) and deltas (R, 4 (K+1)), with the background first.

        This is torchvision's order. The background's deltas are zeros.
        """
        scores, deltas = self.cls_score(x), self.bbox_pred(x)
        classes = scores.shape[1] - 1
        if deltas.shape[1] == 4:
            deltas = deltas.repeat(1, classes)
        return scores.roll(1, 1), F.pad(deltas, (4, 0))


class RoIHeads(TorchvisionRoIHeads):
    """Fast R-CNN on the net's head, with Detectron2's sampling thresholds and losses.

    Args:
        pooler: pools regions (R, C, s, s).
        box_head: turns them into maps or vectors.
        predictor: the two sibling layers.
        sampling: how proposals are sampled for the losses.
        thresholds: which predictions become detections.
        regression: how boxes are regressed, relative to the proposals.
        context: add global context (:func:`.appendix.with_context`), which doubles the channels
            that the predictor takes.
    """

    def __init__(
        self,
        pooler: Pooler,
        box_head: nn.Module,
        predictor: Predictor,
        *,
        sampling: RegionSampling,
        thresholds: Thresholds,
        regression: BoxRegression,
        context: bool = False,
    ) -> None:
        background, foreground = sampling.iou_thresholds
        super().__init__(
            pooler,
            box_head,
            predictor,
            fg_iou_thresh=foreground,
            bg_iou_thresh=background,
            batch_size_per_image=sampling.batch_size_per_image,
            positive_fraction=sampling.positive_fraction,
            bbox_reg_weights=regression.weights,
            score_thresh=thresholds.score_thresh,
            nms_thresh=thresholds.nms_thresh,
            detections_per_img=thresholds.max_detections,
        )
        self.box_coder = Coder(regression.weights)
        self.fg_bg_sampler = Sampler(sampling.batch_size_per_image, sampling.positive_fraction)
        self.context, self.sampling, self.thresholds = context, sampling, thresholds
        self.regression = regression

    def add_gt_proposals(self, proposals: Any, gt_boxes: Any) -> Any:
        append = self.sampling.append_gt
        return super().add_gt_proposals(proposals, gt_boxes) if append else proposals

    def subsample(self, labels: Any) -> list[Tensor]:
        return union(self.fg_bg_sampler(labels))

    def assign_targets_to_proposals(self, proposals: Any, gt_boxes: Any, gt_labels: Any) -> Any:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        if self.sampling.ignore_low_overlaps:
            # Swap 0 (below both thresholds) and -1 (between them).
            labels = [
                torch.where(label > 0, label, -1 - label) if len(boxes) else label
                for label, boxes in zip(labels, gt_boxes)
            ]
        return matched, labels

    def forward(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        image_shapes: list[Size],
        targets: list[dict] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """Returns (detections of each image, empty in training; losses, empty in evaluation)."""
        if self.training:
            proposals, _, labels, box_targets = self.select_training_samples(proposals, targets)
        vectors = partial(self.regions, features)
        x = with_context(vectors, proposals, image_shapes) if self.context else vectors(proposals)
        if self.training:
            logits, deltas = self.box_predictor(x)
            return [], self.losses(
                logits.float(), deltas, torch.cat(labels), torch.cat(box_targets)
            )
        # Unlike torchvision, Detectron2 keeps boxes thinner than 0.01 pixels here.
        found = zip(*self.classify(x, proposals), image_shapes)
        return [select(*of_image, self.thresholds) for of_image in found], {}

    def regions(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool the boxes (N_i, 4) of each image and run the head: -> vectors (sum N_i, C)."""
        (x,) = self.box_head(self.box_roi_pool(features, boxes, None)).values()
        return x.mean((2, 3)) if x.dim() == 4 else x

    def classify(
        self, vectors: Tensor, boxes: list[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Returns scores (N_i, K), without the background, and boxes (N_i, K, 4) of each image."""
        logits, deltas = self.box_predictor(vectors)
        counts = [b.shape[0] for b in boxes]
        scores = F.softmax(logits.float(), -1)[:, 1:]
        found = self.box_coder.decode_single(deltas.float(), torch.cat(boxes))
        found = found.view(-1, logits.shape[1], 4)[:, 1:]
        return scores.split(counts), found.split(counts)

    def losses(
        self, logits: Tensor, deltas: Tensor, labels: Tensor, box_targets: Tensor
    ) -> dict[str, Tensor]:
        """Losses of sampled regions: (R, K+1), (R, 4 (K+1)), labels (R,), encoded boxes (R, 4)."""
        foreground = torch.nonzero(labels > 0)[:, 0]
        deltas = deltas.view(len(labels), -1, 4)[foreground, labels[foreground]]
        box_loss = smooth_l1(deltas, box_targets[foreground], self.regression.smooth_l1_beta)
        return {
            "loss_cls": F.cross_entropy(logits, labels),
            "loss_box_reg": self.regression.loss_weight * box_loss / max(len(labels), 1),
        }
