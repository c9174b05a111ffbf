"""The networks against the paper (Tables 1 and 6, sections 3.3 and 4.2) and exact arithmetic."""

import math

import pytest
import torch
from net_kinds import one_of_each_kind
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_det.nets import NETS, FrozenBatchNorm2d, build_net, freeze, meta_net, without_statistics
from resnet_det.nets.layers import Conv2d
from resnet_det.nets.resnet import Block, PadShortcut, cifar_resnet, imagenet_resnet

G = 10**9

# parameters; multiply-adds with the stride on the first 1x1; and on the 3x3 (None: no choice)
PAPER = {
    "paper_plain18": (11_515_688, 1_794_805_760, None),
    "paper_resnet18_a": (11_515_688, 1_794_805_760, None),
    "paper_resnet18": (11_689_512, 1_814_073_344, None),
    "paper_plain34": (21_623_848, 3_644_493_824, None),
    "paper_resnet34_a": (21_623_848, 3_644_493_824, None),
    "paper_resnet34": (21_797_672, 3_663_761_408, None),
    "paper_resnet34_b": (21_797_672, 3_663_761_408, None),
    "paper_resnet34_c": (22_716_840, 3_830_747_136, None),
    "paper_resnet50": (25_557_032, 3_857_973_248, 4_089_184_256),
    "paper_resnet101": (44_549_160, 7_570_194_432, 7_801_405_440),
    "paper_resnet152": (60_192_808, 11_282_415_616, 11_513_626_624),
    "paper_vgg16": (138_357_544, 15_470_264_320, None),
    "paper_vgg19": (143_667_240, 19_632_062_464, None),
}
CIFAR = {
    20: (269_722, 40_551_040),
    32: (464_154, 68_862_592),
    44: (658_586, 97_174_144),
    56: (853_018, 125_485_696),
    110: (1_727_962, 252_887_680),
    1202: (19_421_274, 2_829_238_912),
}
# Table 1's last row, in units of 10^9, as printed (R50's 3.86 is truncated there).
TABLE_1 = {18: 1.8, 34: 3.6, 50: 3.8, 101: 7.6, 152: 11.3}
# The multiply-adds in 10^9, and parameters in 10^6, that the paper prints for a net: Table 1,
# sections 3.3 (3.6 and 19.6) and 4.1 (15.3), and Table 6. It prints none for any other net.
PRINTED_GIGA = {
    **{f"paper_resnet{depth}": giga for depth, giga in TABLE_1.items()},
    **{f"paper_plain{depth}": TABLE_1[depth] for depth in (18, 34)},
    "paper_resnet18_a": 1.8,
    "paper_resnet34_a": 3.6,
    "paper_resnet34_b": 3.6,
    "paper_vgg16": 15.3,
    "paper_vgg19": 19.6,
}
_TABLE_6 = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}
PRINTED_MEGA = {
    f"cifar_{kind}{depth}": mega for kind in ("resnet", "plain") for depth, mega in _TABLE_6.items()
}
CONVOLUTIONAL = sorted(set(NETS) - {"cifar_resnet1202"})


def on_meta(build, *args, **kwargs):
    with torch.device("meta"):
        return build(*args, **kwargs).eval()


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def multiply_adds(net, side):
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        net(torch.empty(1, 3, side, side))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", PAPER)
def test_imagenet_counts(name):
    expected, in_1x1, in_3x3 = PAPER[name]
    net = meta_net(name)
    assert parameters(net) == expected
    assert multiply_adds(net, 224) == in_1x1
    assert net.has_stride_choice == (in_3x3 is not None)
    net = meta_net(name, stride_in_1x1=False)
    assert parameters(net) == expected
    assert multiply_adds(net, 224) == (in_3x3 or in_1x1)


@pytest.mark.parametrize(
    "depth, option, expected, in_1x1, in_3x3",
    [
        (50, "A", 22_780_456, 3_498_311_680, 3_729_522_688),
        (50, "C", 40_128_552, 6_324_224_000, 6_555_435_008),
        (18, "C", 12_043_816, 1_878_298_624, 1_878_298_624),
    ],
)
def test_options_beyond_the_paper(depth, option, expected, in_1x1, in_3x3):
    for stride_in_1x1, adds in ((True, in_1x1), (False, in_3x3)):
        net = on_meta(imagenet_resnet, depth, option, stride_in_1x1=stride_in_1x1)
        assert (parameters(net), multiply_adds(net, 224)) == (expected, adds)


def test_every_net_is_counted():
    assert set(NETS) == {*PAPER, *(f"cifar_{k}{d}" for k in ("resnet", "plain") for d in CIFAR)} - {
        "cifar_plain1202"
    }


@pytest.mark.parametrize("name", NETS)
def test_catalog_has_the_papers_figures(name):
    spec = NETS[name]
    assert spec.image_size == (32 if name.startswith("cifar_") else 224)
    assert spec.paper_gflops == str(PRINTED_GIGA.get(name, ""))
    assert spec.paper_mparams == str(PRINTED_MEGA.get(name, ""))


@pytest.mark.parametrize("name", ["cifar_plain20", "paper_resnet18", "paper_vgg16", "paper_vgg19"])
def test_a_net_says_what_it_is(name):
    """Compares each property with the net's modules and with the behaviour of its head."""
    net = meta_net(name).eval()
    assert net.has_batch_norm == any(k.endswith("running_var") for k in net.state_dict())
    assert not meta_net(name, norm="FrozenBN").has_batch_norm
    for norm in ("BN", "FrozenBN"):
        assert meta_net(name, norm=norm).has_norm == (not name.startswith("paper_vgg"))
    group = meta_net("paper_resnet18", norm="GN")
    assert group.has_norm and not group.has_batch_norm
    larger = torch.empty(1, net.channels[net.trunk_names[-1]], *[net.pooled + 2] * 2, device="meta")
    if net.has_fully_connected_head:
        with pytest.raises(RuntimeError, match="dim"):
            net.head(larger)
    else:
        assert net.head(larger).dim() == 4


def test_table_1_flops():
    for depth, quoted in TABLE_1.items():
        exact = multiply_adds(meta_net(f"paper_resnet{depth}"), 224) / G
        assert math.floor(exact * 10) / 10 == quoted or round(exact, 1) == quoted


def test_vgg16_convolutions_alone():
    net = meta_net("paper_vgg16")
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        net.trunk(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() // 2 == 15_346_630_656


@pytest.mark.parametrize("depth", CIFAR)
def test_cifar_counts(depth):
    expected, adds = CIFAR[depth]
    net = meta_net(f"cifar_resnet{depth}")
    assert (parameters(net), multiply_adds(net, 32)) == (expected, adds)
    assert parameters(on_meta(cifar_resnet, depth, "none")) == expected
    assert parameters(on_meta(cifar_resnet, depth, "B")) == expected + 2752
    assert sum(isinstance(m, Block) for m in net.modules()) == (depth - 2) // 2


@pytest.mark.parametrize(
    "depth, option, where",
    [
        (18, "B", ["res3.0", "res4.0", "res5.0"]),
        (34, "B", ["res3.0", "res4.0", "res5.0"]),
        (50, "B", ["res2.0", "res3.0", "res4.0", "res5.0"]),
        (152, "B", ["res2.0", "res3.0", "res4.0", "res5.0"]),
        (34, "A", []),
        (18, "none", []),
    ],
)
def test_place_of_projections(depth, option, where):
    net = on_meta(imagenet_resnet, depth, option)
    shortcuts = {n: m.shortcut for n, m in net.named_modules() if isinstance(m, Block)}
    assert [n for n, s in shortcuts.items() if isinstance(s, Conv2d)] == where
    padded = [n for n, s in shortcuts.items() if isinstance(s, PadShortcut)]
    assert net.has_padded_shortcuts == (option == "A")
    assert padded == (["res3.0", "res4.0", "res5.0"] if option == "A" else [])
    assert all((s is None) == (option == "none") for s in shortcuts.values())
    for name in where:
        assert shortcuts[name].stride[0] == (1 if name == "res2.0" else 2)


@pytest.mark.parametrize("depth, count", [(18, 8), (34, 16)])
def test_option_c_projects_everywhere(depth, count):
    net = on_meta(imagenet_resnet, depth, "C")
    blocks = [m for m in net.modules() if isinstance(m, Block)]
    assert sum(isinstance(b.shortcut, Conv2d) for b in blocks) == count == len(blocks)


@pytest.mark.parametrize("depth", [18, 50])
def test_stride_placement(depth):
    for in_1x1 in (True, False):
        block = imagenet_resnet(depth, "B", stride_in_1x1=in_1x1).res3[0]
        first = in_1x1 or depth == 18
        assert (block.conv1.stride[0], block.conv2.stride[0]) == ((2, 1) if first else (1, 2))


@pytest.mark.parametrize("option", ["A", "B", "none"])
@pytest.mark.parametrize("height, width", [(64, 64), (65, 97), (600, 901), (33, 32)])
def test_stage_shapes(option, height, width):
    net = on_meta(imagenet_resnet, 18, option)
    maps = net.features(torch.empty(2, 3, height, width, device="meta"))
    for name, channels, stride in zip(
        ("stem", "res2", "res3", "res4", "res5"), (64, 64, 128, 256, 512), (4, 4, 8, 16, 32)
    ):
        expected = (2, channels, math.ceil(height / stride), math.ceil(width / stride))
        assert maps[name].shape == expected
        assert (net.channels[name], net.strides[name]) == (channels, stride)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_trunk_head_and_classifier_agree(name):
    """The detector's cut gives the classifier, and RoI pooling's grid fits the head."""
    net = meta_net(name)
    side = 32 if name.startswith("cifar") else 224
    region = net.trunk(torch.empty(2, 3, side, side, device="meta"))
    if name.startswith("paper_vgg"):
        assert region.shape == (2, 512, 14, 14) and net.pooled == 7
    else:
        assert region.shape[2:] == (net.pooled, net.pooled)
    trunk, head = net.split()
    cut = trunk.names[-1]
    assert set(trunk(torch.empty(1, 3, 50, 70, device="meta"))) == {cut}
    assert net.strides[cut] == (2 if name.startswith("cifar") else 16)
    whole = set(net.state_dict())
    parts = set(trunk.state_dict()) | set(head.state_dict())
    assert whole - parts == {"linear.weight", "linear.bias"} and parts < whole
    pooled = torch.empty(5, net.channels[cut], net.pooled, net.pooled, device="meta")
    regions = net.pool(list(head(pooled).values())[-1])
    assert net.linear(regions).shape == (5, net.linear.out_features)


@pytest.mark.parametrize("name", one_of_each_kind())
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    net = build_net(name, num_classes=5)
    if net.has_fully_connected_head:  # which fixes the size of the image, and has dropout
        net.eval()
        x = torch.randn(1, 3, 224, 224)
    else:
        side = 32 if name.startswith("cifar") else 64
        x = torch.randn(2, 3, side, side)
    net(x).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_relu_is_after_the_addition():
    torch.manual_seed(0)
    block = Block(8, 8, 1, bottleneck=False, shortcut="A", norm="BN").eval()
    seen = {}
    block.conv2.register_forward_hook(lambda m, i, o: seen.update(residual=o.clone()))
    x = torch.randn(2, 8, 6, 6)
    out = block(x)
    assert seen["residual"].min() < 0, "the last BN has no ReLU behind it"
    assert torch.equal(out, (seen["residual"] + x).clamp(min=0))


def test_option_a_is_a_strided_slice_with_zeros_behind():
    x = torch.randn(2, 3, 5, 7)
    y = PadShortcut(2, 2)(x)
    assert y.shape == (2, 5, 3, 4)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2]) and not y[:, 3:].any()


def test_option_c_differs_from_b_only_in_shortcuts():
    b, c = (on_meta(imagenet_resnet, 34, o).state_dict() for o in "BC")
    assert {k for k in c if k not in b} and all("shortcut" in k for k in c if k not in b)


def test_he_initialisation():
    torch.manual_seed(0)
    net = build_net("paper_resnet34")
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 50_000:
            fan_out = m.out_channels * m.kernel_size[0] ** 2
            assert m.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
            assert m.bias is None
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all()
    assert not net.linear.bias.any()


def test_dilated_conv5_keeps_stride_16():
    net = meta_net("paper_resnet50", res5_dilation=2)
    maps = net.features(torch.empty(1, 3, 65, 97, device="meta"))
    assert maps["res5"].shape[2:] == maps["res4"].shape[2:] == (5, 7)
    assert net.strides["res5"] == 16
    assert parameters(net) == PAPER["paper_resnet50"][0]


def test_frozen_batch_norm_is_the_same_map_and_never_moves():
    torch.manual_seed(0)
    net = build_net("cifar_resnet20").train()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, 3, 32, 32) * 3 + 1)
    net.eval()
    x = torch.randn(2, 3, 32, 32)
    expected = net(x)
    frozen = build_net("cifar_resnet20", norm="FrozenBN")
    frozen.load_state_dict(net.state_dict())
    frozen.train()
    assert torch.allclose(frozen(x), expected, atol=1e-6)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    optimizer = torch.optim.SGD(frozen.parameters(), 0.1)
    frozen(x).sum().backward()
    optimizer.step()
    moved = {k for k, v in frozen.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not any("norm" in k for k in moved)


def test_freeze_and_missing_statistics():
    net = build_net("cifar_resnet20")
    trunk, _ = net.split()
    trunk.freeze(2)
    assert len(without_statistics(trunk)) == 1 + 6  # conv1 and three blocks of two
    assert not any(
        p.requires_grad for n in ("stem", "res2") for p in getattr(trunk, n).parameters()
    )
    assert all(p.requires_grad for p in trunk.res3.parameters())
    assert isinstance(trunk.res3[0].conv1.norm, nn.BatchNorm2d)
    for m in trunk.modules():
        if isinstance(m, FrozenBatchNorm2d):
            m.running_mean += 0.5
    assert without_statistics(trunk) == []
    assert isinstance(freeze(nn.BatchNorm2d(3)), FrozenBatchNorm2d)


def test_a_frozen_batch_norm_loads_an_affine_map():
    """Without statistics, as Detectron2's FrozenBatchNorm2d does: those from before do not stay."""
    layer = FrozenBatchNorm2d(3)
    layer.running_mean += 2
    layer.load_state_dict({"weight": torch.full((3,), 2.0), "bias": torch.ones(3)})
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(layer(x), 2 * x + 1, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="running_mean"):
        layer.load_state_dict({})


def test_freezing_keeps_the_precision():
    net = build_net("cifar_resnet20").double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    expected = net(x)
    torch.testing.assert_close(freeze(net)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "call, names",
    [
        (lambda: build_net("paper_resnet51"), ["paper_resnet51", "paper_resnet50"]),
        (lambda: build_net("paper_resnet50", norm="bn"), ["'bn'", "FrozenBN"]),
        (lambda: build_net("cifar_resnet20", res5_dilation=2), ["res5_dilation", "cifar_resnet20"]),
        (lambda: build_net("cifar_resnet20", norm="GN"), ["norm 'GN'", "16 channels"]),
        (lambda: cifar_resnet(21), ["21", "6n+2"]),
        (lambda: imagenet_resnet(50, "D"), ["'D'", "'C'"]),
        (lambda: build_net("paper_resnet18").split(["res6"]), ["res6", "res5"]),
    ],
)
def test_bad_arguments_are_named(call, names):
    with pytest.raises(ValueError) as error:
        call()
    assert all(name in str(error.value) for name in names)
