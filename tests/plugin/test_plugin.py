"""Our nets and RoI heads in Detectron2's registries, against Detectron2's own."""

import pickle
import subprocess
import sys

import pytest
import torch

from resnet_det.nets import NETS, FrozenBatchNorm2d, build_net

detectron2 = pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    build_backbone,
    build_model,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes
from detectron2_models import losses, picture, small_cfg
from torchvision.ops import roi_align, roi_pool

from resnet_det.plugin.backbones import PaperBackbone
from resnet_det.plugin.roi_heads import PaperROIHeads, build_head, keep_corners

pytestmark = pytest.mark.detectron2

# Each kind of block, shortcut and cut.
KINDS = (
    "paper_resnet18_a",
    "paper_plain18",
    "paper_resnet34_c",
    "paper_resnet50",
    "cifar_resnet20",
)


def fpn_cfg(backbone):
    cfg = small_cfg(f"{backbone}_fpn")
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return cfg


def fill(model, seed=0):
    """Reproducible weights and statistics that keep activations in range."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or (value.dim() == 1 and name.endswith("norm.weight")):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        elif value.dim() == 1:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
        elif value.dim() > 1:
            scale = (2 / value[0].numel()) ** 0.5 * 0.7
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
    return model


def skeleton(cfg):
    """The config's model without numbers: its names and shapes, at no cost."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def shapes(module):
    return {k: tuple(v.shape) for k, v in module.state_dict().items()}


def assert_close(ours, theirs):
    scale = theirs.abs().max()
    assert scale > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5 * scale


# ---- registration


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )


def test_the_import_alone_registers_every_net():
    code = """
import resnet_det
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
assert "RESNET_DET" not in get_cfg()
assert "PaperROIHeads" in ROI_HEADS_REGISTRY
for name in resnet_det.NETS:
    for suffix in ("", "_fpn", "_retinanet_fpn"):
        assert name + suffix in BACKBONE_REGISTRY, name
assert {"scenes_voc_test", "voc_2012_test", "voc_2007_test"} <= set(DatasetCatalog)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["scenes_voc_test", "scenes_coco_train", "miniature_voc_test"])
def test_loading_a_name_draws_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ValueError, match=rf"python tools/get_data\.py {name.split('_')[0]}$"):
        DatasetCatalog.get(name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", [False, True])
def test_without_detectron2_the_nets_still_work(broken, tmp_path):
    setup = "sys.modules['detectron2'] = None"
    if broken:  # a folder of the name that is not Detectron2
        (tmp_path / "detectron2").mkdir()
        (tmp_path / "detectron2/__init__.py").touch()
        setup = f"sys.path.insert(0, {str(tmp_path)!r})"
    code = f"""
import sys, warnings
{setup}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import resnet_det
assert any("cannot be used" in str(w.message) for w in caught) is {broken}
resnet_det.build_net("cifar_resnet20")
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NETS)
def test_detector_holds_exactly_the_nets_parameters(name):
    model = skeleton(small_cfg(name))
    with torch.device("meta"):
        net = build_net(name, norm="FrozenBN")
    held = {}
    for key, shape in shapes(model).items():
        for prefix in ("backbone.", "roi_heads."):
            if key.startswith(prefix) and "box_predictor" not in key:
                held[key.removeprefix(prefix)] = shape
    assert held == {k: s for k, s in shapes(net).items() if not k.startswith("linear.")}


@pytest.mark.parametrize("name", [*KINDS, "paper_vgg16", "paper_vgg19"])
def test_pyramids(name):
    cfg = small_cfg(f"{name}_fpn")
    with torch.device("meta"):
        net = build_net(name)
    stages = list(net.strides)[-3:]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = stages
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    for suffix, extra in (("_fpn", 1), ("_retinanet_fpn", 2)):
        cfg.MODEL.BACKBONE.NAME = name + suffix
        with torch.device("meta"):
            backbone = build_backbone(cfg)
            out = backbone(torch.zeros(1, 3, 64, 128))
        strides = [net.strides[s] * 2**i for s in stages[-1:] for i in range(extra + 1)]
        strides = [net.strides[s] for s in stages[:-1]] + strides
        assert [s.stride for s in backbone.output_shape().values()] == strides
        assert [tuple(x.shape) for x in out.values()] == [
            (1, 8, -(-64 // s), -(-128 // s)) for s in strides
        ]


# ---- against Detectron2's own networks


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_parameter_names_and_shapes_are_detectron2s(depth):
    cfg = small_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256 if depth >= 50 else 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    with torch.device("meta"):
        theirs = build_backbone(cfg)
        cfg.MODEL.BACKBONE.NAME = f"paper_resnet{depth}"
        ours = build_backbone(cfg)
    assert shapes(ours) == shapes(theirs)
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize("stride_in_1x1", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_features_as_detectron2s_resnet50(stride_in_1x1, dilation):
    cfg = small_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    cfg.MODEL.RESNETS.RES5_DILATION = dilation
    cfg.MODEL.RESNETS.OUT_FEATURES = ["stem", "res2", "res3", "res4", "res5"]
    theirs = fill(build_backbone(cfg)).eval()
    cfg.MODEL.BACKBONE.NAME = "paper_resnet50"
    ours = build_backbone(cfg).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = ours(x), theirs(x)
    assert list(ours) == list(theirs)
    for name in theirs:
        assert_close(ours[name], theirs[name])


@pytest.mark.parametrize("depth", [50, 101])
def test_same_pyramid_as_detectron2s(depth):
    cfg = fpn_cfg(f"paper_resnet{depth}")
    cfg.MODEL.RESNETS.DEPTH = depth
    ours = build_backbone(cfg).eval()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    theirs = fill(build_backbone(cfg)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = ours(x), theirs(x)
    assert list(ours) == ["p2", "p3", "p4", "p5", "p6"]
    for name in theirs:
        assert_close(ours[name], theirs[name])


def test_same_gradients_as_detectron2s_resnet18_with_batch_norm():
    cfg = small_cfg("build_resnet_backbone", MODEL__RESNETS__NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    theirs = fill(build_backbone(cfg)).double().train()
    cfg.MODEL.BACKBONE.NAME = "paper_resnet18"
    ours = build_backbone(cfg).double().train()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    for net in (ours, theirs):
        net(x)["res4"].square().mean().backward()
    gradients = {k: p.grad for k, p in theirs.named_parameters() if p.requires_grad}
    assert {k for k, p in ours.named_parameters() if p.requires_grad} == set(gradients)
    ours = dict(ours.named_parameters())
    for key, gradient in gradients.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(ours[key].grad, gradient, rtol=1e-8, atol=1e-10)


def test_detectron2s_r50_c4_detector_loads_and_detects_the_same():
    cfg = small_cfg("build_resnet_backbone", MODEL__ROI_HEADS__NAME="Res5ROIHeads")
    theirs = fill(build_model(cfg)).eval()
    for layer in (theirs.roi_heads.box_predictor, theirs.proposal_generator.rpn_head):
        for parameter in layer.parameters():  # deltas of some pixels, scores of many classes
            parameter.data *= 0.1
    cfg.MODEL.BACKBONE.NAME = "paper_resnet50"
    stock_heads = build_model(cfg).eval()
    cfg.MODEL.ROI_HEADS.NAME = "PaperROIHeads"
    ours = build_model(cfg).eval()
    sample = picture()
    with torch.no_grad():
        expected = theirs([sample])[0]["instances"]
        assert len(expected) == 10
        for model in (stock_heads, ours):
            assert shapes(model) == shapes(theirs)
            model.load_state_dict(theirs.state_dict(), strict=True)
            found = model([sample])[0]["instances"]
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
            assert found.pred_classes.tolist() == expected.pred_classes.tolist()
            torch.testing.assert_close(
                found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-2
            )


def test_msra_weights_of_the_zoo_load_as_into_detectron2s(tmp_path):
    """Caffe2's names, batch norms folded into scale and bias: what R-50.pkl holds."""
    cfg = small_cfg("build_resnet_backbone")
    source = fill(build_backbone(cfg)).state_dict()
    blobs = {}
    for key, value in source.items():
        if "running" in key:
            continue
        key = key.replace("stem.conv1.norm.", "res_conv1_bn_").replace("stem.conv1.", "conv1_")
        for stage in "234":
            key = key.replace(f"res{stage}.", f"res{stage}_")
        for ours, theirs in (("conv1", "a"), ("conv2", "b"), ("conv3", "c")):
            key = key.replace(f".{ours}.", f"_branch2{theirs}.")
        key = key.replace(".shortcut.", "_branch1.").replace(".norm.", "_bn_").replace(".", "_")
        key = key.replace("bn_weight", "bn_s").replace("bn_bias", "bn_b").replace("_weight", "_w")
        blobs[key] = value.numpy()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}))
    loaded = {}
    for name in ("build_resnet_backbone", "paper_resnet50"):
        cfg.MODEL.BACKBONE.NAME = name
        backbone = build_backbone(cfg).eval()
        DetectionCheckpointer(backbone).load(str(path))
        loaded[name] = backbone
    ours, theirs = loaded["paper_resnet50"], loaded["build_resnet_backbone"]
    for key, value in source.items():
        if "running" not in key:
            assert torch.equal(ours.state_dict()[key], value), key
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = (ours(x)["res4"] - theirs(x)["res4"]).abs().max()
        assert difference <= 1e-3 * theirs(x)["res4"].abs().max()


# ---- detectors of every kind


@pytest.mark.parametrize("name", [*KINDS, "paper_vgg16", "paper_vgg19"])
def test_c4_detector_trains_and_detects(name):
    norm = {"cifar_resnet20": "BN", "paper_vgg16": "", "paper_vgg19": ""}.get(name, "GN")
    model = build_model(small_cfg(name, MODEL__RESNETS__NORM=norm))
    found = losses(model, picture())
    assert set(found) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    sum(found.values()).backward()
    frozen = ("backbone.stem.", "backbone.res2.", "backbone.conv1.", "backbone.conv2.")
    for key, parameter in model.named_parameters():
        if key.startswith(frozen):
            assert not parameter.requires_grad, key
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    with torch.no_grad():
        found = model.eval()([picture()])[0]["instances"]
    assert found.scores.isfinite().all() and len(found)


@pytest.mark.parametrize("name", ["paper_resnet18", "paper_vgg16"])
def test_roi_heads_run_the_nets_own_head(name):
    """The classifier's own features of a pooled region, through Detectron2's predictor."""
    cfg = small_cfg(name)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    net = build_net(name, norm="FrozenBN").eval()
    state = {k.removeprefix("roi_heads."): v for k, v in model.state_dict().items()}
    net.load_state_dict({k: v for k, v in state.items() if k in net.state_dict()}, strict=False)
    heads = model.roi_heads
    boxes = [Boxes(torch.tensor([[0.0, 0.0, 40.0, 30.0], [10.0, 5.0, 60.0, 60.0]]))]
    (feature,) = cfg.MODEL.ROI_HEADS.IN_FEATURES
    x = torch.rand(1, net.channels[feature], 4, 6)
    with torch.no_grad():
        ours = heads._shared_roi_transform([x], boxes).mean((2, 3))
        theirs = net.pool(net.head(heads.pooler([x], boxes)))
    assert ours.shape == (2, net.linear.in_features)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.std() > 0


@pytest.mark.parametrize("name", ["paper_resnet18", "paper_resnet50"])
def test_mask_rcnn(name):
    cfg = small_cfg(name, MODEL__MASK_ON=True, INPUT__MASK_FORMAT="bitmask")
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    model = build_model(cfg)
    found = losses(model, picture(masks=True))
    assert found["loss_mask"].isfinite() and found["loss_mask"] > 0
    with torch.no_grad():
        found = model.eval()([picture()])[0]["instances"]
    assert found.pred_masks.shape[1:] == (64, 96)


def test_retinanet():
    cfg = fpn_cfg("paper_resnet18")
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "paper_resnet18_retinanet_fpn"
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    found = losses(build_model(cfg), picture())
    assert set(found) == {"loss_cls", "loss_box_reg"}
    assert all(value.isfinite() and value > 0 for value in found.values())


def test_panoptic_fpn():
    cfg = fpn_cfg("paper_resnet18")
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    sample = picture(masks=True, sem_seg=torch.zeros(64, 96, dtype=torch.long))
    found = losses(build_model(cfg), sample)
    assert {"loss_sem_seg", "loss_mask", "loss_cls", "loss_rpn_cls"} <= set(found)
    assert all(value.isfinite() for value in found.values())


def test_lazy_config():
    options = {"norm": "FrozenBN", "stride_in_1x1": False}
    backbone = L(PaperBackbone)(
        name="paper_resnet34", out_features=["res4"], freeze_at=2, **options
    )
    heads = L(PaperROIHeads)(
        num_classes=3,
        batch_size_per_image=8,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        in_features=["res4"],
        pooler=L(ROIPooler)(
            output_size=14, scales=(1 / 16,), sampling_ratio=0, pooler_type="ROIAlignV2"
        ),
        res5=L(build_head)(name="paper_resnet34", **options),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=512, height=1, width=1),
            num_classes=3,
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
        ),
    )
    cfg = small_cfg("paper_resnet34")
    expected = shapes(build_model(cfg).roi_heads)
    assert shapes(instantiate(heads)) == expected
    pyramid = instantiate(L(FPN)(bottom_up=backbone, in_features=["res4"], out_channels=16))
    assert pyramid(torch.zeros(1, 3, 32, 32))["p4"].shape == (1, 16, 2, 2)
    assert not pyramid.bottom_up.res2[0].conv1.weight.requires_grad


# ---- Detectron2's keys


@pytest.mark.parametrize("freeze_at", [0, 1, 3])
def test_freeze_at(freeze_at):
    cfg = small_cfg("paper_resnet18", MODEL__RESNETS__NORM="BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    backbone = build_backbone(cfg)
    for index, stage in enumerate(("stem", "res2", "res3", "res4")):
        stage = getattr(backbone, stage)
        frozen = index < freeze_at
        assert all(p.requires_grad != frozen for p in stage.parameters())
        kinds = {type(m) for m in stage.modules() if "BatchNorm" in type(m).__name__}
        assert kinds == {FrozenBatchNorm2d if frozen else torch.nn.BatchNorm2d}


@pytest.mark.parametrize(
    "norm, kind",
    [
        ("BN", torch.nn.BatchNorm2d),
        ("SyncBN", torch.nn.SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("GN", torch.nn.GroupNorm),
    ],
)
def test_norm(norm, kind):
    cfg = small_cfg("paper_resnet18", MODEL__RESNETS__NORM=norm)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = build_model(cfg)
    assert type(model.backbone.res3[0].conv1.norm) is kind
    assert type(model.roi_heads.res5[0].conv1.norm) is kind


@pytest.mark.parametrize(
    "name, key, value, named",
    [
        ("paper_resnet34", "ROI_HEADS.NAME", "Res5ROIHeads", "PaperROIHeads"),
        ("paper_plain18", "ROI_HEADS.NAME", "Res5ROIHeads", "PaperROIHeads"),
        ("paper_vgg16", "ROI_HEADS.NAME", "Res5ROIHeads", "PaperROIHeads"),
        ("paper_resnet18", "RESNETS.OUT_FEATURES", ["res6"], "res6"),
        ("paper_resnet18", "RESNETS.NORM", "LN", "LN"),
        ("paper_resnet50", "RESNETS.NUM_GROUPS", 32, "NUM_GROUPS"),
        ("paper_resnet50", "RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True], "DEFORM"),
        ("cifar_resnet20", "RESNETS.RES5_DILATION", 2, "RES5_DILATION: 2: .* takes 1"),
        ("paper_vgg16", "ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "POOLER_RESOLUTION"),
        ("paper_vgg16", "MASK_ON", True, "MASK_ON"),
        ("paper_resnet18", "ROI_HEADS.IN_FEATURES", ["res5"], "IN_FEATURES"),
        ("paper_resnet18_fpn", "ROI_HEADS.IN_FEATURES", ["res4"], "FPN.IN_FEATURES"),
        ("paper_resnet18", "PIXEL_MEAN", [100.0], "PIXEL_MEAN"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name, key, value, named):
    with pytest.raises(ValueError, match=named):
        build_model(small_cfg(name, **{f"MODEL.{key}": value}))


def test_paper_heads_on_detectron2s_own_resnet34():
    """Res5ROIHeads would build bottlenecks there."""
    cfg = small_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 34, 64
    assert shapes(skeleton(cfg)) == shapes(skeleton(small_cfg("paper_resnet34")))


def test_zoo_mask_rcnn_config_with_our_backbone_changed_by_name_only():
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml")
    theirs = shapes(skeleton(cfg))
    cfg.MODEL.BACKBONE.NAME = "paper_resnet50"
    assert shapes(skeleton(cfg)) == theirs
    cfg.MODEL.ROI_HEADS.NAME = "PaperROIHeads"
    assert shapes(skeleton(cfg)) == theirs


def test_registered_names_are_unique():
    names = [name for name, _ in BACKBONE_REGISTRY]
    assert len(names) == len(set(names)) >= 3 * len(NETS)


@pytest.mark.parametrize(
    "key, value, step",
    [
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", 2),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", 1),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False, 1),
    ],
)
def test_fast_gives_the_same_regions(key, value, step):
    """On in a foreign project, off by ``RESNET_DET.FAST``; parameters and regions stay."""
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
    """Against torchvision in float64; Detectron2's own ROIAlign moves corners by up to 4 pixels."""
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
