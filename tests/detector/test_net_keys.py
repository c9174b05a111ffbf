"""Keys that contradict a net are errors, without Detectron2 too."""

import pytest
import torch
from fvcore.common.config import CfgNode

from resnet_det.config.defaults import ConfigError
from resnet_det.detector.build import build_model
from resnet_det.detector.net_keys import RESNETS_DEFAULTS, check_head, net_options
from resnet_det.nets import NETS, build_net

# The further keys of Detectron2's and DeepLab's ResNets, as our nets are built.
AS_BUILT = {
    "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "DEFORM_ON_PER_STAGE": [False] * 4,
    "DEFORM_MODULATED": False, "DEFORM_NUM_GROUPS": 1, "STEM_TYPE": "basic",
    "RES4_DILATION": 1, "RES5_MULTI_GRID": [1, 1, 1],
}  # fmt: skip


def resnets(**keys):
    defaults = RESNETS_DEFAULTS | {"STRIDE_IN_1X1": True, "RES5_DILATION": 1}
    cfg = CfgNode(
        {"MODEL": {"RESNETS": {}, "PIXEL_MEAN": [0.0] * 3, "BACKBONE": {"NAME": "paper_resnet5"}}}
    )
    cfg.MODEL.RESNETS.update(defaults | AS_BUILT | keys)
    return cfg


@pytest.mark.parametrize("name", NETS)
def test_defaults_pass_and_so_do_the_nets_own_numbers(name):
    net_options(resnets(), name)
    if name == "cifar_resnet1202":
        return
    with torch.device("meta"):
        net = build_net(name)
    stem = net.channels["conv1" if "vgg" in name else "stem"]
    own = {"STEM_OUT_CHANNELS": stem, "RES2_OUT_CHANNELS": net.channels.get("res2", 256)}
    net_options(resnets(**own), name)
    for key, value in own.items():
        with pytest.raises(ConfigError, match=f"MODEL.RESNETS.{key}: {value + 1}: {name} takes "):
            net_options(resnets(**{key: value + 1}), name)


@pytest.mark.parametrize(
    "name, key, value, takes",
    [
        ("paper_resnet101", "DEPTH", 34, "101"),
        ("paper_resnet34_a", "DEPTH", 18, "34"),
        ("paper_vgg16", "DEPTH", 101, "16"),
        ("cifar_resnet1202", "DEPTH", 110, "1202"),
        ("paper_resnet50", "RES2_OUT_CHANNELS", 64, "256"),
        ("paper_resnet50", "STEM_OUT_CHANNELS", 128, "64"),
        ("paper_resnet50", "WIDTH_PER_GROUP", 4, "64"),
        ("paper_resnet50", "NUM_GROUPS", 32, "1"),
        ("paper_resnet50", "DEFORM_ON_PER_STAGE", (False, False, True, True), "False, False"),
        ("paper_resnet50", "DEFORM_MODULATED", True, "False"),
        ("paper_resnet50", "DEFORM_NUM_GROUPS", 2, "1"),
        ("paper_resnet50", "STEM_TYPE", "deeplab", "'basic'"),
        ("paper_resnet50", "RES4_DILATION", 2, "1"),
        ("paper_resnet50", "RES5_DILATION", 4, "1 or 2"),
        ("paper_resnet50", "RES5_MULTI_GRID", [1, 2, 4], r"\[1, 1, 1\]"),
        ("paper_resnet50", "NORM", "LN", "'BN' or 'SyncBN' or 'nnSyncBN' or 'FrozenBN' or 'GN'"),
        ("paper_resnet50", "NORM", "", "'BN' or 'SyncBN' or 'nnSyncBN' or 'FrozenBN' or 'GN'"),
        ("cifar_resnet20", "NORM", "GN", "'BN' or 'SyncBN' or 'nnSyncBN' or 'FrozenBN'"),
        ("paper_vgg16", "NORM", "BN", "''"),
    ],
)  # fmt: skip
def test_other_values_are_refused(name, key, value, takes):
    with pytest.raises(ConfigError, match=rf"MODEL.RESNETS.{key}: .* {name} takes .*{takes}"):
        net_options(resnets(**{key: value}), name)


def test_an_unknown_net_is_told_with_its_neighbours():
    with pytest.raises(ConfigError, match="MODEL.BACKBONE.NAME: .*paper_resnet5.*paper_resnet50"):
        net_options(resnets(), "paper_resnet5")


@pytest.mark.parametrize(
    "key, value, named",
    [
        ("MODEL.RESNETS.DEPTH", 101, "MODEL.RESNETS.DEPTH: 101: cifar_resnet20 takes 20"),
        ("MODEL.ROI_BOX_HEAD.NUM_FC", 2, "MODEL.ROI_BOX_HEAD.NUM_FC: 2: the head of .* takes 0"),
        ("MODEL.ROI_BOX_HEAD.FC_DIM", 64, "MODEL.ROI_BOX_HEAD.FC_DIM: 64: .* takes 1024"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NAME: .* takes ''"),
    ],
)
def test_the_embedded_engine_refuses_them_too(config, key, value, named):
    with pytest.raises(ConfigError, match=named):
        build_model(config(key, value))


def test_vgg16_may_say_what_its_head_is(config):
    cfg = config(
        "MODEL.ROI_BOX_HEAD.NUM_FC", 2, "MODEL.ROI_BOX_HEAD.FC_DIM", 4096,
        "MODEL.ROI_HEADS.IN_FEATURES", ["conv5"], "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    )  # fmt: skip
    check_head(cfg, "paper_vgg16")
    with pytest.raises(ConfigError, match="NUM_FC: 2: the head of paper_resnet50 takes 0"):
        check_head(cfg, "paper_resnet50")
