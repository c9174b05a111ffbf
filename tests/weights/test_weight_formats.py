"""Weights of torchvision, timm, MSRA and Caffe, each against its source's own output."""

import logging
import pickle

import pytest
import timm
import torch
import torchvision
from foreign import BothSides, caffe_vgg_forward, fill, msra_blobs, msra_forward, picture

from resnet_det.nets import NETS, build_net
from resnet_det.nets.vgg import CONVOLUTIONS
from resnet_det.weights.formats import to_our_names, to_their_names
from resnet_det.weights.loading import WeightsError, load, read
from resnet_det.weights.shortcuts import zeros_to_end

DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def empty(name, *classes, **options):
    with torch.device("meta"):
        return build_net(name, *classes, **options)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_equals_torchvision_and_timm(depth, tmp_path):
    """With their weights, our net computes their output, bit for bit in float64."""
    name = f"resnet{depth}"
    with torch.device("meta"):
        theirs, timms = getattr(torchvision.models, name)(), timm.create_model(name)
    state = fill(theirs).state_dict()
    assert list(timms.state_dict()) == list(state)  # one format
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "it.pth")
    ours = empty(f"paper_{name}", stride_in_1x1=False).to_empty(device="cpu")
    match = load(ours, tmp_path / "it.pth")
    assert len(match.loaded) == len(state)
    assert not match.missing and not match.unused and not match.mismatched
    timms.load_state_dict(state, assign=True)
    x = picture(48)
    with torch.no_grad():
        expected = theirs.double()(x)
        assert (ours.double().eval()(x) - expected).abs().max().item() == 0.0
        assert (timms.double().eval()(x) - expected).abs().max().item() < 1e-12
    back = to_their_names(read(tmp_path / "it.pth")[0], match.facts, "timm", "it")
    assert list(back) == list(state) and all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize("wrap", [
    {"module.": {}},
    {"_orig_mod.module.": {}},
    {"model.": {"loss.weight": 1}},
    {"backbone.": {"decode_head.conv_seg.weight": 1}},
    {"module.backbone.body.": {"module.transformer.norm.weight": 1}},
    {"module.encoder_q.": {"module.encoder_k.conv1.weight": 1, "module.queue": 1,
                           "module.encoder_q.fc.2.weight": 1}},
])  # fmt: skip
def test_a_net_is_found_under_the_prefixes_of_wrappers(wrap):
    """DataParallel, torch.compile, Lightning, a segmenter, DETR and MoCo v2 with its projection."""
    with torch.device("meta"):
        state = torchvision.models.resnet18().state_dict()
    (prefix, others), expected = wrap.popitem(), to_our_names(state)[0]
    if "encoder" in prefix:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        expected = {key: value for key, value in expected.items() if "linear" not in key}
    found, facts = to_our_names({f"{prefix}{key}": value for key, value in state.items()} | others)
    assert facts["format"] == "RGB" and found.keys() == expected.keys()


def test_our_own_names_keep_their_prefixes():
    own = {"backbone.stem.conv1.weight": 1, "roi_heads.res5.0.conv1.weight": 1}
    assert to_our_names(own) == (own, {})
    assert to_our_names({"module.a": 1, "b": 2})[0] == {"module.a": 1, "b": 2}


@pytest.mark.parametrize("depth", CONVOLUTIONS)
def test_vgg_equals_torchvision_timm_and_caffe(depth):
    """One set of weights in three formats and ours: four forward passes in double agree."""
    name = f"vgg{depth}"
    with torch.device("meta"):
        theirs, timms = getattr(torchvision.models, name)(), timm.create_model(name)
    state = fill(theirs).double().state_dict()
    ours = empty(f"paper_{name}").eval()
    ours.load_state_dict(to_our_names(state)[0], assign=True)
    own = ours.state_dict()
    back = to_their_names(own, to_our_names(state)[1], "torchvision", "it")
    assert list(back) == list(state) and all(back[k].equal(state[k]) for k in state)
    timm_state = to_their_names(own, to_our_names(state)[1], "timm", "it")
    timms.load_state_dict(timm_state, assign=True)
    caffe = {k.replace(".", "_"): v for k, v in own.items()}
    caffe = {k.replace("linear", "fc8"): v for k, v in caffe.items()}
    caffe = {k.replace("_weight", "_w").replace("_bias", "_b"): v for k, v in caffe.items()}
    assert {"conv1_1_w", f"conv5_{depth // 4 - 1}_b", "fc6_w", "fc8_b"} <= set(caffe)
    x = picture(224)
    with torch.no_grad():
        expected = theirs(x)
        outputs = ours(x), timms.eval()(x), caffe_vgg_forward(caffe, x)
    assert outputs[0].equal(expected)
    for output in outputs:
        assert (output - expected).abs().max() < 1e-12 * expected.abs().max()
    for foreign, channels in ((timm_state, "RGB"), (caffe, "BGR")):
        again, facts = to_our_names(foreign)
        assert facts["format"] == channels and "stride_in_1x1" not in facts
        assert set(again) == set(own) and all(again[k].equal(own[k]) for k in own)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16_bn"])
def test_no_other_vgg_is_taken_for_ours(name, tmp_path):
    """No convolution may be loaded into the place of another."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().features
    state = {f"features.{k}": torch.ones(()) for k in theirs.state_dict()}
    assert to_our_names(state)[0] == state


def test_the_catalog_names_torchvisions_architectures():
    """Nets with an entry ``torchvision`` have the same shapes there, under other names."""
    for name, spec in NETS.items():
        if spec.torchvision:
            with torch.device("meta"):
                theirs = getattr(torchvision.models, spec.torchvision)()
            shapes = [sorted(p.shape for p in net.parameters()) for net in (theirs, empty(name))]
            assert shapes[0] == shapes[1], name


@pytest.mark.parametrize("depth", [50, 101])
def test_msra_equals_its_own_blobs(depth, tmp_path):
    """Affine channels, the stride in the 1x1, and R-50's bias in conv1: against the blobs'
    forward."""
    blobs = msra_blobs(DEPTHS[depth], conv1_bias=depth == 50)
    path = tmp_path / f"R-{depth}.pkl"
    momentum = {"conv1_w_momentum": blobs["conv1_w"]}
    path.write_bytes(pickle.dumps({"blobs": blobs | momentum, "cfg": "..."}, protocol=2))
    net = empty(f"paper_resnet{depth}", 11, norm="FrozenBN").double().eval().to_empty(device="cpu")
    match = load(net, path)
    assert not match.unused and not match.missing
    assert match.facts["format"] == "BGR" and match.facts["stride_in_1x1"] is True
    assert match.facts["pixel_std"] == [1, 1, 1]
    x = picture(48)
    expected = msra_forward(blobs, DEPTHS[depth], x)
    with torch.no_grad():
        output = net(x)
        assert (output - expected).abs().max() < 1e-12 * expected.abs().max()
        for name, block in net.named_modules():  # and not with the stride elsewhere
            if name in ("res3.0", "res4.0", "res5.0"):
                block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
        assert not torch.allclose(net(x), expected, rtol=1e-2)


@pytest.mark.parametrize("name, counts, widths, stem, classes", [
    ("cifar_resnet20", (3, 3, 3), (16, 32, 64), 3, 10),
    ("cifar_resnet32", (5, 5, 5), (16, 32, 64), 3, 10),
    ("paper_resnet18_a", (2, 2, 2, 2), (64, 128, 256, 512), 7, 1000),
])  # fmt: skip
def test_zeros_on_both_sides_become_zeros_at_the_end(name, counts, widths, stem, classes):
    """The same logits in float64; without the permutation, others."""
    with torch.device("meta"):
        theirs = BothSides(counts, widths, stem, classes)
    state = to_our_names(fill(theirs).state_dict())[0]
    ours = empty(name).to_empty(device="cpu").double().eval()
    theirs, x = theirs.double(), picture(32)
    with torch.no_grad():
        expected = theirs(x)
        ours.load_state_dict(state)
        assert (ours(x) - expected).abs().max() > 1e-2 * expected.abs().max()
        ours.load_state_dict(zeros_to_end(state))
        assert (ours(x) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_group_norm_blobs_keep_their_numbers():
    blobs = msra_blobs((3, 4, 6, 3), conv1_bias=False)
    state = {k.replace("_bn_", "_gn_"): torch.from_numpy(v) for k, v in blobs.items()}
    ours, facts = to_our_names(state)
    net = build_net("paper_resnet50", 11, norm="GN")
    assert facts["stride_in_1x1"] is False and set(ours) == set(net.state_dict())


def test_each_format_tells_its_conventions(tmp_path):
    """RGB, ImageNet's mean and deviation; the stride of a bottleneck on its 3x3."""
    for depth, stride in ((18, {}), (50, {"stride_in_1x1": False})):
        theirs = getattr(torchvision.models, f"resnet{depth}")()
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        facts = read(tmp_path / "theirs.pth")[1]
        transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
        assert facts["format"] == "RGB"
        assert facts["pixel_mean"] == pytest.approx([255 * x for x in transform.mean])
        assert facts["pixel_std"] == pytest.approx([255 * x for x in transform.std])
        assert stride.items() <= facts.items()
        assert facts.pop("guessed") == list(facts) and len(facts) == 3 + len(stride)


def test_detectron2s_conversion_of_torchvision_is_known(tmp_path):
    """Detectron2's tools/convert-torchvision-to-d2.py keeps stem.fc and names the author."""
    state = build_net("paper_resnet50", 11).state_dict()
    arrays = {k.replace("linear", "stem.fc"): v.numpy() for k, v in state.items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "r50.pkl").write_bytes(pickle.dumps(content))
    read_back, facts = read(tmp_path / "r50.pkl")
    assert set(read_back) == set(state)
    assert facts["stride_in_1x1"] is False and facts["format"] == "RGB"


def test_pixels_move_into_the_first_convolution():
    """BGR on 0-255 without a deviation -> the net takes what torchvision feeds: equal outputs."""
    facts = {
        "format": "BGR",
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [1.0, 1.0, 1.0],
    }
    ours = build_net("paper_resnet18", 11).double().eval()
    theirs = torchvision.models.resnet18(num_classes=11).double().eval()
    theirs.load_state_dict(to_their_names(ours.state_dict(), facts, "torchvision", "it"))
    image = 255 * torch.rand(1, 3, 64, 64, dtype=torch.float64)  # RGB
    mean, std = (
        torch.tensor(x, dtype=torch.float64)[:, None, None]
        for x in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    with torch.no_grad():
        torch.testing.assert_close(
            theirs((image - mean) / std), ours((image - mean).flip(1)), rtol=1e-12, atol=1e-12
        )
    for wrong in ({"pixel_mean": [100.0, 116.28, 123.675]}, {"format": "RGB"}):
        with pytest.raises(WeightsError, match="PIXEL_MEAN .*, but torchvision's is"):
            to_their_names(ours.state_dict(), facts | wrong, "torchvision", "it")


def test_nets_and_strides_that_they_do_not_have_are_refused():
    facts = {"format": "RGB", "pixel_mean": [], "pixel_std": [], "stride_in_1x1": True}
    with pytest.raises(WeightsError, match="timm has no such net.*paper_resnet18"):
        to_their_names(empty("paper_resnet18_a").state_dict(), facts, "timm", "it")
    with pytest.raises(WeightsError, match="STRIDE_IN_1X1 True.*3x3"):
        to_their_names(empty("paper_resnet50").state_dict(), facts, "timm", "it")


@pytest.mark.detectron2
def test_detectron2s_checkpointer_misses_no_norm_in_msras_file(tmp_path, caplog, monkeypatch):
    """Its warning would list every norm, among which the layers that are new disappear."""
    from detectron2.checkpoint import DetectionCheckpointer

    from resnet_det import PaperBackbone

    blobs = msra_blobs(DEPTHS[50], conv1_bias=False)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs, protocol=2))
    backbone = PaperBackbone("paper_resnet50", norm="FrozenBN")
    monkeypatch.setattr(logging.getLogger("fvcore"), "propagate", True)
    DetectionCheckpointer(backbone).load(str(tmp_path / "R-50.pkl"))
    assert "Some model parameters or buffers are not found" not in caplog.text
    assert "not used by the model" in caplog.text  # the log is read: the classifier's layer is new


@pytest.mark.detectron2
@pytest.mark.parametrize("conv1_bias", [False, True])
def test_detectron2s_own_net_agrees_on_msras_file(conv1_bias, tmp_path):
    """R-50.pkl by Detectron2's checkpointer into its own R50-C4, and by ours into ours.

    Detectron2 leaves the bias of conv1 out, which its own R50 has no place for.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes

    from resnet_det.config.defaults import add_resnet_det_config
    from resnet_det.engines.on_detectron2.checkpointer import Checkpointer

    blobs = msra_blobs(DEPTHS[50], conv1_bias)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs, protocol=2))
    cfg = get_cfg()
    add_resnet_det_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", False
    theirs = build_model(cfg).eval()
    DetectionCheckpointer(theirs).load(str(tmp_path / "R-50.pkl"))
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ROI_HEADS.NAME = "paper_resnet50", "PaperROIHeads"
    ours = build_model(cfg).eval()
    facts = Checkpointer(ours).load(str(tmp_path / "R-50.pkl"), checkpointables=[])["meta"]
    assert facts["stride_in_1x1"] is True and facts["format"] == "BGR"
    ours, theirs = ours.double(), theirs.double()
    with torch.no_grad():
        found, expected = (m.backbone(picture(96))["res4"] for m in (ours, theirs))
        if conv1_bias:
            assert (found - expected).abs().max() > 1e-2 * expected.abs().max()
            return
        # Detectron2's variance is 1, so that it divides by the root of 1 + 1e-5 in each norm.
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
        boxes = [Boxes(torch.tensor([[0.0, 0.0, 60.0, 40.0], [20.0, 10.0, 90.0, 80.0]]))]
        found, expected = (
            m.roi_heads._shared_roi_transform([expected], boxes) for m in (ours, theirs)
        )
        assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
