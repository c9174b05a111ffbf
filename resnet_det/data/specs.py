"""The interface of all kinds of datasets.

A kind of dataset is a subclass of :class:`DetectionSpec` or :class:`ClassificationSpec`; a dataset
is an instance of it in ``catalog.DATASETS``. To add a kind, write its class beside its reader and
add an instance to the catalog. No other code depends on the kind of a dataset.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from ..records import DatasetError
from .check import Report, object_counts, record_faults
from .parallel import parallel_map
from .synthetic.folder import DrawnFolder

Record = dict[str, Any]
Scan = Iterable[tuple[Record | None, list[DatasetError]]]


@dataclass(frozen=True)
class Metadata:
    """The metadata of a detection dataset.

    Attributes:
        classes: class names; the index of a class is its ``category_id``.
        evaluation: the evaluation protocol: "voc_2007" (11-point AP), "voc" (area under the curve)
            or "coco"; see ``engines.results.EVALUATIONS``.
        annotated: False for a test set whose annotations are not public.
        split: VOC's name of the list of images, which the names of submission files contain. None
            if there is no server to submit to.
        category_ids: COCO's original id of each class, for the submission file. None as ``split``.
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


@dataclass(frozen=True)
class DatasetSpec(ABC):
    """A dataset: its name, its place under the datasets' folder, and how it is read.

    Attributes:
        published: number of images of the published dataset; None if there is none.
        drawn: the folder of synthetic data that holds the dataset; None if the user provides the
            files.
    """

    name: str
    published: int | None = field(default=None, kw_only=True)
    drawn: DrawnFolder | None = field(default=None, kw_only=True)

    task: ClassVar[str]  # "detection" or "classification"
    unit: ClassVar[str]  # what a check counts besides images

    @abstractmethod
    def paths(self) -> Sequence[str]:
        """The files and folders under the datasets' folder that the dataset needs."""

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
        paths = (os.path.join(root, path) for path in self.paths())
        return next((path for path in paths if not os.path.exists(path)), None)

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

    def check(self, root: str, workers: int) -> Report:
        report = Report(self.name, self.unit, published=self.published)
        metadata, scan = self.scan(root)
        sound = Dataset(self.name, [], metadata)
        records, damaged = [], set()
        for record, found in tqdm(scan, desc="annotations", unit=" images", disable=None):
            report.add(found)
            if record is not None:
                records.append(record)
                sound.add(record, found)
        for faults in parallel_map(record_faults, records, workers, "images"):
            report.add(faults)
            damaged |= {fault.file for fault in faults if fault.costs == "image"}
        sound.records = [r for r in sound.records if r["file_name"] not in damaged]
        report.sound = sound
        counts = object_counts(records, metadata.classes)
        report.images = len(records)
        report.units = sum(len(record.get("annotations", ())) for record in records)
        report.details = [f"{name:15} {count:7}" for name, count in sorted(counts.items()) if count]
        return report


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
