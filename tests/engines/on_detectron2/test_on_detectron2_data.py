"""The engine on Detectron2: the images that it loads, and its evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_det import data
from resnet_det.config.defaults import ConfigError
from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.evaluation import voc_ap

detectron2 = pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from resnet_det.engines.class_matching import match_test_sets
from resnet_det.engines.on_detectron2 import engine
from resnet_det.engines.on_detectron2.data import Mapper, load_test_sets
from resnet_det.engines.on_detectron2.evaluation import evaluate_model
from resnet_det.engines.on_detectron2.trainer import Trainer

pytestmark = pytest.mark.detectron2


def seen_images(loader, count):
    """Mapped samples by file name, from enough batches to have seen each image."""
    found = {}
    for batch in loader:
        found |= {sample["file_name"]: sample for sample in batch}
        count -= 1
        if not count:
            return found


def test_difficult_objects_are_left_out_if_asked(config):
    difficult = {
        r["file_name"]: [a["difficult"] for a in r["annotations"]]
        for r in data.load_dataset("scenes_voc_trainval").records
    }
    assert any(any(flags) for flags in difficult.values())
    for use in (True, False):
        cfg = config("RESNET_DET.USE_DIFFICULT", str(use))
        trainer = Trainer(cfg, *engine.prepare(cfg))
        found = seen_images(trainer.build_train_loader(trainer.cfg), 12)
        expected = {f: sum(use or not d for d in flags) for f, flags in difficult.items()}
        assert {f: len(s["instances"]) for f, s in found.items()} == {
            f: n for f, n in expected.items() if n
        }


def test_a_broken_image_is_named_or_left_out(config, monkeypatch, tmp_path):
    write_scenes(str(tmp_path), trainval=4, test=2, train_crops=8, val_crops=8, size=(48, 64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = data.load_dataset("scenes_voc_trainval").records
    broken = records[0]["file_name"]
    with open(broken, "r+b") as file:
        file.truncate(300)
    with pytest.raises(data.ImageError, match=records[0]["image_id"]):
        engine.train(config())
    cfg = config("RESNET_DET.SKIP_BAD_DATA", "True")
    trainer = Trainer(cfg, *engine.prepare(cfg))
    found = seen_images(trainer.data_loader, 8)
    assert set(found) == {r["file_name"] for r in records[1:] if r["annotations"]}
    assert len(found) > 1


@pytest.mark.parametrize("is_train", [True, False])
def test_an_image_that_detectron2_cannot_resize_is_named(config, tmp_path, is_train):
    path = tmp_path / "thin.png"
    Image.new("RGB", (4000, 1)).save(path)
    with pytest.raises(data.ImageError, match=r"thin\.png: Detectron2 cannot .* 4000 x 1 pixels"):
        Mapper(config(), is_train)({"file_name": str(path), "annotations": []})


def test_bad_objects_of_test_sets_are_skipped_if_asked(config, monkeypatch, voc_folder):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(voc_folder.root))
    voc_folder.annotate("000001", voc_folder.object() + voc_folder.object(name="dragon"))
    test = ("DATASETS.TEST", "('voc_2007_trainval',)")
    with pytest.raises(data.DatasetError, match="object 2: unknown class 'dragon'"):
        load_test_sets(config(*test))
    sets = load_test_sets(config(*test, "RESNET_DET.SKIP_BAD_DATA", "True"))
    records = sets["voc_2007_trainval"].records
    assert [len(record["annotations"]) for record in records] == [1, 1]
    assert sets["voc_2007_trainval"].counts["skipped_objects"] == 1


@pytest.mark.parametrize("before_pretraining", [True, False])
def test_unusable_test_images_are_named_before_training(
    config, monkeypatch, tmp_path, before_pretraining
):
    write_scenes(str(tmp_path), trainval=4, test=3, train_crops=8, val_crops=8, size=(48, 64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = [record["file_name"] for record in data.load_dataset("scenes_coco_test").records]
    Path(files[0]).unlink()
    Image.new("RGB", (9, 9)).save(files[2])
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("it was trained"))
    cfg = config("DATASETS.TEST", "('scenes_coco_test',)")
    with pytest.raises(data.DatasetError, match="scenes_coco_test: 2 images cannot") as caught:
        engine.check(cfg) if before_pretraining else engine.train(cfg)
    assert f"{files[0]}: missing image file" in str(caught.value)
    assert f"{files[2]}: is 9 x 9 pixels" in str(caught.value)


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_an_unknown_name_is_told_before_the_scenes_are_drawn(config, monkeypatch, tmp_path, key):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    cfg = config(key, "('scenes_voc_tst',)")
    for run in (engine.check, engine.train):
        with pytest.raises(data.UnknownDataset, match="did you mean scenes_voc_test"):
            run(cfg)
    assert not (tmp_path / "none").exists()


@pytest.fixture
def registered():
    """Registers the scenes under another name, as another project does."""
    names = []

    def register(name, **metadata):
        records = data.load_dataset("scenes_voc_trainval").records
        DatasetCatalog.register(name, lambda: records)
        names.append(name)
        classes = data.published_classes("scenes_voc_trainval")
        MetadataCatalog.get(name).set(thing_classes=list(classes), **metadata)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["lvis", "coco_panoptic_seg", "cityscapes_instance"])
def test_sets_of_other_evaluations_are_trained_on_but_not_tested(config, registered, kind):
    registered("other_scenes", evaluator_type=kind)
    engine.check_config(config("DATASETS.TRAIN", "('other_scenes',)"), resume=False)
    test = config("DATASETS.TEST", "('scenes_voc_test', 'other_scenes')", "MODEL.WEIGHTS", "x.pth")
    for run in (engine.check, engine.train, engine.evaluate):
        with pytest.raises(ConfigError, match=f"DATASETS.TEST: other_scenes: .*'{kind}'.*leave"):
            run(test)


def test_a_set_without_an_evaluator_type_is_tested_by_cocos_ap(config, registered):
    registered("other_scenes")
    cfg = config("DATASETS.TEST", "('other_scenes',)")
    engine.check_config(cfg, resume=False)
    assert load_test_sets(cfg)["other_scenes"].metadata.evaluation == "coco"


@pytest.mark.parametrize("key", ["MASK_ON", "KEYPOINT_ON"])
def test_one_line_says_that_only_boxes_are_evaluated(config, caplog, key):
    load_test_sets(config())
    assert "boxes" not in caplog.text
    load_test_sets(config(f"MODEL.{key}", "True"))
    assert caplog.text.count(f"MODEL.{key}: True: only the AP of the boxes") == 1


def test_an_evaluation_makes_no_training_set(config, monkeypatch):
    made = []
    monkeypatch.setattr(engine, "make_datasets", lambda *names: made.extend(names))
    monkeypatch.setattr(engine, "load_trained", lambda cfg: (None, {}))
    monkeypatch.setattr(engine, "evaluate_model", lambda *_, **__: {})
    engine.evaluate(config("MODEL.WEIGHTS", "x", "DATASETS.TRAIN", "('miniature_voc_trainval',)"))
    assert made == ["scenes_voc_test"]


class Perfect(torch.nn.Module):
    """A model that detects the records' objects, in the original image."""

    def __init__(self, records):
        super().__init__()
        self.records = {r["image_id"]: r for r in records}

    def forward(self, batch):
        return [{"instances": self.detect(sample)} for sample in batch]

    def detect(self, sample):
        objects = self.records[sample["image_id"]]["annotations"]
        found = Instances((sample["height"], sample["width"]))
        found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in objects]))
        found.scores = torch.ones(len(objects))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects])
        return found


def evaluated(cfg, model):
    """A detector whose file does not name its classes."""
    tests = match_test_sets(load_test_sets(cfg), None, "the model", cfg)
    return evaluate_model(model, tests, cfg)


def test_a_perfect_detector_scores_100(config):
    model = Perfect(data.load_dataset("scenes_voc_test").records)
    metrics = evaluated(config(), model)
    assert metrics["bbox/AP"] == metrics["bbox/AP50"] == 100
    both = evaluated(config("DATASETS.TEST", "('scenes_voc_test', 'scenes_voc_test')"), model)
    assert both == metrics or both["bbox/AP"] == 100


def test_detectron2s_own_evaluator_agrees(config, tmp_path):
    """Uses boxes with one decimal and scores with three, the precision that it keeps."""
    records = data.load_dataset("scenes_voc_test").records
    rng = np.random.default_rng(0)

    class Imperfect(Perfect):
        def detect(self, sample):
            found = super().detect(sample)
            moved = found.pred_boxes.tensor + torch.from_numpy(rng.integers(-30, 30, (1, 4)) / 10)
            found.pred_boxes = Boxes(moved.round(decimals=1))
            found.scores = torch.from_numpy(rng.integers(1, 1000, len(found)) / 1000)
            return found

    model, meta = Imperfect(records), MetadataCatalog.get("scenes_voc_test")
    DatasetCatalog.get("scenes_voc_test")  # its metadata come with it
    theirs = PascalVOCDetectionEvaluator("scenes_voc_test")
    theirs.reset()
    predictions = []
    for record in records:
        found = model.detect(record)
        theirs.process([record], [{"instances": found}])
        predictions.append(
            {
                "image_id": record["image_id"],
                "boxes": found.pred_boxes.tensor.numpy(),
                "scores": found.scores.numpy(),
                "classes": found.pred_classes.numpy(),
            }
        )
    ours = voc_ap.evaluate(records, predictions, tuple(meta.thing_classes)).metrics
    present = [name for name in meta.thing_classes if ours[f"AP50-{name}"] == ours[f"AP50-{name}"]]
    theirs = theirs.evaluate()["bbox"]
    # Detectron2 counts a class without objects as 0 in its mean.
    assert 0 < theirs["AP50"] < 100
    assert ours["AP50"] * len(present) / 8 == pytest.approx(theirs["AP50"], abs=1e-6)


def test_a_foreign_dataset_is_evaluated_the_coco_way(config):
    records = data.load_dataset("scenes_coco_test").records
    name = "foreign_scenes"
    DatasetCatalog.register(name, lambda: records)
    try:
        MetadataCatalog.get(name).set(thing_classes=[f"class {i}" for i in range(8)])
        plain = [dict(r, annotations=[voc_box(a) for a in r["annotations"]]) for r in records]
        metrics = evaluated(config("DATASETS.TEST", f"('{name}',)"), Perfect(plain))
        assert metrics["bbox/AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def voc_box(annotation):
    x, y, w, h = annotation["bbox"]
    return annotation | {"bbox": [x, y, x + w, y + h]}
