"""torchvision's matcher, sampler and box coder, with fewer waits for a GPU.

They compute the same numbers and draw the same random ones. Where torchvision reads a number of
rows from the GPU once per image, or copies a constant to it, the GPU's queue runs empty.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import (
    BalancedPositiveNegativeSampler,
    BoxCoder,
    Matcher,
    encode_boxes,
)


class AnchorMatcher(Matcher):
    """Matches anchors; each ground-truth box also gets the anchors that overlap it most."""

    def set_low_quality_matches_(
        self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor
    ) -> None:
        best = match_quality_matrix.max(dim=1, keepdim=True).values
        update = (match_quality_matrix == best).any(0)
        matches.copy_(torch.where(update, all_matches, matches))


class Sampler(BalancedPositiveNegativeSampler):
    """Samples positives (labels from 1) and negatives (label 0); other labels are ignored."""

    def __call__(self, labels: list[Tensor]) -> list[tuple[Tensor, Tensor]]:  # type: ignore[override]
        """Labels (N_i,) of each image -> ascending indices of the sampled positives and negatives
        of each image."""
        sizes, flat = [len(x) for x in labels], torch.cat(labels)
        masks = torch.stack((flat >= 1, flat == 0))
        counts = torch.stack([m.count_nonzero(1) for m in masks.split(sizes, 1)], 1)
        found = masks.nonzero()[:, 1].split(counts.flatten().tolist())
        sampled, first = [], 0
        for positive, negative, size in zip(found, found[len(labels) :], sizes):
            most = int(self.batch_size_per_image * self.positive_fraction)
            positive = _draw(positive - first, most)
            negative = _draw(negative - first, self.batch_size_per_image - len(positive))
            sampled.append((positive, negative))
            first += size
        return sampled


def _draw(indices: Tensor, most: int) -> Tensor:
    drawn = torch.randperm(len(indices), device=indices.device)[:most]
    return indices[drawn].sort().values


class Coder(BoxCoder):
    """Encodes boxes with weights that stay on the host."""

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        return encode_boxes(reference_boxes, proposals, self.weights)


def union(sampled: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The ascending indices of all samples of each image, from a :class:`Sampler`."""
    return [torch.cat(pair).sort().values for pair in sampled]
