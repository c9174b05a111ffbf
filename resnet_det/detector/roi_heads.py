"""RoI pooling, the head per region, classes and boxes."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.ops import box_area, roi_align, roi_pool

from ..nets.roi_align import pool_exactly, strided_roi_align
from . import appendix
from .rpn import smooth_l1


class Pooler(nn.Module):
    """RoI max pooling or RoIAlign, each region from the level that fits its size.

    Args:
        kind: "ROIPool" (the paper's), "ROIAlign", or "ROIAlignV2" (aligned to pixel centres).
        resolution: side of the output.
        strides: of each level.
        step: give only every ``step``-th bin of the grid (RoIAlign, one level).
    """

    CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4

    def __init__(self, kind, resolution, strides, sampling_ratio, step=1):
        super().__init__()
        self.kind, self.resolution, self.strides = kind, resolution, strides
        self.sampling_ratio, self.step = sampling_ratio, step
        self.least = int(math.log2(strides[0]))

    def pool(self, features, rois, stride):
        if self.kind == "ROIPool":
            return pool_exactly(roi_pool, features, rois, self.resolution, 1 / stride)
        grid = (self.resolution, 1 / stride, self.sampling_ratio, self.kind == "ROIAlignV2")
        if self.step > 1:
            return strided_roi_align(features, rois, *grid, self.step)
        return pool_exactly(roi_align, features, rois, *grid)

    def forward(self, features, proposals, image_shapes):
        """List of maps, list of boxes (N_i, 4) -> regions (sum N_i, C, resolution, resolution)."""
        index = [box.new_full((len(box), 1), i) for i, box in enumerate(proposals)]
        boxes = torch.cat(proposals)
        rois = torch.cat((torch.cat(index), boxes), 1)  # in float32, also of bfloat16 maps
        if len(features) == 1:
            return self.pool(features[0], rois, self.strides[0])
        size = box_area(boxes).sqrt()
        level = torch.floor(self.CANONICAL_LEVEL + torch.log2(size / self.CANONICAL_SIZE + 1e-8))
        level = (level - self.least).clamp(0, len(features) - 1)
        shape = (len(rois), features[0].shape[1], self.resolution, self.resolution)
        regions = features[0].new_zeros(shape)
        for i, (x, stride) in enumerate(zip(features, self.strides)):
            at = torch.nonzero(level == i)[:, 0]
            regions.index_put_((at,), self.pool(x, rois[at], stride))
        return regions


class Predictor(nn.Module):
    """The two sibling layers: scores of K+1 classes, the background last, and boxes."""

    def __init__(self, channels, num_classes, class_agnostic):
        super().__init__()
        self.cls_score = nn.Linear(channels, num_classes + 1)
        self.bbox_pred = nn.Linear(channels, 4 * (1 if class_agnostic else num_classes))
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        """(R, C) -> logits (R, K+1) with the background first, deltas (R, 4 (K+1)).

        Background first is torchvision's order; its deltas are zeros.
        """
        scores, deltas = self.cls_score(x), self.bbox_pred(x)
        classes = scores.shape[1] - 1
        if deltas.shape[1] == 4:
            deltas = deltas.repeat(1, classes)
        return scores.roll(1, 1), F.pad(deltas, (4, 0))


class RoIHeads(TorchvisionRoIHeads):
    """Fast R-CNN on the net's head, with Detectron2's sampling thresholds and losses."""

    def __init__(self, cfg, pooler, box_head, channels):
        heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        context = cfg.RESNET_DET.GLOBAL_CONTEXT
        super().__init__(
            pooler,
            box_head,
            Predictor(channels * (1 + context), heads.NUM_CLASSES, box.CLS_AGNOSTIC_BBOX_REG),
            fg_iou_thresh=heads.IOU_THRESHOLDS[-1],
            bg_iou_thresh=heads.IOU_THRESHOLDS[0],
            batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
            positive_fraction=heads.POSITIVE_FRACTION,
            bbox_reg_weights=tuple(box.BBOX_REG_WEIGHTS),
            score_thresh=heads.SCORE_THRESH_TEST,
            nms_thresh=heads.NMS_THRESH_TEST,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        self.context = context
        self.append_gt = heads.PROPOSAL_APPEND_GT
        # Fast R-CNN's [0.1, 0.5): the low overlaps are ignored, those between are background.
        self.background_between = list(heads.IOU_LABELS) == [-1, 0, 1]
        self.beta = box.SMOOTH_L1_BETA
        self.box_weight = box.BBOX_REG_LOSS_WEIGHT

    def add_gt_proposals(self, proposals, gt_boxes):
        return super().add_gt_proposals(proposals, gt_boxes) if self.append_gt else proposals

    def assign_targets_to_proposals(self, proposals, gt_boxes, gt_labels):
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        if self.background_between:
            # 0 (below both thresholds) and -1 (between them) change places.
            labels = [
                torch.where(label > 0, label, -1 - label) if len(boxes) else label
                for label, boxes in zip(labels, gt_boxes)
            ]
        return matched, labels

    def forward(self, features, proposals, image_shapes, targets=None):
        """-> (of each image boxes, scores and classes; dict of losses)."""
        if self.training:
            proposals, _, labels, box_targets = self.select_training_samples(proposals, targets)
        vectors = partial(self.regions, features)
        if self.context:
            x = appendix.with_context(vectors, proposals, image_shapes)
        else:
            x = vectors(proposals)
        if self.training:
            logits, deltas = self.box_predictor(x)
            return [], self.losses(
                logits.float(), deltas, torch.cat(labels), torch.cat(box_targets)
            )
        # torchvision's own drops boxes thinner than 0.01 pixels, Detectron2's keeps them here.
        rules = {
            "least": self.score_thresh,
            "nms": self.nms_thresh,
            "most": self.detections_per_img,
        }
        found = zip(*self.classify(x, proposals), image_shapes)
        return [appendix.select(*of_image, **rules) for of_image in found], {}

    def regions(self, features, boxes):
        """List of maps, list of boxes (N_i, 4) -> the vectors of all regions (sum N_i, C)."""
        (x,) = self.box_head(self.box_roi_pool(features, boxes, None)).values()
        return x.mean((2, 3)) if x.dim() == 4 else x

    def classify(self, vectors, boxes):
        """-> of each image scores (N_i, K), without the background, and boxes (N_i, K, 4)."""
        logits, deltas = self.box_predictor(vectors)
        counts = [len(b) for b in boxes]
        scores = F.softmax(logits.float(), -1)[:, 1:]
        found = self.box_coder.decode(deltas.float(), boxes).view(-1, logits.shape[1], 4)[:, 1:]
        return scores.split(counts), found.split(counts)

    def losses(self, logits, deltas, labels, box_targets):
        foreground = torch.nonzero(labels > 0)[:, 0]
        deltas = deltas.view(len(labels), -1, 4)[foreground, labels[foreground]]
        box_loss = smooth_l1(deltas, box_targets[foreground], self.beta)
        return {
            "loss_cls": F.cross_entropy(logits, labels),
            "loss_box_reg": self.box_weight * box_loss / max(len(labels), 1),
        }
