"""The layouts of folders with VOC's and YOLO's annotations, as tools export them."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from own_sets import SIZE, write_coco, write_image, write_labels, write_xml
from PIL import Image

from resnet_det.data import DatasetError, check_dataset, load_dataset
from resnet_det.data.detection.yolo import label_file

OBJECTS = {
    "a": [("helmet", (2, 3, 20, 30)), ("head", (31, 1, 60, 40))],
    "b": [],
    "c.d": [("head", (5, 5, 6, 6))],
}


def write_voc(images: Path, xmls: Path, suffix: str = ".jpg", objects=OBJECTS) -> None:
    for name, of_image in objects.items():
        write_image(images / f"{name}{suffix}")
        write_xml(xmls / f"{name}.xml", of_image)


def by_element_tree(xmls: Path) -> dict:
    """{stem: [(class, box)]} of every file below a folder, with VOC's 1-based pixels."""
    found = {}
    for path in xmls.rglob("*.xml"):
        found[path.stem] = [
            (
                node.findtext("name"),
                [int(node.findtext(f"bndbox/{e}")) - (e[1:] == "min") for e in
                 ("xmin", "ymin", "xmax", "ymax")],
            )
            for node in ET.parse(path).iter("object")
        ]  # fmt: skip
    return found


def read(name: str) -> dict:
    """{stem of the image: [(class, box)]}, after checking that each image is there."""
    dataset = load_dataset(name)
    classes = dataset.metadata.classes
    found = {}
    for record in dataset.records:
        path = Path(record["file_name"])
        with Image.open(path) as image:
            assert image.size == (record["width"], record["height"])
        found[path.stem] = [
            (classes[a["category_id"]], list(a["bbox"])) for a in record["annotations"]
        ]
    return found


# ---- VOC


def test_objects_that_labelme_deleted_are_left_out(tmp_path):
    write_voc(tmp_path, tmp_path)
    file = tmp_path / "a.xml"
    head, gone = "<name>head</name>", "<name>ghost</name><deleted>1</deleted>"
    text = file.read_text().replace("<name>helmet</name>", gone)
    file.write_text(text.replace(head, f"{head}<deleted>0</deleted>"))
    assert load_dataset(f"voc:{tmp_path}").metadata.classes == ("head",)
    assert read(f"voc:{tmp_path}")["a"] == [("head", [30, 0, 60, 40])]


def test_a_name_in_another_encoding_makes_no_class(tmp_path):
    write_voc(tmp_path, tmp_path, objects={"a": [("Würfel", (2, 3, 20, 30))] * 2})
    write_voc(tmp_path, tmp_path, objects={"b": [("Würfel", (2, 3, 20, 30))]})
    file = tmp_path / "b.xml"
    file.write_bytes(file.read_text().encode("latin-1"))
    with pytest.raises(DatasetError, match=r"b\.xml: object 1: .*not in the file's encoding"):
        load_dataset(f"voc:{tmp_path}")
    dataset = load_dataset(f"voc:{tmp_path}", skip_bad=True)
    assert dataset.metadata.classes == ("Würfel",)


def test_a_box_in_fractions_is_refused(tmp_path):
    write_voc(tmp_path, tmp_path, objects={"a": [("head", (0.4, 0.5, 0.7, 0.9))]})
    with pytest.raises(DatasetError, match=r"a\.xml: object 1: .*give pixels, not fractions"):
        load_dataset(f"voc:{tmp_path}")
    write_voc(tmp_path, tmp_path, objects={"a": [("head", (1, 1, 1, 1))]})  # the first pixel
    assert read(f"voc:{tmp_path}")["a"] == [("head", [0, 0, 1, 1])]


@pytest.mark.parametrize(
    ("images", "xmls", "suffix"),
    [
        ("JPEGImages", "Annotations", ".jpg"),  # VOC, CVAT
        ("images", "annotations", ".PNG"),
        ("images", "annots", ".jpeg"),
        ("images", "images", ".bmp"),
        ("", "Annotations", ".JPG"),
        ("", "", ".jpg"),  # LabelImg, Roboflow
        ("JPEGImages/2024/june", "Annotations/2024/june", ".tif"),  # CVAT's subfolders
        ("", "", ".jfif"),  # Edge and WhatsApp
        ("", "", ".jpe"),
        ("", "", ".jp2"),
        ("", "", ".mpo"),  # stereo cameras
    ],
)
def test_every_layout_of_voc(tmp_path, images, xmls, suffix):
    write_voc(tmp_path / images, tmp_path / xmls, suffix)
    assert read(f"voc:{tmp_path}") == by_element_tree(tmp_path)
    report = check_dataset(f"voc:{tmp_path}")
    assert (report.faults, report.images, report.units) == ([], 3, 3)


def test_lists_name_the_splits(tmp_path):
    write_voc(tmp_path / "JPEGImages", tmp_path / "Annotations")
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "training.txt").write_text("c.d\nb\n")
    truth = by_element_tree(tmp_path)
    assert read(f"voc:{tmp_path}?split=training") == {"c.d": truth["c.d"], "b": []}
    assert read(f"voc:{tmp_path}") == truth
    # The classes are the whole folder's, whatever a split holds.
    assert load_dataset(f"voc:{tmp_path}?split=training").metadata.classes == ("head", "helmet")
    with pytest.raises(DatasetError, match="has no split 'train'; did you mean training"):
        load_dataset(f"voc:{tmp_path}?split=train")


def test_subfolders_are_the_splits_of_roboflow(tmp_path):
    write_voc(tmp_path / "train", tmp_path / "train")
    write_voc(tmp_path / "valid", tmp_path / "valid", objects={"v": [("head", (1, 1, 9, 9))]})
    assert read(f"voc:{tmp_path}?split=valid") == {"v": [("head", [0, 0, 9, 9])]}
    assert len(read(f"voc:{tmp_path}")) == 4
    assert load_dataset(f"voc:{tmp_path}?split=valid").metadata.classes == ("head", "helmet")
    with pytest.raises(DatasetError, match="has no split 'val'; did you mean valid"):
        load_dataset(f"voc:{tmp_path}?split=val")


def test_an_origin_of_0_leaves_the_boxes_as_they_are(tmp_path):
    write_voc(tmp_path, tmp_path, objects={"a": [("head", (0, 4, 20, 30))]})
    assert read(f"voc:{tmp_path}?origin=0") == {"a": [("head", [0, 4, 20, 30])]}


def test_what_does_not_fit_together_is_named(tmp_path, caplog):
    caplog.set_level("INFO", logger="resnet_det")
    write_voc(tmp_path, tmp_path)
    write_image(tmp_path / "new.jpg")  # not annotated yet
    assert len(read(f"voc:{tmp_path}")) == 3
    assert "1 images without an annotation are left out" in caplog.text
    write_image(tmp_path / "b.png")
    (tmp_path / "c.d.jpg").unlink()
    faults = check_dataset(f"voc:{tmp_path}").faults
    assert len(faults) == 2
    assert faults[0].startswith(f"{tmp_path}/b.xml: belongs to several images: ")
    missing = f"{tmp_path}/c.d.xml: its image is missing: there is no c.d in {tmp_path} with one of"
    assert faults[1].startswith(f"{missing} .avif, .bmp, ")
    with pytest.raises(DatasetError, match=r"b\.xml: belongs to several images"):
        load_dataset(f"voc:{tmp_path}")
    assert len(load_dataset(f"voc:{tmp_path}", skip_bad=True).records) == 1


def test_a_folder_without_annotations_or_classes_is_an_error(tmp_path):
    write_image(tmp_path / "a.jpg")
    with pytest.raises(DatasetError, match="holds no XML annotations"):
        load_dataset(f"voc:{tmp_path}")
    write_xml(tmp_path / "a.xml", [])
    with pytest.raises(DatasetError, match=r"a\.xml: names no object"):
        load_dataset(f"voc:{tmp_path}")


@pytest.mark.real_data
def test_bccd_is_read_as_it_is(real_data):
    truth = by_element_tree(real_data / "BCCD/Annotations")
    ids = (real_data / "BCCD/ImageSets/Main/test.txt").read_text().split()
    assert read(f"voc:{real_data}/BCCD?split=test") == {
        image_id: truth[image_id] for image_id in ids
    }
    assert len(read(f"voc:{real_data}/BCCD")) == len(truth) == 364


@pytest.mark.real_data
def test_vocs_own_layout_gives_the_catalogs_boxes(real_data):
    path = load_dataset(f"voc:{real_data}/VOC2007?split=test")
    catalog = load_dataset("voc_2007_test", real_data)

    def content(dataset):
        classes = dataset.metadata.classes
        return [
            [(classes[a["category_id"]], a["bbox"], a["difficult"]) for a in r["annotations"]]
            for r in dataset.records
        ]

    assert content(path) == content(catalog)


# ---- YOLO

NAMES = ["helmet", "head"]


def write_yolo(root: Path, layout: str, content: dict, splits=("train", "valid")) -> None:
    """Three images per split, at ``layout`` with {split} and {kind} (images or labels)."""
    for split in splits:
        for name, objects in OBJECTS.items():
            image = root / layout.format(split=split, kind="images") / f"{split}_{name}.jpg"
            write_image(image)
            labels = root / layout.format(split=split, kind="labels") / f"{split}_{name}.txt"
            boxes = [
                (NAMES.index(label), (x0 - 1, y0 - 1, x1, y1))
                for label, (x0, y0, x1, y1) in objects
            ]
            if boxes:  # an image without objects has no file of labels
                write_labels(labels, boxes)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": NAMES} | content))


ROBOFLOW = {"train": "../train/images", "val": "../valid/images", "nc": 2}
ULTRALYTICS = {"path": ".", "train": "images/train", "val": ["images/valid"]}


@pytest.mark.parametrize(
    ("layout", "content"),
    [
        ("{split}/{kind}", ROBOFLOW),
        ("{split}/{kind}", {"train": "train/images", "val": "valid/images", "test": None}),
        ("{kind}/{split}", ULTRALYTICS | {"names": {0: "helmet", 1: "head"}}),
        ("{kind}/{split}", ULTRALYTICS | {"path": "/content/elsewhere"}),  # another machine's
        ("data/{kind}/{split}", ULTRALYTICS | {"path": "data"}),
        ("data/{kind}/{split}", {"path": "data", "train": "list.txt", "val": "images/valid"}),
    ],
)
def test_every_layout_of_yolo(tmp_path, layout, content):
    write_yolo(tmp_path, layout, content)
    if content["train"] == "list.txt":
        files = [f"./images/train/train_{name}.jpg\n" for name in OBJECTS]
        (tmp_path / "data/list.txt").write_text("".join(files))
    truth = {
        name: [(label, [x0 - 1, y0 - 1, x1, y1]) for label, (x0, y0, x1, y1) in objects]
        for name, objects in OBJECTS.items()
    }
    for query, splits in (
        ("?split=train", ["train"]),
        ("?split=val", ["valid"]),
        ("", ["train", "valid"]),
    ):
        found = read(f"yolo:{tmp_path}/data.yaml{query}")
        assert found.keys() == {f"{split}_{name}" for split in splits for name in OBJECTS}
        for image, objects in found.items():
            want = truth[image.partition("_")[2]]
            assert [label for label, _ in objects] == [label for label, _ in want]
            for (_, box), (_, wanted) in zip(objects, want):
                assert box == pytest.approx(wanted, abs=1e-3)
    dataset = load_dataset(f"yolo:{tmp_path}")
    assert dataset.metadata.classes == tuple(NAMES)
    assert len({record["image_id"] for record in dataset.records}) == 6


@pytest.fixture
def yolo(tmp_path):
    write_yolo(tmp_path, "{split}/{kind}", ROBOFLOW)
    return tmp_path


def test_labels_of_two_images_are_refused(yolo):
    write_image(yolo / "train/images/train_a.png")
    with pytest.raises(DatasetError, match=r"train_a\.txt: belongs to several images: .*a\.png"):
        load_dataset(f"yolo:{yolo}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2 is not one of 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not"),
        ("0 0.5 0.5 0.1", "has 4 numbers, neither 5 nor"),
        ("0 30 20 6 4", "its coordinates are not fractions"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.2 2 0.9 0.8 2", ".*keypoints need kpt_shape in data.yaml"),
        ("0 0.5 x 0.1 0.1", "could not convert"),
        ("0 0.5 nan 0.1 0.1", "is not finite"),
        ("0 0.5 0.5 0 0.1", "is empty"),
        ("0 1.5 0.5 0.1 0.1", "lies outside the image of 60 x 40 pixels"),
    ],
)
def test_a_damaged_label_is_named_and_costs_one_object(yolo, line, message):
    file = yolo / "train/labels/train_a.txt"
    file.write_text(f"1 0.5 0.5 0.2 0.2\n\n{line}\n")
    with pytest.raises(DatasetError, match=rf"train_a\.txt: line 3: .*{message}"):
        load_dataset(f"yolo:{yolo}")
    dataset = load_dataset(f"yolo:{yolo}", skip_bad=True)
    assert len(dataset.records) == 6 and len(dataset.skipped) == 1


def test_polygons_and_boxes_that_stick_out(yolo):
    file = yolo / "train/labels/train_a.txt"
    file.write_text("1 0.1 0.2 0.5 0.25 0.3 0.75\n0 0.95 0.5 0.2 0.5\n")
    polygon, clipped = read(f"yolo:{yolo}?split=train")["train_a"]
    assert polygon == ("head", pytest.approx([0.1 * 60, 0.2 * 40, 0.5 * 60, 0.75 * 40]))
    assert clipped == ("helmet", pytest.approx([0.85 * 60, 10, 60, 30]))
    report = check_dataset(f"yolo:{yolo}")
    assert report.faults == []
    assert any("line 2: its box extends beyond" in line for line in report.lines())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": None}, "names: give one name per class"),
        ({"names": {1: "helmet", 2: "head"}}, "names: give one name per class"),
        ({"kpt_shape": 17}, r"kpt_shape is 17: give the number of .*, such as \[17, 3\]"),
        ({"kpt_shape": [17, "3"]}, r"kpt_shape is \[17, '3'\]: give the number of"),
        ({"kpt_shape": [0, 3]}, r"kpt_shape is \[0, 3\]: give"),
        ({"names": ["head", "head"]}, r"data\.yaml: names two classes 'head': give each"),
        ({"names": {0: "1", 1: 1}}, "names two classes '1'"),
        ({"names": yaml.safe_load("[helmet, no]")}, "unquoted name as False: put .* in quotes"),
        ({"names": yaml.safe_load("{0: on, 1: helmet}")}, "unquoted name as True: put"),
        ({"names": yaml.safe_load("[helmet, ~]")}, "unquoted name as None: put"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
        ({"train": "../trian/images"}, "train: there is no .*trian/images"),
        ({"train": None, "val": None}, "names no images"),
    ],
)
def test_a_wrong_data_yaml_is_named(yolo, content, message):
    (yolo / "data.yaml").write_text(yaml.safe_dump({"names": NAMES} | ROBOFLOW | content))
    with pytest.raises(DatasetError, match=message):
        load_dataset(f"yolo:{yolo}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_text_files_of_yolo_are_read_in_unicode(yolo, encoding):
    (yolo / "train/images/train_a.jpg").rename(yolo / "train/images/größe.jpg")
    labels = (yolo / "train/labels/train_a.txt").read_text()
    (yolo / "train/labels/train_a.txt").unlink()
    (yolo / "train/labels/größe.txt").write_text(labels, encoding)
    (yolo / "list.txt").write_text("train/images/größe.jpg\n", encoding)
    content = {"names": ["größe", "head"], "train": "list.txt"}
    text = yaml.safe_dump(content, allow_unicode=True)
    (yolo / "data.yaml").write_text(text, encoding)
    found = read(f"yolo:{yolo}")
    assert [label for label, _ in found["größe"]] == ["größe", "head"]


@pytest.mark.parametrize("name", ["list.txt", "data.yaml", "train/labels/train_a.txt"])
def test_a_text_file_of_yolo_in_another_encoding_is_named(yolo, name):
    content = {"names": ["größe", "head"], "train": "list.txt"}
    (yolo / "data.yaml").write_text(yaml.safe_dump(content))
    (yolo / "list.txt").write_text("train/images/train_a.jpg\n")
    (yolo / name).write_text((yolo / name).read_text() + "# größe\n", "cp1252")
    (fault,) = check_dataset(f"yolo:{yolo}").faults
    assert fault.startswith(f"{yolo / name}: is not text in UTF-8 (byte ")
    assert fault.endswith("save it as UTF-8")


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_xml(tmp_path / "a.xml", OBJECTS["a"])
    write_coco(tmp_path / "a.json", {"a.jpg": []})
    for name, what in {
        f"voc:{tmp_path}/a.xml": "name the folder that holds the images and their XML files",
        f"folder:{tmp_path}/a.xml": "name the folder that holds one folder of images per class",
        f"coco:{tmp_path}/a.json?images={tmp_path}/a.xml": "name the folder that holds the images",
    }.items():
        (fault,) = check_dataset(name).faults
        assert fault == f"{name}: {tmp_path}/a.xml is a file: {what}"
    (fault,) = check_dataset(f"coco:{tmp_path}").faults
    assert fault == f"{tmp_path}: is a folder: name a JSON file"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_listed_unless_its_annotated_size_shows_what_its_boxes_mean(
    tmp_path, orientation
):
    exif = Image.Exif()
    exif[274] = orientation
    stored = SIZE if orientation < 5 else SIZE[::-1]  # so that it is upright with SIZE
    (tmp_path / "images").mkdir()
    Image.new("RGB", stored).save(tmp_path / "images/a.jpg", exif=exif)
    write_xml(tmp_path / "images/a.xml", [("head", (2, 3, 20, 30))])
    write_labels(tmp_path / "labels/a.txt", [(0, (1, 2, 20, 30))])
    (tmp_path / "data.yaml").write_text("names: [head]\ntrain: images\n")
    write_coco(tmp_path / "a.json", {"a.jpg": [(1, (1, 2, 19, 28))]})

    def listed(name):
        report = check_dataset(name)
        assert (report.faults, report.images, report.units) == ([], 1, 1)
        return [f"{tmp_path}/images/a.jpg: is turned upright by its EXIF orientation" in line
                for line in report.notes]  # fmt: skip

    voc, coco = f"voc:{tmp_path}/images", f"coco:{tmp_path}/a.json"
    assert listed(f"yolo:{tmp_path}") == [True] * (orientation > 1)
    assert listed(voc) == listed(coco) == [True] * (orientation in (2, 3, 4))
    for path, key in ((tmp_path / "images/a.xml", "width"), (tmp_path / "a.json", '"width"')):
        path.write_text(path.read_text().replace(key, key.replace("width", "breadth")))
    assert listed(voc) == listed(coco) == [True] * (orientation > 1)


def test_wrong_splits_and_absent_labels_of_yolo(yolo):
    with pytest.raises(DatasetError, match="has no split 'trian'; did you mean train"):
        load_dataset(f"yolo:{yolo}?split=trian")
    (yolo / "train/labels").rename(yolo / "train/texts")
    with pytest.raises(DatasetError, match=r"no image has labels: there is no .*train_a\.txt"):
        load_dataset(f"yolo:{yolo}?split=train")


@pytest.mark.parametrize(
    ("shape", "keypoints"), [([2, 2], "0.1 0.2 0.9 0.8"), ([2, 3], "0.1 0.2 2 0.9 0.8 1")]
)
def test_the_boxes_of_a_pose_set_are_read_without_its_keypoints(yolo, caplog, shape, keypoints):
    caplog.set_level("INFO", logger="resnet_det")
    content = ROBOFLOW | {"names": NAMES, "kpt_shape": shape}
    (yolo / "data.yaml").write_text(yaml.safe_dump(content))
    for file in yolo.rglob("*.txt"):
        file.write_text(f"1 0.5 0.5 0.2 0.4 {keypoints}\n0 0.25 0.5 0.5 1 {keypoints}\n")
    found = read(f"yolo:{yolo}?split=train")["train_a"]
    # Fractions of 60 x 40 pixels: centre (30, 20), size 12 x 16; then the left half.
    boxes = [("head", [24, 12, 36, 28]), ("helmet", [0, 0, 30, 40])]
    assert found == [(name, pytest.approx(box)) for name, box in boxes]
    assert "changed in reading: 4 objects read without their keypoints" in caplog.text
    assert "polygons" not in caplog.text
    for line in ("1 0.5 0.5 0.2 0.4", f"1 0.5 0.5 0.2 0.4 {keypoints} 0.5"):
        (yolo / "train/labels/train_a.txt").write_text(line)
        (fault,) = check_dataset(f"yolo:{yolo}?split=train").faults
        wanted = 5 + shape[0] * shape[1]
        assert f"line 1: has {len(line.split())} numbers, not {wanted}: class, box and" in fault


def test_labels_without_an_image_are_faults(yolo):
    (yolo / "train/images/train_a.jpg").rename(yolo / "train/images/train_a.heic")
    labels = yolo / "train/labels"
    (labels / "empty.txt").write_text("")  # of an image without objects
    (labels / "classes.txt").write_text("helmet\nhead\n")
    (labels / "numbers.txt").write_text("0\n1\n2\n3\n4\n5\n")
    (labels / "notes.txt").write_text("Labelled on 5 May.\n")
    missing = "its image is missing: there is no {} in " + f"{yolo}/train/images with one of .avif,"
    report = check_dataset(f"yolo:{yolo}")
    assert report.images == 5 and len(report.faults) == 2
    for fault, name in zip(report.faults, ("empty", "train_a")):
        assert fault.startswith(f"{labels}/{name}.txt: {missing.format(name)}")
    assert check_dataset(f"yolo:{yolo}?split=val").faults == []
    with pytest.raises(DatasetError, match=r"empty\.txt: its image is missing"):
        load_dataset(f"yolo:{yolo}")
    assert load_dataset(f"yolo:{yolo}", skip_bad=True).counts["skipped_images"] == 2


@pytest.mark.parametrize("images", ["", "photos"])
def test_labels_beside_the_images_need_their_image_too(tmp_path, images):
    write_yolo(tmp_path, images, {"train": images or "."}, splits=["train"])
    (tmp_path / "README.dataset.txt").write_text("Exported from a tool on 5 May 2026.\n")
    assert check_dataset(f"yolo:{tmp_path}").faults == []
    (tmp_path / images / "train_a.jpg").unlink()
    (fault,) = check_dataset(f"yolo:{tmp_path}").faults
    assert fault.startswith(f"{tmp_path / images}/train_a.txt: its image is missing")


def test_a_list_may_name_only_some_of_the_images_that_have_labels(yolo):
    content = ROBOFLOW | {"names": NAMES, "train": "list.txt"}
    (yolo / "data.yaml").write_text(yaml.safe_dump(content))
    (yolo / "list.txt").write_text("train/images/train_a.jpg\n")
    report = check_dataset(f"yolo:{yolo}?split=train")
    assert (report.faults, report.images, report.units) == ([], 1, 2)


def test_labels_stand_in_for_the_last_folder_of_images():
    assert label_file("/images/7/images/a/b.jpg") == "/images/7/labels/a/b.txt"
    assert label_file("/photos/a.jpg") == "/photos/a.txt"


@pytest.mark.real_data
def test_boxes_converted_to_yolo_come_back(real_data, tmp_path):
    """BCCD's boxes, written as fractions with six digits, are read to a hundredth of a pixel."""
    truth = load_dataset(f"voc:{real_data}/BCCD?split=test")
    for record in truth.records[:12]:
        path = Path(record["file_name"])
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / path.name).symlink_to(path)
        boxes = [(a["category_id"], a["bbox"]) for a in record["annotations"]]
        size = record["width"] / SIZE[0], record["height"] / SIZE[1]
        scaled = [(c, [v / size[i % 2] for i, v in enumerate(box)]) for c, box in boxes]
        write_labels(tmp_path / "labels" / f"{path.stem}.txt", scaled)
    content = {"names": list(truth.metadata.classes), "train": "images"}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    found = load_dataset(f"yolo:{tmp_path}").records
    assert len(found) == 12
    for mine, theirs in zip(found, truth.records):
        for a, b in zip(mine["annotations"], theirs["annotations"], strict=True):
            assert a["category_id"] == b["category_id"]
            assert a["bbox"] == pytest.approx(b["bbox"], abs=0.01)
