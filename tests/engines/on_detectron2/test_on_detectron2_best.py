"""RESNET_DET.BEST on the real Detectron2, with evaluations whose values are given."""

import json
from pathlib import Path

import pytest
import torch

detectron2 = pytest.importorskip("detectron2")

from resnet_det.engines.on_detectron2 import engine
from resnet_det.engines.on_detectron2.trainer import Trainer

pytestmark = pytest.mark.detectron2

EVALUATED = [1, 3, 5, 7, 10]  # iterations; Detectron2 counts one more for the last evaluation
OPTIONS = ["SOLVER.MAX_ITER", "10", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "2",
           "RESNET_DET.BEST.METRIC", "bbox/AP", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "8"]  # fmt: skip


@pytest.fixture
def train(config, monkeypatch, tmp_path):
    """``train(values, folder, ...)`` returns the iterations of the evaluations that were made."""

    def run(values, folder="out", *overrides, resume=False, killed_at=None):
        made = []

        def test(self, cfg, model):
            made.append(self.iter)
            if self.iter == killed_at:
                raise KeyboardInterrupt
            return {"bbox/AP": float(dict(zip([*EVALUATED, 11], [*values, 5]))[self.iter])}

        monkeypatch.setattr(Trainer, "test", test)
        cfg = config("OUTPUT_DIR", str(tmp_path / folder), *OPTIONS, *overrides)
        if killed_at is None:
            engine.train(cfg, resume)
        else:
            with pytest.raises(KeyboardInterrupt):
                engine.train(cfg, resume)
        return made

    return run


def best(folder):
    return torch.load(Path(folder, "model_best.pth"), weights_only=True)


def test_the_best_is_kept_and_patience_ends_the_run(train, tmp_path):
    out = tmp_path / "out"
    assert train([1, 4, 2, 3, 1]) == EVALUATED
    assert best(out)["iteration"] == 3
    same = torch.load(out / "model_0000003.pth", weights_only=True)["model"]
    assert all(torch.equal(value, same[key]) for key, value in best(out)["model"].items())
    assert (out / "last_checkpoint").read_text() == "model_final.pth"

    # The finished run is extended. Its last evaluation was the best, and stays it.
    assert train([1, 4, 2, 3, 6], "longer") == EVALUATED
    assert best(tmp_path / "longer")["iteration"] == 9
    train([0, 0, 0, 0, 0], "longer", "SOLVER.MAX_ITER", "11", resume=True)
    assert best(tmp_path / "longer")["iteration"] == 9

    patient = ("RESNET_DET.BEST.PATIENCE", "2")
    assert train([1, 4, 2, 3, 9], "early", *patient) == [1, 3, 5, 7]
    early = tmp_path / "early"
    final = torch.load(early / "model_final.pth", weights_only=True)
    assert final["iteration"] == 7 and best(early)["iteration"] == 3
    lines = [json.loads(line) for line in (early / "metrics.json").read_text().splitlines()]
    assert max(line["iteration"] for line in lines) == 7


def test_a_resumed_run_keeps_the_same_best(train, tmp_path):
    values, patient = [1, 4, 2, 3, 9], ("RESNET_DET.BEST.PATIENCE", "2")
    train(values, "whole", *patient)
    train(values, "parts", *patient, killed_at=5)
    assert train(values, "parts", *patient, resume=True) == [5, 7]
    whole, parts = best(tmp_path / "whole"), best(tmp_path / "parts")
    assert whole["iteration"] == parts["iteration"] == 3
    finals = [torch.load(tmp_path / f / "model_final.pth", weights_only=True)["model"]
              for f in ("whole", "parts")]  # fmt: skip
    assert all(torch.equal(value, finals[1][key]) for key, value in finals[0].items())
    train(values, "parts", *patient, resume=True)
    assert best(tmp_path / "parts")["iteration"] == 3  # it has ended
