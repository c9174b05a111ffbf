"""Read COCO instances JSON as Detectron2's standard dicts."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...download import how_to_get
from ...records import LONGEST_SIDE, BoxMode, DatasetError, box_fault, name_fault
from ..specs import DetectionSpec, Metadata, Record, Scan

# In train2014 and train2017, each of these two images has one object whose box has no height
# (github.com/cocodataset/cocoapi issue 355). These are the only such boxes in the official files.
_KNOWN_EMPTY = {200365, 550395}


@dataclass(frozen=True)
class CocoJson(DetectionSpec):
    """A dataset in COCO's format: a folder of images and a JSON file.

    Attributes:
        annotated: False for an image_info file, which has no annotations.
        official, repeated_ids: see :func:`read`.
    """

    image_root: str
    json_file: str
    annotated: bool = True
    official: bool = True
    repeated_ids: bool = False

    def paths(self) -> list[str]:
        return [self.image_root, self.json_file]

    def count(self, root: str) -> int:
        """Number of JPEG files in the image folder."""
        files = os.listdir(os.path.join(root, self.image_root))
        return sum(file.endswith(".jpg") for file in files)

    def scan(self, root: str) -> tuple[Metadata, Scan]:
        image_root = os.path.join(root, self.image_root)
        json_file = os.path.join(root, self.json_file)
        classes, ids, scan = read(json_file, image_root, self.official, self.repeated_ids)
        metadata = Metadata(
            self.name,
            classes,
            "coco",
            self.annotated,
            category_ids=ids,
            detectron2={
                "evaluator_type": "coco",
                "json_file": json_file,
                "image_root": image_root,
                "thing_dataset_id_to_contiguous_id": {id: i for i, id in enumerate(ids)},
            },
        )
        return metadata, scan


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
        none. ``record`` is None for a fault that belongs to no image.

    Raises:
        DatasetError: the file is missing, is not JSON, or lacks images or categories.
    """
    data = _load(json_file)
    categories = {}
    for category in data["categories"]:
        fault = _missing(category, {"id": int, "name": str})
        if not fault and category["id"] in categories:
            fault = f"duplicate category id {category['id']}"
        if fault:
            raise DatasetError(json_file, f"'categories' has an invalid entry: {fault}")
        categories[category["id"]] = category["name"]
    if not categories:
        raise DatasetError(json_file, "'categories' is empty")
    ids = tuple(sorted(categories))
    scan = _scan(data, json_file, image_root, ids, official, repeated_ids)
    return tuple(categories[id] for id in ids), ids, scan


def _load(json_file: str) -> dict[str, Any]:
    try:
        with open(json_file, "rb") as file:
            data = json.load(file, object_pairs_hook=_unique_keys)
    except OSError as error:
        what = f"cannot read the annotations ({error.strerror}); {how_to_get(json_file)}"
        raise DatasetError(json_file, what) from None
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


def _scan(
    data: dict[str, Any],
    json_file: str,
    image_root: str,
    category_ids: Sequence[int],
    official: bool,
    repeated_ids: bool,
) -> Scan:
    found: dict[int, tuple[Record, list[DatasetError]]] = {}  # by image id
    stray: list[DatasetError] = []  # faults that belong to no image
    for image in data["images"]:
        if fault := _image_fault(image):
            stray.append(DatasetError(json_file, f"image {_name(image)}: {fault}"))
        elif image["id"] in found:
            fault = f"duplicate image id {image['id']}"
            found[image["id"]][1].append(DatasetError(json_file, fault))
        else:
            record: Record = {
                "file_name": os.path.join(image_root, image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "annotations": [],
            }
            found[image["id"]] = record, []

    contiguous = {id: index for index, id in enumerate(category_ids)}
    seen = set()
    for annotation in data["annotations"]:
        fault = _missing(annotation, {"id": int, "image_id": int, "category_id": int, "bbox": list})
        image_id: Any = annotation.get("image_id") if isinstance(annotation, dict) else None
        known_image = type(image_id) is int and image_id in found
        if not fault and not known_image:
            fault = f"unknown image_id {image_id}"
        record, faults = found[image_id] if known_image else ({}, stray)
        if fault:
            faults.append(DatasetError(json_file, f"annotation {_name(annotation)}: {fault}"))
            continue
        where = f"annotation {annotation['id']} of image {image_id}"
        if annotation["id"] in seen and not repeated_ids:
            faults.append(DatasetError(json_file, f"{where}: duplicate annotation id"))
        seen.add(annotation["id"])
        if fault := _object_fault(annotation, contiguous, record):
            known = official and image_id in _KNOWN_EMPTY and "is empty" in fault
            faults.append(DatasetError(json_file, f"{where}: {fault}", known))
        else:
            record["annotations"].append(_object(annotation, contiguous))

    if stray:
        yield None, stray
    for image_id in sorted(found):
        yield found[image_id]


def _image_fault(image: Any) -> str | None:
    fault = _missing(image, {"id": int, "file_name": str, "height": int, "width": int})
    if fault:
        return fault
    height, width = image["height"], image["width"]
    if min(height, width) < 1:
        return f"height {height} and width {width} must be positive"
    if max(height, width) > LONGEST_SIDE:
        return f"height and width must be at most {LONGEST_SIDE}"
    return name_fault(image["file_name"])


def _object(annotation: Mapping[str, Any], contiguous: Mapping[int, int]) -> dict[str, Any]:
    bbox = annotation["bbox"]
    return {
        "bbox": bbox,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": contiguous[annotation["category_id"]],
        "iscrowd": annotation.get("iscrowd", 0),
        "area": float(annotation.get("area", bbox[2] * bbox[3])),
        "id": annotation["id"],
    }


def _object_fault(
    annotation: Mapping[str, Any], contiguous: Mapping[int, int], record: Record
) -> str | None:
    if annotation["category_id"] not in contiguous:
        return f"unknown category_id {annotation['category_id']}"
    bbox = annotation["bbox"]
    if len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"bbox {bbox!r} is not four numbers"
    if type(annotation.get("iscrowd", 0)) is not int or annotation.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd is {annotation['iscrowd']!r}, not 0 or 1"
    area = annotation.get("area", 0)
    if not _is_number(area) or not 0 <= area < float("inf"):
        return f"area is {area!r}, not a number of pixels"
    if annotation.get("ignore", 0):
        return "'ignore' is not supported; mark a region to be ignored with iscrowd 1"
    x, y, w, h = bbox
    # COCO's boxes have fractional coordinates and may cross the border by less than one pixel.
    fault = box_fault((x, y, x + w, y + h), record["width"], record["height"], slack=1.0)
    return f"bbox {bbox} {fault}" if fault else None


def _is_number(value: object) -> bool:
    # JSON integers have any length; the longest do not fit into a float.
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _missing(entry: Any, keys: Mapping[str, type]) -> str | None:
    """Describe the first of ``keys`` (name -> type) that ``entry`` lacks or holds in another
    type."""
    if not isinstance(entry, dict):
        return f"is not an object: {entry!r}"
    for key, kind in keys.items():
        if key not in entry:
            return f"missing key {key!r}"
        if type(entry[key]) is not kind:
            return f"{key} is {entry[key]!r}, not of type {kind.__name__}"
    return None


def _name(entry: Any) -> str:
    return repr(entry.get("id", "without id")) if isinstance(entry, dict) else "entry"
