"""Which values of Detectron2's keys fit a net: the others are refused, whichever the engine.

The name of a net says what it is made of: its depth, its widths, its head. Keys of Detectron2 that
say the same must agree with it or be left at Detectron2's default; keys that ask for what none of
our nets has (groups, deformable convolutions, DeepLab's stem) must be off. A test compares the
lists with what Detectron2's own builders read.
"""

from ..config.defaults import ConfigError
from ..nets import NETS, meta_net
from ..nets.catalog import check_name
from ..nets.layers import NORMS

# Detectron2's defaults of the keys that a net's name decides: they say nothing.
RESNETS_DEFAULTS = {
    "DEPTH": 50, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256, "NORM": "FrozenBN",
}  # fmt: skip
BOX_HEAD_DEFAULTS = {"NUM_FC": 0, "FC_DIM": 1024}
MASK_HEAD_DEFAULTS = {
    "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_TYPE": "ROIAlignV2",
}  # fmt: skip


def net_options(cfg, name):
    """The options of ``build_net`` that ``MODEL.RESNETS`` states for the net ``name``.

    Raises:
        ConfigError: there is no such net; or names a key whose value the net does not have, and
            the value to set.
    """
    try:
        check_name(name)
    except ValueError as error:
        own = cfg.MODEL.BACKBONE.NAME.startswith(name)  # else Detectron2's, of so many layers
        raise ConfigError(
            f"MODEL.{'BACKBONE.NAME' if own else 'RESNETS.DEPTH'}: {error}"
        ) from error
    resnets = cfg.MODEL.RESNETS
    _refuse_others("MODEL.RESNETS", resnets, _resnets_of(name), RESNETS_DEFAULTS, name)
    net = meta_net(name)
    choices = {"RES5_DILATION": (1, 2) if "res5" in net.stage_names else (1,)}
    if net.has_norm:
        narrow = min(net.channels.values()) < 32  # too few channels for GN's 32 groups
        choices["NORM"] = tuple(norm for norm in NORMS if not (narrow and norm == "GN"))
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
    }


def check_head(cfg, name):
    """Refuse keys of other RoI heads where the net's own head runs per region.

    Raises:
        ConfigError: as :func:`net_options`.
    """
    model, net = cfg.MODEL, meta_net(name)
    head = f"the head of {name}"
    _refuse_others("MODEL", model, {"KEYPOINT_ON": False}, {}, head)
    built = {
        "NAME": "", "NUM_CONV": 0, "CONV_DIM": 256, "NORM": "", "TRAIN_ON_PRED_BOXES": False,
        **BOX_HEAD_DEFAULTS,
    }  # fmt: skip
    if net.has_fully_connected_head:
        built |= {"NUM_FC": len(net.head_names), "FC_DIM": net.channels[net.head_names[-1]]}
    _refuse_others("MODEL.ROI_BOX_HEAD", model.ROI_BOX_HEAD, built, BOX_HEAD_DEFAULTS, head)
    if model.MASK_ON:  # one pooling serves boxes and masks
        built = {key: model.ROI_BOX_HEAD[key] for key in MASK_HEAD_DEFAULTS}
        _refuse_others("MODEL.ROI_MASK_HEAD", model.ROI_MASK_HEAD, built, MASK_HEAD_DEFAULTS, head)


def _resnets_of(name):
    """What the net has of the keys of ``MODEL.RESNETS`` that cannot be chosen."""
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
        # The DeepLab project's. Its defaults ask for another net than ours.
        "STEM_TYPE": "basic",
        "RES4_DILATION": 1,
        "RES5_MULTI_GRID": [1, 1, 1],
    }
    if not net.has_norm:  # VGG, whose second stage no key describes
        return fixed | {"NORM": "", "RES2_OUT_CHANNELS": RESNETS_DEFAULTS["RES2_OUT_CHANNELS"]}
    return fixed | {"RES2_OUT_CHANNELS": second}


def _refuse_others(path, node, built, defaults, what):
    """Refuse values of ``node`` that are neither what is built nor a default that says nothing."""
    for key, value in built.items():
        if key not in node:  # a project that has no such key, or the embedded engine
            continue
        given = list(node[key]) if isinstance(node[key], tuple) else node[key]
        if given not in (value, defaults.get(key, value)):
            raise ConfigError(f"{path}.{key}: {given!r}: {what} takes {value!r}")
