"""A whole set of small images of one size, held in one tensor and augmented in batch there."""

import os

import numpy as np
import torch
import torch.nn.functional as F

from ...hints import did_you_mean
from ..catalog import UnknownDataset, check_made, datasets_root
from ..loader import check_share, global_batches
from . import cifar10, shards
from .image_folder import FOLDERS, read_images


def dataset_names():
    """Every name of a classification dataset, those of :mod:`.large_images` too."""
    return [*FOLDERS, *shards.SPLITS, *cifar10.SPLITS]


def check_name(name):
    """Raises UnknownDataset, with the nearest names, where :func:`dataset_names` lacks it."""
    known = dataset_names()
    if name not in known:
        hint = did_you_mean(name, known, list_all=True)
        raise UnknownDataset(f"unknown classification dataset {name!r}{hint}")


class SmallImages:
    """Images and labels on one device, and what is subtracted from them and divides them.

    Attributes:
        images: uint8 (N, 3, H, W). labels: int64 (N,). classes: names.
        mean, std: per channel (3, 1, 1) or per pixel (3, H, W), in the order of the channels.
    """

    def __init__(self, images, labels, classes, mean=0.0, std=1.0):
        self.images, self.labels, self.classes = images, labels, classes
        self.normalise_by(mean, std)

    @classmethod
    def read(cls, name, format, root=None, skip_bad=False):
        """Read a dataset by its name.

        Args:
            format: order of the channels, "BGR" or "RGB".
            skip_bad: leave out an unreadable image of a folder with a warning that counts,
                instead of raising.

        Raises:
            UnknownDataset, DatasetError, ImageError.
        """
        check_name(name)
        root = datasets_root(root)
        if name in cifar10.SPLITS:
            images, labels = cifar10.read(name, root)
            classes = cifar10.CLASSES
        else:
            check_made(name, root)
            images, labels, classes = read_images(os.path.join(root, FOLDERS[name]), skip_bad)
        if format == "BGR":
            images = images[:, ::-1]
        return cls(
            torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels), classes
        )

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        tensors = (x.to(device) for x in (self.images, self.labels))
        return SmallImages(*tensors, self.classes, self.mean, self.std)

    def mean_image(self):
        """The mean of each pixel over the set, float32 (3, H, W): section 4.2's per-pixel mean."""
        return (self.images.sum(0, dtype=torch.int64).double() / len(self)).float()

    def normalise_by(self, mean, std):
        """Set ``mean`` and ``std``: numbers per channel, or a mean image (3, H, W).

        Raises:
            ValueError: the mean image has another size than the images.
        """
        mean, std = (torch.as_tensor(x, dtype=torch.float32) for x in (mean, std))
        mean, std = (x.view(-1, 1, 1) if x.ndim < 3 else x for x in (mean, std))
        if mean.shape[1:] not in ((1, 1), self.images.shape[2:]):
            raise ValueError(
                f"the mean image has {tuple(mean.shape[1:])} pixels, the images "
                f"{tuple(self.images.shape[2:])}"
            )
        self.mean, self.std = (x.to(self.images.device) for x in (mean, std))

    def _normalised(self, index):
        return (self.images[index].float() - self.mean) / self.std

    def training_batches(self, *, total_batch, size, padding, flip, seed, rank, world, start_iter):
        """Endless batches ``(images float (B, 3, size, size), labels (B,))``.

        Each normalised image is padded with ``padding`` zeros, cropped at random and, with
        ``flip``, mirrored with probability 0.5 (section 4.2).
        Batch i is the same for every number of processes; each takes a contiguous share.
        """
        check_share(total_batch, world)
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
            drawn = np.stack([index[share], top, left, mirror])  # one transfer to the device
            index, top, left, mirror = torch.from_numpy(drawn).to(device)
            cells = torch.arange(size, device=device)
            rows = top[:, None] + cells
            columns = left[:, None] + torch.where(mirror[:, None] > 0, cells.flip(0), cells)
            images = F.pad(self._normalised(index), (padding,) * 4)
            at = torch.arange(len(index), device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]]
            yield images.permute(0, 3, 1, 2), self.labels[index]

    def test_batches(self, *, size, batch=256, rank=0, world=1):
        """``([images], labels)``: every image once over all processes, in one view, the central
        ``size`` pixels."""
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
            # As the training batches lie in memory: a fifth of a small net's time on a CPU.
            yield [images.contiguous(memory_format=torch.channels_last)], self.labels[part]
