"""The embedded engine and the tools, end to end on a few small scenes."""

import importlib
import inspect
import json
import os
import re
from pathlib import Path

import pytest
import torch
from embedded_runs import final_weights, lines, tool

from resnet_det.config.defaults import ConfigError, get_cfg
from resnet_det.config.loading import load_config
from resnet_det.data import DatasetError
from resnet_det.engines import Engine, classifier, embedded, pick, run
from resnet_det.engines.embedded_data import read_test_sets
from resnet_det.engines.scaling import for_processes
from resnet_det.nets import build_net
from resnet_det.training import precision
from resnet_det.weights.loading import read


def facts_shown(page):
    return dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))


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


def test_the_report_of_a_run_that_ends_early_states_its_iterations(pretrained):
    keys = ["RESNET_DET.BEST.METRIC", "bbox/AP", "RESNET_DET.BEST.PATIENCE", 1, "TEST.EVAL_PERIOD",
            2, "DATASETS.TEST", ("scenes_voc_test",), "SOLVER.BASE_LR", 0.0]  # fmt: skip
    embedded.train(load_config("detector.yaml", keys))
    page = Path("output/detector/report.html").read_text()
    assert lines("output/detector/metrics.json")[-1]["iteration"] == 3
    assert facts_shown(page)["iterations"] == "4"


def test_test_time_augmentation_follows_the_last_evaluation(pretrained):
    keys = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (40, 56), "TEST.EVAL_PERIOD", 3]
    embedded.train(load_config("detector.yaml", keys))
    first, last = [o for o in lines("output/detector/metrics.json") if "total_loss" not in o]
    assert "scenes_voc_test/bbox/AP" in first and "scenes_voc_test/bbox_TTA/AP" not in first
    weights = ["MODEL.WEIGHTS", "output/detector/model_final.pth", "OUTPUT_DIR", "output/again"]
    metrics = embedded.evaluate(load_config("detector.yaml", [*keys, *weights]))
    assert {"iteration": 5, **metrics} == pytest.approx(last, nan_ok=True)
    for name in ("scenes_voc_test", "scenes_coco_test"):
        assert 0 <= metrics[f"{name}/bbox_TTA/AP50"] <= 100
        assert f"{name} (bbox_TTA)" in Path("output/again/report.html").read_text()
    combined = [*keys, *weights, "RESNET_DET.BOX_REFINEMENT", True]
    with pytest.raises(ConfigError, match="TEST.AUG.ENABLED and RESNET_DET.BOX_REFINEMENT"):
        embedded.evaluate(load_config("detector.yaml", combined))


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
    """Evaluation shared by two processes gives the same results, with TEST.AUG, too; training
    scales its schedule."""
    arguments = ["--engine", "torchvision", "--config-file", "detector.yaml"]
    for_one = ["SOLVER.REFERENCE_WORLD_SIZE", "1"]
    augment = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(40, 56)",
               "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]  # fmt: skip
    trained = tool("train_net.py", *arguments, *for_one, *augment, torchrun=2)
    assert trained.stderr.count("IMS_PER_BATCH 2 -> 4") == 1
    assert lines("output/detector/metrics.json")[-1]["iteration"] == 2  # 3 iterations of 4 images
    assert load_config("output/detector/config.yaml").SOLVER.BASE_LR == 0.02
    # A run that is resumed by one process keeps the schedule of two.
    resumed = for_processes(load_config("detector.yaml", for_one), resume=True).SOLVER
    assert (resumed.IMS_PER_BATCH, resumed.MAX_ITER, resumed.REFERENCE_WORLD_SIZE) == (4, 3, 2)
    weights = ["MODEL.WEIGHTS", "output/detector/model_final.pth", *augment]
    tool("train_net.py", *arguments, "--eval-only", *weights, "OUTPUT_DIR", "output/one")
    tool("train_net.py", *arguments, "--eval-only", "--num-gpus", "2", *weights,
         "OUTPUT_DIR", "output/two")  # fmt: skip
    for folder in ("inference", "inference_TTA"):
        for name in ("results", "detections"):
            trained, one, two = (
                json.loads(Path("output", o, folder, f"scenes_voc_test/{name}.json").read_text())
                for o in ("detector", "one", "two")
            )
            assert trained == one == two and one
    assert one != json.loads(
        Path("output/one/inference/scenes_voc_test/detections.json").read_text()
    )


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
    functions = ["load_config", "check_schedule", "check", "train", "evaluate"]
    functions += ["training_records"] if name != "classifier" else []
    for function in functions:
        _, *wanted = inspect.signature(getattr(Engine, function)).parameters.values()
        found = inspect.signature(getattr(module, function)).parameters.values()
        assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in wanted]


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


def test_a_finished_run_resumed_reports_its_metrics(pretrained):
    cfg = load_config("classifier.yaml")
    reported = lines("output/classifier/metrics.json")[-1]
    reported.pop("iteration")
    assert classifier.train(cfg, resume=True) == reported
    with pytest.raises(ConfigError, match="--resume"):
        classifier.train(cfg)


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


def test_bad_objects_of_test_sets_are_skipped_if_asked(voc_folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(voc_folder.root))
    voc_folder.annotate("000001", voc_folder.object() + voc_folder.object(name="dragon"))
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("voc_2007_trainval",)
    with pytest.raises(DatasetError, match="object 2: unknown class 'dragon'"):
        read_test_sets(cfg)
    cfg.RESNET_DET.SKIP_BAD_DATA = True
    dataset = read_test_sets(cfg)["voc_2007_trainval"]
    assert [len(record["annotations"]) for record in dataset.records] == [1, 1]
    assert dataset.counts["skipped_objects"] == 1


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


GREY = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [117.0], "MODEL.PIXEL_STD", [57.0]]


def test_grey_images_from_pretraining_to_the_report(pretrained):
    keys = [*GREY, "OUTPUT_DIR", "output/grey", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()]
    with pytest.raises(ConfigError, match="model_final.pth: takes images of 3 .*--channels 1"):
        embedded.train(load_config("detector.yaml", keys))
    classifier.train(load_config("classifier.yaml", [*keys, "OUTPUT_DIR", "output/grey_net"]))
    keys += ["MODEL.WEIGHTS", "output/grey_net/model_final.pth"]
    embedded.train(load_config("detector.yaml", keys))
    model = "output/grey/model_final.pth"
    state, facts = read(model)
    assert facts["format"] == "L" and facts["pixel_mean"] == [117.0]
    assert state["backbone.stem.conv1.weight"].shape == (16, 1, 3, 3)
    assert "data:image/jpeg" in Path("output/grey/report.html").read_text()
