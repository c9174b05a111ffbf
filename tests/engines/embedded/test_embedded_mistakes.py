"""Mistakes in a config or in the data are named before a training begins."""

import importlib
import shutil
from pathlib import Path

import pytest
from embedded_configs import DETECTOR
from embedded_runs import lines

from resnet_det.commands import train_net
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.engines import classifier, embedded, pick, pretrain


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["MODEL.RESNETS.STRIDE_IN_1X1", False], "STRIDE_IN_1X1 True, but the config says False"),
        (["INPUT.FORMAT", "RGB"], "INPUT.FORMAT BGR, but the config says RGB"),
        (["MODEL.PIXEL_STD", [58.0, 57.0, 57.0]], "PIXEL_STD .*1.0.* says .*58"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 20], "NUM_CLASSES: 20, but scenes_voc_trainval"),
        (["MODEL.BACKBONE.NAME", "cifar_resnet32"], "does not fit the net"),
        (["MODEL.META_ARCHITECTURE", "Classifier"], "tools/pretrain.py"),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN"),
        (["DATASETS.TEST", ("voc_2007_test",)], "VOC2007"),
    ],
)
def test_mistakes_are_named(pretrained, overrides, words):
    with pytest.raises(ValueError, match=words):
        embedded.train(load_config("detector.yaml", overrides))


def test_unknown_dataset(folder):
    cfg = load_config("detector.yaml", ["DATASETS.TRAIN", ("scenes_voc_trainvaal",)])
    with pytest.raises(ValueError, match="scenes_voc_trainval"):
        embedded.train(cfg)


LATE = [
    (["MODEL.WEIGHTS", "elsewhere.pth"], "elsewhere.pth"),
    (["DATASETS.TEST", "('voc_2012_val',)"], "ImageSets.*is absent; voc_2012_val needs it"),
    (["DATASETS.TEST", "('scenes_voc_tset',)"], "did you mean scenes_voc_test"),
    (["DATASETS.TRAIN", "('scenes_voc_trainvaal',)"], "did you mean scenes_voc_trainval"),
    (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN: name at least one"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "20"], "NUM_CLASSES: 20, but scenes_voc_trainval"),
    (["MODEL.RPN.IN_FEATURES", "['res4']"], r"RPN.IN_FEATURES: \['res4'\]"),
    (["MODEL.BACKBONE.NAME", "cifar_resnet32"], "cifar_resnet32, but .* trains cifar_resnet20"),
    (["MODEL.PIXEL_STD", "[58.0, 57.0, 57.0]"], "yaml: trains with .*PIXEL_STD .*1.0.* says .*58"),
    (["OUTPUT_DIR", "output/classifier"], "OUTPUT_DIR: output/classifier: .*PRETRAIN"),
    (["RESNET_DET.NEW_LAYERS", "('fc6',)"], "NEW_LAYERS: fc6"),
    (["RESNET_DET.ENSEMBLE", "('x.pth',)"], "ENSEMBLE: is only for testing"),
    (["SOLVER.STEPS", "(3, 2)"], r"SOLVER.STEPS: \(3, 2\): give ascending iterations from 1"),
    (
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "1.0"],
        "BASE_LR_END: 1.0: must be between 0 and SOLVER.BASE_LR, 0.01",
    ),
]


@pytest.mark.parametrize("overrides, words", LATE)
@pytest.mark.parametrize("name", ["train_net", "train_alternating"])
def test_mistakes_are_known_before_pretraining(folder, monkeypatch, name, overrides, words):
    monkeypatch.setattr(classifier, "train", lambda *_, **__: pytest.fail("it was pretrained"))
    command = ["--config-file", "detector.yaml", "--engine", "torchvision", *overrides]
    tool = importlib.import_module(f"resnet_det.commands.{name}")
    with pytest.raises(ValueError, match=words):
        tool.run(tool.parse(command), load_config("detector.yaml", overrides))


def test_an_earlier_runs_folder_is_known_before_pretraining(folder):
    Path("output/detector").mkdir(parents=True)
    Path("output/detector/last_checkpoint").write_text("model_0000001.pth")
    cfg = load_config("detector.yaml")
    with pytest.raises(ConfigError, match="checkpoints of an earlier run"):
        embedded.check(cfg)
    embedded.check(cfg, resume=True)


@pytest.fixture
def own_scenes(folder, few_scenes, monkeypatch):
    """Scenes of this test's own, to spoil."""
    shutil.copytree(few_scenes, folder / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "data"))
    return folder / "data/scenes/voc"


@pytest.mark.parametrize("name", ["train_net", "train_alternating"])
def test_unusable_test_images_are_named_before_training(own_scenes, monkeypatch, name):
    Path("detector.yaml").write_text(DETECTOR.replace("FREEZE_AT: 2", "FREEZE_AT: 0"))
    bad = [f"{own_scenes}/JPEGImages/{i}.jpg" for i in listed(own_scenes, "test")[:2]]
    for file in bad:
        Path(file).write_text("no picture")
    tool = importlib.import_module(f"resnet_det.commands.{name}")
    overrides = ["MODEL.WEIGHTS", "", "RESNET_DET.PRETRAIN", "", "MODEL.RESNETS.NORM", "BN",
                 "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]  # fmt: skip
    args = tool.parse(["--engine", "torchvision", "--config-file", "detector.yaml"])
    with pytest.raises(ValueError, match="scenes_voc_test: 2 images cannot be used") as caught:
        tool.run(args, load_config("detector.yaml", overrides))
    assert all(f"{file}: not an image" in str(caught.value) for file in bad)
    assert not list(Path("output").rglob("metrics.json"))
    assert not list(Path("output").rglob("*.pth"))


def listed(voc, split):
    return (voc / f"ImageSets/Main/{split}.txt").read_text().split()


def test_check_images_can_be_switched_off(own_scenes):
    Path(f"{own_scenes}/JPEGImages/{listed(own_scenes, 'test')[0]}.jpg").write_text("no picture")
    overrides = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN",
                 "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "RESNET_DET.CHECK_IMAGES", False]  # fmt: skip
    with pytest.raises(ValueError, match="not an image"):  # after training
        embedded.train(load_config("detector.yaml", overrides))
    assert len(lines("output/detector/metrics.json")) == 1


def test_unusable_small_images_are_all_named(own_scenes):
    crops = sorted(own_scenes.parent.glob("classification/val/*/*.jpg"))
    for file in crops[:2]:
        file.write_text("no picture")
    with pytest.raises(ValueError, match="2 images cannot be used") as caught:
        classifier.train(load_config("classifier.yaml"))
    assert all(str(file) in str(caught.value) for file in crops[:2])
    assert not Path("output/classifier/metrics.json").exists()


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_an_unknown_name_is_told_before_the_scenes_are_drawn(folder, monkeypatch, key):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "none"))
    args = train_net.parse(["--engine", "torchvision", "--config-file", "detector.yaml"])
    for path in ("classifier.yaml", ""):
        overrides = [key, ("scenes_voc_tst",), "RESNET_DET.PRETRAIN", path]
        with pytest.raises(ValueError, match="'scenes_voc_tst'; did you mean scenes_voc_test"):
            train_net.run(args, load_config("detector.yaml", overrides))
    with pytest.raises(ValueError, match="did you mean scenes_classification_val"):
        classifier.train(load_config("classifier.yaml", [key, ("scenes_classification_vall",)]))
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["INPUT.FORMAT", "RGB"], "INPUT.FORMAT BGR, but the config says RGB"),
        (["DATALOADER.NUM_WORKERS", 2], "DATALOADER.NUM_WORKERS: 2: .* only for"),
        (["INPUT.CROP.ENABLED", False], "INPUT.CROP"),
        (["INPUT.RANDOM_FLIP", "vertical"], "RANDOM_FLIP: 'vertical' is only for detectors"),
        (["MODEL.RESNETS.NORM", "FrozenBN"], "learns no statistics"),
        (["MODEL.RESNETS.RES5_DILATION", 2], "RES5_DILATION: 2: cifar_resnet20 takes 1"),
        (
            ["MODEL.BACKBONE.NAME", "paper_vgg16", "MODEL.RESNETS.NORM", ""],
            "no batch normalisation",
        ),
        (["DATASETS.TEST", ["scenes_classification_vall"]], "scenes_classification_val"),
        (  # it fits into the padded training images, not into the test images
            ["INPUT.CROP.SIZE", [40, 40], "RESNET_DET.CROP_PADDING", 4],
            "INPUT.CROP.SIZE: a crop of 40 pixels does not fit into 36 x 36",
        ),
    ],
)
def test_classifiers_mistakes_are_named(pretrained, overrides, words):
    weights = ["MODEL.WEIGHTS", "output/classifier/model_final.pth"]
    cfg = load_config("classifier.yaml", [*weights, "OUTPUT_DIR", "output/other", *overrides])
    with pytest.raises(ValueError, match=words):
        classifier.train(cfg)
    assert not Path("output/other/metrics.json").exists()  # before the training


def test_another_config_than_a_run_began_with_is_said(pretrained, caplog):
    keys = ["DATASETS.TEST", (), "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", "output/changed"]
    embedded.train(load_config("detector.yaml", keys))
    assert "another config" not in caplog.text
    keys += ["SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.02]
    embedded.train(load_config("detector.yaml", keys), resume=True)
    said = (
        "output/changed: was trained with another config: SOLVER.BASE_LR 0.01, now 0.02; "
        "SOLVER.MAX_ITER 2, now 3"
    )
    assert said in caplog.text
    caplog.clear()
    Path("other.yaml").write_text(
        Path("classifier.yaml").read_text().replace("MAX_ITER: 4", "MAX_ITER: 9")
    )
    for path, words in (("classifier.yaml", 0), ("other.yaml", 1)):
        cfg = load_config("detector.yaml", ["RESNET_DET.PRETRAIN", path])
        assert pretrain.needed(cfg) is None
        assert caplog.text.count("SOLVER.MAX_ITER 4, now 9") == words


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["RESNET_DET.BEST.PATIENCE", 2], "BEST.PATIENCE: needs RESNET_DET.BEST.METRIC"),
        (["RESNET_DET.BEST.METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 0], "TEST.EVAL_PERIOD"),
        (["RESNET_DET.BEST.METRIC", "bbox/AP", "DATASETS.TEST", ()], "DATASETS.TEST"),
        (["RESNET_DET.BEST.METRIC", "bbox/AP", "RESNET_DET.BEST.PATIENCE", 2, "TEST.AUG.ENABLED", True],
         "BEST.PATIENCE: TEST.AUG follows only .*: set TEST.AUG.ENABLED False"),
        (["RESNET_DET.BEST.METRIC", "bbox/AP51"], "bbox/AP51: .* did you mean .*bbox/AP"),
        (["RESNET_DET.BEST.METRIC", "bbox/AP-wheeel"], "did you mean bbox/AP-wheel"),
        (["RESNET_DET.BEST.METRIC", "bbox/AP", "DATASETS.TEST",
          ("scenes_voc_test", "scenes_coco_test")], "use scenes_voc_test/bbox/AP or scenes_coco_test/"),
        (["RESNET_DET.COLOR_JITTER.CONTRAST", (1.2, 0.8)], "CONTRAST: .*1.2, 0.8.*: give a range"),
        (["RESNET_DET.COLOR_JITTER.BRIGHTNESS", (-0.1, 1)], "BRIGHTNESS: .*: give a range"),
        (["RESNET_DET.COLOR_JITTER.SATURATION", (0.8, 1.2), "INPUT.FORMAT", "L",
          "MODEL.PIXEL_MEAN", [1.0], "MODEL.PIXEL_STD", [1.0]], "SATURATION: .*BGR or RGB, not L"),
        (["RESNET_DET.EVEN_POSITIVES", True], "EVEN_POSITIVES: needs .*NAME PaperRPN, not RPN"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_keys_that_would_have_no_effect(folder, engine, overrides, words):
    engine = pick(engine)
    one = ["DATASETS.TEST", ("scenes_voc_test",), "TEST.EVAL_PERIOD", 2, "MODEL.WEIGHTS", ""]
    with pytest.raises(ConfigError, match=words):
        engine.check(engine.load_config("detector.yaml", [*one, *overrides]))


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_even_positives_on_proposals_of_a_file_are_refused_in_tests_too(folder, engine):
    engine = pick(engine)
    keys = ["MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals",
            "RESNET_DET.EVEN_POSITIVES", True]  # fmt: skip
    with pytest.raises(ConfigError, match="EVEN_POSITIVES: needs .*, not PrecomputedProposals"):
        engine.evaluate(engine.load_config("detector.yaml", keys))
