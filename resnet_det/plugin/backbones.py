"""Every net as a backbone in Detectron2's registry."""

import math

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.roi_heads import Res5ROIHeads

from ..config.defaults import ConfigError
from ..detector import appendix
from ..detector.net_keys import net_options
from ..nets import NETS, Stages, build_net, meta_net
from ..nets.fast import speed_up


class PaperBackbone(Stages, Backbone):
    """The trunk of a net as a Detectron2 backbone, with Detectron2's parameter names.

    Args:
        name: a key of ``NETS``.
        out_features: stages to return; default the one that the RoI heads start from.
        freeze_at: number of stages to freeze, counted from the stem.
        fast: :func:`resnet_det.nets.fast.speed_up`.
        options: as for :func:`resnet_det.build_net`.
    """

    def __init__(self, name, out_features=None, freeze_at=0, fast=True, **options):
        net = build_net(name, **options)
        trunk, _ = net.split(out_features)
        super().__init__(dict(trunk.named_children()), trunk.out_features)
        self.freeze(freeze_at)
        if fast:
            speed_up(self)
        self._shapes = {
            f: ShapeSpec(channels=net.channels[f], stride=net.strides[f]) for f in self.out_features
        }

    def output_shape(self):
        return dict(self._shapes)


def _own(cfg, key, default):
    """``RESNET_DET.<key>``; the default in a foreign project, whose config has no such node."""
    return cfg.get("RESNET_DET", {}).get(key, default)


def _build_c4(cfg, name, input_shape):
    appendix.check(cfg)
    if input_shape.channels != 3:
        raise ConfigError(f"MODEL.PIXEL_MEAN: {name} takes 3 channels, not {input_shape.channels}")
    features, options = cfg.MODEL.RESNETS.OUT_FEATURES, net_options(cfg, name)
    fast = _own(cfg, "FAST", True)
    try:
        return PaperBackbone(name, features, cfg.MODEL.BACKBONE.FREEZE_AT, fast, **options)
    except ValueError as error:
        raise ConfigError(f"MODEL.RESNETS.OUT_FEATURES: {name}: {error}") from error


def _check_stock_heads(cfg, name):
    """Refuse Detectron2's Res5ROIHeads on a net whose conv5_x it would build otherwise."""
    if (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME) != (
        "GeneralizedRCNN",
        "Res5ROIHeads",
    ):
        return
    _, head = meta_net(name, **net_options(cfg, name)).split()
    with torch.device("meta"):
        theirs, _ = Res5ROIHeads._build_res5_block(cfg)
    ours = {k: v.shape for k, v in head.state_dict().items()}
    if ours != {f"res5.{k}": v.shape for k, v in theirs.state_dict().items()}:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME: Res5ROIHeads always builds three bottleneck blocks with "
            f"projections, and {name} has another head. Use PaperROIHeads"
        )


def _build_fpn(cfg, name, input_shape, retinanet):
    bottom_up = _build_c4(cfg, name, input_shape)
    shapes, in_features = bottom_up.output_shape(), cfg.MODEL.FPN.IN_FEATURES
    missing = [f for f in in_features if f not in shapes]
    if missing or not in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES: {in_features}: use names of MODEL.RESNETS.OUT_FEATURES, "
            f"here {list(shapes)}"
        )
    last, channels = in_features[-1], cfg.MODEL.FPN.OUT_CHANNELS
    if retinanet:
        top = LastLevelP6P7(shapes[last].channels, channels, in_feature=last)
    else:
        top = LastLevelMaxPool()
        top.in_feature = f"p{int(math.log2(shapes[last].stride))}"
    return FPN(
        bottom_up,
        in_features,
        channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _register_backbones(name):
    def c4(cfg, input_shape):
        _check_stock_heads(cfg, name)
        return _build_c4(cfg, name, input_shape)

    def fpn(cfg, input_shape):
        return _build_fpn(cfg, name, input_shape, retinanet=False)

    def retinanet_fpn(cfg, input_shape):
        return _build_fpn(cfg, name, input_shape, retinanet=True)

    for suffix, build in (("", c4), ("_fpn", fpn), ("_retinanet_fpn", retinanet_fpn)):
        build.__name__ = name + suffix  # what the registry takes as the entry's name
        BACKBONE_REGISTRY.register(build)


for _name in NETS:
    _register_backbones(_name)
