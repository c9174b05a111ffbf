"""PASCAL VOC AP against the devkit's protocol, written out here object by object."""

from fractions import Fraction

import numpy as np
import pytest

from resnet_det.evaluation import voc_ap

CLASSES = ["cat", "dog", "never seen", "only difficult"]


def scenes(seed, images=40, scores_per_unit=8):
    """Images with inclusive 1-based integer boxes, as annotated: {id: [(class, box, difficult)]},
    and detections {id: [(class, box, score)]}: near-misses, duplicates, strays, many ties."""
    rng = np.random.default_rng(seed)
    truth, found = {}, {}
    for number in range(images):
        objects, detections = [], []
        for _ in range(rng.integers(0, 5) if number % 6 else 0):
            x, y = rng.integers(1, 60, 2)
            label = int(rng.choice([0, 1, 3]))
            box = x, y, x + rng.integers(4, 40), y + rng.integers(4, 40)
            objects.append((label, box, bool(label == 3 or rng.random() < 0.25)))
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.integers(-3, 4, 4)
                detections.append((label if rng.random() < 0.9 else 0, moved))
        for _ in range(rng.integers(0, 3)):
            x, y = rng.integers(1, 60, 2)
            detections.append((int(rng.integers(0, 4)), (x, y, x + 20, y + 20)))
        truth[f"{number:06d}"] = objects
        found[f"{number:06d}"] = [
            (label, tuple(map(int, box)), rng.integers(0, scores_per_unit) / scores_per_unit)
            for label, box in detections
        ]
    return truth, found


def as_records(truth):
    """The data layer's form: 1 less at xmin and ymin."""
    return [
        {
            "image_id": image,
            "annotations": [
                {
                    "bbox": [box[0] - 1.0, box[1] - 1.0, float(box[2]), float(box[3])],
                    "bbox_mode": 0,
                    "category_id": label,
                    "difficult": int(difficult),
                }
                for label, box, difficult in objects
            ],
        }
        for image, objects in truth.items()
    ]


def as_predictions(found):
    return [
        {
            "image_id": image,
            "boxes": np.array([d[1] for d in detections]).reshape(-1, 4) - [1, 1, 0, 0],
            "scores": np.array([d[2] for d in detections], dtype=float),
            "classes": np.array([d[0] for d in detections], dtype=int),
        }
        for image, detections in found.items()
    ]


def devkit(truth, found, label, threshold, metric):
    """AP of a class, or None without objects: VOCevaldet.m and VOCap.m in exact fractions."""
    positives = sum(not d for objects in truth.values() for k, _, d in objects if k == label)
    if positives == 0:
        return None
    ranked = [(s, image, box) for image, ds in found.items() for k, box, s in ds if k == label]
    ranked.sort(key=lambda detection: -detection[0])  # stable
    taken, tp, fp = set(), 0, 0
    curve = []
    for _, image, (x1, y1, x2, y2) in ranked:
        best, owner = Fraction(-1), None
        for index, (k, (u1, v1, u2, v2), difficult) in enumerate(truth[image]):
            width = min(x2, u2) - max(x1, u1) + 1
            height = min(y2, v2) - max(y1, v1) + 1
            if k == label and width > 0 and height > 0:
                union = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
                overlap = Fraction(int(width * height), int(union - width * height))
                if overlap > best:
                    best, owner = overlap, (image, index, difficult)
        if best >= threshold:
            if not owner[2]:
                if owner in taken:
                    fp += 1
                else:
                    tp += 1
                    taken.add(owner)
        else:
            fp += 1
        if tp + fp:
            curve.append((Fraction(tp, positives), Fraction(tp, tp + fp)))
    if metric == "11-point":
        points = [Fraction(t, 10) for t in range(11)]
        return sum(max((p for r, p in curve if r >= t), default=0) for t in points) / 11
    area, before = Fraction(0), Fraction(0)
    for index, (recall, _) in enumerate(curve):
        area += (recall - before) * max(p for _, p in curve[index:])
        before = recall
    return area


@pytest.mark.parametrize("metric", ["11-point", "area"])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_devkits_protocol(seed, metric):
    truth, found = scenes(seed)
    metrics = voc_ap.evaluate(as_records(truth), as_predictions(found), CLASSES, metric).metrics
    table = np.array(
        [
            [devkit(truth, found, label, Fraction(t, 100), metric) for t in range(50, 100, 5)]
            for label in (0, 1)
        ],
        dtype=float,
    )
    assert 5 < 100 * table.mean() < 95
    for label, name in enumerate(CLASSES[:2]):
        assert metrics[f"AP-{name}"] == pytest.approx(100 * table[label].mean(), abs=1e-10)
        assert metrics[f"AP50-{name}"] == pytest.approx(100 * table[label, 0], abs=1e-10)
    assert metrics["AP"] == pytest.approx(100 * table.mean(), abs=1e-10)
    assert metrics["AP50"] == pytest.approx(100 * table[:, 0].mean(), abs=1e-10)
    assert metrics["AP75"] == pytest.approx(100 * table[:, 5].mean(), abs=1e-10)
    for name in CLASSES[2:]:  # no objects, or difficult ones alone: undefined, not 0
        assert devkit(truth, found, CLASSES.index(name), Fraction(1, 2), metric) is None
        assert np.isnan(metrics[f"AP-{name}"]) and np.isnan(metrics[f"AP50-{name}"])


def test_the_order_in_which_processes_hand_in_predictions_does_not_matter():
    truth, found = scenes(7)
    records, predictions = as_records(truth), as_predictions(found)
    one = voc_ap.evaluate(records, predictions, CLASSES).metrics
    other = voc_ap.evaluate(records, predictions[::-1], CLASSES).metrics
    assert one == pytest.approx(other, abs=0, nan_ok=True)


def single(boxes, scores, objects, classes=("cat",), labels=None):
    record = {
        "image_id": "a",
        "annotations": [
            {"bbox": b, "bbox_mode": 0, "category_id": 0, "difficult": d} for b, d in objects
        ],
    }
    labels = [0] * len(scores) if labels is None else labels
    prediction = {"image_id": "a", "boxes": boxes, "scores": scores, "classes": labels}
    return [record], [prediction], list(classes)


def far(i):
    return [20.0 * i, 0.0, 20.0 * i + 10, 10.0]


def test_perfect_detector():
    truth, _ = scenes(3)
    found = {i: [(k, box, 0.9) for k, box, _ in objects] for i, objects in truth.items()}
    for metric in ("11-point", "area"):
        result = voc_ap.evaluate(as_records(truth), as_predictions(found), CLASSES, metric)
        assert [result.metrics[k] for k in ("AP", "AP50", "AP75")] == [100, 100, 100]
    for image, objects in truth.items():  # NaN: neither objects nor detections
        only_difficult = all(difficult for _, _, difficult in objects)
        assert result.images[image] == pytest.approx(
            float("nan") if only_difficult else 1.0, nan_ok=True
        )


def test_a_small_curve():
    # hit, miss, hit, miss with 3 objects: recall 1/3, 1/3, 2/3, 2/3; precision 1, 1/2, 2/3, 1/2
    boxes = [far(0), far(7), far(1), far(8)]
    data = single(boxes, [0.9, 0.8, 0.7, 0.6], [(far(i), 0) for i in range(3)])
    result = voc_ap.evaluate(*data, metric="area")
    assert result.metrics["AP50"] == pytest.approx(100 * (1 / 3 + 2 / 3 * 1 / 3))
    recall, precision = result.curves["cat"]
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    # precision 1 at recall 0, .1, .2, .3; 2/3 at .4, .5, .6; 0 from .7
    assert voc_ap.evaluate(*data).metrics["AP50"] == pytest.approx(100 * (4 + 3 * 2 / 3) / 11)
    assert result.images["a"] == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))


@pytest.mark.parametrize("hits", range(11))
def test_recall_of_exactly_k_tenths_reaches_k_tenths(hits):
    data = single([far(i) for i in range(hits)], [0.5] * hits, [(far(i), 0) for i in range(10)])
    expected = 100 * (hits + 1) / 11 if hits else 0
    assert voc_ap.evaluate(*data).metrics["AP50"] == pytest.approx(expected)


def test_duplicates_difficult_objects_and_iou_of_exactly_a_half():
    half = [0.0, 0.0, 10.0, 5.0]
    assert voc_ap.evaluate(*single([half], [0.9], [(far(0), 0)])).metrics["AP50"] == 100
    below = [0.0, 0.0, 10.0, 4.99]
    assert voc_ap.evaluate(*single([below], [0.9], [(far(0), 0)])).metrics["AP50"] == 0
    doubled = single([far(0), far(0), far(1)], [0.9, 0.8, 0.7], [(far(0), 0), (far(1), 0)])
    assert voc_ap.evaluate(*doubled, "area").metrics["AP50"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    spared = single([far(0), far(0), far(1)], [0.9, 0.8, 0.7], [(far(0), 1), (far(1), 0)])
    assert voc_ap.evaluate(*spared, "area").metrics["AP50"] == 100
    assert voc_ap.evaluate(*spared).images["a"] == 1


def test_a_crowd_is_ignored_like_a_difficult_object():
    records, predictions, classes = single(
        [far(0), far(0), far(1)], [0.9, 0.8, 0.7], [(far(0), 0), (far(1), 0)]
    )
    records[0]["annotations"][0]["iscrowd"] = 1
    result = voc_ap.evaluate(records, predictions, classes, "area")
    assert result.metrics["AP50"] == 100 and result.images["a"] == 1


def test_scores_are_ranked_at_full_precision():
    miss_first = single([far(5), far(0)], [0.12341, 0.12342], [(far(0), 0)])
    assert voc_ap.evaluate(*miss_first, "area").metrics["AP50"] == 100


def test_without_any_detection():
    result = voc_ap.evaluate(*single([], [], [(far(0), 0)]))
    assert result.metrics["AP"] == result.metrics["AP50-cat"] == 0
    assert result.images == {"a": 0}


def test_an_unknown_metric_is_named():
    records, predictions, _ = single([far(0)], [0.5], [(far(0), 0)])
    with pytest.raises(ValueError, match="11-point.*'2007'"):
        voc_ap.evaluate(records, predictions, ["cat"], metric="2007")


def test_submission_files(tmp_path):
    truth, found = scenes(1)
    records = [{"image_id": image} for image in truth]  # a test set has no annotations
    paths = voc_ap.write_submission(tmp_path / "out", records, as_predictions(found), CLASSES)
    assert [p.name for p in paths] == [f"comp4_det_test_{name}.txt" for name in CLASSES]
    for label, path in enumerate(paths):
        written = [line.split() for line in path.read_text().splitlines()]
        expected = [(i, s, box) for i, ds in found.items() for k, box, s in ds if k == label]
        assert [(i, float(s), tuple(map(float, b))) for i, s, *b in written] == expected
    assert paths[0].read_text()


def test_submission_keeps_every_digit_and_refuses_a_class_that_is_a_path(tmp_path):
    records, predictions, _ = single([[0.1, 0.2, 30.3, 40.4]], [np.float32(0.1)], [(far(0), 0)])
    (path,) = voc_ap.write_submission(tmp_path, records, predictions, ["cat"], "val", "comp3")
    assert path.name == "comp3_det_val_cat.txt"
    assert path.read_text() == "a 0.10000000149011612 1.1 1.2 30.3 40.4\n"
    with pytest.raises(ValueError, match="'../cat'"):
        voc_ap.write_submission(tmp_path, records, predictions, ["../cat"])
