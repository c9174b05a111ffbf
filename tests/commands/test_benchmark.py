"""tools/benchmark.py on the second GPU, by tensors that hold no data."""

import importlib.util
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import Invented
from torch._subclasses.fake_tensor import FakeTensorMode

from resnet_det.training.numerics import numerics

TOOL = Path(__file__).parents[2] / "tools/benchmark.py"
ARGS = SimpleNamespace(
    device="cuda:1",
    dtype="float32",
    size=(32, 48),
    threads=1,
    rois=8,
    appendix=False,
    exported=False,
)


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    return module


def test_it_waits_for_and_measures_the_gpu_that_it_uses(benchmark, monkeypatch):
    asked, sent = defaultdict(list), []
    for name in ("synchronize", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(
            torch.cuda, name, lambda device=None, name=name: asked[name].append(device) or 7
        )
    trunk = torch.nn.Identity()
    monkeypatch.setitem(benchmark.CONTENDERS, "a net", lambda args: (trunk, trunk, ([],)))
    jobs = iter([("trunk inference", False), (None, False)])
    pipe = SimpleNamespace(recv=lambda: next(jobs), send=sent.append)
    with FakeTensorMode():
        benchmark.worker("a net", ARGS, pipe)
    assert {device for devices in asked.values() for device in devices} == {"cuda:1"}
    assert asked.keys() == {"synchronize", "max_memory_allocated", "reset_peak_memory_stats"}
    ((seconds, peak),) = sent
    assert seconds > 0 and peak == 7


@pytest.mark.parametrize("allowed", [True, False])
def test_the_floor_uses_tf32_where_convolutions_do(benchmark, monkeypatch, allowed):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with numerics(float32_precision="highest"), FakeTensorMode(), Invented() as gpu:
        torch.backends.cudnn.allow_tf32 = allowed
        assert benchmark.matrix_rate(ARGS) > 0
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert gpu.waits["item"] == 6  # each of the timed products is waited for
