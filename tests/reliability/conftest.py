"""Small runs of each engine, as files."""

import pytest
import yaml
from small_configs import CLASSIFIER, DETECTOR


@pytest.fixture
def configs(tmp_path, few_scenes, monkeypatch):
    """Folder with classifier.yaml and detector.yaml; the scenes are in place."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name, content in (("classifier", CLASSIFIER), ("detector", DETECTOR)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path
