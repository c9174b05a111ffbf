"""Our backbones compute what Detectron2's own ResNets compute, with the same weights."""

import pickle

import pytest
import torch

detectron2 = pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2_models import picture, small_cfg
from golden import in_double
from plugin_models import fpn_cfg, shapes

import resnet_det  # noqa: F401 (registers the backbones)

pytestmark = pytest.mark.detectron2

DEPTHS = [18, 34, 50, 101, 152]


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


def assert_same(ours, theirs):
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def stock_cfg(depth, pyramid=False, **keys):
    """A config of Detectron2's own ResNet of this depth."""
    if pyramid:
        cfg = fpn_cfg("paper_resnet50")
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    else:
        cfg = small_cfg("build_resnet_backbone")
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256 if depth >= 50 else 64
    cfg.merge_from_list([x for key, value in keys.items() for x in (f"MODEL.{key}", value)])
    return cfg


def same_backbones(cfg, name):
    """The maps of the backbone ``name`` and of the config's, with the same weights in float64."""

    def build():  # without initialisation, which would take most of the time
        with torch.device("meta"):
            return build_backbone(cfg).double().eval().to_empty(device="cpu")

    theirs = fill(build())
    cfg.MODEL.BACKBONE.NAME = name
    ours = build()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1)).double()
    x = x[..., :64, :96] if isinstance(ours, FPN) else x
    with torch.no_grad():
        return ours(x), theirs(x)


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameter_names_and_shapes_are_detectron2s(depth):
    cfg = stock_cfg(depth, **{"RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"]})
    with torch.device("meta"):
        theirs = build_backbone(cfg)
        cfg.MODEL.BACKBONE.NAME = f"paper_resnet{depth}"
        ours = build_backbone(cfg)
    assert shapes(ours) == shapes(theirs)
    assert ours.output_shape() == theirs.output_shape()


@pytest.mark.parametrize(
    "depth, stride_in_1x1, dilation",
    [*((depth, True, 1) for depth in DEPTHS), (50, False, 1), (50, True, 2), (50, False, 2)],
)
def test_same_features_as_detectron2s(depth, stride_in_1x1, dilation):
    cfg = stock_cfg(depth, **{"RESNETS.STRIDE_IN_1X1": stride_in_1x1})
    cfg.MODEL.RESNETS.RES5_DILATION = dilation
    cfg.MODEL.RESNETS.OUT_FEATURES = ["stem", "res2", "res3", "res4", "res5"]
    ours, theirs = same_backbones(cfg, f"paper_resnet{depth}")
    assert list(ours) == list(theirs) == cfg.MODEL.RESNETS.OUT_FEATURES
    for name in theirs:
        assert_same(ours[name], theirs[name])


@pytest.mark.parametrize("depth", DEPTHS)
def test_same_pyramid_as_detectron2s(depth):
    ours, theirs = same_backbones(stock_cfg(depth, pyramid=True), f"paper_resnet{depth}_fpn")
    assert list(ours) == list(theirs) == ["p2", "p3", "p4", "p5", "p6"]
    for name in theirs:
        assert_same(ours[name], theirs[name])


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


@pytest.mark.parametrize("depth", DEPTHS[:3])
@pytest.mark.parametrize("pyramid", [False, True], ids=["C4", "FPN"])
def test_same_boxes_and_masks_as_detectron2s(pyramid, depth):
    """Mask R-CNN. Res5ROIHeads would build bottlenecks on R18-C4 and R34-C4, so that Detectron2's
    backbones, too, take our RoI heads there."""
    cfg = stock_cfg(depth, pyramid, MASK_ON=True)
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM, cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 8, int(pyramid)
    if not pyramid and depth >= 50:
        cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    theirs = fill(build_model(cfg)).eval()
    for layer in (theirs.roi_heads.box_predictor, theirs.proposal_generator.rpn_head):
        for parameter in layer.parameters():  # deltas of some pixels, scores of many classes
            parameter.data *= 0.01
    cfg.MODEL.BACKBONE.NAME = f"paper_resnet{depth}" + ("_fpn" if pyramid else "")
    for heads in {cfg.MODEL.ROI_HEADS.NAME, "StandardROIHeads" if pyramid else "PaperROIHeads"}:
        cfg.MODEL.ROI_HEADS.NAME = heads
        ours = build_model(cfg).eval()
        assert shapes(ours) == shapes(theirs)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        with torch.no_grad():
            found, expected = (
                in_double(model)([picture()])[0]["instances"] for model in (ours, theirs)
            )
        assert len(expected) >= 8
        assert found.pred_classes.tolist() == expected.pred_classes.tolist()
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-5
        )
        assert torch.equal(found.pred_masks, expected.pred_masks) and found.pred_masks.any()


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
