"""Compare two evaluated runs."""

import re
import shutil

import numpy as np
import pytest

from resnet_det.commands import compare
from resnet_det.data import Dataset, Metadata
from resnet_det.engines.class_matching import match_test_set
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
    """The runs' test set under any name."""
    known = runs[1]
    monkeypatch.setattr(compare, "load_dataset", lambda name, skip_bad: known)


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
    cat, dog = (table[name] for name in dataset.metadata.classes)
    assert cat[2] > 0 and 0 <= cat[3] <= cat[2] <= cat[4] and cat[4] > cat[3]
    assert dog == [100, 100, 0, 0, 0]


def test_equal_runs_differ_by_nothing(runs, capsys):
    root, _ = runs
    compare.main([str(root / "b"), str(root / "b")])
    text = capsys.readouterr().out
    assert rows(text)["AP"] == [100, 100, 0, 0, 0]
    assert "F1 of image" not in text and "The F1 score of no image changed." in text


def test_the_same_images_may_have_two_names(runs, tmp_path, capsys):
    root, _ = runs
    shutil.copytree(root / "b/inference" / NAME, tmp_path / "inference/copy")
    file = tmp_path / "inference/copy/results.json"
    file.write_text(file.read_text().replace(NAME, "copy"))
    compare.main([str(root / "a"), str(tmp_path)])
    text = capsys.readouterr().out
    assert text.startswith(f"{NAME}, in B copy: A is ") and rows(text)["AP"][1] == 100
    twice = tmp_path / "inference/twice"  # B was tested on the same images under a third name
    shutil.copytree(file.parent, twice)
    (twice / "results.json").write_text(file.read_text().replace('"copy"', '"twice"'))
    with pytest.raises(ValueError, match=f"different datasets: .* on {NAME}; .* on copy, twice"):
        compare.main([str(root / "a"), str(tmp_path)])
    shutil.rmtree(twice)
    file.write_text(re.sub('"digest": "..', '"digest": "', file.read_text()))
    with pytest.raises(ValueError, match=f"different datasets: .* on {NAME}; .* on copy"):
        compare.main([str(root / "a"), str(tmp_path)])


def test_the_order_of_the_detectors_classes_does_not_matter(runs, tmp_path, capsys):
    root, dataset = runs
    test_set = match_test_set(dataset, ("dog", "cat"), "a detector")
    found = [
        {
            "image_id": record["image_id"],
            "boxes": np.array([a["bbox"] for a in record["annotations"]]),
            "scores": np.full(len(record["annotations"]), 0.9),
            "classes": np.array([a["category_id"] for a in record["annotations"]]),
        }
        for record in test_set.dataset.records
    ]
    assert score(test_set.dataset, found, tmp_path / "inference" / NAME).metrics["AP50"] == 100
    compare.main([str(root / "b"), str(tmp_path)])
    assert rows(capsys.readouterr().out)["AP"] == [100, 100, 0, 0, 0]


@pytest.mark.parametrize("change", [
    lambda records: [*records, {"image_id": "added", "annotations": [box(10, 0)]}],
    lambda records: [records[0] | {"annotations": [box(11, 0)]}, *records[1:]],
    lambda records: [records[0] | {"annotations": [box(10, 1), box(200, 0)]}, *records[1:]],
])  # fmt: skip
def test_a_test_set_that_has_changed_is_refused(runs, monkeypatch, change):
    root, dataset = runs
    changed = Dataset(NAME, change(dataset.records), dataset.metadata)
    monkeypatch.setattr(compare, "load_dataset", lambda name, skip_bad: changed)
    with pytest.raises(ValueError, match=f"{NAME} has changed since .*/a was evaluated on it"):
        compare.main([str(root / "a"), str(root / "b")])


def test_wrong_runs_are_named(runs, tmp_path):
    root, _ = runs
    with pytest.raises(ValueError, match="holds no inference"):
        compare.main([str(root / "a"), str(tmp_path)])
    other = tmp_path / "c" / "inference" / "other"
    other.mkdir(parents=True)
    (other / "results.json").write_text('{"dataset": "other"}')
    with pytest.raises(ValueError, match="results.json: does not say which .*: evaluate the run"):
        compare.main([str(root / "a"), str(tmp_path / "c")])
    (other / "results.json").write_text('{"dataset": "other", "digest": ""}')
    with pytest.raises(ValueError, match=f"different datasets: .* on {NAME}; .* on other"):
        compare.main([str(root / "a"), str(tmp_path / "c")])
    shutil.copy(root / "b/inference" / NAME / "results.json", other)
    with pytest.raises(ValueError, match="detections.json: .*: evaluate the run again"):
        compare.main([str(root / "a"), str(tmp_path / "c")])
