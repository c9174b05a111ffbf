"""A dataset of small images of one size, held in one tensor and augmented by whole batches."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike

from .. import pixels
from ..catalog import Root, classification_spec, datasets_root
from ..loader import check_share, global_batches


class SmallImages:
    """Images and labels on one device, with their mean and standard deviation.

    Attributes:
        images: uint8 (N, 3, H, W). labels: int64 (N,). classes: names.
        mean, std: per channel (3, 1, 1) or per pixel (3, H, W), in the order of the channels.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        classes: tuple[str, ...],
        mean: ArrayLike = 0.0,
        std: ArrayLike = 1.0,
    ) -> None:
        self.images, self.labels, self.classes = images, labels, classes
        self.normalise_by(mean, std)

    @classmethod
    def read(
        cls, name: str, format: str, root: Root = None, skip_bad: bool = False
    ) -> "SmallImages":
        """Read a dataset by its name.

        Args:
            format: one of :data:`~resnet_det.data.pixels.FORMATS`.
            skip_bad: skip an unreadable image, with a warning that counts them, instead of raising.

        Raises:
            UnknownDataset: no dataset has this name.
            DatasetError, ImageError: the files are missing or damaged.
        """
        spec = classification_spec(name)
        root = datasets_root(root)
        if spec.drawn:
            spec.drawn.check_drawn(root)
        images, labels, classes = spec.read_images(root, skip_bad)
        if format == "BGR":
            images = images[:, ::-1]
        elif format == "L":
            images = pixels.grey(images)
        return cls(
            torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels), classes
        )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> "SmallImages":
        """This dataset on a device."""
        images, labels = self.images.to(device), self.labels.to(device)
        return SmallImages(images, labels, self.classes, self.mean, self.std)

    def mean_image(self) -> torch.Tensor:
        """The per-pixel mean (section 4.2): each pixel's mean over the dataset, float32 (3, H,
        W)."""
        return (self.images.sum(0, dtype=torch.int64).double() / len(self)).float()

    def normalise_by(self, mean: ArrayLike, std: ArrayLike) -> None:
        """Set ``mean`` and ``std``: one number per channel, or a mean image (3, H, W).

        Raises:
            ValueError: the mean image and the dataset's images differ in size.
        """
        mean, std = as_map(mean), as_map(std)
        if mean.shape[1:] not in ((1, 1), self.images.shape[2:]):
            raise ValueError(
                f"the mean image has {tuple(mean.shape[1:])} pixels, but the images have "
                f"{tuple(self.images.shape[2:])}"
            )
        self.mean, self.std = (x.to(self.images.device) for x in (mean, std))

    def _normalised(self, index: torch.Tensor | slice) -> torch.Tensor:
        return (self.images[index].float() - self.mean) / self.std

    def check_test_crop(self, size: int) -> None:
        """Raise ValueError unless the images have ``size`` pixels for a test."""
        _check_crop(size, *self.images.shape[2:])

    def training_batches(
        self,
        *,
        total_batch: int,
        size: int,
        padding: int,
        flip: bool,
        seed: int,
        rank: int,
        world: int,
        start_iter: int,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches ``(images float (B, 3, size, size), labels (B,))`` without end.

        Each normalised image is padded with ``padding`` zeros, cropped at random and, with
        ``flip``, mirrored with probability 0.5 (section 4.2).
        Batch i is the same for every number of processes; each takes a contiguous share.
        """
        check_share(total_batch, world)
        h, w = (side + 2 * padding for side in self.images.shape[2:])
        _check_crop(size, h, w)
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
            drawn = np.stack([index[share], top, left, mirror])
            # One transfer, without a wait: CUDA copies these few numbers before the call returns.
            indices, top, left, mirror = torch.from_numpy(drawn).to(device, non_blocking=True)
            cells = torch.arange(size, device=device)
            rows = top[:, None] + cells
            columns = left[:, None] + torch.where(mirror[:, None] > 0, cells.flip(0), cells)
            images = F.pad(self._normalised(indices), (padding,) * 4)
            at = torch.arange(len(indices), device=device)[:, None, None]
            images = images.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]]
            yield images.permute(0, 3, 1, 2), self.labels[indices]

    def test_batches(
        self, *, size: int, batch: int = 256, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """Yield ``([images], labels)``: one view, the central ``size`` pixels. Each image is
        yielded once, by one of the processes."""
        self.check_test_crop(size)
        h, w = self.images.shape[2:]
        top, left = (h - size) // 2, (w - size) // 2
        begin, end = len(self) * rank // world, len(self) * (rank + 1) // world
        for i in range(begin, end, batch):
            part = slice(i, min(i + batch, end))
            images = self._normalised(part)[:, :, top : top + size, left : left + size]
            # Channels last, like the training batches: a fifth faster for a small net on a CPU.
            yield [images.contiguous(memory_format=torch.channels_last)], self.labels[part]


def as_map(value: ArrayLike) -> torch.Tensor:
    """A mean or a standard deviation as float32: (1, 1, 1), per channel (C, 1, 1), or (C, H, W)."""
    tensor = torch.as_tensor(value, dtype=torch.float32)
    return tensor.view(-1, 1, 1) if tensor.ndim < 3 else tensor


def _check_crop(size: int, height: int, width: int) -> None:
    if min(height, width) < size:
        raise ValueError(
            f"INPUT.CROP.SIZE: a crop of {size} pixels does not fit into {height} x {width} pixels"
        )
