"""Small runs of each engine, as files."""

import pytest
import yaml
from small_configs import CLASSIFIER, DETECTOR

from resnet_det.data.synthetic import scenes


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    scenes.write_scenes(root, trainval=6, test=1, train_crops=16, val_crops=8, size=(48, 64))
    return root


@pytest.fixture
def configs(tmp_path, few_scenes, monkeypatch):
    """Folder with classifier.yaml and detector.yaml; the scenes are in place."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, content in (("classifier", CLASSIFIER), ("detector", DETECTOR)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path
