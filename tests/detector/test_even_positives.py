"""RESNET_DET.EVEN_POSITIVES: the RPN draws its positives evenly over the objects of an image."""

from collections import Counter

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from resnet_det.detector.build import build_rpn
from resnet_det.detector.rpn import keep_evenly


def fair_shares(positives, count):
    """The share of each object: hand out ``count`` one at a time, to a poorest object that has
    more."""
    shares = dict.fromkeys(positives, 0)
    for _ in range(min(count, sum(positives.values()))):
        poorest = min((n, o) for o, n in shares.items() if n < positives[o])[1]
        shares[poorest] += 1
    return shares


def anchors(positives, background=50):
    """Shuffled labels and objects of anchors, with so many positives per object."""
    objects = torch.tensor([o for o, n in positives.items() for _ in range(n)] + [0] * background)
    labels = torch.ones(len(objects), dtype=torch.int8)
    labels[len(objects) - background :] = 0
    order = torch.randperm(len(objects))
    return labels[order], objects[order]


@pytest.mark.parametrize("count", [1, 5, 12, 100, 128, 400])
def test_each_object_gets_its_fair_share(count):
    """Of a cell with hundreds of positive anchors, and a platelet with one, both are drawn."""
    positives = {0: 300, 1: 1, 2: 7, 3: 40, 4: 3}
    labels, objects = anchors(positives)
    before = labels.clone()
    keep_evenly(labels, objects, count)
    kept = Counter(objects[labels == 1].tolist())
    wanted = fair_shares(positives, count)
    # Which objects are one ahead is random.
    assert sorted(kept[o] for o in positives) == sorted(wanted.values())
    assert all(abs(kept[o] - wanted[o]) <= 1 for o in positives)
    assert torch.equal(labels == 0, before == 0)
    assert set(labels[before == 1].tolist()) <= {1, -1}


def test_every_positive_of_an_object_and_every_object_has_the_same_chance():
    positives, draws = {0: 6, 1: 6, 2: 6}, 3000
    labels, objects = anchors(positives, background=0)
    found = torch.zeros(len(labels))
    for _ in range(draws):
        drawn = labels.clone()
        keep_evenly(drawn, objects, 4)
        found += drawn == 1
    # 4 of 18 anchors: a binomial count of 3000 draws, within 5 standard deviations.
    p = 4 / 18
    assert (found - draws * p).abs().max() < 5 * (draws * p * (1 - p)) ** 0.5


def test_without_positives_nothing_changes():
    labels = torch.tensor([0, -1, 0])
    keep_evenly(labels, torch.tensor([0, 0, 0]), 5)
    assert labels.tolist() == [0, -1, 0]


BOXES = torch.tensor([[4.0, 4.0, 52.0, 52.0], [56.0, 56.0, 63.0, 63.0]])  # a large and a small one


def keys(even, samples):
    return ["MODEL.ANCHOR_GENERATOR.SIZES", [[8, 48]], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            [[1.0]], "MODEL.RPN.BATCH_SIZE_PER_IMAGE", samples,
            "MODEL.PROPOSAL_GENERATOR.NAME", "PaperRPN", "RESNET_DET.EVEN_POSITIVES", even]  # fmt: skip


def drawn_by_the_embedded_engine(config, even, samples):
    rpn = build_rpn(config(*keys(even, samples)), 32, [2]).train()
    seen = []

    def losses(objectness, deltas, labels, targets):
        for label, (positives, _) in zip(labels, rpn.fg_bg_sampler(labels)):
            seen.append(torch.zeros_like(label, dtype=torch.bool))
            seen[-1][positives] = True
        return {}

    rpn.compute_loss = losses
    images, features = (
        ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)]),
        [torch.zeros(1, 32, 32, 32)],
    )
    rpn(images, features, [{"boxes": BOXES}])
    return rpn.anchor_generator(images, features)[0][seen[0]]


def drawn_by_detectron2(config, even, samples):
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.proposal_generator import build_proposal_generator
    from detectron2.structures import Boxes, Instances

    from resnet_det.config.defaults import add_resnet_det_config

    cfg = get_cfg()
    add_resnet_det_config(cfg)
    cfg.merge_from_list([*keys(even, samples), "MODEL.RPN.IN_FEATURES", ["res3"]])
    rpn = build_proposal_generator(cfg, {"res3": ShapeSpec(channels=32, stride=2)})
    anchors = rpn.anchor_generator([torch.zeros(1, 32, 32, 32)])
    (labels,), _ = rpn.label_and_sample_anchors(
        anchors, [Instances((64, 64), gt_boxes=Boxes(BOXES))]
    )
    return anchors[0].tensor[labels == 1]


@pytest.mark.parametrize(
    "drawn",
    [drawn_by_the_embedded_engine,
     pytest.param(drawn_by_detectron2, marks=pytest.mark.detectron2)],
)  # fmt: skip
def test_the_small_object_is_always_drawn(drawn, config):
    """Half of 16 anchors are positive; the small object has few among the large one's many."""

    def of_the_small_object(even, samples=16):
        anchors = drawn(config, even, samples)
        return len(anchors), int((anchors[:, 2] - anchors[:, 0] < 20).sum())

    positives, own = of_the_small_object(False, samples=10**6)
    assert positives > 8 * own > 0
    counts = {}
    for even in (False, True):
        torch.manual_seed(0)
        drawn_counts, counts[even] = zip(*(of_the_small_object(even) for _ in range(20)))
        assert set(drawn_counts) == {8}
    assert set(counts[True]) == {min(own, 4)}
    assert 0 in counts[False]
