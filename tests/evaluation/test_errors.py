"""Errors of a detector, on scenes whose answers are known, and against pycocotools."""

import itertools

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_det.evaluation import coco_ap, errors
from resnet_det.evaluation.inputs import Detections, Truth

CLASSES = ["cat", "dog"]
CAT, DOG = 0, 1


def truth(*objects):
    """An image's objects, each (class, box, "" or "difficult" or "crowd")."""
    boxes = np.array([box for _, box, _ in objects], dtype=float).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    kinds = np.array([kind for *_, kind in objects])
    return Truth(
        boxes,
        np.hstack([boxes[:, :2], sides]),
        np.array([label for label, *_ in objects], dtype=int),
        kinds == "difficult",
        kinds == "crowd",
        sides.prod(axis=1),
    )


def detections(*found):
    """An image's detections, each (class, box, score)."""
    boxes = np.array([box for _, box, _ in found], dtype=float).reshape(-1, 4)
    scores = np.array([score for *_, score in found], dtype=float)
    return Detections(boxes, scores, np.array([label for label, *_ in found], dtype=int))


def square(x, side=10):
    return [x, 0, x + side, side]


def analyse(objects, found):
    return errors.analyse({0: truth(*objects)}, {0: detections(*found)}, CLASSES)


# The object of each scene is a cat in [0, 10]; a second cat, far away, is found with score 0.9.
ONE_OF_EACH_KIND = {
    "Cls": (DOG, square(0), 0.8),
    "Loc": (CAT, square(6), 0.8),  # IoU 1/4
    "Both": (DOG, square(6), 0.8),
    "Bkg": (CAT, square(400), 0.8),
    "Dupe": (CAT, square(100), 0.8),
    "Miss": None,
}


@pytest.mark.skipif(coco_ap.hotcoco is None, reason="hotcoco is not installed")
@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_each_kind_of_error_is_counted(kind):
    wrong = ONE_OF_EACH_KIND[kind]
    objects = [(CAT, square(0), ""), (CAT, square(100), ""), (DOG, square(200), "")]
    found = [(CAT, square(100), 0.9), (DOG, square(200), 0.9)] + ([wrong] if wrong else [])
    kinds = analyse(objects, found).kinds
    # An object that is found in the wrong place or as another class is not missed as well.
    missed = kind in ("Miss", "Bkg", "Both", "Dupe")
    expected = {kind: 1} | ({"Miss": 1} if missed else {})
    assert {name: each.count for name, each in kinds.items() if each.count} == expected


@pytest.mark.skipif(coco_ap.hotcoco is None, reason="hotcoco is not installed")
def test_what_a_missed_object_costs():
    objects = [(CAT, square(0), ""), (CAT, square(100), "")]
    kinds = analyse(objects, [(CAT, square(100), 0.9)]).kinds
    # Recall 1/2 reaches 51 of COCO's 101 recall points.
    assert kinds["Miss"].lost_ap50 == pytest.approx(100 * 50 / 101)
    assert all(each.lost_ap50 == 0 for name, each in kinds.items() if name != "Miss")


# Of tidecv 1.0.1, the authors' code, on scenes(seed, 60) without difficult objects and crowds.
BY_TIDECV = {
    0: [
        2.285151293365864,
        20.701510510199284,
        1.6332779543719376,
        3.139451947163046,
        1.5084380068282748,
        9.50920505315775,
    ],
    1: [
        1.8943759144600314,
        17.52999820979057,
        1.8653776897563503,
        3.4946207747398823,
        1.606886788516512,
        10.55991580100548,
    ],
}


@pytest.mark.skipif(coco_ap.hotcoco is None, reason="hotcoco is not installed")
@pytest.mark.parametrize("seed", BY_TIDECV)
def test_lost_ap_agrees_with_tidecv(seed):
    objects, found = scenes(seed, 60)
    for image, each in objects.items():
        none = np.zeros(len(each.classes), dtype=bool)
        objects[image] = each._replace(difficult=none, crowd=none)
    kinds = errors.analyse(objects, found, CLASSES).kinds
    assert [each.lost_ap50 for each in kinds.values()] == pytest.approx(BY_TIDECV[seed], abs=1e-9)


@pytest.mark.skipif(coco_ap.hotcoco is None, reason="hotcoco is not installed")
def test_calibration_leaves_ignored_objects_out():
    objects = [
        (CAT, square(0), ""),
        (CAT, square(100), "difficult"),
        (CAT, square(200, 50), "crowd"),
    ]
    found = [
        (CAT, square(0), 0.95),
        (CAT, square(100), 0.85),
        (CAT, [210, 10, 220, 20], 0.75),
        (CAT, square(300), 0.65),
        (DOG, square(0), 0.61),
    ]
    calibration = analyse(objects, found).calibration
    assert calibration.scores.tolist() == pytest.approx([0.63, 0.95])
    assert calibration.precision.tolist() == [0, 1]
    assert calibration.counts.tolist() == [2, 1]
    assert calibration.error == pytest.approx((0.65 + 0.61 + 0.05) / 3)
    assert analyse(objects, []).calibration is None


def test_confusion_of_a_known_scene():
    objects = [
        (CAT, square(0), ""),
        (CAT, square(100), ""),
        (DOG, square(200), ""),
        (DOG, square(300), "difficult"),
        (CAT, square(400, 50), "crowd"),
    ]
    found = [
        (CAT, square(0), 0.9),
        (CAT, square(0), 0.8),  # a duplicate
        (DOG, square(101), 0.9),  # the second cat
        (CAT, square(102), 0.49),  # not confident
        (DOG, square(300), 0.9),  # difficult
        (CAT, [410, 10, 420, 20], 0.9),  # in the crowd
        (CAT, square(300), 0.9),  # the difficult dog, as a cat
    ]
    assert analyse(objects, found).confusion.tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]


def scenes(seed, images=30):
    """Objects of two classes, and detections, two of three near an object."""
    rng = np.random.default_rng(seed)
    objects, found = {}, {}
    for image in range(images):
        count, hits, strays = rng.integers((0, 0, 0), (9, 15, 6))
        corner, side = rng.integers(0, 40, (count, 2)), rng.integers(8, 60, (count, 2))
        boxes, labels = np.hstack([corner, corner + side]), rng.integers(0, 2, count)
        kinds = rng.choice(["", "", "", "difficult", "crowd"], count)
        objects[image] = truth(*zip(labels.tolist(), boxes.tolist(), kinds))
        near = rng.integers(0, count, hits if count else 0)
        moved = boxes[near] + rng.integers(-4, 5, (len(near), 4))
        corner = rng.integers(0, 40, (strays, 2))
        moved = np.vstack([moved, np.hstack([corner, corner + 20])])
        names = np.append(labels[near], rng.integers(0, 2, strays))
        names = np.where(rng.random(len(names)) < 0.2, 1 - names, names)
        found[image] = detections(*zip(names.tolist(), moved.tolist(), rng.random(len(names))))
    return objects, found


@pytest.mark.parametrize("seed", range(3))
def test_confusion_agrees_with_pycocotools(seed):
    """The diagonal holds COCO's matches, and every object and every detection is counted once."""
    objects, found = scenes(seed)
    confident = {image: each.confident() for image, each in found.items()}
    matrix = errors.confusion_matrix(objects, found, len(CLASSES))
    run = by_pycocotools(objects, confident)
    for label in range(len(CLASSES)):
        per_image = [
            each for each in run.evalImgs[label * 4 * len(objects) :][: len(objects)] if each
        ]
        matches = np.concatenate([each["dtMatches"][0] > 0 for each in per_image])
        ignored = np.concatenate([each["dtIgnore"][0] for each in per_image]).astype(bool)
        assert matrix[label, label] == np.sum(matches & ~ignored) > 0
        assert matrix[:, label].sum() == np.sum(~ignored)
        wanted = sum(np.sum((t.classes == label) & ~t.ignored) for t in objects.values())
        assert matrix[label].sum() == wanted
    assert matrix[CAT, DOG] > 0 and matrix[DOG, CAT] > 0


@pytest.mark.parametrize("seed", range(3))
def test_sizes_agree_with_pycocotools(seed):
    objects, found = scenes(seed)
    run = by_pycocotools(objects, found)
    run.accumulate()
    run.summarize()
    sizes = errors.analyse(objects, found, CLASSES).sizes
    assert [sizes[size].AP for size in errors.SIZES] == pytest.approx(
        [100 * v if v > -1 else np.nan for v in run.stats[3:6]], nan_ok=True
    )
    assert [sizes[size].recall for size in errors.SIZES] == pytest.approx(
        [100 * v if v > -1 else np.nan for v in run.stats[9:12]], nan_ok=True
    )
    assert sizes["small"].objects > 0 and sizes["medium"].objects > 0 == sizes["large"].objects


def by_pycocotools(objects, found):
    """A COCOeval after ``evaluate()``. Difficult objects lie outside of every range of areas."""
    number = itertools.count(1)
    annotations = [
        {
            "id": next(number),
            "image_id": image,
            "category_id": int(each.classes[i]),
            "bbox": each.xywh[i].tolist(),
            "area": 1e11 if each.difficult[i] else float(each.areas[i]),
            "iscrowd": int(each.crowd[i]),
        }
        for image, each in objects.items()
        for i in range(len(each.classes))
    ]
    results = [
        {"image_id": image, "category_id": int(label), "bbox": box.tolist(), "score": score}
        for image, each in found.items()
        for label, box, score in zip(
            each.classes, each.boxes - np.pad(each.boxes[:, :2], ((0, 0), (2, 0))), each.scores
        )
    ]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in objects],
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
        "annotations": annotations,
    }
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(results), "bbox")
    run.evaluate()
    return run
