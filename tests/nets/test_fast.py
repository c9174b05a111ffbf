"""The prepared nets against the plain ones: the same outputs, gradients and state."""

import copy
import io

import pytest
import torch
from net_kinds import one_of_each_kind
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

from resnet_det.nets import FrozenBatchNorm2d, build_net, meta_net
from resnet_det.nets.fast import speed_up, take_stride
from resnet_det.nets.layers import Conv2d
from resnet_det.nets.resnet import Block, imagenet_resnet
from resnet_det.nets.roi_align import strided_roi_align


def fill(net):
    """Statistics and affine maps that differ from channel to channel, as after training."""
    for name, m in net.named_modules():
        if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d):
            last = name.endswith(("conv3.norm", "conv2.norm"))
            m.weight.data.uniform_(0.3, 0.6 if last else 1.2)
            m.bias.data.normal_(std=0.1)
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 2)
    return net


def pair(name, freeze_at=0, out=None, **options):
    """A filled detector's (trunk, head) twice: plain, and to be prepared."""
    torch.manual_seed(0)
    net = fill(build_net(name, norm=options.pop("norm", "FrozenBN"), **options))
    nets = []
    for twin in (net, copy.deepcopy(net)):
        trunk, head = twin.split(out)
        nets.append((trunk.freeze(freeze_at), head))
    return nets


def close(ours, theirs):
    """Equal within 1e-5 of the maximum, or 1e-10 in float64."""
    scale = theirs.abs().max().item()
    assert scale > 0
    relative = 1e-10 if theirs.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * scale)


def assert_same(fast, plain, x, x_fast=None):
    """Outputs and gradients of two Stages for one input, and their states bit for bit.

    Gradients in double precision: in float32 they jump where a ReLU's input rounds to either
    side of zero.
    """
    states = plain.state_dict(), fast.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    x_fast = x if x_fast is None else x_fast
    with torch.no_grad():
        for ours, theirs in zip(fast(x_fast).values(), plain(x).values(), strict=True):
            close(ours, theirs)
    fast, plain, x, x_fast = fast.double(), plain.double(), x.double(), x_fast.double()
    results = []
    for net, image in ((plain, x), (fast, x_fast)):
        maps = net(image)
        torch.manual_seed(1)
        sum((m * torch.randn(m.shape, dtype=m.dtype)).sum() for m in maps.values()).backward()
        results.append((maps, {k: p.grad for k, p in net.named_parameters()}))
    (maps, grads), (fast_maps, fast_grads) = results
    assert maps.keys() == fast_maps.keys() and grads.keys() == fast_grads.keys()
    for key, value in maps.items():
        close(fast_maps[key], value)
    for key, value in grads.items():
        assert (value is None) == (fast_grads[key] is None), key
        if value is not None:
            close(fast_grads[key], value)


@pytest.mark.parametrize("name", ["paper_resnet18", "paper_resnet50"])
@pytest.mark.parametrize("freeze_at, in_1x1, size", [(2, True, (65, 97)), (0, True, (64, 90)),
                                                     (2, False, (67, 64))])  # fmt: skip
def test_trunk(name, freeze_at, in_1x1, size):
    (plain, _), (fast, _) = pair(name, freeze_at, stride_in_1x1=in_1x1)
    assert_same(speed_up(fast), plain, torch.randn(2, 3, *size))


@pytest.mark.parametrize("out", [["res3", "res4"], ["res5"], ["res2", "res3", "res4", "res5"]])
def test_trunk_whose_other_maps_are_asked_for(out):
    (plain, _), (fast, _) = pair("paper_resnet50", 2, out)
    assert_same(speed_up(fast), plain, torch.randn(1, 3, 65, 70))


@pytest.mark.parametrize("name", [n for n in one_of_each_kind() if meta_net(n).has_norm])
def test_the_trunk_of_each_kind(name):
    (plain, _), (fast, _) = pair(name, 2)
    assert_same(speed_up(fast), plain, torch.randn(1, 3, 49, 50))


@pytest.mark.parametrize("option", ["A", "C"])
def test_bottlenecks_with_other_shortcuts(option):
    torch.manual_seed(0)
    net = fill(imagenet_resnet(50, option, norm="FrozenBN"))
    twin = copy.deepcopy(net)
    assert_same(speed_up(twin.split()[0]), net.split()[0], torch.randn(1, 3, 49, 50))
    plain, fast = net.split()[1], speed_up(twin.split()[1])
    regions = torch.randn(3, 1024, 14, 14)
    assert take_stride(fast) == 2
    assert_same(fast, plain, regions, regions[:, :, ::2, ::2])


@pytest.mark.parametrize(
    "name, options, step",
    [
        ("paper_resnet50", {}, 2),
        ("paper_resnet50", {"norm": "BN"}, 2),  # whose norms see the same maps
        ("paper_resnet50", {"stride_in_1x1": False}, 1),
        ("paper_resnet50", {"res5_dilation": 2}, 1),
        ("paper_resnet18", {}, 1),
        ("paper_vgg16", {}, 1),
    ],
)
def test_head(name, options, step):
    (_, plain), (_, fast) = pair(name, **options)
    if name == "paper_vgg16":
        assert take_stride(speed_up(fast)) == 1
        return
    x = torch.randn(3, 256 if name == "paper_resnet18" else 1024, 14, 14)
    assert take_stride(speed_up(fast)) == step
    assert_same(fast, plain, x, x[:, :, ::step, ::step])


class PreActivation(Block):
    """He et al. (2016): the norms and ReLUs stand before the convolutions."""

    def __init__(self, cin, cout, stride, *, norm, **options):
        super().__init__(cin, cout, stride, norm="", **options)
        norm = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d}[norm]
        self.norms = nn.ModuleList([norm(c) for c in (cin, cout // 4, cout // 4)])

    def forward(self, x):
        out = x
        for norm, conv in zip(self.norms, (self.conv1, self.conv2, self.conv3)):
            out = conv(norm(out).relu())
        return out + self.shortcut(x)


class NormBeforeConv1(Block):
    """A block that keeps ``forward`` and has a norm of the whole map inside conv1."""

    def __init__(self, cin, cout, stride, **options):
        super().__init__(cin, cout, stride, **options)
        self.conv1 = nn.Sequential(nn.BatchNorm2d(cin), self.conv1)


@pytest.mark.parametrize("block, norm", [(PreActivation, "BN"), (PreActivation, "FrozenBN"),
                                         (NormBeforeConv1, "BN")])  # fmt: skip
def test_blocks_with_norms_elsewhere_are_left_alone(block, norm):
    """Their norms use the cells that a stride in conv1 would drop, so skipping cells changes the
    net."""
    torch.manual_seed(0)
    net = fill(imagenet_resnet(50, block=block, norm=norm)).double()
    twin = copy.deepcopy(net)
    (trunk, head), (fast_trunk, fast_head) = net.split(), twin.split()
    assert take_stride(speed_up(fast_head)) == 1
    speed_up(fast_trunk)
    image = torch.randn(2, 3, 49, 50, dtype=torch.float64)
    regions = torch.randn(2, 1024, 14, 14, dtype=torch.float64)
    for fast, plain, x in ((fast_trunk, trunk, image), (fast_head, head, regions)):
        for ours, theirs in zip(fast(x).values(), plain(x).values(), strict=True):
            close(ours, theirs)
    for key, value in twin.state_dict().items():  # the batches' statistics, too
        torch.testing.assert_close(value, net.state_dict()[key])


def test_what_stands_around_the_blocks_of_a_stage_is_minded():
    """A norm before the first block or behind the last sees the whole map, too."""
    (plain, head), (fast, fast_head) = pair("paper_resnet50", 2)
    for trunk in (plain, fast):
        trunk.res2.append(nn.BatchNorm2d(256))
        trunk.res3.append(nn.BatchNorm2d(512))
    for twin in (head, fast_head):
        twin.res5.insert(0, nn.BatchNorm2d(1024))
    assert take_stride(speed_up(fast_head)) == 1
    assert_same(speed_up(fast), plain, torch.randn(1, 3, 49, 50))
    assert multiply_adds(fast.float()) == multiply_adds(plain.float())


def multiply_adds(trunk):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        trunk(torch.zeros(1, 3, 64, 64))
    return counter.get_total_flops() // 2


def test_dead_work_is_gone_only_where_it_is_dead():
    """Three quarters of a 3x3 and a 1x1 in conv2_x (16x16) and conv3_x (8x8)."""
    (plain, _), (fast, _) = pair("paper_resnet50")
    saved = 3 * 64 * (9 * 64 * 64 + 64 * 256) + 3 * 16 * (9 * 128 * 128 + 128 * 512)
    assert multiply_adds(plain) - multiply_adds(speed_up(fast)) == saved
    for options in ({"norm": "BN"}, {"stride_in_1x1": False}, {"out": ["res2", "res3", "res4"]}):
        (plain, _), (fast, _) = pair("paper_resnet50", **options)
        assert multiply_adds(plain) == multiply_adds(speed_up(fast))


def folding_conv():
    torch.manual_seed(0)
    conv = fill(nn.Sequential(Conv2d(4, 6, 3, norm="FrozenBN")))[0]
    conv.weight.requires_grad_(False)
    conv.fold = True
    return conv


def unfolded(conv, x):
    return conv.norm(nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding))


def test_folded_weight_is_kept_and_renewed():
    conv, x = folding_conv(), torch.randn(1, 4, 5, 5)
    close(conv(x), unfolded(conv, x))
    kept = conv._cached[2]
    conv(x)
    assert conv._cached[2] is kept
    conv.requires_grad_(True)
    with torch.inference_mode():
        conv(x)
    assert conv._cached[2] is kept and not kept.is_inference()
    conv.requires_grad_(False)

    def in_place(tensor):
        with torch.no_grad():
            tensor.mul_(1.5)

    def replaced():
        conv.weight = nn.Parameter(conv.weight * 2, requires_grad=False)

    def through_data():
        conv.weight.data.add_(1)
        conv.eval()

    changes = [
        lambda: in_place(conv.weight),
        lambda: in_place(conv.norm.running_var),
        lambda: in_place(conv.norm.bias),
        lambda: conv.load_state_dict({k: v + 1 for k, v in conv.state_dict().items()}),
        lambda: conv.load_state_dict(
            {k: v.clone() for k, v in folding_conv().state_dict().items()}, assign=True
        ),
        lambda: setattr(conv.weight, "data", conv.weight.data * 3),
        replaced,
        through_data,
        lambda: conv.to(torch.bfloat16).to(torch.float32),  # rounds the weights
    ]
    for change in changes:
        before = conv(x)
        change()
        assert not torch.equal(conv(x), before)
        close(conv(x), unfolded(conv, x))
    conv.double()
    assert conv(x.double()).dtype == torch.float64
    close(conv(x.double()), unfolded(conv, x.double()))
    assert conv.to("meta")(x.double().to("meta")).is_meta


def test_copies_and_files_hold_no_folded_weight():
    conv, x = folding_conv(), torch.randn(1, 4, 5, 5)
    expected = conv(x)
    assert "_cached" in conv.__dict__
    twin = copy.deepcopy(conv)
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (twin, loaded):
        assert "_cached" not in other.__dict__ and other.state_dict().keys() == set(
            conv.state_dict()
        )
        assert torch.equal(other(x), expected)
    twin.weight.mul_(2)
    assert torch.equal(conv(x), expected) and not torch.equal(twin(x), expected)


def test_norm_in_training_is_not_cached():
    torch.manual_seed(0)
    conv = fill(nn.Sequential(Conv2d(4, 6, 3, norm="BN")))[0]
    conv.fold = True
    x = torch.randn(2, 4, 5, 5)
    mean = conv.norm.running_mean.clone()
    assert conv(x).mean((0, 2, 3)).sub(conv.norm.bias).abs().max() < 1e-5  # normalised by batch
    assert not torch.equal(conv.norm.running_mean, mean)
    conv.eval()
    with torch.no_grad():
        close(conv(x), unfolded(conv, x))
        assert conv._cached is not None


def test_autocast_and_compile():
    (plain, _), (fast, _) = pair("paper_resnet18", 2)
    x = torch.randn(1, 3, 32, 32)
    speed_up(fast)
    with torch.autocast("cpu", torch.bfloat16):
        (a,), (b,) = plain(x).values(), fast(x).values()
        b.float().sum().backward()
    assert a.dtype == b.dtype == torch.bfloat16
    torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=0.05 * a.abs().max().item())
    assert all(p.grad is not None for p in fast.parameters() if p.requires_grad)
    compiled = torch.compile(fast.res2, backend="eager", fullgraph=True)
    y = torch.randn(1, 64, 8, 8)
    close(compiled(y), plain.res2(y))


def random_rois(count, images, dtype):
    """Boxes of all sizes in and out of a 25x19 map at stride 16, some empty or inverted."""
    corner = torch.rand(count, 2) * torch.tensor([500.0, 400.0]) - 50
    boxes = torch.cat([corner, corner + torch.rand(count, 2) ** 4 * 900], 1)
    odd = [[3, 4, 3, 4], [9, 9, 5, 5], [-1000, -1000, 3000, 3000], [0, 0, 400, 304],
           [900, 900, 1000, 1000], [3, 4, 3, 90], [10, 10, 10.3, 10.2], [0, 0, 224, 448]]  # fmt: skip
    boxes[: len(odd)] = torch.tensor(odd)
    return torch.cat([torch.randint(0, images, (count, 1)), boxes], 1).to(dtype)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("size", [14, 7])
def test_strided_roi_align_is_a_slice_of_the_operator(aligned, sampling_ratio, size):
    torch.manual_seed(0)
    options = (size, 1 / 16, sampling_ratio, aligned)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = torch.randn(2, 5, 19, 25, dtype=dtype, requires_grad=True)
        rois = random_rois(150, 2, dtype)
        theirs = roi_align(x, rois, *options)[:, :, ::2, ::2]
        weight = torch.randn_like(theirs)
        for chunk in (2**23, 2**11):  # all at once, and a few regions at a time
            ours = strided_roi_align(x, rois, *options, step=2, chunk=chunk)
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
            grads = [torch.autograd.grad((o * weight).sum(), x, retain_graph=True)[0]
                     for o in (ours, theirs)]  # fmt: skip
            torch.testing.assert_close(*grads, rtol=0, atol=10 * tolerance)


def test_strided_roi_align_of_nothing_and_in_bfloat16():
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    none = strided_roi_align(x, torch.zeros(0, 5), 14, 1 / 16, 0, True, 2)
    assert none.shape == (0, 3, 7, 7)
    none.sum().backward()
    assert not x.grad.any()
    half, rois = x.detach().bfloat16(), torch.tensor([[0, 8.3, 16.7, 88.1, 120.9]])
    with torch.autocast("cpu", torch.bfloat16):
        ours = strided_roi_align(half, rois, 14, 1 / 16, 0, True, 2)
    theirs = roi_align(half.float(), rois, 14, 1 / 16, 0, True)[:, :, ::2, ::2]
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs, rtol=2**-8, atol=1e-6)
