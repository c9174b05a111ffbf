"""Every evaluator and writer raises for malformed records and predictions, and names the image."""

import numpy as np
import pytest

from resnet_det.evaluation import coco_ap, voc_ap

BOX = [0.0, 0.0, 10.0, 10.0]
READERS = {
    "voc": lambda records, predictions, classes, file: voc_ap.evaluate(
        records, predictions, classes
    ),
    "coco": lambda records, predictions, classes, file: coco_ap.evaluate(
        records, predictions, classes
    ),
    "voc submission": lambda records, predictions, classes, file: voc_ap.write_submission(
        file, records, predictions, classes
    ),
    "coco submission": lambda records, predictions, classes, file: coco_ap.write_submission(
        file, records, predictions, range(len(classes))
    ),
}
EVALUATORS = ("voc", "coco")


def inputs():
    annotation = {"bbox": BOX, "bbox_mode": 0, "category_id": 0}
    prediction = {"image_id": "a", "boxes": [BOX], "scores": [0.5], "classes": np.array([0])}
    return [{"image_id": "a", "annotations": [annotation]}], [prediction]


def test_well_formed_input_is_taken(tmp_path):
    for name, read in READERS.items():
        read(*inputs(), ["cat"], tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda p: p[0].update(image_id="zebra"), "'zebra', but no record of it"),
        (lambda p: p.append(dict(p[0])), "'a' has two predictions"),
        (lambda p: p.clear(), "1 of 1 images have no prediction: 'a'"),
        (lambda p: p[0].update(classes=np.array([1])), "'a'.*class index 1.*1 classes"),
        (lambda p: p[0].update(classes=np.array([-1])), "'a'.*class index -1"),
        (lambda p: p[0].update(classes=np.array([0.0])), "'a'.*integers"),
        (lambda p: p[0].update(classes=np.array([0, 0])), r"'a'.*expected \(1,\)"),
        (lambda p: p[0].update(boxes=[[0, 0, float("nan"), 1]]), "'a': boxes hold NaN"),
        (lambda p: p[0].update(boxes=[[0, 0, 1]]), r"'a': boxes have shape \(1, 3\)"),
        (lambda p: p[0].update(scores=[float("nan")]), "'a': scores hold NaN"),
    ],
)
def test_malformed_predictions_are_named(reader, spoil, message, tmp_path):
    records, predictions = inputs()
    spoil(predictions)
    with pytest.raises(ValueError, match=message):
        READERS[reader](records, predictions, ["cat"], tmp_path / "file")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reader", EVALUATORS)
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda r: r.append(r[0]), "'a' occurs twice in the records"),
        (lambda r: r[0].pop("annotations"), "'a' has no annotations"),
        (lambda r: r[0]["annotations"][0].update(category_id=3), "'a'.*class index 3"),
        (lambda r: r[0]["annotations"][0].update(bbox_mode=4), "'a': bbox_mode 4"),
        (lambda r: r[0]["annotations"][0].update(bbox=BOX[:3]), "'a': annotated boxes have shape"),
    ],
)
def test_malformed_records_are_named(reader, spoil, message):
    records, predictions = inputs()
    spoil(records)
    with pytest.raises(ValueError, match=message):
        READERS[reader](records, predictions, ["cat"], None)


@pytest.mark.parametrize("reader", EVALUATORS)
def test_two_classes_of_one_name_are_refused(reader):
    with pytest.raises(ValueError, match="must be unique"):
        READERS[reader](*inputs(), ["cat", "cat"], None)
