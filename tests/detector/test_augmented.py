"""Test-time augmentation of the embedded engine."""

from types import SimpleNamespace

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from resnet_det.detector.appendix import Thresholds
from resnet_det.detector.augmented import Augmented, original_boxes
from resnet_det.detector.build import build_augmented, build_model
from resnet_det.engines.embedded_data import test_mapper as mapper_of

SIZE = {"height": 160, "width": 224}


def configured(cfg, *overrides):
    cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 80, "TEST.AUG.ENABLED", True, *overrides])
    return cfg


@pytest.fixture
def record(tmp_path):
    pixels = golden.batch()[0]["image"].numpy().transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return {"file_name": str(tmp_path / "photo.png"), "image_id": 1, **SIZE}


def embedded(record, *overrides, augmented=True):
    cfg = configured(golden.embedded_config("R18-C4"), *overrides)
    sample = mapper_of(cfg, augmented)(record, np.random.default_rng(0))
    model = golden.in_double(golden.fill(build_model(cfg))).eval()
    with torch.no_grad():
        (found,) = (build_augmented(model, cfg) if augmented else model)([sample])
    return found


def assert_equal(found, wanted):
    assert found["classes"].tolist() == wanted["classes"].tolist() and len(wanted["classes"]) > 3
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["scores"], wanted["scores"], atol=1e-4, rtol=0)


@pytest.mark.detectron2
def test_detections_are_those_of_detectron2s_own_class(record):
    """Four copies: Detectron2 runs three of them together, of which the smaller ones are padded."""
    from detectron2.data import DatasetMapper
    from detectron2.modeling import GeneralizedRCNNWithTTA, build_model

    overrides = ["TEST.AUG.MIN_SIZES", (64, 48), "TEST.AUG.MAX_SIZE", 80,
                 "TEST.DETECTIONS_PER_IMAGE", 6, "MODEL.RPN.POST_NMS_TOPK_TEST", 8]  # fmt: skip
    cfg = configured(golden.detectron2_config("R18-C4"), *overrides)
    model = golden.in_double(golden.fill(build_model(cfg))).eval()
    with torch.no_grad():
        (theirs,) = GeneralizedRCNNWithTTA(cfg, model)([DatasetMapper(cfg, False)(record)])
    theirs = theirs["instances"]
    wanted = {
        "boxes": theirs.pred_boxes.tensor,
        "scores": theirs.scores,
        "classes": theirs.pred_classes,
    }
    assert_equal(embedded(record, *overrides), wanted)


def test_one_copy_at_the_test_size_changes_nothing(record):
    overrides = ["TEST.AUG.MIN_SIZES", (80,), "TEST.AUG.FLIP", False]
    assert_equal(embedded(record, *overrides), embedded(record, *overrides, augmented=False))


class FindsWhite(nn.Module):
    """Satisfies ``Detector``: detects the white pixels, with a score that grows with the image."""

    context = False

    def trunk(self, pictures):
        return SimpleNamespace(image_sizes=[tuple(p.shape[1:]) for p in pictures]), pictures

    def propose(self, images, features, batch):
        found = []
        for picture in features:
            rows, columns = (picture[0] > 127).nonzero().unbind(1)
            ends = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.append(torch.stack(ends)[None].float())
        return found

    def regions(self, features, boxes):
        return torch.tensor([[picture.shape[1] / 1000] for picture in features])

    def classify(self, vectors, boxes):
        return vectors[:, None].unbind(0), [b[:, None] for b in boxes]


def test_an_object_is_found_once_and_where_the_best_copy_shows_it(tmp_path):
    pixels = np.zeros((100, 150, 3), np.uint8)
    pixels[20:60, 30:50] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    record = {"file_name": str(tmp_path / "photo.png"), "image_id": 1}
    keys = ["INPUT.MIN_SIZE_TEST", 100, "TEST.AUG.MIN_SIZES", (50, 100, 300, 200)]
    cfg = configured(golden.embedded_config("R18-C4"), *keys)
    sample = mapper_of(cfg, True)(record, np.random.default_rng(0))
    shapes = [tuple(copy["image"].shape[1:]) for copy in sample["copies"]]
    assert shapes == [
        size for h, w in [(50, 75), (100, 150), (300, 450), (200, 300)] for size in [(h, w)] * 2
    ]
    plain, mirrored = (sample["copies"][i]["image"] for i in (4, 5))
    assert torch.equal(plain.flip(2), mirrored)
    (found,) = Augmented(FindsWhite(), Thresholds(0.01, 0.5, 100))([sample])
    assert found["scores"].tolist() == pytest.approx([0.3])
    assert found["boxes"].tolist() == [pytest.approx([30, 20, 50, 60], abs=0.7)]
    assert found["classes"].tolist() == [0]


def test_boxes_move_back():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 40.0]])
    assert original_boxes(boxes, (50, 100), False, (100, 300)).tolist() == [[30, 40, 90, 80]]
    assert original_boxes(boxes, (50, 100), True, (100, 300)).tolist() == [[210, 40, 270, 80]]
