import contextlib
import copy
import io
import json

import pytest
from pycocotools.coco import COCO

from resnet_det.data import BoxMode, DatasetError, load_dataset
from resnet_det.data.detection import coco

SOUND = {
    "images": [
        {"id": 9, "file_name": "b.jpg", "height": 40, "width": 60},
        {"id": 4, "file_name": "a.jpg", "height": 50, "width": 30},
    ],
    "annotations": [
        {"id": 7, "image_id": 9, "category_id": 90, "bbox": [1, 2.5, 10, 20], "area": 120.5,
         "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 2, "bbox": [0, 0, 60, 40], "area": 2400,
         "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
}  # fmt: skip


def read(tmp_path, data, **options):
    path = tmp_path / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    classes, ids, scan = coco.read(str(path), str(tmp_path), **options)
    return classes, ids, list(scan)


def faults(tmp_path, data, **options):
    return [fault for _, found in read(tmp_path, data, **options)[2] for fault in found]


def test_records(tmp_path):
    classes, ids, scan = read(tmp_path, SOUND)
    assert classes == ("bicycle", "toothbrush")
    assert ids == (2, 90)
    assert all(found == [] for _, found in scan)
    empty, full = (record for record, _ in scan)  # in the order of the ids
    assert empty == {
        "file_name": str(tmp_path / "a.jpg"),
        "image_id": 4,
        "height": 50,
        "width": 30,
        "annotations": [],
    }
    assert full["annotations"] == [
        {"bbox": [1, 2.5, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0,
         "area": 120.5, "id": 7},
        {"bbox": [0, 0, 60, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1,
         "area": 2400.0, "id": 3},
    ]  # fmt: skip


def test_area_and_iscrowd_may_be_absent(tmp_path):
    data = copy.deepcopy(SOUND)
    del data["annotations"][0]["area"], data["annotations"][0]["iscrowd"]
    annotation = read(tmp_path, data)[2][1][0]["annotations"][0]
    assert annotation["area"] == 10 * 20
    assert annotation["iscrowd"] == 0


def test_image_info_without_annotations(tmp_path):
    data = {key: SOUND[key] for key in ("images", "categories")}
    assert [len(r["annotations"]) for r, _ in read(tmp_path, data)[2]] == [0, 0]


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("annotations", 0, "image_id"), 5, "annotation 7: unknown image_id 5"),
        (("annotations", 0, "category_id"), 1, "annotation 7 of image 9: unknown category_id 1"),
        (("annotations", 0, "id"), 3, "annotation 3 of image 9: duplicate annotation id"),
        (("annotations", 0, "bbox"), [1, 2, 10], "not a list of four numbers"),
        (("annotations", 0, "bbox"), [True, 2, 10, 20], "bbox is True, not a number"),
        (("annotations", 0, "bbox"), [1, 2, -10, 20], "is inverted"),
        (("annotations", 0, "bbox"), [1, 2, 0, 20], "is empty"),
        (("annotations", 0, "bbox"), [1, 2, float("nan"), 20], "is not finite"),
        (("annotations", 0, "bbox"), [1, 2, 60.5, 20], "extends beyond the image of 60 x 40"),
        (("annotations", 0, "bbox"), [0.4, 0.5, 0.1, 0.2], "give pixels, not fractions"),
        (("annotations", 0, "bbox"), "1 2 3 4", "bbox is '1 2 3 4', not a list"),
        (("annotations", 0, "image_id"), "nine", "image_id is 'nine', not an integer"),
        (("annotations", 0, "area"), "large", "area is 'large'"),
        (("annotations", 0, "area"), -1, "area is -1"),
        (("annotations", 0, "iscrowd"), 2, "iscrowd is 2"),
        (("annotations", 0, "ignore"), 1, "'ignore' is not supported"),
        (("annotations", 0), 5, "is not an object: 5"),
        (("images", 0, "id"), 4, "duplicate image id 4"),
        (("images", 1, "width"), 0, "image 4: has no valid height and width, and "),
        (("images", 1, "height"), "50", "a.jpg: missing image file"),
    ],
)
def test_fault_is_named(tmp_path, place, value, what):
    data = copy.deepcopy(SOUND)
    if place == ("images", 0, "id"):
        data["annotations"] = []
    at = data
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    (fault,) = faults(tmp_path, data)
    assert fault.file == str(tmp_path / "instances.json")
    assert what in fault.what


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("annotations", key) for key in ("image_id", "category_id", "bbox")),
        *(("images", key) for key in ("id", "file_name")),
    ],
)
def test_missing_key_is_named(tmp_path, part, key):
    data = copy.deepcopy(SOUND)
    del data[part][1][key]
    (fault,) = faults(tmp_path, data)
    assert f"missing key {key!r}" in fault.what


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ('{"images": [', "malformed json"),
        ("[]", "not an object"),
        ({**SOUND, "images": []}, "'images' is empty"),
        ({**SOUND, "categories": []}, "'categories' is empty"),
        ({"images": SOUND["images"]}, "no list 'categories'"),
        ({**SOUND, "annotations": {}}, "no list 'annotations'"),
        ({**SOUND, "categories": [{"id": 1}]}, "invalid entry: missing key 'name'"),
        ({**SOUND, "categories": SOUND["categories"] * 2}, "duplicate category id 90"),
    ],
)
def test_unusable_file(tmp_path, data, what):
    with pytest.raises(DatasetError, match=rf"instances\.json: .*{what}"):
        read(tmp_path, data)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"no\.json: cannot read.*datasets/README\.md"):
        coco.read(str(tmp_path / "no.json"), str(tmp_path))


def test_repeated_annotation_ids_of_minival(tmp_path):
    data = copy.deepcopy(SOUND)
    data["annotations"][0]["id"] = 3
    assert len(faults(tmp_path, data)) == 1
    assert faults(tmp_path, data, repeated_ids=True) == []


def test_known_fault_of_the_official_file(tmp_path):
    """The object without height in image 200365 is skipped and listed; in other images it is a
    fault."""
    data = copy.deepcopy(SOUND)
    data["images"][0]["id"] = 200365
    for annotation in data["annotations"]:
        annotation["image_id"] = 200365
    data["annotations"][0]["bbox"] = [10, 20, 1.03, 0.0]
    assert [fault.known for fault in faults(tmp_path, data)] == [False]
    assert [fault.known for fault in faults(tmp_path, data, official=True)] == [True]

    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(data))
    dataset = load_dataset("coco_2017_train", tmp_path)
    assert [len(record["annotations"]) for record in dataset.records] == [0, 1]
    (line,) = dataset.skipped
    assert "annotation 7 of image 200365" in line and "is empty" in line


def _same_as_pycocotools(dataset):
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(dataset.metadata.detectron2["json_file"])
    assert [record["image_id"] for record in dataset.records] == sorted(api.imgs)
    names = {category["id"]: category["name"] for category in api.cats.values()}
    ids = dataset.metadata.category_ids
    assert tuple(names[id] for id in ids) == dataset.metadata.classes
    for record in dataset.records:
        image = api.imgs[record["image_id"]]
        assert (record["height"], record["width"]) == (image["height"], image["width"])
        want = api.loadAnns(api.getAnnIds(imgIds=record["image_id"]))
        assert len(record["annotations"]) == len(want)
        for ours, theirs in zip(record["annotations"], want, strict=True):
            assert ids[ours["category_id"]] == theirs["category_id"]
            for key in ("bbox", "area", "iscrowd", "id"):
                assert ours[key] == theirs[key]


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "objects"), [("train", 1160), ("val", 1196)])
def test_real_photographs(real_data, split, objects):
    dataset = load_dataset(f"coco_2017_{split}", real_data)
    assert len(dataset.records) == 129
    assert sum(len(record["annotations"]) for record in dataset.records) == objects
    assert dataset.skipped == []
    _same_as_pycocotools(dataset)


@pytest.mark.detectron2
@pytest.mark.real_data
def test_equals_detectron2(real_data):
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    dataset = load_dataset("coco_2017_val", real_data)
    metadata = dataset.metadata
    paths = (metadata.detectron2[key] for key in ("json_file", "image_root"))
    theirs = load_coco_json(*paths, "coco_test_of_resnet_det")
    thing = MetadataCatalog.get("coco_test_of_resnet_det")
    assert list(metadata.classes) == thing.thing_classes
    contiguous = {id: index for index, id in enumerate(metadata.category_ids)}
    assert contiguous == thing.thing_dataset_id_to_contiguous_id
    assert len(dataset.records) == len(theirs)
    for a, b in zip(dataset.records, theirs, strict=True):
        assert {**a, "annotations": 0} == {**b, "annotations": 0}
        keys = ("bbox", "bbox_mode", "category_id", "iscrowd")
        assert [[o[k] for k in keys] for o in a["annotations"]] == [
            [o[k] for k in keys] for o in b["annotations"]
        ]
