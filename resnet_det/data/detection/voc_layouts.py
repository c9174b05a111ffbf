"""A folder of images with VOC's XML annotations, in the layouts that annotation tools write."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain

from ...hints import did_you_mean
from ...records import DatasetError
from ..image_files import by_stem, no_image
from ..specs import DetectionSpec, Metadata, Scan
from .voc import is_deleted, read_images, read_list, read_xml

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnVocFolder(DetectionSpec):
    """A dataset in VOC's format, with classes of its own: those that its XML files name, sorted.

    The XML files are in ``Annotations``, ``annotations`` or ``annots``, or beside the images; the
    images are in ``JPEGImages`` or ``images``, or in the folder itself.

    Attributes:
        split: name of a list in ``ImageSets/Main`` or, without such lists, of a subfolder; None
            for every annotated image.
        origin: see :func:`.voc.read_images`.
    """

    folder: str
    split: str | None = None
    origin: int = 1

    def paths(self) -> list[str]:
        return [self.folder]

    def scan(self, root: str) -> tuple[Metadata, Scan]:
        folder = self.locate(root, self.folder)
        self.check_folder(folder, "that holds the images and their XML files")
        image_folder = _subfolder(folder, "jpegimages", "images") or folder
        xml_folder = _subfolder(folder, "annotations", "annots") or image_folder
        xmls = {stem: paths[0] for stem, paths in by_stem(xml_folder, [".xml"]).items()}
        if not xmls:
            raise DatasetError(xml_folder, "holds no XML annotations; see datasets/README.md")
        images = by_stem(image_folder)
        changes: Counter[str] = Counter()
        ids = self._image_ids(folder, xmls, changes)
        bare = len(images.keys() - xmls.keys())
        if bare and self.split is None:
            logger.info("%s: %d images without an annotation are left out", self.name, bare)
        classes = _classes(xmls.values())
        metadata = Metadata(
            self.name, classes, "coco_and_voc", detectron2={"evaluator_type": "coco"}
        )
        files, faults = [], []
        for image_id in ids:
            xml = xmls.get(image_id, os.path.join(xml_folder, f"{image_id}.xml"))
            found = images.get(image_id, [])
            if len(found) == 1:
                files.append((image_id, found[0], xml))
            elif found:
                faults.append(DatasetError(xml, f"belongs to several images: {', '.join(found)}"))
            else:
                faults.append(DatasetError(xml, no_image(image_id, image_folder)))
        unread: Scan = [(None, faults)] if faults else []
        return metadata, chain(unread, read_images(files, classes, self.origin, changes))

    def _image_ids(self, folder: str, xmls: Collection[str], changes: Counter[str]) -> list[str]:
        if self.split is None:
            return sorted(xmls)
        lists = os.path.join(folder, "ImageSets", "Main")
        if os.path.isdir(lists):
            self._check_split([os.path.splitext(name)[0] for name in os.listdir(lists)], lists)
            file = os.path.join(lists, f"{self.split}.txt")
            return list(dict.fromkeys(read_list(file, xmls.__contains__, changes)))
        self._check_split({os.path.dirname(id) for id in xmls} - {""}, folder)
        return sorted(id for id in xmls if id.startswith(f"{self.split}/"))

    def _check_split(self, known: Collection[str], where: str) -> None:
        if self.split not in known:
            hint = did_you_mean(str(self.split), sorted(known), list_all=True) if known else (
                ", and no lists in ImageSets/Main: to divide the images, use split=[:80%] and "
                "split=[80%:]"
            )  # fmt: skip
            raise DatasetError(self.name, f"{where} has no split {self.split!r}{hint}")


def _subfolder(folder: str, *names: str) -> str | None:
    """The first subfolder with one of these names, in any case."""
    there = {entry.name.lower(): entry.path for entry in os.scandir(folder) if entry.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _classes(xmls: Iterable[str]) -> tuple[str, ...]:
    """The names of the objects in all files, sorted. Raises DatasetError if there are none."""
    names: set[str] = set()
    fault = None
    for path in xmls:
        try:
            objects = read_xml(path).findall("object")
        except DatasetError as error:  # the scan reports it
            fault = error
        else:
            kept = (node for node in objects if not is_deleted(node))
            names |= {node.findtext("name", "").strip() for node in kept}
    # The scan reports objects whose name is empty or not in the file's encoding.
    names = {name for name in names if name and "\ufffd" not in name}
    if not names:
        raise fault or DatasetError(path, "names no object, nor does any other annotation")
    return tuple(sorted(names))
