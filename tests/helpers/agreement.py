"""Whether two detectors agree."""

import pytest
import torch

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def assert_same(ours, theirs):
    """Boxes within 0.001 pixels, scores and losses within 0.0001, classes equal, same order."""
    assert set(ours["losses"]) == set(theirs["losses"]) == LOSSES
    for name, value in theirs["losses"].items():
        assert value > 0 and ours["losses"][name] == pytest.approx(value, rel=1e-4, abs=1e-4)
    for a, b in zip(ours["proposals"], theirs["proposals"], strict=True):
        assert len(b) > 5
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=1e-3, rtol=0)
    for a, b in zip(ours["detections"], theirs["detections"], strict=True):
        assert len(b["scores"]) > 3
        assert a["classes"] == b["classes"]
        torch.testing.assert_close(torch.tensor(a["boxes"]), torch.tensor(b["boxes"]), atol=1e-3,
                                   rtol=0)  # fmt: skip
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)
