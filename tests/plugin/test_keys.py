"""Every key that Detectron2's own builders read is honoured by ours, or refused by its name.

The keys are recorded while the real builders run. Each then takes another value: our model must
differ from the one before, or the error must name the key.
"""

from types import FunctionType, MethodType

import pytest
import torch

from resnet_det.config import loading as ours

detectron2 = pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, build_backbone, build_model
from detectron2.projects.deeplab import add_deeplab_config

from resnet_det.detector.build import build_model as build_embedded
from resnet_det.detector.net_keys import BOX_HEAD_DEFAULTS, MASK_HEAD_DEFAULTS, RESNETS_DEFAULTS

pytestmark = pytest.mark.detectron2

FC_HEAD = ["MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1]
SHAPES = {"res4": ShapeSpec(channels=1024, stride=16)}


@pytest.fixture
def recorded(monkeypatch):
    """``recorded(cfg, build)``: the dotted keys that ``build(cfg)`` reads."""

    def record(cfg, build):
        seen, paths, plain = set(), {}, CfgNode.__getattr__

        def visit(node, path):
            paths[id(node)] = path
            for key, value in node.items():
                if isinstance(value, CfgNode):
                    visit(value, f"{path}{key}.")

        def getattribute(node, key):
            value = plain(node, key)
            if id(node) in paths and not isinstance(value, CfgNode):
                seen.add(paths[id(node)] + key)
            return value

        visit(cfg, "")
        with monkeypatch.context() as patch, torch.device("meta"):
            patch.setattr(CfgNode, "__getattr__", getattribute)
            build(cfg)
        return seen

    return record


def stock(*keys):
    """A config of Detectron2 with DeepLab's keys, of the plain ResNet-50."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "meta", "MODEL.RESNETS.STEM_TYPE", "basic",
                         "MODEL.RESNETS.RES5_MULTI_GRID", [1, 1, 1], *keys])  # fmt: skip
    return cfg


def another(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return "other"
    if value and isinstance(value[0], str):
        return type(value)([*value, "stem"])
    return type(value)(map(another, value))


def describe(thing, depth=0):
    """All plain settings of a model: attributes of its modules, helpers, and small buffers."""
    if isinstance(thing, torch.Tensor):
        small = thing.numel() < 100 and thing.device.type != "meta"
        return [tuple(thing.shape), thing.requires_grad, thing.tolist() if small else None]
    if isinstance(thing, dict):
        keys = [k for k in thing if not str(k).endswith("_hooks")]  # they are counted on and on
        return {str(k): describe(thing[k], depth + 1) for k in keys}
    if isinstance(thing, list | tuple):
        return [describe(v, depth + 1) for v in thing]
    if hasattr(thing, "__dict__") and not isinstance(thing, type | FunctionType | MethodType):
        return [type(thing).__name__, describe(vars(thing), depth + 1) if depth < 40 else None]
    return thing if isinstance(thing, bool | int | float | str | None) else type(thing).__name__


def without_effect(keys, cfg, build):
    """Those of ``keys`` that neither change the result of ``build(cfg)`` nor raise an error."""
    before, silent = describe(build(cfg)), []
    assert describe(build(cfg)) == before
    for key in sorted(keys):
        other, value = cfg.clone(), ours.flatten(cfg)[key]
        *nodes, leaf = key.split(".")
        node = other
        for name in nodes:
            node = node[name]
        node[leaf] = another(value)
        try:
            if describe(build(other)) == before:
                silent.append(key)
        except ours.ConfigError as error:
            if leaf not in str(error):
                silent.append(f"{key}: {error}")
        except (ValueError, KeyError, AssertionError):  # Detectron2's own parts read the key
            pass
    return silent


def backbone(name):
    def build(cfg):
        cfg = cfg.clone()
        cfg.MODEL.BACKBONE.NAME = name
        with torch.device("meta"):
            return build_backbone(cfg)

    return build


def test_the_check_notices_a_key_without_effect():
    build = backbone("paper_resnet50")
    assert without_effect(["MODEL.FPN.NORM", "MODEL.RESNETS.NORM"], stock(), build) == [
        "MODEL.FPN.NORM"
    ]


def test_defaults_are_detectron2s():
    model = get_cfg().MODEL
    for node, defaults in (("RESNETS", RESNETS_DEFAULTS), ("ROI_BOX_HEAD", BOX_HEAD_DEFAULTS),
                           ("ROI_MASK_HEAD", MASK_HEAD_DEFAULTS)):  # fmt: skip
        assert {key: model[node][key] for key in defaults} == defaults


@pytest.mark.parametrize(
    "stock_name, name, least",
    [
        ("build_resnet_backbone", "paper_resnet50", 13),
        ("build_resnet_deeplab_backbone", "paper_resnet50", 16),
        ("build_resnet_fpn_backbone", "paper_resnet50_fpn", 17),
        ("build_retinanet_resnet_fpn_backbone", "paper_resnet50_retinanet_fpn", 17),
    ],
)
def test_every_key_of_a_stock_backbone(recorded, stock_name, name, least):
    features = ["res3", "res4", "res5"]
    cfg = stock("MODEL.RESNETS.OUT_FEATURES", features, "MODEL.FPN.IN_FEATURES", features)
    stock_builder = BACKBONE_REGISTRY.get(stock_name)
    keys = recorded(cfg, lambda cfg: stock_builder(cfg, ShapeSpec(channels=3)))
    assert len(keys) >= least
    assert without_effect(keys, cfg, backbone(name)) == []


def test_deeplabs_own_defaults_ask_for_another_net():
    cfg = get_cfg()
    add_deeplab_config(cfg)
    with pytest.raises(ours.ConfigError, match="STEM_TYPE: 'deeplab': .* takes 'basic'"):
        backbone("paper_resnet50")(cfg)


def heads(name):
    def build(cfg):
        with torch.device("meta"):
            return ROI_HEADS_REGISTRY.get(name)(cfg, SHAPES)

    return build


def test_every_key_of_stock_roi_heads(recorded):
    """The keys of Res5ROIHeads and of StandardROIHeads; most of the latter have no effect here."""
    masks = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
             "MODEL.ROI_MASK_HEAD.NUM_CONV", 1]  # fmt: skip
    cfg = stock(*masks)
    keys = recorded(cfg, heads("Res5ROIHeads"))
    keys |= recorded(stock(*masks, *FC_HEAD), heads("StandardROIHeads"))
    assert len(keys) > 35
    assert without_effect(keys, cfg, heads("PaperROIHeads")) == []


def pyramid(name, features, levels):
    return [
        "MODEL.BACKBONE.NAME", name, "MODEL.ROI_HEADS.NAME", "StandardROIHeads", *FC_HEAD,
        "MODEL.RESNETS.OUT_FEATURES", features, "MODEL.FPN.IN_FEATURES", features,
        "MODEL.RPN.IN_FEATURES", levels, "MODEL.ROI_HEADS.IN_FEATURES", levels,
        "MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]], "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 2,
    ]  # fmt: skip


C4 = ["MODEL.BACKBONE.NAME", "cifar_resnet20", "MODEL.RESNETS.OUT_FEATURES", ["res3"],
      "MODEL.RPN.IN_FEATURES", ["res3"], "MODEL.ROI_HEADS.IN_FEATURES", ["res3"]]  # fmt: skip


@pytest.mark.parametrize(
    "settings, small",
    [
        ([], C4),
        (
            pyramid("build_resnet_fpn_backbone", ["res4", "res5"], ["p4", "p5"]),
            pyramid("cifar_resnet20_fpn", ["res3", "res4"], ["p1", "p2"]),
        ),
    ],
    ids=["C4", "pyramid"],
)
def test_every_key_of_a_stock_detector_in_the_embedded_engine(recorded, settings, small):
    """Tests the keys that the embedded engine knows; for the others it raises an error that names
    them."""
    keys = recorded(stock(*settings), build_model)
    if not settings:  # keys of the head that has no part here
        standard = stock(*FC_HEAD, "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
        keys |= recorded(standard, build_model)
    known = ours.flatten(ours.get_cfg())
    keys = {k for k in keys if k in known and k.startswith("MODEL.")}
    keys -= {"MODEL.DEVICE", "MODEL.RESNETS.STRIDE_IN_1X1"}  # a net of 3x3 has one place for it
    assert len(keys) > 50

    def embedded(cfg):
        ours.check_values(cfg)
        torch.manual_seed(0)
        return build_embedded(cfg)

    cfg = ours.get_cfg()
    cfg.merge_from_list(small)
    assert without_effect(keys, cfg, embedded) == []
