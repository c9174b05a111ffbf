"""Region pooling in Detectron2: the fast form, bfloat16 maps, traced models."""

import pytest
import torch

detectron2 = pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2_models import losses, picture, small_cfg
from plugin_models import fpn_cfg, skeleton
from torchvision.ops import roi_align, roi_pool

from resnet_det.plugin.roi_heads import keep_corners

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize(
    "key, value, step",
    [
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", 2),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", 1),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False, 1),
    ],
)
def test_fast_gives_the_same_regions(key, value, step):
    """FAST is on by default in other projects; it does not change parameters or regions."""
    from resnet_det.config.defaults import add_resnet_det_config
    from resnet_det.plugin.roi_heads import StridedROIAlign

    models = []
    for fast in (None, False):
        cfg = get_cfg()
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "paper_resnet50",
                             "MODEL.ROI_HEADS.NAME", "PaperROIHeads", key, value])  # fmt: skip
        if fast is not None:
            add_resnet_det_config(cfg)
            cfg.RESNET_DET.FAST = fast
        torch.manual_seed(0)
        models.append(build_model(cfg).eval())
    fast, plain = models
    pools = [m.roi_heads.pooler.level_poolers[0] for m in models]
    assert [isinstance(p, StridedROIAlign) for p in pools] == [step == 2, False]
    assert all(torch.equal(v, fast.state_dict()[k]) for k, v in plain.state_dict().items())
    boxes = [Boxes(torch.tensor([[3.0, 5, 60, 50], [0, 0, 90, 65]]))]
    with torch.no_grad():
        x = torch.randn(1, 3, 65, 90)
        ours, theirs = (
            m.roi_heads._shared_roi_transform([m.backbone(x)["res4"]], boxes) for m in models
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("kind", ["ROIPool", "ROIAlign", "ROIAlignV2"])
@pytest.mark.parametrize("heads", ["PaperROIHeads", "StandardROIHeads"])
def test_bfloat16_maps_leave_regions_where_they_are(heads, kind):
    """Compares with torchvision in float64; Detectron2's own ROIAlign moves corners by up to 4
    pixels."""
    cfg = small_cfg("paper_resnet50") if heads == "PaperROIHeads" else fpn_cfg("paper_resnet50")
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = kind
    model = skeleton(cfg)
    if heads == "PaperROIHeads":
        pooler, strides, step = model.roi_heads.pooler, (16, 16), 2 if "Align" in kind else 1
    else:
        keep_corners(model)
        pooler, strides, step = model.roi_heads.box_pooler, (4, 32), 1
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, int(800 * s), int(1344 * s)).bfloat16()
            for s in (p.pool.spatial_scale for p in pooler.level_poolers)]  # fmt: skip
    boxes = torch.tensor([[1283.3, 700.7, 1301.9, 741.2], [5.1, 6.2, 1300.6, 780.9]])
    with torch.autocast("cpu", torch.bfloat16):
        ours = pooler(maps, [Boxes(boxes)])

    def reference(boxes):
        regions, size = [], cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
        for x, box, stride in zip((maps[0], maps[-1]), boxes.double(), strides):
            if kind == "ROIPool":
                regions.append(roi_pool(x.double(), [box[None]], size, 1 / stride))
            else:
                aligned = kind == "ROIAlignV2"
                regions.append(roi_align(x.double(), [box[None]], size, 1 / stride, 0, aligned))
        return torch.cat(regions)[:, :, ::step, ::step]

    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), reference(boxes), rtol=2**-8, atol=1e-4)
    assert (ours - reference(boxes.bfloat16())).abs().max() > 0.1  # what rounded corners give


@pytest.mark.parametrize("kind", ["ROIPool", "ROIAlignV2"])
def test_a_detector_trains_and_detects_in_bfloat16(kind):
    cfg = small_cfg("cifar_resnet20", MODEL__RESNETS__NORM="BN")
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = kind
    model = build_model(cfg)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(model, picture())
        with torch.no_grad():
            instances = model.eval()([picture()])[0]["instances"]
    sum(found.values()).backward()
    assert all(value.isfinite() for value in found.values())
    assert len(instances) and instances.pred_boxes.tensor.dtype == torch.float32


def test_a_traced_pooler_takes_other_regions_and_other_maps():
    """``tools/deploy/export_model.py`` of Detectron2 traces with one image and runs on all."""
    from detectron2.layers import ROIAlign

    from resnet_det.plugin.roi_heads import StridedROIAlign

    pool = StridedROIAlign(ROIAlign(14, 1 / 16, 0, aligned=True), 2)
    small, large = torch.tensor([[0.0, 0, 0, 30, 30]]), torch.tensor([[0.0, 0, 0, 500, 400]])
    traced = torch.jit.trace(pool, (torch.randn(1, 4, 10, 12), small), check_trace=False)
    torch.manual_seed(0)
    x = torch.randn(1, 4, 30, 40)
    torch.testing.assert_close(traced(x, large), pool(x, large), rtol=0, atol=1e-4)
