"""Detectors of torchvision, MMDetection and Detectron2's model zoo, by their own outputs."""

import pickle
import re
from functools import cache

import golden
import numpy as np
import pytest
import torch
from golden import in_double, noise
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)
from torchvision.ops import FrozenBatchNorm2d

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.detector.build import build_model
from resnet_det.detector.weights import fit_trained
from resnet_det.weights.class_names import COCO
from resnet_det.weights.facts import check_facts
from resnet_det.weights.formats import to_our_names
from resnet_det.weights.loading import WeightsError, fit, interpret, load, read
from resnet_det.weights.published import PUBLISHED

HEIGHT, WIDTH = 150, 200  # p5 has 5 x 7 cells: torchvision's stride of p6, 160 / 3, is not 64
TORCHVISIONS = "configs/torchvision_faster_rcnn_R50_FPN.yaml"
MMDETECTIONS = "configs/mmdetection_faster_rcnn_R50_FPN.yaml"
FEW = [
    "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", HEIGHT, "MODEL.RPN.PRE_NMS_TOPK_TEST", 30,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 30,
]  # fmt: skip


def fill(model):
    """Weights by a formula: detections of many classes, with scores apart."""
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked") or "cell_anchors" in key:
            continue
        x = torch.from_numpy(noise(value.numel(), key)).view(value.shape)
        if key.endswith("running_var"):
            x = 1 + 0.3 * x
        elif value.dim() == 1 and key.endswith("weight"):  # of a norm
            x = (0.3 if "bn3" in key else 1) * (1 + 0.3 * x)
        elif value.dim() > 1:
            gains = {"bbox_pred": 0.03, "anchor_deltas": 0.03, "cls_score": 0.3}
            gain = next((g for k, g in gains.items() if k in key), 2)
            x = x * (3 * gain / value[0].numel()) ** 0.5
        else:
            x = 0.1 * x
        value.copy_(x)
    return model.eval()


def image():
    pixels = noise(3 * 15 * 20, "image") * 127 + 128
    return torch.from_numpy(pixels.reshape(3, 15, 20).astype(np.uint8)).repeat_interleave(
        10, 1).repeat_interleave(10, 2)  # fmt: skip


@cache
def torchvisions():
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=HEIGHT, rpn_pre_nms_top_n_test=30,
        rpn_post_nms_top_n_test=30, box_score_thresh=0.05,
    )  # fmt: skip
    theirs = fill(theirs).double()
    with torch.no_grad():
        (found,) = theirs([image().double() / 255])
    assert len(found["scores"]) > 20 and len(set(found["labels"].tolist())) > 5
    return theirs.float().state_dict(), found


def detect(state, facts, config, overrides=()):
    cfg = load_config(config, [*FEW, *overrides])
    model = build_model(cfg)
    fit_trained(model, state, facts, cfg)
    with torch.no_grad():
        return in_double(model.eval())([{"image": image(), "height": HEIGHT, "width": WIDTH}])[0]


def assert_same_objects(ours, boxes, scores, classes, atol):
    """The classes are equal, boxes differ by less than ``atol`` pixels and scores by ``atol / 100``.

    Rounding may swap objects whose scores are almost equal, so each is compared with the nearest.
    """
    assert len(ours["scores"]) == len(scores) > 0
    one, other = (
        torch.cat([b, 100 * s[:, None], 1000 * c[:, None]], 1).double()
        for b, s, c in ((ours["boxes"], ours["scores"], ours["classes"]), (boxes, scores, classes))
    )
    nearest = torch.cdist(one, other, p=torch.inf).argmin(1)
    assert sorted(nearest.tolist()) == list(range(len(scores)))
    assert (one - other[nearest]).abs().max() < atol
    assert (one - other)[:, 4].abs().max() < atol  # both are in the order of the scores


def assert_torchvisions(ours, theirs):
    classes = theirs["labels"] - 1  # the background is last here
    assert_same_objects(ours, theirs["boxes"], theirs["scores"], classes, atol=1e-2)


def test_torchvisions_detector_detects_the_same(tmp_path):
    state, expected = torchvisions()
    torch.save(state, tmp_path / "it.pth")
    ours, facts = read(tmp_path / "it.pth")
    assert [name for name in facts["classes"] if not name.startswith("unused")] == list(COCO)
    assert (facts["classes"][0], facts["classes"][89]) == ("person", "toothbrush")  # ids 1 and 90
    found = detect(ours, facts, TORCHVISIONS)
    assert_torchvisions(found, expected)


CONVENTIONS = pytest.mark.parametrize("key, value", [
    ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
    ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0),
    ("MODEL.RESNETS.STRIDE_IN_1X1", True),
    ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
])  # fmt: skip


@CONVENTIONS
def test_another_convention_is_refused(key, value):
    facts = interpret(torchvisions()[0], {}, "it.pth")[1]
    with pytest.raises(ConfigError, match=f"it.pth.*{key}.*convert_weights.py"):
        check_facts(facts, load_config(TORCHVISIONS, [key, value]), "it.pth")


@pytest.mark.slow
@CONVENTIONS
def test_the_comparison_notices_each_convention(key, value):
    state, expected = torchvisions()
    with pytest.raises(AssertionError):
        assert_torchvisions(
            detect(to_our_names(state)[0], {}, TORCHVISIONS, [key, value]), expected
        )


def test_torchvisions_older_names_are_known():
    """The published file has the names from before torchvision 0.13."""
    state = torchvisions()[0]
    old = {k.replace("conv.0.0.", "conv."): v for k, v in state.items()}
    old = {re.sub(r"(blocks\.\d)\.0", r"\1", k): v for k, v in old.items()}
    assert "backbone.fpn.inner_blocks.3.bias" in old and "rpn.head.conv.weight" in old
    assert to_our_names(old)[0].keys() == to_our_names(state)[0].keys()


@pytest.mark.parametrize("build", [maskrcnn_resnet50_fpn, keypointrcnn_resnet50_fpn])
def test_heads_that_are_not_converted_are_refused(build):
    """Their tensors would keep names and classes that no detector of ours has."""
    with torch.device("meta"):
        state = build(weights=None, weights_backbone=None).state_dict()
    with pytest.raises(WeightsError, match=r"it.pth: holds more than .*roi_heads\.(mask|keyp)"):
        interpret(state, {}, "it.pth")


def test_torchvisions_second_version_is_refused(tmp_path):
    with torch.device("meta"):
        state = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    torch.save({k: torch.zeros(v.shape) for k, v in state.items()}, tmp_path / "it.pth")
    with pytest.raises(WeightsError, match="the net has no"):
        load(empty(TORCHVISIONS), tmp_path / "it.pth")


def empty(config):
    with torch.device("meta"):
        return build_model(load_config(config, FEW)).to_empty(device="cpu")


def mmdetections():
    """MMDetection's names and shapes, from the documentation of its modules (not from a file)."""
    body = {k.replace("backbone.body.", "backbone."): v
            for k, v in torchvisions()[0].items() if k.startswith("backbone.body.")}  # fmt: skip
    channels = 256, 512, 1024, 2048
    shapes = {f"neck.lateral_convs.{i}.conv": (256, c, 1, 1) for i, c in enumerate(channels)}
    shapes |= {f"neck.fpn_convs.{i}.conv": (256, 256, 3, 3) for i in range(4)}
    shapes |= {
        "rpn_head.rpn_conv": (256, 256, 3, 3),
        "rpn_head.rpn_cls": (3, 256, 1, 1),
        "rpn_head.rpn_reg": (12, 256, 1, 1),
        "roi_head.bbox_head.fc_cls": (81, 1024),
        "roi_head.bbox_head.fc_reg": (320, 1024),
        "roi_head.bbox_head.shared_fcs.0": (1024, 256 * 7 * 7),
        "roi_head.bbox_head.shared_fcs.1": (1024, 1024),
    }
    parts = {f"{k}.weight": torch.zeros(v) for k, v in shapes.items()}
    return body | parts | {f"{k}.bias": torch.zeros(v[0]) for k, v in shapes.items()}


def test_mmdetections_names_fill_the_detector():
    state, facts = interpret(mmdetections(), {"meta": {"mmdet_version": "2", "mmcv_version": "1"}},
                             "it.pth")  # fmt: skip
    cfg = load_config(MMDETECTIONS)
    check_facts(facts, cfg, "it.pth")
    match = fit(empty(MMDETECTIONS), state, facts, "it.pth")
    assert not match.missing and not match.unused and facts["classes"] == list(COCO)


@pytest.mark.parametrize("meta", [
    {"mmcv_version": "1", "config": "backbone=dict(norm_eval=True, style='caffe')", "CLASSES": ("a",)},
    {"mmengine_version": "0", "cfg": 'style="caffe"', "dataset_meta": {"classes": ("a",)}},
])  # fmt: skip
def test_mmdetections_meta_tells_classes_and_style(meta):
    facts = interpret(mmdetections(), {"meta": meta}, "it.pth")[1]
    assert facts["classes"] == ["a"] and facts["stride_in_1x1"] and facts["format"] == "BGR"


# ---- Detectron2's model zoo

ZOO = {
    "faster_rcnn_R_50_C4_3x": "modern_faster_rcnn_R50_C4",
    "faster_rcnn_R_50_FPN_3x": "modern_faster_rcnn_R50_FPN",
}


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ZOO)
def test_the_model_zoos_detectors_detect_the_same_without_detectron2(name, tmp_path):
    """Real Detectron2's detector, written as the zoo's files are, on the embedded engine."""
    from detectron2 import model_zoo, modeling

    cfg = model_zoo.get_config(f"COCO-Detection/{name}.yaml")
    few = [*FEW, "MODEL.PIXEL_STD", [57.375, 57.12, 58.395]]  # numbers of a usual size
    cfg.merge_from_list(few)
    model = golden.fill(modeling.build_model(cfg)).eval()
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((15, 4), np.float32)
    arrays["pixel_mean"] = np.array(cfg.MODEL.PIXEL_MEAN, np.float32).reshape(3, 1, 1)
    path = tmp_path / "model_final_721ade.pkl"
    own = tmp_path / "model_final.pkl"  # as a training of one's own leaves it
    own.write_bytes(pickle.dumps({"model": arrays}))
    assert "pixel_mean" not in read(own)[0]
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    with torch.no_grad():
        sample = {"image": image(), "height": HEIGHT, "width": WIDTH}
        theirs = in_double(model)([sample])[0]["instances"]
    state, facts = read(path)
    assert facts["classes"] == list(COCO) and facts["pixel_mean"] == pytest.approx(
        cfg.MODEL.PIXEL_MEAN
    )
    ours = detect(state, facts, f"configs/{ZOO[name]}.yaml", few)
    assert len(theirs) > 20
    boxes = theirs.pred_boxes.tensor
    assert_same_objects(ours, boxes, theirs.scores, theirs.pred_classes, atol=1e-3)


@pytest.mark.detectron2
def test_torchvisions_anchors_are_the_same_in_detectron2():
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_anchor_generator
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    cfg = golden.detectron2_config("R50-FPN")
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "TorchvisionAnchorGenerator"
    maps = [torch.zeros(1, 1, -(-160 // s), -(-224 // s)) for s in (4, 8, 16, 32, 64)]
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=s) for s in (4, 8, 16, 32, 64)])
    theirs = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    (expected,) = theirs(ImageList(torch.zeros(1, 3, 160, 224), [(HEIGHT, WIDTH)]), maps)
    assert torch.equal(torch.cat([boxes.tensor for boxes in generator(maps)]), expected)


def test_the_published_detectors_eps_of_zero_is_kept():
    """torchvision trained COCO_V1 with eps 0 in its frozen norms (overwrite_eps)."""
    state = torchvisions()[0]
    entry = next(e for e in PUBLISHED if e.config == TORCHVISIONS)
    ours = interpret(state, {}, entry.name)[0]
    norm = FrozenBatchNorm2d(64, eps=0.0)
    first = "backbone.body.bn1."
    norm.load_state_dict({k.removeprefix(first): v for k, v in state.items()
                          if k.startswith(first) and not k.endswith("tracked")})  # fmt: skip
    x = torch.randn(1, 64, 3, 3, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        model = build_model(load_config(TORCHVISIONS, FEW))
    own = model.to_empty(device="cpu").backbone.bottom_up.stem.conv1.norm
    first = "backbone.bottom_up.stem.conv1.norm."
    own.load_state_dict({k.removeprefix(first): v for k, v in ours.items() if k.startswith(first)},
                        strict=False)  # fmt: skip
    torch.testing.assert_close(own(x), norm(x), rtol=1e-6, atol=1e-6)
    before = interpret(state, {}, "it.pth")[0][f"{first}running_var"]
    own.running_var.copy_(before)
    assert (own(x) - norm(x)).abs().max() > 1e-6
