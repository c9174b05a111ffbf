"""Networks of other projects with random weights and statistics, and Caffe2's blobs."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def fill(module, seed=1):
    """Fill weights, batch norms and statistics with random values, so that nothing is trivial."""
    module.to_empty(device="cpu")
    g = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=g)
        elif value.dim() > 1:
            value.normal_(0, math.sqrt(1 / value[0].numel()), generator=g)
        elif name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif name.endswith("weight"):
            value.uniform_(0.5, 1.5, generator=g)
        else:
            value.normal_(0, 0.1, generator=g)
    return module.eval()


def picture(size, seed=0):
    return torch.randn(
        1, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class _BothSidesBlock(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.stride, self.zeros = stride, (cout - cin) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        x = x[:, :, :: self.stride, :: self.stride]
        return (y + F.pad(x, (0, 0, 0, 0, self.zeros, self.zeros))).relu()


class BothSides(nn.Module):
    """A residual net whose option A pads half of its zeros on each side of the channels.

    As common PyTorch versions of the CIFAR nets do, with their names. ``stem``: the kernel of the
    first convolution; 7 has a stride and a max pooling, as for ImageNet.
    """

    def __init__(self, counts, widths, stem=3, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], stem, stem // 3, stem // 2, bias=False)
        self.bn1, self.stem, self.stages = nn.BatchNorm2d(widths[0]), stem, len(counts)
        cin = widths[0]
        for stage, (count, width) in enumerate(zip(counts, widths), 1):
            blocks = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                blocks.append(_BothSidesBlock(cin, width, stride))
                cin = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(cin, classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        if self.stem == 7:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


# MSRA's and Detectron's blobs, and what they compute, written from the prototxt's description:
# convolution, then a channel-wise scale s and shift b; the stride on branch1 and branch2a.


def msra_blobs(depths, conv1_bias, classes=11):
    """Blobs as R-50.pkl's (which has a bias in conv1) or R-101.pkl's."""
    g = torch.Generator().manual_seed(3)
    blobs = {}

    def conv(name, bn, cout, cin, kernel):
        std = math.sqrt(1 / (cin * kernel**2))
        blobs[f"{name}_w"] = torch.empty(cout, cin, kernel, kernel).normal_(0, std, generator=g)
        blobs[f"{bn}_s"] = torch.empty(cout).uniform_(0.5, 1.5, generator=g)
        blobs[f"{bn}_b"] = torch.empty(cout).normal_(0, 0.1, generator=g)

    conv("conv1", "res_conv1_bn", 64, 3, 7)
    if conv1_bias:
        blobs["conv1_b"] = torch.empty(64).normal_(0, 0.5, generator=g)
    cin = 64
    for stage, count in enumerate(depths):
        width = 64 * 2**stage
        for block in range(count):
            name = f"res{stage + 2}_{block}_branch"
            if block == 0:
                conv(f"{name}1", f"{name}1_bn", 4 * width, cin, 1)
            conv(f"{name}2a", f"{name}2a_bn", width, cin, 1)
            conv(f"{name}2b", f"{name}2b_bn", width, width, 3)
            conv(f"{name}2c", f"{name}2c_bn", 4 * width, width, 1)
            cin = 4 * width
    blobs["fc1000_w"] = torch.empty(classes, cin).normal_(0, 0.02, generator=g)
    blobs["fc1000_b"] = torch.empty(classes).normal_(0, 0.1, generator=g)
    return {name: value.numpy() for name, value in blobs.items()}


def msra_forward(blobs, depths, x):
    """The logits of the blobs for a picture (N, 3, H, W), in double."""
    blob = {name: torch.from_numpy(value).double() for name, value in blobs.items()}

    def conv(x, name, bn, stride=1, pad=0):
        x = F.conv2d(x, blob[f"{name}_w"], blob.get(f"{name}_b"), stride, pad)
        return x * blob[f"{bn}_s"][:, None, None] + blob[f"{bn}_b"][:, None, None]

    x = F.max_pool2d(conv(x, "conv1", "res_conv1_bn", 2, 3).relu(), 3, 2, 1)
    for stage, count in enumerate(depths):
        for block in range(count):
            name = f"res{stage + 2}_{block}_branch"
            stride = 2 if block == 0 and stage > 0 else 1
            y = conv(x, f"{name}2a", f"{name}2a_bn", stride).relu()
            y = conv(y, f"{name}2b", f"{name}2b_bn", pad=1).relu()
            y = conv(y, f"{name}2c", f"{name}2c_bn")
            x = conv(x, f"{name}1", f"{name}1_bn", stride) if block == 0 else x
            x = (x + y).relu()
    return x.mean((2, 3)) @ blob["fc1000_w"].T + blob["fc1000_b"]


def caffe_vgg_forward(blob, x):
    """The logits of Caffe's VGG, conv1_1_w ... fc8_b, for a picture of 224."""
    for stage in range(1, 6):
        for i in range(1, 5):
            name = f"conv{stage}_{i}"
            if f"{name}_w" in blob:
                x = F.conv2d(x, blob[f"{name}_w"], blob[f"{name}_b"], padding=1).relu()
        x = F.max_pool2d(x, 2)
    x = x.reshape(len(x), -1)  # channels, rows, columns
    for name in ("fc6", "fc7"):
        x = (x @ blob[f"{name}_w"].T + blob[f"{name}_b"]).relu()
    return x @ blob["fc8_w"].T + blob["fc8_b"]
