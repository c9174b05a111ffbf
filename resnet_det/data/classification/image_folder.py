"""Folders of images, one folder per class: the layout of torchvision's ImageFolder and ImageNet."""

import logging
import os
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...records import DatasetError, together
from .. import pixels
from ..check import Report, decoding_faults
from ..parallel import parallel_map
from ..specs import ClassificationSpec

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageFolder(ClassificationSpec):
    """A dataset of class folders in ``folder``."""

    folder: str

    def paths(self) -> list[str]:
        return [self.folder]

    def read_images(
        self, root: str, skip_bad: bool = False
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return read_images(os.path.join(root, self.folder), skip_bad)

    def list_images(self, root: str) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
        files, labels, classes = read_folder(os.path.join(root, self.folder))
        return list(zip(files, labels)), classes

    def check(self, root: str, workers: int) -> Report:
        where = os.path.join(root, self.folder)
        listed = list_folder(where)
        faults = [str(_no_images(path)) for path, files in listed if not files]
        images = [file for _, files in listed for file in files]
        for lines in parallel_map(decoding_faults, images, workers, "images"):
            faults += lines
        counts = Counter({label: len(files) for label, (_, files) in enumerate(listed)})
        return self.report(where, [os.path.basename(path) for path, _ in listed], counts, faults)


def list_folder(folder: str) -> list[tuple[str, list[str]]]:
    """``<folder>/<class>/<image>`` -> [(path of the class, [paths of its images])], sorted by name.

    Raises:
        DatasetError: no such folder, or no classes.
    """
    if not os.path.isdir(folder):
        raise DatasetError(folder, "does not exist: it should hold one folder per class")
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir())
    if not classes:
        raise DatasetError(
            folder, "holds no class folders: put one folder of images per class in it"
        )
    listed = []
    for path in (os.path.join(folder, name) for name in classes):
        found = [f for f in sorted(os.listdir(path)) if f.lower().endswith(EXTENSIONS)]
        listed.append((path, [os.path.join(path, f) for f in found]))
    return listed


def _no_images(path: str) -> DatasetError:
    return DatasetError(path, f"holds no image {EXTENSIONS}")


def read_folder(folder: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """``<folder>/<class>/<image>`` -> (files, labels, classes), classes and files sorted by name.

    Raises:
        DatasetError: no such folder, no classes, or a class without images.
    """
    files: list[str] = []
    labels: list[int] = []
    listed = list_folder(folder)
    for label, (path, found) in enumerate(listed):
        if not found:
            raise _no_images(path)
        files += found
        labels += [label] * len(found)
    return files, labels, tuple(os.path.basename(path) for path, _ in listed)


def read_images(
    folder: str, skip_bad: bool = False
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decode every image of :func:`read_folder`. All must have the same size.

    Args:
        skip_bad: skip an unusable image, with a warning that counts them, instead of raising.

    Returns:
        (uint8 array (N, 3, H, W) in RGB, int64 array (N,), classes).

    Raises:
        DatasetError, ImageError: names up to ten files.
    """
    files, labels, classes = read_folder(folder)
    images: list[np.ndarray] = []
    kept: list[int] = []
    faults: list[DatasetError] = []
    for file, label in zip(files, labels):
        try:
            image = pixels.read_image(file, "RGB")
            if images and image.shape != images[0].shape:
                size, usual = image.shape[:2], images[0].shape[:2]
                raise DatasetError(
                    file, f"is {size[1]} x {size[0]} pixels, the others {usual[1]} x {usual[0]}"
                )
        except DatasetError as fault:
            faults.append(fault)
            if skip_bad:
                logger.warning("skipped %s (%d unusable so far)", fault, len(faults))
            continue
        images.append(image)
        kept.append(label)
    if faults and not skip_bad:
        raise together(folder, faults)
    if not images:
        raise DatasetError(folder, f"none of its {len(files)} images is usable")
    return np.stack(images).transpose(0, 3, 1, 2), np.array(kept), classes
