"""What the readers share: box modes, the error that names the file, and the checks of a box."""

import math
import os
from enum import IntEnum


class BoxMode(IntEnum):
    """Meaning of the 4 numbers of a box, in absolute pixels; the values are Detectron2's."""

    XYXY_ABS = 0
    XYWH_ABS = 1


class DatasetError(ValueError):
    """A fault in the data: ``file`` names the file, ``what`` says what is wrong with it.

    ``known`` marks a published fault of an official archive. Loading leaves that one object out,
    lists it, and goes on; everything else ends the load (or drops the image, if asked to).
    """

    def __init__(self, file, what, known=False):
        super().__init__(str(file), what)
        self.file, self.what, self.known = str(file), what, known

    def __str__(self):
        text = f"{self.file}: {self.what}"
        return text.encode(errors="backslashreplace").decode()  # json's half surrogates too


SHOWN_FAULTS = 10


def together(source, faults):
    """One error for several: the fault itself where there is one, else a list of up to ten.

    Args:
        source: what they were found in, such as a dataset's name.
    """
    if len(faults) == 1:
        return faults[0]
    lines = [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
    more = len(faults) - len(lines)
    lines += [f"  and {more} more"] if more else []
    return DatasetError(source, "\n".join([f"{len(faults)} images cannot be used:", *lines]))


LONGEST_SIDE = 10**6  # pixels of an image


def name_fault(name):
    """What is wrong with an image's name in a dataset, or None: it must stay in its folder."""
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in name):
        return f"{name!r} is no name of a file"
    if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
        return f"{name!r} leaves the folder of the images"
    return None


def box_fault(x0, y0, x1, y1, width, height, slack=0.0):
    """What is wrong with a box in continuous coordinates, or None.

    ``slack``: pixels by which the box may leave the image.
    """
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return "is not finite"
    if x1 < x0 or y1 < y0:
        return "is inverted (its right or bottom edge comes before its left or top edge)"
    if x1 == x0 or y1 == y0:
        return "is empty (no width or no height)"
    if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
        return f"lies outside the image of {width} x {height} pixels"
    return None
