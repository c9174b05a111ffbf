"""What a run computes with, in each engine: deterministic kernels, TF32, mixed precision in tests."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from small_configs import CLASSIFIER, DETECTOR
from torchvision.ops import box_iou

import resnet_det
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data.synthetic import scenes
from resnet_det.engines import classifier, embedded, pick, run
from resnet_det.engines.checks import check_trainable
from resnet_det.engines.run import evaluation_settings
from resnet_det.training import precision
from resnet_det.training.checkpoint import load

ENGINES = ["classifier", "torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]


@pytest.fixture(params=ENGINES)
def engine(request, tmp_path, few_scenes, monkeypatch):
    """An engine, and ``load`` of a small config that trains for two iterations and tests."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    chosen = classifier if request.param == "classifier" else pick(request.param)
    content = CLASSIFIER if request.param == "classifier" else DETECTOR
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    keys = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "TEST.EVAL_PERIOD", 0,
            "OUTPUT_DIR", str(tmp_path / "output")]  # fmt: skip

    def load(*overrides):
        return chosen.load_config(path, [*keys, *overrides])

    return SimpleNamespace(load=load, train=chosen.train, evaluate=chosen.evaluate)


@pytest.fixture
def seen():
    """For training and tests apart: (deterministic mode, bfloat16) of all convolutions."""
    found = {"training": set(), "tests": set()}

    def look(module, _, output):
        if isinstance(module, torch.nn.Conv2d):
            mode, mixed = (
                torch.are_deterministic_algorithms_enabled(),
                output.dtype is torch.bfloat16,
            )
            found["training" if torch.is_grad_enabled() else "tests"].add((mode, mixed))

    hook = torch.nn.modules.module.register_module_forward_hook(look)
    yield found
    hook.remove()


def test_runs_keep_pytorchs_settings_and_test_in_float32(engine, seen):
    """As in Detectron2, SOLVER.AMP does not reach the tests, nor precise BN and validation losses."""
    keys = ["SOLVER.AMP.ENABLED", True]
    if engine.train is not embedded.train:  # has no precise BN
        keys += ["TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2]
    if engine.train is not classifier.train:
        keys += ["RESNET_DET.VAL_LOSS", True]
    engine.train(engine.load(*keys))
    assert seen == {"training": {(False, True)}, "tests": {(False, False)}}


def test_keys_set_what_a_run_and_its_tests_compute_with(engine, seen, tmp_path, monkeypatch):
    keys = ["RESNET_DET.DETERMINISTIC", True, "FLOAT32_PRECISION", "high",
            "RESNET_DET.TEST_AMP", True, "TEST.PRECISE_BN.ENABLED", False]  # fmt: skip
    precisions, enter = [], run.numerics

    def numerics(**settings):
        precisions.append(settings["float32_precision"])
        return enter(**settings)

    monkeypatch.setattr(run, "numerics", numerics)
    engine.train(engine.load(*keys))
    assert seen == {"training": {(True, False)}, "tests": {(True, True)}}
    seen["training"].clear(), seen["tests"].clear()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")]
    engine.evaluate(engine.load(*keys, *weights))
    assert seen == {"training": set(), "tests": {(True, True)}}
    assert precisions == ["high"] * 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_deterministic_run_needs_deterministic_kernels(engine):
    keys = ["RESNET_DET.DETERMINISTIC", True]
    for start in (engine.train, engine.evaluate):
        with pytest.raises(ConfigError, match="DETERMINISTIC: True: cuDNN .*CUDNN_BENCHMARK False"):
            start(engine.load(*keys, "CUDNN_BENCHMARK", True, "MODEL.WEIGHTS", "a.pth"))
    if engine.train is classifier.train:
        return
    cfg = engine.load(*keys, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool")
    check_trainable(cfg, resume=False)  # on a CPU
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ConfigError, match="ROIPool has no deterministic kernel on a GPU"):
        check_trainable(cfg, resume=False)


@pytest.mark.parametrize("augment", [False, True])
def test_cudnn_benchmarks_no_sizes_of_test_images(augment):
    cfg = load_config("imagenet/resnet50.yaml", ["TEST.AUG.ENABLED", augment])
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=True, benchmark=True):
        with evaluation_settings(cfg):
            assert cudnn.benchmark is not augment
        assert cudnn.benchmark


@pytest.mark.parametrize(
    "name", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_detector_finds_the_same_in_bfloat16(name, monkeypatch):
    """The shipped detector finds the same objects. NMS may keep another box of the same object."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    picture = scenes.draw_scene(0, 120, 160)
    single, mixed = (
        resnet_det.Predictor(
            "resnet_det://quickstart", engine=name, device="cpu", score_thresh=0.35,
            overrides=["RESNET_DET.TEST_AMP", amp],
        )(picture)
        for amp in (False, True)
    )  # fmt: skip
    confident = single.scores > 0.5
    assert confident.sum() == 5 and sorted(single.names) == sorted(mixed.names)
    assert not np.array_equal(single.boxes, mixed.boxes)
    overlaps = box_iou(torch.tensor(single.boxes), torch.tensor(mixed.boxes)).numpy()
    overlaps *= single.classes[:, None] == mixed.classes
    assert overlaps.max(1).min() > 0.5 and np.median(overlaps.max(1)) > 0.99
    changes = np.abs(mixed.scores[overlaps.argmax(1)] - single.scores)
    assert changes[confident].max() < 0.05 and np.median(changes) < 0.01


@pytest.mark.parametrize("engine", ENGINES[:2], indirect=True)  # Detectron2 keeps its format
def test_a_run_goes_on_where_weights_have_another_format(engine, tmp_path, monkeypatch):
    """The first half of a run stores its weights as a GPU does, the second as a CPU."""
    keys = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", (),
            "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.01]  # fmt: skip
    devices = []

    def as_on_a_gpu(model, device, **types):
        devices.append((device.type, types))
        model.to(memory_format=torch.channels_last)

    final = {}
    for name, layout in (("cpu", run.to_fastest_layout), ("both", as_on_a_gpu)):
        output = tmp_path / name
        cfg = engine.load(*keys, "OUTPUT_DIR", str(output))
        with monkeypatch.context() as patch:
            patch.setattr(run, "to_fastest_layout", layout)
            engine.train(cfg)
        if name == "both":
            saved = load(output / "model_0000001.pth")
            momenta = [s["momentum_buffer"] for s in saved["optimizer"]["state"].values()]
            assert not all(momentum.is_contiguous() for momentum in momenta)
            (output / "last_checkpoint").write_text("model_0000001.pth")
            (output / "model_final.pth").unlink()
            engine.train(cfg, resume=True)
        final[name] = load(output / "model_final.pth")["model"]
    assert devices == [("cpu", {"mixed": False, "tf32": True})]
    # A convolution in another format rounds otherwise; mixed up, the momentum changes far more.
    for key, value in final["cpu"].items():
        torch.testing.assert_close(final["both"][key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_deterministic_run_repeats_bit_for_bit(engine, device, tmp_path):
    keys = ["MODEL.DEVICE", device, "RESNET_DET.DETERMINISTIC", True, "DATASETS.TEST", (),
            "SOLVER.BASE_LR", 0.01]  # fmt: skip
    states = []
    for name in ("one", "two"):
        engine.train(engine.load(*keys, "OUTPUT_DIR", str(tmp_path / name)))
        states.append(load(tmp_path / name / "model_final.pth")["model"])
    for key, value in states[0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key])), key


@pytest.mark.parametrize(
    "name", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_a_predictor_asks_no_other_process_and_warns_once(name, monkeypatch, caplog):
    """A program of several processes may load it in one of them."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    exchanged = []
    monkeypatch.setattr(precision.distributed, "all_gather_objects", exchanged.append)
    predictor = resnet_det.Predictor(
        "resnet_det://quickstart", engine=name, device="cpu",
        overrides=["RESNET_DET.TEST_AMP", True],
    )  # fmt: skip
    for _ in range(2):
        predictor(scenes.draw_scene(0, 120, 160))
    assert exchanged == []
    assert caplog.text.count("RESNET_DET.TEST_AMP: this CPU does not support bfloat16") == 1
