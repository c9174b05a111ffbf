"""Map a detection dataset's record to a training or test sample."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...records import BoxMode
from .. import pixels
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


class DetectionMapper:
    """Maps a record to a sample: reads the image, resizes it, and randomly mirrors it and its
    boxes.

    Pixels and boxes equal those of Detectron2's DatasetMapper.

    Args:
        short_sizes, sampling: lengths of the shorter edge, see :func:`draw_size`; 0 keeps the size.
        max_size: upper limit of the longer edge.
        flip: "horizontal", to mirror each image with probability 0.5, or "none".
        format: order of the channels, "BGR" or "RGB".
        train: whether the sample has annotations.
        use_difficult: train on objects that VOC marks difficult, as Detectron2 does.
        proposals: number of precomputed proposals to use per image, by descending score; None if
            the records have none.
        scales: further lengths of the shorter edge, for multi-scale testing.

    A sample has ``file_name``, ``image_id``, ``height`` and ``width`` (of the original image), and
    ``image`` (uint8 tensor (3, h, w)). In training it also has ``boxes`` (float32 (N, 4), XYXY in
    the resized image) and ``classes`` (int64 (N,)). If ``proposals`` is set, it has ``proposals``
    (float32 (N, 4)); if ``scales`` is set, it has ``scales``, a list of images. Boxes are clipped;
    crowds and empty boxes are dropped.
    """

    def __init__(
        self,
        short_sizes: int | Sequence[int],
        max_size: int,
        *,
        sampling: str = "choice",
        flip: str = "none",
        format: str = "BGR",
        train: bool,
        use_difficult: bool = True,
        proposals: int | None = None,
        scales: Sequence[int] = (),
    ) -> None:
        short_sizes = [short_sizes] if isinstance(short_sizes, int) else list(short_sizes)
        if sampling not in ("choice", "range"):
            raise ValueError(f"size sampling {sampling!r} is not one of 'choice', 'range'")
        if flip not in ("horizontal", "none"):
            raise ValueError(f"random flip {flip!r} is not one of 'horizontal', 'none'")
        if sampling == "range" and len(short_sizes) == 1:
            short_sizes *= 2
        if not short_sizes or (sampling == "range" and len(short_sizes) != 2):
            raise ValueError(f"size sampling {sampling!r} cannot use the sizes {short_sizes}")
        self.short_sizes = short_sizes
        self.max_size = max_size
        self.sampling = sampling
        self.flip = flip
        self.format = format
        self.train = train
        self.use_difficult = use_difficult
        self.proposals = proposals
        self.scales = tuple(scales)

    def __call__(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = pixels.read_image(record["file_name"], self.format)
        pixels.check_size(image, record)
        return self.sample(image, record, rng)

    def sample(
        self, image: np.ndarray, record: dict[str, Any], rng: np.random.Generator
    ) -> dict[str, Any]:
        """Make the sample of a record whose image, uint8 (h, w, channels), is already read."""
        height, width = image.shape[:2]
        short = draw_size(self.short_sizes, self.sampling, rng)
        new_height, new_width = pixels.resized_shape(height, width, short, self.max_size)
        mirror = self.flip == "horizontal" and rng.random() < 0.5
        others = pixels.at_scales(image, self.scales, self.short_sizes[0], self.max_size)
        image = pixels.resize(image, new_height, new_width)
        if mirror:
            image = pixels.flip_image(image)
        sample: dict[str, Any] = {
            key: record[key] for key in ("file_name", "image_id") if key in record
        }
        sample |= {"height": height, "width": width, "image": _channels_first(image)}
        if self.scales:
            sample["scales"] = [_channels_first(other) for other in others]

        def moved(boxes: np.ndarray, min_side: float) -> tuple[np.ndarray, np.ndarray]:
            """Transform boxes to the sample's image. Returns them, and a mask of the non-empty
            ones."""
            boxes = boxes * np.tile([new_width / width, new_height / height], 2)
            if mirror:
                boxes = pixels.flip_boxes(boxes, new_width)
            boxes = boxes.clip(0, [new_width, new_height] * 2).astype(np.float32)
            return boxes, ((boxes[:, 2:] - boxes[:, :2]) > min_side).all(axis=1)

        if self.proposals is not None:
            boxes, kept = moved(_proposals(record), 0)
            sample["proposals"] = torch.from_numpy(boxes[kept][: self.proposals])
        if self.train:
            used = [a for a in record["annotations"] if usable(a, self.use_difficult)]
            boxes, kept = moved(xyxy(used), _EMPTY)
            classes = np.array([a["category_id"] for a in used], dtype=np.int64)
            sample["boxes"] = torch.from_numpy(boxes[kept])
            sample["classes"] = torch.from_numpy(classes[kept])
        return sample


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
