"""Folders of images, one folder per class: the layout of torchvision's ImageFolder and ImageNet."""

import logging
import os
from collections import Counter
from dataclasses import dataclass

import numpy as np

from ...hints import did_you_mean
from ...records import DatasetError, together
from .. import pixels
from ..check import Report, decoding_faults
from ..image_files import EXTENSIONS, is_hidden
from ..parallel import parallel_map
from ..specs import ClassificationSpec, check_chosen

logger = logging.getLogger(__name__)

Classes = list[tuple[str, list[str]]]  # (path of the class's folder, paths of its images)


@dataclass(frozen=True)
class ImageFolder(ClassificationSpec):
    """A dataset of class folders in ``folder``.

    Attributes:
        split: name of the subfolder that holds the class folders; None for ``folder`` itself.
    """

    folder: str
    split: str | None = None

    def paths(self) -> list[str]:
        return [self.folder]

    def read_images(
        self, root: str, skip_bad: bool = False
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return read_images(os.path.join(root, self.folder), skip_bad)

    def list_images(self, root: str) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
        where, listed = self._listed(root)
        files, labels, classes = labelled(listed)
        images = [pair for pair in zip(files, labels) if self._holds(pair[0])]
        if not images:
            raise DatasetError(self.name, f"none of the {len(files)} images in {where} is in it")
        return images, classes

    def _holds(self, file: str) -> bool:
        return self.part is None or self.part.holds(file)

    def _listed(self, root: str) -> tuple[str, Classes]:
        """The folder of the classes, and the chosen classes with their images."""
        self.check_located(root)
        where = self.locate(root, self.folder)
        self.check_folder(where, "that holds one folder of images per class")
        if self.own:
            where = self._split_folder(where)
        listed = list_folder(where)
        if self.chosen:
            by_name = {os.path.basename(path): (path, files) for path, files in listed}
            check_chosen(self.name, self.chosen, list(by_name))
            listed = [by_name[name] for name in self.chosen]
        return where, listed

    def _split_folder(self, folder: str) -> str:
        """The folder of the split. Raises DatasetError, with the splits there, if there is none."""
        subfolders = [entry for entry in _visible(folder) if entry.is_dir()]
        splits = sorted(entry.name for entry in subfolders if _holds_classes(entry.path))
        if self.split in splits:
            return os.path.join(folder, str(self.split))
        if self.split is None and not splits:
            return folder
        if self.split is None:
            hint = f"is divided: choose split={' or split='.join(splits)}"
        elif splits:
            hint = f"has no split {self.split!r}{did_you_mean(self.split, splits, list_all=True)}"
        else:
            hint = f"has no split {self.split!r}: to divide its images, use split=[:80%]"
        raise DatasetError(self.name, f"{folder} {hint}")

    def check(self, root: str, workers: int) -> Report:
        where, listed = self._listed(root)
        faults = [str(_no_images(path)) for path, files in listed if not files]
        listed = [(path, list(filter(self._holds, files))) for path, files in listed]
        images = [file for _, files in listed for file in files]
        for lines in parallel_map(decoding_faults, images, workers, "images"):
            faults += lines
        counts = Counter({label: len(files) for label, (_, files) in enumerate(listed)})
        return self.report(where, [os.path.basename(path) for path, _ in listed], counts, faults)


def _visible(folder: str) -> list[os.DirEntry[str]]:
    """The files and folders in a folder that are not hidden."""
    return [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]


def _holds_classes(folder: str) -> bool:
    """Whether a folder holds folders and no images."""
    inside = _visible(folder)
    images = (entry for entry in inside if entry.name.lower().endswith(EXTENSIONS))
    return any(entry.is_dir() for entry in inside) and not any(images)


def list_folder(folder: str) -> Classes:
    """``<folder>/<class>/<image>`` -> [(path of the class, [paths of its images])], sorted by name.

    Hidden files and folders are ignored. The log counts what else is left out.

    Raises:
        DatasetError: no such folder, or no classes.
    """
    if not os.path.isdir(folder):
        raise DatasetError(folder, "does not exist: it should hold one folder per class")
    classes = sorted(e.name for e in _visible(folder) if e.is_dir())
    if not classes:
        raise DatasetError(
            folder, "holds no class folders: put one folder of images per class in it"
        )
    listed = []
    others = 0
    for path in (os.path.join(folder, name) for name in classes):
        names = sorted(entry.name for entry in _visible(path))
        found = [name for name in names if name.lower().endswith(EXTENSIONS)]
        others += len(names) - len(found)
        listed.append((path, [os.path.join(path, name) for name in found]))
    if others:
        what = "files and subfolders of its classes are left out: images are files that end in"
        logger.info("%s: %d %s %s", folder, others, what, ", ".join(EXTENSIONS))
    return listed


def _no_images(path: str) -> DatasetError:
    return DatasetError(path, f"holds no image {EXTENSIONS}")


def read_folder(folder: str) -> tuple[list[str], list[int], tuple[str, ...]]:
    """``<folder>/<class>/<image>`` -> (files, labels, classes), classes and files sorted by name.

    Raises:
        DatasetError: no such folder, no classes, or a class without images.
    """
    return labelled(list_folder(folder))


def labelled(listed: Classes) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The files, labels and class names of what :func:`list_folder` returned.

    Raises:
        DatasetError: a class has no images.
    """
    files: list[str] = []
    labels: list[int] = []
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
