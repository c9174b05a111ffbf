"""VGG-16, the baseline of Tables 3, 7 and 8 (configuration D of Simonyan and Zisserman)."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from .classifier import Classifier
from .layers import Conv2d, FullyConnected, init_weights

# Convolutions of each stage: (count, channels); a max pooling stands before all but the first.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def _stage(count, cin, cout, pool):
    layers = OrderedDict(pool=nn.MaxPool2d(2)) if pool else OrderedDict()
    for i in range(count):
        layers[str(i + 1)] = Conv2d(cin if i == 0 else cout, cout, 3)
        layers[f"relu{i + 1}"] = nn.ReLU()
    return nn.Sequential(layers)


class VGG16(Classifier):
    """13 convolutions (``conv1.1`` .. ``conv5.3``, stride 16), then ``fc6``, ``fc7``, ``linear``.

    The trunk ends before pool5, which RoI pooling to 7x7 replaces in a detector.
    """

    def __init__(self, *, num_classes=1000):
        stages, channels, strides, cin = {}, {}, {}, 3
        for i, (count, cout) in enumerate(STAGES):
            name = f"conv{i + 1}"
            stages[name] = _stage(count, cin, cout, pool=i > 0)
            channels[name], strides[name], cin = cout, 2**i, cout
        stages["fc6"] = FullyConnected(512 * 7 * 7, 4096, dropout=0.5)
        stages["fc7"] = FullyConnected(4096, 4096, dropout=0.5)
        channels |= {"fc6": 4096, "fc7": 4096}
        super().__init__(
            stages, cut="conv5", channels=channels, strides=strides, pooled=7,
            num_classes=num_classes,
        )  # fmt: skip
        init_weights(self)

    @staticmethod
    def pool(x):
        """The head's features are vectors already: (N, 4096)."""
        return x

    def forward(self, x):
        return self.linear(self.head(F.max_pool2d(self.trunk(x), 2)))

    def dense(self, x, size):
        """As :meth:`Classifier.dense`: fc6 is a 7 x 7 convolution and fc7 a 1 x 1 (section 4.1)."""
        maps = F.max_pool2d(self.trunk(x), 2)
        for layer, side in ((self.fc6, self.pooled), (self.fc7, 1)):
            weight = layer.weight.view(len(layer.weight), -1, side, side)
            maps = F.relu(F.conv2d(maps, weight, layer.bias))
        return self.linear(maps.mean((2, 3)))
