"""Losses that are not finite, and learning rates that do not fit the batch."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch

from resnet_det.config.loading import load_config
from resnet_det.engines import checks, classifier, pick
from resnet_det.engines.run import replayed

BURST = ["SOLVER.BASE_LR", 1e15, "SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 1000]


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
    options = [*BURST] if engine == "classifier" else [*BURST, "RESNET_DET.BEST.METRIC", "bbox/AP"]
    cfg = load(configs / config, [*options, "OUTPUT_DIR", str(configs / "out")])
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
        train(replayed(load(configs / config, options), path), resume=True)
    assert losses in str(again.value) and f"iteration {iteration}:" in str(again.value)
    assert (configs / "out" / f"{path.stem}.replay").is_dir()


def test_only_such_a_file_is_replayed(configs):
    cfg = load_config(configs / "classifier.yaml")
    Path(configs, "model_final.pth").touch()
    for name in ("model_final.pth", "not_finite_0000001.pth"):
        with pytest.raises(ValueError, match=f"--replay .*{name}: give a file not_finite_"):
            replayed(cfg, configs / name)


def test_replaying_processes_do_not_disturb_each_other(configs):
    """One may read ``last_checkpoint`` as the next one writes it: it is replaced, never emptied."""
    cfg, path = load_config(configs / "detector.yaml"), configs / "not_finite_0000001.pth"
    path.touch()
    newest = Path(replayed(cfg, path).OUTPUT_DIR, "last_checkpoint")
    with open(newest) as reading:
        replayed(cfg, path)
        assert os.fstat(reading.fileno()).st_ino != newest.stat().st_ino
        assert reading.read() == newest.read_text() == str(path)


def test_a_run_on_proposals_is_replayed(configs):
    keys = ["MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals",
            "DATASETS.PROPOSAL_FILES_TRAIN", ("a",), "DATASETS.PROPOSAL_FILES_TEST", ("b",)]  # fmt: skip
    cfg, path = load_config(configs / "detector.yaml", keys), configs / "not_finite_0000001.pth"
    path.touch()
    assert checks.test_files(cfg) == [("scenes_voc_test", ("b",))]
    assert checks.test_files(replayed(cfg, path)) == []


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
    assert "8 instead of the file's 2, but BASE_LR is still 0.001" in caplog.text
    assert "SOLVER.BASE_LR would be 0.004, and MAX_ITER and STEPS times 0.25" in caplog.text
