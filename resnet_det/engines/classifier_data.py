"""The datasets of classifiers, read and normalised according to a config."""

import torch
from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..data.catalog import classification_spec
from ..data.classification import large_images
from ..data.classification.large_images import LargeImages
from ..data.classification.small_images import SmallImages
from .checks import color_jitter

Images = SmallImages | LargeImages

# Tolerance between MODEL.PIXEL_MEAN and the mean image's mean, in grey levels. The means over all
# 50,000 and over 45,000 training images of CIFAR-10 differ by 0.04.
MEAN_TOLERANCE = 0.25


def read_images(name: str, cfg: CfgNode, device: torch.device, skip_bad: bool = False) -> Images:
    """Read the dataset ``name`` with the config's preprocessing, but without normalisation.

    Args:
        skip_bad: skip unreadable images with a warning, instead of raising.

    Raises:
        DatasetError, ImageError: the dataset is absent or damaged.
    """
    if not classification_spec(name).large:
        return SmallImages.read(name, cfg.INPUT.FORMAT, skip_bad=skip_bad).to(device)
    views: large_images.Scales | large_images.Crops
    if cfg.TEST.AUG.ENABLED:
        views = large_images.Scales(tuple(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.FLIP)
    else:
        views = large_images.Crops(cfg.INPUT.MIN_SIZE_TEST, cfg.RESNET_DET.TEST_CROPS)
    images = LargeImages.read(
        name,
        cfg.INPUT.FORMAT,
        short_sizes=tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        jitter=color_jitter(cfg),
        color_pca=cfg.RESNET_DET.COLOR_PCA,
        views=views,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        skip_bad=skip_bad,
    )
    return images.to(device)


def mean_image(images: Images, cfg: CfgNode) -> torch.Tensor:
    """The mean image of a training set, float32 (3, H, W), for ``RESNET_DET.PER_PIXEL_MEAN``."""
    if isinstance(images, SmallImages):
        return images.mean_image()
    return images.mean_image(cfg.INPUT.CROP.SIZE[0])


def normalise(cfg: CfgNode, mean: torch.Tensor | None, source: str, *datasets: Images) -> None:
    """Check the config's means, and set them on the datasets.

    Args:
        mean: the mean image (3, H, W) with ``RESNET_DET.PER_PIXEL_MEAN``, else None.
        source: name of the checkpoint or dataset that ``mean`` comes from, for the messages.

    Raises:
        ConfigError: there is a mean image without ``PER_PIXEL_MEAN`` or the reverse,
            ``MODEL.PIXEL_MEAN`` is not the mean over the mean image, or the crops of large images
            have another size than the mean image.
    """
    model = cfg.MODEL
    if cfg.RESNET_DET.PER_PIXEL_MEAN != (mean is not None):
        raise ConfigError(
            f"RESNET_DET.PER_PIXEL_MEAN: {cfg.RESNET_DET.PER_PIXEL_MEAN}, but {source} has "
            f"{'no' if mean is None else 'a'} mean image"
        )
    if mean is not None:
        channels = [round(x, 3) for x in mean.double().mean((1, 2)).tolist()]
        if max(abs(a - b) for a, b in zip(channels, model.PIXEL_MEAN)) > MEAN_TOLERANCE:
            raise ConfigError(
                f"MODEL.PIXEL_MEAN: {list(model.PIXEL_MEAN)}: with RESNET_DET.PER_PIXEL_MEAN it "
                f"must be the mean of the mean image of {source}: {channels}"
            )
        height, width = mean.shape[1:]
        large = any(isinstance(images, LargeImages) for images in datasets)
        if large and [height, width] != list(cfg.INPUT.CROP.SIZE):
            raise ConfigError(
                f"INPUT.CROP.SIZE: {list(cfg.INPUT.CROP.SIZE)}: the mean image of {source} has "
                f"{height} x {width} pixels: give that size"
            )
    for images in datasets:
        images.normalise_by(model.PIXEL_MEAN if mean is None else mean, model.PIXEL_STD)
