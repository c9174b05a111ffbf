import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from resnet_det.data import (
    DATASETS,
    DatasetError,
    UnknownDataset,
    check_dataset,
    dataset_names,
    datasets_root,
    load_dataset,
    load_datasets,
    missing,
    shortfall,
)
from resnet_det.data.catalog import classification_spec
from resnet_det.data.detection.coco import CocoJson
from resnet_det.data.pixels import read_image
from resnet_det.data.specs import Dataset, DetectionSpec, Metadata
from resnet_det.engines.results import EVALUATIONS, score
from resnet_det.evaluation.report import write_report
from resnet_det.evaluation.tables import summary_table
from resnet_det.records import BoxMode


def test_metadata_of_voc(voc_folder):
    dataset = load_dataset("voc_2007_trainval", voc_folder.root)
    metadata = dataset.metadata
    assert (dataset.name, metadata.name) == ("voc_2007_trainval",) * 2
    assert (metadata.evaluation, metadata.split, len(metadata.classes)) == (
        "voc_2007",
        "trainval",
        20,
    )
    assert metadata.detectron2["dirname"] == str(voc_folder.dirname)
    assert [record["image_id"] for record in dataset.records] == ["000001", "000002"]
    assert dataset.skipped == []


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownDataset, match="'voc_2007_trianval'; did you mean voc_2007_trainval"):
        load_dataset("voc_2007_trianval")


def test_a_dataset_for_another_task_is_refused():
    with pytest.raises(UnknownDataset, match="'cifar10_test' is a dataset for classification"):
        load_dataset("cifar10_test")
    with pytest.raises(UnknownDataset, match="'coco_2017_val' is a dataset for detection"):
        classification_spec("coco_2017_val")


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_every_dataset_answers_what_a_kind_must(tmp_path, task):
    """In an empty folder, ``missing`` names a path, and a check reports one fault without
    raising."""
    for name in dataset_names(task):
        spec = DATASETS[name]
        assert spec.paths() and all(not os.path.isabs(path) for path in spec.paths())
        if spec.drawn and spec.missing(str(tmp_path)) is None:  # drawn from nothing
            continue
        assert spec.missing(str(tmp_path)).startswith(str(tmp_path))
        report = check_dataset(name, tmp_path)
        assert (report.images, len(report.faults)) == (0, 1)


def test_a_further_kind_is_one_class(tmp_path, monkeypatch):
    """A new kind with its own label format is loaded, checked and counted without further
    changes."""

    class Points(DetectionSpec):
        def paths(self):
            return ["points.txt"]

        def count(self, root):
            return len((tmp_path / "points.txt").read_text().split())

        def scan(self, root):
            files = (tmp_path / "points.txt").read_text().split()
            metadata = Metadata(self.name, ("point",), "coco")
            box = {"bbox": [0, 0, 2, 2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
            records = (
                {"file_name": str(tmp_path / file), "image_id": i, "height": 4, "width": 4}
                | {"annotations": [box | {"iscrowd": 0}]}
                for i, file in enumerate(files)
            )
            return metadata, ((record, []) for record in records)

    monkeypatch.setitem(DATASETS, "points", Points("points", published=3))
    assert "points" in dataset_names() and missing("points", tmp_path).endswith("points.txt")
    (tmp_path / "points.txt").write_text("a.png b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    dataset = load_dataset("points", tmp_path)
    assert [record["image_id"] for record in dataset.records] == [0, 1]
    assert dataset.metadata.evaluation in EVALUATIONS
    assert shortfall("points", tmp_path) == "points has 2 images, but the published set has 3"
    report = check_dataset("points", tmp_path)
    assert (report.images, report.units, report.faults) == (
        2,
        2,
        [f"{tmp_path / 'b.png'}: missing image file"],
    )


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_dataset_without_a_server_is_scored_without_a_devkits_files(tmp_path, evaluation):
    box = {"bbox": [0, 0, 2, 2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    record = {"image_id": 0, "height": 4, "width": 4, "annotations": [box]}
    dataset = Dataset("points", [record], Metadata("points", ("point",), evaluation))
    found = {"boxes": np.array([[0.0, 0, 2, 2]]), "scores": np.ones(1), "classes": np.zeros(1, int)}
    result = score(dataset, [{"image_id": 0, **found}], tmp_path / "out")
    assert result.metrics["AP50"] == pytest.approx(100)
    assert sorted(os.listdir(tmp_path / "out")) == ["detections.json", "results.json"]
    (detection,) = json.loads((tmp_path / "out/detections.json").read_text())
    assert (detection["category_id"], detection["bbox"]) == (1, [0, 0, 2, 2])


def test_root_is_argument_then_variable_then_folder(monkeypatch, voc_folder, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert datasets_root() == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(voc_folder.root))
    assert len(load_dataset("voc_2007_trainval").records) == 2
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset("voc_2007_trainval", tmp_path / "elsewhere")
    assert datasets_root("~/data") == os.path.expanduser("~/data")


def test_bad_object_or_image_ends_the_load_or_is_skipped_and_listed(voc_folder):
    voc_folder.add("000003", voc_folder.object(name="dragon") + voc_folder.object())
    voc_folder.add("000004")
    voc_folder.xml("000002").write_text("<annotation>")
    with pytest.raises(DatasetError, match=r"000002\.xml: malformed XML"):
        load_dataset("voc_2007_trainval", voc_folder.root)
    dataset = load_dataset("voc_2007_trainval", voc_folder.root, skip_bad=True)
    assert [record["image_id"] for record in dataset.records] == ["000001", "000003", "000004"]
    assert [len(record["annotations"]) for record in dataset.records] == [1, 1, 1]
    broken, unknown = dataset.skipped
    assert broken.startswith(f"{voc_folder.xml('000002')}: malformed XML")
    assert unknown == f"{voc_folder.xml('000003')}: object 1: unknown class 'dragon'"
    assert +dataset.counts == {"skipped_images": 1, "skipped_objects": 1}


@pytest.fixture
def flawed(voc_folder):
    """Two sound objects, a clipped one, two that are skipped, and an image that is skipped."""
    more = [voc_folder.object((50, 3, 99, 40)), voc_folder.object((70, 3, 99, 40))]
    voc_folder.annotate("000001", "".join([voc_folder.object(), *more]))
    voc_folder.annotate("000002", voc_folder.object() + voc_folder.object(name="dragon"))
    voc_folder.add("000003")
    voc_folder.xml("000003").write_text("<annotation>")
    return voc_folder


def test_what_a_test_set_lacks_stands_beside_its_ap(flawed, tmp_path):
    dataset = load_dataset("voc_2007_trainval", flawed.root, skip_bad=True)
    boxes = {"000001": [[1, 2, 30, 40], [49, 2, 60, 40]], "000002": [[1, 2, 30, 40]]}
    predictions = [
        {"image_id": i, "boxes": np.array(b, float), "scores": np.ones(len(b)),
         "classes": np.full(len(b), dataset.metadata.classes.index("dog"))}
        for i, b in boxes.items()
    ]  # fmt: skip
    result = score(dataset, predictions, tmp_path / "out")
    lacks = {"skipped_images": 1, "skipped_objects": 2, "clipped_boxes": 1}
    assert result.metrics["AP50"] == pytest.approx(100)
    assert {key: result.metrics[key] for key in lacks} == lacks
    assert lacks.items() <= json.loads((tmp_path / "out/results.json").read_text()).items()
    results = {"set": (result, dataset.records, predictions, dataset.metadata.classes)}
    page = write_report(tmp_path, results, lambda path: read_image(path, "RGB")).read_text()
    table = summary_table({"set": result})
    for what, count in lacks.items():
        assert re.search(rf"<b>{count}</b>{what}</div>", page)
        assert what in table.splitlines()[0] and f" {count} |" in table.splitlines()[2]


def test_nothing_left_is_an_error(voc_folder):
    for image_id in ("000001", "000002"):
        voc_folder.xml(image_id).unlink()
    with pytest.raises(DatasetError, match="no image is left after 2 faults"):
        load_dataset("voc_2007_trainval", voc_folder.root, skip_bad=True)


def test_union(voc_folder):
    voc_folder.add("000003", voc_folder.object(name="dragon"))
    (voc_folder.list.parent / "test.txt").write_text("000002\n")
    names = ("voc_2007_test", "voc_2007_trainval")
    union = load_datasets(names, voc_folder.root, skip_bad=True)
    assert union.name == "voc_2007_test+voc_2007_trainval"
    ids = [record["image_id"] for record in union.records]
    assert ids == ["000002", "000001", "000002", "000003"]
    assert len(union.skipped) == union.counts["skipped_objects"] == 1
    assert union.metadata.name == "voc_2007_test"


@pytest.mark.real_data
def test_union_of_different_classes_is_refused(real_data):
    with pytest.raises(ValueError, match="their classes differ"):
        load_datasets(("voc_2007_test", "coco_2017_val"), real_data)


@pytest.mark.detectron2
def test_names_and_paths_are_detectron2s(monkeypatch):
    """Every instance dataset of VOC and COCO in Detectron2 is here, at the same place."""
    from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO

    ours = {
        name: (spec.image_root, spec.json_file)
        for name, spec in DATASETS.items()
        if isinstance(spec, CocoJson) and not spec.drawn
    }
    assert ours == _PREDEFINED_SPLITS_COCO["coco"]

    from detectron2.data import DatasetCatalog, MetadataCatalog

    added = "voc_2012_test"  # by us, where resnet_det was imported before
    for name in (n for n in DatasetCatalog if n.startswith("voc_") and n != added):
        assert name in dataset_names()
        metadata, spec = MetadataCatalog.get(name), DATASETS[name]
        assert (metadata.split, metadata.year) == (spec.split, spec.year)
        assert metadata.dirname.endswith(os.path.join("", spec.folder))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("cifar10_train45k", "cifar-10-binary.tar.gz"),
        ("miniature_voc_test", "cifar-10-batches-py"),
        ("imagenet_val", "imagenet/val"),
        ("imagenet_train_shards", "imagenet_shards"),
        ("coco_2014_val", None),
        ("voc_2012_test", None),
    ],
)
def test_what_is_absent_is_told_without_reading(tmp_path, name, path):
    assert missing(name, tmp_path).startswith(str(tmp_path))
    if path:
        (tmp_path / path).mkdir(parents=True)
        assert missing(name, tmp_path) is None
