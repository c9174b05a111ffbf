"""Both average precisions, for arbitrary objects and detections, against independent programs."""

import json
from fractions import Fraction

import numpy as np
import pytest
import test_coco_ap
import test_voc_ap
from hypothesis import given
from hypothesis import strategies as st

from resnet_det.evaluation import coco_ap, voc_ap

CLASSES = ["cat", "dog"]
LABEL = st.integers(0, 1)
SCORE = st.integers(0, 8).map(lambda eighths: eighths / 8)  # with ties, 0 and 1


@st.composite
def boxes(draw):
    """Inclusive pixels from 1, in a corner so small that most of them meet."""
    x, y = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    return x, y, x + draw(st.integers(0, 9)), y + draw(st.integers(0, 9))


@st.composite
def scenes(draw):
    """{image: [(class, box, flag)]} and {image: [(class, box, score)]}; some detections are
    exact."""
    truth, found = {}, {}
    for image in draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True)):
        truth[image] = draw(st.lists(st.tuples(LABEL, boxes(), st.booleans()), max_size=4))
        anywhere = st.tuples(LABEL, boxes(), SCORE)
        if truth[image]:
            exact = st.tuples(st.sampled_from(truth[image]), SCORE).map(lambda p: (*p[0][:2], p[1]))
            anywhere |= exact
        found[image] = draw(st.lists(anywhere, max_size=8))
    return truth, found


@given(scenes(), st.sampled_from(["11-point", "area"]))
def test_voc_equals_the_devkits_protocol(scene, metric):
    truth, found = scene
    records, predictions = test_voc_ap.as_records(truth), test_voc_ap.as_predictions(found)
    metrics = voc_ap.evaluate(records, predictions, CLASSES, metric).metrics
    for label, name in enumerate(CLASSES):
        for key, thresholds in (("AP", range(50, 100, 5)), ("AP50", [50])):
            each = [
                test_voc_ap.devkit(truth, found, label, Fraction(t, 100), metric)
                for t in thresholds
            ]
            want = float("nan") if each[0] is None else 100 * float(sum(each)) / len(each)
            assert metrics[f"{key}-{name}"] == pytest.approx(want, abs=1e-10, nan_ok=True)


@given(scenes(), st.sampled_from([1, 7, 60]))
def test_coco_equals_pycocotools_on_files(tmp_path_factory, scene, magnified):
    """``magnified``: so that boxes of all three sizes occur."""
    truth, found = scene
    ids = test_coco_ap.IDS[:2]

    def xywh(box):
        x0, y0, x1, y1 = (magnified * side for side in box)
        return [x0 - magnified, y0 - magnified, x1 - x0 + magnified, y1 - y0 + magnified]

    def entries(per_image):
        return [
            {"image_id": image, "category_id": ids[label], "bbox": xywh(box), "value": value}
            for image, each in per_image.items()
            for label, box, value in each
        ]

    annotations = [
        entry | {"id": number, "area": entry["bbox"][2] * entry["bbox"][3],
                 "iscrowd": int(entry["value"])}
        for number, entry in enumerate(entries(truth), 1)
    ]  # fmt: skip
    results = [entry | {"score": entry["value"]} for entry in entries(found)]
    data = {
        "images": [{"id": image} for image in truth],
        "categories": [{"id": id, "name": name} for id, name in zip(ids, CLASSES)],
        "annotations": annotations,
    }
    predictions = [
        {
            "image_id": image,
            "boxes": [[x, y, x + w, y + h] for x, y, w, h in (xywh(d[1]) for d in each)],
            "scores": [d[2] for d in each],
            "classes": [d[0] for d in each],
        }
        for image, each in found.items()
    ]
    ours = coco_ap.evaluate(test_coco_ap.as_records(data), predictions, CLASSES).metrics
    if not results:  # loadRes reads no empty file
        assert all(np.isnan(value) or value == 0 for value in ours.values())
        return
    folder = tmp_path_factory.mktemp("coco")
    (folder / "results.json").write_text(json.dumps(results))
    theirs = test_coco_ap.official(folder, data, folder / "results.json").stats
    for name, value in zip(test_coco_ap.STATS, theirs, strict=True):
        want = 100 * value if value > -1 else float("nan")
        assert ours[name] == pytest.approx(want, abs=1e-10, nan_ok=True), name
