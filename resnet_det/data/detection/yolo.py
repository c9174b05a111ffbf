"""Read YOLO's labels, in Ultralytics' layout, as Detectron2's standard dicts."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ...hints import did_you_mean
from ...records import BoxMode, DatasetError, box_fault
from ..image_files import files_below
from ..pixels import ImageError, image_header
from ..specs import DetectionSpec, Metadata, Record, Scan

SPLITS = ("train", "val", "valid", "test")  # the keys of data.yaml that name images
MAX_BYTES = 2**20  # of data.yaml


@dataclass(frozen=True)
class YoloFolder(DetectionSpec):
    """A dataset that a ``data.yaml`` describes.

    Each of its keys train, val and test names folders of images, or files that list images, one per
    line. The labels of ``images/0001.jpg`` are in ``labels/0001.txt``, one object per line: the
    index of its class, then the centre and size of its box, or the corners of its polygon, in
    fractions of the image. An image without labels has no objects.

    Attributes:
        yaml_file: the file, or the folder that holds it.
        split: one of the keys; None for all of them.
    """

    yaml_file: str
    split: str | None = None

    def paths(self) -> list[str]:
        return [self.yaml_file]

    def scan(self, root: str) -> tuple[Metadata, Scan]:
        file = self.locate(root, self.yaml_file)
        file = os.path.join(file, "data.yaml") if os.path.isdir(file) else file
        content = _read_yaml(file)
        classes = _class_names(file, content)
        known = [key for key in SPLITS if content.get(key)]
        if self.split is not None and self.split not in known:
            hint = did_you_mean(self.split, known, list_all=True)
            raise DatasetError(self.name, f"{file} has no split {self.split!r}{hint}")
        base = self._base(root, file, content)
        images: dict[str, None] = {}  # an ordered set: splits may share images
        for key in [self.split] if self.split else known:
            entries = content[key] if isinstance(content[key], list) else [content[key]]
            for entry in entries:
                images |= dict.fromkeys(_images(file, key, base, entry))
        if not images:
            raise DatasetError(self.name, f"{file} names no images")
        labels = {image: label_file(image) for image in images}
        if not any(map(os.path.exists, labels.values())):
            first = next(iter(labels.values()))
            raise DatasetError(self.name, f"no image has labels: there is no {first}, for example")
        metadata = Metadata(self.name, classes, "coco", detectron2={"evaluator_type": "coco"})
        ids = {image: os.path.relpath(image, base) for image in images}
        scan = (read_record(ids[image], image, labels[image], len(classes)) for image in images)
        return metadata, scan

    def _base(self, root: str, file: str, content: dict[str, Any]) -> str:
        """The folder that the entries are relative to: ``path``, if it exists, else the file's."""
        own = os.path.dirname(file)
        path = str(content.get("path") or "")
        places = (os.path.join(own, path), self.locate(root, path))
        return next((os.path.normpath(place) for place in places if os.path.isdir(place)), own)


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as stream:
            content = yaml.safe_load(stream.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DatasetError(file, f"cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DatasetError(file, "has no keys: give names, train and val, as Ultralytics does")
    return content


def _class_names(file: str, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        try:
            names = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError):
            names = {}
        names = [names[key] for key in sorted(names)] if set(names) == {*range(len(names))} else []
    if not isinstance(names, list) or not names or any(isinstance(x, list | dict) for x in names):
        raise DatasetError(file, "names: give one name per class, as a list or from 0")
    if content.get("nc", len(names)) != len(names):
        raise DatasetError(file, f"nc is {content['nc']!r}, but there are {len(names)} names")
    return tuple(map(str, names))


def _images(file: str, key: str, base: str, entry: Any) -> list[str]:
    """The images that an entry names: a folder, or a file with one path per line."""
    places = [os.path.join(base, str(entry))]
    if str(entry).startswith("../"):  # Roboflow's entries are relative to a folder beside the file
        places.append(os.path.join(base, str(entry)[3:]))
    place = next(filter(os.path.exists, places), None)
    if place is None:
        raise DatasetError(file, f"{key}: there is no {os.path.normpath(places[0])}")
    place = os.path.normpath(place)
    if os.path.isdir(place):
        return list(files_below(place))
    with open(place, encoding="utf-8") as stream:
        lines = [line.strip() for line in stream]
    folder = os.path.dirname(place)
    return [os.path.normpath(os.path.join(folder, line)) for line in lines if line]


def label_file(image: str) -> str:
    """The path of an image's labels: the last folder ``images`` is replaced by ``labels``."""
    parts = os.path.splitext(image)[0].split(os.sep)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return os.sep.join(parts) + ".txt"


def read_record(
    image_id: str, image: str, labels: str, classes: int
) -> tuple[Record | None, list[DatasetError]]:
    """Read the labels of an image as a standard dict with absolute boxes. Returns the record, and
    the faults that were found; no record if the size of the image is unknown."""
    try:
        height, width, _ = image_header(image)
    except ImageError as error:
        return None, [error]
    record: Record = {"file_name": image, "image_id": image_id, "height": height, "width": width}
    record["annotations"] = []
    try:
        with open(labels, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return record, []
    except (OSError, UnicodeDecodeError) as error:
        return record, [DatasetError(labels, str(error))]
    faults = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, box = _read_line(line.split(), width, height, classes)
        except ValueError as error:
            faults.append(DatasetError(labels, f"line {number}: {error}"))
        else:
            record["annotations"].append(
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
            )
    return record, faults


def _read_line(
    words: Sequence[str], width: int, height: int, classes: int
) -> tuple[int, list[float]]:
    numbers = [float(word) for word in words]
    label, *where = numbers
    if label not in range(classes):
        raise ValueError(f"class {words[0]} is not one of 0 to {classes - 1}")
    if not all(map(math.isfinite, where)):
        raise ValueError("a coordinate is not finite")
    if len(where) == 4:
        x, y, w, h = where
        x0, y0, x1, y1 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    elif len(where) >= 6 and len(where) % 2 == 0:
        x0, y0, x1, y1 = min(where[::2]), min(where[1::2]), max(where[::2]), max(where[1::2])
    else:
        raise ValueError(f"has {len(words)} columns, neither 5 nor those of a polygon")
    if max(map(abs, where)) > 2:
        raise ValueError("coordinates are fractions of the image, from 0 to 1")
    box = [x0 * width, y0 * height, x1 * width, y1 * height]
    if fault := box_fault(box, width, height, slack=1.0):
        raise ValueError(f"its box {fault}")
    # Fractions are rounded, so a box at the border may cross it by less than one pixel.
    return int(label), [max(box[0], 0.0), max(box[1], 0.0), min(box[2], width), min(box[3], height)]
