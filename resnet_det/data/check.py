"""The report of a dataset check, and the checks of single images."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .pixels import ImageBytes, ImageError, image_header, read_image


@dataclass
class Report:
    """The result of reading every image and every annotation of a dataset.

    Attributes:
        unit: what is counted besides images: "objects" or "classes".
        units: their number.
        faults: one line per fault, each starting with the file's name.
        known: published faults of an official archive, which loading skips.
        details: further counts, shown if there are no faults.
        published: number of images of the published dataset; None if there is none.
    """

    name: str
    unit: str
    images: int = 0
    units: int = 0
    faults: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    published: int | None = None

    def lines(self) -> Iterator[str]:
        """The report as text: the faults, the counts, and the details if there are no faults."""
        yield from self.faults
        yield from (
            f"{line} (known in the official file; skipped when loaded)" for line in self.known
        )
        note = ""
        if self.published not in (None, self.images):
            note = f" (the published set: {self.published} images)"
        yield f"{self.name}: {self.images} images, {self.units} {self.unit}{note}"
        if self.faults:
            yield f"{len(self.faults)} fault{'s' * (len(self.faults) > 1)}"
        else:
            yield from (f"  {line}" for line in self.details)


def decoding_faults(image: str | ImageBytes) -> list[str]:
    """The reason why an image does not decode, as a list of at most one line."""
    try:
        read_image(image)
    except ImageError as error:
        return [str(error)]
    return []


def record_faults(record: Mapping[str, Any]) -> list[str]:
    """The faults of a detection record's image, one line per fault."""
    path = record["file_name"]
    try:
        read_image(path)
        height, width, orientation = image_header(path)
    except ImageError as error:
        return [str(error)]
    lines = []
    if orientation != 1:
        lines.append(
            f"{path}: EXIF orientation {orientation}: the image is read upright, but its boxes may "
            "refer to the stored image: save the image upright"
        )
    if "height" in record and (record["height"], record["width"]) != (height, width):
        annotated = f"{record['width']} x {record['height']}"
        lines.append(f"{path}: is {width} x {height} pixels, its annotation says {annotated}")
    return lines


def object_counts(records: list[dict[str, Any]], classes: tuple[str, ...]) -> Counter[str]:
    """Number of objects per class, and of "difficult" objects and "crowd" regions."""
    counts: Counter[str] = Counter()
    for record in records:
        for annotation in record.get("annotations", ()):
            counts[classes[annotation["category_id"]]] += 1
            counts["difficult"] += annotation.get("difficult", 0)
            counts["crowd"] += annotation["iscrowd"]
    return counts
