"""Every spoilt input of bad_data.py gives its error with the file's name, or its handling."""

import re
import socket

import numpy as np
import pytest
from bad_data import EITHER, EVERYTHING, OK, encoded, picture

from resnet_det.data import DATASETS, DatasetError, load_dataset
from resnet_det.data.classification.image_folder import ImageFolder
from resnet_det.data.classification.small_images import SmallImages
from resnet_det.data.detection.mapper import DetectionMapper


def read_image(root, content):
    """Read a file like a detector's training image."""
    (root / "spoilt.jpg").write_bytes(content)
    mapper = DetectionMapper(16, 32, train=True)
    record = {"file_name": str(root / "spoilt.jpg"), "image_id": 1, "annotations": []}
    sample = mapper(record, np.random.default_rng(0))
    assert {sample["width"], sample["height"]} == {24, 16}  # EXIF may turn it


def read_detection(root, name):
    """Annotations, then what a training run reads of each image."""
    mapper = DetectionMapper(16, 32, train=True)
    for record in load_dataset(name, root).records:
        sample = mapper(record, np.random.default_rng(0))
        assert sample["boxes"].isfinite().all()
        boxes = sample["boxes"]
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()


def read_xml(root, content):
    voc = root / "VOC2007"
    for part in ("JPEGImages", "ImageSets/Main", "Annotations"):
        (voc / part).mkdir(parents=True)
    (voc / "ImageSets/Main/trainval.txt").write_text("spoilt\n")
    (voc / "JPEGImages/spoilt.jpg").write_bytes(encoded(picture(), "JPEG"))
    (voc / "Annotations/spoilt.xml").write_bytes(content)
    read_detection(root, "voc_2007_trainval")


def read_json(root, content):
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/val2017").mkdir()
    for name in "ab":
        (root / f"coco/val2017/{name}.jpg").write_bytes(encoded(picture(), "JPEG"))
    (root / "coco/annotations/instances_val2017.json").write_bytes(content)
    read_detection(root, "coco_2017_val")


def read_folder(root, files):
    for name, content in files.items():
        path = root / "classes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)
    data = SmallImages.read("spoilt_classes", "BGR", root)
    assert len(data) == sum(name.lower().endswith((".png", ".jpg")) for name in files)


READERS = {"image": read_image, "xml": read_xml, "json": read_json, "folder": read_folder}


def test_the_corpus_is_large():
    assert len(EVERYTHING) >= 200
    assert len({(kind, name) for kind, name, *_ in EVERYTHING}) == len(EVERYTHING)


@pytest.mark.parametrize("kind", READERS)
def test_each_gives_its_error_or_its_handling(kind, tmp_path, monkeypatch):
    """One test per kind of file; the failure lists all cases with a wrong outcome."""
    monkeypatch.setitem(DATASETS, "spoilt_classes", ImageFolder("spoilt_classes", "classes"))
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("opens a connection"))
    wrong = []
    for number, (of, name, content, outcome) in enumerate(EVERYTHING):
        if of != kind:
            continue
        root = tmp_path / str(number)
        root.mkdir()
        content = content.encode() if isinstance(content, str) else content
        try:
            READERS[kind](root, content)
            said = OK
        except DatasetError as error:
            said = str(error)
        except Exception as error:  # noqa: BLE001  (a crash is what is looked for)
            wrong.append((name, f"crash: {type(error).__name__}: {error}"))
            continue
        if OK in (said, outcome):
            fine = said == outcome or outcome == EITHER
        else:
            fine = str(root) in said and (outcome == EITHER or re.search(outcome, said))
        if not fine:
            wrong.append((name, said[:300]))
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong)
