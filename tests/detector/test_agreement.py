"""The two engines give the same proposals, detections and losses for the same weights and image."""

import golden
import pytest
import torch
from agreement import assert_same

from resnet_det.weights.loading import load


@pytest.mark.parametrize("case", golden.CASES)
def test_embedded_engine_equals_what_detectron2_recorded(case):
    assert_same(golden.with_torchvision(case), golden.recorded(case))


@pytest.mark.detectron2
@pytest.mark.parametrize("case", golden.CASES)
def test_detectron2_still_gives_what_was_recorded(case):
    assert_same(golden.with_detectron2(case), golden.recorded(case))


@pytest.mark.parametrize(
    "case, key, value",
    [
        ("R50-C4", "MODEL.RESNETS.STRIDE_IN_1X1", False),
        ("R18-C4", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign"),
        ("R18-C4", "MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
        ("R18-C4", "MODEL.PIXEL_MEAN", [123.675, 116.28, 103.53]),
        ("R18-C4", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)),
        ("R18-C4", "MODEL.RPN.NMS_THRESH", 0.5),
    ],
)
def test_the_comparison_notices_each_convention(monkeypatch, case, key, value):
    monkeypatch.setitem(golden.CASES[case], key, value)
    with pytest.raises(AssertionError):
        assert_same(golden.with_torchvision(case), golden.recorded(case))


def assert_same_tensors(one, other):
    one, other = (
        {
            k: v
            for k, v in m.state_dict().items()
            if not k.startswith(("pixel", "proposal_generator.a"))
        }
        for m in (one, other)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.detectron2
@pytest.mark.parametrize("case", golden.CASES)
def test_a_checkpoint_of_one_engine_loads_in_the_other(case, tmp_path):
    from resnet_det.engines.on_detectron2.checkpointer import Checkpointer

    theirs = golden.fill(golden.detectron2_model(case))
    Checkpointer(theirs, str(tmp_path)).save("theirs")
    ours = golden.embedded_model(case)
    match = load(ours, tmp_path / "theirs.pth")
    assert not match.missing and not match.mismatched
    assert_same_tensors(ours, theirs)

    torch.save({"model": ours.state_dict()}, tmp_path / "ours.pth")
    fresh = golden.detectron2_model(case)
    checkpointer = Checkpointer(fresh)
    checkpointer.load(str(tmp_path / "ours.pth"), checkpointables=[])
    assert not checkpointer.misfits
    assert_same_tensors(fresh, ours)
