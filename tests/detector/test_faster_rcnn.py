"""The embedded detector, part by part, against analytic values and direct computations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, roi_align, roi_pool

from resnet_det.config.defaults import ConfigError
from resnet_det.detector.build import build_improved, build_model, build_rpn
from resnet_det.detector.roi_heads import Pooler
from resnet_det.detector.rpn import Anchors
from resnet_det.nets import resnet


def sample(height=48, width=64, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    return {
        "image": torch.from_numpy(image), "height": 2 * height, "width": 2 * width,
        "boxes": torch.tensor([[4.0, 6.0, 30.0, 40.0], [28.0, 10.0, 60.0, 30.0]]),
        "classes": torch.tensor([0, 2]),
    }  # fmt: skip


def test_anchors_of_the_paper():
    """Faster R-CNN, section 3.1: 9 per cell, areas 128^2 to 512^2, centres every 16 pixels."""
    anchors = Anchors([[128, 256, 512]], [[0.5, 1.0, 2.0]], [16], 0.0)
    images = ImageList(torch.zeros(1, 3, 600, 1000), [(600, 1000)])
    (boxes,) = anchors(images, [torch.zeros(1, 8, 38, 63)])
    boxes = boxes.view(38, 63, 9, 4)
    sides = boxes[..., 2:] - boxes[..., :2]
    areas = torch.tensor([s**2 for s in (128.0, 256.0, 512.0) for _ in range(3)])
    torch.testing.assert_close(sides.prod(-1), areas.expand(38, 63, 9), rtol=1e-4, atol=0)
    ratio = sides[..., 1] / sides[..., 0]
    torch.testing.assert_close(ratio, torch.tensor([0.5, 1, 2] * 3).expand(38, 63, 9))
    centres = (boxes[..., 2:] + boxes[..., :2]) / 2
    y, x = torch.meshgrid(torch.arange(38) * 16.0, torch.arange(63) * 16.0, indexing="ij")
    expected = torch.stack((x, y), -1)[:, :, None].expand(38, 63, 9, 2)
    torch.testing.assert_close(centres, expected, atol=1e-3, rtol=0)


def test_anchor_offset():
    plain, shifted = (Anchors([[16]], [[1.0]], [8], offset) for offset in (0.0, 0.5))
    torch.testing.assert_close(shifted.cell_anchors[0], plain.cell_anchors[0] + 4)


def test_cross_boundary_anchors_are_ignored(config):
    torch.manual_seed(0)
    images = ImageList(torch.zeros(1, 3, 48, 64), [(48, 64)])
    features = [torch.randn(1, 32, 24, 32)]
    targets = [{"boxes": sample()["boxes"]}]
    labels = {}
    for threshold in (-1, 0):
        cfg = config(
            "MODEL.RPN.BOUNDARY_THRESH", threshold, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**5
        )
        rpn = build_rpn(cfg, 32, [2])
        rpn.fg_bg_sampler.positive_fraction = 1.0
        rpn.compute_loss = lambda o, d, label, t, at=threshold: labels.update({at: label[0]}) or {}
        rpn(images, features, targets)
    (anchors,) = rpn.anchor_generator(images, features)
    inside = (
        (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] < 64) & (anchors[:, 3] < 48)
    )
    assert 0 < inside.sum() < len(anchors)
    assert (labels[0][~inside] == -1).all()
    assert torch.equal(labels[0][inside], labels[-1][inside])
    assert (labels[-1][~inside] != -1).any()


CORNER, SIDE = st.floats(-500, 1500, width=32), st.floats(1, 1000, width=32)
BOX = st.tuples(CORNER, CORNER, SIDE, SIDE)


@pytest.mark.parametrize("stage, weights", [("rpn", (1, 1, 1, 1)), ("heads", (10, 10, 5, 5))])
def test_box_coder(config, stage, weights):
    """Faster R-CNN's eqn. 2 in double precision; decoding undoes it, up to sides of 1000 / 16
    times those of the anchor or proposal."""
    model = build_model(config())
    coder = (model.proposal_generator if stage == "rpn" else model.roi_heads).box_coder

    @given(st.lists(st.tuples(BOX, BOX), min_size=1, max_size=5))
    def holds(pairs):
        x, y, w, h = np.array(pairs).transpose(2, 0, 1)
        corners = np.stack((x, y, x + w, y + h), 2).astype(np.float32)
        anchors, boxes = (torch.from_numpy(corners[:, n].copy()) for n in (0, 1))
        (deltas,) = coder.encode([boxes], [anchors])
        (a, b), sizes = corners.astype(float).swapaxes(0, 1), corners[..., 2:] - corners[..., :2]
        shift = (b[:, :2] + b[:, 2:] - a[:, :2] - a[:, 2:]) / 2 / sizes[:, 0]
        want = np.hstack((shift, np.log(sizes[:, 1] / sizes[:, 0]))) * weights
        np.testing.assert_allclose(deltas.numpy(), want, rtol=1e-4, atol=3e-3)
        again = coder.decode(deltas, [anchors])[:, 0].numpy()
        ratio = sizes[:, 1] / sizes[:, 0]
        same = (ratio < 62).all(1)
        np.testing.assert_allclose(again[same], boxes.numpy()[same], rtol=1e-4, atol=0.02)
        largest = (again[:, 2:] - again[:, :2]) / sizes[:, 0]
        assert (largest <= 62.6).all()

    holds()


def reference_roi_pool(features, box, size, scale):
    """RoI max pooling by its definition: rounded corners, quantised bins, inclusive ends."""
    x0, y0, x1, y1 = (math.floor(v * scale + 0.5) for v in box)
    height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    out = torch.zeros(features.shape[0], size, size)
    for i in range(size):
        for j in range(size):
            top, left = y0 + math.floor(i * height / size), x0 + math.floor(j * width / size)
            bottom = y0 + math.ceil((i + 1) * height / size)
            right = x0 + math.ceil((j + 1) * width / size)
            part = features[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if part.numel():
                out[:, i, j] = part.amax((1, 2))
    return out


def test_roi_max_pooling():
    torch.manual_seed(0)
    features = torch.randn(1, 4, 20, 30)
    boxes = torch.tensor([[3.0, 5.0, 200.0, 180.0], [100.0, 40.0, 160.0, 300.0]])
    out = Pooler("ROIPool", 7, [16], 0)([features], [boxes], None)
    for region, box in zip(out, boxes):
        expected = reference_roi_pool(features[0], box.tolist(), 7, 1 / 16)
        torch.testing.assert_close(region, expected)


def test_roi_align_versions_differ_by_half_a_pixel():
    features = torch.randn(1, 2, 40, 40)
    box = torch.tensor([[32.0, 48.0, 200.0, 300.0]])
    old, new = (Pooler(k, 5, [8], 2)([features], [box], None) for k in ("ROIAlign", "ROIAlignV2"))
    torch.testing.assert_close(new, Pooler("ROIAlign", 5, [8], 2)([features], [box - 4], None))
    assert not torch.allclose(old, new)


def test_pyramid_levels_by_size():
    """A region of side 224 k comes from level 4 + log2 k (eqn. 1 of FPN)."""
    maps = [torch.full((1, 1, 1000 // s, 1000 // s), float(s)) for s in (4, 8, 16, 32)]
    sides = torch.tensor([20.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 900.0])
    boxes = torch.stack((sides * 0, sides * 0, sides, sides), 1)
    out = Pooler("ROIAlignV2", 2, [4, 8, 16, 32], 1)(maps, [boxes], None)
    assert out[:, 0, 0, 0].tolist() == [4, 4, 8, 8, 16, 16, 32, 32]


FAR = torch.tensor([[1283.3, 700.7, 1301.9, 741.2], [5.1, 6.2, 1300.6, 780.9]])


@pytest.mark.parametrize(
    "kind, strides, step",
    [("ROIPool", [16], 1), ("ROIAlign", [16], 1), ("ROIAlignV2", [16], 2), ("ROIAlignV2", [8, 16], 1)],
)  # fmt: skip
def test_bfloat16_maps_leave_regions_where_they_are(kind, strides, step):
    """Compares with torchvision in float64; in bfloat16 a corner at 1,300 pixels moves by up to
    4."""
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 800 // s, 1344 // s).bfloat16() for s in strides]
    with torch.autocast("cpu", torch.bfloat16):
        ours = Pooler(kind, 14, strides, 0, step)(maps, [FAR], None)

    def reference(boxes):
        regions = []
        for level, box in zip((0, len(maps) - 1), boxes.double()):  # the small one, the large one
            x, scale = maps[level].double(), 1 / strides[level]
            if kind == "ROIPool":
                regions.append(roi_pool(x, [box[None]], 14, scale))
            else:
                regions.append(roi_align(x, [box[None]], 14, scale, 0, kind == "ROIAlignV2"))
        return torch.cat(regions)[:, :, ::step, ::step]

    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), reference(FAR), rtol=2**-8, atol=1e-4)
    assert (ours - reference(FAR.bfloat16())).abs().max() > 0.1  # what rounded corners give


@pytest.mark.parametrize("kind", ["ROIPool", "ROIAlignV2"])
def test_every_region_is_pooled_in_float32_under_autocast(config, monkeypatch, kind):
    """Training and test with all of Appendix B, in bfloat16 on a CPU."""
    cfg = config("MODEL.ROI_BOX_HEAD.POOLER_TYPE", kind, "MODEL.ROI_HEADS.NAME", "PaperROIHeads",
                 "RESNET_DET.GLOBAL_CONTEXT", True, "RESNET_DET.BOX_REFINEMENT", True,
                 "RESNET_DET.MULTI_SCALE_TEST", (32, 48))  # fmt: skip
    types, pool = set(), Pooler.pool

    def spy(self, features, rois, stride):
        types.add((features.dtype, rois.dtype))
        return pool(self, features, rois, stride)

    monkeypatch.setattr(Pooler, "pool", spy)
    torch.manual_seed(0)
    model = build_model(cfg)
    picture = sample()
    picture["scales"] = [
        F.interpolate(picture["image"][None], scale_factor=2 / 3)[0],
        picture["image"],
    ]
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([picture])
        sum(losses.values()).backward()
        with torch.no_grad():
            found = build_improved([model.eval()], cfg)([picture])[0]
    assert types == {(torch.bfloat16, torch.float32)}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert len(found["boxes"]) and found["boxes"].dtype == torch.float32


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_losses_against_their_definitions(config, beta):
    """Both losses of both stages, recomputed from the sampled anchors and regions."""
    torch.manual_seed(0)
    keys = ("MODEL.RPN.SMOOTH_L1_BETA", beta, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", beta)
    rpn = build_rpn(config(*keys), 32, [2])
    objectness, deltas = torch.randn(500), torch.randn(500, 4)
    labels = [torch.randint(-1, 2, (250,)).float() for _ in range(2)]
    targets = [torch.randn(250, 4) for _ in range(2)]
    rpn.fg_bg_sampler = type(rpn.fg_bg_sampler)(10**4, 0.9)  # takes every anchor with a label
    losses = rpn.compute_loss(objectness, deltas, labels, targets)
    label = torch.cat(labels)

    def smooth(x):
        x = x.abs()
        return x if beta == 0 else torch.where(x < beta, x**2 / (2 * beta), x - beta / 2)

    p = torch.sigmoid(objectness)
    log_loss = -(torch.where(label == 1, p, 1 - p)).log()[label >= 0].sum()
    normaliser = 2 * 10**4
    torch.testing.assert_close(losses["loss_rpn_cls"], log_loss / normaliser)
    error = smooth(deltas - torch.cat(targets))[label == 1].sum()
    torch.testing.assert_close(losses["loss_rpn_loc"], error / normaliser)

    heads = build_model(config(*keys)).roi_heads
    logits, deltas = torch.randn(40, 4), torch.randn(40, 16)
    label, targets = torch.randint(0, 4, (40,)), torch.randn(40, 4)
    losses = heads.losses(logits, deltas, label, targets)
    log_loss = -F.log_softmax(logits, 1)[torch.arange(40), label].mean()
    torch.testing.assert_close(losses["loss_cls"], log_loss)
    rows = [r for r in range(40) if label[r] > 0]
    error = sum(smooth(deltas[r, 4 * label[r] : 4 * label[r] + 4] - targets[r]).sum() for r in rows)
    torch.testing.assert_close(losses["loss_box_reg"], error / 40)


@pytest.mark.parametrize(
    "thresholds, codes, expected",
    [
        ("[0.5]", "[0, 1]", [2, 2, 0, 0, 0]),
        ("[0.1, 0.5]", "[-1, 0, 1]", [2, 2, 0, 0, -1]),
        ("[0.3, 0.5]", "[0, -1, 1]", [2, 2, -1, 0, 0]),
    ],
)
def test_region_labels(config, thresholds, codes, expected):
    heads = build_model(
        config("MODEL.ROI_HEADS.IOU_THRESHOLDS", thresholds, "MODEL.ROI_HEADS.IOU_LABELS", codes)
    ).roi_heads
    truth = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    regions = torch.tensor([[0.0, 0, 100, x] for x in (100, 60, 40, 20, 5)])
    assert box_iou(truth, regions)[0].tolist() == pytest.approx([1, 0.6, 0.4, 0.2, 0.05])
    _, (labels,) = heads.assign_targets_to_proposals([regions], [truth], [torch.tensor([2])])
    assert labels.tolist() == expected
    none = torch.zeros(0, 4)
    _, (labels,) = heads.assign_targets_to_proposals([regions], [none], [torch.zeros(0).long()])
    assert labels.tolist() == [0] * 5


def test_class_order_is_detectron2s(config):
    """The background is the last class of the checkpoint, and no detection has it."""
    torch.manual_seed(0)
    model = build_model(config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5)).eval()
    bias = torch.tensor([0.0, 0.0, 9.0, 0.0])
    model.roi_heads.box_predictor.cls_score.weight.data.zero_()
    model.roi_heads.box_predictor.cls_score.bias.data.copy_(bias)
    with torch.no_grad():
        found = model([sample()])[0]
        assert len(found["classes"]) and (found["classes"] == 2).all()
        model.roi_heads.box_predictor.cls_score.bias.data.copy_(bias.roll(1))
        assert len(model([sample()])[0]["classes"]) == 0


def test_class_agnostic_boxes(config):
    torch.manual_seed(0)
    cfg = config("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    model = build_model(cfg)
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 4
    sum(model([sample()]).values()).backward()
    assert model.roi_heads.box_predictor.bbox_pred.weight.grad.abs().sum() > 0


NETS = ["cifar_plain20", "paper_resnet18", "paper_resnet18_a", "paper_plain18", "paper_resnet34_c",
        "paper_resnet50", "paper_vgg16", "paper_vgg19"]  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_a_detector(config, name):
    """C4 with the net's own head: losses, gradients, detections in the original image."""
    torch.manual_seed(0)
    cut, stage, resolution = "res4", "res5", 8
    if name.startswith("cifar"):
        cut, stage = "res3", "res4"
    if name.startswith("paper_vgg"):
        cut, stage, resolution = "conv5", "fc6", 7
    norm = "" if "vgg" in name else "BN"
    model = build_model(
        config(
            "MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.OUT_FEATURES", [cut],
            "MODEL.RESNETS.NORM", norm,
            "MODEL.RPN.IN_FEATURES", [cut], "MODEL.ROI_HEADS.IN_FEATURES", [cut],
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", resolution,
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "MODEL.BACKBONE.FREEZE_AT", 2,
        )
    )  # fmt: skip
    names = model.state_dict()
    assert any(k.startswith(f"roi_heads.{stage}.") for k in names)
    assert any(k.startswith("proposal_generator.rpn_head.conv.") for k in names)
    losses = model([sample(), sample(40, 56, 1)])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    for key, p in model.named_parameters():
        frozen = key.startswith(("backbone.stem", "backbone.res2", "backbone.conv1.",
                                 "backbone.conv2."))  # fmt: skip
        assert (p.grad is None) == frozen, key
    model.eval()
    with torch.no_grad():
        found = model([sample()])[0]
    assert found["boxes"].shape == (len(found["scores"]), 4) and len(found["scores"]) <= 100
    if len(found["boxes"]):
        assert found["boxes"].min() >= 0 and found["boxes"][:, 2].max() <= 128
    again = build_model(
        config("MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.OUT_FEATURES", [cut],
               "MODEL.RESNETS.NORM", norm,
               "MODEL.RPN.IN_FEATURES", [cut], "MODEL.ROI_HEADS.IN_FEATURES", [cut],
               "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", resolution)
    )  # fmt: skip
    again.load_state_dict(model.state_dict(), strict=False)
    key = f"roi_heads.{stage}.0.conv1.weight" if stage != "fc6" else "roi_heads.fc6.weight"
    assert torch.equal(again.state_dict()[key], names[key])


def test_pyramid(config):
    torch.manual_seed(0)
    levels = ["res2", "res3", "res4", "res5"]
    model = build_model(
        config(
            "MODEL.BACKBONE.NAME", "paper_resnet18_fpn", "MODEL.RESNETS.OUT_FEATURES", levels,
            "MODEL.FPN.IN_FEATURES", levels, "MODEL.FPN.OUT_CHANNELS", 32,
            "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]],
            "MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"],
            "MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"],
            "MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NUM_FC", 2,
        )
    )  # fmt: skip
    padded = model.preprocess([sample()["image"]]).tensors
    assert padded.shape == (1, 3, 64, 64)
    maps = model.backbone(padded)
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == {
        f"p{n}": (32, 64 // 2**n, 64 // 2**n) for n in range(2, 7)
    }
    sum(model([sample()]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_preprocess_pads_after_normalising(config):
    model = build_model(config("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0], "MODEL.PIXEL_STD", [2.0] * 3))
    small = torch.full((3, 4, 6), 5, dtype=torch.uint8)
    images = model.preprocess([small, torch.zeros(3, 8, 5, dtype=torch.uint8)])
    assert images.tensors.shape == (2, 3, 8, 6) and images.image_sizes == [(4, 6), (8, 5)]
    assert images.tensors[0, :, 0, 0].tolist() == [2.0, 1.5, 1.0]
    assert not images.tensors[0, :, 4:].any() and not images.tensors[1, :, :, 5:].any()


def test_a_diverged_rpn_shows_in_its_loss(config):
    """Its loss is not finite for any sampled anchors, so that the loop stops all processes
    together."""
    model = build_model(config())
    model.proposal_generator.head.anchor_deltas.bias.data[-1] = float("inf")
    losses = model([sample()])
    assert losses["loss_rpn_loc"].isnan() and losses["loss_cls"].isfinite()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["MODEL.RPN.IN_FEATURES", ["res4"]], r"MODEL.RPN.IN_FEATURES: \['res4'\].*res3"),
        (["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"],
          "MODEL.ROI_HEADS.IN_FEATURES", ["res2"]], "MODEL.ROI_HEADS.IN_FEATURES.*res3"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]]], "ANCHOR_GENERATOR.*1 or 1"),
        (["MODEL.BACKBONE.NAME", "cifar_resnet21"], "cifar_resnet21.*cifar_resnet20"),
    ],
)  # fmt: skip
def test_misfits_name_the_key(config, overrides, words):
    with pytest.raises(ValueError, match=words):
        build_model(config(*overrides))


def test_vgg_needs_its_resolution(config):
    cut = ["conv5"]
    with pytest.raises(ConfigError, match="POOLER_RESOLUTION: 14: fc6 of paper_vgg16 takes 7"):
        build_model(
            config("MODEL.BACKBONE.NAME", "paper_vgg16", "MODEL.RESNETS.NORM", "",
                   "MODEL.RESNETS.OUT_FEATURES", cut,
                   "MODEL.RPN.IN_FEATURES", cut, "MODEL.ROI_HEADS.IN_FEATURES", cut,
                   "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14)
        )  # fmt: skip


C4 = ("MODEL.BACKBONE.NAME", "paper_resnet50", "MODEL.BACKBONE.FREEZE_AT", 2,
      "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.OUT_FEATURES", ["res4"],
      "MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
      "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14)  # fmt: skip


HALVES = {
    "RPN": ["MODEL.META_ARCHITECTURE", "ProposalNetwork"],
    "Fast R-CNN": ["MODEL.LOAD_PROPOSALS", True,
                   "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
}  # fmt: skip


def test_fast_is_on_and_changes_neither_names_nor_detections(config):
    models = []
    for fast in (True, False):
        torch.manual_seed(0)
        models.append(build_model(config(*C4, "RESNET_DET.FAST", fast)).eval())
    fast, plain = models
    assert build_model(config(*C4)).roi_heads.box_roi_pool.step == 2
    assert (fast.roi_heads.box_roi_pool.step, plain.roi_heads.box_roi_pool.step) == (2, 1)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(v, fast.state_dict()[k]) for k, v in plain.state_dict().items())
    x, boxes = torch.randn(1, 3, 65, 90), [torch.tensor([[3.0, 5, 60, 50], [0, 0, 90, 65]])]
    heads = []
    with torch.no_grad():
        for model in (fast, plain):
            features = list(model.backbone(x).values())
            pooled = model.roi_heads.box_roi_pool(features, boxes, None)
            heads.append(model.roi_heads.box_head(pooled)["res5"])
    torch.testing.assert_close(*heads, rtol=0, atol=1e-5 * heads[1].abs().max().item())


@pytest.mark.parametrize(
    "key, value, step",
    [
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", 1),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", 2),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False, 1),
        ("MODEL.RESNETS.RES5_DILATION", 2, 1),
        ("MODEL.BACKBONE.NAME", "paper_resnet18", 1),
    ],
)
def test_only_a_grid_that_is_read_in_part_is_pooled_in_part(config, key, value, step):
    model = build_model(config(*C4, key, value))
    assert model.roi_heads.box_roi_pool.step == step
    assert model.roi_heads.box_head.res5[0].conv1.stride[0] == (
        1 if step == 2 or key.startswith("MODEL.RESNETS") else 2
    )


@pytest.mark.parametrize("half, rate", [("RPN", 0.05), ("Fast R-CNN", 0.001)])
def test_fast_has_the_same_loss_curve(config, monkeypatch, half, rate):
    """Fifty iterations of SGD in float32: the losses agree within 1e-4, relative to the first.

    RPN and Fast R-CNN each alone: between them NMS turns a difference of rounding into other
    regions.
    """
    monkeypatch.setitem(resnet.DEPTHS, 50, ((1, 2, 1, 1), True))  # of the usual widths
    curves, sizes = [], torch.linspace(0.1, 1, 30)[:, None]
    regions = torch.tensor([3.0, 5, 60, 45]) * sizes + torch.arange(4)
    for fast in (True, False):
        torch.manual_seed(0)
        model = build_model(
            config(*C4, *HALVES[half], "RESNET_DET.FAST", fast, "MODEL.PIXEL_STD", [58.0] * 3,
                   "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.RPN.CONV_DIMS", [64])
        )  # fmt: skip
        for name, m in model.named_modules():  # residual branches that do not blow up
            if name.endswith("conv3.norm"):
                m.weight.fill_(0.2)
        optimizer = torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], rate, 0.9, weight_decay=1e-4
        )
        losses = []
        for i in range(50):
            torch.manual_seed(i)
            loss = sum(model([sample(seed=i % 4) | {"proposals": regions}]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    fast, plain = curves
    assert np.mean(plain[-8:]) < 0.9 * np.mean(plain[:8])  # they learn
    assert max(abs(a - b) for a, b in zip(fast, plain)) < 1e-4 * plain[0]
