"""Read PASCAL VOC annotations (the XML of VOC2007 and VOC2012) as Detectron2's standard dicts."""

import codecs
import math
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...download import how_to_get
from ...records import LONGEST_SIDE, BoxMode, DatasetError, path_inside
from ...weights.class_names import VOC
from ..check import SIZE_OF_IMAGE, image_of
from ..image_files import EXTENSIONS
from ..pixels import ImageError, image_header
from ..specs import DetectionSpec, Metadata, Record, Scan
from ..text_files import decode, read_text
from .fields import CLIPPED, SIZES, around, check_pixels, inside, log_changes, read_flag

CLASSES = VOC  # in alphabetical order, as in the devkit; the index of a class is its category_id


@dataclass(frozen=True)
class VocFolder(DetectionSpec):
    """A dataset in VOC's layout.

    Attributes:
        folder: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of a list in ``ImageSets/Main``, without ``.txt``.
        year: year of the challenge, which determines the metric.
        origin: see :func:`read_images`.
    """

    folder: str
    split: str
    year: int
    classes: tuple[str, ...] = CLASSES
    annotated: bool = True
    origin: int = 1

    def _list(self) -> str:
        return os.path.join(self.folder, "ImageSets", "Main", f"{self.split}.txt")

    def paths(self) -> list[str]:
        folders = ["JPEGImages", "Annotations"] if self.annotated else ["JPEGImages"]
        return [self._list(), *(os.path.join(self.folder, name) for name in folders)]

    def count(self, root: str) -> int:
        """Number of lines in the list of images."""
        text = read_text(os.path.join(root, self._list()))
        return sum(bool(line.strip()) for line in text.split("\n"))

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
        return metadata, scan(dirname, self.split, self.classes, self.annotated, self.origin)


def evaluation(year: int | None) -> str:
    """The evaluation protocol of a challenge: 11-point AP for VOC 2007, area under the curve for
    later years."""
    return "voc_2007" if year == 2007 else "voc"


def scan(
    dirname: str,
    split: str,
    classes: Sequence[str] = CLASSES,
    annotated: bool = True,
    origin: int = 1,
) -> Iterator[tuple[Record, list[DatasetError]]]:
    """Read one split, image by image.

    Args:
        dirname: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of a list in ``ImageSets/Main``, without ``.txt``.
        annotated: False for a test set without public annotations. The sizes then come from the
            images.
        classes, origin: see :func:`read_images`.

    Yields:
        ``(record, faults)``: see :func:`read_images`.

    Raises:
        DatasetError: the list of images is missing, empty, or names a file outside the folder.
    """
    listed = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")

    def image(image_id: str) -> str:
        return os.path.join(dirname, "JPEGImages", f"{image_id}.jpg")

    def xml(image_id: str) -> str | None:
        return os.path.join(dirname, "Annotations", f"{image_id}.xml") if annotated else None

    def exists(image_id: str) -> bool:
        return os.path.exists(xml(image_id) or image(image_id))

    changes: Counter[str] = Counter()
    ids = read_list(listed, exists, changes)
    files = ((image_id, image(image_id), xml(image_id)) for image_id in ids)
    seen = set()
    for record, faults in read_images(files, classes, origin, changes):
        image_id = record["image_id"]
        if image_id in seen:
            faults.insert(0, DatasetError(listed, f"duplicate image id {image_id!r}"))
        seen.add(image_id)
        yield record, faults


def read_images(
    files: Iterable[tuple[str, str, str | None]],
    classes: Sequence[str],
    origin: int = 1,
    changes: Counter[str] | None = None,
) -> Iterator[tuple[Record, list[DatasetError]]]:
    """Read images and their annotations. The log says what had to be changed.

    Args:
        files: ``(image id, image, annotation)``: paths. Without an annotation, the size comes from
            the image.
        classes: class names; the index of a name is its ``category_id``.
        origin: coordinate of the first pixel. VOC counts pixels from 1 and includes the last one:
            as in Detectron2, 1 is subtracted from xmin and ymin only. 0 leaves the boxes unchanged,
            for files whose coordinates are continuous or start at 0.
        changes: what was changed before, for the same line of the log.

    Yields:
        ``(record, faults)``: a standard dict with boxes in continuous coordinates, and the list of
        the faults found in it. A record with faults may lack its size or some objects.
    """
    class_ids = {name: index for index, name in enumerate(classes)}
    reader = _Reader(class_ids, origin, Counter() if changes is None else changes)
    xml = None
    for image_id, image, xml in files:
        record: Record = {"file_name": image, "image_id": image_id}
        faults: list[DatasetError] = []
        if xml is not None:
            faults += reader.read(xml, record)
        else:
            try:
                record["height"], record["width"], _ = image_header(image)
            except ImageError as error:
                faults.append(error)
            record["annotations"] = []
        yield record, faults
    log_changes(os.path.dirname(xml or ""), reader.changes)


def read_list(
    path: str,
    exists: Callable[[str], bool] = lambda name: False,
    changes: Counter[str] | None = None,
) -> list[str]:
    """Read a list of images, without their extensions.

    Args:
        exists: whether there is an image of this name. A line with spaces is one name if there is;
            otherwise its first column is.
        changes: counts the lines that had more than a name.

    Raises:
        DatasetError: the file is missing, empty, or names an image outside its folder.
    """
    lines = [line.strip() for line in read_text(path, how_to_get(path)).split("\n")]
    lines = [line for line in lines if line]
    try:
        names = [_image_name(line, exists) for line in lines]
    except ValueError as error:
        raise DatasetError(path, str(error)) from None
    if not names:
        raise DatasetError(path, "the list of images is empty")
    if changes is not None:
        changed = sum(name != line for name, line in zip(names, lines))
        changes["list lines reduced to the name of an image"] += changed
    return names


def _image_name(line: str, exists: Callable[[str], bool]) -> str:
    """The name of an image in a line that may have separators of Windows, an extension, and further
    columns. Raises ValueError if it leaves the folder."""

    def name(text: str) -> str:
        stem, extension = os.path.splitext(text)
        text = stem if extension.lower() in (*EXTENSIONS, ".xml") else text
        return path_inside("JPEGImages", text).removeprefix("JPEGImages/")

    columns = line.split()
    return name(line if len(columns) == 1 or exists(name(line)) else columns[0])


# Encodings of one or more bytes per letter in which ASCII keeps its values.
_CODECS = ("ascii", "big5", "cp", "euc", "gb", "iso8859", "koi8", "mac", "shift_jis")
_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding=["']([\w.-]+)""")
_DOCTYPE = re.compile(r"<!DOCTYPE[^<>\[\]]*>")


def _decode_xml(content: bytes) -> str:
    """Decode an XML file by its declaration or byte order mark."""
    declared = _DECLARED.match(content)
    # Some tools declare UTF-16 and write UTF-8.
    if not declared or declared[1].lower().startswith((b"utf-8", b"utf-16")):
        return decode(content, errors="replace")
    encoding = codecs.lookup(declared[1].decode("ascii")).name
    if not encoding.startswith(_CODECS):
        raise LookupError(f"refused encoding {encoding}")
    return content.decode(encoding, errors="replace")


class _NoDoctype(ET.TreeBuilder):
    """Raises an error for a DOCTYPE, which could declare entities. VOC's files have none."""

    def doctype(self, name, pubid, system):
        raise ValueError("has a DOCTYPE with declarations, which are refused")


def read_xml(path: str, changes: Counter[str] | None = None) -> ET.Element:
    """Parse an annotation file. No entities are declared, and nothing outside the file is read.

    Bytes that are not in the file's encoding, which old tools write into paths, become U+FFFD.

    Raises:
        DatasetError: the file is missing or malformed.
    """
    try:
        try:
            return ET.parse(path, ET.XMLParser(target=_NoDoctype())).getroot()
        except (ET.ParseError, ValueError, LookupError):
            with open(path, "rb") as file:
                text = _DOCTYPE.sub("", _decode_xml(file.read()), count=1)
            root = ET.fromstring(text.lstrip(), ET.XMLParser(target=_NoDoctype()))
    except FileNotFoundError:
        raise DatasetError(path, "missing annotation file") from None
    except ET.ParseError as error:
        raise DatasetError(path, f"malformed XML: {error}") from None
    except (OSError, ValueError, LookupError) as error:  # LookupError: unknown encoding
        raise DatasetError(path, str(error)) from None
    if changes is not None:
        changes["files with a DOCTYPE or in another encoding"] += 1
    return root


def is_deleted(node: ET.Element) -> bool:
    """Whether an object is deleted. LabelMe keeps it in the file."""
    return node.findtext("deleted", "").strip() == "1"


@dataclass
class _Reader:
    """Reads annotation files.

    Attributes:
        class_ids: class name -> ``category_id``.
        origin: see :func:`read_images`.
        changes: what had to be changed -> how often.
    """

    class_ids: dict[str, int]
    origin: int
    changes: Counter[str]

    def read(self, path: str, record: Record) -> list[DatasetError]:
        """Read height, width and annotations into ``record``. Returns the faults."""
        try:
            root = read_xml(path, self.changes)
            height, width = self._size(root, record)
        except ImageError as error:
            return [DatasetError(path, f"has no valid <size>, and the image is no help: {error}")]
        except DatasetError as error:
            return [error]
        record.update(height=height, width=width, annotations=[])
        faults = []
        for number, node in enumerate(root.findall("object"), 1):
            if is_deleted(node):
                self.changes["objects that LabelMe marks as deleted, left out"] += 1
                continue
            try:
                annotation, note = self._object(node, width, height)
            except ValueError as error:
                faults.append(DatasetError(path, f"object {number}: {error}", costs="object"))
                continue
            record["annotations"].append(annotation)
            if note:
                faults.append(DatasetError(path, f"object {number}: {note}", costs="nothing"))
        return faults

    def _size(self, root: ET.Element, record: Record) -> tuple[int, int]:
        size = []
        for key in ("height", "width"):
            digits = root.findtext(f"size/{key}", "").strip()
            if not digits.isdecimal() or len(digits) > 9 or not 0 < int(digits) <= LONGEST_SIDE:
                height, width, _ = image_header(record["file_name"])
                record[SIZE_OF_IMAGE] = True
                self.changes[SIZES] += 1
                return height, width
            size.append(int(digits))
        return size[0], size[1]

    def _object(self, node: ET.Element, width: int, height: int) -> tuple[dict[str, Any], str]:
        """Returns the annotation, and a note if its box had to be clipped."""
        name = node.findtext("name", "").strip()
        if name not in self.class_ids:
            hint = " (not in the file's encoding)" if "\ufffd" in name else ""
            raise ValueError(f"unknown class {name!r}{hint}")
        xmin, ymin, xmax, ymax = edges = self._edges(node)
        # The 1-based inclusive pixels xmin..xmax cover [xmin - 1, xmax].
        bbox = [xmin - self.origin, ymin - self.origin, xmax, ymax]
        shown = "box [{:g}, {:g}, {:g}, {:g}]".format(*edges)
        if xmax < xmin or ymax < ymin:
            raise ValueError(f"{shown} is inverted (xmax < xmin or ymax < ymin)")
        try:
            check_pixels(bbox, width, height)
            clipped = inside(bbox, width, height)
        except ValueError as error:
            raise ValueError(f"{shown} {error}") from None
        note = ""
        if clipped is not bbox:
            self.changes[CLIPPED] += 1
            note = f"{shown} extends beyond {image_of(width, height)}"
            if self.origin and 0 <= min(xmin, ymin) < self.origin:
                note += " (VOC counts pixels from 1: read files that count from 0 with origin=0)"
                self.changes["boxes that start at 0, while VOC counts pixels from 1"] += 1
        annotation = {
            "bbox": clipped,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": self.class_ids[name],
            "iscrowd": 0,
            "difficult": self._flag(node, "difficult"),
            "truncated": self._flag(node, "truncated"),
        }
        return annotation, note

    def _edges(self, node: ET.Element) -> list[float]:
        """xmin, ymin, xmax and ymax of an object's box, or else of its polygon."""
        polygon = node.find("polygon")
        if polygon is None or node.find("bndbox") is not None:
            return [_number(node, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        corners = [corner for corner in polygon.iter() if re.fullmatch(r"[xy]\d*", corner.tag)]
        xs, ys = ([_float(c.text, c.tag) for c in corners if c.tag[0] == axis] for axis in "xy")
        return around(xs, ys, self.changes)

    def _flag(self, node: ET.Element, key: str) -> int:
        text = node.findtext(key)
        if text is not None:
            text = text.strip()
            if text in ("0", "1"):
                return int(text)
        return read_flag(text, f"<{key}>", self.changes)


def _number(node: ET.Element, key: str) -> float:
    text = node.findtext(key)
    if text is None:
        raise ValueError(f"no <{key.rpartition('/')[2]}> in its <bndbox>")
    return _float(text, key)


def _float(text: str | None, key: str) -> float:
    try:
        number = float(text or "")  # one file of VOC2012 has fractional numbers
    except ValueError:
        raise ValueError(f"{key} is {text!r}, not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{key} is {text!r}: the box is not finite")
    return number


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
