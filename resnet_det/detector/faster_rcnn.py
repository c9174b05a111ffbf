"""The embedded detector: torchvision's Faster R-CNN, made to do what Detectron2's does.

Each subclass changes what differs between the two, and no more. The parameter names are
Detectron2's, so that a checkpoint of one engine loads in the other.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image


class FasterRCNN(nn.Module):
    """Trunk, RPN and RoI heads.

    Training mode takes a list of dicts ``image`` (uint8 (3, h, w)), ``boxes`` (N, 4) and
    ``classes`` (N,), and returns a dict of losses. Evaluation mode takes ``image``, ``height`` and
    ``width`` and returns a list of dicts ``boxes`` (N, 4) in pixels of the original image,
    ``scores`` (N,), ``classes`` (N,). Without a proposal generator both modes take ``proposals``
    (M, 4) too, in pixels of the input.
    """

    def __init__(self, backbone, proposal_generator, roi_heads, *, rpn_in, roi_in, mean, std):
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.rpn_in, self.roi_in = rpn_in, roi_in
        self.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def preprocess(self, images):
        """List of uint8 (3, h, w) -> normalised, padded with zeros at the right and bottom."""
        device = self.pixel_mean.device
        images = [(x.to(device).float() - self.pixel_mean) / self.pixel_std for x in images]
        sizes = [tuple(x.shape[-2:]) for x in images]
        divisor = getattr(self.backbone, "size_divisibility", 1)
        h, w = (math.ceil(max(side) / divisor) * divisor for side in zip(*sizes))
        batch = [F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2])) for x in images]
        return ImageList(torch.stack(batch), sizes)

    def targets(self, batch):
        """What torchvision's parts take in training: boxes, and labels from 1."""
        if not self.training:
            return None
        device = self.pixel_mean.device
        return [
            {"boxes": x["boxes"].to(device), "labels": x["classes"].to(device) + 1} for x in batch
        ]

    def forward(self, batch):
        images, targets = self.preprocess([x["image"] for x in batch]), self.targets(batch)
        features = self.backbone(images.tensors)
        proposals, rpn_losses = self._propose(images, features, batch, targets)
        found, losses = self.roi_heads(
            [features[f] for f in self.roi_in], proposals, images.image_sizes, targets
        )
        if self.training:
            return rpn_losses | losses
        return self.finish(batch, images.image_sizes, found)

    def _propose(self, images, features, batch, targets=None):
        """-> (boxes of each image, losses); precomputed ones without a proposal generator."""
        if self.proposal_generator is None:
            return [x["proposals"].to(images.tensors) for x in batch], {}
        return self.proposal_generator(images, [features[f] for f in self.rpn_in], targets)

    @staticmethod
    def finish(batch, sizes, found):
        """Boxes from pixels of the input to pixels of the original image; empty ones go."""
        outputs = []
        for x, (h, w), (boxes, scores, classes) in zip(batch, sizes, found):
            height, width = x["height"], x["width"]
            scale = boxes.new_tensor([width / w, height / h]).repeat(2)
            boxes = clip_boxes_to_image(boxes * scale, (height, width))
            keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
            kept = {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}
            outputs.append(kept)
        return outputs

    # The parts, as appendix.Improved asks for them.

    @property
    def context(self):
        return self.roi_heads.context

    def trunk(self, pictures):
        images = self.preprocess(pictures)
        return images, self.backbone(images.tensors)

    def propose(self, images, features, batch):
        return self._propose(images, features, batch)[0]

    def regions(self, features, boxes):
        return self.roi_heads.regions([features[f] for f in self.roi_in], boxes)

    def classify(self, vectors, boxes):
        return self.roi_heads.classify(vectors, boxes)


class ProposalNetwork(FasterRCNN):
    """Trunk and RPN alone: its losses in training, else a list of dicts ``boxes``, ``logits``."""

    def forward(self, batch):
        images, targets = self.preprocess([x["image"] for x in batch]), self.targets(batch)
        features = self.backbone(images.tensors)
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
