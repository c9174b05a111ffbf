"""The interface of all kinds of datasets.

A kind of dataset is a subclass of :class:`DetectionSpec` or :class:`ClassificationSpec`; a dataset
is an instance of it in ``catalog.DATASETS``. To add a kind, write its class beside its reader and
add an instance to the catalog. No other code depends on the kind of a dataset.
"""

import hashlib
import logging
import os
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

from ..hints import did_you_mean
from ..records import DatasetError
from .check import Report, object_counts, record_faults, without_consequences
from .parallel import parallel_map
from .synthetic.folder import DrawnFolder

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Scan = Iterable[tuple[Record | None, list[DatasetError]]]


@dataclass(frozen=True)
class Metadata:
    """The metadata of a detection dataset.

    Attributes:
        classes: class names; the index of a class is its ``category_id``.
        evaluation: the evaluation protocol: "voc_2007" (11-point AP), "voc" (area under the curve),
            "coco" or "coco_and_voc"; see ``engines.results.EVALUATIONS``.
        annotated: False for a test set whose annotations are not public.
        split: VOC's name of the list of images, which the names of submission files contain. None
            if there is no server to submit to.
        category_ids: the dataset's own id of each class, for ``detections.json``: COCO's, or from 1.
            None means 1, 2, ... in the order of ``classes``.
        detectron2: further fields of the dataset in Detectron2's MetadataCatalog.
    """

    name: str
    classes: tuple[str, ...]
    evaluation: str
    annotated: bool = True
    split: str | None = None
    category_ids: tuple[int, ...] | None = None
    detectron2: dict[str, Any] = field(default_factory=dict)


@dataclass
class Dataset:
    """Records as Detectron2's standard dicts.

    Attributes:
        skipped: one line per skipped image or object.
        counts: number of "skipped_images", "skipped_objects" and "clipped_boxes".
    """

    name: str
    records: list[Record]
    metadata: Metadata
    skipped: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record | None, faults: Sequence[DatasetError]) -> None:
        """Add a record of a scan, unless a fault costs the whole image."""
        costs = Counter(fault.costs for fault in faults)
        if record is not None:
            costs["image"] = min(costs["image"], 1)
            if not costs["image"]:
                self.records.append(record)
        self.skipped += [str(fault) for fault in faults if fault.costs != "nothing"]
        self.counts.update(
            skipped_images=costs["image"],
            skipped_objects=costs["object"],
            clipped_boxes=costs["nothing"],
        )


class Part(NamedTuple):
    """A share of a dataset's images, from ``begin`` to ``end`` (0 to 1).

    A hash of its file's name, without folder and extension, decides where an image belongs. It
    stays there whatever else the dataset holds.
    """

    begin: float
    end: float

    def holds(self, file_name: str) -> bool:
        stem = unicodedata.normalize("NFC", Path(file_name).stem)  # macOS decomposes accents
        digest = hashlib.sha256(stem.encode(errors="backslashreplace")).digest()
        return self.begin <= int.from_bytes(digest[:8], "big") / 2**64 < self.end


@dataclass(frozen=True)
class DatasetSpec(ABC):
    """A dataset: its name, its place under the datasets' folder, and how it is read.

    Attributes:
        own: whether it is the user's own dataset (:mod:`.paths`). It is looked up in the working
            folder first, and its number of classes replaces that of a config file.
        part: the share of its images that belongs to the dataset; None for all.
        chosen: names of the classes to keep, in this order; () for all.
        published: number of images of the published dataset; None if there is none.
        drawn: the folder of synthetic data that holds the dataset; None if the user provides the
            files.
    """

    name: str
    own: bool = field(default=False, kw_only=True)
    part: Part | None = field(default=None, kw_only=True)
    chosen: tuple[str, ...] = field(default=(), kw_only=True)
    published: int | None = field(default=None, kw_only=True)
    drawn: DrawnFolder | None = field(default=None, kw_only=True)

    task: ClassVar[str]  # "detection" or "classification"
    unit: ClassVar[str]  # what a check counts besides images

    @abstractmethod
    def paths(self) -> Sequence[str]:
        """The files and folders under the datasets' folder that the dataset needs."""

    def locate(self, root: str, path: str) -> str:
        """The place of a path of the dataset: in the working folder, if the dataset is the user's
        own and the path exists there, else under ``root``."""
        here = os.path.abspath(os.path.expanduser(path))
        return here if self.own and os.path.exists(here) else os.path.join(root, path)

    @abstractmethod
    def check(self, root: str, workers: int) -> Report:
        """Read every image and annotation in ``workers`` processes.

        Raises:
            DatasetError: the dataset as a whole cannot be read.
        """

    def missing(self, root: str) -> str | None:
        """The first absent path, or None. Reads no annotations.

        A drawn dataset needs only its source.
        """
        if self.drawn:
            return self.drawn.missing(root)
        paths = (self.locate(root, path) for path in self.paths())
        return next((path for path in paths if not os.path.exists(path)), None)

    def check_located(self, root: str) -> None:
        """Raise DatasetError if the user's own dataset is absent."""
        if self.own and (absent := self.missing(root)):
            raise DatasetError(
                self.name, f"there is no {absent}, nor is it in the working folder, {os.getcwd()}"
            )

    def check_folder(self, path: str, content: str) -> None:
        """Raise DatasetError if ``path`` is a file. ``content`` says what its folder should hold."""
        if os.path.isfile(path):
            raise DatasetError(self.name, f"{path} is a file: name the folder {content}")

    def count(self, root: str) -> int | None:
        """Number of images, without reading annotations; None if they take long to count."""
        return None


class DetectionSpec(DatasetSpec):
    """A dataset of images with annotated boxes."""

    task = "detection"
    unit = "objects"

    @abstractmethod
    def scan(self, root: str) -> tuple[Metadata, Scan]:
        """Return the metadata, and an iterable of ``(record, faults)``.

        A record is one of Detectron2's standard dicts, or None for faults that belong to no image.
        A record with faults may lack its size or some of its objects. What was changed without loss
        is no fault; the reader counts it and logs the counts in one line.

        Raises:
            DatasetError: the dataset as a whole cannot be read.
        """

    def scan_chosen(self, root: str) -> tuple[Metadata, Scan]:
        """:meth:`scan` the images of ``part``, with the objects of the ``chosen`` classes.

        Raises:
            DatasetError: as :meth:`scan`, or the dataset lacks a chosen class.
        """
        self.check_located(root)
        metadata, scan = self.scan(root)
        if self.part:
            scan = _only_part(scan, self.part)
        if self.chosen:
            return _choose_classes(metadata, scan, self.chosen)
        return metadata, scan

    def check(self, root: str, workers: int) -> Report:
        report = Report(self.name, self.unit, published=self.published)
        metadata, scan = self.scan_chosen(root)
        sound = Dataset(self.name, [], metadata)
        records, annotation_faults, damaged = [], [], set()
        for record, found in tqdm(scan, desc="annotations", unit=" images", disable=None):
            if record is None:
                report.add(found)
            else:
                records.append(record)
                annotation_faults.append(found)
                sound.add(record, found)
        image_faults = parallel_map(record_faults, records, workers, "images")
        for record, found, faults in zip(records, annotation_faults, image_faults):
            report.add(without_consequences(record, found, faults))
        for faults in image_faults:
            report.add(faults)
            damaged |= {fault.file for fault in faults if fault.costs == "image"}
        sound.records = [r for r in sound.records if r["file_name"] not in damaged]
        report.sound = sound
        report.images = len(records)
        report.units = sum(len(record.get("annotations", ())) for record in records)
        report.details = [
            f"{name:15} {count:7}" for name, count in object_counts(records, metadata.classes)
        ]
        return report


def _only_part(scan: Scan, part: Part) -> Scan:
    for record, faults in scan:
        if record is None or part.holds(record["file_name"]):
            yield record, faults


def check_unique(file: str, classes: Sequence[str]) -> None:
    """Raise DatasetError if two of the classes that a file lists have one name."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        what = f"names two classes {twice[0]!r}: give each class a name of its own"
        raise DatasetError(file, what)


def check_chosen(name: str, chosen: Iterable[str], classes: Sequence[str]) -> None:
    """Raise DatasetError, with similar names, unless the dataset ``name`` has all chosen classes."""
    for word in chosen:
        if word not in classes:
            hint = did_you_mean(word, classes, list_all=True)
            raise DatasetError(name, f"has no class {word!r}{hint}")


def _choose_classes(
    metadata: Metadata, scan: Scan, chosen: tuple[str, ...]
) -> tuple[Metadata, Scan]:
    """Keep the objects of the chosen classes, and renumber these. The log counts the others."""
    check_chosen(metadata.name, chosen, metadata.classes)
    places = [metadata.classes.index(name) for name in chosen]
    number = {old: new for new, old in enumerate(places)}

    def records() -> Scan:
        others: Counter[str] = Counter()
        for record, faults in scan:
            if record is not None and "annotations" in record:
                kept = []
                for annotation in record["annotations"]:
                    label = annotation["category_id"]
                    if label in number:
                        kept.append(annotation | {"category_id": number[label]})
                    else:
                        others[metadata.classes[label]] += 1
                record = record | {"annotations": kept}
            yield record, faults
        if others:
            counts = ", ".join(f"{count} {name}" for name, count in sorted(others.items()))
            logger.info("%s: objects of other classes are left out: %s", metadata.name, counts)

    ids = metadata.category_ids
    ids = ids and tuple(ids[place] for place in places)
    return replace(metadata, classes=chosen, category_ids=ids), records()


@dataclass(frozen=True)
class ClassificationSpec(DatasetSpec):
    """A dataset of images with one class each.

    Attributes:
        large: True if the images have any size and are decoded when a batch needs them; False if
            they have one size and are held in memory together.
        published_classes: number of classes of the published dataset.
    """

    large: bool = field(default=False, kw_only=True)
    published_classes: int | None = field(default=None, kw_only=True)

    task = "classification"
    unit = "classes"

    def read_images(
        self, root: str, skip_bad: bool = False
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Read every image of a small dataset.

        Returns:
            (images uint8 (N, 3, H, W) in RGB, labels int64 (N,), class names).

        Raises:
            DatasetError, ImageError: a file is missing or damaged. The message names it.
        """
        raise NotImplementedError(f"{self.name} is not a dataset of small images")

    def list_images(self, root: str) -> tuple[Sequence, tuple[str, ...]]:
        """List the records of a large dataset for :class:`.large_images.LargeImages`, and its
        classes.

        Raises:
            DatasetError: the files cannot be listed.
        """
        raise NotImplementedError(f"{self.name} is not a dataset of large images")

    def report(
        self, where: str, classes: Sequence[str], counts: Counter[int], faults: list[str]
    ) -> Report:
        """Make the report of a check, with a fault if the counts differ from the published ones.

        Args:
            where: the folder that the fault names.
            counts: number of images per label.
        """
        images = counts.total()
        expected = (self.published, self.published_classes)
        if self.published_classes and (images, len(classes)) != expected:
            held = f"{images:,} images of {len(classes):,} classes"
            published = f"{self.published:,} of {self.published_classes:,}"
            faults = [*faults, f"{where}: holds {held}, the published set {published}"]
        per_class = [counts[label] for label in range(len(classes))]
        details = [f"{min(per_class)} to {max(per_class)} images per class"]
        return Report(self.name, self.unit, images, len(classes), faults, details=details)
