"""The paper's preset from the authors' net at its address, served by this machine, on both
engines."""

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from foreign import msra_blobs
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.engines import embedded, pick
from resnet_det.engines.predictor import Predictor
from resnet_det.training.checkpoint import load
from resnet_det.weights import published
from resnet_det.weights.loading import read

CONFIG = Path(__file__).parents[2] / "configs/faster_rcnn_R101.yaml"
SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 8, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4,
    "MODEL.RPN.POST_NMS_TOPK_TEST", 4, "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32]]",
    "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MIN_SIZE_TEST", 48, "DATALOADER.NUM_WORKERS", 0,
    "DATASETS.TRAIN", "('scenes_voc_trainval',)", "DATASETS.TEST", "('scenes_voc_test',)",
    "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SEED", 1,
]  # fmt: skip


def test_torchvisions_detector_is_its_address_alone(server, tmp_path, monkeypatch):
    """The demo needs no config, and the config no other keys; COCO's classes are found by name."""
    monkeypatch.setenv("RESNET_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    address = "torchvision://fasterrcnn_resnet50_fpn"
    entry = replace(published.find(address), checksum=None)  # it is not the published file
    monkeypatch.setattr(published, "PUBLISHED", [entry])
    monkeypatch.setitem(published.SCHEMES, "torchvision://", f"{server.url}/")
    file = io.BytesIO()
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(theirs.state_dict(), file)
    server.files[f"/{entry.file}"] = file.getvalue()

    images = tmp_path / "coco/val2017"
    images.mkdir(parents=True)
    Image.new("RGB", (96, 64), (200, 30, 90)).save(images / "1.jpg")
    small = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0]
    predictor = Predictor(address, "torchvision", overrides=small)
    classes = predictor.classes
    assert (classes[0], classes[-1], len(classes)) == ("person", "toothbrush", 90)
    assert predictor(images / "1.jpg").boxes.shape[1] == 4

    categories = [
        {"id": i, "name": name} for i, name in enumerate(classes, 1) if "unused" not in name
    ]
    box = {
        "id": 1,
        "image_id": 1,
        "category_id": 90,
        "bbox": [9, 9, 30, 30],
        "area": 900,
        "iscrowd": 0,
    }
    (tmp_path / "coco/annotations").mkdir()
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "1.jpg", "width": 96, "height": 64}],
        "annotations": [box], "categories": categories,
    }))  # fmt: skip
    path = CONFIG.with_name("torchvision_faster_rcnn_R50_FPN.yaml")
    cfg = embedded.load_config(path, [*small, "OUTPUT_DIR", str(tmp_path / "out")])
    assert "bbox/AP" in embedded.evaluate(cfg)
    assert len(server.ranges) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_the_preset_starts_from_the_authors_net(name, server, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_scenes(str(tmp_path), trainval=3, test=1, train_crops=8, val_crops=8, size=(48, 64))
    monkeypatch.setitem(published.SCHEMES, "detectron2://", f"{server.url}/detectron2/")
    blobs = msra_blobs((3, 4, 23, 3), conv1_bias=False, classes=1000)
    content = {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    server.files["/detectron2/ImageNetPretrained/MSRA/R-101.pkl"] = pickle.dumps(content)

    engine = pick(name)
    cfg = engine.load_config(CONFIG, [*SMALL, "OUTPUT_DIR", str(tmp_path / "out")])
    assert "bbox/AP50" in engine.train(cfg)
    trained = load(tmp_path / "out/model_final.pth")["model"]
    given = read(cfg.MODEL.WEIGHTS)[0]
    frozen = [key for key in given if key.startswith(("stem.", "res2.")) or ".norm." in key]
    for key in frozen:
        place = "roi_heads." if key.startswith("res5.") else "backbone."
        assert trained[place + key].equal(given[key].to(trained[place + key])), key
    assert not trained["backbone.res4.22.conv3.weight"].equal(given["res4.22.conv3.weight"])

    weights = ["MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth")]
    cfg = engine.load_config(CONFIG, [*SMALL, *weights, "OUTPUT_DIR", str(tmp_path / "eval")])
    assert "bbox/AP50" in engine.evaluate(cfg)
    assert len(server.ranges) == 1
