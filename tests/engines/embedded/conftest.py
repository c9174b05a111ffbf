"""A few scenes, and a folder with the configs of a detector and its classifier."""

from pathlib import Path

import pytest
from embedded_configs import CLASSIFIER, DETECTOR

from resnet_det.config.loading import load_config
from resnet_det.data.synthetic import scenes
from resnet_det.engines import classifier


@pytest.fixture(scope="session")
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


@pytest.fixture
def pretrained(folder):
    classifier.train(load_config("classifier.yaml"))
