"""Our files in a stock Detectron2 project that imports ``resnet_det``: every tensor is loaded."""

import subprocess
import sys
from pathlib import Path

import golden
import pytest
import torch
import yaml
from agreement import assert_same
from small_configs import CLASSIFIER, DETECTOR

from resnet_det.commands import convert_weights
from resnet_det.config.loading import load_config
from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.nets import build_net
from resnet_det.weights.identify import classifier_name, is_counter

pytest.importorskip("detectron2")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

from resnet_det import training
from resnet_det.engines import classifier, embedded
from resnet_det.engines.on_detectron2 import engine as detectron2_engine
from resnet_det.plugin.backbones import PaperBackbone
from resnet_det.plugin.roi_heads import build_head

pytestmark = pytest.mark.detectron2

SHORT = {"SOLVER": DETECTOR["SOLVER"] | {"MAX_ITER": 2, "STEPS": []}, "TEST": {}}
SHORT["DATASETS"] = {"TEST": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of two iterations: a classifier, and a detector of each engine that starts from it."""
    folder = tmp_path_factory.mktemp("runs")
    write_scenes(str(folder), trainval=4, test=2, train_crops=8, val_crops=8, size=(48, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        for name, config, engine, load in (
            ("classifier", CLASSIFIER, classifier, load_config),
            ("embedded", DETECTOR, embedded, load_config),
            ("detectron2", DETECTOR, detectron2_engine, detectron2_engine.load_config),
        ):
            datasets = config["DATASETS"] | SHORT["DATASETS"]
            text = yaml.safe_dump(config | SHORT | {"DATASETS": datasets, "OUTPUT_DIR": name})
            Path(f"{name}.yaml").write_text(text)
            weights = (
                [] if name == "classifier" else ["MODEL.WEIGHTS", "classifier/model_final.pth"]
            )
            engine.train(load(f"{name}.yaml", weights))
    return folder


def stock_config():
    """Detectron2's own keys alone, with the backbone and the RoI heads that the plugin
    registers."""
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(DETECTOR))
    return cfg


def convert(source, target):
    convert_weights.convert(source, target)
    return target


REGISTERED = """
import sys
import resnet_det
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
for name in resnet_det.NETS:
    for suffix in ("", "_fpn", "_retinanet_fpn"):
        BACKBONE_REGISTRY.get(name + suffix)
ROI_HEADS_REGISTRY.get("PaperROIHeads")
assert "scenes_voc_trainval" in DatasetCatalog
for folder in ("engines", "evaluation", "training", "detector.build"):
    assert f"resnet_det.{folder}" not in sys.modules, folder
"""


def test_the_import_alone_registers_everything_and_loads_no_engine():
    subprocess.run([sys.executable, "-W", "ignore", "-c", REGISTERED], check=True)


@pytest.mark.parametrize("converted", [None, "it.pth", "it.pkl"])
def test_a_classifier_fills_trunk_and_head(converted, folder, tmp_path):
    file = folder / "classifier/model_final.pth"
    state = torch.load(file, weights_only=True)["model"]
    model = build_model(stock_config())
    DetectionCheckpointer(model).load(
        str(convert(file, tmp_path / converted) if converted else file)
    )
    own = {classifier_name(key): value for key, value in model.state_dict().items()}
    for key, value in state.items():
        assert key.startswith("linear.") or torch.equal(own[key], value), key


@pytest.mark.parametrize("converted", [None, "it.pth", "it.pkl"])
@pytest.mark.parametrize("engine", ["embedded", "detectron2"])
def test_a_detector_is_whole(engine, converted, folder, tmp_path):
    file = folder / engine / "model_final.pth"
    state = torch.load(file, weights_only=True)["model"]
    model = build_model(stock_config())
    DetectionCheckpointer(model).load(
        str(convert(file, tmp_path / converted) if converted else file)
    )
    own = model.state_dict()
    assert set(state) == set(own)
    assert all(torch.equal(value, own[key]) for key, value in state.items())


@pytest.mark.parametrize("name", [
    "paper_resnet18_a", "paper_resnet34_c", "paper_resnet50", "paper_vgg16", "cifar_plain20",
])  # fmt: skip
def test_each_kind_of_net_is_matched_by_name(name):
    """Uses Detectron2's own matching function, on shapes only."""
    with torch.device("meta"):
        state = build_net(name).state_dict()
        detector = torch.nn.ModuleDict({"backbone": PaperBackbone(name)})
        detector["roi_heads"] = build_head(name)
    matched = align_and_update_state_dicts(detector.state_dict(), dict(state), False)
    own = [key for key in detector.state_dict() if not is_counter(key)]
    assert all(matched[key] is state[classifier_name(key)] for key in own)
    needed = {k for k in state if not (is_counter(k) or k.startswith("linear."))}
    assert needed == {classifier_name(key) for key in own}


@pytest.mark.parametrize("case", ["R18-C4", "R50-FPN"])
def test_the_embedded_engines_detector_detects_the_same_there(case, tmp_path):
    """What Detectron2 itself gave for these weights: every row of every layer means the same."""
    model = golden.fill(golden.embedded_model(case))
    training.Checkpointer(tmp_path).save("model_final", model=model.state_dict())
    cfg = get_cfg()
    cfg.merge_from_list(golden.overrides(case))
    stock = build_model(cfg)
    DetectionCheckpointer(stock).load(str(tmp_path / "model_final.pth"))
    assert_same(golden.by_detectron2(golden.in_double(stock)), golden.recorded(case))


def test_a_stock_run_goes_on_where_ours_stopped(folder, monkeypatch):
    """Weights, momentum and the iteration, as from a checkpoint of Detectron2's own."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    cfg = stock_config()
    cfg.OUTPUT_DIR = str(folder / "detectron2")
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=True)
    saved = torch.load(folder / "detectron2/model_final.pth", weights_only=True)
    assert trainer.start_iter == 2
    own = trainer.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in saved["model"].items())
    momentum = saved["trainer"]["_trainer"]["optimizer"]["state"]
    loaded = trainer.optimizer.state_dict()["state"]
    assert len(momentum) > 20 and set(momentum) == set(loaded)
    for key, value in momentum.items():
        assert torch.equal(value["momentum_buffer"], loaded[key]["momentum_buffer"])
