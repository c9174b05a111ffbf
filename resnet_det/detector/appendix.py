"""The improvements of the paper's Appendix B (Table 9), the same in both engines.

* Global context (``RESNET_DET.GLOBAL_CONTEXT``, training and test): the whole image is one more
  region of the shared head; its vector stands behind each region's, and the sibling layers take
  both.
* Box refinement (``BOX_REFINEMENT``, test): every region is scored again from the box that its
  best class regressed to; new and old predictions together pass NMS, then box voting.
* Multi-scale testing (``MULTI_SCALE_TEST``, shorter sides): proposals come from the one test scale;
  each region is pooled and run through the head at the two scales where it has about 224^2 pixels,
  and the greater of the two vectors, element by element, is its own (maxout).
* Ensembles (``ENSEMBLE``, further checkpoints): the proposals of all, scored by all; scores and
  boxes are averaged.
"""

from functools import partial

import torch
from torch import nn
from torchvision.ops import batched_nms, box_area, box_iou, clip_boxes_to_image

from ..config.defaults import ConfigError

IN_TEST = ("BOX_REFINEMENT", "MULTI_SCALE_TEST", "ENSEMBLE")
CANONICAL_PIXELS = 224**2  # of the classifier's training image
VOTING_OVERLAP = 0.5  # MR-CNN's


def check(cfg):
    """Refuse what the improvements cannot stand on; a config without ``RESNET_DET`` passes.

    Raises:
        ConfigError: names the key.
    """
    ours = cfg.get("RESNET_DET", {})
    on = [key for key in ("GLOBAL_CONTEXT", *IN_TEST) if ours.get(key)]
    if on and cfg.MODEL.ROI_HEADS.NAME != "PaperROIHeads":
        raise ConfigError(
            f"RESNET_DET.{on[0]}: needs MODEL.ROI_HEADS.NAME PaperROIHeads, "
            f"not {cfg.MODEL.ROI_HEADS.NAME}"
        )
    architecture = cfg.MODEL.META_ARCHITECTURE
    if on and (cfg.MODEL.MASK_ON or architecture not in ("GeneralizedRCNN", "ProposalNetwork")):
        raise ConfigError(
            f"RESNET_DET.{on[0]}: is for detectors of boxes alone (MODEL.META_ARCHITECTURE "
            f"GeneralizedRCNN, MASK_ON False), not for {architecture}, {cfg.MODEL.MASK_ON}"
        )
    sides = list(ours.get("MULTI_SCALE_TEST", ()))
    if sides and (len(sides) < 2 or sides[0] < 1 or sides != sorted(set(sides))):
        raise ConfigError(
            f"RESNET_DET.MULTI_SCALE_TEST: {sides}: give two or more shorter sides, ascending"
        )
    if sides and cfg.INPUT.MIN_SIZE_TEST < 1:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TEST: {cfg.INPUT.MIN_SIZE_TEST}: RESNET_DET.MULTI_SCALE_TEST needs "
            "the size in which proposals are made"
        )


def in_test(cfg):
    """Whether a config asks for an improvement of the test, that is for :class:`Improved`."""
    whole = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"  # not a step of alternating training
    return whole and any(cfg.RESNET_DET[key] for key in IN_TEST)


def with_context(vectors, boxes, sizes):
    """Global context: the vector of each region with its image's behind it.

    Args:
        vectors: function of a list of boxes (N_i, 4) -> (sum N_i, C).
        boxes: of each image.
        sizes: (height, width) of each image, in the boxes' pixels.

    Returns:
        (sum N_i, 2 C)
    """
    whole = [b.new_tensor([[0, 0, w, h]]) for b, (h, w) in zip(boxes, sizes)]
    x = vectors([torch.cat(pair) for pair in zip(boxes, whole)])
    images = x.split([len(b) + 1 for b in boxes])
    return torch.cat([torch.cat((v[:-1], v[-1:].expand_as(v[:-1])), 1) for v in images])


def two_scales(pixels):
    """The scales of each region: (S, R) pixels at ascending scales -> (2, R) indices.

    They are the two at which its number of pixels is closest to 224^2 (the smaller scale where
    that is equal), and so adjacent.
    """
    return (pixels - CANONICAL_PIXELS).abs().argsort(dim=0, stable=True)[:2]


def refined(scores, boxes, size):
    """The box of each region's best class, inside the image: (R, K), (R, K, 4) -> (R, 4).

    A region whose box is not finite goes.
    """
    best = boxes[torch.arange(len(boxes), device=boxes.device), scores.argmax(1)]
    return clip_boxes_to_image(best[best.isfinite().all(1)], size)


def vote(keep, boxes, scores, classes):
    """Box voting (MR-CNN): the kept boxes as means, weighted by score, over those around them.

    Args:
        keep: indices of the boxes that NMS kept.
        boxes, scores, classes: all that went into NMS, (R, 4), (R,), (R,).

    Returns:
        (len(keep), 4): over the boxes of the same class that overlap by an IoU of at least 0.5.
    """
    near = (box_iou(boxes[keep], boxes) >= VOTING_OVERLAP) & (classes[keep][:, None] == classes)
    near[torch.arange(len(keep), device=keep.device), keep] = True  # an empty box overlaps nothing
    weights = near * scores
    return weights @ boxes / weights.sum(1, keepdim=True)


def select(scores, boxes, size, *, least, nms, most, voting=False):
    """The detections of an image: above a score, then NMS by class, then the best.

    Args:
        scores: (R, K), without the background.
        boxes: (R, K, 4).
        size: (height, width) of the image, to which boxes are clipped.
        least, nms, most: score, IoU, and count, of which -1 means all.
        voting: :func:`vote`, over all boxes above ``least``.

    Returns:
        boxes (N, 4), scores (N,), classes (N,), from the best score on.
    """
    finite = boxes.flatten(1).isfinite().all(1) & scores.isfinite().all(1)
    scores, boxes = scores[finite], clip_boxes_to_image(boxes[finite], size)
    region, label = torch.nonzero(scores > least, as_tuple=True)
    boxes, scores = boxes[region, label], scores[region, label]
    keep = batched_nms(boxes, scores, label, nms)
    keep = keep[:most] if most >= 0 else keep
    chosen = vote(keep, boxes, scores, label) if voting else boxes[keep]
    return chosen, scores[keep], label[keep]


class Improved(nn.Module):
    """Detectors as they are tested: one or several, with refinement, at several scales.

    Args:
        detectors: the first gives the output its form. Each has ``context`` (bool) and

            * ``trunk(pictures)``: uint8 (3, h, w) -> images with ``image_sizes``, and features;
            * ``propose(images, features, batch)`` -> boxes (N_i, 4) of each image;
            * ``regions(features, boxes)`` -> vectors (sum N_i, C);
            * ``classify(vectors, boxes)`` -> of each image scores (N_i, K), without the background,
              and boxes (N_i, K, 4);
            * ``finish(batch, sizes, found)``: triples of :func:`select` -> the output.

        cfg: the config of the test.
        orders: for each detector its index of each of the first one's classes, or None where it
            has them in the same order.

    A sample holds ``image`` and, for several scales, ``scales``: a list of images.
    """

    def __init__(self, detectors, cfg, orders=None):
        super().__init__()
        self.detectors = nn.ModuleList(detectors)
        self.orders = orders or [None] * len(detectors)
        self.training = detectors[0].training
        self.refine = cfg.RESNET_DET.BOX_REFINEMENT
        self.scales = tuple(cfg.RESNET_DET.MULTI_SCALE_TEST)
        heads = cfg.MODEL.ROI_HEADS
        self.rules = {
            "least": heads.SCORE_THRESH_TEST,
            "nms": heads.NMS_THRESH_TEST,
            "most": cfg.TEST.DETECTIONS_PER_IMAGE,
            "voting": self.refine,
        }

    def forward(self, batch):
        views, proposals = [], []
        for detector in self.detectors:
            images, features = detector.trunk([x["image"] for x in batch])
            proposals.append(detector.propose(images, features, batch))
            views.append((detector, self._levels(detector, batch, images, features)))
        sizes = images.image_sizes
        boxes = [torch.cat(of_image) for of_image in zip(*proposals)]
        found = self._classify(views, boxes, sizes)
        if self.refine:
            again = [refined(s, b, size) for (s, b), size in zip(found, sizes)]
            second = self._classify(views, again, sizes)
            found = [tuple(map(torch.cat, zip(*passes))) for passes in zip(found, second)]
        found = [select(s, b, size, **self.rules) for (s, b), size in zip(found, sizes)]
        return self.detectors[0].finish(batch, sizes, found)

    def _levels(self, detector, batch, images, features):
        """[(features, image sizes)] of each scale; the trunk runs once for each."""
        if not self.scales:
            return [(features, images.image_sizes)]
        if any("scales" not in sample for sample in batch):
            raise ValueError(
                "RESNET_DET.MULTI_SCALE_TEST: the samples hold no images at further 'scales': "
                "use the mapper of resnet_det's engine"
            )
        levels = []
        for pictures in zip(*(sample["scales"] for sample in batch)):
            if all(p.shape == x["image"].shape for p, x in zip(pictures, batch)):
                levels.append((features, images.image_sizes))  # the test scale itself
            else:
                there, maps = detector.trunk(pictures)
                levels.append((maps, there.image_sizes))
        return levels

    def _classify(self, views, boxes, sizes):
        """[(scores (N_i, K), boxes (N_i, K, 4))], the means over the detectors."""
        answers = []
        for (detector, levels), order in zip(views, self.orders):
            vectors = partial(self._vectors, detector, levels, sizes)
            x = with_context(vectors, boxes, sizes) if detector.context else vectors(boxes)
            parts = detector.classify(x, boxes)
            if order is not None:
                parts = [[of_image[:, order] for of_image in part] for part in parts]
            answers.append(zip(*parts))
        return [
            tuple(torch.stack(part).mean(0) for part in zip(*of_image))
            for of_image in zip(*answers)
        ]

    def _vectors(self, detector, levels, sizes, boxes):
        """(sum N_i, C): of the one scale, or the maximum of each region's two."""
        if not self.scales or not sum(map(len, boxes)):
            return detector.regions(levels[0][0], boxes)
        there = [
            [
                b * b.new_tensor([w / w0, h / h0] * 2)
                for b, (h, w), (h0, w0) in zip(boxes, own, sizes)
            ]
            for _, own in levels
        ]
        chosen = two_scales(torch.stack([box_area(torch.cat(b)) for b in there]))
        best = None
        for i, (features, _) in enumerate(levels):
            here = (chosen == i).any(0)
            if not here.any():
                continue
            masks = here.split([len(b) for b in boxes])
            x = detector.regions(features, [b[mask] for b, mask in zip(there[i], masks)])
            if best is None:
                best = x.new_full((len(here), x.shape[1]), -torch.inf)
            best[here] = torch.maximum(best[here], x)
        return best
