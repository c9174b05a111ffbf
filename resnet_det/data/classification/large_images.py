"""Classification data of large images of any size (ImageNet): read as batches ask for them.

Worker processes decode and crop; pixels stay uint8 until they are on the device, where the batch is
normalised. A training image is one crop; a test image is seen in one or several views.
"""

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import default_collate

from .. import loader, pixels
from ..catalog import datasets_root
from ..pixels import draw_size
from . import shards
from .image_folder import FOLDERS, read_folder

NAMES = ("imagenet_train", "imagenet_val", *shards.SPLITS)

# The principal components of ImageNet's RGB values in [0, 1] (rows R, G, B; one column a component)
# as fb.resnet.torch publishes them (datasets/imagenet.lua), and AlexNet's standard deviation.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_ALPHA = 0.1

MEAN_IMAGES = 10_000  # of a mean image


def color_shift(rng):
    """AlexNet's colour augmentation: what to add to the R, G and B of every pixel of an image, on
    the scale 0-255. Float32 (3,), of standard deviations 3.2, 3.2 and 3.3."""
    return np.float32(255 * _EIGENVECTORS @ (rng.normal(0, _ALPHA, 3) * _EIGENVALUES))


@dataclass(frozen=True)
class RandomCrop:
    """Record ``(file, label)`` -> ``(uint8 (size, size, 3), label, colour shift (3,))``.

    The shorter side is resized to a random length, a random square of ``size`` pixels is cut out
    and mirrored with probability 0.5 if ``flip`` (section 3.4); the shift is zero unless
    ``color_pca``.

    Args:
        short_sizes, sampling: as :func:`~resnet_det.data.pixels.draw_size` takes them.
        format: order of the channels, "BGR" or "RGB".
    """

    short_sizes: tuple
    sampling: str
    size: int
    flip: bool
    color_pca: bool
    format: str

    def __call__(self, record, rng):
        file, label = record
        mirror = self.flip and rng.random() < 0.5

        def place(height, width):
            short = draw_size(self.short_sizes, self.sampling, rng)
            height, width = pixels.resized_shape(height, width, short, np.inf)
            top = int(rng.integers(height - self.size + 1))
            return height, width, top, int(rng.integers(width - self.size + 1))

        image = pixels.read_crop(file, place, self.size, self.format, mirror=mirror)
        shift = color_shift(rng) if self.color_pca else np.zeros(3, np.float32)
        return image, label, shift if self.format == "RGB" else shift[::-1].copy()


@dataclass(frozen=True)
class Crops:
    """The views of 1-crop and 10-crop testing: ``count`` crops of an image resized to ``short``.

    1: the centre. 10: the four corners (left to right, top to bottom) and the centre, then their
    mirror images.
    """

    short: int
    count: int = 1
    batch = 32

    @property
    def flip(self):
        return self.count == 10

    @property
    def sizes(self):
        return (self.short,)

    def __call__(self, image, size):
        """uint8 (h, w, 3) -> list of uint8 (size, size, 3), the mirror images apart."""
        height, width = pixels.resized_shape(*image.shape[:2], self.short, np.inf)
        image = pixels.resize(image, height, width)
        bottom, right = height - size, width - size
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)] if self.count == 10 else []
        return [image[y : y + size, x : x + size] for y, x in [*corners, (bottom // 2, right // 2)]]


@dataclass(frozen=True)
class Scales:
    """The views of fully convolutional testing: the whole image at each of several ``sizes`` of its
    shorter side, and with ``flip`` their mirror images."""

    sizes: tuple
    flip: bool
    batch = 1  # images differ in shape

    def __call__(self, image, size):
        shapes = [pixels.resized_shape(*image.shape[:2], short, np.inf) for short in self.sizes]
        return [pixels.resize(image, *shape) for shape in shapes]


@dataclass(frozen=True)
class _Views:
    """Record -> ``(views, label)``, of the image decoded in full."""

    views: Crops | Scales
    size: int
    format: str

    def __call__(self, record, rng):
        file, label = record
        return self.views(pixels.read_image(file, self.format), self.size), label


@dataclass
class LargeImages:
    """A set of image files and how they are seen.

    Attributes:
        records: list of ``(file, label)``, or :class:`.shards.Shards`. classes: names.
        format: order of the channels, "BGR" or "RGB".
        short_sizes, sampling, color_pca: of training images, see :class:`RandomCrop`.
        views: of test images, :class:`Crops` or :class:`Scales`.
        num_workers: processes that decode; 0 decodes in this one.
        skip_bad: train on the next good image in place of an unreadable one, with a warning that
            counts, instead of raising.
        mean, std: per channel (3, 1, 1) or per pixel of a crop (3, H, W), in the channels' order.
    """

    records: list | shards.Shards
    classes: tuple
    format: str
    short_sizes: tuple = (256, 480)
    sampling: str = "range"
    color_pca: bool = False
    views: Crops | Scales = Crops(256)
    num_workers: int = 0
    skip_bad: bool = False
    device: str | torch.device = "cpu"

    @classmethod
    def read(cls, name, format, root=None, **options):
        """List the files of a dataset of ``NAMES``; ``options`` are the further attributes.

        Raises:
            DatasetError: no such folder, no classes, or a class without images; no shards.
        """
        if name in shards.SPLITS:
            return cls(*shards.find(name, datasets_root(root)), format, **options)
        files, labels, classes = read_folder(os.path.join(datasets_root(root), FOLDERS[name]))
        return cls(list(zip(files, labels)), classes, format, **options)

    def __post_init__(self):
        self.normalise_by([0.0] * 3, [1.0] * 3)

    @property
    def _reader(self):
        """The module that makes batches of the records, and what it needs to know besides."""
        sharded = isinstance(self.records, shards.Shards)
        return (shards, {"classes": len(self.classes)}) if sharded else (loader, {})

    def __len__(self):
        return len(self.records)

    def image_records(self):
        """The files as :func:`.image_check.unusable` takes them; none of shards, which only open
        when they are read from end to end."""
        if self._reader[0] is shards:
            return []
        return [{"file_name": file} for file, _ in self.records]

    def to(self, device):
        """This set, its batches on ``device``."""
        self.device, self.mean, self.std = device, self.mean.to(device), self.std.to(device)
        return self

    def normalise_by(self, mean, std):
        """Set ``mean`` and ``std``: numbers per channel, or a mean image (3, H, W)."""
        mean, std = (torch.as_tensor(x, dtype=torch.float32) for x in (mean, std))
        mean, std = (x.view(-1, 1, 1) if x.ndim < 3 else x for x in (mean, std))
        self.mean, self.std = mean.to(self.device), std.to(self.device)

    def mean_image(self, size):
        """The mean of the central ``size`` pixels of 10,000 images, or all if there are fewer, taken
        evenly over the set and resized to the middle of ``short_sizes``: float32 (3, H, W)."""
        if self._reader[0] is shards:
            raise ValueError("RESNET_DET.PER_PIXEL_MEAN: no mean image is made of shards")
        step = -(-len(self) // MEAN_IMAGES)
        short = (min(self.short_sizes) + max(self.short_sizes)) // 2
        part = replace(self, records=self.records[::step], views=Crops(short)).to(self.device)
        batches = part.test_batches(size=size, skip_bad=self.skip_bad)
        total, count = 0, 0
        for views, labels in batches:
            total, count = total + views[0].double().sum(0), count + len(labels)
        if not count:
            raise ValueError(f"none of the {len(part)} images of a mean image is usable")
        return (total / count).float()

    def _normalised(self, images, shift=None):
        """uint8 (N, h, w, 3) -> float (N, 3, h, w) on the device, channels last."""
        images = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        mean = self.mean
        if shift is not None:
            mean = mean - shift.to(self.device, non_blocking=True)[:, :, None, None]
        return images.sub_(mean).div_(self.std)

    def _check_sizes(self, size, shorts, key):
        if min(shorts) < size:
            raise ValueError(
                f"a crop of {size} pixels (INPUT.CROP.SIZE) does not fit into an image whose "
                f"shorter side is {min(shorts)} ({key})"
            )

    def training_batches(self, *, total_batch, size, flip, seed, rank, world, start_iter):
        """Endless batches ``(images float (B, 3, size, size), labels (B,))``.

        Batch i is the same for every number of processes and workers and after any interruption;
        each process takes a contiguous share. Of shards, see :mod:`.shards`.
        """
        self._check_sizes(size, self.short_sizes, "INPUT.MIN_SIZE_TRAIN")
        reader, known = self._reader
        stream = reader.training_batches(
            self.records,
            RandomCrop(self.short_sizes, self.sampling, size, flip, self.color_pca, self.format),
            total_batch=total_batch,
            seed=seed,
            rank=rank,
            world=world,
            start_iter=start_iter,
            num_workers=self.num_workers,
            skip_bad=self.skip_bad,
            **known,
            collate=default_collate,  # into shared memory, from where it goes to the device
        )
        for images, labels, shift in stream:
            images = self._normalised(images, shift if self.color_pca else None)
            yield images, labels.to(self.device, non_blocking=True)

    def test_batches(self, *, size, rank=0, world=1, skip_bad=False):
        """``(views, labels)``, every image once over all processes: ``views`` is a list of float
        (N, 3, h, w), the same N images seen in as many ways. ``skip_bad`` leaves out an
        unreadable one, with a warning, instead of raising: not for a test."""
        self._check_sizes(size, self.views.sizes, "INPUT.MIN_SIZE_TEST or TEST.AUG.MIN_SIZES")
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
            if self.views.flip:
                views = views + [view.flip(2) for view in views]
            yield [self._normalised(view) for view in views], labels.to(self.device)
