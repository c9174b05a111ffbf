"""Tables read back, on the paper's own Tables 10 and 11."""

import json
import math

import pytest

from resnet_det.evaluation import tables
from resnet_det.evaluation.inputs import Evaluation

VOC = (
    "aero bike bird boat bottle bus car cat chair cow table dog horse mbike person plant sheep sofa"
)
VOC = [*VOC.split(" "), "train", "tv"]

# Tables 10 (VOC 2007 test) and 11 (VOC 2012 test): mAP, then the classes
PAPER = """
07 VGG-16 | 73.2 | 76.5 79.0 70.9 65.5 52.1 83.1 84.7 86.4 52.0 81.9 65.7 84.8 84.6 77.5 76.7 38.8 73.6 73.9 83.0 72.6
07 R101 | 76.4 | 79.8 80.7 76.2 68.3 55.9 85.1 85.3 89.8 56.7 87.8 69.4 88.3 88.9 80.9 78.4 41.7 78.6 79.8 85.3 72.0
07 R101+++ | 85.6 | 90.0 89.6 87.8 80.8 76.1 89.9 89.9 89.6 75.5 90.0 80.7 89.6 90.3 89.1 88.7 65.4 88.1 85.6 89.0 86.8
12 VGG-16 | 70.4 | 84.9 79.8 74.3 53.9 49.8 77.5 75.9 88.5 45.6 77.1 55.3 86.9 81.7 80.9 79.6 40.1 72.6 60.9 81.2 61.5
12 R101 | 73.8 | 86.5 81.6 77.2 58.0 51.0 78.6 76.6 93.2 48.6 80.4 59.0 92.1 85.3 84.8 80.7 48.1 77.3 66.5 84.7 65.6
12 R101+++ | 83.8 | 92.1 88.4 84.8 75.9 71.4 86.3 87.8 94.2 66.8 89.4 69.2 93.9 91.9 90.9 89.6 67.9 88.2 76.8 90.3 80.0
"""
PAPER = [[part.strip() for part in line.split("|")] for line in PAPER.strip().splitlines()]


def read(table):
    """[[cell, ...], ...] of a Markdown table without its rule, which is checked."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()]
    assert all(set(cell) <= set("-:") and len(cell) >= 3 for cell in lines[1])
    assert len({len(line) for line in table.splitlines()}) == 1  # aligned
    return [lines[0], *lines[2:]]


def test_the_papers_tables_10_and_11():
    systems = {name: dict(zip(VOC, map(float, aps.split()))) for name, _, aps in PAPER}
    header, rows = tables.system_rows(systems)
    assert header == ["system", "mAP", *VOC]
    assert [row[0] for row in rows] == [name for name, _, _ in PAPER]
    for row, (_, mean, aps) in zip(rows, PAPER):
        assert row[1] == pytest.approx(float(mean), abs=0.0501)
        assert row[2:] == list(map(float, aps.split()))


def test_system_rows_leave_out_what_is_undefined():
    systems = {"ours": {"cat": 10.0, "dog": math.nan}, "theirs": {"cat": 30.0, "cow": 50.0}}
    header, rows = tables.system_rows(systems)
    assert read(tables.markdown_table(rows, header)) == [
        ["system", "mAP", "cat", "dog", "cow"],
        ["ours", "10.0", "10.0", "–", "–"],
        ["theirs", "40.0", "30.0", "–", "50.0"],
    ]


def test_markdown_table():
    rows = [["a|b\nc", 1, None, "x"], ["d", 20, 0.25, 3.0]]
    assert tables.markdown_table(rows, ["name", "n", "value", "mixed"], digits=2) == (
        "| name   |   n |   value | mixed   |\n"
        "|:-------|----:|--------:|:--------|\n"
        "| a\\|b c |   1 |       – | x       |\n"
        "| d      |  20 |    0.25 | 3.00    |\n"
    )
    # Text that looks like a number is shown as it is, and a table may be empty.
    assert read(tables.markdown_table([["007", "1e5"]], ["commit", "size"]))[1] == ["007", "1e5"]
    assert read(tables.markdown_table([], ["class", "AP"])) == [["class", "AP"]]
    with pytest.raises(ValueError, match=r"\['only'\] has 1 cells, but the header 2"):
        tables.markdown_table([["only"]], ["a", "b"])


EVALUATION = Evaluation(
    {"AP": 40.0, "AP50": 60.04},
    {"AP-50": {"AP": 40.0, "AP50": 60.0}, "dog": {"AP": math.nan, "AP50": math.nan}},
)


def test_an_evaluations_tables():
    assert read(tables.class_table(EVALUATION)) == [
        ["class", "AP", "AP50"],
        ["AP-50", "40.0", "60.0"],
        ["dog", "–", "–"],
    ]
    other = Evaluation({"AP": 1.0, "APs": 2.0})
    assert read(tables.summary_table({"one": EVALUATION, "two": other})) == [
        ["", "AP", "AP50", "APs"],
        ["one", "40.0", "60.0", "–"],
        ["two", "1.0", "–", "2.0"],
    ]


def test_flat_metrics_have_detectron2s_keys():
    keys = ["AP", "AP50", "AP-AP-50", "AP-dog", "AP50-AP-50", "AP50-dog"]
    assert list(EVALUATION.metrics) == keys
    assert EVALUATION.metrics["AP50-AP-50"] == 60


def test_json_has_no_nan():
    text = json.dumps(tables.as_json(EVALUATION), allow_nan=False)
    assert json.loads(text) == {
        "AP": 40.0,
        "AP50": 60.04,
        "classes": {"AP-50": {"AP": 40.0, "AP50": 60.0}, "dog": {"AP": None, "AP50": None}},
    }
