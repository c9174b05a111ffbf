"""Read PASCAL VOC annotations (the XML of VOC2007 and VOC2012) as Detectron2's standard dicts."""

import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...download import how_to_get
from ...records import LONGEST_SIDE, BoxMode, DatasetError, box_fault, name_fault
from ...weights.class_names import VOC
from ..pixels import ImageError, image_header
from ..specs import DetectionSpec, Metadata, Record, Scan

CLASSES = VOC  # in alphabetical order, as in the devkit; the index of a class is its category_id


@dataclass(frozen=True)
class VocFolder(DetectionSpec):
    """A dataset in VOC's layout.

    Attributes:
        folder: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of a list in ``ImageSets/Main``, without ``.txt``.
        year: year of the challenge, which determines the metric.
    """

    folder: str
    split: str
    year: int
    classes: tuple[str, ...] = CLASSES
    annotated: bool = True

    def _list(self) -> str:
        return os.path.join(self.folder, "ImageSets", "Main", f"{self.split}.txt")

    def paths(self) -> list[str]:
        folders = ["JPEGImages", "Annotations"] if self.annotated else ["JPEGImages"]
        return [self._list(), *(os.path.join(self.folder, name) for name in folders)]

    def count(self, root: str) -> int:
        """Number of lines in the list of images."""
        with open(os.path.join(root, self._list())) as file:
            return sum(bool(line.strip()) for line in file)

    def scan(self, root: str) -> tuple[Metadata, Scan]:
        dirname = os.path.join(root, self.folder)
        metadata = Metadata(
            self.name,
            self.classes,
            evaluation(self.year),
            self.annotated,
            split=self.split,
            detectron2={
                "evaluator_type": "pascal_voc",
                "dirname": dirname,
                "split": self.split,
                "year": self.year,
            },
        )
        return metadata, scan(dirname, self.split, self.classes, self.annotated)


def evaluation(year: int | None) -> str:
    """The evaluation protocol of a challenge: 11-point AP for VOC 2007, area under the curve for
    later years."""
    return "voc_2007" if year == 2007 else "voc"


def scan(
    dirname: str, split: str, classes: Sequence[str] = CLASSES, annotated: bool = True
) -> Iterator[tuple[Record, list[DatasetError]]]:
    """Read one split, image by image.

    Args:
        dirname: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of a list in ``ImageSets/Main``, without ``.txt``.
        classes: class names; the index of a name is its ``category_id``.
        annotated: False for a test set without public annotations. The sizes then come from the
            images.

    Yields:
        ``(record, faults)``: a standard dict with boxes in continuous coordinates (1 is subtracted
        from xmin and ymin only, as in Detectron2), and the list of the faults found in it.
        A record with faults may lack its size or some objects.

    Raises:
        DatasetError: the list of images is missing, empty, or has more than one name per line.
    """
    class_ids = {name: index for index, name in enumerate(classes)}
    listed = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    seen = set()
    for image_id in _read_list(listed):
        image = os.path.join(dirname, "JPEGImages", f"{image_id}.jpg")
        record: Record = {"file_name": image, "image_id": image_id}
        faults: list[DatasetError] = []
        if image_id in seen:
            faults.append(DatasetError(listed, f"duplicate image id {image_id!r}"))
        seen.add(image_id)
        if annotated:
            xml = os.path.join(dirname, "Annotations", f"{image_id}.xml")
            faults += _read_annotation(xml, class_ids, record)
        else:
            try:
                record["height"], record["width"], _ = image_header(image)
            except ImageError as error:
                faults.append(error)
            record["annotations"] = []
        yield record, faults


def _read_list(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            names = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"cannot read the list of images ({reason}); {how_to_get(path)}"
        raise DatasetError(path, what) from None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DatasetError(path, "the list of images is empty")
    for name in names:
        if len(name.split()) > 1:
            raise DatasetError(path, f"expected one image name per line, found {name!r}")
        if fault := name_fault(name):
            raise DatasetError(path, fault)
    return names


class _NoDoctype(ET.TreeBuilder):
    """Raises an error for a DOCTYPE, which could declare entities. VOC's files have none."""

    def doctype(self, name, pubid, system):
        raise ValueError("has a DOCTYPE, which is refused because it can declare entities")


def _read_annotation(path: str, class_ids: Mapping[str, int], record: Record) -> list[DatasetError]:
    """Read height, width and annotations from the XML into ``record``. Returns the faults."""
    try:
        root = ET.parse(path, ET.XMLParser(target=_NoDoctype())).getroot()
    except FileNotFoundError:
        return [DatasetError(path, f"missing annotation file of image {record['image_id']}")]
    except ET.ParseError as error:
        return [DatasetError(path, f"malformed XML: {error}")]
    except (OSError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        return [DatasetError(path, str(error))]

    size = {}
    for key in ("width", "height"):
        text = root.findtext(f"size/{key}")
        if text is None:
            return [DatasetError(path, f"no <size> with a <{key}>")]
        digits = text.strip()
        if not digits.isdecimal() or len(digits) > 9 or not 0 < int(digits) <= LONGEST_SIDE:
            what = f"<{key}> is {text[:99]!r}, not an integer from 1 to {LONGEST_SIDE}"
            return [DatasetError(path, what)]
        size[key] = int(text)
    record.update(height=size["height"], width=size["width"], annotations=[])

    faults = []
    for number, node in enumerate(root.findall("object"), 1):
        try:
            record["annotations"].append(_read_object(node, class_ids, **size))
        except ValueError as error:
            faults.append(DatasetError(path, f"object {number}: {error}"))
    return faults


def _read_object(
    node: ET.Element, class_ids: Mapping[str, int], width: int, height: int
) -> dict[str, Any]:
    name = node.findtext("name", "").strip()
    if name not in class_ids:
        raise ValueError(f"unknown class {name!r}")
    edges = [_number(node, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
    xmin, ymin, xmax, ymax = edges
    shown = "box [{:g}, {:g}, {:g}, {:g}]".format(*edges)
    if xmax < xmin or ymax < ymin:
        raise ValueError(f"{shown} is inverted (xmax < xmin or ymax < ymin)")
    if 0 <= min(xmin, ymin) < 1:
        raise ValueError(
            f"{shown} starts at 0, but VOC counts pixels from 1: "
            "if the file was written 0-based, add 1 to every coordinate"
        )
    # The 1-based inclusive pixels xmin..xmax cover [xmin - 1, xmax].
    bbox = [xmin - 1, ymin - 1, xmax, ymax]
    fault = box_fault(bbox, width, height)
    if fault:
        raise ValueError(f"{shown} {fault}")
    return {
        "bbox": bbox,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": class_ids[name],
        "iscrowd": 0,
        "difficult": _flag(node, "difficult"),
        "truncated": _flag(node, "truncated"),
    }


def _number(node: ET.Element, key: str) -> float:
    text = node.findtext(key)
    if text is None:
        raise ValueError(f"no <{key.rpartition('/')[2]}> in its <bndbox>")
    try:
        value = float(text)  # one file of VOC2012 has fractional numbers
    except ValueError:
        raise ValueError(f"{key} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{key} is {text!r}: the box is not finite")
    return value


def _flag(node: ET.Element, key: str) -> int:
    text = node.findtext(key, "0").strip() or "0"  # some files of VOC2012 lack these tags
    if text not in ("0", "1"):
        raise ValueError(f"<{key}> is {text!r}, not 0 or 1")
    return int(text)


def voc_xml(
    name: str,
    height: int,
    width: int,
    objects: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
) -> str:
    """Format the XML annotation of the image ``name``.jpg.

    Args:
        objects: dicts with "class" (an index into ``classes``), "box" (x0, y0, x1, y1; continuous,
            in whole pixels), "difficult" and "truncated" (0 or 1).
    """
    lines = [
        "<annotation>",
        f"  <folder>voc</folder><filename>{name}.jpg</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
    ]
    for item in objects:
        x0, y0, x1, y1 = item["box"]
        lines += [
            "  <object>",
            f"    <name>{classes[item['class']]}</name><pose>Unspecified</pose>",
            f"    <truncated>{item['truncated']}</truncated>",
            f"    <difficult>{item['difficult']}</difficult>",
            f"    <bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>",
            f"      <xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
