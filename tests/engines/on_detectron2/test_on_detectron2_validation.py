"""RESNET_DET.VAL_LOSS: Detectron2's own losses, and the embedded engine's."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling.meta_arch import retinanet
from fvcore.nn import sigmoid_focal_loss

from resnet_det.engines import embedded, results
from resnet_det.engines.on_detectron2 import engine

pytestmark = pytest.mark.detectron2


def evaluations(folder):
    with open(folder / "metrics.json") as file:
        return [line for line in map(json.loads, file) if "val_total_loss" in line]


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def test_training_is_the_same_with_it_and_after_a_resumption(config, tmp_path):
    options = ["TEST.EVAL_PERIOD", "2", "INPUT.CROP.ENABLED", "True"]
    on = [*options, "RESNET_DET.VAL_LOSS", "True"]
    engine.train(config(*options, "OUTPUT_DIR", str(tmp_path / "without")))
    engine.train(config(*on, "OUTPUT_DIR", str(tmp_path / "with")))
    cut = config(*on, "OUTPUT_DIR", str(tmp_path / "cut"))
    engine.train(cut)
    (tmp_path / "cut/last_checkpoint").write_text("model_0000001.pth")
    engine.train(cut, resume=True)
    expected = weights(tmp_path / "without")
    for name in ("with", "cut"):
        found = weights(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    first, last = evaluations(tmp_path / "with")
    assert first["val_total_loss"] != last["val_total_loss"]
    values = [
        [{k: v for k, v in line.items() if "val_" in k} for line in evaluations(tmp_path / name)]
        for name in ("with", "cut")
    ]
    assert values[0] == values[1]
    # The scalars that Detectron2's heads write belong to the training images alone.
    plain, seen = (
        [json.loads(line) for line in Path(tmp_path, o, "metrics.json").read_text().splitlines()]
        for o in ("without", "with")
    )
    key = "fast_rcnn/cls_accuracy"
    assert [line.get(key) for line in plain] == [line.get(key) for line in seen]
    assert any(key in line for line in seen)


def test_retinanets_moving_average_is_restored(config, tmp_path, monkeypatch):
    """Detectron2 divides its losses by a moving average that no state dict holds. Validation losses
    do not move it, and a resumed run continues it."""
    # Compiled, the loss rounds otherwise in a process's first calls than later.
    monkeypatch.setattr(retinanet, "sigmoid_focal_loss_jit", sigmoid_focal_loss)
    levels = "['p0', 'p1', 'p2', 'p3', 'p4']"
    stages = "['res2', 'res3', 'res4']"
    keys = [
        "MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", levels,
        "MODEL.BACKBONE.NAME", "cifar_resnet20_retinanet_fpn", "MODEL.RETINANET.NUM_CLASSES", "8",
        "MODEL.RESNETS.OUT_FEATURES", stages, "MODEL.FPN.IN_FEATURES", stages,
        "MODEL.FPN.OUT_CHANNELS", "8", "MODEL.RETINANET.NUM_CONVS", "1",
        "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]",
        "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.01", "TEST.EVAL_PERIOD", "2",
    ]  # fmt: skip
    engine.train(config(*keys, "OUTPUT_DIR", str(tmp_path / "without")))
    expected = weights(tmp_path / "without")
    cut = config(*keys, "RESNET_DET.VAL_LOSS", "True", "OUTPUT_DIR", str(tmp_path / "cut"))
    for resume in (False, True):
        engine.train(cut, resume)
        found = weights(tmp_path / "cut")
        assert all(torch.equal(found[key], value) for key, value in expected.items()), resume
        (tmp_path / "cut/last_checkpoint").write_text("model_0000001.pth")


def test_the_report_shows_every_evaluation(config, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(results, "write_report", lambda *args, **_: drawn.append(args[3]))
    engine.train(config("SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2"))
    shown = [line["iteration"] for line in drawn[-1] if any("bbox/AP50" in key for key in line)]
    assert shown == [1, 3]


def test_both_engines_give_the_same_losses(config, tmp_path):
    """Of the same net: all labelled anchors and regions are taken, so that nothing is drawn, and the
    norms are frozen, because a training step on random crops would change them. COCO's file has
    boxes of integers, which Detectron2 would round down after resizing."""
    engine.train(config("SOLVER.MAX_ITER", "1"))
    keys = [
        "MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth"), "SOLVER.BASE_LR", "0.0",
        "SOLVER.MAX_ITER", "1", "RESNET_DET.VAL_LOSS", "True",
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POSITIVE_FRACTION", "1.0",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "10000", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
        "INPUT.CROP.ENABLED", "True", "MODEL.RESNETS.NORM", "FrozenBN",
        "INPUT.MIN_SIZE_TEST", "37", "DATASETS.TEST", "('scenes_voc_test', 'scenes_coco_test')",
    ]  # fmt: skip
    theirs = engine.train(config(*keys, "OUTPUT_DIR", str(tmp_path / "theirs")))
    ours = embedded.load_config(config.path, [*keys, "OUTPUT_DIR", str(tmp_path / "ours")])
    ours = embedded.train(ours)
    names = [key for key in theirs if "/val_" in key]
    assert len(names) == 10
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3) and theirs[name] > 0


def test_masks_have_no_validation_loss(config):
    with pytest.raises(ValueError, match="RESNET_DET.VAL_LOSS: is only for box detectors"):
        engine.train(config("MODEL.MASK_ON", "True", "RESNET_DET.VAL_LOSS", "True"))
