"""CUDA tensors that hold no data, and a count of the waits that code on them would cause.

PyTorch's FakeTensorMode gives tensors on "cuda" without a GPU. Where code needs a value of such a
tensor, ``Invented`` makes one up and counts a wait: there, a real GPU must finish its queue before
the CPU goes on. Kernels and the backward pass do not run.
"""

import collections

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

ROWS = 6  # how many rows a selection by data is said to have
aten = torch.ops.aten


class Invented(TorchDispatchMode):
    """Invents the values that depend on data.

    Args:
        boxes: how many regions all images have together.

    Attributes:
        waits: how often code on "cuda" waited, by operator.
    """

    def __init__(self, boxes=ROWS):
        super().__init__()
        self.boxes, self.waits = boxes, collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, op, x = kwargs or {}, func.overloadpacket, args[0] if args else None
        on_gpu = isinstance(x, torch.Tensor) and x.is_cuda

        def index(*shape):
            self.waits[op.__name__] += on_gpu
            return torch.zeros(*shape, dtype=torch.int64, device=x.device)

        def is_mask(i):
            return i is not None and i.dtype is torch.bool

        if op is aten._local_scalar_dense:
            self.waits["item"] += on_gpu
            return 2.0 if x.is_floating_point() else 2
        if op is aten.nonzero:
            return index(min(ROWS, x.numel()), x.dim())
        if op is torch.ops.torchvision.nms:
            return index(min(ROWS, len(x)))
        if func is aten.repeat_interleave.Tensor:
            return index(kwargs.get("output_size") or self.boxes)
        if op is aten.unique_consecutive:
            return x.new_zeros(1), index(0), index(1)
        if op is aten.index and any(map(is_mask, args[1])):
            args = x, [index(ROWS) if is_mask(i) else i for i in args[1]]
        if op in (aten._to_copy, aten.copy_) and not kwargs.get("non_blocking"):
            to = kwargs.get("device", x.device) if op is aten._to_copy else args[1].device
            self.waits["copy"] += torch.device(to).type != x.device.type
        return func(*args, **kwargs)

    @property
    def count(self):
        return sum(self.waits.values())


def listed(x):
    """Invents ``x.tolist()``, with one wait: zeros, or counts (integers) of ``ROWS`` rows."""
    x.flatten()[0].item()
    count = x.numel()
    if x.is_floating_point():
        return [0.0] * count
    return [(ROWS + i) // count for i in range(count)]


def moved(model):
    """Move a model to "cuda", where its tensors hold no data. Call this in a FakeTensorMode."""

    def empty(x):
        return torch.empty(x.shape, dtype=x.dtype, device="cuda")

    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(empty(p), p.requires_grad)
        module._buffers |= {k: empty(b) for k, b in module.named_buffers(recurse=False)}
    return model
