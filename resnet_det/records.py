"""Shared by the dataset readers: box modes, the error that names the file, the paths of images."""

import os
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal


class BoxMode(IntEnum):
    """The meaning of a box's 4 numbers, in absolute pixels. The values are Detectron2's."""

    XYXY_ABS = 0
    XYWH_ABS = 1


class DatasetError(ValueError):
    """A fault in the data: ``file`` names the file, ``what`` describes the fault.

    Attributes:
        known: a published fault in an official archive. Loading skips and lists the object.
        costs: what loading skips if the config enables that, instead of raising: the whole "image"
            or one "object"; or "nothing": the data are used all the same, and the fault is listed.
    """

    def __init__(
        self,
        file: object,
        what: str,
        known: bool = False,
        costs: Literal["image", "object", "nothing"] = "image",
    ) -> None:
        super().__init__(str(file), what)
        self.file, self.what, self.known, self.costs = str(file), what, known, costs

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


def has_surrogates(text: str) -> bool:
    """Whether a text cannot be encoded in UTF-8. Python puts surrogates for the bytes of a file's
    name that are not UTF-8, and JSON may contain some."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


LONGEST_SIDE = 10**6  # pixels; no image is larger


def path_inside(folder: str, name: str) -> str:
    """The path of an image by its name in a folder, whose separators may be those of Windows.

    Raises:
        ValueError: the name is not one of a file, or leaves the folder.
    """
    if "\0" in name or has_surrogates(name):
        raise ValueError(f"{name!r} is not a file name")
    name = name.replace("\\", "/")
    path = os.path.join(folder, name)
    leaves = os.path.isabs(name)
    if ".." in name.split("/"):
        path = os.path.normpath(path)
        top = os.path.join(os.path.abspath(folder), "")
        leaves = leaves or not os.path.abspath(path).startswith(top)
    if leaves:
        raise ValueError(f"{name!r} leaves the folder of the images")
    return path
