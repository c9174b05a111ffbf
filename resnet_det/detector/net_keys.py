"""Check that a config's keys fit the net that ``MODEL.BACKBONE.NAME`` names, in either engine.

A net's name determines its depth, its widths and its head. Detectron2's keys for the same
properties must agree with the name or keep Detectron2's default. Keys for features that none of our
nets has (groups, deformable convolutions, DeepLab's stem) must be off. A test compares the lists
below with the keys that Detectron2's own builders read.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..nets import NETS, meta_net
from ..nets.catalog import check_name
from ..nets.classifier import Classifier
from ..nets.layers import NORMS
from .maps import TOP_LEVELS, detector_keys, pyramid_levels

# Detectron2's defaults for keys that a net's name determines. A key at its default is not checked.
RESNETS_DEFAULTS = {
    "DEPTH": 50, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256, "NORM": "FrozenBN",
}  # fmt: skip
BOX_HEAD_DEFAULTS = {"NUM_FC": 0, "FC_DIM": 1024}
MASK_HEAD_DEFAULTS = {
    "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
}  # fmt: skip
# RoI heads that run a net's own head per region.
OWN_HEADS = ("PaperROIHeads", "Res5ROIHeads")
# The improvements of Appendix B that change only testing.
TEST_IMPROVEMENTS = ("BOX_REFINEMENT", "MULTI_SCALE_TEST", "ENSEMBLE")


def own_key(cfg: CfgNode, key: str, default: Any) -> Any:
    """``RESNET_DET.<key>``, or the default if another project's config lacks ``RESNET_DET``."""
    return cfg.get("RESNET_DET", {}).get(key, default)


def net_options(cfg: CfgNode, name: str, norms: Collection[str] = tuple(NORMS)) -> dict[str, Any]:
    """The options of ``build_net`` that ``MODEL`` states for the net ``name``.

    Args:
        norms: the accepted values of ``MODEL.RESNETS.NORM``; the plugin has more than ``NORMS``.

    Raises:
        ConfigError: there is no such net, or the net does not support the values of some keys. The
            message names each key and the values it takes.
    """
    raise_faults(name, resnets_faults(cfg, name, norms))
    resnets = cfg.MODEL.RESNETS
    return {
        "norm": resnets.NORM,
        "stride_in_1x1": resnets.STRIDE_IN_1X1,
        "res5_dilation": resnets.RES5_DILATION,
        "in_channels": len(cfg.MODEL.PIXEL_MEAN),
    }


def raise_faults(name: str, faults: Sequence[str], head: str = "") -> None:
    """Raise one ConfigError that reports all ``faults``, if there are any.

    Args:
        name: the net.
        faults: one line per key: the key, its value, and the value to set.
        head: the ``head`` of :func:`resnet_det.configure` that sets these values, or "".
    """
    if not faults:
        return
    if len(faults) == 1:
        raise ConfigError(faults[0])
    helper = f" (resnet_det.configure(cfg, {name!r}, head={head!r}) sets them)" if head else ""
    lines = "".join(f"\n  {fault}" for fault in faults)
    raise ConfigError(f"{name} needs other values of {len(faults)} keys{helper}:{lines}")


def resnets_faults(cfg: CfgNode, name: str, norms: Collection[str] = tuple(NORMS)) -> list[str]:
    """One line per key of ``MODEL.RESNETS`` whose value the net ``name`` does not support.

    Args:
        norms: as for :func:`net_options`.

    Raises:
        ConfigError: there is no such net.
    """
    try:
        check_name(name)
    except ValueError as error:
        own = cfg.MODEL.BACKBONE.NAME.startswith(name)  # otherwise the name comes from the depth
        key = "BACKBONE.NAME" if own else "RESNETS.DEPTH"
        raise ConfigError(f"MODEL.{key}: {error}") from error
    resnets = cfg.MODEL.RESNETS
    faults = _faults("MODEL.RESNETS", resnets, resnets_of(name), RESNETS_DEFAULTS, name)
    net = meta_net(name)
    choices: dict[str, tuple] = {"RES5_DILATION": _dilations(net)}
    if net.has_norm:
        narrow = min(net.channels.values()) < 32  # too few channels for GN's 32 groups
        choices["NORM"] = tuple(norm for norm in norms if not (narrow and norm == "GN"))
    for key, values in choices.items():
        if resnets[key] not in values:
            takes = " or ".join(map(repr, values))
            faults.append(f"MODEL.RESNETS.{key}: {resnets[key]!r}: {name} takes {takes}")
    return faults


def trunk_faults(
    cfg: CfgNode, name: str, pyramid: str = "", norms: Collection[str] = tuple(NORMS)
) -> list[str]:
    """One line per key that a backbone on the net ``name`` cannot be built with.

    Args:
        pyramid: "" for the trunk alone, or the kind of pyramid on it, "fpn" or "retinanet".
        norms: as for :func:`net_options`.

    Raises:
        ConfigError: there is no such net.
    """
    faults = resnets_faults(cfg, name, norms)
    net = net_of(cfg, name)
    built = detector_keys(net, pyramid or "c4")
    given = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    if not set(given) <= set(net.strides):
        faults.append(
            f"MODEL.RESNETS.OUT_FEATURES: {given}: {name} has {', '.join(net.strides)}; its "
            f"{'pyramid' if pyramid else 'C4 detector'} takes {built['MODEL.RESNETS.OUT_FEATURES']}"
        )
    if not pyramid:
        return faults
    features = list(cfg.MODEL.FPN.IN_FEATURES)
    takes = f"{name} takes {built['MODEL.FPN.IN_FEATURES']}"
    if not features or not set(features) <= set(given):
        faults.append(
            f"MODEL.FPN.IN_FEATURES: {features}: use names of MODEL.RESNETS.OUT_FEATURES, which is "
            f"{given}; {takes} in both"
        )
    elif set(features) <= set(net.strides) and not _carry_pyramid(net, features):
        strides = [net.strides[f] for f in features]
        dilation = cfg.MODEL.RESNETS.RES5_DILATION
        faults.append(
            f"MODEL.FPN.IN_FEATURES: {features}: their strides are {strides} (with "
            f"MODEL.RESNETS.RES5_DILATION {dilation}), but each must be twice the one before; {takes}"
        )
    return faults


def _carry_pyramid(net: Classifier, features: Sequence[str]) -> bool:
    """Whether the net has these stages, each with twice the stride of the one before."""
    strides = [net.strides.get(name, 0) for name in features]
    return min(strides, default=0) > 0 and all(b == 2 * a for a, b in pairwise(strides))


def check_detector(
    cfg: CfgNode,
    name: str,
    pyramid: str = "",
    own_heads: Sequence[str] = OWN_HEADS,
    more_faults: Sequence[str] = (),
    norms: Collection[str] = tuple(NORMS),
) -> None:
    """Check all keys that a detector on the net ``name`` needs, before anything is built.

    Args:
        pyramid: as for :func:`trunk_faults`.
        own_heads: the values of ``MODEL.ROI_HEADS.NAME`` that run the net's own head per region.
        more_faults: lines to report in addition to those found here.
        norms: as for :func:`net_options`.

    Raises:
        ConfigError: some keys do not fit. The message names each key and the value to set.
    """
    faults = [*trunk_faults(cfg, name, pyramid, norms), *more_faults]
    model, net = cfg.MODEL, net_of(cfg, name)
    kind = "retinanet" if model.META_ARCHITECTURE == "RetinaNet" else pyramid or "c4"
    own = has_roi_heads(cfg) and model.ROI_HEADS.NAME in own_heads
    maps, cut = list(model.RESNETS.OUT_FEATURES), net.trunk_names[-1]
    if pyramid:
        features = list(model.FPN.IN_FEATURES)
        if not _carry_pyramid(net, features):
            features = detector_keys(net, pyramid)["MODEL.FPN.IN_FEATURES"]
        maps = pyramid_levels(net, features, TOP_LEVELS[pyramid])
        faults += _pyramid_head_faults(model, name) if own else []
    elif not set(maps) <= set(net.strides):
        maps = [cut]
    elif own and cut not in maps:
        head = f"the head of {name} takes {cut}"
        faults.append(f"MODEL.RESNETS.OUT_FEATURES: {maps}: {head}: write [{cut!r}]")
        maps = [cut]
    for key in _map_keys(cfg, own and not pyramid):
        node, leaf = key.split(".")
        names = list(model[node][leaf])
        if not names or not set(names) <= set(maps):
            value = detector_keys(net, kind).get(f"MODEL.{key}", maps)
            value = value if set(value) <= set(maps) else maps
            faults.append(f"MODEL.{key}: {names}: the backbone gives {value}")
    if own and not pyramid:
        faults += head_faults(cfg, name)
    raise_faults(name, faults, kind)


def _pyramid_head_faults(model: CfgNode, name: str) -> list[str]:
    """What to set where the RoI heads on a pyramid are those that run the net's own head."""
    given, takes = model.ROI_HEADS.NAME, f"{name}_fpn takes 'StandardROIHeads'"
    faults = [f"MODEL.ROI_HEADS.NAME: {given!r}: takes a net without a pyramid; {takes}"]
    box = model.ROI_BOX_HEAD
    if box.NAME == "":
        faults.append("MODEL.ROI_BOX_HEAD.NAME: '': StandardROIHeads takes 'FastRCNNConvFCHead'")
    if box.NUM_FC == box.NUM_CONV == 0:
        faults.append("MODEL.ROI_BOX_HEAD.NUM_FC: 0: FastRCNNConvFCHead takes 1 or more, as 2")
    return faults


def has_roi_heads(cfg: CfgNode) -> bool:
    """Whether the detector has RoI heads. RetinaNet and ProposalNetwork have none."""
    return cfg.MODEL.META_ARCHITECTURE not in ("RetinaNet", "ProposalNetwork")


def _map_keys(cfg: CfgNode, own_heads: bool) -> list[str]:
    """The keys under ``MODEL`` that name maps of the backbone, for Detectron2's own detectors."""
    keys: list[str] = []
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        return ["RETINANET.IN_FEATURES"]
    generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if generator in ("RPN", "PaperRPN", "RRPN") and not cfg.MODEL.LOAD_PROPOSALS:
        keys.append("RPN.IN_FEATURES")
    if has_roi_heads(cfg) and not own_heads:
        keys.append("ROI_HEADS.IN_FEATURES")
    return keys


def check_head(cfg: CfgNode, name: str) -> None:
    """Check the keys of RoI heads that run the net's own head per region.

    Raises:
        ConfigError: some keys do not fit the head. The message names each key, its value, and the
            value that the head takes.
    """
    raise_faults(name, head_faults(cfg, name), "c4")


def head_faults(cfg: CfgNode, name: str) -> list[str]:
    """One line per key that RoI heads on the head of the net ``name`` cannot be built with."""
    model, net = cfg.MODEL, meta_net(name)
    box, features, fc = model.ROI_BOX_HEAD, net.trunk_names[-1:], net.has_fully_connected_head
    head = f"the head of {name}"
    faults = _faults("MODEL", model, {"KEYPOINT_ON": False}, {}, head)
    built: dict[str, Any] = {
        "NAME": "", "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "TRAIN_ON_PRED_BOXES": False,
        **BOX_HEAD_DEFAULTS,
    }  # fmt: skip
    if fc:
        built |= {"NUM_FC": len(net.head_names), "FC_DIM": net.channels[net.head_names[-1]]}
    faults += _faults("MODEL.ROI_BOX_HEAD", box, built, BOX_HEAD_DEFAULTS, head)
    faults += _faults("MODEL.ROI_HEADS", model.ROI_HEADS, {"IN_FEATURES": list(features)}, {}, head)
    if fc and box.POOLER_RESOLUTION != net.pooled:
        faults.append(
            f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION: {box.POOLER_RESOLUTION}: "
            f"{net.head_names[0]} of {name} takes {net.pooled}"
        )
    if model.MASK_ON and fc:
        faults.append(
            f"MODEL.MASK_ON: True: {head} returns vectors, but masks need maps: set False, or use "
            f"{name}_fpn with StandardROIHeads"
        )
    elif model.MASK_ON:  # boxes and masks share one pooler
        built = {key: box[key] for key in MASK_HEAD_DEFAULTS}
        faults += _faults(
            "MODEL.ROI_MASK_HEAD", model.ROI_MASK_HEAD, built, MASK_HEAD_DEFAULTS, head
        )
    return faults


def check_appendix(cfg: CfgNode) -> None:
    """Check the requirements of Appendix B's improvements. A config without ``RESNET_DET`` passes.

    Raises:
        ConfigError: a requirement is not met. The message names the key.
    """
    on = [key for key in ("GLOBAL_CONTEXT", *TEST_IMPROVEMENTS) if own_key(cfg, key, None)]
    if not on:
        return
    key, model = f"RESNET_DET.{on[0]}", cfg.MODEL
    if model.ROI_HEADS.NAME != "PaperROIHeads":
        raise ConfigError(
            f"{key}: needs MODEL.ROI_HEADS.NAME PaperROIHeads, not {model.ROI_HEADS.NAME}"
        )
    architecture = model.META_ARCHITECTURE
    if model.MASK_ON or architecture not in ("GeneralizedRCNN", "ProposalNetwork"):
        raise ConfigError(
            f"{key}: supports only box detectors (MODEL.META_ARCHITECTURE GeneralizedRCNN, "
            f"MODEL.MASK_ON False), not {architecture} with MASK_ON {model.MASK_ON}"
        )
    sides = list(own_key(cfg, "MULTI_SCALE_TEST", ()))
    if sides and (len(sides) < 2 or sides[0] < 1 or sides != sorted(set(sides))):
        raise ConfigError(
            f"RESNET_DET.MULTI_SCALE_TEST: {sides}: give two or more shorter sides, ascending"
        )
    if sides and cfg.INPUT.MIN_SIZE_TEST < 1:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TEST: {cfg.INPUT.MIN_SIZE_TEST}: RESNET_DET.MULTI_SCALE_TEST needs "
            "a shorter side above 0, at which proposals are made"
        )


def check_even_positives(cfg: CfgNode) -> None:
    """Raise ConfigError for ``RESNET_DET.EVEN_POSITIVES`` with another proposal generator than
    PaperRPN, which would ignore it."""
    generator = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if own_key(cfg, "EVEN_POSITIVES", False) and generator != "PaperRPN":
        raise ConfigError(
            "RESNET_DET.EVEN_POSITIVES: needs MODEL.PROPOSAL_GENERATOR.NAME PaperRPN, not "
            f"{generator}"
        )


def resnets_of(name: str) -> dict[str, Any]:
    """The values of the keys of ``MODEL.RESNETS`` that the net's name determines."""
    net = meta_net(name)
    first, second = (net.channels[stage] for stage in net.stage_names[:2])
    fixed = {
        "DEPTH": NETS[name].depth,
        "STEM_OUT_CHANNELS": first,
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "DEFORM_ON_PER_STAGE": [False] * 4,
        "DEFORM_MODULATED": False,
        "DEFORM_NUM_GROUPS": 1,
        # The DeepLab project adds these keys. Its defaults describe a different net from ours.
        "STEM_TYPE": "basic",
        "RES4_DILATION": 1,
        "RES5_MULTI_GRID": [1, 1, 1],
    }
    if not net.has_norm:  # VGG, whose second stage no key describes
        return fixed | {"NORM": "", "RES2_OUT_CHANNELS": RESNETS_DEFAULTS["RES2_OUT_CHANNELS"]}
    return fixed | {"RES2_OUT_CHANNELS": second}


def _faults(
    path: str, node: CfgNode, built: Mapping[str, Any], defaults: Mapping[str, Any], what: str
) -> list[str]:
    """List the values of ``node`` that differ from ``built`` and from Detectron2's default."""
    faults = []
    for key, value in built.items():
        if key not in node:  # the project, or the embedded engine, has no such key
            continue
        given = list(node[key]) if isinstance(node[key], tuple) else node[key]
        if given not in (value, defaults.get(key, value)):
            faults.append(f"{path}.{key}: {given!r}: {what} takes {value!r}")
    return faults


def net_of(cfg: CfgNode, name: str) -> Classifier:
    """The net on the meta device, with ``MODEL.RESNETS.RES5_DILATION`` if the net supports it."""
    dilation = cfg.MODEL.RESNETS.RES5_DILATION
    return meta_net(name, res5_dilation=dilation if dilation in _dilations(meta_net(name)) else 1)


def _dilations(net: Classifier) -> tuple[int, ...]:
    """The values of ``MODEL.RESNETS.RES5_DILATION`` that a net supports."""
    return (1, 2) if "res5" in net.stage_names else (1,)
