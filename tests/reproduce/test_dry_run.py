"""The predicted cost of a table: the dry run and its measurements."""

import re
import signal
import subprocess
import sys
from datetime import timedelta
from fractions import Fraction

import pytest
from planned_runs import ERROR, ROOT, environment

from resnet_det.commands import reproduce as tool
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.reproduce import cost, paper, planning
from resnet_det.reproduce.table import TRAIN, Cell, Step, Table
from resnet_det.weights.published import cached_path, url_of


def test_a_dry_run_knows_what_the_steps_before_make(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    measured = []
    monkeypatch.setattr(
        cost, "measure_apart", lambda cfg: measured.append(cfg) or (0.25, "1 s for 4")
    )
    table = paper.TABLES["miniature"]
    plan = planning.plan(table, [1, 2], Fraction(1, 4), tmp_path / "out")
    plan = planning.chosen(table, plan, ["plain20"])
    first, second, third, fourth = cost.predict(plan)
    batches = [cfg.SOLVER.IMS_PER_BATCH for cfg in measured]
    assert len(batches) == 2  # of both seeds
    assert first[:3] == ("plain20_classifier-seed1", 200, 0.25 * 200 * batches[0])
    assert second[:3] == ("plain20-seed1", 250, 0.25 * 250 * batches[1])
    assert (third[1:], fourth[1:]) == (first[1:], second[1:])
    assert first[3] == f"1 s for 4 of the {batches[0]} images of an iteration"
    assert "lacks" in second[4] and "model_final.pth" not in second[4]
    assert measured[1].OUTPUT_DIR == str(tmp_path / "out/plain20-seed1")


def test_a_dry_run_gives_each_row_when_it_is_measured(tmp_path, monkeypatch, capsys):
    """The pretraining of a detector, at its full length and once; what cannot be measured; a
    total."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    seen = []

    def measured(cfg):
        seen.append(capsys.readouterr().out)
        return (None, "no | memory") if cfg.MODEL.BACKBONE.NAME == "paper_vgg16" else (3.0, "3 s")

    monkeypatch.setattr(cost, "measure_apart", measured)
    assert tool.run(tool.parse(["table7", "--weights", "trained", "--dry-run"])) == 0
    seen.append(capsys.readouterr().out)
    assert [text.count("\n") for text in seen] == [2, 1, 2, 1, 4]
    _, _, *rows, _, total = "".join(seen).splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert {row[0]: row[2] for row in rows} == {
        "imagenet_vgg16": "–",
        "VGG16-seed1": "–",
        "VGG16_07pp12-seed1": "–",
        "imagenet_resnet101": str(timedelta(seconds=3 * 256 * 600000)),
        "R101-seed1": str(timedelta(seconds=3 * 2 * 110000)),
        "R101_07pp12-seed1": str(timedelta(seconds=3 * 2 * 140000)),
    }
    assert rows[0][3] == "no \\| memory" and "imagenet_train lacks" in rows[0][4]
    assert "voc_2007_test lacks" in rows[1][4] and "model_final" not in rows[1][4]
    assert f"{3 * (256 * 600000 + 2 * 250000) / 3600:.1f} hours of this device" in total


def test_a_dry_run_from_published_weights_has_no_pretraining(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("RESNET_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cost, "measure_apart", lambda cfg: (3.0, "3 s"))
    assert tool.run(tool.parse(["table7", "--cells", "R101", "--dry-run"])) == 0
    text = capsys.readouterr().out
    assert text.count("-seed1") == 1 and "imagenet" not in text.lower().replace("imagenetpre", "")
    assert "downloads detectron2://ImageNetPretrained/MSRA/R-101.pkl" in text
    (tmp_path / "cache/dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA").mkdir(
        parents=True
    )
    cached_path(url_of("detectron2://ImageNetPretrained/MSRA/R-101.pkl")).touch()
    tool.run(tool.parse(["table7", "--cells", "R101", "--dry-run"]))
    assert "downloads" not in capsys.readouterr().out


def test_the_choice_of_weights_is_refused_where_there_is_none():
    with pytest.raises(ConfigError, match="--weights: no run of table6 starts from ImageNet"):
        tool.run(tool.parse(["table6", "--weights", "trained"]))


def test_an_interrupted_dry_run_promises_no_checkpoints(tmp_path):
    command = [sys.executable, ROOT / "tools/reproduce.py", "table6", "--dry-run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=tmp_path, env=environment(), **pipes)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1] == "interrupted" and process.returncode == 1


def test_a_dry_run_measures_a_detector_and_names_what_is_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "TIME_LIMIT", 1)
    step = Step(TRAIN, "configs/quickstart.yaml", "d")
    table = Table("t", "T", (Cell("d", "d", (step,), (ERROR,)),))
    plan = planning.plan(table, [1], Fraction(1, 4), tmp_path / "out")
    first, second = cost.predict(plan)
    name, iterations, seconds, remark, data = first
    assert (name, iterations) == ("quickstart_classifier", 500) and seconds > 0
    assert re.fullmatch(r"\S+ s and \S+ GiB for (4|8|16|32|64) of the 64 images of .*", remark)
    assert data.startswith("present")  # a program draws the scenes
    _, iterations, seconds, remark, data = second
    assert iterations == 325 and seconds > 0 and "GiB for 1 of the 4 images" in remark
    assert data.startswith("present")  # with what the row before makes
    scratch = planning.own_keys("from_scratch/faster_rcnn_R18.yaml")
    cfg = load_config("faster_rcnn_R18_coco.yaml", scratch)
    for name in ("coco_2014_train", "coco_2014_val", "imagenet_resnet18_a"):
        assert f"lacks {tmp_path}/coco" in cost.needs(cfg) and name in cost.needs(cfg)


def test_a_measurement_ends_in_time():
    """A classifier's steps grow to the batch where there is time, and stay at a few images else."""
    cfg = load_config("cifar/resnet20.yaml", ["SOLVER.IMS_PER_BATCH", 20])
    images, seconds, memory = cost.measure(cfg, 60)
    assert images == 20 and seconds > 0 and memory > 2**20
    assert cost.measure(cfg, 0)[0] == cost.FEW
