"""Read COCO instances JSON as Detectron2's standard dicts."""

import contextlib
import itertools
import json
import mmap
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...download import how_to_get
from ...files import write_whole
from ...records import BoxMode, DatasetError, path_inside
from ..check import SIZE_OF_IMAGE, image_of
from ..pixels import ImageError, image_header
from ..specs import Dataset, DetectionSpec, Metadata, Record, Scan, check_unique
from ..text_files import not_utf8
from .fields import (
    CLIPPED,
    SIZES,
    around,
    check_pixels,
    inside,
    is_side,
    log_changes,
    read_flag,
    read_number,
    read_whole,
)

# In train2014 and train2017, each of these two images has one object whose box has no height
# (github.com/cocodataset/cocoapi issue 355). These are the only such boxes in the official files.
_KNOWN_EMPTY = {200365, 550395}

_VOC_FLAGS = {"difficult", "truncated"}  # not COCO's, but kept when VOC's annotations become COCO's


@dataclass(frozen=True)
class CocoJson(DetectionSpec):
    """A dataset in COCO's format: a folder of images and a JSON file.

    Attributes:
        image_root: the folder; None looks for it near the file (:func:`find_images`).
        annotated: False for an image_info file, which has no annotations.
        official, repeated_ids: see :func:`read`.
    """

    image_root: str | None
    json_file: str
    annotated: bool = True
    official: bool = True
    repeated_ids: bool = False

    def paths(self) -> list[str]:
        return [*filter(None, [self.image_root]), self.json_file]

    def count(self, root: str) -> int | None:
        """Number of JPEG files in the image folder."""
        if self.image_root is None:
            return None
        files = os.listdir(self.locate(root, self.image_root))
        return sum(file.endswith(".jpg") for file in files)

    def scan(self, root: str) -> tuple[Metadata, Scan]:
        json_file = self.locate(root, self.json_file)
        images = self.image_root
        image_root = find_images(json_file) if images is None else self.locate(root, images)
        self.check_folder(image_root, "that holds the images")
        classes, ids, scan = read(json_file, image_root, self.official, self.repeated_ids)
        detectron2: dict[str, Any] = {"evaluator_type": "coco"}
        if not self.own:  # Detectron2's evaluator would read all classes and images of the file
            detectron2 |= {
                "json_file": json_file,
                "image_root": image_root,
                "thing_dataset_id_to_contiguous_id": {id: i for i, id in enumerate(ids)},
            }
        metadata = Metadata(
            self.name,
            classes,
            "coco",
            self.annotated,
            category_ids=ids,
            detectron2=detectron2,
        )
        return metadata, scan


def find_images(json_file: str) -> str:
    """The folder of a file's images: its own folder, or ``images/`` there or one folder higher,
    whichever has one of the first images that the file names.

    Raises:
        DatasetError: none of these folders has.
    """
    own = os.path.dirname(json_file)
    folders = [own, os.path.join(own, "images"), os.path.normpath(os.path.join(own, "../images"))]
    try:
        with (
            open(json_file, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as m,
        ):
            found = itertools.islice(re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', m), 10)
            names = [json.loads(match[1]) for match in found]
    except (OSError, ValueError):  # ``read`` says what is wrong with the file
        return own
    for folder in folders:
        if not names or any(_is_file(folder, name) for name in names):
            return folder
    what = f"its images, such as {names[0]}, are in none of {', '.join(folders)}"
    raise DatasetError(json_file, f"{what}: name their folder with ?images=FOLDER")


def _is_file(folder: str, name: str) -> bool:
    try:
        return os.path.isfile(path_inside(folder, name))
    except ValueError:  # ``read`` reports the name
        return False


def read(
    json_file: str, image_root: str, official: bool = False, repeated_ids: bool = False
) -> tuple[tuple[str, ...], tuple[int, ...], Scan]:
    """Read an instances or image_info JSON file.

    Args:
        json_file: path of the file.
        image_root: folder of the images.
        official: whether this is COCO's own file, whose two published faults are known.
        repeated_ids: allow repeated annotation ids, which the minival files of 2014 have.

    Returns:
        ``(classes, category_ids, scan)``: the class names in the order of their ids, the original
        ids, and an iterator of ``(record, faults)`` in the order of the image ids. Boxes are XYWH.
        ``category_id`` is contiguous. ``area`` is the file's, or width times height if the file has
        none. ``record`` is None for a fault that belongs to no image. The log says what had to be
        changed.

    Raises:
        DatasetError: the file is missing, is not JSON, or lacks images or categories.
    """
    data = _load(json_file)
    reader = _Reader(data, json_file, image_root, official, repeated_ids)
    categories = reader.categories()
    ids = tuple(sorted(categories))
    return tuple(categories[id] for id in ids), ids, reader.scan(ids)


def _load(json_file: str) -> dict[str, Any]:
    try:
        with open(json_file, "rb") as file:
            data = json.load(file, object_pairs_hook=_unique_keys)
    except IsADirectoryError:
        raise DatasetError(json_file, "is a folder: name a JSON file") from None
    except OSError as error:
        what = f"cannot read the annotations ({error.strerror}); {how_to_get(json_file)}"
        raise DatasetError(json_file, what) from None
    except UnicodeDecodeError as error:
        raise DatasetError(json_file, not_utf8(error)) from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(json_file, f"malformed json: {error}") from None
    if not isinstance(data, dict):
        raise DatasetError(json_file, "not an object with 'images', 'annotations', 'categories'")
    data.setdefault("annotations", [])  # image_info_test*.json has none
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            raise DatasetError(json_file, f"no list {key!r}")
    if not data["images"]:
        raise DatasetError(json_file, "'images' is empty")
    return data


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


@dataclass
class _Reader:
    """Reads the content of a file, see :func:`read`.

    Attributes:
        changes: what had to be changed -> how often.
    """

    data: dict[str, Any]
    json_file: str
    image_root: str
    official: bool
    repeated_ids: bool
    changes: Counter[str] = field(default_factory=Counter)

    def categories(self) -> dict[int, str]:
        """The name of each class, by its id.

        Raises:
            DatasetError: there are none, an entry is invalid, or two have one name.
        """
        names: dict[int, str] = {}
        parents = {}
        for entry in self.data["categories"]:
            try:
                id = self._whole(entry, "id")
                name = _text(entry, "name")
                if id in names:
                    raise ValueError(f"duplicate category id {id}")
            except ValueError as error:
                what = f"'categories' has an invalid entry: {error}"
                raise DatasetError(self.json_file, what) from None
            names[id], parents[id] = name, str(entry.get("supercategory"))
        if not names:
            raise DatasetError(self.json_file, "'categories' is empty")
        # Roboflow writes the project as category 0 and as the supercategory of all classes.
        above = {parent for id, parent in parents.items() if id != 0}
        if 0 in names and above == {names[0]} and not self._is_used(0):
            del names[0]
            self.changes["unused root categories left out"] += 1
        check_unique(self.json_file, [*names.values()])
        return names

    def _is_used(self, category: int) -> bool:
        entries = (entry for entry in self.data["annotations"] if isinstance(entry, dict))
        return any(entry.get("category_id") in (category, str(category)) for entry in entries)

    def scan(self, category_ids: Sequence[int]) -> Scan:
        found: dict[int, tuple[Record, list[DatasetError]]] = {}  # by image id
        stray: list[DatasetError] = []  # faults that belong to no image
        for image in self.data["images"]:
            try:
                new = self._image(image)
            except ValueError as error:
                stray.append(DatasetError(self.json_file, f"image {_name(image)}: {error}"))
                continue
            known, faults = found.setdefault(new["image_id"], (new, []))
            if known is not new:
                what = f"duplicate image id {new['image_id']}"
                faults.append(DatasetError(self.json_file, what))

        contiguous = {id: index for index, id in enumerate(category_ids)}
        free_ids = self._free_ids()
        seen: set[int] = set()
        for entry in self.data["annotations"]:
            record: Record | None = None
            faults = stray
            try:
                image_id = self._whole(entry, "image_id")
                if image_id not in found:
                    raise ValueError(f"unknown image_id {image_id}")
                record, faults = found[image_id]
                if entry.get("id") is None:
                    self.changes["annotations without an id"] += 1
                    id = next(free_ids)
                else:
                    id = self._whole(entry, "id")
                if id in seen and not self.repeated_ids:
                    raise ValueError("duplicate annotation id")
                seen.add(id)
                annotation, note = self._object(entry, id, contiguous, record)
            except ValueError as error:
                faults.append(self._object_fault(entry, record, error))
                continue
            record["annotations"].append(annotation)
            if note:
                what = f"annotation {id} of image {image_id}: {note}"
                faults.append(DatasetError(self.json_file, what, costs="nothing"))

        if stray:
            yield None, stray
        for image_id in sorted(found):
            yield found[image_id]
        log_changes(self.json_file, self.changes)

    def _object_fault(self, entry: Any, record: Record | None, error: ValueError) -> DatasetError:
        where, known = f"annotation {_name(entry)}", False
        if record is not None:
            where += f" of image {record['image_id']}"
            empty = "is empty" in str(error)
            known = self.official and empty and record["image_id"] in _KNOWN_EMPTY
        return DatasetError(self.json_file, f"{where}: {error}", known, costs="object")

    def _free_ids(self) -> Iterator[int]:
        """Ids above those of all annotations."""
        used = 0
        for entry in self.data["annotations"]:
            with contextlib.suppress(ValueError):
                used = max(used, read_whole(_value(entry, "id"), "id", Counter()))
        yield from itertools.count(used + 1)

    def _whole(self, entry: Any, key: str) -> int:
        return read_whole(_value(entry, key), key, self.changes)

    def _image(self, image: Any) -> Record:
        """Raises ValueError if the image is unusable."""
        id = self._whole(image, "id")
        file = path_inside(self.image_root, _text(image, "file_name"))
        height, width = image.get("height"), image.get("width")
        new: Record = {"file_name": file, "image_id": id}
        if not (is_side(height) and is_side(width)):
            try:
                height, width, _ = image_header(file)
            except ImageError as error:
                raise ValueError(f"has no valid height and width, and {error}") from None
            self.changes[SIZES] += 1
            new[SIZE_OF_IMAGE] = True
        return new | {"height": height, "width": width, "annotations": []}

    def _object(
        self, entry: dict[str, Any], id: int, contiguous: dict[int, int], record: Record
    ) -> tuple[dict[str, Any], str]:
        """Returns the annotation, and a note if its box had to be clipped."""
        category = self._whole(entry, "category_id")
        if category not in contiguous:
            raise ValueError(f"unknown category_id {category}")
        bbox, note = self._bbox(entry, record["width"], record["height"])
        area = entry.get("area")
        if area is None:
            self.changes["areas computed from boxes"] += 1
            area = bbox[2] * bbox[3]
        area = float(read_number(area, "area", self.changes))
        if not 0 <= area < float("inf"):
            raise ValueError(f"area is {area!r}, not a number of pixels")
        if read_flag(entry.get("ignore", 0), "ignore", self.changes):
            raise ValueError(
                "'ignore' is not supported; mark a region to be ignored with iscrowd 1"
            )
        annotation = {
            # Detectron2 would round the corners of a resized box of integers down.
            "bbox": [float(value) for value in bbox],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": contiguous[category],
            "iscrowd": read_flag(entry.get("iscrowd"), "iscrowd", self.changes),
            "area": area,
            "id": id,
        }
        for flag in _VOC_FLAGS & entry.keys():
            annotation[flag] = read_flag(entry[flag], flag, self.changes)
        return annotation, note

    def _bbox(self, entry: dict[str, Any], width: int, height: int) -> tuple[list[float], str]:
        """The box of an object, or else of its polygons, as XYWH; and a note if it was clipped."""
        if not entry.get("bbox") and isinstance(entry.get("segmentation"), list):
            bbox = self._around_polygons(entry["segmentation"])
        else:
            bbox = _value(entry, "bbox")
            if not isinstance(bbox, list) or len(bbox) != 4:
                raise ValueError(f"bbox is {reprlib.repr(bbox)}, not a list of four numbers")
            bbox = [read_number(value, "bbox", self.changes) for value in bbox]
        x, y, w, h = bbox
        box = [x, y, x + w, y + h]
        try:
            check_pixels(box, width, height)
            # COCO's boxes have fractional coordinates and may cross the border by under one pixel.
            clipped = inside(box, width, height, slack=1.0)
        except ValueError as error:
            raise ValueError(f"bbox {bbox} {error}") from None
        if clipped is box:
            return bbox, ""
        self.changes[CLIPPED] += 1
        note = f"bbox {bbox} extends beyond {image_of(width, height)}"
        x0, y0, x1, y1 = clipped
        return [x0, y0, x1 - x0, y1 - y0], note

    def _around_polygons(self, polygons: list[Any]) -> list[float]:
        """The box, as XYWH, around polygons [[x, y, x, y, ...], ...] or one [x, y, x, y, ...]."""
        if all(isinstance(polygon, list) for polygon in polygons):
            polygons = [*itertools.chain(*polygons)]
        flat = [read_number(value, "segmentation", self.changes) for value in polygons]
        x0, y0, x1, y1 = around(flat[::2], flat[1::2], self.changes)
        return [x0, y0, x1 - x0, y1 - y0]


def _value(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"is not an object: {reprlib.repr(entry)}")  # noqa: TRY004
    if key not in entry:
        raise ValueError(f"missing key {key!r}")
    return entry[key]


def _text(entry: Any, key: str) -> str:
    value = _value(entry, key)
    if type(value) is not str:
        raise ValueError(f"{key} is {reprlib.repr(value)}, not text")
    return value


def _name(entry: Any) -> str:
    id = entry.get("id", "without id") if isinstance(entry, dict) else None
    return "entry" if id is None else reprlib.repr(id)


def write(path: str, dataset: Dataset) -> str:
    """Write a dataset as an instances JSON file, which :func:`read` reads without changes.

    Returns:
        The folder that holds all images; the names in the file are relative to it.
    """
    meta = dataset.metadata
    ids = meta.category_ids or range(1, len(meta.classes) + 1)
    files = [os.path.abspath(record["file_name"]) for record in dataset.records]
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (file, record) in enumerate(zip(files, dataset.records), 1):
        id = record["image_id"] if type(record["image_id"]) is int else number
        size = {"width": record["width"], "height": record["height"]}
        images.append({"id": id, "file_name": os.path.relpath(file, folder), **size})
        for each in record["annotations"]:
            x, y, w, h = each["bbox"]
            if each["bbox_mode"] == BoxMode.XYXY_ABS:
                w, h = w - x, h - y
            annotation = {
                "id": len(annotations) + 1,
                "image_id": id,
                "category_id": ids[each["category_id"]],
                "bbox": [x, y, w, h],
                "area": each.get("area", w * h),
                "iscrowd": each["iscrowd"],
            }
            annotations.append(annotation | {k: each[k] for k in _VOC_FLAGS if k in each})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in zip(ids, meta.classes)],
    }
    write_whole(path, json.dumps(content) + "\n")
    return folder
