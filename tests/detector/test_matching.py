"""The matcher, the sampler and the box coder against torchvision's, which they replace."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torchvision.models.detection import _utils as torchvision

from resnet_det.detector.matching import AnchorMatcher, Coder, Sampler, union

SEEDS = st.integers(0, 2**32)
LABELS = st.lists(
    st.lists(st.sampled_from([-1, 0, 0, 1, 3]), max_size=30), min_size=1, max_size=4
)  # of the boxes of 1 to 4 images


@given(seed=SEEDS, boxes=st.integers(1, 5), anchors=st.integers(1, 40),
       steps=st.sampled_from([1, 10, 100]), most=st.sampled_from([1.0, 0.6]))  # fmt: skip
def test_the_matcher(seed, boxes, anchors, steps, most):
    """Overlaps on a grid, so that some are equal or exactly at a threshold; up to 0.6, below it."""
    generator = torch.Generator().manual_seed(seed)
    overlaps = torch.randint(0, steps + 1, (boxes, anchors), generator=generator) / steps * most
    wanted = torchvision.Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlaps.clone())
    assert torch.equal(AnchorMatcher(0.7, 0.3, True)(overlaps), wanted)


@given(labels=LABELS, size=st.integers(1, 24), fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
       seed=SEEDS)  # fmt: skip
@example(labels=[[], [1, 1], [0]], size=4, fraction=0.5, seed=0)
def test_the_sampler_draws_the_same(labels, size, fraction, seed):
    images = [torch.tensor(of_image, dtype=torch.float32) for of_image in labels]
    torch.manual_seed(seed)
    wanted = zip(*torchvision.BalancedPositiveNegativeSampler(size, fraction)(images))
    torch.manual_seed(seed)
    sampled = Sampler(size, fraction)(images)
    for pair, masks, both in zip(sampled, wanted, union(sampled), strict=True):
        for indices, mask in zip(pair, masks, strict=True):
            assert torch.equal(indices, mask.nonzero()[:, 0])  # ascending
        assert torch.equal(both, (masks[0] | masks[1]).nonzero()[:, 0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_the_coder(weights):
    torch.manual_seed(0)
    corner, size = 100 * torch.rand(2, 2, 50, 2)
    boxes, proposals = torch.cat((corner, corner + 5 + size), -1)
    theirs = torchvision.BoxCoder(weights)
    encoded = Coder(weights).encode([boxes], [proposals])
    assert torch.equal(encoded[0], theirs.encode([boxes], [proposals])[0])
    decoded = Coder(weights).decode(encoded[0], [proposals])
    torch.testing.assert_close(decoded[:, 0], boxes, rtol=1e-4, atol=1e-3)
