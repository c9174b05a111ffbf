"""Residual and plain networks (sections 3.1-3.3, Table 1).

The parameter names are Detectron2's: ``stem.conv1.weight``, ``res2.0.conv1.norm.weight``,
``res2.0.shortcut.weight``, ``linear.weight``.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Classifier
from .layers import Conv2d, Norm, init_weights

# Table 1: the number of blocks in conv2_x .. conv5_x, and whether they are bottlenecks.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
SHORTCUTS = ("A", "B", "C", "none")


class PadShortcut(nn.Module):
    """Option A: take every ``stride``-th cell and append ``new_channels`` channels of zeros."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels)) if self.new_channels else x

    def extra_repr(self) -> str:
        return f"new_channels={self.new_channels}, stride={self.stride}"


def build_shortcut(option: str, cin: int, cout: int, stride: int, norm: Norm) -> nn.Module | None:
    """Build the shortcut of section 3.3: option "A", "B" or "C", or None for a plain net."""
    if option == "none":
        return None
    same = cin == cout and stride == 1
    if option == "C" or (option == "B" and not same):
        return Conv2d(cin, cout, 1, stride, norm)
    return nn.Identity() if same else PadShortcut(cout - cin, stride)


class Block(nn.Module):
    """``relu(F(x) + shortcut(x))`` (Eqn. 1 and 2), or ``relu(F(x))`` in a plain net.

    ``F`` is two 3x3 convolutions, or the bottleneck of a 1x1, a 3x3 and a 1x1 (Fig. 5).

    Args:
        cin, cout: input and output channels.
        stride: stride of the block, on its first convolution as in the authors' networks.
        bottleneck: whether ``F`` is a bottleneck.
        shortcut: one of ``SHORTCUTS``.
        norm: as for :class:`.layers.Conv2d`.
        stride_in_1x1: False puts a bottleneck's stride on its 3x3, as torchvision does.
        dilation: dilation of the 3x3 convolution, or of the first if there are two.
    """

    bottleneck: Final[bool]  # TorchScript compiles only the branch that this selects

    def __init__(
        self,
        cin: int,
        cout: int,
        stride: int,
        *,
        bottleneck: bool,
        shortcut: str,
        norm: Norm,
        stride_in_1x1: bool = True,
        dilation: int = 1,
    ) -> None:
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
        self.bottleneck, self.stride_in_1x1 = bottleneck, stride_in_1x1
        self.shortcut = build_shortcut(shortcut, cin, cout, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        if self.bottleneck:
            out = self.conv3(F.relu_(out))
        if self.shortcut is not None:
            out += self.shortcut(x)
        return F.relu_(out)


class ImageNetStem(nn.Module):
    """conv1 (7x7, stride 2) and max pooling (3x3, stride 2, padding 1), with a total stride of
    4."""

    def __init__(self, channels: int, norm: Norm, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 7, 2, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), 3, 2, 1)


class CifarStem(nn.Module):
    """The first layer of section 4.2: 3x3, stride 1."""

    def __init__(self, channels: int, norm: Norm, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = Conv2d(in_channels, channels, 3, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.conv1(x))


def build_stage(
    blocks: int, cin: int, cout: int, stride: int, *, block: type[Block] = Block, **options: Any
) -> nn.Sequential:
    """Build a stage. The first block changes the map's size and channels, the others keep both.

    Args:
        blocks: number of blocks.
        block: class of the blocks; ``options`` are its keyword parameters.
    """
    return nn.Sequential(
        *(
            block(cin if i == 0 else cout, cout, stride if i == 0 else 1, **options)
            for i in range(blocks)
        )
    )


def build_resnet(
    stem: ImageNetStem | CifarStem,
    stem_stride: int,
    blocks: Sequence[int],
    widths: Sequence[int],
    *,
    cut: str,
    pooled: int,
    num_classes: int,
    res5_dilation: int = 1,
    **options: Any,
) -> Classifier:
    """Build a residual or plain net: the stem, then the stages ``res2``, ``res3``, ...

    Each stage after ``res2`` halves the map.

    Args:
        stem, stem_stride: the first stage and its stride.
        blocks, widths: the number of blocks and the output channels of each stage.
        cut, pooled, num_classes: see :class:`.classifier.Classifier`.
        res5_dilation: if above 1, ``res5`` keeps the stride of ``res4`` and is dilated instead.
        options: options of :func:`build_stage`: ``block``, ``norm``, ``shortcut``, ...
    """
    cin, stride = stem.conv1.out_channels, stem_stride
    stages: dict[str, nn.Module] = {"stem": stem}
    channels, strides = {"stem": cin}, {"stem": stride}
    for i, (count, cout) in enumerate(zip(blocks, widths)):
        name = f"res{i + 2}"
        dilation = res5_dilation if name == "res5" else 1
        step = 1 if i == 0 or dilation > 1 else 2
        stages[name] = build_stage(count, cin, cout, step, dilation=dilation, **options)
        cin, stride = cout, stride * step
        channels[name], strides[name] = cin, stride
    net = Classifier(
        stages, cut=cut, channels=channels, strides=strides, pooled=pooled, num_classes=num_classes
    )
    init_weights(net)
    return net


def imagenet_resnet(
    depth: int,
    shortcut: str = "B",
    *,
    num_classes: int = 1000,
    norm: Norm = "BN",
    stride_in_1x1: bool = True,
    res5_dilation: int = 1,
    in_channels: int = 3,
    block: type[Block] = Block,
) -> Classifier:
    """Build a net of Table 1. The trunk is conv1 .. conv4_x (stride 16), the head conv5_x.

    Args:
        depth: 18, 34, 50, 101 or 152.
        shortcut: "A", "B", "C", or "none" for a plain net.
        num_classes: outputs of ``linear``.
        norm: as for :func:`.catalog.build_net`.
        stride_in_1x1: whether a bottleneck has its stride on the first 1x1 or on the 3x3. Without
            effect in nets of 18 and 34 layers.
        res5_dilation: 2 keeps conv5_x at stride 16 and dilates its 3x3 convolutions.
        in_channels: channels of the images.
        block: class of the blocks; a subclass may change their ``forward``.

    Raises:
        ValueError: the depth, shortcut, norm or dilation does not exist.
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
    return build_resnet(
        ImageNetStem(64, norm, in_channels), 4, blocks, widths, cut="res4", pooled=14,
        num_classes=num_classes, bottleneck=bottleneck, shortcut=shortcut, norm=norm,
        stride_in_1x1=stride_in_1x1, res5_dilation=res5_dilation, block=block,
    )  # fmt: skip


def cifar_resnet(
    depth: int,
    shortcut: str = "A",
    *,
    num_classes: int = 10,
    norm: Norm = "BN",
    in_channels: int = 3,
) -> Classifier:
    """Build a net of section 4.2 with 6n+2 layers. The trunk ends with ``res3`` (stride 2).

    Args:
        depth: 6n+2: 20, 32, 44, 56, 110, 1202, ...
        shortcut: "A", as in all of the paper's residual nets on CIFAR-10; "none" for a plain net.
        num_classes: outputs of ``linear``.
        norm: as for :func:`.catalog.build_net`; 16 channels are too few for "GN".
        in_channels: channels of the images.

    Raises:
        ValueError: the depth or shortcut does not exist.
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest or shortcut not in SHORTCUTS:
        raise ValueError(
            f"depth {depth}, shortcut {shortcut!r}: use a depth of 6n+2 and one of {SHORTCUTS}"
        )
    return build_resnet(
        CifarStem(16, norm, in_channels), 1, (n, n, n), (16, 32, 64), cut="res3", pooled=16,
        num_classes=num_classes, bottleneck=False, shortcut=shortcut, norm=norm,
    )  # fmt: skip
