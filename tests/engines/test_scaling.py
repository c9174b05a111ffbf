"""Batches and schedules that follow the number of processes."""

import pytest
import torch

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.engines import pick
from resnet_det.engines.checks import build_schedule
from resnet_det.engines.run import replayed
from resnet_det.engines.scaling import for_processes, scaled
from resnet_det.training import Checkpointer, distributed

KEYS = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "WARMUP_ITERS", "STEPS", "CHECKPOINT_PERIOD")
WRITTEN_FOR_TWO = [
    "SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.1,
    "SOLVER.MAX_ITER", 32, "SOLVER.STEPS", (16, 24), "SOLVER.WARMUP_ITERS", 8,
    "SOLVER.WARMUP_METHOD", "constant", "SOLVER.CHECKPOINT_PERIOD", 8, "TEST.EVAL_PERIOD", 1,
    "MODEL.DEVICE", "cpu",
]  # fmt: skip


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {DEVICE: cpu}\n")

    def load(*overrides, engine="torchvision"):
        words = [*WRITTEN_FOR_TWO, "OUTPUT_DIR", str(tmp_path / "output"), *overrides]
        return pick(engine).load_config(tmp_path / "config.yaml", words)

    return load


def rates_per_image(cfg):
    """The learning rate of each image, over the size of its batch, in the order of training."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], cfg.SOLVER.BASE_LR)
    schedule = build_schedule(cfg, optimizer)
    images, rates = cfg.SOLVER.IMS_PER_BATCH, []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates += [optimizer.param_groups[0]["lr"] / images] * images
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_image_sees_the_same_schedule(config, processes):
    cfg = scaled(config(), processes)
    assert rates_per_image(cfg) == pytest.approx(rates_per_image(config()))
    assert len(rates_per_image(cfg)) == 32 * 4
    assert cfg.SOLVER.CHECKPOINT_PERIOD * cfg.SOLVER.IMS_PER_BATCH == 8 * 4
    assert cfg.TEST.EVAL_PERIOD >= 1  # 0 would switch evaluation off
    assert scaled(cfg, 2).SOLVER == config().SOLVER


@pytest.mark.detectron2
@pytest.mark.parametrize("processes", [1, 3, 4, 16])
def test_equals_detectron2s_scaling(config, processes):
    from detectron2.engine import DefaultTrainer

    cfg = config("SOLVER.MAX_ITER", 1000, "SOLVER.STEPS", (700, 901), engine="detectron2")
    expected = DefaultTrainer.auto_scale_workers(cfg, processes)
    result = scaled(cfg, processes)
    assert {key: result.SOLVER[key] for key in KEYS} == {key: expected.SOLVER[key] for key in KEYS}


def test_zero_leaves_the_batch_to_any_number_of_processes(config):
    cfg = config("SOLVER.REFERENCE_WORLD_SIZE", 0)
    assert scaled(cfg, 4) is cfg


def test_a_batch_that_its_reference_cannot_share_is_refused(config):
    with pytest.raises(ConfigError, match="IMS_PER_BATCH: 4 images .*REFERENCE_WORLD_SIZE 0"):
        scaled(config("SOLVER.REFERENCE_WORLD_SIZE", 3), 1)


@pytest.mark.parametrize("saved, kept", [(4, (8, 16, 4)), (0, (4, 32, 0))])
def test_a_resumed_run_keeps_its_schedule(config, monkeypatch, tmp_path, saved, kept):
    """Also the schedule of a run that was not scaled. An evaluation on Detectron2 writes its own
    ``config.yaml``, which does not count."""
    monkeypatch.setattr(distributed, "launch_info", lambda: distributed.Launch(0, 1, 0))
    output = tmp_path / "output"
    output.mkdir()
    (output / "config.yaml").write_text(config().dump())
    keys = ("IMS_PER_BATCH", "MAX_ITER", "REFERENCE_WORLD_SIZE")

    def solver(resume):
        cfg = for_processes(config(), resume)
        return tuple(cfg.SOLVER[key] for key in keys)

    assert solver(resume=True) == (2, 64, 1)  # nothing to resume
    stored = {"config": f"SOLVER: {{REFERENCE_WORLD_SIZE: {saved}}}"}
    Checkpointer(output).save("model_0000003", meta=stored)
    assert solver(resume=True) == kept
    assert solver(resume=False) == (2, 64, 1)
    (output / "not_finite_0000009.pth").touch()
    replay = replayed(config(), output / "not_finite_0000009.pth").SOLVER
    assert tuple(replay[key] for key in keys) == (kept[0], 10, 0)


@pytest.mark.parametrize(
    "name, images",
    [("faster_rcnn_R101.yaml", 16), ("faster_rcnn_R101_coco.yaml", 16),
     ("modern_faster_rcnn_R101_FPN.yaml", 16), ("imagenet/resnet50.yaml", 256)],
)  # fmt: skip
def test_a_preset_trains_on_eight_gpus_without_overrides(name, images):
    cfg = scaled(load_config(name), 8)
    assert cfg.SOLVER.IMS_PER_BATCH == images
