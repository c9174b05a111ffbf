"""A classifier of large images from end to end: processes, workers, resume, every way of
testing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from resnet_det.config.loading import load_config
from resnet_det.data import pixels
from resnet_det.engines import classifier
from resnet_det.evaluation import classification
from resnet_det.nets import build_net
from resnet_det.training import Trainer, precision

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
MODEL:
  META_ARCHITECTURE: Classifier
  DEVICE: cpu
  BACKBONE: {NAME: cifar_resnet20}
  RESNETS: {NORM: BN}
  PIXEL_STD: [57.375, 57.120, 58.395]
INPUT:
  MIN_SIZE_TRAIN: [36, 48]
  MIN_SIZE_TRAIN_SAMPLING: range
  MIN_SIZE_TEST: 36
  CROP: {ENABLED: True, TYPE: absolute, SIZE: [32, 32]}
DATASETS: {TRAIN: [imagenet_train], TEST: [imagenet_val]}
DATALOADER: {NUM_WORKERS: 1}
SOLVER:
  IMS_PER_BATCH: 8
  BASE_LR: 0.05
  MAX_ITER: 20
  STEPS: []
  WARMUP_ITERS: 0
  CHECKPOINT_PERIOD: 10
TEST:
  PRECISE_BN: {ENABLED: True, NUM_ITER: 4}
  AUG: {MIN_SIZES: [32, 48]}
RESNET_DET: {COLOR_PCA: True, COLOR_JITTER: {CONTRAST: [0.8, 1.2]}}
SEED: 3
"""
WEIGHTS = "output/a/model_final.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of one colour each, 8 training and 3 test images of differing sizes;
    trained."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, color in enumerate(((200, 60, 60), (60, 200, 60), (60, 60, 200))):
            where = folder / "imagenet" / split / f"n{label}"
            where.mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 40, (40 + 4 * i, 60 - 3 * i, 3))
                image = (np.array(color) + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(where / f"{i}.JPEG")
    (folder / "c.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        classifier.train(load_config("c.yaml", ["OUTPUT_DIR", "output/a"]))
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))


def pretrain(folder, *overrides):
    """In two processes."""
    command = [sys.executable, str(ROOT / "tools" / "pretrain.py"), "--config-file", "c.yaml",
               "--num-gpus", "2"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *overrides], check=False, cwd=folder, env=environment, capture_output=True,
        text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def weights(name):
    return torch.load(f"output/{name}/model_final.pth", weights_only=True)["model"]


def test_it_learns_and_the_results_are_written():
    lines = [json.loads(x) for x in Path("output/a/metrics.json").read_text().splitlines()]
    assert lines[-1]["classification/top1_error"] <= 100 / 3  # 2/3 by chance
    results = json.loads(Path("output/a/inference/imagenet_val/results.json").read_text())
    assert results["images"] == 9 and results["views"] == "Crops(short=36, count=1)"
    assert results["top1_error"] == lines[-1]["classification/top1_error"]


def test_resumed_is_uninterrupted_with_other_workers(folder):
    """Resumes from the checkpoint of iteration 10, which carries the seed."""
    name = "model_0000009.pth"
    (folder / "output/b").mkdir()
    (folder / "output/b" / name).write_bytes((folder / "output/a" / name).read_bytes())
    (folder / "output/b/last_checkpoint").write_text(name)
    more = ["DATALOADER.NUM_WORKERS", 2, "SEED", -1]
    cfg = load_config("c.yaml", ["OUTPUT_DIR", "output/b", *more])
    classifier.train(cfg, resume=True)
    a, b = weights("a"), weights("b")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_mixed_precision(monkeypatch):
    """In bfloat16, the loss is close to float32's but not equal, and the weights stay float32."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    losses = []
    for amp in (False, True):
        overrides = ["SOLVER.AMP.ENABLED", amp, "OUTPUT_DIR", f"output/amp{amp}",
                     "DATASETS.TEST", (), "SOLVER.MAX_ITER", 1]  # fmt: skip
        classifier.train(load_config("c.yaml", overrides))
        line = json.loads(Path(f"output/amp{amp}/metrics.json").read_text().splitlines()[0])
        losses.append(line["loss_cls"])
    assert losses[0] != losses[1] and abs(losses[1] - losses[0]) < 0.05 * losses[0]
    assert all(v.dtype != torch.bfloat16 for v in weights("ampTrue").values())


def test_two_processes_share_uneven_tests(folder):
    """9 test images over 2 processes: the errors are those of one process on the saved weights."""
    pretrain(folder, "SOLVER.MAX_ITER", "4", "OUTPUT_DIR", "output/two")
    results = json.loads(Path("output/two/inference/imagenet_val/results.json").read_text())
    weights = ["MODEL.WEIGHTS", "output/two/model_final.pth", "OUTPUT_DIR", "output/t"]
    metrics = classifier.evaluate(load_config("c.yaml", weights))
    assert results["images"] == 9
    assert results["top1_error"] == metrics["classification/top1_error"]


def by_hand(nets, see):
    """Softmax averaged over nets and over what ``see`` makes of each test image."""
    mean, std = [103.530, 116.280, 123.675], [57.375, 57.120, 58.395]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    rows = []
    for file in sorted(Path("imagenet/val").glob("*/*.JPEG")):
        scores = []
        for view, forward in see(pixels.read_image(file)):
            x = (torch.from_numpy(view.copy()).permute(2, 0, 1)[None].float() - mean) / std
            scores += [forward(net, x).softmax(1) for net in nets]
        rows.append(sum(scores) / len(scores))
    return torch.cat(rows)


def resized(image, short):
    return pixels.resize(image, *pixels.resized_shape(*image.shape[:2], short, float("inf")))


def centre(image):
    image = resized(image, 36)
    y, x = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
    return [(image[y : y + 32, x : x + 32], lambda net, v: net(v))]


def ten(image):
    whole = resized(image, 36)
    h, w = whole.shape[0] - 32, whole.shape[1] - 32
    for y, x in ((0, 0), (0, w), (h, 0), (h, w), (h // 2, w // 2)):
        crop = whole[y : y + 32, x : x + 32]
        yield from ((v, lambda net, v: net(v)) for v in (crop, crop[:, ::-1]))


def scales(image):
    for short in (32, 48):
        whole = resized(image, short)
        yield from ((v, lambda net, v: net.dense(v, 32)) for v in (whole, whole[:, ::-1]))


@torch.no_grad()
@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize(
    "overrides, see",
    [([], centre), (["RESNET_DET.TEST_CROPS", 10], ten), (["TEST.AUG.ENABLED", True], scales)],
)
def test_every_way_of_testing_is_what_it_is_by_hand(overrides, see, members, monkeypatch):
    """Uses random nets, whose predictions are not confident."""
    meta = torch.load(WEIGHTS, weights_only=True)["meta"]
    nets, files = [], []
    for seed in range(members):
        torch.manual_seed(seed)
        nets.append(build_net("cifar_resnet20", 3).eval())
        nets[-1].linear.weight *= 0.05
        files.append(f"output/{seed}.pth")
        torch.save({"model": nets[-1].state_dict(), "meta": meta}, files[-1])
    seen, count = [], classification.errors_at
    monkeypatch.setattr(
        classification, "errors_at", lambda s, *rest: seen.append(s) or count(s, *rest)
    )
    keys = ["MODEL.WEIGHTS", files[0], "RESNET_DET.ENSEMBLE", tuple(files[1:])]
    cfg = load_config("c.yaml", ["OUTPUT_DIR", "output/t", *keys, *overrides])
    metrics = classifier.evaluate(cfg)
    expected = by_hand(nets, see)
    assert torch.allclose(torch.cat(seen).float(), expected, atol=1e-5)
    assert expected.std(0).min() > 1e-3 and expected.max() < 0.99
    wrong = (expected.argmax(1) != torch.arange(9) // 3).float().mean().item()
    assert metrics["classification/top1_error"] == pytest.approx(100 * wrong)
    results = json.loads(Path("output/t/inference/imagenet_val/results.json").read_text())
    assert results["nets"] == members and results["top1_error"] == pytest.approx(100 * wrong)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (
            ["RESNET_DET.CROP_PADDING", 4],
            "CROP_PADDING: 4: .* only for classifiers of small images",
        ),
        (["INPUT.MAX_SIZE_TRAIN", 500], "MAX_SIZE_TRAIN: 500: .* only for detectors"),
        (["DATASETS.TEST", ["scenes_classification_val"]], "only datasets of small images"),
        (["DATASETS.TEST", ["imagenet_va"]], "'imagenet_va'; did you mean imagenet_val"),
        (
            ["DATASETS.PROPOSAL_FILES_TRAIN", ("a.pkl",)],
            "PROPOSAL_FILES_TRAIN: .* only for detectors",
        ),
        (["INPUT.CROP.SIZE", (32.5, 32.5)], "INPUT.CROP: .*a size in pixels"),
        (["RESNET_DET.TEST_CROPS", 5], "TEST_CROPS: 5 .*use 1 or 10"),
        (
            ["RESNET_DET.TEST_CROPS", 10, "TEST.AUG.ENABLED", True],
            "whole images and RESNET_DET.TEST_CROPS crops",
        ),
        (["RESNET_DET.PER_PIXEL_MEAN", True, "TEST.AUG.ENABLED", True], "PER_PIXEL_MEAN"),
        (["RESNET_DET.ENSEMBLE", (WEIGHTS,)], "ENSEMBLE.*--eval-only"),
        (["INPUT.MIN_SIZE_TRAIN", (30, 40)], "crop of 32 pixels.*MIN_SIZE_TRAIN"),
        (["RESNET_DET.PER_PIXEL_MEAN", True], "PIXEL_MEAN.*must be the mean of the mean image"),
    ],
)
def test_mistakes_are_named(overrides, words):
    with pytest.raises(ValueError, match=words):
        classifier.train(load_config("c.yaml", ["OUTPUT_DIR", "output/m", *overrides]))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["INPUT.MIN_SIZE_TEST", 24], "crop of 32 pixels.*side is 24 .*MIN_SIZE_TEST"),
        (["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (24,)], "side is 24 .*AUG.MIN_SIZES"),
        (
            ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", ()],
            r"MIN_SIZES: \[\]: give one or more",
        ),
    ],
)
def test_test_images_that_are_too_small_are_named_before_training(overrides, words, tmp_path):
    cfg = load_config("c.yaml", ["OUTPUT_DIR", str(tmp_path / "a"), *overrides])
    with pytest.raises(ValueError, match=words):
        classifier.train(cfg)
    assert not (tmp_path / "a/metrics.json").exists()


def test_a_mean_image_of_another_size_than_the_crops_is_refused(tmp_path):
    file = torch.load(WEIGHTS, weights_only=True)
    file["meta"]["mean_image"] = torch.full((3, 24, 24), 100.0)
    file["meta"]["pixel_mean"] = [100.0] * 3
    torch.save(file, tmp_path / "x.pth")
    keys = ["MODEL.WEIGHTS", str(tmp_path / "x.pth"), "MODEL.PIXEL_MEAN", [100.0] * 3]
    words = r"INPUT.CROP.SIZE: \[32, 32\]: the mean image of .*x.pth has 24 x 24 pixels"
    with pytest.raises(ValueError, match=words):
        top1(tmp_path, *keys, "RESNET_DET.PER_PIXEL_MEAN", True)


def test_unusable_test_images_are_named_before_training(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "imagenet", tmp_path / "imagenet")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = sorted(tmp_path.glob("imagenet/val/*/*.JPEG"))[:11]
    for file in files[:2]:
        file.write_text("no picture")
    keys = ["SOLVER.MAX_ITER", 1, "TEST.PRECISE_BN.ENABLED", False, "OUTPUT_DIR"]
    with pytest.raises(ValueError, match="imagenet_val: 2 images cannot be used") as caught:
        classifier.train(load_config("c.yaml", [*keys, str(tmp_path / "a")]))
    assert all(f"{file}: not an image" in str(caught.value) for file in files[:2])
    assert not (tmp_path / "a/metrics.json").exists()
    keys = ["RESNET_DET.CHECK_IMAGES", False, *keys]
    with pytest.raises(ValueError, match="not an image"):  # after the training
        classifier.train(load_config("c.yaml", [*keys, str(tmp_path / "b")]))
    assert (tmp_path / "b/metrics.json").exists()


def turned(path, order, names=None):
    """The trained classifier with the rows of its last layer, and their names, in another order."""
    file = torch.load(WEIGHTS, weights_only=True)
    assert file["meta"]["classes"] == ["n0", "n1", "n2"]
    for key in ("linear.weight", "linear.bias"):
        file["model"][key] = file["model"][key][order]
    file["meta"]["classes"] = names or [f"n{i}" for i in order]
    torch.save(file, path)
    return str(path)


def top1(tmp_path, *overrides):
    keys = ["OUTPUT_DIR", str(tmp_path / "o"), *overrides]
    return classifier.evaluate(load_config("c.yaml", keys))["classification/top1_error"]


def test_classes_are_matched_by_name(tmp_path):
    """In another order, alone and in an ensemble; other names are an error unless matched by
    order."""
    expected = top1(tmp_path, "MODEL.WEIGHTS", WEIGHTS)
    assert expected < 50
    other = turned(tmp_path / "x.pth", [2, 0, 1])
    assert top1(tmp_path, "MODEL.WEIGHTS", other) == expected
    assert top1(tmp_path, "MODEL.WEIGHTS", WEIGHTS, "RESNET_DET.ENSEMBLE", (other,)) == expected
    assert top1(tmp_path, "MODEL.WEIGHTS", other, "RESNET_DET.CLASSES_BY_ORDER", True) > expected
    named = turned(tmp_path / "y.pth", [0, 1, 2], ["red", "green", "n2"])
    words = "imagenet_val has n0, n1; only .*y.pth has red, green.*CLASSES_BY_ORDER True"
    with pytest.raises(ValueError, match=words):
        top1(tmp_path, "MODEL.WEIGHTS", named)
    by_order = ["RESNET_DET.CLASSES_BY_ORDER", True]
    assert top1(tmp_path, "MODEL.WEIGHTS", named, *by_order) == expected


def test_a_subset_of_the_classes_is_scored_on_the_subset(folder, tmp_path, monkeypatch):
    """Tests on two of the three classes, in another order than the net's."""
    for name in ("n0", "n1"):
        (tmp_path / "imagenet/val").mkdir(parents=True, exist_ok=True)
        (tmp_path / "imagenet/val" / name).symlink_to(folder / "imagenet/val" / name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert top1(tmp_path, "MODEL.WEIGHTS", turned(tmp_path / "x.pth", [1, 2, 0])) == 0
    # A net that takes everything for n2 still chooses among the two.
    file = torch.load(WEIGHTS, weights_only=True)
    file["model"]["linear.bias"][2] += 1000
    torch.save(file, tmp_path / "y.pth")
    assert top1(tmp_path, "MODEL.WEIGHTS", str(tmp_path / "y.pth")) == 0
    words = "imagenet_val has classes that imagenet_train was not trained on"
    (tmp_path / "imagenet/train").symlink_to(tmp_path / "imagenet/val")
    (tmp_path / "all/imagenet").mkdir(parents=True)
    (tmp_path / "all/imagenet/train").symlink_to(tmp_path / "imagenet/val")
    (tmp_path / "all/imagenet/val").symlink_to(folder / "imagenet/val")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "all"))
    with pytest.raises(ValueError, match=words):
        classifier.train(load_config("c.yaml", ["OUTPUT_DIR", str(tmp_path / "t")]))


@pytest.mark.parametrize("classes", [
    ["n0", "n1", "n2"], None, ["n2", "n1", "n0"], ["n2", "a"], ["a", "b", "c"],
])  # fmt: skip
def test_shared_classes_keep_their_rows(classes, tmp_path, monkeypatch, caplog):
    """Matched by name if the file names its classes, otherwise by order."""
    file = torch.load(WEIGHTS, weights_only=True)
    trained = dict(file["model"])
    file["meta"].pop("classes")
    if classes:
        file["meta"]["classes"] = classes
        for key in ("linear.weight", "linear.bias"):
            file["model"][key] = trained[key][: len(classes)]
    torch.save(file, tmp_path / "x.pth")
    begun = []
    monkeypatch.setattr(Trainer, "run", lambda trainer, *_: begun.append(trainer.plain_model.net))
    keys = ["MODEL.WEIGHTS", str(tmp_path / "x.pth"), "OUTPUT_DIR", str(tmp_path / "o")]
    with caplog.at_level("INFO"):
        classifier.train(load_config("c.yaml", keys))
    known = classes or ["n0", "n1", "n2"]
    for key, value in begun[0].state_dict().items():
        if not key.startswith("linear."):
            assert value.equal(trained[key]), key
            continue
        for i, name in enumerate(("n0", "n1", "n2")):
            if name in known:
                assert value[i].equal(trained[key][known.index(name)]), (key, name)
            else:
                assert not any(value[i].equal(row) for row in trained[key]), (key, name)
    assert ("start fresh" in caplog.text) is (known != ["n0", "n1", "n2"])


def test_a_run_is_not_resumed_on_other_classes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).mkdir(parents=True)
        for old, new in (("n0", "n0"), ("n1", "n1"), ("n2", "N2")):
            link = tmp_path / "imagenet" / split / new
            link.symlink_to(folder / "imagenet" / split / old)
    words = "the run to resume has other classes .*DATASETS.TRAIN has N2; only the run has n2"
    with pytest.raises(ValueError, match=words):
        classifier.train(load_config("c.yaml", ["OUTPUT_DIR", "output/a"]), resume=True)


@pytest.mark.parametrize(
    "overrides, words",
    [  # plain-20 has the same tensors as ResNet-20
        (["MODEL.BACKBONE.NAME", "cifar_plain20"], "to resume in output/a trains cifar_resnet20"),
        (["MODEL.PIXEL_MEAN", [0, 0, 0]], "output/a: was trained with MODEL.PIXEL_MEAN"),
    ],
)
def test_a_run_is_not_resumed_with_another_net_or_on_other_pixels(overrides, words):
    with pytest.raises(ValueError, match=words):
        classifier.train(load_config("c.yaml", ["OUTPUT_DIR", "output/a", *overrides]), resume=True)


def test_responses_without_a_test_set_are_refused(tmp_path):
    ours = torch.load(WEIGHTS, weights_only=True)
    config = yaml.safe_load(ours["meta"]["config"])
    config["DATASETS"]["TEST"] = []
    ours["meta"]["config"] = yaml.safe_dump(config)
    torch.save(ours, tmp_path / "model_final.pth")
    with pytest.raises(ValueError, match="model_final.pth: its config has no DATASETS.TEST"):
        classifier.layer_responses(tmp_path)


def test_responses_without_the_weights_are_refused(tmp_path):
    (tmp_path / "responses.json").write_text("{}")
    with pytest.raises(ValueError, match="model_final.pth: no such file"):
        classifier.layer_responses(tmp_path)


def test_members_that_do_not_fit_are_named(tmp_path):
    ours = torch.load(WEIGHTS, weights_only=True)
    for change, words in (
        ({"classes": ["cat"]}, "has other classes than MODEL.WEIGHTS: only .* has cat"),
        ({"format": "RGB"}, "INPUT.FORMAT RGB"),
        ({"mean_image": torch.zeros(3, 32, 32)}, "its mean image differs"),
        (None, "carries no config"),
    ):
        meta = {} if change is None else ours["meta"] | change
        torch.save({"model": ours["model"], "meta": meta}, tmp_path / "x.pth")
        cfg = load_config(
            "c.yaml", ["MODEL.WEIGHTS", WEIGHTS, "RESNET_DET.ENSEMBLE", (str(tmp_path / "x.pth"),)]
        )
        with pytest.raises(ValueError, match=words):
            classifier.evaluate(cfg)
