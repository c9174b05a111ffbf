"""The same results with less work, for nets whose batch norms are constant (appendix A).

A net is plain as it is built. :func:`speed_up` prepares the trunk and the head of a detector in
place; parameters, buffers and their names stay as they are.
"""

from itertools import pairwise

import torch

from .layers import Conv2d, FrozenBatchNorm2d
from .resnet import Block, PadShortcut


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def channels_last_on_gpu(x):
    """Convolutions of small maps lose by it on a CPU (a tenth of conv5_x's training step)."""
    return channels_last(x) if x.is_cuda else x.contiguous()


def speed_up(stages, layout=channels_last):
    """Prepare a trunk or a head (:class:`.Stages`), after it is frozen; returns it.

    * Constant batch norms are folded into their convolutions (:class:`.layers.Conv2d`).
    * Maps lie in memory as ``layout`` puts them: :func:`channels_last_on_gpu` for a head.
    * Where a stage reads only the even cells of the one before, and nobody else asks for that
      one (C4, the stride on the first 1x1), its last block computes only those: the 3x3, the last
      1x1 and the addition.
    """
    for m in stages.modules():
        if isinstance(m, Conv2d):
            m.fold = True
    stages.layout = layout
    for name, following in pairwise(stages.names):
        last = _blocks(stages, name)[-1:]
        if name not in stages.out_features and last and _can_stride(last[0]):
            step = take_stride(stages, following)
            if step > 1:
                _add_stride(last[0], step)
    return stages


def take_stride(stages, name=None):
    """Make a stage (default: the first) read every cell of a map that has only those it would read.

    Returns:
        int: the step at which its input is to be computed; 1 where it reads every cell, as it does
        if its first convolution is not a 1x1 with a stride.
    """
    first = next(iter(_blocks(stages, name or stages.names[0])), None)
    if first is None or not first.bottleneck or first.conv1.stride == (1, 1):
        return 1
    step, first.conv1.stride = first.conv1.stride[0], (1, 1)
    if isinstance(first.shortcut, Conv2d):
        first.shortcut.stride = (1, 1)
    elif isinstance(first.shortcut, PadShortcut):
        first.shortcut.stride = 1
    return step


def _blocks(stages, name):
    return [m for m in getattr(stages, name).children() if isinstance(m, Block)]


def _can_stride(block):
    """A bottleneck whose norms do not see the map (statistics of half of it would differ)."""
    convs = [block.conv2, block.conv3, block.shortcut] if block.bottleneck else []
    norms = [c.norm for c in convs if isinstance(c, Conv2d)]
    return block.bottleneck and all(isinstance(n, FrozenBatchNorm2d) for n in norms)


def _add_stride(block, step):
    """Let a bottleneck compute every ``step``-th cell of its output only."""
    block.conv2.stride = tuple(s * step for s in block.conv2.stride)
    if isinstance(block.shortcut, Conv2d):
        block.shortcut.stride = tuple(s * step for s in block.shortcut.stride)
    elif isinstance(block.shortcut, PadShortcut):
        block.shortcut.stride *= step
    elif block.shortcut is not None:
        block.shortcut = PadShortcut(0, step)
