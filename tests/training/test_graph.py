"""The forward and backward pass as one CUDA graph. What needs a GPU is marked so."""

import pytest
import torch
from recorded_graph import imitate
from torch import nn
from toy import toy_optimizer

from resnet_det.engines.classifier_nets import ClassifierLoss
from resnet_det.nets import build_net
from resnet_det.training import Plan, Trainer, read_metrics
from resnet_det.training.graph import Graphed


def small_batches(device="cpu"):
    g = torch.Generator().manual_seed(5)
    while True:
        yield torch.randn(8, 3, 8, 8, generator=g).to(device), torch.arange(8, device=device)


def train(folder, device="cpu", **plan):
    """Train a CIFAR net with batch norm. Returns its state and the losses of each iteration."""
    torch.manual_seed(1)
    model = ClassifierLoss(build_net("cifar_resnet20", norm="BN")).to(device)
    optimizer, schedule = toy_optimizer(model, 6)
    options = Plan(max_iter=6, checkpoint_period=3, log_period=1, **plan)
    Trainer(model, optimizer, schedule, folder, options).run(small_batches(device))
    lines = read_metrics(folder / "metrics.json")
    return model.state_dict(), [line["total_loss"] for line in lines]


def assert_same(one, other):
    assert one[1] == other[1]
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_on_a_cpu_the_results_are_the_same_bit_for_bit(tmp_path, accumulate):
    plain = train(tmp_path / "plain", accumulate=accumulate)
    graphed = train(tmp_path / "graphed", accumulate=accumulate, cuda_graph=True)
    assert_same(plain, graphed)


def test_replays_train_as_without_a_graph(tmp_path, monkeypatch):
    """On an imitation of a graph: nothing that changes between iterations is frozen, and the
    capture leaves the batch norms' statistics alone."""
    plain = train(tmp_path / "plain")
    with monkeypatch.context() as patched:
        graphs = imitate(patched)
        patched.setattr(torch.cuda, "Event", Done)
        graphed = train(tmp_path / "graphed", cuda_graph=True)
    (graph,) = graphs
    assert graph.replays == 6
    assert_same(plain, graphed)


class Done:
    """An event of a device that is always done."""

    def record(self):
        pass

    def synchronize(self):
        pass


def test_another_shape_is_refused():
    model = nn.Linear(3, 1)
    graphed = Graphed(lambda batch: {"loss": model(batch[0]).sum()}, model)
    graphed([torch.ones(4, 3)])
    with pytest.raises(ValueError, match=r"CUDA_GRAPH: a batch has the shape \(1, 3\) and the fir"):
        graphed([torch.ones(1, 3)])


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"amp": True}, {"accumulate": 2}])
def test_a_graph_trains_as_without(tmp_path, options):
    plain = train(tmp_path / "plain", "cuda", **options)
    graphed = train(tmp_path / "graphed", "cuda", cuda_graph=True, **options)
    assert graphed[1] == pytest.approx(plain[1], rel=1e-2 if "amp" in options else 1e-4)
    for name, value in plain[0].items():
        assert graphed[0][name].shape == value.shape
        if name.endswith("num_batches_tracked"):
            assert torch.equal(graphed[0][name], value)
