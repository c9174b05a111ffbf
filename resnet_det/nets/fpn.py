"""The feature pyramid (Lin et al., 2017) on a trunk, with Detectron2's parameter names."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import nn


class FPN(nn.Module):
    """Levels p2, p3... of equal width, and a last one of every second pixel.

    Args:
        bottom_up: Stages that give ``in_features``.
        in_features: the trunk's features, finest first, each of twice the stride before.
        channels, strides: of the trunk's features by name.
        out_channels: of every level.
    """

    def __init__(self, bottom_up, in_features, channels, strides, out_channels=256):
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
                nn.init.zeros_(conv.bias)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)

    def forward(self, x):
        """Images whose sides divide by the coarsest stride -> dict level -> features."""
        features = self.bottom_up(x)
        maps, top = {}, None
        for name, level in zip(self.in_features[::-1], self.levels[::-1]):
            lateral = getattr(self, f"fpn_lateral{level}")(features[name])
            top = lateral if top is None else lateral + F.interpolate(top, scale_factor=2.0)
            maps[f"p{level}"] = getattr(self, f"fpn_output{level}")(top)
        coarsest = self.levels[-1]
        levels = {f"p{n}": maps[f"p{n}"] for n in self.levels}
        levels[f"p{coarsest + 1}"] = levels[f"p{coarsest}"][:, :, ::2, ::2]
        return levels
