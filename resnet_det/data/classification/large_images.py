"""A dataset of large images of any size (ImageNet), each read when a batch needs it.

Worker processes decode and crop. Pixels stay uint8 until they are on the device, where the batch is
normalised. A training sample is one crop; a test image is seen in one or several views.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import default_collate

from .. import loader, pixels
from ..catalog import Root, classification_spec, datasets_root
from ..jitter import NO_JITTER, ColorJitter
from ..pixels import color_shift, draw_size
from . import shards
from .small_images import as_map

MEAN_IMAGES = 10_000  # at most so many images contribute to a mean image

Record = tuple[pixels.Source, int]  # image, label


@dataclass(frozen=True)
class RandomCrop:
    """Record ``(file, label)`` -> ``(uint8 (size, size, 3), label, colour shift (3,))``.

    The shorter side is resized to a random length, and a random square of ``size`` pixels is cut
    out and, with ``flip``, mirrored with probability 0.5 (section 3.4). Then ``jitter`` changes its
    colours. The shift is zero unless ``color_pca``.

    Args:
        short_sizes, sampling: as :func:`~resnet_det.data.pixels.draw_size` takes them.
        format: one of :data:`~resnet_det.data.pixels.FORMATS`.
    """

    short_sizes: tuple[int, ...]
    sampling: str
    size: int
    flip: bool
    jitter: ColorJitter
    color_pca: bool
    format: str

    def __call__(
        self, record: Record, rng: np.random.Generator
    ) -> tuple[np.ndarray, int, np.ndarray]:
        file, label = record
        mirror = self.flip and rng.random() < 0.5

        def place(height: int, width: int) -> tuple[int, int, int, int]:
            short = draw_size(self.short_sizes, self.sampling, rng)
            height, width = pixels.resized_shape(height, width, short, np.inf)
            top = int(rng.integers(height - self.size + 1))
            return height, width, top, int(rng.integers(width - self.size + 1))

        image = pixels.read_crop(file, place, self.size, self.format, mirror=mirror)
        image = self.jitter(image, rng)
        if not self.color_pca:
            return image, label, np.zeros(image.shape[2], np.float32)
        return image, label, color_shift(rng, self.format)


@dataclass(frozen=True)
class Crops:
    """The views of 1-crop and 10-crop testing: ``count`` crops of an image whose shorter side is
    resized to ``short``.

    1: the centre. 10: the four corners (left to right, top to bottom) and the centre, then their
    mirror images.
    """

    short: int
    count: int = 1
    batch = 32

    @property
    def flip(self) -> bool:
        return self.count == 10

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.short,)

    def __call__(self, image: np.ndarray, size: int) -> list[np.ndarray]:
        """uint8 (h, w, 3) -> list of uint8 (size, size, 3), without the mirror images."""
        height, width = image.shape[:2]
        height, width = pixels.resized_shape(height, width, self.short, np.inf)
        image = pixels.resize(image, height, width)
        bottom, right = height - size, width - size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if self.count == 10 else []
        return [image[y : y + size, x : x + size] for y, x in [*corners, (bottom // 2, right // 2)]]


@dataclass(frozen=True)
class Scales:
    """The views of fully convolutional testing: the whole image, resized so that its shorter side
    has each of the ``sizes``, and the mirror images if ``flip``."""

    sizes: tuple[int, ...]
    flip: bool
    batch = 1  # images differ in shape

    def __call__(self, image: np.ndarray, size: int) -> list[np.ndarray]:
        height, width = image.shape[:2]
        shapes = [pixels.resized_shape(height, width, short, np.inf) for short in self.sizes]
        return [pixels.resize(image, *shape) for shape in shapes]


@dataclass(frozen=True)
class _Views:
    """Record -> ``(views, label)``. Decodes the whole image."""

    views: Crops | Scales
    size: int
    format: str

    def __call__(self, record: Record, rng: np.random.Generator) -> tuple[list[np.ndarray], int]:
        file, label = record
        return self.views(pixels.read_image(file, self.format), self.size), label


@dataclass
class LargeImages:
    """A dataset of image files, and how its images are cropped.

    Attributes:
        records: list of ``(file, label)``, or :class:`.shards.Shards`. classes: names.
        format: one of :data:`~resnet_det.data.pixels.FORMATS`.
        short_sizes, sampling, jitter, color_pca: of training images, see :class:`RandomCrop`.
        views: of test images, :class:`Crops` or :class:`Scales`.
        num_workers: number of processes that decode; 0 decodes in this process.
        skip_bad: replace an unreadable training image by the next good one, with a warning that
            counts them, instead of raising.
        mean, std: per channel (3, 1, 1) or per pixel of a crop (3, H, W), in the order of the
            channels.
    """

    records: Sequence[Record] | shards.Shards
    classes: tuple[str, ...]
    format: str
    short_sizes: tuple[int, ...] = (256, 480)
    sampling: str = "range"
    jitter: ColorJitter = NO_JITTER
    color_pca: bool = False
    views: Crops | Scales = Crops(256)
    num_workers: int = 0
    skip_bad: bool = False
    device: str | torch.device = "cpu"

    @classmethod
    def read(cls, name: str, format: str, root: Root = None, **options: Any) -> "LargeImages":
        """List the files of a dataset of large images.

        Args:
            options: the other attributes.

        Raises:
            UnknownDataset: no dataset has this name.
            DatasetError: no such folder, no classes, a class without images, or no shards.
        """
        records, classes = classification_spec(name).list_images(datasets_root(root))
        return cls(records, classes, format, **options)

    def __post_init__(self) -> None:
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.normalise_by(0.0, 1.0)

    @property
    def _reader(self) -> tuple[ModuleType, dict[str, int]]:
        """The module that makes batches from the records, and its extra keyword arguments."""
        sharded = isinstance(self.records, shards.Shards)
        return (shards, {"classes": len(self.classes)}) if sharded else (loader, {})

    def __len__(self) -> int:
        return len(self.records)

    def image_records(self) -> list[dict[str, Any]]:
        """The files, for :func:`.image_check.unusable`. Empty for shards, because checking them
        would mean reading them from end to end."""
        if self._reader[0] is shards:
            return []
        return [{"file_name": file} for file, _ in self.records]

    def to(self, device: str | torch.device) -> "LargeImages":
        """Make the batches on ``device``. Returns this object."""
        self.device, self.mean, self.std = device, self.mean.to(device), self.std.to(device)
        return self

    def normalise_by(self, mean: ArrayLike, std: ArrayLike) -> None:
        """Set ``mean`` and ``std``: one number per channel, or a mean image (3, H, W)."""
        self.mean, self.std = as_map(mean).to(self.device), as_map(std).to(self.device)

    def mean_image(self, size: int) -> torch.Tensor:
        """The mean of the central ``size`` pixels of up to 10,000 images: float32 (3, H, W).

        The images are spread evenly over the dataset, and their shorter side is resized to the
        middle of ``short_sizes``.
        """
        if self._reader[0] is shards:
            raise ValueError("RESNET_DET.PER_PIXEL_MEAN: True is not supported for tar shards")
        step = -(-len(self) // MEAN_IMAGES)
        short = (min(self.short_sizes) + max(self.short_sizes)) // 2
        part = replace(self, records=self.records[::step], views=Crops(short)).to(self.device)
        batches = part.test_batches(size=size, skip_bad=self.skip_bad)
        total: Any = 0
        count = 0
        for views, labels in batches:
            total, count = total + views[0].double().sum(0), count + len(labels)
        if not count:
            raise ValueError(f"RESNET_DET.PER_PIXEL_MEAN: none of {len(part)} images is usable")
        return (total / count).float()

    def _normalised(self, images: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 (N, h, w, 3) -> float (N, 3, h, w) on the device, channels last."""
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        mean = self.mean
        if shift is not None:
            mean = mean - shift.to(self.device, non_blocking=True)[:, :, None, None]
        return images.sub_(mean).div_(self.std)

    def _check_sizes(self, size: int, shorts: Sequence[int], key: str) -> None:
        if min(shorts) < size:
            raise ValueError(
                f"a crop of {size} pixels (INPUT.CROP.SIZE) does not fit into an image whose "
                f"shorter side is {min(shorts)} ({key})"
            )

    def check_test_crop(self, size: int) -> None:
        """Raise ValueError unless the resized images have ``size`` pixels for a test."""
        self._check_sizes(size, self.views.sizes, "INPUT.MIN_SIZE_TEST or TEST.AUG.MIN_SIZES")

    def training_batches(
        self,
        *,
        total_batch: int,
        size: int,
        flip: bool,
        seed: int,
        rank: int,
        world: int,
        start_iter: int,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches ``(images float (B, 3, size, size), labels (B,))`` without end.

        Batch i is the same for every number of processes and workers, and after any interruption;
        each process takes a contiguous share. For shards, see :mod:`.shards`.
        """
        self._check_sizes(size, self.short_sizes, "INPUT.MIN_SIZE_TRAIN")
        reader, known = self._reader
        crop = RandomCrop(
            self.short_sizes, self.sampling, size, flip, self.jitter, self.color_pca, self.format
        )
        stream = reader.training_batches(
            self.records,
            crop,
            total_batch=total_batch,
            seed=seed,
            rank=rank,
            world=world,
            start_iter=start_iter,
            num_workers=self.num_workers,
            skip_bad=self.skip_bad,
            **known,
            collate=default_collate,  # in shared memory
        )
        for images, labels, shift in stream:
            images = self._normalised(images, shift if self.color_pca else None)
            yield images, labels.to(self.device, non_blocking=True)

    def test_batches(
        self, *, size: int, rank: int = 0, world: int = 1, skip_bad: bool = False
    ) -> Iterator[tuple[list[torch.Tensor], torch.Tensor]]:
        """Yield ``(views, labels)``. Each image is yielded once, by one of the processes.

        ``views`` is a list of float (N, 3, h, w): the same N images in each view. ``skip_bad``
        skips an unreadable image, with a warning, instead of raising; do not use it to measure
        accuracy.
        """
        self.check_test_crop(size)
        reader, known = self._reader
        stream = reader.test_batches(
            self.records,
            _Views(self.views, size, self.format),
            rank=rank,
            world=world,
            num_workers=self.num_workers,
            batch=self.views.batch,
            skip_bad=skip_bad,
            **known,
            collate=default_collate,
        )
        for views, labels in stream:
            views = [view.to(self.device, non_blocking=True) for view in views]
            if self.views.flip:
                views += [view.flip(2) for view in views]
            labels = labels.to(self.device, non_blocking=True)
            yield [self._normalised(view) for view in views], labels
