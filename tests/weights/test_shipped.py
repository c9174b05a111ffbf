"""The weights and pictures inside the package: they reach their accuracy, and every tool finds
them."""

import pytest
import torch

from resnet_det.commands import demo
from resnet_det.config.loading import load_config
from resnet_det.data.synthetic import scenes
from resnet_det.data.synthetic.drawing import CLASSES
from resnet_det.engines import classifier, embedded, pretrain
from resnet_det.weights.loading import read
from resnet_det.weights.pickles import WeightsError
from resnet_det.weights.shipped import FOLDER, pictures

DETECTOR, CLASSIFIER = "resnet_det://quickstart", "resnet_det://quickstart_classifier"


@pytest.fixture
def few_scenes(tmp_path, monkeypatch):
    """The first images of the real test sets, in the folder of the datasets."""
    scenes.write_scenes(tmp_path, trainval=1, test=40, train_crops=8, val_crops=200)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_the_detector_keeps_its_ap(few_scenes):
    cfg = ["MODEL.WEIGHTS", DETECTOR, "DATASETS.TEST", ("scenes_voc_test",)]
    metrics = embedded.evaluate(load_config("quickstart.yaml", cfg))
    assert metrics["bbox/AP50"] == pytest.approx(75, abs=1.5)


def test_the_classifier_keeps_its_error(few_scenes):
    cfg = load_config("quickstart_classifier.yaml", ["MODEL.WEIGHTS", CLASSIFIER])
    assert classifier.evaluate(cfg)["classification/top1_error"] == pytest.approx(3, abs=1)


@pytest.mark.parametrize("address", [DETECTOR, CLASSIFIER])
def test_a_file_states_how_it_was_trained(address):
    _, facts = read(address)
    assert facts["classes"] == list(CLASSES) and facts["net"] == "cifar_resnet20"
    assert (facts["seed"], facts["format"], "guessed" in facts) == (1, "BGR", False)
    assert facts["commit"] and not facts["commit"].endswith("+")


def test_the_package_stays_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6


def test_the_demo_needs_no_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo.main([])
    *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == len(pictures()) == 2
    for line in lines:
        path, _, found = line.partition(": ")
        names = {counted.split()[1] for counted in found.split(", ")}
        assert (tmp_path / path).is_file() and names <= set(CLASSES)


def test_a_detector_starts_from_the_classifier(monkeypatch):
    cfg = load_config("quickstart.yaml", ["MODEL.WEIGHTS", CLASSIFIER])
    assert pretrain.needed(cfg) is None
    model = embedded.build_model(cfg)
    embedded.load_to_train(model, cfg, CLASSES)
    state = read(CLASSIFIER)[0]
    assert torch.equal(model.backbone.stem.conv1.weight, state["stem.conv1.weight"])


@pytest.mark.detectron2
def test_a_detector_on_detectron2_starts_from_the_classifier_and_reads_the_detector():
    from resnet_det.engines.on_detectron2 import engine
    from resnet_det.engines.on_detectron2.checkpointer import (
        Checkpointer,
        build_model,
        load_trained,
    )

    cfg = engine.load_config("quickstart.yaml", ["MODEL.WEIGHTS", CLASSIFIER])
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg, classes=CLASSES).load(CLASSIFIER, checkpointables=[])
    state = read(CLASSIFIER)[0]
    assert torch.equal(model.backbone.stem.conv1.weight, state["stem.conv1.weight"])
    cfg = engine.load_config("quickstart.yaml", ["MODEL.WEIGHTS", DETECTOR])
    model, _ = load_trained(cfg)
    state = read(DETECTOR)[0]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(WeightsError, match=r"quikstart: .* did you mean quickstart\?"):
        read("resnet_det://quikstart")
