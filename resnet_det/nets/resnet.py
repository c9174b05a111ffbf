"""Residual and plain networks (sections 3.1-3.3, Table 1).

The parameter names are Detectron2's: ``stem.conv1.weight``, ``res2.0.conv1.norm.weight``,
``res2.0.shortcut.weight``, ``linear.weight``.
"""

import torch.nn.functional as F
from torch import nn

from .classifier import Classifier
from .layers import Conv2d, init_weights

# Table 1: blocks in conv2_x .. conv5_x, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
SHORTCUTS = ("A", "B", "C", "none")


class PadShortcut(nn.Module):
    """Option A: every ``stride``-th pixel, and zeros for the channels that are new."""

    def __init__(self, new_channels, stride):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def extra_repr(self):
        return f"new_channels={self.new_channels}, stride={self.stride}"


def build_shortcut(option, cin, cout, stride, norm):
    """Section 3.3's shortcut A, B or C, or None for a plain net."""
    if option == "none":
        return None
    same = cin == cout and stride == 1
    if option == "C" or (option == "B" and not same):
        return Conv2d(cin, cout, 1, stride, norm)
    return nn.Identity() if same else PadShortcut(cout - cin, stride)


class Block(nn.Module):
    """``relu(F(x) + shortcut(x))`` (Eqn. 1 and 2), or ``relu(F(x))`` in a plain net.

    ``F`` is two 3x3 convolutions, or the bottleneck 1x1, 3x3, 1x1 (Fig. 5). Its stride sits on
    the first convolution, as in the authors' networks; ``stride_in_1x1=False`` puts a
    bottleneck's on the 3x3, as torchvision does.
    """

    def __init__(
        self, cin, cout, stride, *, bottleneck, shortcut, norm, stride_in_1x1=True, dilation=1
    ):
        super().__init__()
        if bottleneck:
            width = cout // 4
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1 = Conv2d(cin, width, 1, first, norm)
            self.conv2 = Conv2d(width, width, 3, second, norm, dilation)
            self.conv3 = Conv2d(width, cout, 1, 1, norm)
        else:
            self.conv1 = Conv2d(cin, cout, 3, stride, norm, dilation)
            self.conv2 = Conv2d(cout, cout, 3, 1, norm, dilation)
        self.bottleneck = bottleneck
        self.shortcut = build_shortcut(shortcut, cin, cout, stride, norm)

    def forward(self, x):
        out = self.conv2(F.relu_(self.conv1(x)))
        if self.bottleneck:
            out = self.conv3(F.relu_(out))
        if self.shortcut is not None:
            out += self.shortcut(x)
        return F.relu_(out)


def build_stage(blocks, cin, cout, stride, **block):
    """A stage: the first block changes the map size and the channels, the others keep them."""
    return nn.Sequential(
        *(
            Block(cin if i == 0 else cout, cout, stride if i == 0 else 1, **block)
            for i in range(blocks)
        )
    )


class ImageNetStem(nn.Module):
    """conv1 and its max pooling: 7x7, 64, stride 2; 3x3, stride 2, pad 1. Stride 4 in all."""

    def __init__(self, channels, norm):
        super().__init__()
        self.conv1 = Conv2d(3, channels, 7, 2, norm)

    def forward(self, x):
        return F.max_pool2d(F.relu_(self.conv1(x)), 3, 2, 1)


class CifarStem(nn.Module):
    """The first layer of section 4.2: 3x3, 16, stride 1."""

    def __init__(self, channels, norm):
        super().__init__()
        self.conv1 = Conv2d(3, channels, 3, 1, norm)

    def forward(self, x):
        return F.relu_(self.conv1(x))


def _classifier(stem, stem_stride, blocks, widths, *, res5_dilation=1, norm, cut, pooled,
                num_classes, **block):  # fmt: skip
    cin, stride = stem.conv1.out_channels, stem_stride
    stages, channels, strides = {"stem": stem}, {"stem": cin}, {"stem": stride}
    for i, (count, cout) in enumerate(zip(blocks, widths)):
        name = f"res{i + 2}"
        dilation = res5_dilation if name == "res5" else 1
        step = 1 if i == 0 or dilation > 1 else 2
        stages[name] = build_stage(count, cin, cout, step, norm=norm, dilation=dilation, **block)
        cin, stride = cout, stride * step
        channels[name], strides[name] = cin, stride
    net = Classifier(
        stages, cut=cut, channels=channels, strides=strides, pooled=pooled, num_classes=num_classes
    )
    init_weights(net)
    return net


def imagenet_resnet(
    depth,
    shortcut="B",
    *,
    num_classes=1000,
    norm="BN",
    stride_in_1x1=True,
    res5_dilation=1,
):
    """Table 1's networks; the trunk is conv1..conv4_x (stride 16), the head conv5_x.

    Args:
        depth: 18, 34, 50, 101 or 152.
        shortcut: "A", "B", "C", or "none" for a plain net.
        norm: "BN", "SyncBN", "FrozenBN" or "GN".
        stride_in_1x1: where a bottleneck's stride sits; no meaning in 18 and 34 layers.
        res5_dilation: 2 keeps conv5_x at stride 16 and dilates its 3x3 convolutions.
    """
    if depth not in DEPTHS or shortcut not in SHORTCUTS:
        raise ValueError(
            f"depth {depth}, shortcut {shortcut!r}: "
            f"use one of {tuple(DEPTHS)} and one of {SHORTCUTS}"
        )
    if res5_dilation not in (1, 2):
        raise ValueError(f"res5_dilation {res5_dilation}: use 1 or 2")
    blocks, bottleneck = DEPTHS[depth]
    widths = [w * (4 if bottleneck else 1) for w in (64, 128, 256, 512)]
    return _classifier(
        ImageNetStem(64, norm), 4, blocks, widths, cut="res4", pooled=14,
        num_classes=num_classes, bottleneck=bottleneck, shortcut=shortcut, norm=norm,
        stride_in_1x1=stride_in_1x1, res5_dilation=res5_dilation,
    )  # fmt: skip


def cifar_resnet(depth, shortcut="A", *, num_classes=10, norm="BN"):
    """Section 4.2's networks of 6n+2 layers; the trunk ends with the second stage (stride 2).

    Args:
        depth: 6n+2: 20, 32, 44, 56, 110, 1202...
        shortcut: "A" in all of the paper's residual nets, "none" for a plain net.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest or shortcut not in SHORTCUTS:
        raise ValueError(
            f"depth {depth}, shortcut {shortcut!r}: use a depth of 6n+2 and one of {SHORTCUTS}"
        )
    return _classifier(
        CifarStem(16, norm), 1, (n, n, n), (16, 32, 64), cut="res3", pooled=16,
        num_classes=num_classes, bottleneck=False, shortcut=shortcut, norm=norm,
    )  # fmt: skip
