"""The embedded detector: torchvision's components, changed to compute what Detectron2's compute.

The parameter names are Detectron2's, so that a checkpoint of one engine loads in the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from .appendix import Detections, Size, vector
from .roi_heads import RoIHeads
from .rpn import RPN

Batch = Sequence[Mapping[str, Any]]  # one dict per image
Features = Mapping[str, Tensor]  # maps (B, C, h, w) by the name of their stage or level


class ProposalNetwork(nn.Module):
    """Trunk and RPN.

    The input is a list of dicts, one per image. In training mode a dict has ``image`` (uint8
    (3, h, w)), ``boxes`` (N, 4) and ``classes`` (N,), and the output is a dict of losses. In
    evaluation mode it has ``image``, ``height`` and ``width``, and the output is a list of dicts
    with ``boxes`` (N, 4), in pixels of the original image, and ``logits`` (N,).

    Args:
        backbone: maps a batch of images (B, 3, h, w) to a dict of named feature maps.
        proposal_generator: the RPN, or None in a detector that takes precomputed proposals.
        rpn_in: names of the maps that the RPN reads.
        pixel_mean, pixel_std: one number per channel.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        proposal_generator: RPN | None,
        *,
        rpn_in: Sequence[str],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone, self.proposal_generator, self.rpn_in = backbone, proposal_generator, rpn_in
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def preprocess(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise uint8 images (3, h, w), and pad them with zeros at the right and bottom."""
        device = self.pixel_mean.device
        images = [x.to(device, non_blocking=True).float() for x in images]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        sizes = [(x.shape[-2], x.shape[-1]) for x in images]
        divisor = getattr(self.backbone, "size_divisibility", 1)
        h, w = ((max(side) + divisor - 1) // divisor * divisor for side in zip(*sizes))
        batch = [F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2])) for x in images]
        return ImageList(torch.stack(batch), sizes)

    def targets(self, batch: Batch) -> list[dict[str, Tensor]] | None:
        """The training targets in torchvision's form: boxes, and labels from 1."""
        if not self.training:
            return None
        to = {"device": self.pixel_mean.device, "non_blocking": True}
        return [{"boxes": x["boxes"].to(**to), "labels": x["classes"].to(**to) + 1} for x in batch]

    def forward(self, batch: Batch) -> Any:
        images, targets = self.preprocess([x["image"] for x in batch]), self.targets(batch)
        features = self.backbone(images.tensors)
        assert self.proposal_generator is not None
        proposals, logits, losses = self.proposal_generator.propose(
            images, [features[f] for f in self.rpn_in], targets
        )
        if self.training:
            return losses
        found = []
        for boxes, scores, size, x in zip(proposals, logits, images.image_sizes, batch):
            scale = boxes.new_tensor([x["width"] / size[1], x["height"] / size[0]]).repeat(2)
            found.append({"boxes": boxes * scale, "logits": scores})
        return found


class FasterRCNN(ProposalNetwork):
    """Trunk, RPN and RoI heads; it satisfies :class:`.appendix.Detector`.

    The input is that of :class:`ProposalNetwork`. Without a proposal generator, each dict also
    needs ``proposals`` (M, 4), in pixels of the input. In evaluation mode the output is a list of
    dicts with ``boxes`` (N, 4), in pixels of the original image, ``scores`` (N,) and ``classes``
    (N,).

    Args:
        roi_heads, roi_in: the RoI heads, and the names of the maps that they read.
        others: arguments of :class:`ProposalNetwork`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        proposal_generator: RPN | None,
        roi_heads: RoIHeads,
        *,
        roi_in: Sequence[str],
        **others: Any,
    ) -> None:
        super().__init__(backbone, proposal_generator, **others)
        self.roi_heads, self.roi_in = roi_heads, roi_in

    def forward(self, batch: Batch) -> Any:
        images, targets = self.preprocess([x["image"] for x in batch]), self.targets(batch)
        features = self.backbone(images.tensors)
        proposals, rpn_losses = self._propose(images, features, batch, targets)
        found, losses = self.roi_heads(
            [features[f] for f in self.roi_in], proposals, images.image_sizes, targets
        )
        if self.training:
            return rpn_losses | losses
        return self.finish(batch, images.image_sizes, found)

    def _propose(self, images: ImageList, features: Features, batch: Batch, targets=None):
        """Returns (boxes (N_i, 4) of each image, losses)."""
        if self.proposal_generator is None:
            return [x["proposals"].to(images.tensors, non_blocking=True) for x in batch], {}
        return self.proposal_generator(images, [features[f] for f in self.rpn_in], targets)

    @property
    def context(self) -> bool:
        return self.roi_heads.context

    def trunk(self, pictures: Sequence[Tensor]) -> tuple[ImageList, Features]:
        images = self.preprocess(pictures)
        return images, self.backbone(images.tensors)

    def propose(self, images: ImageList, features: Features, batch: Batch) -> list[Tensor]:
        return self._propose(images, features, batch)[0]

    def regions(self, features: Features, boxes: list[Tensor]) -> Tensor:
        return self.roi_heads.regions([features[f] for f in self.roi_in], boxes)

    def classify(
        self, vectors: Tensor, boxes: list[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self.roi_heads.classify(vectors, boxes)

    def finish(
        self, batch: Batch, sizes: list[Size], found: list[Detections]
    ) -> list[dict[str, Tensor]]:
        """Scale boxes to the original images, clip them, and drop the empty ones."""
        outputs = []
        for x, (h, w), (boxes, scores, classes) in zip(batch, sizes, found):
            height, width = x["height"], x["width"]
            scale = vector(boxes, [width / w, height / h]).repeat(2)
            boxes = clip_boxes_to_image(boxes * scale, (height, width))
            keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
            kept = {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}
            outputs.append(kept)
        return outputs
