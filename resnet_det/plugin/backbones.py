"""Every net as a backbone in Detectron2's registry."""

import inspect
import math
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ROI_HEADS_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.meta_arch import GeneralizedRCNN, ProposalNetwork, RetinaNet
from detectron2.modeling.roi_heads import Res5ROIHeads

from ..config.defaults import with_values
from ..detector.net_keys import (
    OWN_HEADS,
    check_appendix,
    check_detector,
    check_even_positives,
    has_roi_heads,
    own_key,
    raise_faults,
    trunk_faults,
)
from ..nets import NETS, Stages
from ..nets.fast import speed_up
from ..nets.resnet import Block
from .norms import ALL_NORMS, build_with_norm, net_options
from .registries import suggest_names

STOCK_HEAD = Res5ROIHeads._build_res5_block.__func__  # builds the head, also in derived classes


class PaperBackbone(Stages, Backbone):
    """The trunk of a net as a Detectron2 backbone, with Detectron2's parameter names.

    It takes normalised images (N, C, H, W) and returns the maps of ``out_features`` by name.

    Args:
        name: a key of ``NETS``.
        out_features: stages to return; by default the one that the RoI heads read.
        freeze_at: number of stages to freeze, counted from the first (``stem`` or ``conv1``).
        fast: apply :func:`resnet_det.nets.fast.speed_up`.
        options: as for :func:`resnet_det.build_net`; ``norm`` may be any of Detectron2's.

    Raises:
        ValueError: there is no net or stage of this name, or the net lacks an option.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
        fast: bool = True,
        **options: Any,
    ) -> None:
        net = build_with_norm(name, **options)
        trunk, _ = net.split(out_features)
        super().__init__(dict(trunk.named_children()), trunk.out_features)
        self.freeze(freeze_at)
        if fast:
            speed_up(self)
        self._shapes = {
            f: ShapeSpec(channels=net.channels[f], stride=net.strides[f]) for f in self.out_features
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)


def build_c4(cfg: CfgNode, name: str, input_shape: ShapeSpec) -> PaperBackbone:
    """Build the trunk of the net ``name`` with the config's ``MODEL.RESNETS`` and
    ``MODEL.BACKBONE``.

    Raises:
        ConfigError: a key does not fit the net. The message names the key.
    """
    check_appendix(cfg)
    features = cfg.MODEL.RESNETS.OUT_FEATURES
    options = net_options(cfg, name) | {"in_channels": input_shape.channels}
    fast = own_key(cfg, "FAST", True)
    return PaperBackbone(name, features, cfg.MODEL.BACKBONE.FREEZE_AT, fast, **options)


def build_fpn(cfg: CfgNode, name: str, input_shape: ShapeSpec, retinanet: bool) -> FPN:
    """Build Detectron2's pyramid on :func:`build_c4`, with RetinaNet's or Faster R-CNN's top
    levels.

    Raises:
        ConfigError: see :func:`build_c4`.
    """
    bottom_up = build_c4(cfg, name, input_shape)
    shapes, in_features = bottom_up.output_shape(), cfg.MODEL.FPN.IN_FEATURES
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


def check_keys(cfg: CfgNode, name: str, pyramid: str = "") -> None:
    """Check every key that the net ``name`` needs, before anything is built.

    The keys of a detector are checked only while one is built: a backbone alone needs none of them.

    Args:
        pyramid: "" for the trunk alone, or the kind of pyramid on it, "fpn" or "retinanet".

    Raises:
        ConfigError: some keys do not fit. The message names each key and the value to set.
    """
    architecture = detector_built()
    if architecture is None:
        raise_faults(name, trunk_faults(cfg, name, pyramid, ALL_NORMS))
        return
    # A subclass may have a name of its own.
    cfg = with_values(cfg, {"MODEL.META_ARCHITECTURE": architecture})
    faults = [] if pyramid else stock_head_faults(cfg, name)
    own_heads = OWN_HEADS if pyramid else ("PaperROIHeads",)
    if faults:
        own_heads = (cfg.MODEL.ROI_HEADS.NAME,)
    check_detector(cfg, name, pyramid, own_heads, faults, ALL_NORMS)
    check_even_positives(cfg)


def detector_built() -> str | None:
    """The name of Detectron2's detector that is being built, itself or as the base of a subclass;
    None if a backbone is built alone.

    Only the callers tell: Detectron2 gives a backbone's builder the same arguments in both cases,
    and its default config names RoI heads that a backbone alone does not need. These heads cannot
    check the net themselves, for they are Detectron2's own.
    """
    detectors = {
        d.from_config.__func__.__code__: d.__name__
        for d in (GeneralizedRCNN, ProposalNetwork, RetinaNet)
    }
    callers = traceback.walk_stack(inspect.currentframe())
    return next((detectors[f.f_code] for f, _ in callers if f.f_code in detectors), None)


def stock_head_faults(cfg: CfgNode, name: str) -> list[str]:
    """One line if Detectron2's Res5ROIHeads, or a class that is derived from it, would not build the
    net's own head."""
    heads = dict(iter(ROI_HEADS_REGISTRY)).get(cfg.MODEL.ROI_HEADS.NAME)
    build = getattr(heads, "_build_res5_block", None)
    if not has_roi_heads(cfg) or getattr(build, "__func__", build) is not STOCK_HEAD:
        return []
    with torch.device("meta"):  # without the config's options, which are checked elsewhere
        _, head = build_with_norm(name, norm="FrozenBN").split()
        stock, _ = Res5ROIHeads._build_res5_block(get_cfg())
    own = {k: v.shape for k, v in head.state_dict().items()}
    same = own == {f"res5.{k}": v.shape for k, v in stock.state_dict().items()}
    blocks = [m for m in head.modules() if isinstance(m, Block)]
    if same and all(type(block).forward is Block.forward for block in blocks):
        return []
    fault = f"{cfg.MODEL.ROI_HEADS.NAME!r}: always builds three bottleneck blocks with projections"
    takes = "takes 'PaperROIHeads' or a class that is derived from it"
    return [f"MODEL.ROI_HEADS.NAME: {fault}; {name} has another head and {takes}"]


def _register(name: str) -> None:
    def c4(cfg: CfgNode, input_shape):
        check_keys(cfg, name)
        return build_c4(cfg, name, input_shape)

    def fpn(cfg: CfgNode, input_shape):
        check_keys(cfg, name, "fpn")
        return build_fpn(cfg, name, input_shape, retinanet=False)

    def retinanet_fpn(cfg: CfgNode, input_shape):
        check_keys(cfg, name, "retinanet")
        return build_fpn(cfg, name, input_shape, retinanet=True)

    for suffix, build in (("", c4), ("_fpn", fpn), ("_retinanet_fpn", retinanet_fpn)):
        build.__name__ = name + suffix  # the registry's name of the entry
        BACKBONE_REGISTRY.register(build)


for _name in NETS:
    _register(_name)
suggest_names(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME")
