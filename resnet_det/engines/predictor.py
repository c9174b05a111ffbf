"""From a checkpoint to the objects in an image: :class:`Predictor`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config.checks import check_pairs
from ..data import pixels
from ..evaluation.draw import draw_boxes
from ..weights import published
from ..weights.files import SUFFIXES, check_path
from . import Detector, Found, pick
from .exported import RUNTIMES, load_exported

BATCH = 8  # images per forward pass
CHANNELS = ("RGB", "BGR")  # orders of the channels of arrays and tensors


@dataclass(frozen=True, eq=False)
class Prediction:
    """The objects that a :class:`Predictor` found in an image, by descending score.

    Attributes:
        image: the image, uint8 RGB (H, W, 3).
        boxes: float32 (N, 4), x1 y1 x2 y2 in pixels of the image.
        scores: float32 (N,), from 0 to 1.
        classes: int64 (N,), index of each object's class.
        names: class name of each object.
        all_names: the detector's class names, which determine the colours of :meth:`draw`.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: list[str]
    all_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        objects = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores)]
        return f"Prediction({', '.join(objects) or 'nothing'})"

    def draw(self) -> Image.Image:
        """Draw the boxes on the image, with names and scores.

        An image too small for legible labels is enlarged by an integer factor.
        """
        drawn = draw_boxes(self.image, self.boxes, self.names, self.scores, classes=self.all_names)
        return Image.fromarray(drawn)

    def to_dict(self) -> dict[str, list]:
        """The boxes, scores, classes and names as plain lists, for JSON."""
        arrays = {"boxes": self.boxes, "scores": self.scores, "classes": self.classes}
        return {key: value.tolist() for key, value in arrays.items()} | {"names": self.names}


class Predictor:
    """Finds the objects in images with a trained detector.

    Example::

        predictor = resnet_det.Predictor("output/quickstart/model_final.pth")
        result = predictor("street.jpg")
        for box, score, name in zip(result.boxes, result.scores, result.names):
            print(name, score, box)
        result.draw().save("street.png")

    Args:
        weights: a detector's checkpoint, from either engine or from Detectron2 itself; or an
            address, as in ``MODEL.WEIGHTS`` (docs/weights.md); or an exported detector, .onnx,
            .xml or .pt2, which other libraries run on the CPU, or its address.
        engine: "detectron2", "torchvision" (the embedded engine), or "auto" (Detectron2 if it is
            installed). Both find the same objects.
        device: "cpu", "cuda", "cuda:1"; by default the GPU if there is one.
        score_thresh: lowest score of the objects to return, from 0 to 1.
        config: a YAML config, or the name of one of the package's own. Needed for a checkpoint that
            carries no config, such as Detectron2's own, unless docs/weights.md names it.
        classes: class names, in the order of the checkpoint's rows. By default those that the
            checkpoint names, or those of the config's datasets.
        overrides: ``KEY, VALUE, ...`` that override the config.

    Attributes:
        classes: the detector's class names.

    Raises:
        ConfigError, WeightsError: a key or the file is wrong. The message names it.
    """

    def __init__(
        self,
        weights: str | Path,
        engine: str = "auto",
        device: str | torch.device | None = None,
        score_thresh: float = 0.5,
        *,
        config: str | Path | None = None,
        classes: Sequence[str] | None = None,
        overrides: Sequence[Any] = (),
    ) -> None:
        if not isinstance(score_thresh, int | float | np.number) or not 0 <= score_thresh <= 1:
            raise ValueError(f"score_thresh: {score_thresh!r}: give a number from 0 to 1")
        check_pairs(overrides)
        self.score_thresh = score_thresh
        if "://" not in str(weights):  # the engine resolves addresses
            check_path(weights, (*SUFFIXES, *RUNTIMES))
        self.detector: Detector
        if Path(weights).suffix in RUNTIMES:
            if published.is_address(weights):
                weights = published.local_file(str(weights))
            if config is not None or overrides or str(device or "cpu") != "cpu":
                raise ValueError(
                    f"{weights}: an exported detector runs on the CPU, without config and overrides"
                )
            self.detector = load_exported(weights, score_thresh, classes)
        else:
            if device is None:
                device = "cuda" if torch.cuda.is_available() else "cpu"
            self.detector = pick(engine).load_detector(
                weights,
                config or published.config_of(weights),
                ["MODEL.DEVICE", str(device), *overrides],
                score_thresh=score_thresh,
                classes=classes,
            )
        self.classes = self.detector.classes

    def __call__(self, images: Any, format: str = "RGB") -> Any:
        """Find the objects in one image or in a list of images.

        Images of equal size run together, a few at a time. All images of a list are held in memory.

        Args:
            images: an image, or a list of them. An image is a path; a PIL image of any mode; or
                uint8 pixels with three channels, as an array (H, W, 3) or a tensor (3, H, W). A
                file is turned upright by its EXIF orientation, a PIL image is used as it is
                stored.
            format: order of the channels of arrays and tensors, "RGB" or "BGR" (OpenCV's).

        Returns:
            A :class:`Prediction`; for a list, a list of them in its order.

        Raises:
            ImageError: a file or a PIL image cannot be used.
            ValueError: an array or a tensor has another type or shape, or the list is empty.
            TypeError: something else was given.
        """
        if format not in CHANNELS:
            raise ValueError(f"format: {format!r}: use {' or '.join(CHANNELS)}")
        if not isinstance(images, list | tuple):
            return self._predict([_rgb(images, format, "image")])[0]
        if not images:
            raise ValueError("images: the list is empty")
        return self._predict([_rgb(x, format, f"images[{i}]") for i, x in enumerate(images)])

    def _predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(index)
        batches = [
            ids[i : i + BATCH] for ids in by_size.values() for i in range(0, len(ids), BATCH)
        ]
        found: dict[int, Found] = {}
        for batch in batches:
            found |= zip(batch, self.detector([images[index] for index in batch]))
        return [self._prediction(image, *found[index]) for index, image in enumerate(images)]

    def _prediction(
        self, image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray
    ) -> Prediction:
        keep = scores >= self.score_thresh
        names = [self.classes[index] for index in classes[keep]]
        return Prediction(image, boxes[keep], scores[keep], classes[keep], names, self.classes)


def _cure(image: np.ndarray | torch.Tensor) -> str:
    """How to convert an array or a tensor of floats or of a grey image, for an error."""
    tensor = isinstance(image, torch.Tensor)
    channels = image.shape[:1] if tensor else image.shape[2:]
    cure = ""
    if "float" in str(image.dtype):
        convert = "to(torch.uint8)" if tensor else "astype('uint8')"
        cure += f"; if its values are from 0 to 1: (image * 255).round().{convert}"
    if image.ndim == 2 or (image.ndim == 3 and tuple(channels) == (1,)):
        repeated = "image.expand(3, -1, -1)" if tensor else "numpy.dstack([image] * 3)"
        cure += f"; if it is grey: {repeated}"
    return cure


def _rgb(image: Any, format: str, name: str) -> np.ndarray:
    """Any kind of image that a :class:`Predictor` takes, as uint8 RGB (H, W, 3).

    Args:
        name: name of the image, for errors.
    """
    if isinstance(image, str | os.PathLike):
        return pixels.read_image(image, "RGB")
    if isinstance(image, Image.Image):
        with pixels.pillow_errors(name):
            return pixels.as_array(pixels.upright_rgb(image, name, turn=False), "RGB")
    if isinstance(image, torch.Tensor):
        layout, channels = "(3, H, W)", image.shape[:1]
    elif isinstance(image, np.ndarray):
        layout, channels = "(H, W, 3)", image.shape[2:]
    else:
        raise TypeError(
            f"{name}: give a path, a PIL image, an array or a tensor, not {type(image).__name__}"
        )
    kind, shape = str(image.dtype).removeprefix("torch."), tuple(image.shape)
    if kind != "uint8" or len(shape) != 3 or tuple(channels) != (3,) or 0 in shape:
        raise ValueError(
            f"{name}: is {kind} {shape}: give {format} pixels, uint8 {layout}{_cure(image)}"
        )
    array = image if isinstance(image, np.ndarray) else image.cpu().numpy().transpose(1, 2, 0)
    return np.ascontiguousarray(array if format == "RGB" else array[:, :, ::-1])
