"""COCO instances json as Detectron2's standard dicts."""

import json
import os

from ...records import LONGEST_SIDE, BoxMode, DatasetError, box_fault, name_fault

# train2014 and train2017 hold one object of no height in each of these two images
# (github.com/cocodataset/cocoapi issue 355): the only such boxes in the official files.
_KNOWN_EMPTY = {200365, 550395}


def read(json_file, image_root, official=False, repeated_ids=False):
    """Read an instances (or image_info) json.

    Args:
        json_file: path of the json.
        image_root: folder of the images.
        official: COCO's own file, whose two published faults are known.
        repeated_ids: allow repeated annotation ids (the minival files of 2014 have them).

    Returns:
        ``(classes, category_ids, scan)``: names in the order of their ids, the original ids,
        and an iterator of ``(record, faults)`` in the order of the image ids. Boxes stay XYWH;
        ``category_id`` is contiguous; ``area`` is the file's, or width times height without one.
        ``record`` is None for a fault that belongs to no image.

    Raises:
        DatasetError: the file is missing, not json, or lacks images or categories.
    """
    data = _load(json_file)
    categories = {}
    for category in data["categories"]:
        fault = _missing(category, {"id": int, "name": str})
        if not fault and category["id"] in categories:
            fault = f"duplicate category id {category['id']}"
        if fault:
            raise DatasetError(json_file, f"category: {fault}")
        categories[category["id"]] = category["name"]
    if not categories:
        raise DatasetError(json_file, "'categories' is empty")
    ids = tuple(sorted(categories))
    scan = _scan(data, json_file, image_root, ids, official, repeated_ids)
    return tuple(categories[id] for id in ids), ids, scan


def _load(json_file):
    try:
        with open(json_file, "rb") as file:
            data = json.load(file, object_pairs_hook=_object)
    except OSError as error:
        what = (
            f"cannot read the annotations ({error.strerror}); datasets/README.md shows the layout"
        )
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


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def _scan(data, json_file, image_root, category_ids, official, repeated_ids):
    def error(what, known=False):
        return DatasetError(json_file, what, known)

    found, stray = {}, []  # found: image id -> (record, faults)
    for image in data["images"]:
        fault = _missing(image, {"id": int, "file_name": str, "height": int, "width": int})
        if not fault and min(image["height"], image["width"]) < 1:
            fault = f"height {image['height']} and width {image['width']} must be positive"
        if not fault and max(image["height"], image["width"]) > LONGEST_SIDE:
            fault = f"height and width must be at most {LONGEST_SIDE}"
        if not fault:
            fault = name_fault(image["file_name"])
        if fault:
            stray.append(error(f"image {_name(image)}: {fault}"))
        elif image["id"] in found:
            found[image["id"]][1].append(error(f"duplicate image id {image['id']}"))
        else:
            record = {
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
        image_id = None if fault else annotation["image_id"]
        if not fault and image_id not in found:
            fault = f"unknown image_id {image_id}"
        if fault:
            image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
            hurt = found[image_id][1] if type(image_id) is int and image_id in found else stray
            hurt.append(error(f"annotation {_name(annotation)}: {fault}"))
            continue
        record, faults = found[image_id]
        where = f"annotation {annotation['id']} of image {image_id}"
        if annotation["id"] in seen and not repeated_ids:
            faults.append(error(f"{where}: duplicate annotation id"))
        seen.add(annotation["id"])
        x_y_w_h = annotation["bbox"]
        fault = _object_fault(annotation, contiguous, record)
        if fault:
            known = official and image_id in _KNOWN_EMPTY and "is empty" in fault
            faults.append(error(f"{where}: {fault}", known))
            continue
        record["annotations"].append(
            {
                "bbox": x_y_w_h,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous[annotation["category_id"]],
                "iscrowd": annotation.get("iscrowd", 0),
                "area": float(annotation.get("area", x_y_w_h[2] * x_y_w_h[3])),
                "id": annotation["id"],
            }
        )

    if stray:
        yield None, stray
    for image_id in sorted(found):
        yield found[image_id]


def _object_fault(annotation, contiguous, record):
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
        return "'ignore' is not supported; mark a region to ignore with iscrowd 1"
    x, y, w, h = bbox
    # COCO draws to fractions of a pixel, and may cross the border by less than one.
    fault = box_fault(x, y, x + w, y + h, record["width"], record["height"], slack=1.0)
    return f"bbox {bbox} {fault}" if fault else None


def _is_number(value):
    # JSON has integers of any length, of which the longest are no coordinates and no floats.
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _missing(entry, keys):
    """The first of ``keys`` (name -> type) that ``entry`` lacks or holds as another type."""
    if not isinstance(entry, dict):
        return f"is not an object: {entry!r}"
    for key, kind in keys.items():
        if key not in entry:
            return f"missing key {key!r}"
        if type(entry[key]) is not kind:
            return f"{key} is {entry[key]!r}, not of type {kind.__name__}"
    return None


def _name(entry):
    return repr(entry.get("id", "without id")) if isinstance(entry, dict) else "entry"
