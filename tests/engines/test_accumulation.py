"""RESNET_DET.ACCUMULATE in every engine. tests/training/test_accumulate.py tests the gradients."""

import pytest
import yaml
from small_configs import CLASSIFIER, DETECTOR

from resnet_det.config.loading import load_config
from resnet_det.engines import classifier, pick
from resnet_det.training import accumulate, read_metrics

ENGINES = ["classifier", "torchvision",
           pytest.param("detectron2", marks=pytest.mark.detectron2)]  # fmt: skip
SHORT = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.IMS_PER_BATCH", 4, "DATASETS.TEST", ()]


@pytest.fixture(params=ENGINES)
def engine(request, tmp_path, few_scenes, monkeypatch):
    """The engine, and a function that loads its config."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))
    content = CLASSIFIER if request.param == "classifier" else DETECTOR
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    module = classifier if request.param == "classifier" else pick(request.param)
    load = load_config if request.param == "classifier" else module.load_config
    overrides = [*SHORT, "OUTPUT_DIR", str(tmp_path / "out")]
    return module, lambda *keys: load(tmp_path / "config.yaml", [*overrides, *keys])


def test_a_batch_runs_in_parts(engine, tmp_path, monkeypatch):
    module, load = engine
    sizes, split = [], accumulate.split

    def spied(batch, parts):
        found = split(batch, parts)
        sizes.append([len(p[0]) if isinstance(p, tuple) else len(p) for p in found])
        return found

    monkeypatch.setattr(accumulate, "split", spied)
    module.train(load("RESNET_DET.ACCUMULATE", 2))
    assert sizes == [[2, 2], [2, 2]]
    assert read_metrics(tmp_path / "out" / "metrics.json")[-1]["total_loss"] > 0


def test_parts_must_be_equal(engine):
    module, load = engine
    module.check_schedule(load("RESNET_DET.ACCUMULATE", 4))
    for parts in (3, 8):
        with pytest.raises(ValueError, match=f"RESNET_DET.ACCUMULATE: {parts}: the 4 images"):
            module.check_schedule(load("RESNET_DET.ACCUMULATE", parts))
    with pytest.raises(ValueError, match="RESNET_DET.ACCUMULATE: 0: must be at least 1"):
        load("RESNET_DET.ACCUMULATE", 0)
