"""The embedded engine and the tools, end to end on a few small scenes."""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from embedded_configs import CLASSIFIER, DETECTOR

from resnet_det.commands import train_net
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data.synthetic import scenes
from resnet_det.detector.build import build_model
from resnet_det.detector.weights import fit_detector, new_layers
from resnet_det.engines import Engine, classifier, embedded, pick, pretrain, run
from resnet_det.nets import build_net
from resnet_det.training import distributed, precision
from resnet_det.weights.loading import WeightsError, read

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def few_scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    scenes.write_scenes(root, trainval=8, test=4, train_crops=48, val_crops=24)
    return root


@pytest.fixture
def folder(tmp_path, few_scenes, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    Path("detector.yaml").write_text(DETECTOR)
    Path("classifier.yaml").write_text(CLASSIFIER)
    return tmp_path


def tool(name, *args, check=True, torchrun=0):
    launcher = [sys.executable]
    if torchrun:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launcher, str(ROOT / "tools" / name), *map(str, args)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if check:
        assert run.returncode == 0, run.stdout + run.stderr
    return run


def facts_shown(page):
    return dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_one_command_from_nothing_to_the_report(folder):
    """Pretrain, precise BN, freeze, fine-tune, evaluate, draw: everything that is promised."""
    run = tool("train_net.py", "--engine", "torchvision", "--config-file", "detector.yaml")
    assert "pretraining with" in run.stderr
    pretrained = torch.load("output/classifier/model_final.pth", weights_only=True)
    assert pretrained["meta"]["net"] == "cifar_resnet20"
    assert set(pretrained["model"]) == set(build_net("cifar_resnet20", 8).state_dict())

    output = Path("output/detector")
    for name in ("config.yaml", "metrics.json", "model_0000002.pth", "model_final.pth",
                 "last_checkpoint", "report.html"):  # fmt: skip
        assert (output / name).is_file(), name
    assert list(output.glob("events.out.tfevents.*"))
    metrics = lines(output / "metrics.json")
    assert metrics[0]["iteration"] == 5 and metrics[0]["total_loss"] > 0
    final = metrics[-1]
    assert 0 <= final["scenes_voc_test/bbox/AP50"] <= 100
    assert 0 <= final["scenes_coco_test/bbox/AP50"] <= 100
    assert "AP50_area" in json.loads(
        (output / "inference/scenes_voc_test/results.json").read_text()
    )
    assert len(list((output / "inference/scenes_voc_test").glob("comp4_det_test_*.txt"))) == 8
    page = (output / "report.html").read_text()
    assert "cifar_resnet20" in page and "data:image/jpeg" in page

    # The trunk that was frozen is the classifier's, bit for bit; so are all norms.
    trained = torch.load(output / "model_final.pth", weights_only=True)["model"]
    for key, value in pretrained["model"].items():
        where = ("roi_heads." if key.startswith("res4") else "backbone.") + key
        if key.endswith("num_batches_tracked"):
            continue
        if "norm" in key or key.startswith(("stem", "res2")):
            assert torch.equal(trained[where], value), key
        elif key.startswith(("res3", "res4")) and key.endswith("conv1.weight"):
            assert not torch.equal(trained[where], value), key

    # The checkpoint alone draws a picture, and evaluates to the same numbers.
    picture = next((folder.parent / os.environ["DETECTRON2_DATASETS"]).rglob("JPEGImages/*.jpg"))
    run = tool("demo.py", picture, "--weights", output / "model_final.pth", "--threshold", "0")
    assert Path("output/demo", picture.stem + ".png").is_file()
    run = tool(
        "train_net.py", "--engine", "torchvision", "--config-file", "detector.yaml", "--eval-only",
        "MODEL.WEIGHTS", output / "model_final.pth", "OUTPUT_DIR", "output/again",
        "SOLVER.MAX_ITER", "60", "SEED", "8",
    )  # fmt: skip
    for name in ("scenes_voc_test", "scenes_coco_test"):
        first, again = (
            Path(o, "inference", name, "results.json").read_text() for o in (output, "output/again")
        )
        assert first == again

    # Its report says of the training what the checkpoint says, not what the config would do.
    told, again = facts_shown(page), facts_shown(Path("output/again/report.html").read_text())
    assert (told["iterations"], told["trained on"], told["seed"]) == (
        "6",
        "scenes_voc_trainval",
        "3",
    )
    assert again["weights"] == str(output / "model_final.pth")
    assert (again["weights: net"], again["weights: seed"]) == ("cifar_resnet20", "3")
    assert again.get("weights: commit", "unknown") == told["commit"]
    assert not {"iterations", "trained on", "seed"} & again.keys()

    # A second run does not write over the first.
    run = tool("train_net.py", "--config-file", "detector.yaml", "--engine", "torchvision",
               check=False)  # fmt: skip
    assert run.returncode == 1 and "--resume" in run.stderr and "Traceback" not in run.stderr


@pytest.fixture
def pretrained(folder):
    classifier.train(load_config("classifier.yaml"))


def final_weights(output):
    return torch.load(Path(output, "model_final.pth"), weights_only=True)["model"]


def test_resumed_run_equals_the_uninterrupted_one(pretrained):
    engine = embedded
    engine.train(engine.load_config("detector.yaml"))
    cut = engine.load_config("detector.yaml", ["OUTPUT_DIR", "output/cut"])
    engine.train(cut)
    Path("output/cut/last_checkpoint").write_text("model_0000002.pth")
    Path("output/cut/model_final.pth").unlink()
    engine.train(cut, resume=True)
    whole, resumed = final_weights("output/detector"), final_weights("output/cut")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    keys = ("iteration", "total_loss", "lr", "scenes_voc_test/bbox/AP")
    a, b = (
        [{k: line.get(k) for k in keys} for line in lines(f"output/{o}/metrics.json")]
        for o in ("detector", "cut")
    )
    assert a == b


def test_mixed_precision_on_the_cpu(pretrained, monkeypatch):
    """The whole detector in bfloat16: the RPN's losses are close to float32's on the same anchors.

    Which proposals survive NMS, and so the regions, may differ by the rounding alone.
    """
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    first = []
    for amp in (False, True):
        overrides = ["SOLVER.AMP.ENABLED", amp, "OUTPUT_DIR", f"output/{amp}",
                     "DATASETS.TEST", (), "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]  # fmt: skip
        embedded.train(load_config("detector.yaml", overrides))
        first.append(lines(f"output/{amp}/metrics.json")[0])
    for loss, slack in (("loss_rpn_cls", 0.02), ("loss_rpn_loc", 0.02), ("loss_cls", 0.1)):
        single, mixed = (line[loss] for line in first)
        assert single != mixed and abs(mixed - single) < slack * single, loss


def test_two_processes_detect_the_same(pretrained):
    """Evaluation shared by two processes gives the same results; training runs and saves."""
    arguments = ["--engine", "torchvision", "--config-file", "detector.yaml"]
    tool("train_net.py", *arguments, torchrun=2)
    weights = ["MODEL.WEIGHTS", "output/detector/model_final.pth"]
    tool("train_net.py", *arguments, "--eval-only", *weights, "OUTPUT_DIR", "output/one")
    tool("train_net.py", *arguments, "--eval-only", "--num-gpus", "2", *weights,
         "OUTPUT_DIR", "output/two")  # fmt: skip
    trained, one, two = (
        json.loads(Path("output", o, "inference/scenes_voc_test/results.json").read_text())
        for o in ("detector", "one", "two")
    )
    assert trained == one == two


def test_new_layers_start_fresh(pretrained):
    """A file may lack them; what is in it is not read; no other may be missing."""
    weights = Path("output/classifier/model_final.pth")
    whole = read(weights)[0]
    without = {k: v for k, v in whole.items() if not k.startswith("res4.2.")}
    torch.save({"model": without}, "part.pth")
    model = build_model(load_config("detector.yaml"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match="res4.2.conv1.weight"):
        fit_detector(model, *read("part.pth"), "part.pth")
    for file in ("part.pth", weights):
        model.load_state_dict(before)
        cfg = load_config("detector.yaml", ["RESNET_DET.NEW_LAYERS", ("res4.2",)])
        match = fit_detector(model, *read(file), file, new_layers(model, cfg))
        assert "roi_heads.res4.2.conv1.weight" in match.missing
        after = model.state_dict()
        for key in whole:
            name = ("roi_heads." if key.startswith("res4.") else "backbone.") + key
            if name in after:
                expected = before[name] if key.startswith("res4.2.") else whole[key]
                assert torch.equal(after[name], expected), key
    with pytest.raises(ConfigError, match="NEW_LAYERS: res9"):
        new_layers(model, load_config("detector.yaml", ["RESNET_DET.NEW_LAYERS", ("res9",)]))


def test_fine_tuning_keeps_the_rows_of_shared_classes(pretrained, caplog):
    """Wherever they stand; the other rows start fresh. A file that says no names is believed."""
    still = ["SOLVER.BASE_LR", 0.0, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]
    embedded.train(load_config("detector.yaml", [*still, "OUTPUT_DIR", "output/first"]))
    content = torch.load("output/first/model_final.pth", weights_only=True)
    start, names = content["model"], content["meta"].pop("classes")
    layers = {key for key in start if "box_predictor." in key and key.endswith("weight")}
    assert len(layers) == 2
    score, box = "roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred."
    caplog.set_level("INFO")
    renamed = [f"my {name}" for name in names]
    for classes, by_order in (
        (names, False), (None, False), (renamed, True), (renamed, False),
        ([*names[:0:-1], "dragon"], False),
    ):  # fmt: skip
        meta = content["meta"] | ({"classes": classes} if classes else {})
        torch.save({"model": start, "meta": meta}, "start.pth")
        output = f"output/{len(os.listdir('output'))}"
        cfg = load_config("detector.yaml", [
            *still, "MODEL.WEIGHTS", "start.pth", "OUTPUT_DIR", output, "SEED", 7,
            "RESNET_DET.CLASSES_BY_ORDER", by_order,
        ])  # fmt: skip
        caplog.clear()
        embedded.train(cfg)
        after = final_weights(cfg.OUTPUT_DIR)
        changed = {key for key in after if not torch.equal(after[key], start[key])}
        kept = classes in (None, names) or by_order
        assert changed == (set() if kept else layers), classes
        assert ("start.pth: is of other classes" in caplog.text) != kept
    for to, name in enumerate(names):
        if name not in classes:
            assert not torch.equal(after[score + "weight"][to], start[score + "weight"][to])
            continue
        at = classes.index(name)
        for key, rows in ((score + "weight", 1), (score + "bias", 1), (box + "weight", 4)):
            kept = after[key][rows * to : rows * (to + 1)]
            assert torch.equal(kept, start[key][rows * at : rows * (at + 1)]), (key, name)
    assert torch.equal(after[score + "weight"][-1], start[score + "weight"][-1])  # background
    told = f"7 classes keep their rows ({', '.join(names[1:])}), 1 start fresh ({names[0]})"
    assert told in caplog.text


def test_frozen_norms_without_statistics_are_refused(folder):
    cfg = load_config("detector.yaml", ["MODEL.WEIGHTS", "", "RESNET_DET.PRETRAIN", ""])
    with pytest.raises(ConfigError, match="frozen batch norms have no statistics"):
        embedded.train(cfg)


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


def test_classifier_evaluates_to_what_it_reported(pretrained):
    reported = lines("output/classifier/metrics.json")[-1]
    cfg = load_config("classifier.yaml", ["MODEL.WEIGHTS", "output/classifier/model_final.pth"])
    metrics = classifier.evaluate(cfg)
    assert {k: reported[k] for k in metrics} == metrics
    assert 0 <= metrics["classification/top5_error"] <= metrics["classification/top1_error"] <= 100


PER_PIXEL = ["RESNET_DET.PER_PIXEL_MEAN", True, "RESNET_DET.CROP_PADDING", 4]


@pytest.fixture
def mean_image(folder):
    """Of the training crops (3, 36, 36), by a direct mean over the files."""
    import numpy as np
    from PIL import Image

    files = sorted(Path(os.environ["DETECTRON2_DATASETS"]).glob("scenes/classification/train/*/*"))
    pixels = np.stack([np.asarray(Image.open(f))[..., ::-1] for f in files]).astype(np.float64)
    return torch.from_numpy(pixels.mean(0)).permute(2, 0, 1).float()


def per_pixel(mean_image, *overrides):
    mean = [round(x, 3) for x in mean_image.mean((1, 2)).tolist()]
    return load_config("classifier.yaml", [*PER_PIXEL, "MODEL.PIXEL_MEAN", mean, *overrides])


def test_the_mean_image_travels_with_the_checkpoint(folder, mean_image, monkeypatch):
    classifier.train(per_pixel(mean_image))
    kept = torch.load("output/classifier/model_final.pth", weights_only=True)["meta"]["mean_image"]
    assert torch.allclose(kept, mean_image, atol=1e-4)
    reported = lines("output/classifier/metrics.json")[-1]

    # Evaluation needs no training set, and gives the same; other pixels are refused.
    weights = ["MODEL.WEIGHTS", "output/classifier/model_final.pth"]
    train = ["DATASETS.TRAIN", ("cifar10_train",)]  # which is not here
    metrics = classifier.evaluate(per_pixel(mean_image, *weights, *train))
    assert {k: reported[k] for k in metrics} == metrics
    plain = ["RESNET_DET.PER_PIXEL_MEAN", False]
    with pytest.raises(ConfigError, match="PER_PIXEL_MEAN: False, but .*final.pth carries a mean"):
        classifier.evaluate(per_pixel(mean_image, *weights, *plain))
    classifier.train(load_config("classifier.yaml", ["OUTPUT_DIR", "output/plain"]))
    with pytest.raises(ConfigError, match="PER_PIXEL_MEAN: True, but .*carries no mean image"):
        classifier.evaluate(
            load_config(
                "classifier.yaml", [*PER_PIXEL, "MODEL.WEIGHTS", "output/plain/model_final.pth"]
            )
        )

    # Responses of its layers, by the config and the mean image that it carries; kept, then read.
    responses = classifier.layer_responses("output/classifier")
    assert len(responses) == 19 and min(responses.values()) > 0
    Path("output/classifier/responses.json").write_text('{"kept": 1.0}')
    assert classifier.layer_responses("output/classifier") == {"kept": 1.0}
    os.utime("output/classifier/model_final.pth")
    assert classifier.layer_responses("output/classifier") == responses

    # One line of config makes it a detector's backbone; the detector subtracts the mean of the mean.
    mean = [round(x, 3) for x in mean_image.mean((1, 2)).tolist()]
    with pytest.raises(ConfigError, match="was trained with MODEL.PIXEL_MEAN"):
        embedded.train(load_config("detector.yaml"))
    detector = load_config("detector.yaml", ["MODEL.PIXEL_MEAN", mean])
    assert "scenes_voc_test/bbox/AP50" in embedded.train(detector)
    with pytest.raises(ConfigError, match="PER_PIXEL_MEAN: True: .* only for classifiers"):
        embedded.train(load_config("detector.yaml", PER_PIXEL[:2]))


def test_pixel_mean_must_be_the_mean_images(folder, mean_image):
    wrong = [x + 0.3 for x in mean_image.mean((1, 2)).tolist()]
    right = (
        rf"\[{mean_image[0].mean():.3f}, {mean_image[1].mean():.3f}, {mean_image[2].mean():.3f}\]"
    )
    with pytest.raises(ConfigError, match=f"MODEL.PIXEL_MEAN.*must be the mean.*{right}"):
        classifier.train(load_config("classifier.yaml", [*PER_PIXEL, "MODEL.PIXEL_MEAN", wrong]))


def test_warmup_by_the_training_error_resumes_exactly(folder):
    """Killed inside the rule's warm-up, the run ends in the same bits and the same rates."""
    rule = [
        "RESNET_DET.WARMUP_UNTIL_ERROR", 101.0, "SOLVER.WARMUP_FACTOR", 0.1, "SOLVER.MAX_ITER", 24,
        "SOLVER.STEPS", (23,), "SOLVER.CHECKPOINT_PERIOD", 10, "TEST.PRECISE_BN.ENABLED", False,
    ]  # fmt: skip
    rates = {}
    for output in ("whole", "cut"):
        cfg = load_config("classifier.yaml", [*rule, "OUTPUT_DIR", f"output/{output}"])
        classifier.train(cfg)
        if output == "cut":
            Path("output/cut/last_checkpoint").write_text("model_0000009.pth")
            Path("output/cut/model_final.pth").unlink()
            classifier.train(cfg, resume=True)
        rates[output] = [line["lr"] for line in lines(f"output/{output}/metrics.json")[:2]]
    # Any error is below 101 %: the warm-up is exactly the 20 iterations of the running mean.
    assert rates["whole"] == rates["cut"] == pytest.approx([0.01, 0.01])
    whole, cut = final_weights("output/whole"), final_weights("output/cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


LATE = [
    (["MODEL.WEIGHTS", "elsewhere.pth"], "elsewhere.pth"),
    (["DATASETS.TEST", "('voc_2012_val',)"], "ImageSets.*is absent; voc_2012_val needs it"),
    (["DATASETS.TEST", "('scenes_voc_tset',)"], "did you mean scenes_voc_test"),
    (["DATASETS.TRAIN", "('scenes_voc_trainvaal',)"], "did you mean scenes_voc_trainval"),
    (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN: name at least one"),
    (["MODEL.ROI_HEADS.NUM_CLASSES", "20"], "NUM_CLASSES: 20, but scenes_voc_trainval"),
    (["MODEL.RPN.IN_FEATURES", "['res4']"], "RPN.IN_FEATURES: 'res4'"),
    (["MODEL.BACKBONE.NAME", "cifar_resnet32"], "cifar_resnet32, but .* trains cifar_resnet20"),
    (["MODEL.PIXEL_STD", "[58.0, 57.0, 57.0]"], "yaml: trains with .*PIXEL_STD .*1.0.* says .*58"),
    (["OUTPUT_DIR", "output/classifier"], "OUTPUT_DIR: output/classifier: .*PRETRAIN"),
    (["RESNET_DET.NEW_LAYERS", "('fc6',)"], "NEW_LAYERS: fc6"),
    (["RESNET_DET.ENSEMBLE", "('x.pth',)"], "ENSEMBLE: is for tests"),
    (["SOLVER.STEPS", "(3, 2)"], r"SOLVER.STEPS: \(3, 2\): give iterations from 1 that rise"),
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


def test_an_evaluation_makes_and_reads_no_training_set(pretrained, monkeypatch):
    made = []
    monkeypatch.setattr(run, "ensure_made", lambda names, workers: made.append(names))
    cfg = load_config("detector.yaml", ["SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()])
    embedded.train(cfg)
    assert made == [("scenes_voc_trainval", "scenes_voc_test", "scenes_coco_test")]
    overrides = ["MODEL.WEIGHTS", "output/detector/model_final.pth", "OUTPUT_DIR", "output/eval",
                 "DATASETS.TRAIN", ("miniature_voc_trainval",)]  # fmt: skip
    assert embedded.evaluate(load_config("detector.yaml", overrides))
    assert made[1:] == [("scenes_voc_test", "scenes_coco_test")]


def test_expected_results_are_checked(pretrained):
    cfg = load_config("detector.yaml", [
        "DATASETS.TEST", ("scenes_voc_test",),
        "TEST.EXPECTED_RESULTS", [["bbox", "AP", 200.0, 0.5]], "SOLVER.MAX_ITER", 2,
    ])  # fmt: skip
    with pytest.raises(RuntimeError, match=r"bbox/AP is .* expected 200.0 \+- 0.5"):
        embedded.train(cfg)


def test_engines_by_name(monkeypatch):
    assert pick("torchvision") is embedded
    with pytest.raises(ValueError, match="detectron"):
        pick("detectron")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pick("auto") is embedded
    with pytest.raises(ValueError, match="not installed"):
        pick("detectron2")


@pytest.mark.parametrize(
    "name",
    ["embedded", "classifier",
     pytest.param("on_detectron2.engine", marks=pytest.mark.detectron2)],
)  # fmt: skip
def test_every_engine_keeps_the_contract(name):
    module = importlib.import_module(f"resnet_det.engines.{name}")
    for function in ("load_config", "check_schedule", "check", "train", "evaluate"):
        _, *wanted = inspect.signature(getattr(Engine, function)).parameters.values()
        found = inspect.signature(getattr(module, function)).parameters.values()
        assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in wanted]
    assert module.launch is distributed.launch


def test_a_classifiers_data_are_checked_without_training(folder):
    classifier.check(load_config("classifier.yaml"))
    file = next(Path(os.environ["DETECTRON2_DATASETS"]).glob("scenes/classification/val/*/*"))
    content = file.read_bytes()
    try:
        file.write_text("no picture")
        with pytest.raises(ValueError, match=file.name):
            classifier.check(load_config("classifier.yaml"))
    finally:
        file.write_bytes(content)
    assert not Path("output").exists()


def test_metrics_of_several_processes_are_those_of_the_saved_classifier(folder):
    """Batch norms of two processes differ; what is saved is what was evaluated."""
    off = ["TEST.PRECISE_BN.ENABLED", "False"]
    tool("pretrain.py", "--config-file", "classifier.yaml", *off, torchrun=2)
    reported = lines("output/classifier/metrics.json")[-1]
    weights = ["MODEL.WEIGHTS", "output/classifier/model_final.pth"]
    metrics = classifier.evaluate(load_config("classifier.yaml", [*off, *weights]))
    assert {k: reported[k] for k in metrics} == metrics


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["INPUT.FORMAT", "RGB"], "INPUT.FORMAT BGR, but the config says RGB"),
        (["DATALOADER.NUM_WORKERS", 2], "DATALOADER.NUM_WORKERS: 2: .* only for"),
        (["INPUT.CROP.ENABLED", False], "INPUT.CROP"),
        (["MODEL.RESNETS.NORM", "FrozenBN"], "learns no statistics"),
        (["MODEL.RESNETS.RES5_DILATION", 2], "RES5_DILATION: 2: cifar_resnet20 takes 1"),
        (
            ["MODEL.BACKBONE.NAME", "paper_vgg16", "MODEL.RESNETS.NORM", ""],
            "no batch normalisation",
        ),
        (["DATASETS.TEST", ["scenes_classification_vall"]], "scenes_classification_val"),
    ],
)
def test_classifiers_mistakes_are_named(pretrained, overrides, words):
    weights = ["MODEL.WEIGHTS", "output/classifier/model_final.pth"]
    cfg = load_config("classifier.yaml", [*weights, "OUTPUT_DIR", "output/other", *overrides])
    with pytest.raises(ValueError, match=words):
        classifier.train(cfg)


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


def test_a_finished_run_resumed_reports_its_metrics(pretrained):
    cfg = load_config("classifier.yaml")
    reported = lines("output/classifier/metrics.json")[-1]
    reported.pop("iteration")
    assert classifier.train(cfg, resume=True) == reported
    with pytest.raises(ConfigError, match="--resume"):
        classifier.train(cfg)


def test_a_checkpoint_of_another_engine_is_not_resumed(pretrained):
    Path("output/detector").mkdir()
    torch.save({"model": {}, "iteration": 3, "trainer": {}}, "output/detector/model_0000002.pth")
    Path("output/detector/last_checkpoint").write_text("model_0000002.pth")
    with pytest.raises(ValueError, match="output/detector: .*MODEL.WEIGHTS"):
        embedded.train(load_config("detector.yaml"), resume=True)


def test_a_random_seed_is_kept_by_the_checkpoint(pretrained, monkeypatch):
    """SEED -1 shuffles differently each time, but a resumed run goes on with its own order."""
    seeds = []
    original = embedded.training_batches
    monkeypatch.setattr(
        embedded, "training_batches",
        lambda *args, **kw: seeds.append(kw["seed"]) or original(*args, **kw),
    )  # fmt: skip
    for output in ("one", "two"):
        cfg = load_config("detector.yaml", ["SEED", -1, "OUTPUT_DIR", f"output/{output}"])
        embedded.train(cfg)
    Path("output/two/last_checkpoint").write_text("model_0000002.pth")
    embedded.train(cfg, resume=True)
    assert seeds[0] != seeds[1] == seeds[2]


def test_a_test_set_without_annotations_gets_a_submission_only(folder, tmp_path):
    from PIL import Image

    from resnet_det.data import load_dataset
    from resnet_det.engines.results import score

    root = tmp_path / "data"
    for part in ("JPEGImages", "ImageSets/Main"):
        (root / "VOC2012" / part).mkdir(parents=True)
    (root / "VOC2012/ImageSets/Main/test.txt").write_text("2008_000001\n")
    Image.new("RGB", (20, 10)).save(root / "VOC2012/JPEGImages/2008_000001.jpg")
    dataset = load_dataset("voc_2012_test", root)
    box = {"boxes": [[1.0, 2.0, 8.0, 9.0]], "scores": [0.5], "classes": [6]}
    found = score(dataset, [{"image_id": "2008_000001", **box}], tmp_path / "out")
    assert found is None
    text = (tmp_path / "out/comp4_det_test_car.txt").read_text().split()
    assert [text[0], *map(float, text[1:])] == ["2008_000001", 0.5, 2.0, 3.0, 8.0, 9.0]
    assert not (tmp_path / "out/results.json").exists()


def test_dilated_conv5_in_the_trunk_starts_from_a_classifier(folder):
    """StandardROIHeads on a dilated res5: the whole classifier but its linear layer is used."""
    from resnet_det.config.defaults import get_cfg

    torch.save(build_net("paper_resnet18").state_dict(), "net.pth")
    cfg = get_cfg()
    cfg.merge_from_list([
        "MODEL.BACKBONE.NAME", "paper_resnet18", "MODEL.RESNETS.RES5_DILATION", 2,
        "MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.RPN.IN_FEATURES", ["res5"],
        "MODEL.ROI_HEADS.IN_FEATURES", ["res5"], "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 2, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    ])  # fmt: skip
    match = fit_detector(build_model(cfg), *read("net.pth"), "net.pth")
    assert set(match.unused) == {"linear.weight", "linear.bias"}
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "Res5ROIHeads", 0
    with pytest.raises(ConfigError, match="OUT_FEATURES|IN_FEATURES"):
        build_model(cfg)
