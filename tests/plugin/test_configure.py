"""``configure`` makes a config one of any net, and what a config lacks is told in one error."""

import pytest
import torch

import resnet_det
from resnet_det.config.defaults import ConfigError, flatten
from resnet_det.config.defaults import get_cfg as own_cfg
from resnet_det.detector.build import build_model as build_embedded
from resnet_det.detector.maps import HEADS

detectron2 = pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    ProposalNetwork,
    build_backbone,
    build_model,
)
from detectron2.modeling.meta_arch import RetinaNet
from detectron2_models import losses, picture
from plugin_models import skeleton

pytestmark = pytest.mark.detectron2


def configured(name, head, **keys):
    """A quick detector of 3 classes, from Detectron2's defaults."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    resnet_det.configure(cfg, name, head)
    model = cfg.MODEL
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = 3
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    model.ROI_HEADS.SCORE_THRESH_TEST = model.RETINANET.SCORE_THRESH_TEST = 0.0
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = 50
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 10
    model.FPN.OUT_CHANNELS, model.ROI_BOX_HEAD.FC_DIM = 16, 16 if head == "fpn" else 1024
    model.RESNETS.NORM = "" if "vgg" in name else "BN"
    return cfg


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["paper_resnet18", "paper_vgg16", "cifar_resnet20"])
def test_each_kind_of_net_trains_and_detects(name, head):
    model = build_model(configured(name, head))
    found = losses(model, picture())
    assert len(found) == (2 if head == "retinanet" else 4)
    sum(found.values()).backward()
    assert all(loss.isfinite() and loss > 0 for loss in found.values())
    with torch.no_grad():
        instances = model.eval()([picture()])[0]["instances"]
    assert len(instances) and instances.scores.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "name",
    ["paper_resnet34_c", "paper_resnet50", "paper_plain18", "paper_vgg19", "cifar_plain20"],
)
def test_other_nets_build_with_every_head(name, head):
    cfg = get_cfg()
    resnet_det.configure(cfg, name, head)
    skeleton(cfg)


@pytest.mark.parametrize(
    "zoo, head, tops",
    [
        ("COCO-Detection/faster_rcnn_R_101_C4_3x.yaml", "c4", "Res5ROIHeads"),
        ("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", "fpn", "StandardROIHeads"),
        ("COCO-Detection/retinanet_R_101_FPN_3x.yaml", "retinanet", "Res5ROIHeads"),
    ],
)
def test_paper_resnet101_gets_the_values_of_detectron2s_own_config(zoo, head, tops):
    """All but the names of the backbone and of the C4 heads."""
    theirs = flatten(model_zoo.get_config(zoo))
    cfg = get_cfg()
    resnet_det.configure(cfg, "paper_resnet101", head)
    ours = flatten(cfg)
    assert theirs.pop("MODEL.ROI_HEADS.NAME") == tops
    same = [key for key in ours if key.startswith("MODEL.") and key in theirs
            and key not in ("MODEL.BACKBONE.NAME", "MODEL.WEIGHTS", "MODEL.MASK_ON")]  # fmt: skip
    sizes = "MODEL.ANCHOR_GENERATOR.SIZES"
    for size, their_size in zip(ours.pop(sizes), theirs.pop(sizes)):
        assert size == pytest.approx(their_size)
    assert {k: ours[k] for k in same if k != sizes} == {k: theirs[k] for k in same if k != sizes}


def test_a_config_of_another_net_and_head_becomes_one_of_this():
    for before in HEADS:
        for head in HEADS:
            cfg = configured("paper_resnet18", before)
            resnet_det.configure(cfg, "cifar_resnet20", head)
            cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
            skeleton(cfg)


def test_what_one_net_needs_does_not_stay_for_another():
    """VGG has no norms, and conv5_x alone can be dilated."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    for name in ("paper_resnet50", "paper_vgg16", "paper_resnet18"):
        resnet_det.configure(cfg, name, "fpn")
        skeleton(cfg)
    assert cfg.MODEL.RESNETS.NORM == "FrozenBN" and cfg.MODEL.RESNETS.RES5_DILATION == 1
    cfg.MODEL.RESNETS.NORM = "GN"
    resnet_det.configure(cfg, "paper_resnet34", "fpn")
    assert cfg.MODEL.RESNETS.NORM == "GN"
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    resnet_det.configure(cfg, "paper_resnet34", "fpn")
    with pytest.raises(ConfigError, match="MODEL.RESNETS.RES5_DILATION: 4: .* takes 1 or 2"):
        skeleton(cfg)


@pytest.mark.parametrize("head", ["c4", "fpn"])
@pytest.mark.parametrize("name", ["paper_vgg16", "cifar_resnet20", "paper_resnet50"])
def test_our_own_config_is_configured_the_same(name, head):
    ours, theirs = own_cfg(), get_cfg()
    resnet_det.configure(ours, name, head)
    resnet_det.configure(theirs, name, head)
    flat = flatten(theirs)
    assert all(flat[k] == v for k, v in flatten(ours.MODEL, "MODEL.").items() if k in flat)
    with torch.device("meta"):
        embedded = build_embedded(ours).state_dict()
    assert set(embedded) == set(skeleton(theirs).state_dict())


def test_configure_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="'paper_resnet5'; did you mean paper_resnet50"):
        resnet_det.configure(get_cfg(), "paper_resnet5")
    with pytest.raises(ConfigError, match="'dc5': use one of c4, fpn, retinanet"):
        resnet_det.configure(get_cfg(), "paper_resnet50", "dc5")
    with pytest.raises(ConfigError, match="embedded engine has no RetinaNet"):
        resnet_det.configure(own_cfg(), "paper_resnet50", "retinanet")


@pytest.mark.parametrize("name", ["paper_resnet34", "cifar_resnet20", "paper_plain18"])
def test_a_backbone_alone_needs_no_roi_heads(name):
    """Feature extraction on Detectron2's defaults, whose RoI heads nobody builds."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    with torch.device("meta"):
        assert list(build_backbone(cfg).output_shape()) == ["res4"]
    with pytest.raises(ConfigError, match="ROI_HEADS.NAME: 'Res5ROIHeads'.*'PaperROIHeads'"):
        skeleton(cfg)


def test_a_backbone_alone_is_told_what_it_needs():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "paper_vgg16"
    with pytest.raises(ConfigError, match="OUT_FEATURES") as caught:
        build_backbone(cfg)
    assert "\n" not in str(caught.value) and "ROI" not in str(caught.value)


PLAIN = {
    ("paper_vgg16", "c4"): {
        "RESNETS.OUT_FEATURES", "RPN.IN_FEATURES", "ROI_HEADS.NAME", "ROI_HEADS.IN_FEATURES",
        "ROI_BOX_HEAD.POOLER_RESOLUTION",
    },
    ("cifar_resnet20", "c4"): {
        "RESNETS.OUT_FEATURES", "RPN.IN_FEATURES", "ROI_HEADS.NAME", "ROI_HEADS.IN_FEATURES",
    },
    ("paper_vgg16", "fpn"): {
        "RESNETS.OUT_FEATURES", "FPN.IN_FEATURES", "RPN.IN_FEATURES", "ROI_HEADS.NAME",
        "ROI_HEADS.IN_FEATURES", "ROI_BOX_HEAD.NAME", "ROI_BOX_HEAD.NUM_FC",
    },
    ("paper_vgg16", "retinanet"): {
        "RESNETS.OUT_FEATURES", "FPN.IN_FEATURES", "RETINANET.IN_FEATURES",
    },
    ("paper_resnet50", "retinanet"): {"FPN.IN_FEATURES"},
}  # fmt: skip


@pytest.mark.parametrize("name, head", PLAIN)
def test_one_error_names_every_key_and_its_value(name, head, monkeypatch):
    """The values that it gives, and no others, make the config one that builds."""
    cfg, wanted = get_cfg(), get_cfg()
    resnet_det.configure(wanted, name, head)
    cfg.MODEL.BACKBONE.NAME = wanted.MODEL.BACKBONE.NAME
    cfg.MODEL.META_ARCHITECTURE = wanted.MODEL.META_ARCHITECTURE
    with pytest.raises(ConfigError) as caught, monkeypatch.context() as patch:
        patch.setattr("resnet_det.plugin.backbones.PaperBackbone", None)  # nothing is built before
        build_model(cfg)
    _, *lines = (
        str(caught.value).splitlines() if "\n" in str(caught.value) else ["", str(caught.value)]
    )
    named = dict(line.strip().split(": ", 1) for line in lines)
    assert set(named) == {f"MODEL.{key}" for key in PLAIN[name, head]}
    for key, told in named.items():
        value = flatten(wanted)[key]
        assert repr(value) in told
        cfg.merge_from_list([key, value])
    if head == "retinanet":
        assert "OUT_FEATURES" in told or "MODEL.RESNETS.OUT_FEATURES" in named
        cfg.MODEL.RESNETS.OUT_FEATURES = wanted.MODEL.RESNETS.OUT_FEATURES
    skeleton(cfg)


@pytest.mark.parametrize("dilation, features, strides", [
    (2, ["res2", "res3", "res4", "res5"], "4, 8, 16, 16"),
    (1, ["res3", "res5"], "8, 32"),
    (1, ["res4", "res3"], "16, 8"),
])  # fmt: skip
def test_stages_whose_strides_do_not_double_carry_no_pyramid(dilation, features, strides):
    cfg = get_cfg()
    resnet_det.configure(cfg, "paper_resnet50", "fpn")
    cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.RESNETS.RES5_DILATION = features, dilation
    with pytest.raises(ConfigError, match=rf"MODEL.FPN.IN_FEATURES: .* strides are \[{strides}\]"):
        skeleton(cfg)


def test_even_positives_are_not_left_to_an_rpn_without_them():
    cfg = get_cfg()
    resnet_det.add_resnet_det_config(cfg)
    resnet_det.configure(cfg, "paper_resnet18", "c4")
    cfg.RESNET_DET.EVEN_POSITIVES = True
    with pytest.raises(ConfigError, match="EVEN_POSITIVES: needs .*NAME PaperRPN, not RPN"):
        skeleton(cfg)
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PaperRPN"
    assert skeleton(cfg).proposal_generator.even_positives


def test_wrong_options_and_stock_heads_are_one_error():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.NUM_GROUPS = "paper_resnet34", 32
    with pytest.raises(ConfigError) as caught:
        skeleton(cfg)
    _, *lines = str(caught.value).splitlines()
    named = [line.split(":")[0].strip() for line in lines]
    assert named == ["MODEL.RESNETS.NUM_GROUPS", "MODEL.ROI_HEADS.NAME"]


def test_a_rotated_rpn_is_checked_as_the_rpn():
    cfg = configured("paper_vgg16", "c4")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RRPN"
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    with pytest.raises(ConfigError, match=r"MODEL.RPN.IN_FEATURES: .* gives \['conv5'\]"):
        skeleton(cfg)


def test_a_projects_own_detector_is_checked_too(monkeypatch):
    class OwnRCNN(GeneralizedRCNN):
        pass

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "OwnRCNN", OwnRCNN)
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.META_ARCHITECTURE = "paper_resnet34", "OwnRCNN"
    with pytest.raises(ConfigError, match="ROI_HEADS.NAME: 'Res5ROIHeads'.*'PaperROIHeads'"):
        skeleton(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "PaperROIHeads"
    assert isinstance(skeleton(cfg), OwnRCNN)


@pytest.mark.parametrize("base, head", [(RetinaNet, "retinanet"), (ProposalNetwork, "c4"),
                                        (ProposalNetwork, "fpn")])  # fmt: skip
def test_a_subclass_of_a_detector_without_roi_heads_is_built_as_its_base(monkeypatch, base, head):
    own = type(f"Own{base.__name__}", (base,), {})
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, own.__name__, own)
    cfg = configured("paper_resnet18", head)
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.IN_FEATURES = "Res5ROIHeads", ["res4"]
    cfg.MODEL.META_ARCHITECTURE = base.__name__
    names = skeleton(cfg).state_dict().keys()
    cfg.MODEL.META_ARCHITECTURE = own.__name__
    model = skeleton(cfg)
    assert type(model) is own and model.state_dict().keys() == names
    key = "RETINANET" if base is RetinaNet else "RPN"
    cfg.MODEL[key].IN_FEATURES = ["nothing"]
    with pytest.raises(ConfigError, match=rf"MODEL.{key}.IN_FEATURES: \['nothing'\]"):
        skeleton(cfg)


def test_the_rpn_may_take_another_map_than_the_heads():
    cfg = configured("paper_resnet18", "c4")
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4"]
    cfg.MODEL.RPN.IN_FEATURES = ["res3"]
    assert skeleton(cfg).proposal_generator.rpn_head.conv.in_channels == 128


def test_masks_on_vgg():
    """Its own head returns vectors; StandardROIHeads on its pyramid predict masks."""
    with pytest.raises(ConfigError, match="MODEL.MASK_ON: .*returns vectors.*use paper_vgg16_fpn"):
        cfg = configured("paper_vgg16", "c4")
        cfg.MODEL.MASK_ON = True
        skeleton(cfg)
    cfg = configured("paper_vgg16", "fpn")
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    found = losses(build_model(cfg), picture(masks=True))
    assert found["loss_mask"].isfinite() and found["loss_mask"] > 0


@pytest.mark.parametrize(
    "name, near", [("paper_resnet5", "paper_resnet50"), ("papr_vgg16_fpn", "paper_vgg16_fpn")]
)
def test_a_misspelt_backbone_gets_its_neighbours(name, near):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    with pytest.raises(KeyError, match=f"MODEL.BACKBONE.NAME: .*'{name}'.*did you mean.* {near}"):
        skeleton(cfg)


def test_other_unknown_names_keep_detectron2s_error():
    with pytest.raises(KeyError) as caught:
        BACKBONE_REGISTRY.get("xyz")
    assert caught.value.args == ("No object named 'xyz' found in 'BACKBONE' registry!",)
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "PaperRoIHeads"
    with pytest.raises(KeyError, match="MODEL.ROI_HEADS.NAME: .*did you mean PaperROIHeads"):
        skeleton(cfg)
