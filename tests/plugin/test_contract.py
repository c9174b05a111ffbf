"""Our assumptions about Detectron2, checked against the real one."""

import inspect

import pytest
import torch

from resnet_det.config.defaults import flatten, get_cfg
from resnet_det.config.loading import load_config
from resnet_det.config.messages import examples
from resnet_det.detector import build

detectron2 = pytest.importorskip("detectron2")

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model
from detectron2.modeling import Backbone, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, ROIHeads
from detectron2.structures import BoxMode

from resnet_det import data

pytestmark = pytest.mark.detectron2

ZOO = ("faster_rcnn_R_50_C4_1x", "faster_rcnn_R_101_C4_3x", "faster_rcnn_R_50_FPN_1x")


def zoo(name):
    return model_zoo.get_config_file(f"COCO-Detection/{name}.yaml")


def test_every_key_and_default_of_the_embedded_config_is_detectron2s():
    ours, theirs = flatten(get_cfg()), flatten(detectron2_cfg())
    own = {key for key in ours if key not in theirs}
    assert own == {key for key in ours if key.startswith("RESNET_DET.")}
    shared = ours.keys() - own
    assert len(shared) > 90
    assert {k: (ours[k], type(ours[k])) for k in shared} == {
        k: (theirs[k], type(theirs[k])) for k in shared
    }


def test_every_list_says_what_it_takes():
    known = flatten(detectron2_cfg()) | flatten(get_cfg())
    assert [key for key, value in examples(known).items() if value in ([], ())] == []


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_hooks_that_we_override_or_call_are_there():
    assert inspect.ismethod(Res5ROIHeads._build_res5_block)  # a classmethod
    assert parameters(Res5ROIHeads._build_res5_block) == ["cfg"]
    assert parameters(Res5ROIHeads._shared_roi_transform) == ["self", "features", "boxes"]
    assert parameters(Res5ROIHeads.from_config) == ["cfg", "input_shape"]
    assert {"in_features", "pooler", "res5", "box_predictor", "mask_head"} <= set(
        parameters(Res5ROIHeads.__init__)
    )
    assert parameters(ROIHeads.from_config) == ["cfg"]
    assert Backbone.__abstractmethods__ == {"forward"}
    assert parameters(DetectionCheckpointer.__init__)[:3] == ["self", "model", "save_dir"]
    assert parameters(DetectionCheckpointer.load)[:2] == ["self", "path"]
    assert parameters(DetectionCheckpointer.save) == ["self", "name", "kwargs"]
    assert parameters(DetectionCheckpointer._load_file) == ["self", "filename"]
    assert parameters(DetectionCheckpointer._load_model) == ["self", "checkpoint"]
    assert parameters(DatasetMapper.__call__) == ["self", "dataset_dict"]
    assert parameters(DefaultTrainer.test) == ["cfg", "model", "evaluators"]
    assert parameters(DefaultTrainer.auto_scale_workers) == ["cfg", "num_workers"]
    assert parameters(SimpleTrainer.__init__)[:4] == ["self", "model", "data_loader", "optimizer"]
    assert "kwargs" in parameters(create_ddp_model)
    # What Trainer.__init__ sets is what DefaultTrainer's methods read.
    source = inspect.getsource(DefaultTrainer.__init__)
    for name in ("_trainer", "scheduler", "checkpointer", "start_iter", "max_iter", "cfg"):
        assert f"self.{name} = " in source


def test_box_modes_are_detectron2s():
    assert {m.name: m.value for m in data.BoxMode} == {
        m.name: BoxMode[m.name].value for m in data.BoxMode
    }


@pytest.mark.parametrize("name", ZOO)
def test_zoo_configs_load_in_both_systems(name):
    ours = flatten(load_config(zoo(name), ["MODEL.DEVICE", "cpu"]))
    cfg = detectron2_cfg()
    cfg.merge_from_file(zoo(name))
    cfg.MODEL.DEVICE = "cpu"
    theirs = flatten(cfg)
    assert {k: v for k, v in ours.items() if k in theirs} == {
        k: v for k, v in theirs.items() if k in ours
    }


def shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", ZOO)
def test_zoo_configs_build_the_same_parameters(name):
    """Detectron2's own net, ours in Detectron2, and the embedded engine's."""
    cfg = detectron2_cfg()
    cfg.merge_from_file(zoo(name))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        stock = shapes(build_model(cfg))
    depth, pyramid = cfg.MODEL.RESNETS.DEPTH, "FPN" in name
    cfg.MODEL.BACKBONE.NAME = f"paper_resnet{depth}" + ("_fpn" if pyramid else "")
    if not pyramid:
        cfg.MODEL.ROI_HEADS.NAME = "PaperROIHeads"
    with torch.device("meta"):
        ours = shapes(build_model(cfg))
    assert ours == stock
    assert shapes(build.build_model(load_config(zoo(name)))) == stock
