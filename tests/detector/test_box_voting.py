"""Box voting, against a loop over the boxes."""

import pytest
import torch
from appendix_models import voted

from resnet_det.detector import appendix


def test_voting_equals_a_loop():
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=random, dtype=torch.float64) * 20
    boxes = torch.cat((corners, corners + 20 + 20 * torch.rand(200, 2, generator=random)), 1)
    scores = torch.rand(200, generator=random, dtype=torch.float64)
    classes = torch.randint(0, 3, (200,), generator=random)
    keep = torch.tensor([3, 77, 150])
    found = appendix.vote(keep, boxes, scores, classes)
    for i, box in zip(keep.tolist(), found.tolist()):
        own = [
            (s, b) for s, b, c in zip(scores.tolist(), boxes.tolist(), classes) if c == classes[i]
        ]
        assert box == pytest.approx(voted(boxes[i].tolist(), own))
        assert box != boxes[i].tolist()


def test_an_empty_box_votes_for_itself():
    boxes = torch.tensor([[3.0, 3, 3, 9], [0, 0, 9, 9]])
    args = boxes, torch.tensor([0.5, 0.4]), torch.tensor([0, 0])
    assert appendix.vote(torch.tensor([0, 1]), *args).tolist() == boxes.tolist()
