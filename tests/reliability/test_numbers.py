"""Losses that are not finite, and learning rates that do not fit the batch."""

import logging
import re
from pathlib import Path

import pytest
import torch

from resnet_det.config import load_config
from resnet_det.engines import classifier, common, pick

BURST = ["SOLVER.BASE_LR", 1e15, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0]


def of(name):
    if name == "classifier":
        return load_config, classifier.train, "classifier.yaml"
    engine = pick(name)
    return engine.load_config, engine.train, "detector.yaml"


@pytest.mark.parametrize(
    "engine",
    ["classifier", "torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)],
)
def test_a_loss_that_is_not_finite_can_be_replayed(configs, engine, monkeypatch):
    load, train, config = of(engine)
    cfg = load(configs / config, [*BURST, "OUTPUT_DIR", str(configs / "out")])
    with pytest.raises(FloatingPointError) as first:
        train(cfg)
    message = str(first.value)
    iteration, losses = re.search(
        r"not finite in iteration (\d+): (.*?)\. A lower", message
    ).groups()
    assert re.search(r"loss_\w+.* = -?(nan|inf)", losses)
    path = configs / "out" / f"not_finite_{int(iteration):07d}.pth"
    assert f"--replay {path}" in message
    if engine != "classifier":  # whose images are small, and in memory without names
        assert len(re.findall(r"JPEGImages/\w+\.jpg", losses)) == 2
    newest = configs / "out" / "last_checkpoint"
    assert not newest.exists() or "not_finite" not in newest.read_text()

    # Another command, another state of the generators: the same losses on the same images.
    torch.manual_seed(99)
    with pytest.raises(FloatingPointError) as again:
        train(common.replayed(load(configs / config, BURST), path), resume=True)
    assert losses in str(again.value) and f"iteration {iteration}:" in str(again.value)
    assert (configs / "out" / f"{path.stem}.replay").is_dir()


def test_only_such_a_file_is_replayed(configs):
    cfg = load_config(configs / "classifier.yaml")
    Path(configs, "model_final.pth").touch()
    for name in ("model_final.pth", "not_finite_0000001.pth"):
        with pytest.raises(ValueError, match=f"--replay .*{name}: give a file not_finite_"):
            common.replayed(cfg, configs / name)


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_batch_without_its_learning_rate_is_warned_about(configs, engine, caplog, monkeypatch):
    load = of(engine)[0]
    monkeypatch.setattr(logging.getLogger("resnet_det"), "propagate", True)  # Detectron2's is off
    file = configs / "detector.yaml"
    load(file, ["SOLVER.MAX_ITER", 9])
    load(file, ["SOLVER.IMS_PER_BATCH", 2])
    load(file, ["SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.004])
    assert "linear" not in caplog.text
    load(file, ["SOLVER.IMS_PER_BATCH", 8])
    assert "8 instead of the file's 2, with its BASE_LR 0.001" in caplog.text
    assert "SOLVER.BASE_LR 0.004, and MAX_ITER and STEPS times 0.25" in caplog.text
