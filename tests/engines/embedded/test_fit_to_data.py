"""RESNET_DET.FIT_TO_DATA: what is chosen for data whose boxes and sizes are known by construction."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_det.commands import train_net
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config, parse_config
from resnet_det.engines import fit_to_data, pick
from resnet_det.engines.fit_to_data import fit
from resnet_det.engines.predictor import Predictor
from resnet_det.engines.provenance import checkpoint_facts
from resnet_det.engines.scaling import for_processes
from resnet_det.records import BoxMode
from resnet_det.training import Checkpointer, distributed
from resnet_det.weights.loading import read

CONFIG = """
MODEL:
  DEVICE: cpu
  BACKBONE: {NAME: cifar_resnet20_fpn, FREEZE_AT: 0}
  RESNETS: {OUT_FEATURES: [res4], NORM: BN}
  FPN: {IN_FEATURES: [res4], OUT_CHANNELS: 8}
  RPN: {IN_FEATURES: [p2, p3], POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2], NUM_CLASSES: 8, BATCH_SIZE_PER_IMAGE: 8}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 8, POOLER_RESOLUTION: 4}
SOLVER: {IMS_PER_BATCH: 4}
DATASETS: {TRAIN: [scenes_voc_trainval], TEST: [scenes_voc_test]}
RESNET_DET: {FIT_TO_DATA: True}
"""


@pytest.fixture
def cfg(tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text(CONFIG)
    return load_config(path)


def records(*objects, height=480, width=640, images=10):
    """Records that each have objects of these (class, width, height)."""
    annotations = [
        {"bbox": [0, 0, w, h], "bbox_mode": BoxMode.XYXY_ABS, "category_id": c, "iscrowd": 0}
        for c, w, h in objects
    ]
    record = {"height": height, "width": width, "annotations": annotations}
    return [record] * images


@pytest.mark.parametrize("mode", [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS])
def test_the_smallest_class_is_five_cells_wide(cfg, mode):
    """40 of 480 pixels are 1/12 of the shorter side: 20 of 240, at a stride of 4. Sides are
    multiples of 32."""
    data = records((0, 40, 40), (1, 100, 100), (1, 104, 104))
    for annotation in data[0]["annotations"]:
        annotation["bbox_mode"] = mode  # the same boxes, since they begin at 0
    fitted = fit(data, cfg)
    assert fitted["INPUT.MIN_SIZE_TRAIN"] == (256,) and fitted["INPUT.MIN_SIZE_TEST"] == 256
    assert fitted["INPUT.MAX_SIZE_TRAIN"] == fitted["INPUT.MAX_SIZE_TEST"] == 427


@pytest.mark.parametrize(
    "pixels, side",
    [(480, 192), (50, 192), (37.5, 256), (37, 288), (4, 320)],  # 5 * 4 * 480 / pixels, in 32s
)
def test_the_shorter_side_has_limits(cfg, pixels, side):
    for height, width in ((480, 640), (640, 480)):
        fitted = fit(records((0, pixels, pixels), height=height, width=width), cfg)
        assert fitted["INPUT.MIN_SIZE_TRAIN"] == (side,)


def test_what_cannot_be_fitted_is_named(cfg):
    with pytest.raises(ValueError, match="none of the 10 training images has an object"):
        fit(records(), cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RPN.IN_FEATURES = ["res9"]
    with pytest.raises(ConfigError, match="IN_FEATURES: cifar_resnet20 has no map 'res9'"):
        fit(records((0, 40, 40)), cfg)
    cfg.MODEL.BACKBONE.NAME = "cifar_resnet20_retinanet_fpn"
    with pytest.raises(ConfigError, match="FIT_TO_DATA: MODEL.BACKBONE.NAME .*retinanet"):
        fit(records((0, 40, 40)), cfg)


def test_anchors_fit_the_side_that_the_user_sets(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TRAIN = (384, 480)
    fitted = fit(records((0, 30, 30), (1, 300, 300)), cfg, {"INPUT.MIN_SIZE_TRAIN"})
    assert "INPUT.MIN_SIZE_TRAIN" not in fitted and fitted["INPUT.MIN_SIZE_TEST"] == 480
    sizes = np.concatenate(fitted["MODEL.ANCHOR_GENERATOR.SIZES"])
    assert (sizes[0], sizes[-1]) == (30.0, 300.0)


@pytest.mark.parametrize("flag", ["iscrowd", "difficult"])
def test_objects_that_are_not_trained_on_do_not_count(cfg, flag):
    data = records((0, 40, 40), (0, 4, 4), (0, 4, 4))
    for annotation in data[0]["annotations"][1:]:
        annotation[flag] = 1
    cfg = cfg.clone()
    cfg.defrost()
    cfg.RESNET_DET.USE_DIFFICULT = False
    assert fit(data, cfg)["INPUT.MIN_SIZE_TRAIN"] == (256,)


def test_the_fitted_keys_are_listed(cfg):
    assert tuple(fit(records((0, 40, 40)), cfg)) == fit_to_data.KEYS


def test_anchors_cover_the_objects_in_equal_factors(cfg):
    """Objects of 30 and 300 pixels on 480 are 20 and 200 on 320. Every size between them has an
    anchor with an IoU of at least 1 / factor."""
    fitted = fit(records((0, 30, 30), (1, 300, 300)), cfg)
    sizes = fitted["MODEL.ANCHOR_GENERATOR.SIZES"]
    assert [len(level) for level in sizes] == [3, 3]
    sizes = np.concatenate(sizes)
    assert (sizes[0], sizes[-1]) == (20.0, 200.0)
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 10 ** (1 / 5), rtol=0.01)
    objects = np.geomspace(20, 200, 500)
    ious = np.minimum(objects[:, None] / sizes, sizes / objects[:, None]) ** 2
    assert ious.max(1).min() > 10 ** (-1 / 5) - 0.01


def test_equal_objects_get_anchors_around_them(cfg):
    sizes = np.concatenate(fit(records((0, 40, 40)), cfg)["MODEL.ANCHOR_GENERATOR.SIZES"])
    assert math.sqrt(sizes[0] * sizes[-1]) == pytest.approx(40 / 480 * 256, rel=0.01)
    np.testing.assert_allclose(sizes[1:] / sizes[:-1], 1.2, rtol=0.01)


def test_the_outermost_objects_of_a_class_are_not_covered(cfg):
    few = [(0, 40, 40)] * 98 + [(0, 1, 1), (0, 400, 400)]
    assert fit(records(*few), cfg) == fit(records(*few[:98]), cfg)


@pytest.mark.parametrize(
    "shapes, ratios",
    [([(40, 40)], [1.0]), ([(40, 50), (50, 40)], [1.02]),
     ([(20, 80), (40, 40), (80, 20)], [0.25, 1.0, 4.0])],
)  # fmt: skip
def test_aspect_ratios(cfg, shapes, ratios):
    data = records(*[(0, *shape) for shape in shapes] * 100)
    (found,) = fit(data, cfg)["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"]
    assert found == pytest.approx(ratios, abs=0.01)


@pytest.mark.parametrize("images, iterations", [(10, 1200), (400, 1200), (1000, 3000)])
def test_iterations_follow_the_images(cfg, images, iterations):
    """4,800 images at least, or 12 epochs, in batches of 4."""
    fitted = fit(records((0, 40, 40), images=images), cfg)
    assert fitted["SOLVER.MAX_ITER"] == iterations
    assert fitted["SOLVER.STEPS"] == (iterations * 2 // 3, iterations * 8 // 9)
    assert fitted["TEST.EVAL_PERIOD"] == fitted["SOLVER.CHECKPOINT_PERIOD"] == iterations // 10


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_what_the_user_sets_wins(engine, tmp_path, few_scenes, monkeypatch, caplog):
    engine = pick(engine)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    base, path = tmp_path / "base.yaml", tmp_path / "fit.yaml"
    base.write_text(CONFIG)
    path.write_text("_BASE_: base.yaml\nINPUT: {MIN_SIZE_TEST: 100}")
    caplog.set_level("INFO", "resnet_det")
    overrides = ["SOLVER.MAX_ITER", "90"]
    cfg = fit_to_data.fitted(engine.load_config(path, overrides), engine, path, overrides)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.SOLVER.MAX_ITER) == (100, 90)
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == 2
    assert cfg.SOLVER.STEPS == (60, 80) and cfg.SOLVER.WARMUP_ITERS == 4  # of the user's 90
    assert cfg.TEST.EVAL_PERIOD == cfg.SOLVER.CHECKPOINT_PERIOD == 90  # less than 100, the least
    assert not cfg.RESNET_DET.FIT_TO_DATA
    assert "fitted to scenes_voc_trainval: INPUT.MIN_SIZE_TRAIN" in caplog.text
    assert "SOLVER.MAX_ITER" not in caplog.text and "MIN_SIZE_TEST" not in caplog.text
    with pytest.raises(ConfigError, match="FIT_TO_DATA: True: .* not fitted"):
        engine.check(engine.load_config(path))


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_detector_is_not_used_with_a_config_that_is_not_fitted(engine, tmp_path):
    path = tmp_path / "fit.yaml"
    path.write_text("_BASE_: quickstart.yaml\nRESNET_DET: {FIT_TO_DATA: True}")
    with pytest.raises(ConfigError, match="FIT_TO_DATA: True: .*: give the checkpoint alone"):
        Predictor("resnet_det://quickstart", engine, config=path)
    engine = pick(engine)
    cfg = engine.load_config(path, ["MODEL.WEIGHTS", "resnet_det://quickstart"])
    with pytest.raises(ConfigError, match="FIT_TO_DATA: True: .*: give the checkpoint alone"):
        engine.evaluate(cfg)


@pytest.mark.parametrize("first, second", [(2, 2), (2, 1), (1, 2), (1, 1)])
def test_a_resumed_run_keeps_its_schedule(first, second, tmp_path, few_scenes, monkeypatch):
    """A config for one process, fitted to 1,200 iterations; 2 processes run half as many.

    The number of processes that resume the run makes no difference."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    engine, path, output = pick("torchvision"), tmp_path / "fit.yaml", tmp_path / "out"
    path.write_text(CONFIG)
    overrides = ["OUTPUT_DIR", str(output), "SOLVER.REFERENCE_WORLD_SIZE", 1]

    def schedule(processes):
        cfg = engine.load_config(path, overrides)
        cfg = fit_to_data.fitted(cfg, engine, path, overrides, resume=True)
        with monkeypatch.context() as patch:
            launch = distributed.Launch(0, processes, 0)
            patch.setattr(distributed, "launch_info", lambda: launch)
            cfg = for_processes(cfg, resume=True)
        solver = cfg.SOLVER
        return cfg, (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS,
                     solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD)  # fmt: skip

    wanted = {1: (4, 1200, (800, 1066), 60, 120, 120), 2: (8, 600, (400, 533), 30, 60, 60)}[first]
    cfg, begun = schedule(first)
    assert begun == wanted
    state = {"model": {"stem.conv1.weight": torch.zeros(1)}}
    Checkpointer(output).save("model_0000099", **state, meta=checkpoint_facts(cfg, []))
    assert schedule(second)[1] == wanted


def test_a_replay_keeps_the_keys_of_its_file(tmp_path, few_scenes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    engine, path, output = pick("torchvision"), tmp_path / "fit.yaml", tmp_path / "out"
    path.write_text(CONFIG)
    cfg = load_config(path, ["INPUT.MIN_SIZE_TEST", 111, "RESNET_DET.FIT_TO_DATA", False])
    state = {"model": {"stem.conv1.weight": torch.zeros(1)}, "meta": checkpoint_facts(cfg, [])}
    Checkpointer(output).save("not_finite_0000001", newest=False, **state)
    words = ["--replay", str(output / "not_finite_0000001.pth"), "OUTPUT_DIR", str(output)]
    args = train_net.parse(["--engine", "torchvision", "--config-file", str(path), *words])
    monkeypatch.setattr(engine, "train", lambda cfg, resume: {"cfg": cfg})
    replayed = train_net.run(args, engine.load_config(path, args.overrides))["cfg"]
    assert replayed.INPUT.MIN_SIZE_TEST == 111


def test_the_command_trains_and_evaluates_the_fitted_config(tmp_path, few_scenes, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    monkeypatch.chdir(tmp_path)
    Path("fit.yaml").write_text(CONFIG)

    def run(*words):
        args = train_net.parse(["--engine", "torchvision", "--config-file", "fit.yaml", *words])
        cfg = pick("torchvision").load_config(args.config_file, args.overrides)
        return train_net.run(args, cfg)

    few = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", "0",
           "INPUT.MIN_SIZE_TRAIN", "(64,)"]  # fmt: skip
    trained = run(*few, "OUTPUT_DIR", "out", "RESNET_DET.BEST.METRIC", "bbox/AP50")
    _, facts = read("out/model_best.pth")
    cfg = parse_config(facts["config"], "model_best.pth")
    assert cfg.TEST.EVAL_PERIOD == 2 and not cfg.RESNET_DET.FIT_TO_DATA
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES != [[32, 64, 128, 256, 512]]
    # The checkpoint holds what was fitted: neither keys nor training data are repeated.
    weights = ["MODEL.WEIGHTS", "out/model_final.pth", "DATALOADER.NUM_WORKERS", "0"]
    for number, train in enumerate((("scenes_voc_trainval",), ("scenes_voc_test",), ())):
        words = [*weights, "DATASETS.TRAIN", str(train), "OUTPUT_DIR", f"again{number}"]
        assert run("--eval-only", *words) == pytest.approx(trained, nan_ok=True)
