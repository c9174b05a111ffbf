"""What is done to a record of a detection set before it is a sample of a batch."""

import logging

import numpy as np
import torch

from ...records import BoxMode
from .. import pixels
from ..pixels import draw_size

logger = logging.getLogger(__name__)

_EMPTY = 1e-5  # boxes at most this wide or high are dropped, as in Detectron2


def with_usable_annotations(records, *, use_difficult=True):
    """The records that have something to learn from, as Detectron2's FILTER_EMPTY_ANNOTATIONS.

    An annotation counts unless it is a crowd or, with ``use_difficult`` False, difficult.

    Raises:
        ValueError: none is left.
    """
    kept = [
        record
        for record in records
        if any(_usable(annotation, use_difficult) for annotation in record["annotations"])
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
    """Record -> sample: reads the image, resizes it, mirrors it at random and its boxes with it.

    Pixels and boxes are exactly those of Detectron2's DatasetMapper.

    Args:
        short_sizes, sampling: of the shorter edge, see :func:`draw_size`; 0 leaves the image's size.
        max_size: the longer edge is at most this.
        flip: "horizontal" (half of the images) or "none".
        format: order of the channels, "BGR" or "RGB".
        train: False leaves out the annotations.
        use_difficult: train on objects that VOC marks difficult, as Detectron2 does.
        proposals: number of precomputed proposals to keep of each image, the best; None takes none.
        scales: further shorter edges, beside the one size of a test.

    The sample: ``file_name``, ``image_id``, ``height``, ``width`` (of the original), ``image``
    (uint8 tensor (3, h, w)) and in training ``boxes`` (float32 (N, 4), XYXY in the resized image)
    and ``classes`` (int64 (N,)); with precomputed ones, ``proposals`` (float32 (N, 4)); with
    ``scales`` a list of images. Crowds are left out; boxes are clipped, empty ones dropped.
    """

    def __init__(
        self,
        short_sizes,
        max_size,
        *,
        sampling="choice",
        flip="none",
        format="BGR",
        train,
        use_difficult=True,
        proposals=None,
        scales=(),
    ):
        short_sizes = [short_sizes] if isinstance(short_sizes, int) else list(short_sizes)
        if sampling not in ("choice", "range"):
            raise ValueError(f"sampling of sizes {sampling!r} is not one of 'choice', 'range'")
        if flip not in ("horizontal", "none"):
            raise ValueError(f"random flip {flip!r} is not one of 'horizontal', 'none'")
        if sampling == "range" and len(short_sizes) == 1:
            short_sizes *= 2
        if not short_sizes or (sampling == "range" and len(short_sizes) != 2):
            raise ValueError(f"sampling of sizes {sampling!r} cannot use the sizes {short_sizes}")
        self.short_sizes = short_sizes
        self.max_size = max_size
        self.sampling = sampling
        self.flip = flip
        self.format = format
        self.train = train
        self.use_difficult = use_difficult
        self.proposals = proposals
        self.scales = tuple(scales)

    def __call__(self, record, rng):
        image = pixels.read_image(record["file_name"], self.format, stored_upright=self.train)
        height, width = image.shape[:2]
        pixels.check_size(image, record)
        short = draw_size(self.short_sizes, self.sampling, rng)
        new_height, new_width = pixels.resized_shape(height, width, short, self.max_size)
        mirror = self.flip == "horizontal" and rng.random() < 0.5
        others = pixels.at_scales(image, self.scales, self.short_sizes[0], self.max_size)
        image = pixels.resize(image, new_height, new_width)
        if mirror:
            image = pixels.flip_image(image)
        sample = {
            "file_name": record["file_name"],
            "image_id": record["image_id"],
            "height": height,
            "width": width,
            "image": _channels_first(image),
        }
        if self.scales:
            sample["scales"] = [_channels_first(other) for other in others]

        def moved(boxes, least):
            """Boxes of the original image in the sample, and which of them are not empty."""
            boxes = boxes * np.tile([new_width / width, new_height / height], 2)
            if mirror:
                boxes = pixels.flip_boxes(boxes, new_width)
            boxes = boxes.clip(0, [new_width, new_height] * 2).astype(np.float32)
            return boxes, ((boxes[:, 2:] - boxes[:, :2]) > least).all(axis=1)

        if self.proposals is not None:
            boxes, kept = moved(_proposals(record), 0)
            sample["proposals"] = torch.from_numpy(boxes[kept][: self.proposals])
        if self.train:
            used = [a for a in record["annotations"] if _usable(a, self.use_difficult)]
            boxes, kept = moved(_xyxy(used), _EMPTY)
            classes = np.array([a["category_id"] for a in used], dtype=np.int64)
            sample["boxes"] = torch.from_numpy(boxes[kept])
            sample["classes"] = torch.from_numpy(classes[kept])
        return sample


def _channels_first(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _usable(annotation, use_difficult):
    if annotation.get("iscrowd", 0):
        return False
    return use_difficult or not annotation.get("difficult", 0)


def _xyxy(annotations):
    """Boxes (N, 4), float64, from whatever mode each annotation is in."""
    boxes = np.zeros((len(annotations), 4))
    for box, annotation in zip(boxes, annotations):
        box[:] = annotation["bbox"]
        if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
            box[:] = box.astype(np.float32)  # Detectron2 adds in single precision
            box[2:] = (box[2:] + box[:2]).astype(np.float32)
    return boxes


def _proposals(record):
    """The boxes (N, 4) that :func:`resnet_det.data.detection.proposals.attach` put into a record."""
    boxes = record["proposal_boxes"].astype(np.float64)
    if record["proposal_bbox_mode"] == BoxMode.XYWH_ABS:
        boxes[:, 2:] += boxes[:, :2]
    return boxes
