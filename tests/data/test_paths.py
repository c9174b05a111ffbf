"""Datasets named by their path: the spelling, the place, the classes and the share of the images."""

import math
from pathlib import Path

import pytest
from own_sets import write_coco, write_image, write_xml

import resnet_det
from resnet_det.data import (
    DATASETS,
    DatasetError,
    UnknownDataset,
    check_dataset,
    check_names,
    load_dataset,
    load_datasets,
    missing,
    shortfall,
)
from resnet_det.data.catalog import classification_spec
from resnet_det.data.paths import parse
from resnet_det.files import safe_name


@pytest.fixture
def site(tmp_path, monkeypatch):
    """20 photographs of a building site in LabelImg's layout, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    for number in range(20):
        write_image(Path(f"site/{number:03}.jpg"))
        objects = [("helmet", (1, 1, 20, 20)), ("head", (11, 6, 30 + number, 36))]
        write_xml(
            Path(f"site/{number:03}.xml"), objects if number else [("Vest, red", (5, 5, 9, 9))]
        )
    return tmp_path / "site"


def boxes(dataset):
    """{image id: [(class, box), ...]}"""
    classes = dataset.metadata.classes
    return {
        record["image_id"]: [
            (classes[a["category_id"]], tuple(a["bbox"])) for a in record["annotations"]
        ]
        for record in dataset.records
    }


def test_classes_are_those_found_sorted_with_their_own_letters(site):
    dataset = load_dataset("voc:site")
    assert dataset.metadata.classes == ("Vest, red", "head", "helmet")
    assert boxes(dataset)["007"] == [("helmet", (0, 0, 20, 20)), ("head", (10, 5, 37, 36))]


def test_chosen_classes_have_their_order_and_other_objects_are_counted(site, caplog):
    caplog.set_level("INFO", logger="resnet_det")
    dataset = load_dataset("voc:site?classes=helmet,Vest%2C%20red")
    assert dataset.metadata.classes == ("helmet", "Vest, red")
    assert boxes(dataset)["007"] == [("helmet", (0, 0, 20, 20))]
    assert boxes(dataset)["000"] == [("Vest, red", (4, 4, 9, 9))]
    assert "objects of other classes are left out: 19 head" in caplog.text


def test_a_share_of_the_images_is_the_same_for_ever(site):
    train, val = (load_dataset(f"voc:site?split={part}") for part in ("[:60%]", "[60%25:]"))
    assert train.metadata.classes == val.metadata.classes
    ids = [{record["image_id"] for record in part.records} for part in (train, val)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 20
    # Hashes of SHA-256, computed by hashlib alone: no later version may move an image.
    assert sorted(ids[1]) == ["002", "004", "006", "008", "012", "013"]
    for number in range(20, 40):
        write_image(site / f"{number:03}.jpg")
        write_xml(site / f"{number:03}.xml", [("head", (1, 1, 9, 9))])
    later = {record["image_id"] for record in load_dataset("voc:site?split=[:60%]").records}
    assert ids[0] == {image_id for image_id in later if int(image_id) < 20}


def test_shares_have_about_their_size():
    part = parse("folder:photos?split=[25%:60%]").part
    held = sum(part.holds(f"/somewhere/{number}.png") for number in range(10_000))
    assert abs(held - 3500) < 4 * math.sqrt(10_000 * 0.35 * 0.65)


def test_the_working_folder_comes_before_the_datasets_folder(site, tmp_path):
    write_image(tmp_path / "datasets/site/other.jpg")
    write_xml(tmp_path / "datasets/site/other.xml", [("head", (1, 1, 9, 9))])
    assert len(load_dataset("voc:site").records) == 20
    site.rename(tmp_path / "elsewhere")
    assert list(boxes(load_dataset("voc:site"))) == ["other"]
    assert len(load_dataset(f"voc:{tmp_path}/elsewhere").records) == 20


def test_special_letters_are_percent_encoded(site, tmp_path):
    site.rename(tmp_path / "a b?c&d=e%20")
    assert len(load_dataset("voc:a b%3Fc%26d=e%2520?split=[:100%]").records) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("voc:site?splt=x", "takes no 'splt'; did you mean split"),
        ("coco:site/a.json?origin=0", "coco: takes no 'origin'"),
        ("voc:site?split=", "give one value for 'split'"),
        ("voc:site?split=a&split=b", "give one value for 'split'"),
        ("voc:", "names no path: write voc:FOLDER"),
        ("voc:site?origin=2", "origin is '2', not 0 or 1"),
        ("voc:site?split=[80%:20%]", r"write a share of the images as \[:80%\]"),
        ("voc:site?split=[:.8]", "write a share of the images"),
        ("voc:site?classes=head,head", "one of them is named twice"),
        ("coco:site/a.json?split=train", "a file of COCO's has no split 'train'"),
        ("voc:site?split=train", "no lists in ImageSets/Main: to divide the images"),
        ("voc:site?classes=heads", "has no class 'heads'; did you mean head"),
        ("voc:sight", "there is no .*datasets/sight, nor is it in the working folder"),
    ],
)
def test_a_wrong_path_is_one_clear_error(site, name, message):
    with pytest.raises(DatasetError, match=message) as error:
        load_dataset(name)
    assert str(error.value).startswith(name)


@pytest.mark.parametrize("name", ["vok:site", "site"])
def test_a_folder_without_its_kind_is_told_the_kinds(site, name):
    with pytest.raises(UnknownDataset, match=r"coco:FILE\.json.*voc:FOLDER.*yolo:.*folder:"):
        check_names([name])


def test_a_path_for_the_other_task_is_refused(site):
    with pytest.raises(UnknownDataset, match="'voc:site' is a dataset for detection"):
        classification_spec("voc:site")


def test_a_path_has_no_published_size(site):
    assert missing("voc:site") is None
    assert missing("voc:sight").endswith("datasets/sight")
    assert shortfall("voc:site") is None
    assert "published" not in "\n".join(check_dataset("voc:site").lines())


def test_a_union_needs_the_same_classes(site, tmp_path):
    write_image(tmp_path / "more/a.png")
    write_xml(tmp_path / "more/a.xml", [("head", (1, 1, 9, 9)), ("helmet", (1, 1, 9, 9))])
    with pytest.raises(ValueError, match=r"classes differ \(.*\): .*\?classes="):
        load_datasets(("voc:site", "voc:more"))
    union = load_datasets([f"voc:{name}?classes=head,helmet" for name in ("site", "more")])
    assert (len(union.records), union.metadata.classes) == (21, ("head", "helmet"))


# ---- COCO's format


@pytest.mark.parametrize(
    ("images", "query"),
    [
        ("train", ""),  # Roboflow: beside the annotations
        ("train/images", ""),
        ("images", ""),  # CVAT: images/ beside annotations/
        ("photographs", "?images=photographs"),
    ],
)
def test_coco_by_path_is_pycocotools(tmp_path, monkeypatch, images, query):
    from pycocotools.coco import COCO

    monkeypatch.chdir(tmp_path)
    file = Path("train/_annotations.coco.json")
    write_coco(file, {"a.jpg": [(2, (3, 4, 20, 10)), (1, (0, 0, 5, 6))], "b.PNG": []})
    for name in ("a.jpg", "b.PNG"):
        write_image(Path(images, name))
    report = check_dataset(f"coco:{file}{query}")
    assert (report.faults, report.images, report.units) == ([], 2, 2)
    dataset = load_dataset(f"coco:{file}{query}")
    coco = COCO(str(file))
    assert dataset.metadata.classes == tuple(c["name"] for c in coco.loadCats(coco.getCatIds()))
    for record in dataset.records:
        (image,) = coco.loadImgs(record["image_id"])
        assert Path(record["file_name"]).samefile(Path(images, image["file_name"]))
        found = [(a["category_id"] + 1, a["bbox"]) for a in record["annotations"]]
        theirs = coco.loadAnns(coco.getAnnIds(record["image_id"]))
        assert found == [(a["category_id"], a["bbox"]) for a in theirs]


def test_coco_whose_images_are_elsewhere_asks_for_them(tmp_path):
    write_coco(tmp_path / "all.json", {"a.jpg": []})
    with pytest.raises(DatasetError, match=r"a\.jpg, are in none of .*\?images=FOLDER"):
        load_dataset(f"coco:{tmp_path}/all.json")


def test_chosen_classes_of_coco_keep_their_category_ids(tmp_path):
    write_coco(tmp_path / "all.json", {"a.jpg": [(2, (3, 4, 20, 10)), (1, (0, 0, 5, 6))]})
    write_image(tmp_path / "a.jpg")
    metadata = load_dataset(f"coco:{tmp_path}/all.json?classes=head").metadata
    assert (metadata.classes, metadata.category_ids) == (("head",), (2,))


# ---- folders of class folders


@pytest.fixture
def pets(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "Dog", "eel"):
            for number in range(count):
                write_image(
                    tmp_path / split / name / f"{name}{number}.{'webp' if number else 'JPG'}"
                )
    return tmp_path


def listed(name):
    images, classes = classification_spec(name).list_images("")
    return [(file, classes[label]) for file, label in images], classes


def test_folder_by_path_is_torchvisions(pets):
    from torchvision.datasets import ImageFolder

    theirs = ImageFolder(pets / "train")
    ours, classes = listed(f"folder:{pets}?split=train")
    assert classes == tuple(theirs.classes)
    assert ours == [(file, theirs.classes[label]) for file, label in theirs.samples]
    assert listed(f"folder:{pets}/train") == (ours, classes)
    chosen, classes = listed(f"folder:{pets}/train?classes=eel,cat")
    assert classes == ("eel", "cat")
    assert sorted(chosen) == sorted(pair for pair in ours if pair[1] != "Dog")


def test_what_a_folder_leaves_out_is_counted(pets, caplog):
    caplog.set_level("INFO", logger="resnet_det")
    listed(f"folder:{pets}/train")
    assert not caplog.records
    (pets / "train/cat/cat1.webp").rename(pets / "train/cat/cat1.heic")
    (pets / "train/Dog/more").mkdir()
    (pets / "train/eel/.DS_Store").touch()
    images, _ = listed(f"folder:{pets}/train")
    assert len(images) == 11
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"{pets}/train: 2 files and subfolders of its classes are left out: ")


def test_hidden_files_are_neither_images_nor_classes_nor_splits(pets):
    before = listed(f"folder:{pets}/train")
    (pets / "train/cat/._cat0.JPG").write_bytes(b"macOS writes this beside an image")
    write_image(pets / "train/.thumbnails/cat0.jpg")
    (pets / ".git/hooks").mkdir(parents=True)
    assert listed(f"folder:{pets}/train") == before
    with pytest.raises(DatasetError, match="choose split=train or split=val$"):
        listed(f"folder:{pets}")


def test_parts_of_a_folder_keep_all_classes(pets):
    whole, classes = listed(f"folder:{pets}/train")
    parts = [listed(f"folder:{pets}/train?split={part}") for part in ("[:30%]", "[30%:]")]
    assert sorted(parts[0][0] + parts[1][0]) == sorted(whole)
    assert parts[0][1] == parts[1][1] == classes


def test_a_divided_folder_names_its_splits(pets):
    with pytest.raises(DatasetError, match="is divided: choose split=train or split=val"):
        listed(f"folder:{pets}")
    with pytest.raises(DatasetError, match="has no split 'vol'; did you mean val"):
        listed(f"folder:{pets}?split=vol")
    with pytest.raises(DatasetError, match=r"no split 'val': to divide its images, use split=\["):
        listed(f"folder:{pets}/train?split=val")


# ---- registered names


@pytest.fixture
def registry(monkeypatch):
    for name in DATASETS:
        monkeypatch.setitem(DATASETS, name, DATASETS[name])  # restored afterwards
    yield
    for name in ("building_site", "building_site_coco"):
        DATASETS.pop(name, None)


def test_registered_datasets_are_like_their_paths(site, registry):
    resnet_det.register_voc("building_site", "site", "[:80%]", ["helmet", "head"])
    ours = load_dataset("building_site")
    path = load_dataset("voc:site?split=[:80%]&classes=helmet,head")
    assert boxes(ours) == boxes(path)
    assert (ours.name, ours.metadata.classes) == ("building_site", path.metadata.classes)
    resnet_det.register_voc("building_site", "site", "[:80%]", ["helmet", "head"])  # a notebook
    with pytest.raises(ValueError, match="the name of another dataset"):
        resnet_det.register_voc("building_site", "site")
    with pytest.raises(ValueError, match="'voc_2007_test' is the name of another dataset"):
        resnet_det.register_coco("voc_2007_test", "a.json", "images")


# ---- names of files


def test_results_have_short_safe_names():
    assert safe_name("voc_2007_test") == "voc_2007_test"
    assert safe_name("coco_2017_test-dev") == "coco_2017_test-dev"
    names = [
        "voc:/data/BCCD?split=train",
        "voc:/data/BCCD?split=[:80%]",
        "voc:/data/BCCD?split=[80%:]",
        "voc:/other/BCCD?split=train",
        "coco:" + "x" * 400 + ".json",
        "folder:../../é/ü",
        "..",
        "a/b",
    ]
    safe = list(map(safe_name, names))
    assert safe[0].startswith("BCCD_split_train-")
    assert len(set(safe)) == len(names)
    assert all(len(name) < 60 and name == Path(name).name and name[0] != "." for name in safe)
