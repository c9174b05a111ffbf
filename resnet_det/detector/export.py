"""A detector as one program, from an image of any size to its objects, for ``torch.export``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.pixels import GREY_WEIGHTS
from ..nets.layers import Conv2d
from ..nets.winograd import replace_convolutions
from .appendix import vector
from .faster_rcnn import FasterRCNN


class ImageDetector(nn.Module):
    """Finds the objects in one image, without Pillow.

    Args:
        detector: a trained detector. Its batch norms are merged into its convolutions, and wide
            convolutions are computed by :class:`.WinogradConv`, in place.
        short, longest: length of the shorter edge, and maximum of the longer one, to which the
            image is resized; see :func:`resnet_det.data.pixels.resized_shape`.
        format: channels that the detector takes, one of ``resnet_det.data.pixels.FORMATS``.
    """

    def __init__(self, detector: FasterRCNN, short: int, longest: int, format: str) -> None:
        super().__init__()
        self.detector = detector.eval().requires_grad_(False)
        self.short, self.longest, self.format = short, longest, format
        with torch.no_grad():
            for module in detector.modules():
                if isinstance(module, Conv2d):
                    module.merge_norm()
        replace_convolutions(detector)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 RGB (H, W, 3) -> boxes (N, 4) in its pixels, scores (N,) and classes (N,)."""
        height, width = image.shape[:2]
        x = self._channels(image)
        size = self._size(height, width)
        # The slice cuts nothing off: it gives the sides of the image new symbols.
        x = resize(x, size) if self.short else x[:, : size[0], : size[1]]
        (found,) = self.detector([{"image": x, "height": height, "width": width}])
        return found["boxes"], found["scores"], found["classes"]

    def _channels(self, image: Tensor) -> Tensor:
        """The channels that the detector takes, as float32 (C, H, W)."""
        if self.format == "L":
            levels = (image.int() * torch.tensor(GREY_WEIGHTS, dtype=torch.int32)).sum(2) + 2**15
            return torch.div(levels, 2**16, rounding_mode="floor")[None].float()
        channels = image.permute(2, 0, 1).float()
        return channels if self.format == "RGB" else channels.flip(0)

    def _size(self, height: int, width: int) -> list[int]:
        """:func:`resnet_det.data.pixels.resized_shape`, computed in a tensor.

        An export knows the numbers of a tensor only when it runs. It names them by new symbols, and
        the sizes of all maps are short terms in these.
        """
        sides = vector(torch.empty(0, dtype=torch.float64), [height, width])
        if self.short:
            short, longest = vector(sides, [self.short, self.longest])
            sides = torch.where(sides == sides.min(), short, short / sides.min() * sides)
            sides = torch.where(sides.max() > longest, longest / sides.max() * sides, sides)
        size = (sides + 0.5).long().clamp(min=1).tolist()
        for side, before in zip(size, (height, width)):
            torch._check(side >= 1)
            if not self.short:
                torch._check(side <= before)
        return size


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image with levels 0-255, (C, H, W) float32, exactly as Pillow does.

    Pillow resizes the rows and then the columns, and rounds to whole levels each time. Double
    precision decides its ties.
    """
    x = image.double()
    for axis in (2, 1):
        weights = _resize_weights(x.shape[axis], size[axis - 1])
        x = torch.floor((x @ weights.T if axis == 2 else weights @ x) + 0.5)
    return x.float()


def _resize_weights(old: int, new: int) -> Tensor:
    """Pillow's bilinear filter with antialiasing, (new, old): a triangle that spans two cells of
    the coarser grid, in units of 2**-22."""
    cells, centres = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (old, new))
    scale = vector(cells, [old]) / new
    distance = (cells - centres[:, None] * scale).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp(min=0)
    return torch.floor(weights / weights.sum(1, keepdim=True) * 2**22 + 0.5) / 2**22
