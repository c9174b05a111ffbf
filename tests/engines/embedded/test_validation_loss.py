"""RESNET_DET.VAL_LOSS in the embedded engine; Detectron2's losses are compared beside its tests."""

from pathlib import Path

import pytest
import torch
import yaml
from embedded_runs import final_weights, lines
from small_configs import DETECTOR

from resnet_det.config.defaults import ConfigError
from resnet_det.data.jitter import NO_JITTER
from resnet_det.engines import embedded, results
from resnet_det.engines.embedded_data import training_mapper
from resnet_det.engines.validation import validation_config

SETS = ("scenes_voc_test", "scenes_coco_test")
LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")


@pytest.fixture
def config(folder):
    Path("small.yaml").write_text(yaml.safe_dump(DETECTOR))
    keys = ["SOLVER.MAX_ITER", 6, "SOLVER.STEPS", (4,), "TEST.EVAL_PERIOD", 2,
            "INPUT.CROP.ENABLED", True, "RESNET_DET.COLOR_PCA", True,
            "RESNET_DET.COLOR_JITTER.CONTRAST", (0.5, 1.5),
            "INPUT.RANDOM_FLIP", "vertical"]  # fmt: skip
    return lambda output, *more: embedded.load_config(
        "small.yaml", [*keys, "OUTPUT_DIR", f"output/{output}", *more]
    )


def without(line, *parts):
    return {k: v for k, v in line.items() if not any(part in k for part in parts)}


def test_training_is_the_same_with_it_and_after_a_resumption(config):
    """Bit for bit: the weights, the batch norms that learn, and the lines of metrics."""
    on = ["RESNET_DET.VAL_LOSS", True]
    embedded.train(config("without"))
    embedded.train(config("with", *on))
    cut = config("cut", *on)
    embedded.train(cut)
    Path("output/cut/last_checkpoint").write_text("model_0000002.pth")
    Path("output/cut/model_final.pth").unlink()
    embedded.train(cut, resume=True)
    expected = final_weights("output/without")
    assert any("running_mean" in key for key in expected)
    for output in ("with", "cut"):
        found = final_weights(f"output/{output}")
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    clock = ("time", "eta")
    plain, seen, resumed = (
        [without(line, *clock) for line in lines(f"output/{o}/metrics.json")]
        for o in ("without", "with", "cut")
    )
    assert [repr(line) for line in seen] == [repr(line) for line in resumed]
    assert [repr(without(line, "val_")) for line in seen] == [repr(line) for line in plain]
    evaluations = [line for line in seen if "total_loss" not in line]
    assert [line["iteration"] for line in evaluations] == [1, 3, 5]
    for line in evaluations:
        parts = [line[f"val_{name}"] for name in LOSSES]
        assert min(parts) > 0 and line["val_total_loss"] == pytest.approx(sum(parts))
    assert "Loss on the test sets" in Path("output/with/report.html").read_text()


def test_the_report_shows_every_evaluation(config, monkeypatch):
    """The last one, too, whose line is written to metrics.json after the report."""
    drawn = []
    monkeypatch.setattr(results, "write_report", lambda *args, **_: drawn.append(args[3]))
    embedded.train(config("report"))
    shown = [line["iteration"] for line in drawn[-1] if "bbox/AP50" in line]
    assert shown == [1, 3, 5]


def test_several_sets_and_processes(config, monkeypatch):
    """Each set is named. Two processes that share the images give the same means."""
    from resnet_det.engines import validation
    from resnet_det.training import distributed

    seen = []
    monkeypatch.setattr(
        validation, "mean_losses",
        lambda model, batches: seen.append((model, list(batches))) or {"total_loss": 1.0},
    )  # fmt: skip
    metrics = embedded.train(config("sets", "DATASETS.TEST", SETS, "RESNET_DET.VAL_LOSS", True,
                                    "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()))  # fmt: skip
    assert all(metrics[f"{name}/val_total_loss"] == 1.0 for name in SETS)
    monkeypatch.undo()
    (model, batches), _ = seen
    assert len(batches) == 4
    shapes = {tuple(sample["image"].shape[1:]) for (sample,) in batches}
    assert {min(shape) for shape in shapes} == {48}  # MIN_SIZE_TEST, not cropped
    whole = validation.mean_losses(model, batches)
    parts = []
    for part in (batches[:1], batches[1:]):
        monkeypatch.setattr(distributed, "gather_objects", lambda own: parts.append(own) or [])
        assert validation.mean_losses(model, part) == {}
    monkeypatch.setattr(distributed, "gather_objects", lambda _: parts)
    assert validation.mean_losses(model, []) == pytest.approx(whole)


def test_its_images_are_not_augmented(config):
    cfg = config("plain")
    assert training_mapper(cfg).jitter != NO_JITTER
    mapper = training_mapper(validation_config(cfg))
    assert (mapper.jitter, mapper.color_pca, mapper.flip, mapper.crop) == (
        NO_JITTER, False, "none", None
    )  # fmt: skip


def test_it_needs_a_test_set(config):
    with pytest.raises(ConfigError, match="VAL_LOSS: True: name a dataset in DATASETS.TEST"):
        embedded.train(config("none", "RESNET_DET.VAL_LOSS", True, "DATASETS.TEST", ()))
