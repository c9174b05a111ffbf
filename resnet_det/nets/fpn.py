"""The feature pyramid (Lin et al., 2017) on a trunk, with Detectron2's parameter names."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Stages


class FPN(nn.Module):
    """Levels p2, p3, ... of equal width, and a coarsest level that subsamples the last one.

    Args:
        bottom_up: the trunk, which returns ``in_features``.
        in_features: the trunk's stages to build on, finest first. Each must have twice the stride
            of the previous one.
        channels: channels of the trunk's stages by name.
        strides: strides of the trunk's stages by name.
        out_channels: channels of every level.

    Raises:
        ValueError: the strides do not double.
    """

    def __init__(
        self,
        bottom_up: Stages,
        in_features: Sequence[str],
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.bottom_up, self.in_features = bottom_up, tuple(in_features)
        steps = [strides[f] for f in in_features]
        if not steps or any(b != 2 * a for a, b in pairwise(steps)):
            raise ValueError(f"FPN.IN_FEATURES {list(in_features)}: strides {steps} must double")
        self.levels = [int(math.log2(s)) for s in steps]
        self.strides = {f"p{n}": 2**n for n in [*self.levels, self.levels[-1] + 1]}
        self.size_divisibility = steps[-1]
        for name, level in zip(in_features, self.levels):
            lateral = nn.Conv2d(channels[name], out_channels, 1)
            output = nn.Conv2d(out_channels, out_channels, 3, padding=1)
            for conv in (lateral, output):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> maps by level.

        H and W must be divisible by ``size_divisibility``, the coarsest stride of the trunk.
        """
        features = self.bottom_up(x)
        maps: dict[str, Tensor] = {}
        top: Tensor | None = None
        for name, level in zip(self.in_features[::-1], self.levels[::-1]):
            lateral = getattr(self, f"fpn_lateral{level}")(features[name])
            top = lateral if top is None else lateral + F.interpolate(top, size=lateral.shape[-2:])
            maps[f"p{level}"] = getattr(self, f"fpn_output{level}")(top)
        coarsest = self.levels[-1]
        levels = {f"p{n}": maps[f"p{n}"] for n in self.levels}
        levels[f"p{coarsest + 1}"] = levels[f"p{coarsest}"][:, :, ::2, ::2]
        return levels
