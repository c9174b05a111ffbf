"""Classification data: folders of images, one a class (torchvision's ImageFolder, ImageNet's)."""

import logging
import os

import numpy as np

from ...records import DatasetError, together
from .. import pixels

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")

# name -> folder of the class folders
FOLDERS = {
    "scenes_classification_train": "scenes/classification/train",
    "scenes_classification_val": "scenes/classification/val",
    "imagenet_train": "imagenet/train",
    "imagenet_val": "imagenet/val",
}


# ILSVRC 2012: name -> images
IMAGENET_CLASSES = 1000
IMAGENET = {"imagenet_train": 1_281_167, "imagenet_val": 50_000}


def list_folder(folder):
    """``<folder>/<class>/<image>`` -> [(path of the class, [paths of its images])], sorted by name.

    Raises:
        DatasetError: no such folder, or no classes.
    """
    if not os.path.isdir(folder):
        raise DatasetError(folder, "no such folder of classes")
    classes = sorted(e.name for e in os.scandir(folder) if e.is_dir())
    if not classes:
        raise DatasetError(folder, "holds no folder of a class")
    listed = []
    for path in (os.path.join(folder, name) for name in classes):
        found = [f for f in sorted(os.listdir(path)) if f.lower().endswith(EXTENSIONS)]
        listed.append((path, [os.path.join(path, f) for f in found]))
    return listed


def no_images(path):
    return DatasetError(path, f"holds no image {EXTENSIONS}")


def read_folder(folder):
    """``<folder>/<class>/<image>`` -> (files, labels, classes), classes and files sorted by name.

    Raises:
        DatasetError: no such folder, no classes, or a class without images.
    """
    files, labels = [], []
    listed = list_folder(folder)
    for label, (path, found) in enumerate(listed):
        if not found:
            raise no_images(path)
        files += found
        labels += [label] * len(found)
    return files, labels, tuple(os.path.basename(path) for path, _ in listed)


def read_images(folder, skip_bad=False):
    """Decode every image of :func:`read_folder`, all of one size.

    Args:
        skip_bad: leave out an unusable image with a warning that counts, instead of raising.

    Returns:
        (uint8 array (N, 3, H, W) in RGB, int64 array (N,), classes).

    Raises:
        DatasetError, ImageError: names the file, or up to ten.
    """
    files, labels, classes = read_folder(folder)
    images, kept, faults = [], [], []
    for file, label in zip(files, labels):
        try:
            image = pixels.read_image(file, "RGB")
            if images and image.shape != images[0].shape:
                size, usual = image.shape[:2], images[0].shape[:2]
                raise DatasetError(file, f"is {size} pixels, others are {usual}")
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
