"""Our nets and RoI heads in Detectron2's registries, against Detectron2's own."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from resnet_det.nets import NETS, FrozenBatchNorm2d, build_net

detectron2 = pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.layers import NaiveSyncBatchNorm, ShapeSpec, get_norm
from detectron2.layers.batch_norm import LayerNorm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    FPN,
    ROI_HEADS_REGISTRY,
    build_backbone,
    build_model,
)
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads
from detectron2.structures import Boxes
from detectron2_models import losses, picture, small_cfg
from plugin_models import fpn_cfg, shapes, skeleton

from resnet_det.data import dataset_names
from resnet_det.nets.catalog import NetSpec
from resnet_det.nets.resnet import Block, imagenet_resnet
from resnet_det.plugin.backbones import PaperBackbone, stock_head_faults
from resnet_det.plugin.datasets import register_dataset
from resnet_det.plugin.roi_heads import PaperROIHeads, build_head

pytestmark = pytest.mark.detectron2

# Each kind of block, shortcut and cut.
KINDS = (
    "paper_resnet18_a",
    "paper_plain18",
    "paper_resnet34_c",
    "paper_resnet50",
    "cifar_resnet20",
)


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
assert {"scenes_voc_test", "voc_2007_test"} <= set(DatasetCatalog)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_the_import_registers_no_published_dataset(tmp_path, monkeypatch):
    """A project may register those that Detectron2 lacks, before or after our import."""
    assert {name for name in dataset_names() if name not in DatasetCatalog} == {"voc_2012_test"}
    try:
        register_pascal_voc("voc_2012_test", str(tmp_path), "test", 2012)
        assert MetadataCatalog.get("voc_2012_test").year == 2012
    finally:
        DatasetCatalog.pop("voc_2012_test", None)
        MetadataCatalog.pop("voc_2012_test", None)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # an empty folder
    register_dataset("voc_2012_test")  # or take ours
    try:
        with pytest.raises(ValueError, match="cannot be read: No such file"):
            DatasetCatalog.get("voc_2012_test")
    finally:
        DatasetCatalog.pop("voc_2012_test")


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
assert any("Detectron2 is installed but" in str(w.message) for w in caught) is {broken}
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


def test_a_subclass_may_have_modules_of_its_own():
    class Attentive(PaperBackbone):
        def __init__(self):
            super().__init__("cifar_resnet20", norm="FrozenBN")
            self.attention = torch.nn.Conv2d(32, 32, 1)

    backbone, x = Attentive().eval(), torch.rand(1, 3, 32, 32)
    expected = PaperBackbone("cifar_resnet20", norm="FrozenBN").eval()
    expected.load_state_dict(backbone.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(backbone(x)["res3"], expected(x)["res3"])
    backbone.attention = torch.nn.Conv2d(5, 5, 1)  # would not even fit
    assert list(backbone(x)) == ["res3"]


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
        ("nnSyncBN", torch.nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
        ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ("LN", LayerNorm),
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
    stock = get_norm(norm, 128)
    same = kind is FrozenBatchNorm2d or type(stock) is kind
    assert same and model.backbone.res3[0].conv1.norm.state_dict().keys() == {
        k for k in stock.state_dict() if kind is not FrozenBatchNorm2d or "tracked" not in k
    }


def test_naive_sync_bn_n_weighs_by_the_images():
    modes = {norm: PaperBackbone("cifar_resnet20", norm=norm).stem.conv1.norm._stats_mode
             for norm in ("naiveSyncBN", "naiveSyncBN_N")}  # fmt: skip
    assert modes == {"naiveSyncBN": "", "naiveSyncBN_N": "N"}


def test_a_callable_is_a_norm_and_runs_as_it_is():
    class Doubled(torch.nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    norms = (Doubled, lambda n: torch.nn.InstanceNorm2d(n, affine=True), torch.nn.Identity,
             lambda n: torch.nn.BatchNorm2d(n, affine=False))  # fmt: skip
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    for norm in norms:
        torch.manual_seed(0)
        fast = PaperBackbone("cifar_resnet20", norm=norm, freeze_at=0).double().eval()
        torch.manual_seed(0)
        plain = PaperBackbone("cifar_resnet20", norm=norm, freeze_at=0, fast=False)
        plain.double().eval()
        conv = fast.stem.conv1
        with torch.no_grad():
            expected = conv.norm(torch.nn.functional.conv2d(x, conv.weight, padding=1))
            torch.testing.assert_close(conv(x), expected)
            torch.testing.assert_close(fast(x), plain(x))
    assert isinstance(build_head("paper_resnet18", norm=Doubled).res5[0].conv1.norm, Doubled)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_images_may_have_any_number_of_channels(channels):
    """As stock: their number is that of MODEL.PIXEL_MEAN."""
    settings = {"MODEL.PIXEL_MEAN": [100.0] * channels, "MODEL.PIXEL_STD": [50.0] * channels}
    if channels == 1:
        settings["INPUT.FORMAT"] = "L"
    sample = picture(image=torch.rand(channels, 64, 96) * 255)
    model = build_model(small_cfg("cifar_resnet20", **settings))
    assert all(loss.isfinite() for loss in losses(model, sample).values())
    assert len(model.backbone.stem.conv1.weight[0]) == channels
    stock = skeleton(small_cfg("build_resnet_backbone", **settings))
    ours = skeleton(small_cfg("paper_resnet50", **settings))
    assert shapes(ours) == shapes(stock)
    vgg = PaperBackbone("paper_vgg16", in_channels=channels)
    assert len(vgg.conv1[0].weight[0]) == channels


@pytest.mark.parametrize(
    "name, key, value, named",
    [
        ("paper_resnet34", "ROI_HEADS.NAME", "Res5ROIHeads", "PaperROIHeads"),
        ("paper_plain18", "ROI_HEADS.NAME", "Res5ROIHeads", "PaperROIHeads"),
        ("paper_vgg16", "ROI_HEADS.NAME", "Res5ROIHeads", "PaperROIHeads"),
        ("paper_resnet18", "RESNETS.OUT_FEATURES", ["res6"], "res6"),
        ("paper_resnet18", "RESNETS.NORM", "LayerNorm", "'GN' or 'naiveSyncBN' or .* or 'LN'"),
        ("cifar_resnet20", "RESNETS.NORM", "GN", "'FrozenBN' or 'naiveSyncBN' or .* or 'LN'"),
        ("paper_resnet50", "RESNETS.NUM_GROUPS", 32, "NUM_GROUPS"),
        ("paper_resnet50", "RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True], "DEFORM"),
        ("cifar_resnet20", "RESNETS.RES5_DILATION", 2, "RES5_DILATION: 2: .* takes 1"),
        ("paper_vgg16", "ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "POOLER_RESOLUTION"),
        ("paper_vgg16", "MASK_ON", True, "MASK_ON"),
        ("paper_resnet18", "ROI_HEADS.IN_FEATURES", ["res5"], "IN_FEATURES"),
        ("paper_resnet18_fpn", "ROI_HEADS.IN_FEATURES", ["res4"], "FPN.IN_FEATURES"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(name, key, value, named):
    with pytest.raises(ValueError, match=named):
        build_model(small_cfg(name, **{f"MODEL.{key}": value}))


def test_stock_heads_are_refused_for_blocks_that_differ_in_their_forward_alone(monkeypatch):
    """Res5ROIHeads would build Detectron2's own blocks, whose tensors have the same shapes."""

    class Leaky(Block):
        def forward(self, x):
            return torch.nn.functional.leaky_relu(super().forward(x))

    cfg = small_cfg("paper_resnet50")
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    assert stock_head_faults(cfg, "paper_resnet50") == []
    build = partial(imagenet_resnet, 50, block=Leaky)
    monkeypatch.setitem(NETS, "leaky_resnet50", NetSpec(build, 50))
    (fault,) = stock_head_faults(cfg, "leaky_resnet50")
    assert "leaky_resnet50 has another head and takes 'PaperROIHeads'" in fault


def test_heads_that_are_derived_from_the_stock_ones_build_the_same_blocks(monkeypatch):
    """They are refused where Res5ROIHeads is, unless they build a head of their own."""

    class Derived(Res5ROIHeads):
        pass

    class OwnHead(Res5ROIHeads):
        @classmethod
        def _build_res5_block(cls, cfg):
            return torch.nn.Conv2d(256, 8, 1), 8

    class OwnMethod(Res5ROIHeads):  # as in MoCo; Detectron2 supports it
        def _build_res5_block(self, cfg):
            return torch.nn.Conv2d(256, 8, 1), 8

    class FromOurs(PaperROIHeads):
        pass

    for heads in (Derived, OwnHead, OwnMethod, FromOurs):
        monkeypatch.setitem(ROI_HEADS_REGISTRY._obj_map, heads.__name__, heads)
    cfg = small_cfg("paper_resnet34", MODEL__ROI_HEADS__NAME="Derived")
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    with pytest.raises(ValueError, match="ROI_HEADS.NAME: 'Derived': .* derived from it"):
        skeleton(cfg)
    for name in ("OwnHead", "OwnMethod", "FromOurs"):
        cfg.MODEL.ROI_HEADS.NAME = name
        skeleton(cfg)
    skeleton(small_cfg("paper_resnet50", MODEL__ROI_HEADS__NAME="Derived"))


def test_a_derived_head_may_run_its_res5_on_any_map():
    """As Detectron2's Res5ROIHeads, it has a stride: only PaperROIHeads itself pools fewer bins."""

    class FromOurs(PaperROIHeads):
        pass

    cfg, found = small_cfg("paper_resnet50"), []
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    shape = {"res4": ShapeSpec(channels=1024, stride=16)}
    for heads in (Res5ROIHeads, FromOurs, PaperROIHeads):
        head = heads(cfg, shape).double().eval()
        if found:
            head.load_state_dict(found[0][0].state_dict())
        torch.manual_seed(0)
        maps = [torch.rand(1, 1024, 8, 10, dtype=torch.double)]
        boxes = [Boxes(torch.tensor([[10.0, 10, 90, 100]], dtype=torch.double))]
        with torch.no_grad():
            found.append((head, head._shared_roi_transform(maps, boxes), head.res5(maps[0])))
    (_, pooled, whole), (_, ours, our_whole), (_, fast, _) = found
    torch.testing.assert_close(ours, pooled, rtol=0, atol=1e-10)
    torch.testing.assert_close(fast, pooled, rtol=0, atol=1e-10)
    torch.testing.assert_close(our_whole, whole, rtol=0, atol=1e-10)


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
