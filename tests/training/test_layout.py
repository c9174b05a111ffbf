"""Weights in channels-last format: where they are, fewer copies, the same training."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_det.engines.classifier_nets import ClassifierLoss
from resnet_det.nets import build_net
from resnet_det.training.layout import match_layout, to_fastest_layout

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


def is_channels_last(model):
    (found,) = {
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in model.parameters()
        if weight.dim() == 4 and weight.shape[2:] != (1, 1) and weight.shape[1] > 1
    }
    return found


@pytest.mark.parametrize("device, capability, mixed, tf32, wanted", [
    (CPU, None, False, True, False), (CPU, None, True, True, False),
    (GPU, (7, 0), False, True, False), (GPU, (7, 0), True, True, True),
    (GPU, (8, 0), False, True, True), (GPU, (9, 0), True, False, True),
    (GPU, (9, 0), False, False, False),
])  # fmt: skip
def test_the_format_of_each_device(device, capability, mixed, tf32, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    model = build_net("cifar_resnet20")
    to_fastest_layout(model, device, mixed=mixed, tf32=tf32)
    assert is_channels_last(model) is wanted


def net(format):
    torch.manual_seed(0)
    return ClassifierLoss(build_net("cifar_resnet20", norm="BN")).to(memory_format=format).double()


def batch(seed):
    torch.manual_seed(seed)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    return images.contiguous(memory_format=torch.channels_last), torch.tensor([0, 1, 2, 3])


class Copies(TorchDispatchMode):
    """Counts copies of tensors with the shape of a 3x3 convolution's weight."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        copies = func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.copy_)
        self.count += copies and args[0].dim() == 4 and args[0].shape[2:] == (3, 3)
        return func(*args, **kwargs or {})


def test_no_gradient_is_copied_to_another_format():
    counts, gradients = [], []
    for format in (torch.contiguous_format, torch.channels_last):
        model = net(format)
        loss = model(batch(1))["loss_cls"]
        with Copies() as copies:
            loss.backward()
        counts.append(copies.count)
        gradients.append([p.grad for p in model.parameters()])
    assert counts == [19, 0]  # convolutions of ResNet-20
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("after", [torch.contiguous_format, torch.channels_last])
def test_a_checkpoint_of_another_format_continues_the_same(before, after, fused):
    """The momentum of fused SGD would be mixed up, without an error."""

    def step(model, optimizer, seed):
        model(batch(seed))["loss_cls"].backward()
        optimizer.step()
        optimizer.zero_grad()

    def start(format, state=None):
        model = net(format)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=fused)
        if state:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
            match_layout(optimizer)
        return model, optimizer

    model, optimizer = start(before)
    step(model, optimizer, 1)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    step(model, optimizer, 2)
    resumed, its_optimizer = start(after, state)
    step(resumed, its_optimizer, 2)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
