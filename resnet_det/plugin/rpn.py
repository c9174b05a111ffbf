"""The proposal generator ``PaperRPN`` for Detectron2."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from torch import Tensor

from ..detector.net_keys import own_key
from ..detector.rpn import keep_evenly


class RememberingMatcher:
    """A Detectron2 Matcher that keeps its last result.

    Attributes:
        matched: the object of each anchor, from the last call.
    """

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher

    def __call__(self, quality: Tensor) -> tuple[Tensor, Tensor]:
        self.matched, labels = self.matcher(quality)
        return self.matched, labels


@PROPOSAL_GENERATOR_REGISTRY.register()
class PaperRPN(RPN):
    """Detectron2's RPN, which can draw the positive anchors evenly over the objects of an image.

    Args:
        even_positives: draw them with :func:`resnet_det.detector.rpn.keep_evenly`.
        others: arguments of Detectron2's ``RPN``.
    """

    @configurable
    def __init__(self, *, even_positives: bool = False, **others: Any) -> None:
        super().__init__(**others)
        self.even_positives = even_positives
        if even_positives:
            self.anchor_matcher: Any = RememberingMatcher(self.anchor_matcher)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        even = own_key(cfg, "EVEN_POSITIVES", False)
        return super().from_config(cfg, input_shape) | {"even_positives": even}

    def _subsample_labels(self, label: Tensor) -> Tensor:
        if self.even_positives:
            count = int(self.batch_size_per_image * self.positive_fraction)
            keep_evenly(label, self.anchor_matcher.matched.to(label.device), count)
        return super()._subsample_labels(label)
