"""The report of a dataset check, and the checks of single images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..records import DatasetError
from .pixels import ImageBytes, ImageError, SizeError, check_size, image_header, read_image

# Marks a record whose annotation states no size; its size is then that of the upright image.
SIZE_OF_IMAGE = "size_of_image"


@dataclass
class Report:
    """The result of reading every image and every annotation of a dataset.

    Attributes:
        unit: what is counted besides images: "objects" or "classes".
        units: their number.
        faults: one line per fault, each starting with the file's name.
        known: published faults of an official archive, which loading skips.
        notes: one line per box or image that is odd, but loaded.
        details: further counts.
        published: number of images of the published dataset; None if there is none.
        sound: the detection dataset without what is faulty; None if it cannot be read at all.
    """

    name: str
    unit: str
    images: int = 0
    units: int = 0
    faults: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    published: int | None = None
    sound: Any = None  # a specs.Dataset

    def add(self, faults: Iterable[DatasetError]) -> None:
        for fault in faults:
            lines = self.notes if fault.costs == "nothing" else self.faults
            (self.known if fault.known else lines).append(str(fault))

    def lines(self) -> Iterator[str]:
        """The report as text: the faults, the counts and the details."""
        yield from self.faults
        yield from (
            f"{line} (known in the official file; skipped when loaded)" for line in self.known
        )
        yield from (f"{line} (loaded all the same)" for line in self.notes)
        note = ""
        if self.published not in (None, self.images):
            note = f" (the published set: {self.published} images)"
        if self.faults and not self.images:
            yield f"{self.name}: none of its images can be used"
        else:
            yield f"{self.name}: {self.images} images, {self.units} {self.unit}{note}"
        yield from (f"  {line}" for line in self.details)
        if self.faults:
            yield f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"


def decoding_faults(image: str | ImageBytes) -> list[str]:
    """The reason why an image does not decode, as a list of at most one line."""
    try:
        read_image(image)
    except ImageError as error:
        return [str(error)]
    return []


def record_faults(record: Mapping[str, Any]) -> list[DatasetError]:
    """The faults of a detection record's image."""
    path = record["file_name"]
    try:
        image = read_image(path)
        check_size(image, record)
        height, width, orientation = image_header(path)
    except ImageError as error:
        return [error]
    # A size that the annotation states, and that turning changes, shows which image the boxes mean.
    shown = orientation >= 5 and height != width and not record.get(SIZE_OF_IMAGE)
    if orientation != 1 and not shown:
        what = f"is turned upright by its EXIF orientation {orientation}, and its boxes are not"
        return [DatasetError(path, what, costs="nothing")]
    return []


def image_of(width: float, height: float) -> str:
    """How a fault names the image that a box leaves, for :func:`without_consequences`."""
    return f"the image of {width} x {height} pixels"


def without_consequences(
    record: Mapping[str, Any], faults: Iterable[DatasetError], image_faults: Iterable[DatasetError]
) -> list[DatasetError]:
    """The faults of a record's annotation, without those that only its wrong image size causes:
    boxes that leave the image.

    Args:
        image_faults: from :func:`record_faults`.
    """
    if not any(isinstance(fault, SizeError) for fault in image_faults):
        return list(faults)
    image = image_of(record["width"], record["height"])
    return [fault for fault in faults if image not in fault.what]


def object_counts(records: list[dict[str, Any]], classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Number of objects per class, and of difficult objects and crowd regions, without zeros."""
    counts: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for record in records:
        for annotation in record.get("annotations", ()):
            counts[classes[annotation["category_id"]]] += 1
            flags["of these, difficult"] += annotation.get("difficult", 0)
            flags["of these, crowds"] += annotation["iscrowd"]
    found = sorted(counts.items()) + sorted(flags.items())
    return [(name, count) for name, count in found if count]
