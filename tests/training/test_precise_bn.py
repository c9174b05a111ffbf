import pytest
import torch
from torch import nn

from resnet_det.training import precise_bn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, bias=False),
        nn.BatchNorm2d(5),
    )


def test_equals_the_directly_computed_statistics():
    """Batches of different sizes, two layers; the second sees what the first normalised."""
    torch.manual_seed(1)
    batches = [torch.randn(n, 3, size, size) * 3 + 1 for n, size in [(2, 8), (3, 9), (1, 12)]]
    model = net()
    with torch.no_grad():
        seen = [[], []]
        for x in batches:
            x = model[0](x)
            seen[0].append(x)
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), False, keepdim=True)
            x = model[3](((x - mean) / (var + 1e-5).sqrt()).relu())
            seen[1].append(x)
    before = [p.clone() for p in model.parameters()]
    precise_bn.update(model, iter(batches), 3, progress=False)
    for layer, inputs in zip((model[1], model[4]), seen):
        values = torch.cat([x.transpose(0, 1).flatten(1) for x in inputs], 1).double()
        mean, var = values.mean(1), values.var(1, unbiased=False)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-5, atol=1e-6)
        assert layer.momentum == 0.1 and layer.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_a_constant_channel_has_no_negative_variance():
    model = nn.Sequential(nn.BatchNorm2d(1))
    precise_bn.update(model, [torch.full((2, 1, 3, 3), 1000.1)] * 7, 7, progress=False)
    assert model[0].running_var.item() >= 0
    assert model.eval()(torch.full((1, 1, 2, 2), 1000.1)).isfinite().all()


def test_frozen_layers_and_short_data_are_refused():
    with pytest.raises(ValueError, match="training mode"):
        precise_bn.update(net().eval(), [], 1, progress=False)
    with pytest.raises(ValueError, match="5 iterations"):
        precise_bn.update(net(), [torch.randn(2, 3, 8, 8)], 5, progress=False)
