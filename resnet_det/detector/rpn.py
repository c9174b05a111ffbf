"""The embedded detector's proposals: torchvision's RPN, made to do what Detectron2's does."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import batched_nms, clip_boxes_to_image

from ..config.defaults import ConfigError
from ..nets.layers import rename_parameters


class Anchors(AnchorGenerator):
    """Detectron2's anchors: sizes before ratios, not rounded, at the true strides.

    Args:
        sizes, ratios: a list for each level, or one list for all.
        strides: of each level.
        offset: of the first centre, in strides.
    """

    def __init__(self, sizes, ratios, strides, offset):
        levels = len(strides)
        sizes, ratios = (x * levels if len(x) == 1 else x for x in (list(sizes), list(ratios)))
        if len(sizes) != levels or len(ratios) != levels:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR: SIZES {sizes} and ASPECT_RATIOS {ratios} "
                f"must have 1 or {levels} lists, one for each of MODEL.RPN.IN_FEATURES"
            )
        super().__init__(tuple(map(tuple, sizes)), tuple(map(tuple, ratios)))
        self.strides = strides
        self.cell_anchors = [a + offset * s for a, s in zip(self.cell_anchors, strides)]

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device="cpu"):
        cells = []
        for size in scales:
            for ratio in aspect_ratios:
                w = math.sqrt(size**2 / ratio)
                h = ratio * w
                cells.append([-w / 2, -h / 2, w / 2, h / 2])
        return torch.tensor(cells, dtype=dtype, device=device)

    def forward(self, images, features):
        device = features[0].device
        self.set_cell_anchors(torch.float32, device)
        strides = [[torch.tensor(s, device=device)] * 2 for s in self.strides]
        anchors = torch.cat(self.grid_anchors([f.shape[-2:] for f in features], strides))
        return [anchors] * len(images.image_sizes)


class RPNHead(nn.Module):
    """A 3x3 convolution and two sibling 1x1 convolutions (section 3.1 of Faster R-CNN)."""

    def __init__(self, channels, hidden, anchors):
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden, anchors, 1)
        self.anchor_deltas = nn.Conv2d(hidden, 4 * anchors, 1)
        for layer in self.children():
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, features):
        hidden = [F.relu(self.conv(x)) for x in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


class RPN(RegionProposalNetwork):
    """Ranks by logits, ignores anchors across the border if asked, and has Detectron2's losses."""

    def __init__(self, cfg, channels, strides):
        rpn = cfg.MODEL.RPN
        generator = cfg.MODEL.ANCHOR_GENERATOR
        anchors = Anchors(generator.SIZES, generator.ASPECT_RATIOS, strides, generator.OFFSET)
        per_cell = set(anchors.num_anchors_per_location())
        if len(per_cell) != 1:
            raise ConfigError(
                f"MODEL.ANCHOR_GENERATOR: levels differ in anchors per cell: {per_cell}"
            )
        hidden = channels if rpn.CONV_DIMS[0] == -1 else rpn.CONV_DIMS[0]
        super().__init__(
            anchors,
            RPNHead(channels, hidden, per_cell.pop()),
            fg_iou_thresh=rpn.IOU_THRESHOLDS[1],
            bg_iou_thresh=rpn.IOU_THRESHOLDS[0],
            batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
            positive_fraction=rpn.POSITIVE_FRACTION,
            pre_nms_top_n={"training": rpn.PRE_NMS_TOPK_TRAIN, "testing": rpn.PRE_NMS_TOPK_TEST},
            post_nms_top_n={"training": rpn.POST_NMS_TOPK_TRAIN, "testing": rpn.POST_NMS_TOPK_TEST},
            nms_thresh=rpn.NMS_THRESH,
        )
        self.box_coder.weights = tuple(rpn.BBOX_REG_WEIGHTS)
        self.boundary_thresh = rpn.BOUNDARY_THRESH
        self.min_size = cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE
        self.beta = rpn.SMOOTH_L1_BETA
        self.weights = {
            "loss_rpn_cls": rpn.LOSS_WEIGHT,
            "loss_rpn_loc": rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
        }
        rename_parameters(self, {"head.": "rpn_head."})

    def forward(self, images, features, targets=None):
        """-> (list of proposals (N, 4) in pixels of the input, dict of losses)."""
        proposals, _, losses = self.propose(images, features, targets)
        return proposals, losses

    def propose(self, images, features, targets=None):
        """-> (list of proposals (N, 4), the best first; list of their logits; dict of losses)."""
        objectness, deltas = self.head(features)
        counts = [x[0].numel() for x in objectness]
        anchors = self.anchor_generator(images, features)
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        exact = torch.promote_types(deltas.dtype, torch.float32)  # under autocast: not half
        proposals = self.box_coder.decode(deltas.detach().to(exact), anchors)
        proposals = proposals.view(len(anchors), -1, 4)
        proposals, logits = self.filter_proposals(proposals, objectness, images.image_sizes, counts)
        if not self.training:
            return proposals, logits, {}
        labels, boxes = self.assign_targets_to_anchors(anchors, targets)
        if self.boundary_thresh >= 0:
            for label, anchor, (h, w) in zip(labels, anchors, images.image_sizes):
                t = self.boundary_thresh
                low, high = (
                    anchor[:, :2].amin(1) < -t,
                    anchor[:, 2:] >= anchor.new_tensor([w, h]) + t,
                )
                label[low | high.any(1)] = -1
        targets = self.box_coder.encode(boxes, anchors)
        return proposals, logits, self.compute_loss(objectness, deltas, labels, targets)

    def filter_proposals(self, proposals, objectness, image_shapes, num_anchors_per_level):
        logits = objectness.detach().float().view(len(image_shapes), -1)
        top = self._get_top_n_idx(logits, num_anchors_per_level)
        level = torch.arange(len(num_anchors_per_level), device=logits.device)
        level = level.repeat_interleave(torch.tensor(num_anchors_per_level, device=logits.device))
        kept_boxes, kept_scores = [], []
        for boxes, scores, index, shape in zip(proposals, logits, top, image_shapes):
            boxes, scores, levels = boxes[index].float(), scores[index], level[index]
            finite = boxes.isfinite().all(1) & scores.isfinite()
            boxes = clip_boxes_to_image(boxes, shape)
            keep = finite & ((boxes[:, 2:] - boxes[:, :2]) > self.min_size).all(1)
            boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
            keep = batched_nms(boxes, scores, levels, self.nms_thresh)[: self.post_nms_top_n()]
            kept_boxes.append(boxes[keep])
            kept_scores.append(scores[keep])
        return kept_boxes, kept_scores

    def compute_loss(self, objectness, pred_bbox_deltas, labels, regression_targets):
        positive, negative = (torch.cat(x).bool() for x in self.fg_bg_sampler(labels))
        sampled = positive | negative
        labels, targets = torch.cat(labels), torch.cat(regression_targets)
        losses = {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(
                objectness.flatten()[sampled], labels[sampled], reduction="sum"
            ),
            "loss_rpn_loc": smooth_l1(pred_bbox_deltas[positive], targets[positive], self.beta),
        }
        # Proposals that are not finite were left out: the loss says so, whatever anchors were drawn.
        finite = pred_bbox_deltas.isfinite().all() & objectness.isfinite().all()
        losses["loss_rpn_loc"] = torch.where(finite, losses["loss_rpn_loc"], math.nan)
        normaliser = self.fg_bg_sampler.batch_size_per_image * len(regression_targets)
        return {k: v * (self.weights[k] / normaliser) for k, v in losses.items()}


def smooth_l1(prediction, target, beta):
    """Sum of the smooth L1 losses; ``beta`` 0 is L1."""
    return F.smooth_l1_loss(prediction.float(), target, beta=beta, reduction="sum")
