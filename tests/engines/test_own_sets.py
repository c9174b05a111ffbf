"""The user's own datasets in both engines: classes, results, names, scores."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from own_sets import write_coco, write_image, write_xml
from small_configs import DETECTOR

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data import DatasetError, load_dataset
from resnet_det.data.pixels import read_image
from resnet_det.engines import alternating, classifier, embedded
from resnet_det.engines.results import score
from resnet_det.weights.loading import read

KEY = "MODEL.ROI_HEADS.NUM_CLASSES"
TRAIN, TEST = "voc:My site?split=[:70%]", "voc:My site?split=[70%:]"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """12 photographs with two classes, in the working folder, and a config for eight classes."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        write_image(Path(f"My site/{number}.jpg"))
        objects = [("helmet", (11, 11, 40, 30)), ("head", (1, 5, 30, 36))]
        write_xml(Path(f"My site/{number}.xml"), objects)
    small = DETECTOR | {"DATASETS": {"TRAIN": [TRAIN], "TEST": [TEST]}, "TEST": {}}
    small["SOLVER"] = DETECTOR["SOLVER"] | {"MAX_ITER": 1, "STEPS": []}
    Path("site.yaml").write_text(yaml.safe_dump(small))
    scenes = {"TRAIN": ["scenes_voc_trainval"], "TEST": ["scenes_voc_test"]}
    Path("scenes.yaml").write_text(yaml.safe_dump(small | {"DATASETS": scenes}))


@pytest.fixture(params=["embedded", pytest.param("on_detectron2", marks=pytest.mark.detectron2)])
def engine(request):
    name = {"embedded": "embedded", "on_detectron2": "on_detectron2.engine"}[request.param]
    return importlib.import_module(f"resnet_det.engines.{name}")


def test_the_number_of_classes_is_the_datasets(site, engine, caplog):
    assert engine.load_config("site.yaml").MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert f"{KEY} is 2, as {TRAIN} has, instead of the config's 8" in caplog.text
    one = ["DATASETS.TRAIN", (f"{TRAIN}&classes=head",)]
    assert engine.load_config("site.yaml", one).MODEL.ROI_HEADS.NUM_CLASSES == 1
    assert engine.load_config("site.yaml", [KEY, 2]).MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert engine.load_config("scenes.yaml").MODEL.ROI_HEADS.NUM_CLASSES == 8
    test = ["DATASETS.TEST", (TEST,)]  # the training set decides
    assert engine.load_config("scenes.yaml", test).MODEL.ROI_HEADS.NUM_CLASSES == 8


def test_a_number_of_classes_that_disagrees_is_an_error(site, engine):
    with pytest.raises(ConfigError, match=r"NUM_CLASSES: 8, but voc:My site.* 2 classes \(head, h"):
        engine.load_config("site.yaml", [KEY, 8])
    with pytest.raises(DatasetError, match="there is no .*your site"):
        engine.load_config("site.yaml", ["DATASETS.TRAIN", ("voc:your site",)])


@pytest.mark.detectron2
def test_retinanet_has_a_key_of_its_own(site):
    from resnet_det.engines.on_detectron2 import engine

    cfg = engine.load_config("site.yaml", ["MODEL.META_ARCHITECTURE", "RetinaNet"])
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (2, 8)


def test_train_test_and_detect(site, engine):
    """The results have a short name, and whatever describes the run has the real one."""
    engine.train(engine.load_config("site.yaml", ["OUTPUT_DIR", "out"]))
    (folder,) = Path("out/inference").iterdir()
    assert folder.name.startswith("My_site_split_70-")
    results = json.loads((folder / "results.json").read_text())
    assert results["dataset"] == TEST
    assert {"AP", "AP50", "APs", "AP50_area"} <= results.keys()
    page = Path("out/report.html").read_text()
    assert TEST in page and TRAIN in page and "published set" not in page
    facts = read("out/model_final.pth")[1]
    assert facts["classes"] == ["head", "helmet"]
    assert yaml.safe_load(facts["config"])["DATASETS"]["TRAIN"] == [TRAIN]

    # A config for other classes tests it, on a subset of its classes as well.
    tests = [TEST, f"{TEST}&classes=helmet"]
    keys = ["DATASETS.TEST", tests, "MODEL.WEIGHTS", "out/model_final.pth", "OUTPUT_DIR", "test"]
    metrics = engine.evaluate(engine.load_config("scenes.yaml", keys))
    assert {f"{name}/bbox/AP-helmet" for name in tests} <= metrics.keys()
    assert f"{tests[1]}/bbox/AP-head" not in metrics
    assert len(list(Path("test/inference").iterdir())) == 2

    picture = str(Path("My site/0.jpg").rename("0.jpg"))
    Path("My site").rename("elsewhere")  # a checkpoint needs no data
    given = {"overrides": ["MODEL.DEVICE", "cpu"], "score_thresh": 0}
    detector = engine.load_detector("out/model_final.pth", **given)
    assert detector.classes == ("head", "helmet")
    assert len(detector([read_image(picture, "RGB")])[0][0])


def test_every_metric_of_the_evaluations_can_be_the_best(site, engine):
    Path("my-site").symlink_to("My site")
    two = (TEST, "voc:my-site?split=[70%:]")
    for tests, metric in ((two, f"{two[1]}/bbox/AP50-head"), (two[:1], "bbox/AP50_area")):
        keys = ["DATASETS.TEST", tests, "TEST.EVAL_PERIOD", 1, "RESNET_DET.BEST.METRIC"]
        engine.check(engine.load_config("site.yaml", [*keys, metric]))
        for wrong in (f"{metric}s", metric.replace("50", "75").replace("_area", "-head")):
            with pytest.raises(ConfigError, match=f"BEST.METRIC: {re.escape(wrong)}: .* did you"):
                engine.check(engine.load_config("site.yaml", [*keys, wrong]))


def test_proposals_have_a_short_name(site):
    path = alternating.proposal_file(embedded.load_config("site.yaml"), 0, TRAIN)
    assert path.parent.name == "step1_rpn" and path.name.startswith("My_site_split_70-")


def test_a_folder_trains_a_classifier(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for name in ("cat", "dog", "eel"):
            write_image(Path(f"pets/{split}/{name}/{name}.png"))
    content = {
        "MODEL": {"META_ARCHITECTURE": "Classifier", "DEVICE": "cpu", "RESNETS": {"NORM": "BN"},
                  "BACKBONE": {"NAME": "cifar_resnet20"}},
        "INPUT": {"MIN_SIZE_TRAIN": [36, 48], "MIN_SIZE_TRAIN_SAMPLING": "range",
                  "MIN_SIZE_TEST": 36, "CROP": {"ENABLED": True, "TYPE": "absolute",
                                                "SIZE": [32, 32]}},
        "DATASETS": {"TRAIN": ["folder:pets?split=train"],
                     "TEST": ["folder:pets?split=val&classes=eel,cat"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 3, "MAX_ITER": 1, "STEPS": []},
        "OUTPUT_DIR": "out",
    }  # fmt: skip
    Path("pets.yaml").write_text(yaml.safe_dump(content))
    assert "classification/top1_error" in classifier.train(load_config("pets.yaml"))
    assert read("out/model_final.pth")[1]["classes"] == ["cat", "dog", "eel"]
    (folder,) = Path("out/inference").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["dataset"] == "folder:pets?split=val&classes=eel,cat"
    assert results["images"] == 2


def moved(dataset):
    """A prediction per image: every object at random a few pixels off, with a random score."""
    rng = np.random.default_rng(0)
    predictions = []
    for record in dataset.records:
        given = np.array([a["bbox"] for a in record["annotations"]], float).reshape(-1, 4)
        given[:, 2:] += given[:, :2] * (record["annotations"][0]["bbox_mode"] == 1)
        predictions.append(
            {
                "image_id": record["image_id"],
                "boxes": given + rng.uniform(-4, 4, given.shape),
                "scores": rng.uniform(0, 1, len(given)),
                "classes": np.array([a["category_id"] for a in record["annotations"]]),
            }
        )
    return predictions


def test_coco_by_path_is_scored_as_by_pycocotools(tmp_path):
    """From the file and the detections that are written for it, without our reader."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(1)
    files = {
        f"{number}.jpg": [
            (int(label), (*map(float, rng.uniform(0, 20, 2)), 18.0 + number, 15.0))
            for label in rng.integers(1, 3, 4)
        ]
        for number in range(6)
    }
    write_coco(tmp_path / "all.json", files)
    for name in files:
        write_image(tmp_path / name)
    dataset = load_dataset(f"coco:{tmp_path}/all.json")
    ours = score(dataset, moved(dataset), tmp_path / "out").metrics
    truth = COCO(str(tmp_path / "all.json"))
    run = COCOeval(truth, truth.loadRes(str(tmp_path / "out/detections.json")), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    names = ["AP", "AP50", "AP75", "APs"]
    assert 0 < ours["AP"] < ours["AP50"] < 100
    assert [ours[name] for name in names] == pytest.approx(100 * run.stats[: len(names)])
    assert "AP50_area" not in ours


def test_voc_by_path_is_scored_by_both_protocols(tmp_path):
    """Two objects; the detections, by score: a hit, a miss, a hit."""
    write_image(tmp_path / "a.jpg")
    write_xml(tmp_path / "a.xml", [("cat", (1, 1, 20, 20)), ("cat", (31, 11, 50, 30))])
    boxes = np.array([[0, 0, 20, 20], [20, 30, 30, 40], [30, 10, 50, 30]], float)
    found = {"boxes": boxes, "scores": np.array([0.9, 0.8, 0.7]), "classes": np.zeros(3, int)}
    dataset = load_dataset(f"voc:{tmp_path}")
    metrics = score(dataset, [{"image_id": "a", **found}], tmp_path / "out").metrics
    assert metrics["AP50_area"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert metrics["AP50"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)  # 101 recalls


# ---- Detectron2's catalogs


@pytest.fixture
def catalogs():
    data = pytest.importorskip("detectron2.data")
    from resnet_det.data import DATASETS

    before = set(DATASETS)
    yield data.DatasetCatalog, data.MetadataCatalog
    for name in set(DATASETS) - before:
        DATASETS.pop(name)
    for name in [name for name in data.DatasetCatalog if name.startswith("own_site")]:
        data.DatasetCatalog.remove(name)
        data.MetadataCatalog.pop(name, None)


@pytest.mark.detectron2
def test_registered_datasets_are_in_detectron2s_catalogs(site, catalogs, tmp_path):
    """Detectron2's own evaluator, which knows only the catalogs, computes the same AP."""
    import torch
    from detectron2.evaluation import COCOEvaluator
    from detectron2.structures import Boxes, Instances

    import resnet_det

    datasets, metadata = catalogs
    resnet_det.register_voc("own_site", "My site", "[:70%]")
    resnet_det.register_coco("own_site_coco", "all.json")
    assert datasets.get("own_site") == load_dataset(TRAIN).records
    assert metadata.get("own_site").thing_classes == ["head", "helmet"]
    with pytest.raises(DatasetError, match=r"there is no .*all\.json"):
        datasets.get("own_site_coco")

    dataset = load_dataset("own_site")
    predictions = moved(dataset)
    ours = score(dataset, predictions, tmp_path / "out").metrics
    theirs = COCOEvaluator("own_site", tasks=("bbox",), output_dir="theirs", use_fast_impl=False)
    theirs.reset()
    for record, found in zip(dataset.records, predictions):
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.from_numpy(found["boxes"]))
        instances.scores = torch.from_numpy(found["scores"])
        instances.pred_classes = torch.from_numpy(found["classes"])
        theirs.process([record], [{"instances": instances}])
    result = theirs.evaluate()["bbox"]
    assert 0 < ours["AP"] < 100
    for name in ("AP", "AP50", "AP75", "AP-head", "AP-helmet"):
        assert ours[name] == pytest.approx(result[name], abs=0.01), name


@pytest.mark.detectron2
def test_a_name_of_detectron2s_catalog_joins_a_path(site, catalogs):
    from resnet_det.engines.on_detectron2 import engine
    from resnet_det.engines.on_detectron2.data import load_training_set

    datasets, metadata = catalogs
    datasets.register("own_site_foreign", lambda: load_dataset(TEST).records)
    metadata.get("own_site_foreign").set(thing_classes=["head", "helmet"])
    names = (TRAIN, "own_site_foreign")
    cfg = engine.load_config("site.yaml", ["DATASETS.TRAIN", names, "OUTPUT_DIR", "out"])
    records, classes = load_training_set(cfg)
    assert classes == ("head", "helmet")
    assert len(records) == 12


@pytest.mark.detectron2
def test_a_taken_name_and_masks_are_refused(site, catalogs):
    import resnet_det
    from resnet_det.engines.on_detectron2 import engine

    datasets, _ = catalogs
    datasets.register("own_site", list)
    with pytest.raises(ValueError, match="Detectron2's catalog has a dataset 'own_site' already"):
        resnet_det.register_voc("own_site", "My site")
    cfg = engine.load_config("site.yaml", ["MODEL.MASK_ON", True])
    with pytest.raises(ConfigError, match=r"only its boxes are read.*register_coco_instances"):
        engine.training_records(cfg)
