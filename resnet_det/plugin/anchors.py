"""torchvision's anchors in Detectron2's registry."""

from collections.abc import Sequence

import torch
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class TorchvisionAnchorGenerator(DefaultAnchorGenerator):
    """Anchors whose corners are rounded to whole pixels, at strides that divide the padded image by
    the size of the map. These are not the true strides where a map's size was rounded."""

    def generate_cell_anchors(self, *args, **options) -> Tensor:
        return super().generate_cell_anchors(*args, **options).round()

    def _grid_anchors(self, grid_sizes: Sequence[torch.Size]) -> list[Tensor]:
        height, width = (side * self.strides[0] for side in grid_sizes[0])
        anchors = []
        for (h, w), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors):
            y = torch.arange(h, device=cell.device) * (height // h) + self.offset * stride
            x = torch.arange(w, device=cell.device) * (width // w) + self.offset * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), -1).view(-1, 1, 4)
            anchors.append((shifts + cell).view(-1, 4))
        return anchors
