"""Our nets with every normalisation layer of Detectron2."""

from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm

from ..detector import net_keys
from ..nets import Classifier, build_net
from ..nets.layers import NORMS, Norm

DETECTRON2_NORMS = ("naiveSyncBN", "naiveSyncBN_N", "LN")  # what get_norm knows and NORMS does not
ALL_NORMS = (*NORMS, *DETECTRON2_NORMS)


def build_with_norm(name: str, *, norm: Norm = "BN", **options: Any) -> Classifier:
    """:func:`resnet_det.build_net`, with the norms of ``DETECTRON2_NORMS`` too."""
    if isinstance(norm, str) and norm in DETECTRON2_NORMS:
        norm = partial(get_norm, norm)
    return build_net(name, norm=norm, **options)


def net_options(cfg: CfgNode, name: str) -> dict[str, Any]:
    """The options of :func:`build_with_norm`, as :func:`resnet_det.detector.net_keys.net_options`."""
    return net_keys.net_options(cfg, name, ALL_NORMS)
