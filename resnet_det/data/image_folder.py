"""Classification data: folders of images, one a class (torchvision's ImageFolder, ImageNet's)."""

import logging
import os

import numpy as np
import torch
import torch.nn.functional as F

from . import pixels
from .catalog import UnknownDataset, datasets_root
from .loader import global_batches
from .records import DatasetError

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png")

# name -> folder of the class folders
FOLDERS = {
    "scenes_classification_train": "scenes/classification/train",
    "scenes_classification_val": "scenes/classification/val",
}


def read_folder(folder):
    """``<folder>/<class>/<image>`` -> (files, labels, classes), classes and files sorted by name.

    Raises:
        DatasetError: no such folder, no classes, or a class without images.
    """
    if not os.path.isdir(folder):
        raise DatasetError(folder, "no such folder of classes")
    classes = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir()))
    if not classes:
        raise DatasetError(folder, "holds no folder of a class")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(os.listdir(os.path.join(folder, name)))
        found = [f for f in found if f.lower().endswith(EXTENSIONS)]
        if not found:
            raise DatasetError(os.path.join(folder, name), f"holds no image {EXTENSIONS}")
        files += [os.path.join(folder, name, f) for f in found]
        labels += [label] * len(found)
    return files, labels, classes


class SmallImages:
    """A whole set of small images of one size, held in one tensor and augmented in batch there.

    Attributes:
        images: uint8 (N, 3, H, W). labels: int64 (N,). classes: names.
        mean, std: broadcast to (3, H, W): per channel (3, 1, 1) or per pixel.
    """

    def __init__(self, images, labels, classes, mean, std):
        self.images, self.labels, self.classes = images, labels, classes
        self.mean, self.std = mean, std

    @classmethod
    def read(cls, name, format, mean, std, root=None, skip_bad=False):
        """Read a dataset by its name.

        Args:
            format: order of the channels, "BGR" or "RGB".
            mean, std: of each channel, in that order, of pixels 0-255.
            skip_bad: leave out an unreadable image with a warning that counts, instead of raising.

        Raises:
            UnknownDataset, DatasetError, ImageError.
        """
        if name not in FOLDERS:
            raise UnknownDataset(
                f"unknown classification dataset {name!r}; known: {', '.join(FOLDERS)}"
            )
        root = datasets_root(root)
        if name.startswith("scenes_"):
            from . import scenes

            scenes.ensure_scenes(root)
        files, labels, classes = read_folder(os.path.join(root, FOLDERS[name]))
        images, kept, bad = [], [], 0
        for file, label in zip(files, labels):
            try:
                image = pixels.read_image(file, format)
                if images and image.shape != images[0].shape:
                    size, usual = image.shape[:2], images[0].shape[:2]
                    raise DatasetError(file, f"is {size} pixels, others are {usual}")
            except DatasetError as fault:
                if not skip_bad:
                    raise
                bad += 1
                logger.warning("skipped %s (%d unusable so far)", fault, bad)
                continue
            images.append(image)
            kept.append(label)
        if not images:
            raise DatasetError(name, f"none of its {len(files)} images is usable")
        images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
        return cls(images, torch.tensor(kept), classes, mean, std)

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        images, labels, mean, std = (
            x.to(device) for x in (self.images, self.labels, self.mean, self.std)
        )
        return SmallImages(images, labels, self.classes, mean, std)

    def _normalised(self, index):
        return (self.images[index].float() - self.mean) / self.std

    def training_batches(self, *, total_batch, size, padding, flip, seed, rank, world, start_iter):
        """Endless batches ``(images float (B, 3, size, size), labels (B,))``.

        Each normalised image is padded with ``padding`` zeros, cropped at random and, with
        ``flip``, mirrored with probability 0.5 (section 4.2).
        Batch i is the same for every number of processes; each takes a contiguous share.
        """
        if total_batch % world:
            raise ValueError(
                f"the total batch of {total_batch} images (SOLVER.IMS_PER_BATCH) cannot be shared "
                f"equally by {world} processes"
            )
        h, w = (side + 2 * padding for side in self.images.shape[2:])
        if min(h, w) < size:
            raise ValueError(
                f"a crop of {size} pixels does not fit into {h} x {w} (INPUT.CROP.SIZE)"
            )
        share = slice(rank * total_batch // world, (rank + 1) * total_batch // world)
        stream = global_batches(
            len(self), total_batch=total_batch, seed=seed, start_iter=start_iter
        )
        device = self.images.device
        for iteration, index in enumerate(stream, start_iter):
            rng = np.random.default_rng([seed, iteration])
            top = rng.integers(h - size + 1, size=total_batch)[share]
            left = rng.integers(w - size + 1, size=total_batch)[share]
            mirror = (rng.random(total_batch) < 0.5)[share] & flip
            index = torch.tensor(index[share], device=device)
            rows = torch.from_numpy(top[:, None] + np.arange(size)).to(device)
            columns = np.arange(size)
            columns = np.where(mirror[:, None], columns[::-1], columns) + left[:, None]
            columns = torch.from_numpy(columns).to(device)
            images = F.pad(self._normalised(index), (padding,) * 4)
            at = torch.arange(len(index), device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]]
            yield images.permute(0, 3, 1, 2), self.labels[index]

    def test_batches(self, *, size, batch=256, rank=0, world=1):
        """``(images, labels)`` of the central ``size`` pixels, every image once over all processes."""
        h, w = self.images.shape[2:]
        if min(h, w) < size:
            raise ValueError(
                f"a crop of {size} pixels does not fit into {h} x {w} (INPUT.CROP.SIZE)"
            )
        top, left = (h - size) // 2, (w - size) // 2
        begin, end = len(self) * rank // world, len(self) * (rank + 1) // world
        for i in range(begin, end, batch):
            part = slice(i, min(i + batch, end))
            images = self._normalised(part)[:, :, top : top + size, left : left + size]
            yield images, self.labels[part]
