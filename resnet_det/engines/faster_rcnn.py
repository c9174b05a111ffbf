"""The embedded detector: torchvision's Faster R-CNN, made to do what Detectron2's does.

Each subclass changes what differs between the two, and no more. The parameter names are
Detectron2's, so that a checkpoint of one engine loads in the other.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.ops import box_area, clip_boxes_to_image, roi_align, roi_pool

from ..config import ConfigError
from ..nets import Stages, build_net
from ..nets.fast import channels_last_on_gpu, speed_up, take_stride
from ..nets.fpn import FPN
from ..nets.layers import FullyConnected
from ..nets.roi_align import pool_exactly, strided_roi_align
from ..nets.weights import rename_parameters
from . import appendix
from .net_keys import check_head, net_options
from .rpn import RPN, smooth_l1

DETECTRON2_BACKBONES = ("build_resnet_backbone", "build_resnet_fpn_backbone")


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


class FasterRCNN(nn.Module):
    """Trunk, RPN and RoI heads.

    Training mode takes a list of dicts ``image`` (uint8 (3, h, w)), ``boxes`` (N, 4) and
    ``classes`` (N,), and returns a dict of losses. Evaluation mode takes ``image``, ``height`` and
    ``width`` and returns a list of dicts ``boxes`` (N, 4) in pixels of the original image,
    ``scores`` (N,), ``classes`` (N,). Without a proposal generator both modes take ``proposals``
    (M, 4) too, in pixels of the input.
    """

    def __init__(self, backbone, proposal_generator, roi_heads, *, rpn_in, roi_in, mean, std):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.rpn_in, self.roi_in = rpn_in, roi_in
        self.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def preprocess(self, images):
        """List of uint8 (3, h, w) -> normalised, padded with zeros at the right and bottom."""
        device = self.pixel_mean.device
        images = [(x.to(device).float() - self.pixel_mean) / self.pixel_std for x in images]
        sizes = [tuple(x.shape[-2:]) for x in images]
        divisor = getattr(self.backbone, "size_divisibility", 1)
        h, w = (math.ceil(max(side) / divisor) * divisor for side in zip(*sizes))
        batch = [F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2])) for x in images]
        return ImageList(torch.stack(batch), sizes)

    def targets(self, batch):
        """What torchvision's parts take in training: boxes, and labels from 1."""
        if not self.training:
            return None
        device = self.pixel_mean.device
        return [
            {"boxes": x["boxes"].to(device), "labels": x["classes"].to(device) + 1} for x in batch
        ]

    def forward(self, batch):
        images, targets = self.preprocess([x["image"] for x in batch]), self.targets(batch)
        features = self.backbone(images.tensors)
        proposals, rpn_losses = self._propose(images, features, batch, targets)
        found, losses = self.roi_heads(
            [features[f] for f in self.roi_in], proposals, images.image_sizes, targets
        )
        if self.training:
            return rpn_losses | losses
        return self.finish(batch, images.image_sizes, found)

    def _propose(self, images, features, batch, targets=None):
        """-> (boxes of each image, losses); precomputed ones without a proposal generator."""
        if self.proposal_generator is None:
            return [x["proposals"].to(images.tensors) for x in batch], {}
        return self.proposal_generator(images, [features[f] for f in self.rpn_in], targets)

    @staticmethod
    def finish(batch, sizes, found):
        """Boxes from pixels of the input to pixels of the original image; empty ones go."""
        outputs = []
        for x, (h, w), (boxes, scores, classes) in zip(batch, sizes, found):
            height, width = x["height"], x["width"]
            scale = boxes.new_tensor([width / w, height / h]).repeat(2)
            boxes = clip_boxes_to_image(boxes * scale, (height, width))
            keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
            kept = {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}
            outputs.append(kept)
        return outputs

    # The parts, as appendix.Improved asks for them.

    @property
    def context(self):
        return self.roi_heads.context

    def trunk(self, pictures):
        images = self.preprocess(pictures)
        return images, self.backbone(images.tensors)

    def propose(self, images, features, batch):
        return self._propose(images, features, batch)[0]

    def regions(self, features, boxes):
        return self.roi_heads.regions([features[f] for f in self.roi_in], boxes)

    def classify(self, vectors, boxes):
        return self.roi_heads.classify(vectors, boxes)


class ProposalNetwork(FasterRCNN):
    """Trunk and RPN alone: its losses in training, else a list of dicts ``boxes``, ``logits``."""

    def forward(self, batch):
        images, targets = self.preprocess([x["image"] for x in batch]), self.targets(batch)
        features = self.backbone(images.tensors)
        proposals, logits, losses = self.proposal_generator.propose(
            images, [features[f] for f in self.rpn_in], targets
        )
        if self.training:
            return losses
        found = []
        for boxes, scores, size, x in zip(proposals, logits, images.image_sizes, batch):
            scale = boxes.new_tensor([x["width"] / size[1], x["height"] / size[0]]).repeat(2)
            found.append({"boxes": boxes * scale, "logits": scores})
        return found


def net_name(cfg):
    """Name in ``NETS`` of the config's backbone, and whether a pyramid stands on it.

    Detectron2's own ``build_resnet_backbone`` with ``RESNETS.DEPTH`` is the same net of ours.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name in DETECTRON2_BACKBONES:
        return f"paper_resnet{cfg.MODEL.RESNETS.DEPTH}", "fpn" in name
    return name.removesuffix("_fpn"), name.endswith("_fpn")


def _strides(names, strides, key):
    for name in names:
        if name not in strides:
            raise ConfigError(f"{key}: {name!r}: the backbone gives {', '.join(strides)}")
    return [strides[name] for name in names]


def build_model(cfg):
    """Build the detector of a config, with fresh weights.

    Raises:
        ConfigError: names the config key that does not fit the net.
    """
    appendix.check(cfg)
    name, pyramid = net_name(cfg)
    resnets, box = cfg.MODEL.RESNETS, cfg.MODEL.ROI_BOX_HEAD
    net = build_net(name, **net_options(cfg, name))
    try:
        trunk, head = net.split(resnets.OUT_FEATURES)
    except ValueError as error:
        raise ConfigError(f"MODEL.RESNETS.OUT_FEATURES: {error}") from error
    trunk.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    fast, step = cfg.RESNET_DET.FAST, 1
    if fast:
        speed_up(trunk)
    strides = {f: net.strides[f] for f in trunk.out_features}
    channels = net.channels
    if pyramid:
        _strides(cfg.MODEL.FPN.IN_FEATURES, strides, "MODEL.FPN.IN_FEATURES")
        trunk = FPN(trunk, cfg.MODEL.FPN.IN_FEATURES, channels, strides, cfg.MODEL.FPN.OUT_CHANNELS)
        strides = trunk.strides
        channels = dict.fromkeys(strides, cfg.MODEL.FPN.OUT_CHANNELS)
    rpn_in, roi_in = list(cfg.MODEL.RPN.IN_FEATURES), list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    rpn_strides = _strides(rpn_in, strides, "MODEL.RPN.IN_FEATURES")
    pixels = {"mean": cfg.MODEL.PIXEL_MEAN, "std": cfg.MODEL.PIXEL_STD}
    rpn = None if cfg.MODEL.LOAD_PROPOSALS else RPN(cfg, channels[rpn_in[0]], rpn_strides)
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return ProposalNetwork(trunk, rpn, None, rpn_in=rpn_in, roi_in=[], **pixels)
    roi_strides = _strides(roi_in, strides, "MODEL.ROI_HEADS.IN_FEATURES")

    if cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
        if box.NUM_FC < 1:
            raise ConfigError("MODEL.ROI_BOX_HEAD.NUM_FC: StandardROIHeads needs at least 1")
        sizes = [channels[roi_in[0]] * box.POOLER_RESOLUTION**2, *[box.FC_DIM] * box.NUM_FC]
        head = Stages(
            {f"fc{i + 1}": FullyConnected(sizes[i], sizes[i + 1]) for i in range(box.NUM_FC)}
        )
        for layer in head.children():
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        head_channels = box.FC_DIM
    else:
        check_head(cfg, name)
        if roi_in != list(net.trunk_names[-1:]):
            raise ConfigError(
                f"MODEL.ROI_HEADS.IN_FEATURES: {roi_in}: the head of {name} takes "
                f"['{net.trunk_names[-1]}']"
            )
        if set(trunk.names) & set(head.names):
            raise ConfigError(
                f"MODEL.RESNETS.OUT_FEATURES: {list(resnets.OUT_FEATURES)}: the head of {name} "
                f"runs {head.names[0]} per region, so the trunk ends at {net.trunk_names[-1]}"
            )
        if net.has_fully_connected_head and box.POOLER_RESOLUTION != net.pooled:
            raise ConfigError(
                f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION: {box.POOLER_RESOLUTION}: "
                f"fc6 of {name} takes {net.pooled}"
            )
        head_channels = channels[net.stage_names[-1]]
        if fast:
            speed_up(head, channels_last_on_gpu)
            step = take_stride(head) if box.POOLER_TYPE != "ROIPool" else 1
    pooler = Pooler(
        box.POOLER_TYPE, box.POOLER_RESOLUTION, roi_strides, box.POOLER_SAMPLING_RATIO, step
    )
    roi_heads = RoIHeads(cfg, pooler, head, head_channels)
    if cfg.MODEL.ROI_HEADS.NAME != "StandardROIHeads":
        rename_parameters(roi_heads, {f"box_head.{n}.": f"{n}." for n in head.names})
    return FasterRCNN(trunk, rpn, roi_heads, rpn_in=rpn_in, roi_in=roi_in, **pixels)
