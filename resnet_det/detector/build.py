"""Build the embedded detector from a config: the only place that reads MODEL.*."""

from torch import nn

from ..config.defaults import ConfigError
from ..nets import Stages, build_net
from ..nets.fast import channels_last_on_gpu, speed_up, take_stride
from ..nets.fpn import FPN
from ..nets.layers import FullyConnected, rename_parameters
from . import appendix
from .faster_rcnn import FasterRCNN, ProposalNetwork
from .net_keys import check_head, net_options
from .roi_heads import Pooler, RoIHeads
from .rpn import RPN

DETECTRON2_BACKBONES = ("build_resnet_backbone", "build_resnet_fpn_backbone")


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
