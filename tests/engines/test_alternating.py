"""4-step alternating training in miniature, on a few scenes, in both engines."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded_configs import CLASSIFIER, DETECTOR

from resnet_det.commands import train_alternating
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data import DatasetError, load_dataset
from resnet_det.data.detection import proposals
from resnet_det.data.synthetic import scenes
from resnet_det.engines import alternating, classifier, pick

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
SHORT = ["RESNET_DET.ALTERNATING", (4, 4, 2, 2), "DATASETS.TEST", ("scenes_voc_test",),
         "SOLVER.CHECKPOINT_PERIOD", 2, "OUTPUT_DIR", "output/four"]  # fmt: skip


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A working folder with a few scenes and a classifier trained for 4 iterations."""
    folder = tmp_path_factory.mktemp("work")
    scenes.write_scenes(folder / "datasets", trainval=6, test=2, train_crops=16, val_crops=8)
    heads = "ROI_HEADS: {NAME: PaperROIHeads, "  # Detectron2's own are for bottlenecks
    (folder / "detector.yaml").write_text(DETECTOR.replace("ROI_HEADS: {", heads))
    (folder / "classifier.yaml").write_text(CLASSIFIER)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DETECTRON2_DATASETS", raising=False)
        classifier.train(load_config("classifier.yaml"))
    return folder


@pytest.fixture
def folder(ready, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ready / "datasets"))
    Path("output").mkdir()
    for name in ("detector.yaml", "classifier.yaml", "output/classifier"):
        Path(name).symlink_to(ready / name)
    return tmp_path


def weights(step):
    path = Path("output/four", step, "model_final.pth")
    return torch.load(path, weights_only=True)["model"]


def run(name, *overrides, resume=False):
    engine = pick(name)
    cfg = engine.load_config("detector.yaml", [*SHORT, *overrides])
    return alternating.train(engine, cfg, resume)


@pytest.mark.parametrize("name", ENGINES)
def test_which_weights_change_in_which_step(folder, name):
    metrics = run(name)
    imagenet = torch.load("output/classifier/model_final.pth", weights_only=True)["model"]
    one, two, three, four = map(weights, alternating.STEPS)
    final = weights("")

    def part(state, prefix):
        return {k: v for k, v in state.items() if k.startswith(prefix)}

    def same(a, b):
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

    def moved(a, b):  # in a layer that every step trains where it trains the part at all
        return [k for k in a if k.endswith("conv1.weight") and not torch.equal(a[k], b[k])]

    trunks = [part(s, "backbone.") for s in (one, two, three, four)]
    pretrained = {f"backbone.{k}": v for k, v in imagenet.items()}
    for step in (0, 1):  # both start from the classifier, each for itself
        assert moved(trunks[step], pretrained)
    assert moved(trunks[0], trunks[1])
    assert same(trunks[1], trunks[2]) and same(trunks[2], trunks[3])
    assert not part(one, "roi_heads.") and not part(two, "proposal_generator.")
    assert not part(three, "roi_heads.") and not part(four, "proposal_generator.")
    heads = part(two, "roi_heads."), part(four, "roi_heads.")
    assert heads[0].keys() == heads[1].keys() and moved(*heads)
    rpns = part(one, "proposal_generator."), part(three, "proposal_generator.")
    assert rpns[0].keys() == rpns[1].keys() and not same(*rpns)
    # The final detector is the three parts, and it is what was evaluated.
    assert same(part(final, "backbone."), trunks[1])
    assert same(part(final, "roi_heads."), heads[1])
    assert same(part(final, "proposal_generator."), rpns[1])
    assert len(final) == len(trunks[1]) + len(heads[1]) + len(rpns[1])
    engine = pick(name)
    cfg = engine.load_config("detector.yaml", [
        "DATASETS.TEST", ("scenes_voc_test",), "MODEL.WEIGHTS", "output/four/model_final.pth",
        "OUTPUT_DIR", "output/again",
    ])  # fmt: skip
    assert engine.evaluate(cfg) == pytest.approx(metrics, nan_ok=True)
    assert 0 <= metrics["bbox/AP50"] <= 100
    for step, iterations in zip(alternating.STEPS, (4, 4, 2, 2)):
        lines = Path("output/four", step, "metrics.json").read_text().splitlines()
        line = [x for x in map(json.loads, lines) if "total_loss" in x][-1]
        assert line["iteration"] == iterations - 1
        assert ("loss_rpn_cls" in line) == ("rpn" in step)
        assert ("loss_cls" in line) == ("rpn" not in step)


@pytest.mark.parametrize("name", ENGINES)
def test_a_spoilt_image_is_left_out_of_every_step(folder, ready, monkeypatch, name):
    shutil.copytree(ready / "datasets", "spoilt")
    monkeypatch.setenv("DETECTRON2_DATASETS", "spoilt")
    record = load_dataset("scenes_voc_trainval").records[0]
    Path(record["file_name"]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=Path(record["file_name"]).name):
        run(name, "OUTPUT_DIR", "output/strict")
    run(name, "RESNET_DET.SKIP_BAD_DATA", True, "DATASETS.TEST", ())
    cfg = pick(name).load_config("detector.yaml", SHORT)
    for step in (0, 2):
        found = proposals.read(alternating.proposal_file(cfg, step, "scenes_voc_trainval"))
        assert [i for i, (boxes, _, _) in found.items() if not len(boxes)] == [record["image_id"]]


@pytest.mark.parametrize("stop", [(0, 2), (3, 1)], ids=str)
def test_a_killed_run_goes_on_to_the_same_detector(folder, monkeypatch, stop):
    """A kill after a checkpoint in the first step, or before one in the last, changes no bit."""
    run("torchvision", "OUTPUT_DIR", "output/whole", "DATASETS.TEST", ())
    whole = torch.load("output/whole/model_final.pth", weights_only=True)["model"]
    step, iterations = stop
    from resnet_det.engines import embedded

    original = embedded.training_batches

    def dying(*args, **kwargs):
        for number, batch in enumerate(original(*args, **kwargs)):
            if number == iterations and Path("output/four", alternating.STEPS[step]).exists():
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(embedded, "training_batches", dying)
    with pytest.raises(KeyboardInterrupt):
        run("torchvision", "DATASETS.TEST", ())
    monkeypatch.setattr(embedded, "training_batches", original)
    with pytest.raises(ConfigError, match="--resume"):
        run("torchvision", "DATASETS.TEST", ())
    run("torchvision", "DATASETS.TEST", (), resume=True)
    resumed = weights("")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_steps_follow_the_released_schedule():
    root = Path(__file__).parent.parent.parent / "configs"
    cfg = load_config(root / "faster_rcnn_VGG16.yaml", [
        "RESNET_DET.ALTERNATING", (80000, 40000, 80000, 40000),
    ])  # fmt: skip
    steps = [alternating.step_config(cfg, i) for i in range(4)]
    assert [s.SOLVER.MAX_ITER for s in steps] == [80000, 40000, 80000, 40000]
    assert [tuple(s.SOLVER.STEPS) for s in steps] == [(60000,), (30000,), (60000,), (30000,)]
    assert [s.SOLVER.IMS_PER_BATCH for s in steps] == [1, 2, 1, 2]
    assert [s.MODEL.BACKBONE.FREEZE_AT for s in steps] == [2, 2, 5, 5]
    coco = load_config(root / "faster_rcnn_R101_coco.yaml")
    steps = [alternating.step_config(coco, i) for i in range(4)]
    assert {(s.SOLVER.MAX_ITER, *s.SOLVER.STEPS) for s in steps} == {(320000, 240000)}
    assert [s.SOLVER.IMS_PER_BATCH for s in steps] == [8, 16, 8, 16]
    assert [s.MODEL.BACKBONE.FREEZE_AT for s in steps] == [2, 2, 4, 4]


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("iterations", [(0, 1, 1, 1), (1, 1, 1)])
def test_steps_without_iterations_are_refused(folder, name, iterations):
    with pytest.raises(ConfigError, match="ALTERNATING.*give four"):
        run(name, "RESNET_DET.ALTERNATING", iterations)


@pytest.mark.detectron2
def test_detectron2_says_each_line_once_however_many_steps_there_are(folder):
    root = Path(__file__).parents[2]
    keys = ["RESNET_DET.ALTERNATING", "(1, 1, 1, 1)", "OUTPUT_DIR", "output/once", "DATASETS.TEST",
            "('scenes_voc_test',)", "SOLVER.CHECKPOINT_PERIOD", "1"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, root / "tools/train_alternating.py", "--engine", "detectron2",
         "--config-file", "detector.yaml", *keys],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines = done.stdout.splitlines() + done.stderr.splitlines()
    for said in ("step3_rpn: 1 iterations", "wrote output/once/step3_rpn/scenes",
                 "Starting training from iteration", "results:"):  # fmt: skip
        count = sum(said in line for line in lines)
        assert count == (4 if "Starting" in said else 1), (said, count)


@pytest.mark.parametrize("name", ENGINES)
def test_steps_of_one_iteration(folder, name):
    run(name, "RESNET_DET.ALTERNATING", (1, 1, 1, 1), "DATASETS.TEST", ())
    assert len(weights("")) > len(weights(alternating.STEPS[0]))


@pytest.mark.parametrize("name", ENGINES)
def test_an_iteration_of_a_step_can_be_replayed(folder, name):
    burst = ["SOLVER.BASE_LR", 1e15, "SOLVER.WARMUP_ITERS", 0]
    words = ["--engine", name, "--config-file", "detector.yaml"]
    keys = [str(word) for word in (*SHORT, *burst)]
    with pytest.raises(FloatingPointError, match="step1_rpn/not_finite_") as first:
        train_alternating.main([*words, *keys])
    message = str(first.value)
    path = re.search(r"--replay (\S+)", message)[1]
    with pytest.raises(FloatingPointError) as again:
        train_alternating.main([*words, "--replay", path, *keys])
    assert str(again.value).split(" A lower")[0] == message.split(" A lower")[0]
    elsewhere = shutil.copy(path, ".")
    with pytest.raises(ConfigError, match=f"--replay {elsewhere}: give a file in .* step1_rpn, "):
        train_alternating.main([*words, "--replay", elsewhere, *keys])


def test_a_pyramid_is_refused(folder):
    root = Path(__file__).parent.parent.parent / "configs"
    cfg = load_config(root / "modern_faster_rcnn_R101_FPN.yaml")
    with pytest.raises(ConfigError, match="pyramid"):
        alternating.train(pick("torchvision"), cfg)


@pytest.mark.parametrize(
    "key, value, off", [("VAL_LOSS", True, "False"), ("BEST.METRIC", "bbox/AP", "''")]
)
def test_keys_of_evaluations_are_refused(folder, key, value, off):
    words = f"{key}: {value}: the steps .* are not evaluated: set it to {off}"
    with pytest.raises(ConfigError, match=words):
        run("torchvision", f"RESNET_DET.{key}", value, "TEST.EVAL_PERIOD", 1)


@pytest.mark.parametrize("name", ENGINES)
def test_only_the_steps_of_the_rpn_draw_even_positives(folder, name):
    keys = ["RESNET_DET.EVEN_POSITIVES", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PaperRPN"]
    engine = pick(name)
    cfg = engine.load_config("detector.yaml", [*SHORT, *keys])
    alternating.check(engine, cfg)
    steps = [alternating.step_config(cfg, index).RESNET_DET for index in range(4)]
    assert [step.EVEN_POSITIVES for step in steps] == [True, False] * 2


def test_a_file_of_proposals_comes_back_and_is_checked(folder):
    records = load_dataset("scenes_voc_test").records
    boxes = np.array([[1.5, 2, 30, 40], [0, 0, 10, 10]], np.float32)
    proposals.write("p.pkl", [(r["image_id"], boxes, [0.5, 2.0]) for r in records])
    first = proposals.attach(records, "p.pkl")[0]
    assert first["proposal_boxes"].tolist() == boxes[::-1].tolist()  # the best first
    assert first["proposal_objectness_logits"].tolist() == [2.0, 0.5]
    assert "proposal_boxes" not in records[0]
    proposals.write("few.pkl", [(records[0]["image_id"], boxes, [0.5, 2.0])])
    for path, words in (
        ("few.pkl", "no proposals for 1 images"),
        ("absent.pkl", "no such proposal file"),
    ):
        with pytest.raises(ValueError, match=words):
            proposals.attach(records, path)
    proposals.write("nan.pkl", [("a", boxes * np.nan, [0.5, 2.0])])
    proposals.write("short.pkl", [("a", boxes, [0.5])])
    Path("code.pkl").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    Path("list.pkl").write_bytes(b"\x80\x04]\x94.")
    whole = {
        "ids": np.array([3, 7]),
        "boxes": np.stack([boxes] * 2),
        "objectness_logits": [[1.0, 2]] * 2,
    }
    Path("whole.pkl").write_bytes(pickle.dumps(whole))
    assert list(proposals.read("whole.pkl")) == ["3", "7"]
    for key, value, words in (
        ("ids", 3, "must be lists"),
        ("boxes", [boxes.tolist(), [[1, 2, 3, 4], [1]]], "image 7.*arrays of numbers"),
        ("objectness_logits", [["a", "b"]] * 2, "image 3.*arrays of numbers"),
        ("bbox_mode", np.array([0, 1]), "bbox_mode"),
    ):
        Path("odd.pkl").write_bytes(pickle.dumps(whole | {key: value}))
        with pytest.raises(DatasetError, match=f"odd.pkl: .*{words}"):
            proposals.read("odd.pkl")
    for path, words in (("nan.pkl", "not finite"), ("short.pkl", "logits"),
                        ("code.pkl", "not allowed"), ("list.pkl", "dictionary")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{path}.*{words}"):
            proposals.read(path)
    assert not Path("ran").exists()


@pytest.mark.detectron2
def test_detectron2_reads_our_file_and_maps_it_alike(folder):
    from detectron2.config import get_cfg
    from detectron2.data import DatasetMapper
    from detectron2.data.build import load_proposals_into_dataset

    from resnet_det.data.detection.mapper import DetectionMapper

    records = load_dataset("scenes_voc_test").records
    boxes = np.random.default_rng(0).uniform(-5, 150, (50, 4)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    proposals.write("p.pkl", [(r["image_id"], boxes, np.arange(50)) for r in records])
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.LOAD_PROPOSALS", True, "INPUT.MIN_SIZE_TEST", 100,
                         "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", 10])  # fmt: skip
    theirs = load_proposals_into_dataset([dict(r) for r in records], "p.pkl")
    theirs = DatasetMapper(cfg, is_train=False)(theirs[0])["proposals"]
    ours = DetectionMapper([100], 1333, train=False, proposals=10)
    ours = ours(proposals.attach(records, "p.pkl")[0], np.random.default_rng(0))["proposals"]
    assert torch.allclose(ours, theirs.proposal_boxes.tensor, atol=1e-4) and len(ours) == 10


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["MODEL.LOAD_PROPOSALS", True], "LOAD_PROPOSALS.*PROPOSAL_GENERATOR"),
        (["MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"],
         "PROPOSAL_FILES_TRAIN: 0 files for 1"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(folder, overrides, words):
    engine = pick("torchvision")
    with pytest.raises(ConfigError, match=words):
        engine.check(engine.load_config("detector.yaml", overrides))


@pytest.mark.parametrize("name", ENGINES)
def test_a_proposal_network_is_not_evaluated(folder, name):
    engine = pick(name)
    cfg = engine.load_config("detector.yaml", ["MODEL.META_ARCHITECTURE", "ProposalNetwork"])
    with pytest.raises(ConfigError, match="DATASETS.TEST.*makes no detections"):
        engine.train(cfg)
