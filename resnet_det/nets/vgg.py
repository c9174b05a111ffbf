"""VGG (Simonyan and Zisserman): VGG-16 is the baseline in Tables 3, 7 and 8, VGG-19 that in Fig.
3."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier
from .layers import Conv2d, FullyConnected, init_weights

# The architectures: the number of 3x3 convolutions in each stage, by depth (configurations D, E).
CONVOLUTIONS = {
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
CHANNELS = (64, 128, 256, 512, 512)


def build_stage(convolutions: int, cin: int, cout: int, pool: bool) -> nn.Sequential:
    """Build 2x2 max pooling (if ``pool``) and 3x3 convolutions, each followed by a ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if pool:
        layers["pool"] = nn.MaxPool2d(2)
    for i in range(1, convolutions + 1):
        layers[str(i)] = Conv2d(cin if i == 1 else cout, cout, 3)
        layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)


class VGG(Classifier):
    """Five stages of convolutions (``conv1.1``, ``conv1.2``, ...), ``fc6``, ``fc7``, ``linear``.

    The trunk ends after the last convolution, at stride 16. In a detector, RoI pooling to 7x7
    replaces pool5, and fc6 and fc7 are the head.

    Args:
        depth: a key of ``CONVOLUTIONS``.
        num_classes: outputs of ``linear``.
        in_channels: channels of the images.
    """

    def __init__(self, depth: int, *, num_classes: int = 1000, in_channels: int = 3) -> None:
        if depth not in CONVOLUTIONS:
            raise ValueError(f"VGG depth {depth}: use one of {tuple(CONVOLUTIONS)}")
        stages: dict[str, nn.Module] = {}
        channels, strides, cin = {}, {}, in_channels
        for i, (convolutions, cout) in enumerate(zip(CONVOLUTIONS[depth], CHANNELS)):
            name = f"conv{i + 1}"
            stages[name] = build_stage(convolutions, cin, cout, pool=i > 0)
            channels[name], strides[name], cin = cout, 2**i, cout
        stages["fc6"] = FullyConnected(512 * 7 * 7, 4096, dropout=0.5)
        stages["fc7"] = FullyConnected(4096, 4096, dropout=0.5)
        channels |= {"fc6": 4096, "fc7": 4096}
        super().__init__(
            stages, cut="conv5", channels=channels, strides=strides, pooled=7,
            num_classes=num_classes,
        )  # fmt: skip
        self.depth = depth
        init_weights(self)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Return ``x``, because the head's features are already vectors (N, 4096)."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 224, 224) -> logits (N, num_classes)."""
        return self.linear(self.head(F.max_pool2d(self.trunk(x), 2)))

    def dense(self, x: Tensor, size: int) -> Tensor:
        """Like :meth:`Classifier.dense`, with fc6 as a 7x7 convolution and fc7 as a 1x1."""
        maps = F.max_pool2d(self.trunk(x), 2)
        for name, side in (("fc6", self.pooled), ("fc7", 1)):
            layer = self.get_submodule(name)
            assert isinstance(layer, FullyConnected)
            weight = layer.weight.view(len(layer.weight), -1, side, side)
            maps = F.relu(F.conv2d(maps, weight, layer.bias))
        return self.linear(maps.mean((2, 3)))
