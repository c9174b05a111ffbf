import contextlib
import io
import json
import logging
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from own_sets import write_coco, write_image
from PIL import Image
from pycocotools.coco import COCO

from resnet_det.commands import check_dataset as tool
from resnet_det.data import DATASETS, load_dataset
from resnet_det.data.classification import cifar10
from resnet_det.data.detection import coco, voc
from resnet_det.records import DatasetError


@pytest.fixture
def check(capsys):
    """Runs the tool in this process: ``check(root)`` gives (exit status, lines printed)."""

    def run(root, *options, name="voc_2007_trainval", workers=1):
        status = tool.main([name, "--root", str(root), "--workers", f"{workers}", *options])
        return status, capsys.readouterr().out.splitlines()

    return run


def test_sound(voc_folder, check):
    more = "<difficult>1</difficult>"
    both = voc_folder.object() + voc_folder.object(name="cat", more=more)
    voc_folder.annotate("000002", both)
    status, lines = check(voc_folder.root)
    assert status == 0
    assert lines[0] == "voc_2007_trainval: 2 images, 3 objects (the published set: 5011 images)"
    assert [line.split() for line in lines[1:]] == [
        ["cat", "1"], ["dog", "2"], ["of", "these,", "difficult", "1"]
    ]  # fmt: skip


def truncate(folder):
    path = folder.image("000001")
    path.write_bytes(path.read_bytes()[:900])
    return path, "truncated"


def remove_image(folder):
    folder.image("000001").unlink()
    return folder.image("000001"), "missing image file"


def not_an_image(folder):
    folder.image("000001").write_text("<html>")
    return folder.image("000001"), "not an image"


def other_size(folder):
    folder.annotate("000001", folder.object(), size=(40, 60))
    return folder.image("000001"), "is 60 x 40 pixels, but its annotation says 40 x 60"


def turned(folder, orientation=6):
    exif = Image.Exif()
    exif[274] = orientation
    path = folder.image("000001")
    Image.open(path).copy().save(path, exif=exif)
    return path, "is 40 x 60 pixels, but its annotation says 60 x 40, as stored before its EXIF"


def floats_of_another_range(folder):
    path = folder.image("000001")  # Pillow goes by the content, not by the name
    Image.fromarray(np.full((40, 60), 200, np.float32)).save(path, "TIFF")
    return path, "pixel mode F holds values from 200"


def remove_annotation(folder):
    folder.xml("000001").unlink()
    return folder.xml("000001"), "missing annotation file"


def malformed(folder):
    folder.xml("000001").write_text("<annotation>")
    return folder.xml("000001"), "malformed XML"


def outside(folder):
    folder.annotate("000001", folder.object((62, 3, 70, 40)))
    return folder.xml("000001"), "outside the image"


def inverted(folder):
    folder.annotate("000001", folder.object((9, 3, 2, 40)))
    return folder.xml("000001"), "inverted"


def unknown_class(folder):
    folder.annotate("000001", folder.object(name="dragon"))
    return folder.xml("000001"), "unknown class 'dragon'"


def duplicate(folder):
    folder.list.write_text("000001\n000002\n000001\n")
    return folder.list, "duplicate image id '000001'"


def no_list(folder):
    folder.list.unlink()
    return folder.list, "cannot be read: No such file"


FAULTS = [
    truncate, remove_image, not_an_image, other_size, floats_of_another_range, turned,
    remove_annotation, malformed, outside, inverted, unknown_class, duplicate, no_list,
]  # fmt: skip


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_fault(voc_folder, check, spoil):
    path, what = spoil(voc_folder)
    status, lines = check(voc_folder.root)
    assert status == 1
    assert lines[0].startswith(f"{path}: ") and what in lines[0]
    assert lines[-1] == "1 fault"


def test_the_classes_are_counted_in_spite_of_faults(voc_folder, check):
    remove_image(voc_folder)
    status, lines = check(voc_folder.root)
    assert status == 1 and [line.split() for line in lines[-2:]] == [["dog", "2"], ["1", "fault"]]


@pytest.mark.parametrize("workers", [1, 2])
def test_boxes_outside_because_of_a_wrong_size_are_not_listed(voc_folder, check, workers):
    objects = [voc_folder.object((x, 3, 55, 39)) for x in (10, 45)]
    objects.append(voc_folder.object(name="dragon"))
    voc_folder.annotate("000001", "".join(objects), size=(40, 40))
    _, lines = check(voc_folder.root, workers=workers)
    assert "object 3: unknown class 'dragon'" in lines[0]
    assert lines[1].endswith("is 60 x 40 pixels, but its annotation says 40 x 40")
    assert lines[-1] == "2 faults" and not any("the image of" in line for line in lines)


def test_images_that_are_not_found_are_not_counted_as_none(voc_folder, check):
    for number in ("000001", "000002"):
        voc_folder.image(number).unlink()
    name = f"voc:{voc_folder.xml('000001').parent.parent}"
    status, lines = check(voc_folder.root, name=name)
    assert status == 1 and all("its image is missing" in line for line in lines[:2])
    assert lines[2:] == [f"{name}: none of its images can be used", "2 faults"]


def test_a_share_without_images_is_a_fault(voc_folder, check, imagenet):
    boxes = f"voc:{voc_folder.dirname}?split=[99.9%:]"
    classes = f"folder:{imagenet}?split=[99.9%:]"
    for name in (boxes, classes):
        status, lines = check(voc_folder.root, name=name)
        assert (status, lines[0]) == (1, f"{name}: holds no image")
    with pytest.raises(DatasetError, match="holds no image"):
        load_dataset(boxes)


def test_what_is_odd_but_loaded_is_listed_and_no_fault(voc_folder, check):
    voc_folder.annotate("000001", voc_folder.object((2, 3, 70, 40)))
    turned(voc_folder, orientation=3)
    status, lines = check(voc_folder.root)
    assert status == 0
    box = "object 1: box [2, 3, 70, 40] extends beyond the image of 60 x 40 pixels"
    assert lines[0] == f"{voc_folder.xml('000001')}: {box} (loaded all the same)"
    assert lines[1].startswith(f"{voc_folder.image('000001')}: is turned upright by its EXIF")
    assert lines[2].startswith("voc_2007_trainval: 2 images, 2 objects")


def test_flags_are_not_counted_as_classes_of_their_name(tmp_path, check):
    write_image(tmp_path / "a.jpg")
    objects = [(1, (2, 3, 20, 20)), (2, (5, 6, 20, 20))]
    write_coco(tmp_path / "a.json", {"a.jpg": objects}, ("crowd", "person"))
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][1]["iscrowd"] = 1
    (tmp_path / "a.json").write_text(json.dumps(content))
    _, lines = check(tmp_path, name=f"coco:{tmp_path}/a.json")
    assert [line.split() for line in lines[-3:]] == [
        ["crowd", "1"], ["person", "1"], ["of", "these,", "crowds", "1"]
    ]  # fmt: skip


def test_fix_writes_what_is_sound(voc_folder, check, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    flags = "<difficult>1</difficult><truncated>0</truncated>"
    sound = voc_folder.object((1.5, 3, 70, 40), "cat", flags)
    voc_folder.annotate("000001", sound + voc_folder.object(name="dragon"))
    not_an_image(voc_folder)
    for number in (3, 4):
        voc_folder.add(f"00000{number}", sound + voc_folder.object(name="dragon"))
    voc_folder.xml("000004").write_text("<annotation>")
    clean = tmp_path / "clean.json"
    status, lines = check(voc_folder.root, "--fix", str(clean))
    assert status == 1 and lines[-2].startswith(f"wrote {clean}: 2 images; as a dataset, ")
    status, reread = check(tmp_path, name=lines[-2].split()[-1])
    assert status == 0 and "2 images, 2 objects" in " ".join(reread)
    listed = (tmp_path / "clean.faults.txt").read_text().splitlines()
    assert [Path(line.split(":")[0]).name for line in listed] == [
        "000001.xml", "000003.xml", "000004.xml", "000001.jpg",
    ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(clean)
    boxes = {
        api.imgs[a["image_id"]]["file_name"]: (api.cats[a["category_id"]]["name"], a["bbox"])
        for a in api.anns.values()
    }
    want = {"000002.jpg": ("dog", [1, 2, 29, 38]), "000003.jpg": ("cat", [0.5, 2, 59.5, 38])}
    assert boxes == want
    caplog.clear()
    classes, _, scan = coco.read(str(clean), str(voc_folder.dirname / "JPEGImages"))
    records, faults = zip(*scan)
    assert classes == voc.CLASSES and not any(faults) and not caplog.records
    assert records[1]["annotations"][0]["difficult"] == 1
    assert all(Path(record["file_name"]).exists() for record in records)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("clean.txt", "clean.txt: name a file that ends in .json"),
        ("clean", "clean: name a file that ends in .json"),
        ("taken.json", "taken.faults.txt: is a folder"),
        ("mine.json", "/mine.json: name another file"),
        ("coco/annotations/instances_val2017.json", "is a file of coco_2017_val: name another"),
    ],
)
def test_fix_refuses_its_path_before_the_check(tmp_path, monkeypatch, target, what):
    monkeypatch.setattr(tool, "check_dataset", lambda *_: pytest.fail("reads the dataset"))
    (tmp_path / "taken.faults.txt").mkdir()
    official = tmp_path / "coco/annotations/instances_val2017.json"
    official.parent.mkdir(parents=True)
    for file in (official, tmp_path / "mine.json"):
        file.write_text("{}")
    with pytest.raises(ValueError, match=re.escape(what)):
        mine = f"coco:{tmp_path}/mine.json"
        tool.main([mine, "--root", str(tmp_path), "--fix", str(tmp_path / target)])
    assert official.read_text() == (tmp_path / "mine.json").read_text() == "{}"


def test_fix_keeps_a_list_of_the_same_name(voc_folder, check, tmp_path):
    (tmp_path / "train.txt").write_text("images/a.jpg\n")
    assert check(voc_folder.root, "--fix", str(tmp_path / "train.json"))[0] == 0
    assert (tmp_path / "train.txt").read_text() == "images/a.jpg\n"
    assert (tmp_path / "train.faults.txt").read_text() == ""


def test_fix_keeps_ids(tmp_path, check):
    photograph(tmp_path / "coco/val2017/1.jpg")
    content = {
        "images": [{"id": 12, "file_name": "1.jpg", "height": 6, "width": 8}],
        "annotations": [{"id": 5, "image_id": 12, "category_id": 90, "bbox": [1, 2, 3, 3],
                         "area": 7.5, "iscrowd": 1}],
        "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
    }  # fmt: skip
    path = tmp_path / "coco/annotations/instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    assert check(tmp_path, "--fix", str(tmp_path / "it.json"), name="coco_2017_val")[0] == 0
    fixed = json.loads((tmp_path / "it.json").read_text())
    assert fixed["images"] == content["images"]
    assert fixed["annotations"] == [content["annotations"][0] | {"id": 1}]
    assert sorted(fixed["categories"], key=str) == sorted(content["categories"], key=str)


def test_fix_needs_boxes(imagenet, check, capsys, monkeypatch):
    monkeypatch.setattr(tool, "check_dataset", lambda *_: pytest.fail("the images were read"))
    with pytest.raises(SystemExit):
        check(imagenet.parents[1], "--fix", "it.json", name="imagenet_val")
    assert (
        "'imagenet_val' is a dataset for classification, not detection" in capsys.readouterr().err
    )


def test_all_faults_are_listed_at_once(voc_folder, check):
    voc_folder.annotate("000001", voc_folder.object((9, 3, 2, 40)) + voc_folder.object(name="x"))
    voc_folder.image("000001").unlink()  # the image of a bad annotation is read as well
    voc_folder.xml("000002").unlink()
    status, lines = check(voc_folder.root)
    assert status == 1
    assert lines[-1] == "4 faults"


def test_coco_faults(tmp_path, check):
    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    path = folder / "instances_val2017.json"
    path.write_text(
        '{"images": [{"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}], "annotations": ['
        '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0, 5]},'
        '{"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 5, 5]}],'
        '"categories": [{"id": 1, "name": "dog"}]}'
    )
    status, lines = check(tmp_path, name="coco_2017_val")
    assert status == 1
    assert lines[:3] == [
        f"{path}: annotation 2: unknown image_id 7",
        f"{path}: annotation 1 of image 1: bbox [0, 0, 0, 5] is empty (no width or no height)",
        f"{tmp_path / 'coco' / 'val2017' / '1.jpg'}: missing image file",
    ]
    path.write_text("{")
    status, lines = check(tmp_path, name="coco_2017_val")
    assert status == 1 and "malformed json" in lines[0]


def test_in_parallel(voc_folder, check):
    status, lines = check(voc_folder.root, workers=2)
    assert status == 0
    assert lines[0] == "voc_2007_trainval: 2 images, 2 objects (the published set: 5011 images)"
    voc_folder.image("000002").unlink()
    status, lines = check(voc_folder.root, workers=2)
    assert status == 1 and "000002.jpg: missing image file" in lines[0]


def test_unknown_name(capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(["voc_2007_trianval"])
    assert caught.value.code == 2
    assert "did you mean voc_2007_trainval" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(["imagenet_vall"])
    assert "did you mean imagenet_val" in capsys.readouterr().err


def photograph(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path)
    return path


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Two classes of two and one validation images, as if ImageNet had three images."""
    small = replace(DATASETS["imagenet_val"], published=3, published_classes=2)
    monkeypatch.setitem(DATASETS, "imagenet_val", small)
    for name in ("n01/a.JPEG", "n01/b.JPEG", "n02/c.JPEG"):
        photograph(tmp_path / "imagenet/val" / name)
    return tmp_path / "imagenet/val"


def test_classification_set(imagenet, check):
    root = imagenet.parents[1]
    assert check(root, name="imagenet_val") == (
        0,
        ["imagenet_val: 3 images, 2 classes", "  1 to 2 images per class"],
    )
    (imagenet / "n01/a.JPEG").write_bytes((imagenet / "n01/a.JPEG").read_bytes()[:300])
    (imagenet / "n02/c.JPEG").rename(imagenet / "n02/c.txt")
    status, lines = check(root, name="imagenet_val")
    assert status == 1 and lines[-1] == "3 faults"
    assert lines[0].startswith(f"{imagenet}/n02: holds no image")
    assert lines[1].startswith(f"{imagenet}/n01/a.JPEG: ")
    assert lines[2] == f"{imagenet}: holds 2 images of 2 classes, the published set 3 of 2"
    Image.fromarray(np.zeros((6, 8), np.int32)).save(imagenet / "n01/a.JPEG", "TIFF")
    assert f"{imagenet}/n01/a.JPEG: pixel mode I " in check(root, name="imagenet_val")[1][1]
    status, lines = check(root, name="imagenet_train")
    missing = "does not exist: it should hold one folder per class"
    assert status == 1 and lines[0] == f"{root}/imagenet/train: {missing}"


def test_shards(tmp_path, check):
    pytest.importorskip("webdataset")
    folder = tmp_path / "imagenet_shards"
    folder.mkdir()
    (folder / "classes.txt").write_text("n01\nn02\n")
    image = photograph(tmp_path / "a.jpg").read_bytes()
    for number, label in enumerate((b"0", b"7")):
        with tarfile.open(folder / f"val-{number}.tar", "w") as tar:
            for name, content in (("a.jpg", image[: -200 * number or None]), ("a.cls", label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with tarfile.open(folder / "val-2.tar", "w") as tar:
        tar.add(tmp_path / "a.jpg", "only.jpg")
    status, lines = check(tmp_path, name="imagenet_val_shards")
    assert status == 1 and lines[-1] == "5 faults"
    assert f"{folder}/val-1.tar: a: " in lines[0] and "truncated" in lines[0].lower()
    assert lines[1:] == [
        f"{folder}/val-1.tar: a: its .cls is 7, not 0 to 1",
        f"{folder}/val-2.tar: only: lacks its .jpg or its .cls",
        f"{folder}: holds 2 images of 2 classes, the published set 50,000 of 1,000",
        f"{folder}: n02: no image has this class (label 1)",
        "imagenet_val_shards: 2 images, 2 classes",
        "  0 to 1 images per class",
        "5 faults",
    ]


def test_cifar10(tmp_path, check, monkeypatch):
    monkeypatch.setattr(cifar10, "PER_FILE", 20)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rows = np.zeros((20, 3073), np.uint8)
    rows[:, 0] = np.arange(20) % 10
    (folder / "test_batch.bin").write_bytes(rows.tobytes())
    assert check(tmp_path, name="cifar10_test") == (
        0,
        ["cifar10_test: 20 images, 10 classes", "  2 to 2 images per class"],
    )
    rows[0, 0] = 1
    (folder / "test_batch.bin").write_bytes(rows.tobytes())
    status, lines = check(tmp_path, name="cifar10_test")
    assert status == 1 and lines[:2] == [
        f"{tmp_path}: CIFAR-10: 1 of 20 images have the class airplane",
        f"{tmp_path}: CIFAR-10: 3 of 20 images have the class automobile",
    ]
    (folder / "test_batch.bin").write_bytes(b"short")
    status, lines = check(tmp_path, name="cifar10_test")
    assert status == 1 and "test_batch.bin: has 5 bytes" in lines[0]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["voc_2007_test", "coco_2017_val"])
def test_real_photographs_are_sound(real_data, check, name):
    status, lines = check(real_data, name=name)
    assert status == 0, lines
