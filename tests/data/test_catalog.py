import os

import pytest

from resnet_det.data import (
    DatasetError,
    UnknownDataset,
    dataset_names,
    datasets_root,
    load_dataset,
    load_datasets,
    missing,
)


def test_metadata_of_voc(voc_folder):
    dataset = load_dataset("voc_2007_trainval", voc_folder.root)
    metadata = dataset.metadata
    assert (dataset.name, metadata.name, metadata.kind) == ("voc_2007_trainval",) * 2 + ("voc",)
    assert metadata.dirname == str(voc_folder.dirname)
    assert (metadata.split, metadata.year, len(metadata.classes)) == ("trainval", 2007, 20)
    assert [record["image_id"] for record in dataset.records] == ["000001", "000002"]
    assert dataset.skipped == []


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownDataset, match="'voc_2007_trianval'; did you mean voc_2007_trainval"):
        load_dataset("voc_2007_trianval")


def test_root_is_argument_then_variable_then_folder(monkeypatch, voc_folder, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert datasets_root() == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(voc_folder.root))
    assert len(load_dataset("voc_2007_trainval").records) == 2
    with pytest.raises(DatasetError, match="cannot read"):
        load_dataset("voc_2007_trainval", tmp_path / "elsewhere")
    assert datasets_root("~/data") == os.path.expanduser("~/data")


def test_bad_image_ends_the_load_or_is_skipped_and_listed(voc_folder):
    voc_folder.add("000003", voc_folder.object(name="dragon"))
    voc_folder.add("000004")
    with pytest.raises(DatasetError, match=r"000003\.xml: object 1: unknown class 'dragon'"):
        load_dataset("voc_2007_trainval", voc_folder.root)
    dataset = load_dataset("voc_2007_trainval", voc_folder.root, skip_bad=True)
    assert [record["image_id"] for record in dataset.records] == ["000001", "000002", "000004"]
    assert dataset.skipped == [f"{voc_folder.xml('000003')}: object 1: unknown class 'dragon'"]


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
    assert [record["image_id"] for record in union.records] == ["000002", "000001", "000002"]
    assert len(union.skipped) == 1
    assert union.metadata.name == "voc_2007_test"


@pytest.mark.real_data
def test_union_of_different_classes_is_refused(real_data):
    with pytest.raises(ValueError, match="differ in classes"):
        load_datasets(("voc_2007_test", "coco_2017_val"), real_data)


@pytest.mark.detectron2
def test_names_and_paths_are_detectron2s(monkeypatch):
    """Every instance dataset of VOC and COCO in Detectron2 is here, at the same place."""
    from detectron2.data.datasets.builtin import _PREDEFINED_SPLITS_COCO

    from resnet_det.data import catalog

    theirs = _PREDEFINED_SPLITS_COCO["coco"]
    ours = {name: paths for name, paths in catalog._COCO.items() if not name.startswith("scenes")}
    assert ours == theirs

    from detectron2.data import DatasetCatalog, MetadataCatalog

    added = "voc_2012_test"  # by us, where resnet_det was imported before
    for name in (n for n in DatasetCatalog if n.startswith("voc_") and n != added):
        assert name in dataset_names()
        metadata = MetadataCatalog.get(name)
        folder, split, year = catalog._VOC[name]
        assert (metadata.split, metadata.year) == (split, year)
        assert metadata.dirname.endswith(os.path.join("", folder))


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
