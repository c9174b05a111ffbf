"""Colour jitter: random brightness, contrast and saturation, as Detectron2's augmentations of these
names compute them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Range = tuple[float, float]
UNCHANGED: Range = (1.0, 1.0)
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue: Detectron2's weights


@dataclass(frozen=True)
class ColorJitter:
    """Multiplies the brightness, then the contrast, then the saturation of an image by a random
    factor each.

    Saturation takes red, green and blue where ``format`` says they are. Detectron2's
    ``RandomSaturation`` instead takes every image as RGB.

    Attributes:
        brightness, contrast, saturation: ranges of the factors; one that is (1, 1) draws nothing.
        format: order of the channels, "BGR" or "RGB"; "L" has no saturation.
    """

    brightness: Range = UNCHANGED
    contrast: Range = UNCHANGED
    saturation: Range = UNCHANGED
    format: str = "BGR"

    def __call__(self, image: np.ndarray, rng: Any) -> np.ndarray:
        """Change a uint8 image (h, w, channels). ``rng`` is a numpy Generator, or the module
        ``numpy.random``."""
        for ends, background in (
            (self.brightness, _black),
            (self.contrast, np.mean),
            (self.saturation, self._grey),
        ):
            if ends != UNCHANGED:
                factor = rng.uniform(*ends)
                blend = (1 - factor) * background(image) + factor * image.astype(np.float32)
                image = blend.clip(0, 255).astype(np.uint8)
        return image

    def _grey(self, image: np.ndarray) -> np.ndarray:
        weights = _GREY if self.format == "RGB" else _GREY[::-1]
        return image.dot(weights)[:, :, None]


NO_JITTER = ColorJitter()


def _black(image: np.ndarray) -> int:
    return 0
