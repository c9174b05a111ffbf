"""COCO AP against pycocotools run on the json files that its own users write."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_det.data import load_dataset
from resnet_det.evaluation import coco_ap, tables
from resnet_det.evaluation.inputs import read_predictions, read_truth
from resnet_det.evaluation.metrics import Metric
from resnet_det.evaluation.report import write_report

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the order of COCOeval.stats
STATS += ("AR@1", "AR@10", "AR@100", "ARs@100", "ARm@100", "ARl@100")
CLASSES = ["person", "traffic light", "sofa", "never seen"]
IDS = [1, 10, 63, 90]


def scenes(seed, images=30):
    """A COCO instances dict and detections {image id: [(class index, xyxy, score)]}: all sizes,
    crowds, images without objects, without detections, with more than 100 of a class; ties."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(10_000)[:images].tolist()
    annotations, found = [], {}
    for order, image in enumerate(numbers):
        found[image] = []
        crowded = order in (1, 2)  # more than 10 objects of a class; in 1 also over 100 detections
        for _ in range(25 if crowded else 0 if order % 7 == 0 else rng.integers(1, 9)):
            x, y = rng.random(2) * 300
            width, height = rng.choice([12, 60, 200]) * (0.5 + rng.random(2))
            label = order if crowded else int(rng.integers(0, 3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": IDS[label],
                    "bbox": [round(v, 2) for v in (x, y, width, height)],
                    "area": round(width * height * (0.4 + 0.6 * rng.random()), 2),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 5)):
                corners = np.array([x, y, x + width, y + height])
                moved = corners + rng.normal(0, 0.08, 4) * [width, height, width, height]
                found[image].append((label, moved, rng.integers(0, 50) / 50))
        for _ in range(150 if order == 1 else 0 if order % 5 == 0 else rng.integers(0, 4)):
            x, y = rng.random(2) * 300
            stray = 1 if order == 1 else int(rng.integers(0, 4))
            found[image].append((stray, np.array([x, y, x + 30, y + 50]), rng.random()))
    data = {
        "images": [
            {"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in numbers
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(IDS, CLASSES)],
        "annotations": annotations,
    }
    return data, found


def as_records(data):
    return [
        {
            "image_id": image["id"],
            "annotations": [
                {
                    "bbox": a["bbox"],
                    "bbox_mode": 1,
                    "category_id": IDS.index(a["category_id"]),
                    "iscrowd": a["iscrowd"],
                    "area": a["area"],
                }
                for a in data["annotations"]
                if a["image_id"] == image["id"]
            ],
        }
        for image in data["images"]
    ]


def as_predictions(found):
    return [
        {
            "image_id": image,
            "boxes": np.array([d[1] for d in detections]).reshape(-1, 4),
            "scores": np.array([d[2] for d in detections]),
            "classes": np.array([d[0] for d in detections], dtype=int),
        }
        for image, detections in found.items()
    ]


def official(tmp_path, data, results_file):
    """pycocotools from files, as its demo does."""
    (tmp_path / "instances.json").write_text(json.dumps(data))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "instances.json")
        run = COCOeval(truth, truth.loadRes(str(results_file)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def as_results(found):
    """The detections as COCO's results file holds them."""
    return [
        {
            "image_id": image,
            "category_id": IDS[label],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "score": score,
        }
        for image, detections in found.items()
        for label, box, score in detections
    ]


@pytest.fixture(params=["hotcoco", "pycocotools"])
def library(request, monkeypatch):
    """The library that computes AP: hotcoco, or pycocotools as where hotcoco is missing."""
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    else:
        monkeypatch.setattr(coco_ap, "hotcoco", None)


@pytest.mark.parametrize("seed", range(2))
def test_equals_pycocotools_on_files(seed, tmp_path, capsys, library):
    data, found = scenes(seed)
    records, predictions = as_records(data), as_predictions(found)
    result = coco_ap.evaluate(records, predictions, CLASSES)
    assert capsys.readouterr().out == ""
    results = as_results(found)
    (tmp_path / "results.json").write_text(json.dumps(results))
    run = official(tmp_path, data, tmp_path / "results.json")

    assert (run.stats > 0.02).all() and (run.stats < 0.98).all()
    assert len(set(run.stats)) == 12
    for name, value in zip(STATS, run.stats, strict=True):
        assert result.metrics[name] == 100 * value
    precision = run.eval["precision"][:, :, :, 0, 2]
    for label, name in enumerate(CLASSES[:3]):
        assert result.metrics[f"AP-{name}"] == pytest.approx(
            100 * precision[:, :, label].mean(), abs=1e-12
        )
        assert result.metrics[f"AP50-{name}"] == pytest.approx(
            100 * precision[0, :, label].mean(), abs=1e-12
        )
        assert np.array_equal(result.curves[name][1], precision[0, :, label])
        assert np.array_equal(result.curves[name][0], run.params.recThrs)
    assert np.isnan(result.metrics["AP-never seen"])
    assert set(result.curves) == set(CLASSES[:3])

    # our own results file gives the same numbers
    file = coco_ap.write_submission(tmp_path / "new" / "r.json", records, predictions, IDS)
    assert np.array_equal(official(tmp_path, data, file).stats, run.stats)
    assert json.loads(file.read_text()) == results


@pytest.mark.parametrize("seed", range(10, 30))
def test_hotcoco_is_equal_to_the_last_bit(seed, tmp_path):
    """Every value of the tables, on sets with crowds, ties, over 100 detections, empty images."""
    pytest.importorskip("hotcoco")
    data, found = scenes(seed, images=8)
    for annotation in data["annotations"][::5]:  # at the limits of the area ranges
        annotation["area"] = [32.0**2, 96.0**2, 0.0, 1e10][annotation["id"] % 4]
    truth = read_truth(as_records(data), CLASSES)
    run = coco_ap.evaluated(
        truth, read_predictions(as_records(data), as_predictions(found), CLASSES), CLASSES
    )
    (tmp_path / "results.json").write_text(json.dumps(as_results(found)))
    wanted = official(tmp_path, data, tmp_path / "results.json").eval
    for key in ("precision", "recall", "scores"):
        assert np.array_equal(run.eval[key], wanted[key]), key
    assert (wanted["precision"] > 0).any()


def test_image_f1_equals_pycocotools_matches(tmp_path):
    data, found = scenes(3)
    for detections in found.values():
        del detections[100:]  # the F1 has no limit, COCOeval has
    (tmp_path / "results.json").write_text(json.dumps(as_results(found)))
    counts = {image["id"]: np.zeros(3) for image in data["images"]}  # hits, wrong, objects
    for match in official(tmp_path, data, tmp_path / "results.json").evalImgs:
        if match is not None and match["aRng"] == [0, 1e10]:
            sure = (np.array(match["dtScores"]) >= 0.5) & (match["dtIgnore"][0] == 0)
            hit = match["dtMatches"][0] > 0
            missable = np.sum(np.array(match["gtIgnore"]) == 0)
            counts[match["image_id"]] += [np.sum(sure & hit), np.sum(sure & ~hit), missable]
    images = coco_ap.evaluate(as_records(data), as_predictions(found), CLASSES).images
    assert len({round(value, 6) for value in images.values()}) > 10
    for image, (hits, wrong, objects) in counts.items():
        total = hits + wrong + objects
        wanted = 2 * hits / total if total else float("nan")
        assert images[image] == pytest.approx(wanted, abs=0, nan_ok=True)


def test_a_metric_has_one_definition(monkeypatch, tmp_path):
    """A new metric, AP90, equals pycocotools'; JSON, tables and page show it."""
    monkeypatch.setitem(coco_ap.COCO_METRICS, "AP90", Metric(iou=0.9))
    monkeypatch.setattr(coco_ap, "PER_CLASS_METRICS", ("AP", "AP90"))
    data, found = scenes(0)
    records, predictions = as_records(data), as_predictions(found)
    result = coco_ap.evaluate(records, predictions, CLASSES)
    (tmp_path / "results.json").write_text(json.dumps(as_results(found)))
    precision = official(tmp_path, data, tmp_path / "results.json").eval["precision"]
    precision = precision[8, :, :, 0, 2]
    want = 100 * precision[precision > -1].mean()
    assert result.overall["AP90"] == pytest.approx(want, abs=1e-12) and want > 0.1
    person = 100 * precision[:, 0].mean()
    assert result.metrics["AP90-person"] == pytest.approx(person, abs=1e-12)
    assert tables.as_json(result)["classes"]["person"]["AP90"] == result.metrics["AP90-person"]
    assert f" {want:.1f} |" in tables.summary_table({"net": result})
    assert tables.class_table(result).startswith("| class ")
    assert f" {person:.1f} |" in tables.class_table(result)
    results = {"coco": (result, records, predictions, CLASSES)}
    page = write_report(tmp_path, results, None, examples=0).read_text()
    assert f"<b>{want:.1f}</b>AP90" in page and f"<span>{person:.1f}</span>" in page
    with pytest.raises(ValueError, match="IoU 0.33 is not one of"):
        Metric(iou=0.33).thresholds()


def test_boxes_are_compared_bit_for_bit_as_annotated(tmp_path, library):
    # half the object, which pycocotools sees as IoU .4999...; .5 if x + w - x replaced w
    box = [64.7, 28.0, 5.1, 2.7]
    corners = np.array([64.7, 28.0, 64.7 + 5.1 / 2, 28.0 + 2.7])
    data, _ = scenes(0)
    data["annotations"] = [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": box, "area": 13.77, "iscrowd": 0}
    ]
    data["images"] = [{"id": 7}]
    records, predictions = as_records(data), as_predictions({7: [(0, corners, 0.9)]})
    file = coco_ap.write_submission(tmp_path / "r.json", records, predictions, IDS)
    assert official(tmp_path, data, file).stats[1] == 0
    assert coco_ap.evaluate(records, predictions, CLASSES).metrics["AP50"] == 0


def test_shuffled_records_and_predictions_give_the_same():
    data, found = scenes(5)
    records, predictions = as_records(data), as_predictions(found)
    one = coco_ap.evaluate(records, predictions, CLASSES)
    other = coco_ap.evaluate(records[::-1], predictions[5:] + predictions[:5], CLASSES)
    assert one.metrics == pytest.approx(other.metrics, abs=0, nan_ok=True)
    assert list(other.images) == [record["image_id"] for record in records[::-1]]


def record(image, *objects):
    """A record in VOC's form; objects are (box, difficult)."""
    return {
        "image_id": image,
        "annotations": [
            {"bbox": list(box), "bbox_mode": 0, "category_id": 0, "difficult": difficult}
            for box, difficult in objects
        ],
    }


def prediction(image, *detections):
    return {
        "image_id": image,
        "boxes": [box for box, _ in detections],
        "scores": [score for _, score in detections],
        "classes": [0] * len(detections),
    }


A, B, C = (0.0, 0, 20, 20), (50.0, 0, 90, 40), (200.0, 0, 320, 120)


def test_voc_records_have_their_boxes_area_and_difficult_objects_are_ignored(library):
    records = [record("x", (A, 0), (B, 1), (C, 0)), record("y")]
    found = [prediction("x", (B, 0.9), (A, 0.8)), prediction("y")]
    result = coco_ap.evaluate(records, found, ["cat"])
    assert result.metrics["APs"] == pytest.approx(100)
    assert np.isnan(result.metrics["APm"])  # the only one of that size is difficult
    assert result.metrics["APl"] == 0
    assert result.metrics["AP"] == pytest.approx(100 * 51 / 101)  # recall 0, .01, ... .5
    assert result.metrics["AP"] == result.metrics["AP-cat"] == result.metrics["AP50-cat"]
    # one hit, one object missed; the difficult one does not count
    assert result.images["x"] == pytest.approx(2 / 3)
    assert np.isnan(result.images["y"])


def test_image_f1_counts_confident_detections_and_forgives_crowds():
    crowd = record("x", (A, 0), (C, 0))
    crowd["annotations"][1]["iscrowd"] = 1
    inside = (210.0, 10, 240, 40)
    found = prediction("x", (A, 0.5), (A, 0.6), (inside, 0.9), (inside, 0.8), (B, 0.4))
    assert coco_ap.evaluate([crowd], [found], ["cat"]).images["x"] == pytest.approx(2 / 3)


def test_nothing_detected_nothing_there(library):
    records, nothing = [record("x", (A, 0))], [prediction("x")]
    result = coco_ap.evaluate(records, nothing, ["cat"])
    assert result.metrics["AP"] == result.metrics["AR@100"] == result.metrics["AP-cat"] == 0
    assert result.images == {"x": 0}
    empty = coco_ap.evaluate([record("x")], [prediction("x", (A, 0.9))], ["cat"])
    assert np.isnan(empty.metrics["AP"]) and empty.curves == {} and empty.images == {"x": 0}
    with pytest.raises(ValueError, match="no images"):
        coco_ap.evaluate([], [], ["cat"])


@pytest.mark.real_data
def test_real_annotations_through_the_data_layer(real_data, tmp_path):
    dataset = load_dataset("coco_2017_val", real_data)
    json_file = real_data / "coco" / "annotations" / "instances_val2017.json"
    rng = np.random.default_rng(0)
    predictions = []
    for each in dataset.records:
        boxes = np.array([a["bbox"] for a in each["annotations"]]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        predictions.append(
            {
                "image_id": each["image_id"],
                "boxes": boxes + rng.normal(0, 4, boxes.shape),
                "scores": rng.random(len(boxes)),
                "classes": [a["category_id"] for a in each["annotations"]],
            }
        )
    ids = dataset.metadata.category_ids
    file = coco_ap.write_submission(tmp_path / "r.json", dataset.records, predictions, ids)
    run = official(tmp_path, json.loads(json_file.read_text()), file)
    result = coco_ap.evaluate(dataset.records, predictions, dataset.metadata.classes)
    assert 0.2 < run.stats[0] < 0.9
    assert result.metrics["AP"] == pytest.approx(100 * run.stats[0], abs=1e-12)
    assert result.metrics["APs"] == pytest.approx(100 * run.stats[3], abs=1e-12)
    assert result.metrics["AR@100"] == pytest.approx(100 * run.stats[8], abs=1e-12)
