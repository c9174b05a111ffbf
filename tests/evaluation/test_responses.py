"""Layer responses against a direct forward pass; the curves that are drawn against the metrics."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from resnet_det.evaluation import charts, figures
from resnet_det.evaluation.responses import layer_responses
from resnet_det.nets import build_net
from resnet_det.nets.resnet import cifar_resnet


def norm(x, n):
    """Batch norm in evaluation mode by its formula."""
    shape = (1, -1, 1, 1)
    scale = n.weight / (n.running_var + n.eps).sqrt()
    return (x - n.running_mean.view(shape)) * scale.view(shape) + n.bias.view(shape)


def direct(net, x, residual):
    """Outputs of the 3x3 layers after BN, layer by layer, written out for option A and plain
    nets."""
    outputs = []

    def layer(x, conv):
        y = norm(F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.norm)
        outputs.append(y.clone())
        return y

    x = layer(x, net.stem.conv1).relu()
    for stage in (net.res2, net.res3, net.res4):
        for block in stage:
            y = layer(layer(x, block.conv1).relu(), block.conv2)
            if residual:
                step = block.conv1.stride[0]
                same = x[:, :, ::step, ::step]
                y = y + F.pad(same, (0, 0, 0, 0, 0, y.shape[1] - same.shape[1]))
            x = y.relu()
    return outputs


@pytest.mark.parametrize("shortcut", ["A", "none"])
def test_responses_are_those_of_a_direct_pass(shortcut):
    torch.manual_seed(0)
    net = cifar_resnet(14, shortcut).double()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for tensor in (m.weight, m.bias, m.running_mean):
                torch.nn.init.normal_(tensor)
            torch.nn.init.uniform_(m.running_var, 0.5, 2)
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    wanted = [y.std(correction=0).item() for y in direct(net, images, shortcut == "A")]
    batches = [images[:4], images[4:]]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = layer_responses(net, batches)
    assert list(found)[:2] == ["stem.conv1", "res2.0.conv1"] and len(found) == 6 * 2 + 1
    assert list(found.values()) == pytest.approx(wanted, rel=1e-9)
    assert net.training and all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_net_of_110_layers_has_109_responses():
    found = layer_responses(build_net("cifar_resnet110"), [torch.randn(1, 3, 8, 8)])
    assert len(found) == 109 and all(np.isfinite(list(found.values())))


def lines(errors, tests):
    train = [{"iteration": 20 * i + 19, "total_loss": 1.0, "top1_error": e}
             for i, e in enumerate(errors)]  # fmt: skip
    test = [{"iteration": i, "classification/top1_error": e} for i, e in tests.items()]
    return sorted(train + test, key=lambda line: line["iteration"])


def test_error_curves_show_the_metrics(tmp_path, monkeypatch):
    run = lines([90.0, 60.0, 50.0], {29: 70.0, 59: 55.0})
    path = figures.error_curves({"plain": {"plain-20": run}, "ResNet": {"R": run}}, tmp_path / "f")
    with Image.open(path) as image:
        assert image.width > image.height > 300
    text = path.with_suffix(".svg").read_text()
    assert text.startswith("<?xml") and "<path" in text

    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.append(figure) or path)
    figures.error_curves({"": {"plain-20": run}}, "f")
    train, test, _ = drawn[0].axes[0].lines
    assert train.get_xydata().tolist() == [[20, 90], [40, 60], [60, 50]]
    assert train.get_linestyle() == "--" and train.get_linewidth() < test.get_linewidth()
    assert test.get_xydata().tolist() == [[30, 70], [60, 55]]
    # A long run is averaged, not thinned out.
    errors = np.random.default_rng(0).uniform(0, 10, 3000)
    figures.error_curves({"": {"long": lines(errors, {})}}, "f")
    points = drawn[1].axes[0].lines[0].get_xydata()
    assert len(points) == figures.MAX_POINTS and points[0, 1] == pytest.approx(errors[:20].mean())
    with pytest.raises(ValueError, match="empty: .*no training error"):
        figures.error_curves({"": {"empty": []}}, "f")


def test_responses_are_drawn_in_order_and_sorted(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "save", lambda figure, path: drawn.append(figure) or path)
    figures.responses({"plain-8": {"a": 1.0, "b": 3.0, "c": 2.0}}, "f")
    original, ordered = (axis.lines[0] for axis in drawn[0].axes)
    assert original.get_xydata().tolist() == [[1, 1], [2, 3], [3, 2]]
    assert ordered.get_xydata().tolist() == [[1, 3], [2, 2], [3, 1]]
