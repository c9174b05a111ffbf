"""The embedded engine's classifier: its evaluation, mean image and schedules."""

import os
from pathlib import Path

import pytest
import torch
from embedded_runs import final_weights, lines, tool

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.engines import classifier, embedded
from resnet_det.training import distributed
from resnet_det.training.graph import Graphed


def test_classifier_evaluates_to_what_it_reported(pretrained):
    reported = lines("output/classifier/metrics.json")[-1]
    cfg = load_config("classifier.yaml", ["MODEL.WEIGHTS", "output/classifier/model_final.pth"])
    metrics = classifier.evaluate(cfg)
    assert {k: reported[k] for k in metrics} == metrics
    assert 0 <= metrics["classification/top5_error"] <= metrics["classification/top1_error"] <= 100


def test_a_cuda_graph_on_a_cpu_changes_nothing(folder, monkeypatch):
    runs = {
        graph: ["RESNET_DET.CUDA_GRAPH", graph, "OUTPUT_DIR", f"output/{graph}"]
        for graph in (False, True)
    }
    asked, call = [], Graphed.__call__
    monkeypatch.setattr(Graphed, "__call__", lambda *args: asked.append(None) or call(*args))
    for graph, keys in runs.items():
        classifier.train(load_config("classifier.yaml", keys))
        assert len(asked) == 4 * graph  # one per iteration
    plain, graphed = (final_weights(f"output/{graph}") for graph in runs)
    assert all(torch.equal(value, graphed[name]) for name, value in plain.items())
    monkeypatch.setattr(distributed, "launch_info", lambda: distributed.Launch(0, 2, 0))
    with pytest.raises(ConfigError, match="CUDA_GRAPH: True: needs one process, not 2"):
        classifier.check_schedule(load_config("classifier.yaml", runs[True]))


PER_PIXEL = ["RESNET_DET.PER_PIXEL_MEAN", True, "RESNET_DET.CROP_PADDING", 4]


@pytest.fixture
def mean_image(folder):
    """The mean image of the training crops (3, 36, 36), computed directly from the files."""
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
    with pytest.raises(ConfigError, match="PER_PIXEL_MEAN: False, but .*final.pth has a mean"):
        classifier.evaluate(per_pixel(mean_image, *weights, *plain))
    classifier.train(load_config("classifier.yaml", ["OUTPUT_DIR", "output/plain"]))
    with pytest.raises(ConfigError, match="PER_PIXEL_MEAN: True, but .*has no mean image"):
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

    # One line of config makes it a detector's backbone; the detector subtracts the mean of the
    # mean.
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
    """A run killed during the warm-up resumes to the same weights and learning rates, bit for
    bit."""
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


def test_a_classifiers_learning_rate_falls_along_a_cosine(folder):
    rule = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 0.02]
    classifier.train(load_config("classifier.yaml", [*rule, "SOLVER.MAX_ITER", 2]))
    assert lines("output/classifier/metrics.json")[0]["lr"] == pytest.approx(0.06)  # half-way


def test_metrics_of_several_processes_are_those_of_the_saved_classifier(folder):
    """Batch norms of two processes differ; what is saved is what was evaluated."""
    off = ["TEST.PRECISE_BN.ENABLED", "False"]
    tool("pretrain.py", "--config-file", "classifier.yaml", *off, torchrun=2)
    reported = lines("output/classifier/metrics.json")[-1]
    weights = ["MODEL.WEIGHTS", "output/classifier/model_final.pth"]
    metrics = classifier.evaluate(load_config("classifier.yaml", [*off, *weights]))
    assert {k: reported[k] for k in metrics} == metrics
