"""Compare two evaluated runs."""

import numpy as np
import pytest

from resnet_det.commands import compare
from resnet_det.data import Dataset, Metadata
from resnet_det.engines.results import score

pytest.importorskip("hotcoco")
NAME = "scenes_voc_test"
CLASSES = ("cat", "dog")


def box(x, label):
    return {"bbox": [x, 10, x + 50, 60], "bbox_mode": 0, "category_id": label}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run A misses the objects of the first image; run B finds all objects."""
    root = tmp_path_factory.mktemp("runs")
    records = [
        {"image_id": f"{number:06}", "annotations": [box(10, 0), box(200, number % 2)]}
        for number in range(20)
    ]
    dataset = Dataset(NAME, records, Metadata(NAME, CLASSES, "voc_2007", split="test"))
    for run in "ab":
        found = [
            {
                "image_id": record["image_id"],
                "boxes": np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4),
                "scores": np.full(len(record["annotations"]), 0.9),
                "classes": np.array([a["category_id"] for a in record["annotations"]], dtype=int),
            }
            for record in dataset.records
        ]
        if run == "a":
            found[0] |= {
                "boxes": np.zeros((0, 4)),
                "scores": np.zeros(0),
                "classes": np.zeros(0, int),
            }
        score(dataset, found, root / run / "inference" / NAME)
    return root, dataset


@pytest.fixture(autouse=True)
def read_again(runs, monkeypatch):
    monkeypatch.setattr(compare, "load_dataset", lambda name, skip_bad: runs[1])


def rows(text):
    return {
        cells[0]: [float(cell) for cell in cells[1:]]
        for line in text.splitlines()
        if line.startswith("|") and line.count("|") > 3
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
        if cells[1].replace(".", "").isdigit()
    }


def test_difference_interval_and_changed_image(runs, capsys):
    root, dataset = runs
    compare.main([str(root / "a"), str(root / "b")])
    table = rows(capsys.readouterr().out)
    a, b, difference, low, high = table["AP"]
    assert b == 100 and a < 100 and difference == pytest.approx(100 - a, abs=0.011)
    assert 0 <= low <= difference <= high
    assert table[str(dataset.records[0]["image_id"])] == [0, 100, 100]
    assert str(dataset.records[1]["image_id"]) not in table
    assert set(dataset.metadata.classes) <= table.keys()


def test_equal_runs_differ_by_nothing(runs, capsys):
    root, _ = runs
    compare.main([str(root / "b"), str(root / "b")])
    assert rows(capsys.readouterr().out)["AP"] == [100, 100, 0, 0, 0]


def test_wrong_runs_are_named(runs, tmp_path):
    root, _ = runs
    with pytest.raises(ValueError, match="holds no inference"):
        compare.main([str(root / "a"), str(tmp_path)])
    other = tmp_path / "c" / "inference" / "other"
    other.mkdir(parents=True)
    (other / "results.json").write_text('{"dataset": "other"}')
    with pytest.raises(ValueError, match=f"different datasets: .* on {NAME}; .* on other"):
        compare.main([str(root / "a"), str(tmp_path / "c")])
    (other / "results.json").write_text(f'{{"dataset": "{NAME}"}}')
    with pytest.raises(ValueError, match="detections.json: .*: evaluate the run again"):
        compare.main([str(root / "a"), str(tmp_path / "c")])
