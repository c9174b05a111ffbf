"""A table by one command: the plan, the metrics read from runs, shared and resumed runs."""

import json
import os
import statistics
from fractions import Fraction

import pytest
import torch
from planned_runs import CLASSIFIER, ERROR, command, commands, environment

from resnet_det.commands import reproduce as tool
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data.synthetic import scenes
from resnet_det.reproduce import cost, paper, planning, publish, runner
from resnet_det.reproduce.runner import Runner, own_gpus
from resnet_det.reproduce.table import PRETRAIN, TRAIN, Cell, Number, Step, Table

SHORT = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 8, "TEST.PRECISE_BN.ENABLED", False)


def finished(folder, error, iterations=10, commit="abc", evaluated=True):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"SOLVER: {{MAX_ITER: {iterations}}}")
    torch.save({"meta": {"commit": commit}}, folder / "model_final.pth")
    lines = [{"iteration": 4, ERROR.key: 90.0}, {"iteration": iterations - 1, "total_loss": 1.0}]
    if evaluated:
        lines.append({"iteration": iterations - 1, ERROR.key: error})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_table_tells_what_the_runs_say(tmp_path, table):
    fraction = Fraction(1, 50)  # of 500 iterations
    errors = (9.1, 8.7, 9.5)
    for seed, error in enumerate(errors, 1):
        finished(tmp_path / f"a-seed{seed}", error, commit="one" if seed < 3 else "two")
    finished(tmp_path / "b-seed1", 7.0, evaluated=False)  # killed before its final evaluation
    plan = planning.plan(table, [1, 2, 3], fraction, tmp_path)
    _, rows = publish.table_rows(table, plan, fraction)
    mean, spread = statistics.mean(errors), statistics.stdev(errors)
    command = "resnet-det reproduce tiny --cells a --fraction 1/50 --seeds 1 2 3"
    assert rows[0] == [
        "A", "test error %", "8.00", f"{mean:.2f} ± {spread:.2f} (3 seeds)", f"{mean - 8:+.2f}",
        "10 of 500", "one two", command,
    ]  # fmt: skip
    assert [row[3] for row in rows] == [rows[0][3], "not run", "not run"]
    text = publish.publish(table, plan, fraction, tmp_path).read_text()
    assert "shortened to 1/50" in text and "not run" in text
    page = (tmp_path / "tiny.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and f"{mean:.2f} ± {spread:.2f}" in page

    finished(tmp_path / "c-seed1", 7.0, iterations=500)
    with pytest.raises(ConfigError, match="c-seed1: holds a run of 500 iterations, not 10"):
        publish.table_rows(table, plan, fraction)


def test_the_page_says_with_which_other_config_a_run_was_made(tmp_path, table):
    fraction = Fraction(1, 50)
    plan = planning.plan(table, [1], fraction, tmp_path)
    for (cell, _), (run,) in plan.items():
        finished(run.folder, 9.0)
        cfg = run.load_config().clone()
        cfg.defrost()
        cfg.SOLVER.BASE_LR = 0.5 if cell.name == "b" else cfg.SOLVER.BASE_LR
        torch.save({"model": {}, "meta": {"config": cfg.dump()}}, run.weights)
    text = publish.publish(table, plan, fraction, tmp_path).read_text()
    assert text.count("another config") == 1
    assert "b-seed1 was run with another config: SOLVER.BASE_LR 0.5, now 0.1" in text


def test_seeds_that_a_run_would_draw_itself_are_refused(capsys):
    with pytest.raises(SystemExit):
        tool.parse(["table6", "--seeds", "0", "-1"])
    assert "--seeds: '-1': give a whole number of at least 0" in capsys.readouterr().err
    assert tool.parse(["table6", "--seeds", "0", "1"]).seeds == [0, 1]


def test_a_folder_with_another_schedule_is_named_before_the_training(tmp_path, monkeypatch):
    """Even that of a cell that is not chosen, because the page shows all cells."""
    monkeypatch.setattr(tool, "Runner", lambda *_: pytest.fail("a run was started"))
    finished(tmp_path / "resnet32-seed1", 7.0)
    words = ["table6", "--cells", "resnet20", "--output", str(tmp_path)]
    with pytest.raises(
        ConfigError, match="resnet32-seed1: holds a run of 10 iterations, not 64000"
    ):
        tool.run(tool.parse(words))


TOOL = """
start = options.get("MODEL.WEIGHTS")
if start and not pathlib.Path(start).exists():
    sys.exit(f"{start}: is not there")
folder = pathlib.Path(options["OUTPUT_DIR"])
folder.mkdir(parents=True)
"""


def test_runs_are_shared_and_left_alone(tmp_path, monkeypatch):
    """Two cells on one pretraining, at once; again; and a cell that fails."""
    tool = command(tmp_path, monkeypatch, TOOL)
    start = Step(tool, CLASSIFIER, "start")
    more = ("MODEL.WEIGHTS", "{previous}")
    cells = [
        Cell(name, name, (start, Step(tool, CLASSIFIER, name, more)), (ERROR,)) for name in "ab"
    ]
    out = tmp_path / "out"
    plan = planning.plan(Table("tiny", "Tiny", tuple(cells)), [1], Fraction(3, 250), out)
    both = Runner(2, say=lambda text: None)
    for _ in range(2):
        assert both.run_all(plan) == []
        for name in ("start", "a", "b"):
            assert len(commands(out / f"{name}-seed1.log")) == 1, name
    assert str(out / "start-seed1/model_final.pth") in commands(out / "a-seed1.log")[0]

    # What fails is named by its log.
    lost = Step(tool, CLASSIFIER, "lost", ("MODEL.WEIGHTS", "nowhere.pth"))
    table = Table("t", "T", (Cell("lost", "lost", (lost,), (ERROR,)),))
    plan = planning.plan(table, [1], Fraction(1, 500), out)
    (log,) = both.run_all(plan)
    assert runner.last_line(log) == "nowhere.pth: is not there"


# A detector: it makes its weights, in whose folder a second would fail, and meets the other cell.
DETECTOR = """
weights = pathlib.Path(options["MODEL.WEIGHTS"])
if not weights.exists():
    weights.parent.mkdir(parents=True)
    time.sleep(1)
    weights.touch()
folder = pathlib.Path(options["OUTPUT_DIR"])
folder.mkdir(parents=True)
end = time.monotonic() + 30
while len(list(folder.parent.glob("[ab]-seed1/"))) < 2:
    if time.monotonic() > end:
        sys.exit("the other cell waits for more than the weights")
    time.sleep(0.1)
"""


def test_cells_wait_for_a_pretraining_that_they_share(tmp_path, monkeypatch):
    """Two detectors at once on one absent classifier: one makes it, then both go on."""
    tool = command(tmp_path, monkeypatch, DETECTOR)
    weights = tmp_path / "classifier/model_final.pth"
    more = ("MODEL.WEIGHTS", weights)
    cells = [
        Cell(name, name, (Step(tool, "configs/quickstart.yaml", name, more),), (ERROR,))
        for name in "ab"
    ]
    table = Table("tiny", "Tiny", tuple(cells))
    plan = planning.plan(table, [1], Fraction(3, 250), tmp_path / "out")
    failed = Runner(2, say=lambda text: None).run_all(plan)
    assert not failed, runner.last_line(failed[0])
    assert weights.exists() and all(run.metrics() for (run,) in plan.values())


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """The real tool, killed after a checkpoint: the same command, to the same weights."""
    scenes.write_scenes(tmp_path / "data", trainval=1, test=1, train_crops=16, val_crops=8)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    cell = Cell("a", "a", (Step(PRETRAIN, CLASSIFIER, "a", SHORT),), (ERROR,))
    table = Table("tiny", "Tiny", (cell,))
    plan = planning.plan(table, [1], Fraction(3, 250), tmp_path)
    one = Runner(1, say=lambda text: None)
    assert one.run_all(plan) == []
    _, (row,) = publish.table_rows(table, plan, Fraction(3, 250))
    assert "(1 seed)" in row[3] and row[5] == "6 of 500"
    final = tmp_path / "a-seed1/model_final.pth"
    whole = torch.load(final, weights_only=True)["model"]
    final.unlink()
    (tmp_path / "a-seed1/last_checkpoint").write_text("model_0000003.pth")
    assert one.run_all(plan) == []
    again = torch.load(final, weights_only=True)["model"]
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    first, second = commands(tmp_path / "a-seed1.log")
    assert first == second and "--resume" in first


def test_a_cell_for_the_evaluation_server_tells_where_its_files_are(tmp_path):
    table = paper.TABLES["table7"]
    folder = tmp_path / "R101_07pp12-seed1"
    finished(folder, 0.0, iterations=140000)
    plan = planning.plan(table, [1], Fraction(1), tmp_path)
    _, rows = publish.table_rows(table, plan, Fraction(1))
    row = next(row for row in rows if "07++12" in row[0] and "101" in row[0])
    assert row[2] == "73.80, by the evaluation server" and row[3] == f"{folder}/inference"


def test_a_step_that_only_tests_reads_its_results(tmp_path):
    """It names the weights of the run before, trains nothing, and is done when its results are."""
    quick = "configs/quickstart.yaml"
    train = Step(TRAIN, quick, "trained")
    test = Step(TRAIN, quick, "tested", ("MODEL.WEIGHTS", "{previous}"), True)
    cell = Cell("c", "C", (train, test), (Number("bbox/AP50", "AP50", 50.0),))
    table = Table("t", "T", (cell,))
    plan = planning.plan(table, [1], Fraction(1), tmp_path)
    ((first, second),) = plan.values()
    weights = str(tmp_path / "trained-seed1/model_final.pth")
    assert second.command[3] == "--eval-only" and "--resume" not in second.command
    assert second.command[second.command.index("MODEL.WEIGHTS") + 1] == weights
    finished(tmp_path / "trained-seed1", 0.0, iterations=1300)
    assert first.metrics() is not None and second.metrics() is None
    folder = tmp_path / "tested-seed1/inference/scenes_voc_test"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"AP50": 51.5, "classes": {"star": {}}}))
    _, (row,) = publish.table_rows(table, plan, Fraction(1))
    assert row[2:7] == ["50.00", "51.50 (1 seed)", "+1.50", "1,300 of 1,300", "abc"]
    # Trained anew: these are results of a net that is no more.
    results = (folder / "results.json").stat().st_mtime
    os.utime(weights, (results + 1, results + 1))
    assert first.metrics() is not None and second.metrics() is None
    assert publish.table_rows(table, plan, Fraction(1))[1][0][3] == "not run"


def test_a_classifier_that_is_only_tested_reads_its_results(tmp_path):
    (cell,) = (c for c in paper.TABLES["table4"].cells if c.name == "resnet50")
    table = Table("t", "T", (cell,))
    plan = planning.plan(table, [1], Fraction(1), tmp_path)
    finished(tmp_path / "resnet50-seed1", 22.9, iterations=600000)
    assert publish.table_rows(table, plan, Fraction(1))[1][0][3] == "not run"
    folder = tmp_path / "resnet50_dense-seed1/inference/imagenet_val"
    folder.mkdir(parents=True)
    results = {"top1_error": 20.5, "top5_error": 5.0, "images": 50000}
    (folder / "results.json").write_text(json.dumps(results))
    rows = publish.table_rows(table, plan, Fraction(1))[1]
    assert [row[2:5] for row in rows] == [
        ["20.74", "20.50 (1 seed)", "-0.24"], ["5.25", "5.00 (1 seed)", "-0.25"],
    ]  # fmt: skip


def test_a_test_for_the_server_is_done_when_its_file_is_there(tmp_path):
    (cell,) = (c for c in paper.TABLES["table9"].cells if c.name == "context_trainval")
    ((train, test),) = planning.plan(Table("t", "T", (cell,)), [1], Fraction(1), tmp_path).values()
    finished(train.folder, 0.0)
    assert test.metrics() is None
    folder = test.folder / "inference/coco_2017_test-dev"
    folder.mkdir(parents=True)
    assert test.metrics() is None
    (folder / "detections.json").write_text("[]")
    assert test.metrics() == {}


def test_a_table_of_classes_and_what_its_data_lack(tmp_path, monkeypatch):
    """Table 10 from runs on two photographs that stand for VOC 07 test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (tmp_path / "data/VOC2007" / folder).mkdir(parents=True)
    (tmp_path / "data/VOC2007/ImageSets/Main/test.txt").write_text("000001\n000002\n")
    table = paper.TABLES["table10"]
    plan = planning.plan(table, [1], Fraction(1), tmp_path)
    chain = next(chain for (cell, _), chain in plan.items() if cell.name == "R101")
    run = chain[-1]
    finished(run.folder, 0.0, run.iterations)
    last = {"iteration": run.iterations - 1, "bbox/AP50": 15.0}
    (run.folder / "metrics.json").write_text(json.dumps(last))
    (run.folder / "config.yaml").write_text(
        f"SOLVER: {{MAX_ITER: {run.iterations}}}\nDATASETS: {{TEST: [voc_2007_test]}}"
    )
    results = run.folder / "inference/voc_2007_test"
    results.mkdir(parents=True)
    classes = {"cat": {"AP50": 10.0}, "dog": {"AP50": 20.0}, "cow": {"AP50": None}}
    (results / "results.json").write_text(
        json.dumps({"dataset": "voc_2007_test", "AP50": 15.0, "classes": classes})
    )
    text = publish.publish(table, plan, Fraction(1), tmp_path).read_text()
    assert "voc_2007_test has 2 images, but the published set has 4,952;" in text
    (row,) = [line for line in text.splitlines() if "seed 1, voc_2007_test" in line]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["15.0", "10.0", "20.0", "–"]
    assert "<td>20.0</td>" in (tmp_path / "table10.html").read_text()
    cfg = load_config("faster_rcnn_R101.yaml")
    assert "voc_2007_test has 2 images, but the published set has 4,952" in cost.needs(cfg)


def test_a_run_of_several_processes_is_the_planned_one(tmp_path):
    """A run on 4 GPUs has a quarter of the iterations, with 4 times the images."""
    cell = next(c for c in paper.TABLES["table7"].cells if c.name == "R50")
    table = Table("one", "One", (cell,))
    ((run,),) = planning.plan(table, [1], Fraction(1), tmp_path).values()
    run.folder.mkdir(parents=True)
    (run.folder / "model_final.pth").touch()
    line = {"iteration": 27_499, cell.numbers[0].key: 70.0}
    (run.folder / "metrics.json").write_text(json.dumps(line) + "\n")
    config = run.folder / "config.yaml"
    config.write_text("SOLVER: {REFERENCE_WORLD_SIZE: 4, MAX_ITER: 27500}")
    assert run.metrics() == line
    config.write_text("SOLVER: {REFERENCE_WORLD_SIZE: 2, MAX_ITER: 27500}")
    with pytest.raises(ConfigError, match="27500 iterations, not 55000"):
        run.metrics()


@pytest.mark.parametrize(
    "jobs, processes, visible, gpus",
    [
        (4, 1, None, ["0", "1", "2", "3"]),
        (3, 2, None, ["0,1", "2,3", "0,1"]),  # more jobs than groups of GPUs: they share
        (2, 1, "5,7", ["5", "7"]),
    ],
)
def test_each_job_has_its_own_gpus(monkeypatch, jobs, processes, visible, gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2 if visible else 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = [own_gpus(index, processes)["CUDA_VISIBLE_DEVICES"] for index in range(jobs)]
    assert given == gpus
    with pytest.raises(ConfigError, match="--num-gpus 8: this machine has"):
        Runner(1, 8)


def test_jobs_share_a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert own_gpus(3, 2) == {}
