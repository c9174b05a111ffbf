"""A few scenes, and a tiny detector's config for the engine on Detectron2."""

import pytest
import yaml

from resnet_det.data.synthetic.scenes import write_scenes


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_scenes(str(root), trainval=6, test=3, train_crops=8, val_crops=8, size=(48, 64))
    return root


@pytest.fixture(autouse=True)
def datasets(monkeypatch, scenes):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))


@pytest.fixture
def config(tmp_path):
    from tiny_configs import TINY

    from resnet_det.engines.on_detectron2 import engine

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))

    def load(*overrides):
        return engine.load_config(path, ["OUTPUT_DIR", str(tmp_path / "out"), *overrides])

    load.path = path
    return load
