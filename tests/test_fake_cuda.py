"""What would run on a GPU, on CUDA tensors that hold no data: devices, types, waits for the GPU.

A wait costs more than its own time: the GPU's queue runs empty. The budgets below can only go
down.
"""

from functools import partial
from unittest import mock

import pytest
import torch
from fake_cuda import ROWS, Invented, listed, moved
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from resnet_det.config.loading import load_config
from resnet_det.data.classification.small_images import SmallImages
from resnet_det.detector import roi_heads
from resnet_det.detector.build import build_model
from resnet_det.engines.classifier_nets import ClassifierLoss
from resnet_det.nets import build_net
from resnet_det.training import (
    Plan,
    Trainer,
    build_optimizer,
    build_schedule,
    clip_gradients,
    precise_bn,
)

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14"),
    reason="before 2.14, torch asks for a driver",
)

NETS = ["paper_resnet18_a", "paper_resnet34_c", "paper_resnet50", "paper_plain18", "paper_vgg16",
        "cifar_resnet20", "cifar_plain20"]  # fmt: skip
TRAINED = [  # config, bfloat16, waits of the first forward pass on two images
    ("faster_rcnn_R50", False, 12),
    ("faster_rcnn_VGG16", False, 12),
    ("faster_rcnn_R101_coco_context", False, 12),
    ("modern_faster_rcnn_R101_C4", True, 13),
    ("modern_faster_rcnn_R101_FPN", True, 22),
]
TESTED = ["faster_rcnn_R50", "modern_faster_rcnn_R101_FPN", "faster_rcnn_R101_coco_multiscale"]


@pytest.fixture
def fake(monkeypatch):
    """Models are built before this mode begins: a net that is built in it would stay in a cache."""
    monkeypatch.setattr(FakeTensor, "tolist", listed)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    for draw in ("normal_", "uniform_"):  # weights are not read
        monkeypatch.setattr(torch.Tensor, draw, lambda self, *_, **__: self)
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture
def trainer(fake, monkeypatch, tmp_path):
    """Builds a trainer of a model on "cuda". Backward pass and update have no kernels there, and
    are left out; everything else of a step is as on a GPU."""

    def build(model):
        def backward(loss):
            for parameter in optimizer.param_groups[0]["params"]:
                parameter.grad = torch.zeros_like(parameter)

        optimizer = build_optimizer(
            model, lr=0.1, momentum=0.9, weight_decay=0.0, weight_decay_norm=0.0
        )
        schedule = build_schedule(optimizer, steps=(), gamma=0.1, max_iter=9)
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        clip = partial(clip_gradients, kind="norm", value=1.0)
        plan = Plan(max_iter=9, checkpoint_period=9, clip=clip)
        return Trainer(model, optimizer, schedule, tmp_path, plan)

    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **options: None)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16))
    monkeypatch.setattr(torch.cuda, "Event", mock.Mock)
    return build


def detector(config):
    return build_model(load_config(f"{config}.yaml"))


def sample():
    return {
        "image": torch.randint(0, 256, (3, 320, 480), dtype=torch.uint8),
        "boxes": torch.rand(3, 4),
        "classes": torch.zeros(3, dtype=torch.int64),
        "height": 320,
        "width": 480,
    }


@pytest.mark.parametrize("name", NETS)
def test_nets_wait_for_nothing(fake, name):
    side, net = 32 if "cifar" in name else 224, build_net(name)
    with fake, Invented() as gpu:
        images = torch.zeros((4, 3, side, side), dtype=torch.uint8)
        data = SmallImages(images, torch.zeros(4).long(), "a")
        model = moved(ClassifierLoss(net))
        drawn = data.to("cuda").training_batches(
            total_batch=4, size=side, padding=0, flip=True, seed=1, rank=0, world=1, start_iter=0
        )
        before = gpu.count  # the dataset was copied to the GPU
        batch = next(drawn)
        losses = model.train()(batch)
        with torch.no_grad():
            logits = model.eval()(batch[0])
    assert gpu.count == before
    assert {x.device.type for x in (*losses.values(), logits)} == {"cuda"}


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_plain20"])
def test_steps_of_a_classifier_wait_for_nothing(fake, trainer, name):
    """Drawing batches, reading losses and updates: the GPU's queue never runs empty."""
    net = build_net(name, norm="BN")
    with fake, Invented() as gpu:
        images = torch.zeros((8, 3, 32, 32), dtype=torch.uint8)
        data = SmallImages(images, torch.zeros(8).long(), "a").to("cuda")
        batches = data.training_batches(
            total_batch=4, size=32, padding=4, flip=True, seed=1, rank=0, world=1, start_iter=0
        )
        trained = trainer(moved(ClassifierLoss(net)))
        before = gpu.count
        for _ in range(3):
            trained.step(next(batches))
        trained.settle()
    assert gpu.count == before, gpu.waits
    assert trained.iteration == 3 and trained.schedule.last_epoch == 3


def test_a_step_of_a_detector_waits_no_more_than_its_forward_pass(fake, trainer):
    config, _, waits = TRAINED[0]
    model = detector(config)
    with fake, Invented(2 * ROWS) as gpu:
        trained = trainer(moved(model).train())
        for _ in range(2):
            trained.step([sample(), sample()])
    assert gpu.count <= 2 * waits, gpu.waits


@pytest.mark.parametrize("config, mixed, waits", TRAINED)
def test_a_detector_trains_within_its_budget_of_waits(fake, monkeypatch, config, mixed, waits):
    seen, pool = set(), roi_heads.Pooler.pool

    def watched(self, x, rois, stride):
        seen.add(rois.dtype)
        return pool(self, x, rois, stride)

    monkeypatch.setattr(roi_heads.Pooler, "pool", watched)
    model, autocast = detector(config), torch.autocast("cuda", torch.bfloat16, enabled=mixed)
    with fake, autocast, Invented(2 * ROWS) as gpu:
        losses = moved(model).train()([sample(), sample()])
    assert {(x.device.type, x.dtype) for x in losses.values()} == {("cuda", torch.float32)}
    assert gpu.count <= waits, gpu.waits
    assert seen == {torch.float32}  # a region in bfloat16 is up to 4 pixels off


@pytest.mark.parametrize("config", TESTED)
def test_a_detector_detects_on_its_device(fake, config):
    model = detector(config)
    with fake, torch.no_grad(), Invented():
        (found,) = moved(model).eval()([sample()])
    assert {x.device.type for x in found.values()} == {"cuda"}


def test_precise_bn_stays_on_its_device(fake):
    net = build_net("cifar_resnet20", norm="BN")
    with fake, Invented() as gpu:
        model = moved(ClassifierLoss(net)).train()
        batch = torch.zeros(4, 3, 32, 32, device="cuda"), torch.zeros(4, device="cuda").long()
        precise_bn.update(model, iter([batch, batch]), 2)
    assert all(x.is_cuda for x in model.buffers()) and gpu.count == 0, gpu.waits
