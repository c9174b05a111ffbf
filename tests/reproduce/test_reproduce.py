"""A table by one command: the plan, what is read from runs, and runs that are shared and resumed."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from resnet_det.commands import reproduce as tool
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data.synthetic import scenes
from resnet_det.detector.build import build_model
from resnet_det.detector.net_keys import check_appendix
from resnet_det.engines.checks import check_classifier
from resnet_det.reproduce import cost, paper, planning, publish, runner
from resnet_det.reproduce.runner import Runner
from resnet_det.reproduce.table import PRETRAIN, TRAIN, Cell, Number, Step, Table

ROOT = Path(__file__).parents[2]
ERROR = Number("classification/top1_error", "test error %", 8.0)
CLASSIFIER = "configs/quickstart_classifier.yaml"
SHORT = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 8, "TEST.PRECISE_BN.ENABLED", False)


def test_table_6_is_the_papers():
    """The paper's Table 6, and the 64k iterations of its section 4.2."""
    cells = {cell.name: cell for cell in paper.TABLES["table6"].cells}
    published = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.61, 1202: 7.93}
    assert {name: c.numbers[0].paper for name, c in cells.items()} == {
        **{f"resnet{depth}": error for depth, error in published.items()},
        **{f"plain{depth}": None for depth in (20, 32, 44, 56, 110)},
    }
    plan = planning.plan(paper.TABLES["table6"], [1, 2], Fraction(1), "out")
    assert {run.iterations for (run,) in plan.values()} == {64000}
    chosen = planning.chosen(paper.TABLES["table6"], plan, [])
    assert len(chosen) == 2 * 10  # 1,202 layers run only where they are asked for
    with pytest.raises(ConfigError, match="resnet21: table6 has plain20"):
        planning.chosen(paper.TABLES["table6"], plan, ["resnet21"])


def test_a_fraction_cuts_the_schedule():
    plan = planning.plan(paper.TABLES["table6"], [3], Fraction(1, 64), "out")
    run = next(chain[0] for (cell, _), chain in plan.items() if cell.name == "resnet110")
    options = dict(zip(run.command[4::2], run.command[5::2]))
    assert run.command[:4] == [
        PRETRAIN, "--config-file", "configs/cifar/resnet110.yaml", "--resume",
    ]  # fmt: skip
    assert options["SOLVER.MAX_ITER"] == "1000" and options["SOLVER.STEPS"] == "(500, 750)"
    assert options["SEED"] == "3" and options["OUTPUT_DIR"] == "out/resnet110-seed3"
    assert (run.iterations, run.full_iterations) == (1000, 64000)
    for text in ("0", "2", "1/0", "half"):
        with pytest.raises(ConfigError, match="--fraction"):
            planning.parse_fraction(text)
    assert planning.parse_fraction("0.05") == Fraction(1, 20)


def finished(folder, error, iterations=10, commit="abc", evaluated=True):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"SOLVER: {{MAX_ITER: {iterations}}}")
    torch.save({"meta": {"commit": commit}}, folder / "model_final.pth")
    lines = [{"iteration": 4, ERROR.key: 90.0}, {"iteration": iterations - 1, "total_loss": 1.0}]
    if evaluated:
        lines.append({"iteration": iterations - 1, ERROR.key: error})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def table(monkeypatch):
    cells = [
        Cell(name, name.upper(), (Step(PRETRAIN, CLASSIFIER, name),), (ERROR,)) for name in "abc"
    ]
    return Table("tiny", "Tiny | <b>", tuple(cells))


def test_the_table_tells_what_the_runs_say(tmp_path, table):
    fraction = Fraction(1, 30)  # of 300 iterations
    errors = (9.1, 8.7, 9.5)
    for seed, error in enumerate(errors, 1):
        finished(tmp_path / f"a-seed{seed}", error, commit="one" if seed < 3 else "two")
    finished(tmp_path / "b-seed1", 7.0, evaluated=False)  # killed before its final evaluation
    plan = planning.plan(table, [1, 2, 3], fraction, tmp_path)
    _, rows = publish.table_rows(table, plan, fraction)
    mean, spread = statistics.mean(errors), statistics.stdev(errors)
    command = "resnet-det reproduce tiny --cells a --fraction 1/30 --seeds 1 2 3"
    assert rows[0] == [
        "A", "test error %", "8.00", f"{mean:.2f} ± {spread:.2f} (3 seeds)", f"{mean - 8:+.2f}",
        "10 of 300", "one two", command,
    ]  # fmt: skip
    assert [row[3] for row in rows] == [rows[0][3], "not run", "not run"]
    text = publish.publish(table, plan, fraction, tmp_path).read_text()
    assert "shortened to 1/30" in text and "not run" in text
    page = (tmp_path / "tiny.html").read_text()
    assert "&lt;b&gt;" in page and "<b>" not in page and f"{mean:.2f} ± {spread:.2f}" in page

    finished(tmp_path / "c-seed1", 7.0, iterations=300)
    with pytest.raises(ConfigError, match="c-seed1: holds a run of 300 iterations, not of 10"):
        publish.table_rows(table, plan, fraction)


def commands(log):
    return [line for line in Path(log).read_text().splitlines() if line.startswith("$ ")]


# Stands for a command where only its place in the plan matters: as quick as a process can be. Its
# options, and what a finished run leaves:
OPTIONS = """
import json, pathlib, sys, time
words = [word for word in sys.argv[3:] if word != "--resume"]
options = dict(zip(words[::2], words[1::2]))
"""
FINISHED = """
(folder / "config.yaml").write_text("SOLVER: {MAX_ITER: %s}" % options["SOLVER.MAX_ITER"])
line = {"iteration": int(options["SOLVER.MAX_ITER"]) - 1, "classification/top1_error": 50.0}
(folder / "metrics.json").write_text(json.dumps(line))
(folder / "model_final.pth").touch()
"""
TOOL = """
start = options.get("MODEL.WEIGHTS")
if start and not pathlib.Path(start).exists():
    sys.exit(f"{start}: is not there")
folder = pathlib.Path(options["OUTPUT_DIR"])
folder.mkdir(parents=True)
"""


def command(folder, monkeypatch, does):
    """The name of a module that stands for a command."""
    (folder / "stand_in.py").write_text(OPTIONS + does + FINISHED)
    path = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return "stand_in"


def test_runs_are_shared_and_left_alone(tmp_path, monkeypatch):
    """Two cells on one pretraining, at once; again; and a cell that fails."""
    tool = command(tmp_path, monkeypatch, TOOL)
    start = Step(tool, CLASSIFIER, "start")
    more = ("MODEL.WEIGHTS", "{previous}")
    cells = [
        Cell(name, name, (start, Step(tool, CLASSIFIER, name, more)), (ERROR,)) for name in "ab"
    ]
    out = tmp_path / "out"
    plan = planning.plan(Table("tiny", "Tiny", tuple(cells)), [1], Fraction(1, 50), out)
    both = Runner(2, lambda text: None)
    for _ in range(2):
        assert both.run_all(plan) == []
        for name in ("start", "a", "b"):
            assert len(commands(out / f"{name}-seed1.log")) == 1, name
    assert str(out / "start-seed1/model_final.pth") in commands(out / "a-seed1.log")[0]

    # What fails is named by its log.
    lost = Step(tool, CLASSIFIER, "lost", ("MODEL.WEIGHTS", "nowhere.pth"))
    table = Table("t", "T", (Cell("lost", "lost", (lost,), (ERROR,)),))
    plan = planning.plan(table, [1], Fraction(1, 300), out)
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
    plan = planning.plan(table, [1], Fraction(1, 50), tmp_path / "out")
    failed = Runner(2, lambda text: None).run_all(plan)
    assert not failed, runner.last_line(failed[0])
    assert weights.exists() and all(run.metrics() for (run,) in plan.values())


def environment():
    """Of a command of this checkout, in another folder and on one core."""
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(filter(None, path))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    """The real tool, killed after a checkpoint: the same command, to the same weights."""
    scenes.write_scenes(tmp_path / "data", trainval=1, test=1, train_crops=16, val_crops=8)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    cell = Cell("a", "a", (Step(PRETRAIN, CLASSIFIER, "a", SHORT),), (ERROR,))
    table = Table("tiny", "Tiny", (cell,))
    plan = planning.plan(table, [1], Fraction(1, 50), tmp_path)
    one = Runner(1, lambda text: None)
    assert one.run_all(plan) == []
    _, (row,) = publish.table_rows(table, plan, Fraction(1, 50))
    assert "(1 seed)" in row[3] and row[5] == "6 of 300"
    final = tmp_path / "a-seed1/model_final.pth"
    whole = torch.load(final, weights_only=True)["model"]
    final.unlink()
    (tmp_path / "a-seed1/last_checkpoint").write_text("model_0000003.pth")
    assert one.run_all(plan) == []
    again = torch.load(final, weights_only=True)["model"]
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    first, second = commands(tmp_path / "a-seed1.log")
    assert first == second and "--resume" in first


def test_tables_7_and_8_and_the_miniature_are_the_papers():
    """The paper's Tables 7 and 8; every cell's config exists and every number has its place."""
    numbers = {c.name: [n.paper for n in c.numbers] for c in paper.TABLES["table7"].cells}
    assert numbers["VGG16"] + numbers["VGG16_07pp12"] == [73.2, 70.4]
    assert numbers["R101"] + numbers["R101_07pp12"] == [76.4, 73.8]
    assert planning.plan(paper.TABLES["table7"], [1], Fraction(1), "out")
    coco = {cell.name: [n.paper for n in cell.numbers] for cell in paper.TABLES["table8"].cells}
    assert (coco["VGG16"], coco["R101"]) == ([41.5, 21.2], [48.4, 27.2])
    runs = planning.plan(paper.TABLES["miniature"], [1, 2], Fraction(1, 4), "out")
    chain = next(
        chain for (cell, seed), chain in runs.items() if (cell.name, seed) == ("plain20", 2)
    )
    assert [run.iterations for run in chain] == [200, 250]
    assert "out/plain20_classifier-seed2/model_final.pth" in chain[1].command


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
    """The pretraining of a detector, at its full length and once; what cannot be measured; a total."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    seen = []

    def measured(cfg):
        seen.append(capsys.readouterr().out)
        return (None, "no | memory") if cfg.MODEL.BACKBONE.NAME == "paper_vgg16" else (3.0, "3 s")

    monkeypatch.setattr(cost, "measure_apart", measured)
    assert tool.run(tool.parse(["table7", "--dry-run"])) == 0
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


def test_an_interrupted_dry_run_promises_no_checkpoints(tmp_path):
    command = [sys.executable, ROOT / "tools/reproduce.py", "table6", "--dry-run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, cwd=tmp_path, env=environment(), **pipes)
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1] == "interrupted" and process.returncode == 1


# The paper's Tables 2 to 5 and 9 to 11: cell -> numbers, in the table's order.
PUBLISHED = {
    "table2": {"plain18": [27.94], "resnet18_a": [27.88], "plain34": [28.54], "resnet34_a": [25.03]},
    "table3": {
        "vgg16": [28.07, 9.33], "plain34": [28.54, 10.02], "resnet34_a": [25.03, 7.76],
        "resnet34_b": [24.52, 7.46], "resnet34_c": [24.19, 7.40], "resnet50": [22.85, 6.71],
        "resnet101": [21.75, 6.05], "resnet152": [21.43, 5.71],
    },
    "table4": {
        "resnet34_b": [21.84, 5.71], "resnet34_c": [21.53, 5.60], "resnet50": [20.74, 5.25],
        "resnet101": [19.87, 4.60], "resnet152": [19.38, 4.49],
    },
    "table5": {"ensemble": [None]},  # the paper's is of the test set
    "table9": {
        "VGG16": [41.5, 21.2], "R101": [48.4, 27.2], "refine": [49.9, 29.9],
        "context": [51.1, 30.0], "multiscale": [53.8, 32.5], "context_trainval": [53.3, 32.2],
        "multiscale_trainval": [55.7, 34.9], "ensemble": [59.0, 37.4],
    },
    "table10": {"VGG16": [73.2], "R101": [76.4], "R101_coco_voc": [85.6]},
    "table11": {"VGG16_07pp12": [70.4], "R101_07pp12": [73.8], "R101_coco_voc_07pp12": [83.8]},
}  # fmt: skip


@pytest.fixture(scope="module")
def chains():
    """{table: {cell: its runs}} of every table, planned as for the same output folder."""
    plans = {
        name: planning.plan(table, [1], Fraction(1), "out") for name, table in paper.TABLES.items()
    }
    return {name: {c.name: runs for (c, _), runs in plan.items()} for name, plan in plans.items()}


def test_every_table_is_the_papers(chains):
    """Its numbers; and every cell's config loads, with what the cell changes in it."""
    for name, published in PUBLISHED.items():
        cells = {cell.name: [n.paper for n in cell.numbers] for cell in paper.TABLES[name].cells}
        assert cells == published, name
    for cells in chains.values():
        for run in (run for runs in cells.values() for run in runs):
            cfg = run.load_config()
            assert Path(cfg.OUTPUT_DIR) == run.folder
            if cfg.MODEL.META_ARCHITECTURE == "Classifier":
                check_classifier(cfg)
            else:
                check_appendix(cfg)


def test_tables_share_their_trainings(chains):
    """A folder means one command, in whichever table; so Table 4 trains nothing that 3 did not."""
    commands = {}
    for name, cells in chains.items():
        for run in (run for runs in cells.values() for run in runs):
            place = paper.TABLES[name].runs or name, run.folder
            assert commands.setdefault(place, run.command) == run.command

    def trained(*names):
        runs = [run for name in names for runs in chains[name].values() for run in runs]
        return {run.folder.name.removesuffix("-seed1") for run in runs if not run.tested}

    assert trained("table3") >= trained("table4")
    assert trained("table2") - trained("table3") == {"plain18", "resnet18_a"}
    assert trained("table5") - trained("table4") == {"resnet152_second"}
    coco = "R101_coco"
    assert trained("table9") - trained("table8") == {
        f"{coco}_context", *(f"{coco}_trainval{x}" for x in ("", "_second", "_third"))
    }  # fmt: skip
    assert trained("table10") - trained("table7") == {f"{coco}_trainval", f"{coco}_voc"}


def test_ensembles_are_of_different_weights(chains):
    """Six nets of which two have 152 layers (Table 5), three detectors (Table 9): none twice."""
    for table, count in (("table5", 6), ("table9", 3)):
        *members, test = chains[table]["ensemble"]
        cfg = test.load_config()
        files = [cfg.MODEL.WEIGHTS, *cfg.RESNET_DET.ENSEMBLE]
        assert sorted(files) == sorted(str(run.weights) for run in members)
        trained = {
            (config.MODEL.BACKBONE.NAME, config.SEED)
            for config in (run.load_config() for run in members)
        }
        assert len(trained) == len(set(files)) == count
        assert set(test.reads) == set(members)
        assert test.command[3] == "--eval-only" and test.tested is members[-1]


def test_baseline_plus_plus_plus_changes_the_class_layers_alone(chains):
    """COCO's detector fits the VOC config that it starts, but for the layers of the classes."""
    start, fine = chains["table10"]["R101_coco_voc"]
    shapes = []
    for run in (start, fine):
        cfg = run.load_config()
        with torch.device("meta"):
            shapes.append({k: v.shape for k, v in build_model(cfg).state_dict().items()})
    assert fine.command[fine.command.index("MODEL.WEIGHTS") + 1] == str(start.weights)
    assert shapes[0].keys() == shapes[1].keys()
    changed = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert changed and all("predictor." in key for key in changed)


def test_a_cell_for_the_evaluation_server_tells_where_its_files_are(tmp_path):
    table = paper.TABLES["table7"]
    folder = tmp_path / "R101_07pp12-seed1"
    finished(folder, 0.0, iterations=140000)
    plan = planning.plan(table, [1], Fraction(1), tmp_path)
    _, rows = publish.table_rows(table, plan, Fraction(1))
    row = next(row for row in rows if "07++12" in row[0] and "101" in row[0])
    assert row[2] == "73.80, by the evaluation server" and row[3] == f"{folder}/inference"


def test_a_dry_run_measures_a_detector_and_names_what_is_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "TIME_LIMIT", 1)
    step = Step(TRAIN, "configs/quickstart.yaml", "d")
    table = Table("t", "T", (Cell("d", "d", (step,), (ERROR,)),))
    plan = planning.plan(table, [1], Fraction(1, 4), tmp_path / "out")
    first, second = cost.predict(plan)
    name, iterations, seconds, remark, data = first
    assert (name, iterations) == ("quickstart_classifier", 300) and seconds > 0
    assert re.fullmatch(r"\S+ s and \S+ GiB for (4|8|16|32|64|128) of the 128 images of .*", remark)
    assert data.startswith("there")  # a program draws the scenes
    _, iterations, seconds, remark, data = second
    assert iterations == 300 and seconds > 0 and "GiB for 1 of the 4 images" in remark
    assert data.startswith("there")  # with what the row before makes
    cfg = load_config("faster_rcnn_R18_coco.yaml")
    for name in ("coco_2014_train", "coco_2014_val", "imagenet_resnet18_a"):
        assert f"lacks {tmp_path}/coco" in cost.needs(cfg) and name in cost.needs(cfg)


def test_a_measurement_ends_in_time():
    """A classifier's steps grow to the batch where there is time, and stay at a few images else."""
    cfg = load_config("cifar/resnet20.yaml", ["SOLVER.IMS_PER_BATCH", 20])
    images, seconds, memory = cost.measure(cfg, 60)
    assert images == 20 and seconds > 0 and memory > 2**20
    assert cost.measure(cfg, 0)[0] == cost.FEW


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
    finished(tmp_path / "trained-seed1", 0.0, iterations=1200)
    assert first.metrics() is not None and second.metrics() is None
    folder = tmp_path / "tested-seed1/inference/scenes_voc_test"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"AP50": 51.5, "classes": {"star": {}}}))
    _, (row,) = publish.table_rows(table, plan, Fraction(1))
    assert row[2:7] == ["50.00", "51.50 (1 seed)", "+1.50", "1,200 of 1,200", "abc"]
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
    (results / "results.json").write_text(json.dumps({"AP50": 15.0, "classes": classes}))
    text = publish.publish(table, plan, Fraction(1), tmp_path).read_text()
    assert "voc_2007_test has 2 images, the published set 4,952." in text
    (row,) = [line for line in text.splitlines() if "seed 1, voc_2007_test" in line]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["15.0", "10.0", "20.0", "–"]
    assert "<td>20.0</td>" in (tmp_path / "table10.html").read_text()
    cfg = load_config("faster_rcnn_R101.yaml")
    assert "voc_2007_test has 2 images, the published set 4,952" in cost.needs(cfg)
