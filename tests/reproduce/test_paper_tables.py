"""The paper's tables as data: their cells, numbers, schedules and shared trainings."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch

from resnet_det.config.defaults import ConfigError
from resnet_det.detector.build import build_model
from resnet_det.detector.net_keys import check_appendix
from resnet_det.engines.checks import check_classifier
from resnet_det.reproduce import paper, planning, publish
from resnet_det.reproduce.table import PRETRAIN


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
    """The numbers are the paper's, and every cell's config loads with the cell's overrides."""
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


# The other systems of the paper's Tables 3 to 6, in the paper's order.
CITED = {
    "table3": [9.15, 24.27, 7.38],
    "table4": [8.43, 7.89, 24.4, 7.1, 21.59, 5.71, 21.99, 5.81],
    "table5": [7.32, 6.66, 6.8, 4.94, 4.82],
    "table6": [9.38, 8.81, 8.22, 8.39, 7.54, 8.80],
}


@pytest.mark.parametrize("name", CITED)
def test_a_table_shows_the_systems_that_the_paper_compares_with(name):
    _, rows = publish.table_rows(paper.TABLES[name], {}, Fraction(1))
    assert [float(row[2]) for row in rows if row[3] == "cited by the paper"] == CITED[name]


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
