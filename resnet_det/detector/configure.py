"""Set the keys of a config that a net needs."""

import copy

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..nets.catalog import check_name
from .maps import HEADS, detector_keys
from .net_keys import RESNETS_DEFAULTS, net_of, resnets_of

SUFFIXES = {"c4": "", "fpn": "_fpn", "retinanet": "_retinanet_fpn"}


def configure(cfg: CfgNode, name: str, head: str = "c4") -> None:
    """Set every key that a detector on the net ``name`` needs: features, levels, pooler, anchors.

    The same keys are set for every net; their values follow from its stages and strides. For
    ``paper_resnet50`` they equal Detectron2's own C4, FPN and RetinaNet configs. An empty
    ``MODEL.RESNETS.NORM``, as VGG has it, becomes FrozenBN for a net with norms, and
    ``RES5_DILATION`` 1 for a net without ``res5``. Other keys, such as those of data and schedule,
    keep their values.

    Args:
        cfg: Detectron2's config or ours. It is changed in place.
        name: a key of ``NETS``, such as "paper_vgg16".
        head: "c4" (the net's own head per region), "fpn" (Faster R-CNN on a pyramid) or
            "retinanet".

    Raises:
        ConfigError: the net or head does not exist, or ``head`` is "retinanet" and the config is
            the embedded engine's, which has no RetinaNet.
    """
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if head not in HEADS:
        raise ConfigError(f"head {head!r}: use one of {', '.join(HEADS)}")
    if head == "retinanet" and "RETINANET" not in cfg.MODEL:
        raise ConfigError(
            "head 'retinanet': the embedded engine has no RetinaNet: use Detectron2's get_cfg()"
        )
    net = net_of(cfg, name)
    keys = {f"MODEL.RESNETS.{key}": value for key, value in resnets_of(name).items()}
    if net.has_norm and not cfg.MODEL.RESNETS.NORM:  # as it is for VGG
        keys["MODEL.RESNETS.NORM"] = RESNETS_DEFAULTS["NORM"]
    if "res5" not in net.stage_names:
        keys["MODEL.RESNETS.RES5_DILATION"] = 1
    keys |= {"MODEL.BACKBONE.NAME": name + SUFFIXES[head], **detector_keys(net, head)}
    for key, value in keys.items():
        *nodes, leaf = key.split(".")
        node = cfg
        for part in nodes:
            node = node.get(part, {})
        if leaf in node:  # a config of ours lacks keys that only Detectron2 has
            node[leaf] = copy.deepcopy(value)
