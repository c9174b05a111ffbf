"""Map a detection dataset's record to a training or test sample."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...records import BoxMode
from .. import pixels
from ..jitter import NO_JITTER, ColorJitter
from ..pixels import draw_size

logger = logging.getLogger(__name__)

_EMPTY = 1e-5  # boxes at most this wide or high are dropped, as in Detectron2


def with_usable_annotations(
    records: Sequence[dict[str, Any]], *, use_difficult: bool = True
) -> list[dict[str, Any]]:
    """Keep the records with at least one annotation to train on (FILTER_EMPTY_ANNOTATIONS).

    An annotation counts unless it is a crowd or, if ``use_difficult`` is False, difficult.

    Raises:
        ValueError: no record is left.
    """
    kept = [
        record
        for record in records
        if any(usable(annotation, use_difficult) for annotation in record["annotations"])
    ]
    if len(kept) < len(records):
        logger.info(
            "removed %d of %d images without usable annotations",
            len(records) - len(kept),
            len(records),
        )
    if not kept:
        raise ValueError(f"none of the {len(records)} images has a usable annotation to train on")
    return kept


FLIP_AXES = {"horizontal": 1, "vertical": 0}  # INPUT.RANDOM_FLIP: axis of an image (h, w, 3)


@dataclass(frozen=True)
class Crop:
    """Draws random crops of an image, as Detectron2's ``RandomCrop`` does.

    Attributes:
        type: how ``size`` gives the height and width of a crop. "absolute": in pixels, at most
            those of the image. "absolute_range": each is drawn from the range ``size``. "relative":
            as parts of the image's. "relative_range": as parts that are drawn between ``size`` and
            1.
        size: two numbers.
    """

    type: str
    size: tuple[float, float]

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) of a crop of an image with this height and width."""
        sides = self._sides(height, width, rng)
        top = int(rng.integers(height - sides[0] + 1))
        return top, int(rng.integers(width - sides[1] + 1)), *sides

    def _sides(self, height, width, rng):
        sides = height, width
        if self.type == "absolute":
            return tuple(min(int(part), side) for part, side in zip(self.size, sides))
        if self.type == "absolute_range":
            low, high = map(int, self.size)
            return tuple(int(rng.integers(min(side, low), min(side, high) + 1)) for side in sides)
        parts = self.size
        if self.type == "relative_range":
            least = np.array(parts, np.float32)
            parts = (least + rng.random(2) * (1 - least)).tolist()
        return tuple(max(1, int(side * part + 0.5)) for side, part in zip(sides, parts))


@dataclass(frozen=True)
class Placement:
    """How a sample's image is made from the original one: cropped, resized, then mirrored.

    Attributes:
        crop: (top, left, height, width), in pixels of the original image.
        size: (height, width) of the sample's image.
        axis: axis of the image that is mirrored, or None.
    """

    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    axis: int | None

    def image(self, image: np.ndarray) -> np.ndarray:
        """Make the sample's image from the original one, uint8 (h, w, channels)."""
        top, left, height, width = self.crop
        image = pixels.resize(image[top : top + height, left : left + width], *self.size)
        return image if self.axis is None else pixels.flip_image(image, self.axis)

    def boxes(self, boxes: np.ndarray, min_side: float) -> tuple[np.ndarray, np.ndarray]:
        """Move boxes (N, 4) of the original image to the sample's, and clip them.

        Returns:
            float32 (N, 4), and a mask of those that are wider and higher than ``min_side``.
        """
        top, left, height, width = self.crop
        size = self.size[::-1] * 2
        boxes = boxes - [left, top] * 2
        boxes = boxes * np.tile([self.size[1] / width, self.size[0] / height], 2)
        if self.axis is not None:
            boxes = pixels.flip_boxes(boxes, self.size[self.axis], self.axis)
        boxes = boxes.clip(0, size).astype(np.float32)
        return boxes, ((boxes[:, 2:] - boxes[:, :2]) > min_side).all(axis=1)


@dataclass(frozen=True)
class Copies:
    """Resized and mirrored copies of a test image, as Detectron2's ``DatasetMapperTTA`` makes them.

    Attributes:
        short_sizes: lengths of the shorter edge, one copy each.
        max_size: upper limit of the longer edge.
        flip: also mirror each copy horizontally.
    """

    short_sizes: tuple[int, ...]
    max_size: int
    flip: bool

    def __call__(self, image: np.ndarray) -> list[dict[str, Any]]:
        """uint8 (h, w, channels) -> dicts with ``image`` (uint8 tensor (3, h, w)) and
        ``mirrored``."""
        copies = []
        height, width = image.shape[:2]
        for short in self.short_sizes:
            size = pixels.resized_shape(height, width, short, self.max_size)
            copy = pixels.resize(image, *size)
            copies.append({"image": _channels_first(copy), "mirrored": False})
            if self.flip:
                copies.append({"image": _channels_first(copy[:, ::-1]), "mirrored": True})
        return copies


class DetectionMapper:
    """Maps a record to a sample: reads the image, randomly crops, resizes and mirrors it and its
    boxes.

    Pixels and boxes equal those of Detectron2's DatasetMapper.

    Args:
        short_sizes, sampling: lengths of the shorter edge, see :func:`draw_size`; 0 keeps the size.
        max_size: upper limit of the longer edge.
        flip: "horizontal" or "vertical", to mirror each image with probability 0.5, or "none".
        crop: draws the part of each image that is used; None uses the whole image.
        jitter: changes the colours of each image at random.
        color_pca: then use AlexNet's colour augmentation, :func:`~resnet_det.data.pixels.shift_colors`.
        format: order of the channels, "BGR" or "RGB".
        train: whether the sample has annotations.
        use_difficult: train on objects that VOC marks difficult, as Detectron2 does.
        proposals: number of precomputed proposals to use per image, by descending score; None if
            the records have none.
        scales: further lengths of the shorter edge, for multi-scale testing.
        copies: makes copies of the resized image, for test-time augmentation.

    A sample has ``file_name``, ``image_id``, ``height`` and ``width`` (of the original image), and
    ``image`` (uint8 tensor (3, h, w)). In training it also has ``boxes`` (float32 (N, 4), XYXY in
    the resized image) and ``classes`` (int64 (N,)). If ``proposals`` is set, it has ``proposals``
    (float32 (N, 4)); if ``scales`` is set, it has ``scales``, a list of images; if ``copies``
    is set, it has ``copies``. Boxes are clipped; crowds and empty boxes are dropped. A crop may
    leave no box.
    """

    def __init__(
        self,
        short_sizes: int | Sequence[int],
        max_size: int,
        *,
        sampling: str = "choice",
        flip: str = "none",
        crop: Crop | None = None,
        jitter: ColorJitter = NO_JITTER,
        color_pca: bool = False,
        format: str = "BGR",
        train: bool,
        use_difficult: bool = True,
        proposals: int | None = None,
        scales: Sequence[int] = (),
        copies: Copies | None = None,
    ) -> None:
        short_sizes = [short_sizes] if isinstance(short_sizes, int) else list(short_sizes)
        if sampling not in ("choice", "range"):
            raise ValueError(f"size sampling {sampling!r} is not one of 'choice', 'range'")
        if flip not in (*FLIP_AXES, "none"):
            raise ValueError(f"random flip {flip!r} is not one of {', '.join(FLIP_AXES)}, none")
        if sampling == "range" and len(short_sizes) == 1:
            short_sizes *= 2
        if not short_sizes or (sampling == "range" and len(short_sizes) != 2):
            raise ValueError(f"size sampling {sampling!r} cannot use the sizes {short_sizes}")
        self.short_sizes = short_sizes
        self.max_size = max_size
        self.sampling = sampling
        self.flip = flip
        self.crop = crop
        self.jitter = jitter
        self.color_pca = color_pca
        self.format = format
        self.train = train
        self.use_difficult = use_difficult
        self.proposals = proposals
        self.scales = tuple(scales)
        self.copies = copies

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = pixels.read_image(record["file_name"], self.format)
        pixels.check_size(image, record)
        return self.sample(image, record, rng)

    def sample(
        self, image: np.ndarray, record: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Make the sample of a record whose image, uint8 (h, w, channels), is already read."""
        height, width = image.shape[:2]
        place = self._draw(height, width, rng)
        sample: dict[str, Any] = {
            key: record[key] for key in ("file_name", "image_id") if key in record
        }
        seen = self.jitter(place.image(image), rng)
        if self.color_pca:
            seen = pixels.shift_colors(seen, self.format, rng)
        sample |= {"height": height, "width": width, "image": _channels_first(seen)}
        if self.scales:
            others = pixels.at_scales(image, self.scales, self.short_sizes[0], self.max_size)
            sample["scales"] = [_channels_first(other) for other in others]
        if self.copies is not None:
            sample["copies"] = self.copies(seen)
        if self.proposals is not None:
            boxes, kept = place.boxes(_proposals(record), 0)
            sample["proposals"] = torch.from_numpy(boxes[kept][: self.proposals])
        if self.train:
            used = [a for a in record["annotations"] if usable(a, self.use_difficult)]
            boxes, kept = place.boxes(xyxy(used), _EMPTY)
            classes = np.array([a["category_id"] for a in used], dtype=np.int64)
            sample["boxes"] = torch.from_numpy(boxes[kept])
            sample["classes"] = torch.from_numpy(classes[kept])
        return sample

    def _draw(self, height: int, width: int, rng: np.random.Generator) -> Placement:
        """Draw a placement for an image, in the order of Detectron2's draws."""
        crop = (0, 0, height, width) if self.crop is None else self.crop.draw(height, width, rng)
        short = draw_size(self.short_sizes, self.sampling, rng)
        size = pixels.resized_shape(*crop[2:], short, self.max_size)
        mirror = self.flip != "none" and rng.random() < 0.5
        return Placement(crop, size, FLIP_AXES[self.flip] if mirror else None)


def _channels_first(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def usable(annotation: dict[str, Any], use_difficult: bool) -> bool:
    """Whether to train on an object: no crowd and, unless ``use_difficult``, not difficult."""
    if annotation.get("iscrowd", 0):
        return False
    return use_difficult or not annotation.get("difficult", 0)


def xyxy(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """The boxes of annotations as XYXY, float64 (N, 4)."""
    boxes = np.zeros((len(annotations), 4))
    for box, annotation in zip(boxes, annotations):
        box[:] = annotation["bbox"]
        if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
            box[:] = box.astype(np.float32)  # Detectron2 adds in float32
            box[2:] = (box[2:] + box[:2]).astype(np.float32)
    return boxes


def _proposals(record: dict[str, Any]) -> np.ndarray:
    """The boxes (N, 4) that :func:`resnet_det.data.detection.proposals.attach` put into a
    record."""
    boxes = record["proposal_boxes"].astype(np.float64)
    if record["proposal_bbox_mode"] == BoxMode.XYWH_ABS:
        boxes[:, 2:] += boxes[:, :2]
    return boxes
