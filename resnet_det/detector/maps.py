"""Which maps of a net a detector takes, and the keys of a config that say so."""

import math
from typing import Any

from ..nets.classifier import Classifier

# The levels that each kind of pyramid adds above the net's coarsest map.
TOP_LEVELS = {"fpn": 1, "retinanet": 2}
HEADS = ("c4", *TOP_LEVELS)


def pyramid_features(net: Classifier) -> list[str]:
    """The last stage of each stride, from stride 4 on; a CIFAR net's from stride 1 on.

    >>> pyramid_features(meta_net("paper_vgg16"))
    ['conv3', 'conv4', 'conv5']
    """
    coarsest = max(net.strides.values())
    last = {stride: stage for stage, stride in net.strides.items()}
    return [stage for stride, stage in last.items() if stride >= min(4, coarsest // 4)]


def pyramid_levels(net: Classifier, features: list[str], top_levels: int) -> list[str]:
    """Detectron2's names of a pyramid's levels: ``p3`` has stride 2**3.

    Args:
        features: the stages that the pyramid is built on, finest first.
        top_levels: the number of levels above the coarsest of them.
    """
    levels = [int(math.log2(net.strides[f])) for f in features]
    return [f"p{n}" for n in [*levels, *range(levels[-1] + 1, levels[-1] + 1 + top_levels)]]


def detector_keys(net: Classifier, head: str) -> dict[str, Any]:
    """The keys that differ between Detectron2's C4, FPN and RetinaNet configs, for a net.

    For ``paper_resnet50`` they are those of Detectron2's ``Base-RCNN-C4.yaml``,
    ``Base-RCNN-FPN.yaml`` and ``Base-RetinaNet.yaml``. Other nets have other strides: the sides of
    their anchors have the same ratio to the stride.

    Args:
        head: one of ``HEADS``.

    Returns:
        Dotted keys and their values.
    """
    if head == "c4":
        cut = net.trunk_names[-1]
        stride = net.strides[cut]
        return {
            "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
            "MODEL.RESNETS.OUT_FEATURES": [cut],
            "MODEL.ANCHOR_GENERATOR.SIZES": [[2 * stride * 2**i for i in range(5)]],
            "MODEL.RPN.IN_FEATURES": [cut],
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
            "MODEL.ROI_HEADS.NAME": "PaperROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": [cut],
            "MODEL.ROI_BOX_HEAD.NAME": "",
            "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": net.pooled,
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": net.pooled,
        }
    features = pyramid_features(net)
    if head == "retinanet":
        features = features[-3:]
    levels = pyramid_levels(net, features, TOP_LEVELS[head])
    strides = [2 ** int(level[1:]) for level in levels]
    keys: dict[str, Any] = {
        "MODEL.RESNETS.OUT_FEATURES": features,
        "MODEL.FPN.IN_FEATURES": features,
    }
    if head == "retinanet":
        return keys | {
            "MODEL.META_ARCHITECTURE": "RetinaNet",
            "MODEL.ANCHOR_GENERATOR.SIZES": [
                [4 * s * 2 ** (i / 3) for i in range(3)] for s in strides
            ],
            "MODEL.RETINANET.IN_FEATURES": levels,
            "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.0,
        }
    return keys | {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8 * s] for s in strides],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": levels[:-1],
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    }
