"""Shared by the dataset readers: box modes, the error that names the file, name and box checks."""

import math
import os
from collections.abc import Sequence
from enum import IntEnum


class BoxMode(IntEnum):
    """The meaning of a box's 4 numbers, in absolute pixels. The values are Detectron2's."""

    XYXY_ABS = 0
    XYWH_ABS = 1


class DatasetError(ValueError):
    """A fault in the data: ``file`` names the file, ``what`` describes the fault.

    ``known`` marks a published fault in an official archive. Loading skips and lists the affected
    object. Any other fault raises, or skips the image if the config enables that.
    """

    def __init__(self, file: object, what: str, known: bool = False) -> None:
        super().__init__(str(file), what)
        self.file, self.what, self.known = str(file), what, known

    def __str__(self) -> str:
        text = f"{self.file}: {self.what}"
        return text.encode(errors="backslashreplace").decode()  # JSON may contain lone surrogates


SHOWN_FAULTS = 10


def together(source: object, faults: Sequence[DatasetError]) -> DatasetError:
    """Combine several faults into one error that lists up to ten. A single fault is returned
    unchanged.

    Args:
        source: the source of the faults, such as a dataset's name.
    """
    if len(faults) == 1:
        return faults[0]
    lines = [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
    more = len(faults) - len(lines)
    lines += [f"  and {more} more"] if more else []
    return DatasetError(source, "\n".join([f"{len(faults)} images cannot be used:", *lines]))


LONGEST_SIDE = 10**6  # pixels; no image is larger


def name_fault(name: str) -> str | None:
    """Describe why an image's name is invalid, or return None. A name must not leave its folder."""
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in name):
        return f"{name!r} is not a file name"
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        return f"{name!r} leaves the folder of the images"
    return None


def box_fault(box: Sequence[float], width: int, height: int, slack: float = 0.0) -> str | None:
    """Describe the fault of a box (x0, y0, x1, y1) in continuous coordinates, or return None.

    Args:
        width, height: size of the image, in pixels.
        slack: number of pixels by which the box may extend beyond the image.
    """
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return "is not finite"
    if x1 < x0 or y1 < y0:
        return "is inverted (its right or bottom edge comes before its left or top edge)"
    if x1 == x0 or y1 == y0:
        return "is empty (no width or no height)"
    if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
        return f"lies outside the image of {width} x {height} pixels"
    return None
