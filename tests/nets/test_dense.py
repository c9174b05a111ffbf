"""Fully convolutional testing (section 4.1, Table 4) against the ordinary forward pass per
window."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_det.nets import build_net
from resnet_det.nets.classifier import Classifier
from resnet_det.nets.layers import FullyConnected


def windows(x, side, stride=1):
    """Every square of ``side`` cells of x (N, C, H, W)."""
    for y in range(0, x.shape[2] - side + 1, stride):
        for left in range(0, x.shape[3] - side + 1, stride):
            yield x[:, :, y : y + side, left : left + side]


@pytest.mark.parametrize(
    "name, size",
    [("paper_resnet18", 224), ("paper_resnet50", 64), ("paper_plain18", 64), ("cifar_resnet20", 32)],
)  # fmt: skip
@torch.no_grad()
def test_dense_is_the_forward_at_the_training_size_and_the_mean_of_windows_beyond(name, size):
    torch.manual_seed(0)
    net = build_net(name, 5).double().eval()
    x = torch.randn(1, 3, size, size).double()
    assert torch.allclose(net.dense(x, size), net(x), rtol=1e-12)
    x = torch.randn(1, 3, size + 32, size + 64).double()
    maps = net.head(net.trunk(x))
    side = {224: 7, 64: 2, 32: 8}[size]
    each = [net.linear(net.pool(w)) for w in windows(maps, side)]
    assert len(each) >= 2 * 3
    dense = net.dense(x, size)
    assert torch.allclose(dense, sum(each) / len(each), rtol=1e-10)
    assert not torch.allclose(dense, net(x), rtol=1e-3)  # global pooling weighs borders otherwise


@torch.no_grad()
def test_without_padding_the_windows_are_crops_of_the_image():
    torch.manual_seed(0)
    stages = {"a": nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()), "b": nn.Conv2d(4, 6, 2, 2)}
    net = Classifier(stages, cut="a", channels={"a": 4, "b": 6}, strides={"a": 4, "b": 8},
                     pooled=6, num_classes=5).double()  # fmt: skip
    x = torch.randn(2, 3, 40, 56).double()
    crops = [net(crop) for crop in windows(x, 24, stride=8)]
    assert len(crops) == 3 * 5
    assert torch.allclose(net.dense(x, 24), sum(crops) / len(crops), rtol=1e-12)


@torch.no_grad()
def test_vgg_16_slides_its_fully_connected_layers():
    torch.manual_seed(0)
    with torch.device("meta"):  # the convolutions slide anyway
        net = build_net("paper_vgg16", 5).eval()
    net.trunk = lambda maps: maps
    net.fc6, net.fc7 = FullyConnected(512 * 7 * 7, 20), FullyConnected(20, 10)
    net.linear = nn.Linear(10, 5)
    maps = torch.rand(1, 512, 14, 14)
    assert torch.allclose(net.dense(maps, 224), net(maps), atol=1e-5)
    maps = torch.rand(1, 512, 16, 18)
    each = [net.linear(net.head(w)) for w in windows(F.max_pool2d(maps, 2), 7)]
    assert len(each) == 2 * 3
    assert torch.allclose(net.dense(maps, 224), sum(each) / 6, atol=1e-5)
