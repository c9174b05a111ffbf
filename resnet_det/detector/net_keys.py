"""Check that a config's keys fit the net that ``MODEL.BACKBONE.NAME`` names, in either engine.

A net's name determines its depth, its widths and its head. Detectron2's keys for the same
properties must agree with the name or keep Detectron2's default. Keys for features that none of our
nets has (groups, deformable convolutions, DeepLab's stem) must be off. A test compares the lists
below with the keys that Detectron2's own builders read.
"""

from collections.abc import Collection, Mapping
from typing import Any

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..nets import NETS, meta_net
from ..nets.catalog import check_name
from ..nets.layers import NORMS

# Detectron2's defaults for keys that a net's name determines. A key at its default is not checked.
RESNETS_DEFAULTS = {
    "DEPTH": 50, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256, "NORM": "FrozenBN",
}  # fmt: skip
BOX_HEAD_DEFAULTS = {"NUM_FC": 0, "FC_DIM": 1024}
MASK_HEAD_DEFAULTS = {
    "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
}  # fmt: skip
# The improvements of Appendix B that change only testing.
IN_TEST = ("BOX_REFINEMENT", "MULTI_SCALE_TEST", "ENSEMBLE")


def own_key(cfg: CfgNode, key: str, default: Any) -> Any:
    """``RESNET_DET.<key>``, or the default if another project's config lacks ``RESNET_DET``."""
    return cfg.get("RESNET_DET", {}).get(key, default)


def net_options(cfg: CfgNode, name: str, norms: Collection[str] = tuple(NORMS)) -> dict[str, Any]:
    """The options of ``build_net`` that ``MODEL`` states for the net ``name``.

    Args:
        norms: the accepted values of ``MODEL.RESNETS.NORM``; the plugin has more than ``NORMS``.

    Raises:
        ConfigError: there is no such net, or the net does not support the value of a key. The
            message names the key and the values it takes.
    """
    try:
        check_name(name)
    except ValueError as error:
        own = cfg.MODEL.BACKBONE.NAME.startswith(name)  # otherwise the name comes from the depth
        key = "BACKBONE.NAME" if own else "RESNETS.DEPTH"
        raise ConfigError(f"MODEL.{key}: {error}") from error
    resnets = cfg.MODEL.RESNETS
    _check_keys("MODEL.RESNETS", resnets, _resnets_of(name), RESNETS_DEFAULTS, name)
    net = meta_net(name)
    choices: dict[str, tuple] = {"RES5_DILATION": (1, 2) if "res5" in net.stage_names else (1,)}
    if net.has_norm:
        narrow = min(net.channels.values()) < 32  # too few channels for GN's 32 groups
        choices["NORM"] = tuple(norm for norm in norms if not (narrow and norm == "GN"))
    for key, values in choices.items():
        if resnets[key] not in values:
            raise ConfigError(
                f"MODEL.RESNETS.{key}: {resnets[key]!r}: {name} takes "
                f"{' or '.join(map(repr, values))}"
            )
    return {
        "norm": resnets.NORM,
        "stride_in_1x1": resnets.STRIDE_IN_1X1,
        "res5_dilation": resnets.RES5_DILATION,
        "in_channels": len(cfg.MODEL.PIXEL_MEAN),
    }


def check_head(cfg: CfgNode, name: str) -> None:
    """Check the keys of RoI heads that run the net's own head per region.

    Raises:
        ConfigError: a key does not fit the head. The message names the key, its value, and the
            value that the head takes.
    """
    model, net = cfg.MODEL, meta_net(name)
    box, features, fc = model.ROI_BOX_HEAD, net.trunk_names[-1:], net.has_fully_connected_head
    head = f"the head of {name}"
    _check_keys("MODEL", model, {"KEYPOINT_ON": False}, {}, head)
    built: dict[str, Any] = {
        "NAME": "", "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "TRAIN_ON_PRED_BOXES": False,
        **BOX_HEAD_DEFAULTS,
    }  # fmt: skip
    if fc:
        built |= {"NUM_FC": len(net.head_names), "FC_DIM": net.channels[net.head_names[-1]]}
    _check_keys("MODEL.ROI_BOX_HEAD", box, built, BOX_HEAD_DEFAULTS, head)
    _check_keys("MODEL.ROI_HEADS", model.ROI_HEADS, {"IN_FEATURES": list(features)}, {}, head)
    if fc and box.POOLER_RESOLUTION != net.pooled:
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION: {box.POOLER_RESOLUTION}: "
            f"{net.head_names[0]} of {name} takes {net.pooled}"
        )
    if model.MASK_ON and fc:
        raise ConfigError(
            f"MODEL.MASK_ON: {head} returns vectors, but masks need maps: use StandardROIHeads"
        )
    if model.MASK_ON:  # boxes and masks share one pooler
        built = {key: box[key] for key in MASK_HEAD_DEFAULTS}
        _check_keys("MODEL.ROI_MASK_HEAD", model.ROI_MASK_HEAD, built, MASK_HEAD_DEFAULTS, head)


def check_appendix(cfg: CfgNode) -> None:
    """Check the requirements of Appendix B's improvements. A config without ``RESNET_DET`` passes.

    Raises:
        ConfigError: a requirement is not met. The message names the key.
    """
    on = [key for key in ("GLOBAL_CONTEXT", *IN_TEST) if own_key(cfg, key, None)]
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


def _resnets_of(name: str) -> dict[str, Any]:
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


def _check_keys(path: str, node: CfgNode, built: Mapping, defaults: Mapping, what: str) -> None:
    """Raise if a value of ``node`` is neither the one in ``built`` nor Detectron2's default."""
    for key, value in built.items():
        if key not in node:  # the project, or the embedded engine, has no such key
            continue
        given = list(node[key]) if isinstance(node[key], tuple) else node[key]
        if given not in (value, defaults.get(key, value)):
            raise ConfigError(f"{path}.{key}: {given!r}: {what} takes {value!r}")
