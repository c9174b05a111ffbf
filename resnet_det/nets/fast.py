"""Speed up nets whose batch norms are constant (appendix A), without changing their results.

Nets are built without these optimisations. :func:`speed_up` applies them to a detector's trunk or
head in place. Parameters, buffers and their names do not change.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from .classifier import Stages
from .layers import Conv2d, FrozenBatchNorm2d
from .resnet import Block, PadShortcut


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` (N, C, H, W) in the channels-last memory format."""
    return x.contiguous(memory_format=torch.channels_last)


def channels_last_on_gpu(x: Tensor) -> Tensor:
    """Return ``x`` (N, C, H, W) in channels-last format on a GPU and in default format on a CPU.

    On a CPU, small maps are slower in channels-last format: a training step of conv5_x by a tenth.
    """
    return channels_last(x) if x.is_cuda else x.contiguous()


def speed_up(stages: Stages, layout: Callable[[Tensor], Tensor] = channels_last) -> Stages:
    """Prepare a trunk or a head in place, after it has been frozen.

    * Constant batch norms are folded into their convolutions (:class:`.layers.Conv2d`).
    * ``layout`` sets the memory format of the maps; use :func:`channels_last_on_gpu` for a head.
    * If a stage reads only every second cell of the previous stage (C4 with the stride on the first
      1x1) and nothing else reads that map, the last block of the previous stage computes only those
      cells, in its 3x3, its last 1x1 and the addition.

    Only a :class:`.resnet.Block` is changed. A subclass with its own ``forward``, such as a
    pre-activation block, keeps its strides, because its norms may use the skipped cells.

    Returns:
        ``stages``.
    """
    for m in stages.modules():
        if isinstance(m, Conv2d):
            m.fold = True
    stages.layout = layout
    for name, following in pairwise(stages.names):
        last = _block(stages, name, -1)
        if name not in stages.out_features and last is not None and _can_stride(last):
            stride = take_stride(stages, following)
            if stride > 1:
                _add_stride(last, stride)
    return stages


def take_stride(stages: Stages, name: str | None = None) -> int:
    """Remove a stage's stride, for an input that is already subsampled.

    Args:
        name: the stage; the default is the first.

    Returns:
        The stride that was removed, by which the caller subsamples the input. It is 1 if nothing
        was removed, because the stage has no stride or also reads the cells in between (its first
        convolution is not a strided 1x1, or its first block does not compute as
        :class:`.resnet.Block` does).
    """
    first = _block(stages, name or stages.names[0], 0)
    if first is None or not first.bottleneck or first.conv1.stride == (1, 1):
        return 1
    stride, first.conv1.stride = first.conv1.stride[0], (1, 1)
    if isinstance(first.shortcut, Conv2d):
        first.shortcut.stride = (1, 1)
    elif isinstance(first.shortcut, PadShortcut):
        first.shortcut.stride = 1
    return stride


def _block(stages: Stages, name: str, index: int) -> Block | None:
    """The first (0) or last (-1) layer of a stage, if it computes as ``Block`` does."""
    layers = list(getattr(stages, name).children())
    block = layers[index] if layers else None
    if not isinstance(block, Block) or type(block).forward is not Block.forward:
        return None
    convs = [m for n, m in block.named_children() if n.startswith("conv")]
    known = isinstance(block.shortcut, Conv2d | PadShortcut | nn.Identity | None)
    return block if known and all(type(m) is Conv2d for m in convs) else None


def _can_stride(block: Block) -> bool:
    """Whether skipping cells does not change the others: all following norms are constant."""
    convs = [block.conv2, block.conv3, block.shortcut] if block.bottleneck else []
    norms = [c.norm for c in convs if isinstance(c, Conv2d)]
    return block.bottleneck and all(isinstance(n, FrozenBatchNorm2d) for n in norms)


def _add_stride(block: Block, stride: int) -> None:
    """Let a bottleneck compute only every ``stride``-th cell of its output."""
    height, width = block.conv2.stride
    block.conv2.stride = (height * stride, width * stride)
    if isinstance(block.shortcut, Conv2d):
        height, width = block.shortcut.stride
        block.shortcut.stride = (height * stride, width * stride)
    elif isinstance(block.shortcut, PadShortcut):
        block.shortcut.stride *= stride
    elif block.shortcut is not None:
        block.shortcut = PadShortcut(0, stride)
