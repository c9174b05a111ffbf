"""Build the embedded detector from a config. Only this module reads MODEL.* for its parts."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from fvcore.common.config import CfgNode
from torch import nn

from ..config.defaults import ConfigError
from ..nets import Stages, build_net
from ..nets.classifier import Classifier
from ..nets.fast import channels_last_on_gpu, speed_up, take_stride
from ..nets.fpn import FPN
from ..nets.layers import FullyConnected, rename_parameters
from .appendix import Detector, Improved, Thresholds
from .augmented import Augmented
from .faster_rcnn import FasterRCNN, ProposalNetwork
from .net_keys import TEST_IMPROVEMENTS, check_appendix, check_detector, net_options
from .roi_heads import Pooler, Predictor, RegionSampling, RoIHeads
from .rpn import ANCHORS, RPN, BoxRegression, ProposalLimits, RPNHead, Sampling

DETECTRON2_BACKBONES = ("build_resnet_backbone", "build_resnet_fpn_backbone")


class Maps(NamedTuple):
    """The channels and the stride of each map that a backbone returns, by name."""

    channels: dict[str, int]
    strides: dict[str, int]


def net_name(cfg: CfgNode) -> tuple[str, bool]:
    """The name in ``NETS`` of the config's backbone, and whether it has a feature pyramid.

    Detectron2's own ``build_resnet_backbone`` stands for our ResNet of depth ``RESNETS.DEPTH``.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name in DETECTRON2_BACKBONES:
        return f"paper_resnet{cfg.MODEL.RESNETS.DEPTH}", "fpn" in name
    return name.removesuffix("_fpn"), name.endswith("_fpn")


def build_model(cfg: CfgNode) -> ProposalNetwork:
    """Build the detector of a config with fresh weights; a :class:`FasterRCNN` unless
    ``MODEL.META_ARCHITECTURE`` is ``ProposalNetwork``.

    Raises:
        ConfigError: a key does not fit the net. The message names the key.
    """
    check_appendix(cfg)
    name, pyramid = net_name(cfg)
    check_detector(cfg, name, "fpn" if pyramid else "")
    net = build_net(name, **net_options(cfg, name))
    trunk, head = net.split(cfg.MODEL.RESNETS.OUT_FEATURES)
    trunk.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    if cfg.RESNET_DET.FAST:
        speed_up(trunk)
    maps = Maps(net.channels, {f: net.strides[f] for f in trunk.out_features})
    backbone: nn.Module = trunk
    if pyramid:
        backbone, maps = build_pyramid(cfg, trunk, maps)
    rpn_in, roi_in = list(cfg.MODEL.RPN.IN_FEATURES), list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
    rpn = None
    if not cfg.MODEL.LOAD_PROPOSALS:
        rpn = build_rpn(cfg, maps.channels[rpn_in[0]], [maps.strides[name] for name in rpn_in])
    pixels = {"pixel_mean": cfg.MODEL.PIXEL_MEAN, "pixel_std": cfg.MODEL.PIXEL_STD}
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return ProposalNetwork(backbone, rpn, rpn_in=rpn_in, **pixels)
    roi_strides = [maps.strides[name] for name in roi_in]
    if cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
        fc = build_fc_head(cfg, maps.channels[roi_in[0]])
        roi_heads = build_roi_heads(cfg, fc, cfg.MODEL.ROI_BOX_HEAD.FC_DIM, roi_strides)
    else:
        roi_heads = build_net_heads(cfg, name, net, trunk, head, roi_strides)
    return FasterRCNN(backbone, rpn, roi_heads, rpn_in=rpn_in, roi_in=roi_in, **pixels)


def build_pyramid(cfg: CfgNode, trunk: Stages, maps: Maps) -> tuple[FPN, Maps]:
    """Build the feature pyramid on a trunk. Returns it and its levels."""
    in_features, channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    pyramid = FPN(trunk, in_features, maps.channels, maps.strides, channels)
    return pyramid, Maps(dict.fromkeys(pyramid.strides, channels), pyramid.strides)


def build_rpn(cfg: CfgNode, channels: int, strides: Sequence[int]) -> RPN:
    """Build the RPN for maps with the given ``channels`` and ``strides``.

    Raises:
        ConfigError: MODEL.ANCHOR_GENERATOR does not fit the number of maps.
    """
    generator, rpn = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RPN
    levels = len(strides)
    sizes, ratios = (
        list(x) * levels if len(x) == 1 else list(x)
        for x in (generator.SIZES, generator.ASPECT_RATIOS)
    )
    if len(sizes) != levels or len(ratios) != levels:
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR: SIZES {sizes} and ASPECT_RATIOS {ratios} must have 1 or "
            f"{levels} lists, one for each of MODEL.RPN.IN_FEATURES"
        )
    anchors = ANCHORS[generator.NAME](sizes, ratios, strides, generator.OFFSET)
    per_cell = set(anchors.num_anchors_per_location())
    if len(per_cell) != 1:
        raise ConfigError(
            f"MODEL.ANCHOR_GENERATOR: every level needs the same number of anchors per cell, not "
            f"{per_cell}"
        )
    hidden = channels if rpn.CONV_DIMS[0] == -1 else rpn.CONV_DIMS[0]
    return RPN(
        anchors,
        RPNHead(channels, hidden, per_cell.pop()),
        sampling=Sampling(
            rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, tuple(rpn.IOU_THRESHOLDS)
        ),
        limits=ProposalLimits(
            pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            nms_thresh=rpn.NMS_THRESH,
            min_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        ),
        regression=BoxRegression(
            tuple(rpn.BBOX_REG_WEIGHTS),
            rpn.SMOOTH_L1_BETA,
            rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT,
        ),
        objectness_loss_weight=rpn.LOSS_WEIGHT,
        boundary_thresh=rpn.BOUNDARY_THRESH,
        even_positives=cfg.RESNET_DET.EVEN_POSITIVES,
    )


def build_fc_head(cfg: CfgNode, channels: int) -> Stages:
    """Build the fully connected layers of ``StandardROIHeads``, for maps with ``channels``."""
    box = cfg.MODEL.ROI_BOX_HEAD
    if box.NUM_FC < 1:
        raise ConfigError("MODEL.ROI_BOX_HEAD.NUM_FC: StandardROIHeads needs at least 1")
    sizes = [channels * box.POOLER_RESOLUTION**2, *[box.FC_DIM] * box.NUM_FC]
    layers = [FullyConnected(*pair) for pair in pairwise(sizes)]
    for layer in layers:
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
    return Stages({f"fc{i}": layer for i, layer in enumerate(layers, 1)})


def build_net_heads(
    cfg: CfgNode, name: str, net: Classifier, trunk: Stages, head: Stages, strides: Sequence[int]
) -> RoIHeads:
    """Build RoI heads from the net's own head: conv5_x, a CIFAR net's last stage, or VGG's fc6 and
    fc7."""
    if set(trunk.names) & set(head.names):
        raise ConfigError(
            f"MODEL.RESNETS.OUT_FEATURES: {list(cfg.MODEL.RESNETS.OUT_FEATURES)}: the head of "
            f"{name} runs {head.names[0]} per region, so the trunk ends at {net.trunk_names[-1]}"
        )
    step = 1
    if cfg.RESNET_DET.FAST:
        speed_up(head, channels_last_on_gpu)
        if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE != "ROIPool":
            step = take_stride(head)
    roi_heads = build_roi_heads(cfg, head, net.channels[net.stage_names[-1]], strides, step)
    rename_parameters(roi_heads, {f"box_head.{n}.": f"{n}." for n in head.names})
    return roi_heads


def build_roi_heads(
    cfg: CfgNode, head: Stages, channels: int, strides: Sequence[int], step: int = 1
) -> RoIHeads:
    """Build RoI heads on a ``head`` whose output has ``channels``.

    ``strides`` are the strides of the pooled maps; for ``step`` see :class:`Pooler`.
    """
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    context = cfg.RESNET_DET.GLOBAL_CONTEXT
    return RoIHeads(
        Pooler(box.POOLER_TYPE, box.POOLER_RESOLUTION, strides, box.POOLER_SAMPLING_RATIO, step),
        head,
        Predictor(channels * (1 + context), heads.NUM_CLASSES, box.CLS_AGNOSTIC_BBOX_REG),
        sampling=RegionSampling(
            heads.BATCH_SIZE_PER_IMAGE,
            heads.POSITIVE_FRACTION,
            (heads.IOU_THRESHOLDS[0], heads.IOU_THRESHOLDS[-1]),
            append_gt=heads.PROPOSAL_APPEND_GT,
            ignore_low_overlaps=list(heads.IOU_LABELS) == [-1, 0, 1],
        ),
        thresholds=thresholds(cfg),
        regression=BoxRegression(
            tuple(box.BBOX_REG_WEIGHTS), box.SMOOTH_L1_BETA, box.BBOX_REG_LOSS_WEIGHT
        ),
        context=context,
    )


def thresholds(cfg: CfgNode) -> Thresholds:
    """The config's thresholds for detections."""
    heads = cfg.MODEL.ROI_HEADS
    return Thresholds(heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE)


def has_test_improvements(cfg: CfgNode) -> bool:
    """Whether a config enables a test-time improvement, which :func:`build_improved` adds.

    False for a ``ProposalNetwork`` (a step of alternating training), which makes no detections.
    """
    whole = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    return whole and any(cfg.RESNET_DET[key] for key in TEST_IMPROVEMENTS)


def build_improved(
    detectors: Sequence[Detector], cfg: CfgNode, orders: Sequence[list[int] | None] | None = None
) -> Improved:
    """Wrap detectors of either engine in the test-time improvements that ``RESNET_DET`` enables.

    For the arguments see :class:`Improved`.
    """
    return Improved(
        detectors,
        thresholds(cfg),
        refine=cfg.RESNET_DET.BOX_REFINEMENT,
        multi_scale=bool(cfg.RESNET_DET.MULTI_SCALE_TEST),
        orders=orders,
    )


def build_augmented(detector: Detector, cfg: CfgNode) -> Augmented:
    """Wrap a detector of the embedded engine in the test-time augmentation of ``TEST.AUG``."""
    return Augmented(detector, thresholds(cfg))
