"""Winograd's convolutions against torch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_det.nets.layers import Conv2d
from resnet_det.nets.winograd import MIN_CHANNELS, WinogradConv, fits, replace_convolutions


def seeded(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (4, 4), (5, 8), (7, 7), (13, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(shape, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=bias).double()
    for count in (0, 1, 2):
        x = seeded(count, 5, *shape)
        torch.testing.assert_close(WinogradConv(conv)(x), conv(x), rtol=0, atol=1e-12)


def test_its_rounding_error_is_that_of_a_few_sums():
    x, weight = seeded(2, 256, 14, 14).relu(), seeded(64, 256, 3, 3) / 48
    conv = nn.Conv2d(256, 64, 3, padding=1, bias=False)
    conv.weight.data = weight.float()
    exact = F.conv2d(x.float().double(), weight.float().double(), padding=1)
    direct, found = (f(x.float()) - exact for f in (conv, WinogradConv(conv)))
    assert 0 < direct.std() < found.std() < 10 * direct.std()


def test_which_convolutions_are_replaced():
    wide = MIN_CHANNELS
    assert fits(nn.Conv2d(wide, wide, 3, padding=1)) and fits(Conv2d(wide, wide, 3))
    for other in (
        nn.Conv2d(wide - 1, wide, 3, padding=1), nn.Conv2d(wide, wide - 1, 3, padding=1),
        nn.Conv2d(wide, wide, 3, 2, 1), nn.Conv2d(wide, wide, 3),
        nn.Conv2d(wide, wide, 3, padding=2, dilation=2), nn.Conv2d(wide, wide, 1),
        nn.Conv2d(wide, wide, 3, padding=1, groups=2), Conv2d(wide, wide, 3, norm="BN"),
        nn.Linear(wide, wide),
    ):  # fmt: skip
        assert not fits(other)
    net = nn.Sequential(nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU()))
    x = seeded(1, wide, 6, 6, dtype=torch.float32)
    expected = net(x)
    replace_convolutions(net)
    assert isinstance(net[0][0], WinogradConv)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-5)
