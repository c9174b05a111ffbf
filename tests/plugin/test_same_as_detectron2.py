"""Our backbones compute what Detectron2's own ResNets compute, with the same weights."""

import pickle

import pytest
import torch

detectron2 = pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model
from detectron2_models import picture, small_cfg
from plugin_models import fpn_cfg, shapes

pytestmark = pytest.mark.detectron2


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


def assert_close(ours, theirs):
    scale = theirs.abs().max()
    assert scale > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5 * scale


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
