"""Read YOLO's labels, in Ultralytics' layout, as Detectron2's standard dicts."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ...hints import did_you_mean
from ...records import BoxMode, DatasetError
from ..check import SIZE_OF_IMAGE, image_of
from ..image_files import files_below, no_image
from ..pixels import ImageError, image_header
from ..specs import DetectionSpec, Metadata, Record, Scan, check_unique
from ..text_files import read_text
from .fields import CLIPPED, KEYPOINTS, around, inside, log_changes

SPLITS = ("train", "val", "valid", "test")  # the keys of data.yaml that name images
LONGEST_YAML = 2**20  # characters of data.yaml


@dataclass(frozen=True)
class YoloFolder(DetectionSpec):
    """A dataset that a ``data.yaml`` describes.

    Each of its keys train, val and test names folders of images, or files that list images, one per
    line. The labels of ``images/0001.jpg`` are in ``labels/0001.txt``, one object per line: the
    index of its class, then the centre and size of its box, or the corners of its polygon, in
    fractions of the image. With the key ``kpt_shape``, keypoints follow each box, which are
    ignored. An image without labels has no objects.

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
        keypoints = _keypoint_numbers(file, content)
        base = self._base(root, file, content)
        places = [
            _place(file, key, base, str(entry))
            for key in ([self.split] if self.split else known)
            for entry in (content[key] if isinstance(content[key], list) else [content[key]])
        ]
        # Splits may share images, so these are an ordered set.
        images = dict.fromkeys(itertools.chain.from_iterable(map(_images, places)))
        if not images:
            raise DatasetError(self.name, f"{file} names no images")
        labels = {image: label_file(image) for image in images}
        if not any(map(os.path.exists, labels.values())):
            first = next(iter(labels.values()))
            raise DatasetError(self.name, f"no image has labels: there is no {first}, for example")
        metadata = Metadata(self.name, classes, "coco", detectron2={"evaluator_type": "coco"})
        files = [(os.path.relpath(image, base), image, labels[image]) for image in images]
        faults = _labels_without_image(places, set(labels.values())) + _shared_labels(labels)
        unread: Scan = [(None, faults)] if faults else []
        return metadata, itertools.chain(unread, read_images(files, len(classes), keypoints))

    def _base(self, root: str, file: str, content: dict[str, Any]) -> str:
        """The folder that the entries are relative to: ``path``, if it exists, else the file's."""
        own = os.path.dirname(file)
        path = str(content.get("path") or "")
        places = (os.path.join(own, path), self.locate(root, path))
        return next((os.path.normpath(place) for place in places if os.path.isdir(place)), own)


def _read_yaml(file: str) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = yaml.safe_load(text[:LONGEST_YAML])
    except (ValueError, RecursionError, yaml.YAMLError) as error:
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
    for name in names:
        if name is None or isinstance(name, bool):  # unquoted null, ~, yes, no, on or off
            what = f"names: YAML reads an unquoted name as {name}: put the name in quotes"
            raise DatasetError(file, what)
    if content.get("nc", len(names)) != len(names):
        raise DatasetError(file, f"nc is {content['nc']!r}, but there are {len(names)} names")
    classes = tuple(map(str, names))
    check_unique(file, classes)
    return classes


def _keypoint_numbers(file: str, content: dict[str, Any]) -> int:
    """How many numbers a line has for its keypoints, after the box."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    numbers = shape if isinstance(shape, list) else []
    if len(numbers) != 2 or not all(type(n) is int and n > 0 for n in numbers):
        what = f"kpt_shape is {shape!r}: give the number of keypoints and of numbers for each"
        raise DatasetError(file, f"{what}, such as [17, 3]")
    return numbers[0] * numbers[1]


def _place(file: str, key: str, base: str, entry: str) -> str:
    """The path of an entry of ``data.yaml``."""
    places = [os.path.join(base, entry)]
    if entry.startswith("../"):  # Roboflow's entries are relative to a folder beside the file
        places.append(os.path.join(base, entry[3:]))
    place = next(filter(os.path.exists, places), None)
    if place is None:
        raise DatasetError(file, f"{key}: there is no {os.path.normpath(places[0])}")
    return os.path.normpath(place)


def _images(place: str) -> list[str]:
    """The images in a folder, or those that a file lists, one path per line."""
    if os.path.isdir(place):
        return list(files_below(place))
    lines = [line.strip() for line in read_text(place).split("\n")]
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


# A line with a class and a box. Tools also put class names and notes beside the labels.
_LABEL = re.compile(r"^[ \t]*([-+.eE\d]+[ \t]+){4}[-+.eE\d]", re.MULTILINE)


def _labels_without_image(places: Iterable[str], known: Collection[str]) -> list[DatasetError]:
    """The faults of labels that belong to no image of the folders among ``places``. A list may name
    only some of the images that have labels.

    Args:
        known: the labels that belong to an image.
    """
    faults = {}  # by path, because splits may share folders
    for place in filter(os.path.isdir, places):
        folder = os.path.dirname(label_file(os.path.join(place, "image.jpg")))
        for path in files_below(folder, [".txt"]):
            if path not in known and _holds_labels(path):
                stem = os.path.splitext(os.path.basename(path))[0]
                faults[path] = DatasetError(path, no_image(stem, place))
    return list(faults.values())


def _shared_labels(labels: Mapping[str, str]) -> list[DatasetError]:
    """The faults of labels that belong to several images, such as to 1.jpg and 1.png.

    Args:
        labels: image -> its labels.
    """
    images: dict[str, list[str]] = {}
    for image, path in labels.items():
        images.setdefault(path, []).append(image)
    return [
        DatasetError(path, f"belongs to several images: {', '.join(found)}")
        for path, found in images.items()
        if len(found) > 1 and os.path.exists(path)
    ]


def _holds_labels(path: str) -> bool:
    """Whether a text file holds labels; those of an image without objects are empty."""
    try:
        text = read_text(path)
    except DatasetError:  # it may be notes in any encoding
        return False
    return not text.strip() or bool(_LABEL.search(text))


def read_images(
    files: Iterable[tuple[str, str, str]], classes: int, keypoints: int = 0
) -> Iterator[tuple[Record | None, list[DatasetError]]]:
    """Read images and their labels. The log says what had to be changed.

    Args:
        files: ``(image id, image, labels)``: paths.
        classes: number of classes.
        keypoints: how many numbers follow each box, for its keypoints.

    Yields:
        ``(record, faults)``: a standard dict with absolute boxes, and the list of the faults found
        in it; no record if the image's size is unknown.
    """
    changes: Counter[str] = Counter()
    labels = ""
    for image_id, image, labels in files:
        try:
            height, width, _ = image_header(image)
        except ImageError as error:
            yield None, [error]
            continue
        objects, faults = _read_labels(labels, width, height, classes, keypoints, changes)
        yield (
            {
                "file_name": image,
                "image_id": image_id,
                "height": height,
                "width": width,
                SIZE_OF_IMAGE: True,
                "annotations": objects,
            },
            faults,
        )
    log_changes(os.path.dirname(labels), changes)


def _read_labels(
    path: str, width: int, height: int, classes: int, keypoints: int, changes: Counter[str]
) -> tuple[list[dict[str, Any]], list[DatasetError]]:
    """The annotations in a file of labels, which may be absent, and the faults found in it."""
    if not os.path.exists(path):
        return [], []
    try:
        lines = read_text(path).splitlines()
    except DatasetError as fault:
        return [], [fault]
    objects, faults = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            label, box = _read_line(words, width, height, classes, keypoints, changes)
            bbox = inside(box, width, height, slack=1.0)  # fractions are rounded
        except ValueError as error:
            faults.append(DatasetError(path, f"line {number}: {error}", costs="object"))
            continue
        if bbox is not box:
            changes[CLIPPED] += 1
            what = f"line {number}: its box extends beyond {image_of(width, height)}"
            faults.append(DatasetError(path, what, costs="nothing"))
        objects.append(
            {"bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": 0}
        )
    return objects, faults


def _read_line(
    words: Sequence[str],
    width: int,
    height: int,
    classes: int,
    keypoints: int,
    changes: Counter[str],
) -> tuple[int, list[float]]:
    """The class and the box of an object, in pixels. Raises ValueError if the line is malformed."""
    label, *where = map(float, words)
    if label not in range(classes):
        raise ValueError(f"class {words[0]} is not one of 0 to {classes - 1}")
    if keypoints:
        if len(where) != 4 + keypoints:
            wanted = f"{5 + keypoints}: class, box and the keypoints of kpt_shape"
            raise ValueError(f"has {len(words)} numbers, not {wanted}")
        where = where[:4]
        changes[KEYPOINTS] += 1
    if any(abs(value) >= 2 for value in where):
        hint = "; keypoints need kpt_shape in data.yaml" if len(where) > 4 else ""
        what = "its coordinates are not fractions of the image's width and height"
        raise ValueError(what + hint)
    if len(where) == 4:
        x, y, w, h = where
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    elif len(where) >= 6 and len(where) % 2 == 0:
        box = around(where[::2], where[1::2], changes)
    else:
        raise ValueError(f"has {len(words)} numbers, neither 5 nor those of a polygon")
    x0, y0, x1, y1 = box
    return int(label), [x0 * width, y0 * height, x1 * width, y1 * height]
