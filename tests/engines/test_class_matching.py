"""Classes by name: lists, class layers, and whole evaluations of both engines."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from small_configs import DETECTOR

from resnet_det.config.defaults import ConfigError
from resnet_det.data import load_dataset
from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.detector.roi_heads import Predictor
from resnet_det.engines import class_matching, embedded
from resnet_det.weights.class_names import COCO, VOC
from resnet_det.weights.loading import WeightsError, read

# ---- lists of names


def test_places():
    assert class_matching.places("ba", "abc") == [1, 0]
    assert class_matching.places("bx", "abc") == [1, None]
    assert class_matching.places("xyz", "abc", by_order=True) == [0, 1, 2]
    with pytest.raises(ConfigError, match="CLASSES_BY_ORDER: True: 3 and 2 classes"):
        class_matching.places("xy", "abc", by_order=True)
    with pytest.raises(ConfigError, match="'a' occurs twice"):
        class_matching.places("ab", "aab")


def test_an_error_prints_both_differences():
    words = "only test has x; only w.pth has b.*CLASSES_BY_ORDER"
    with pytest.raises(ConfigError, match=words):
        class_matching.tested_places("xa", "test", "ab", "w.pth")
    with pytest.raises(ConfigError) as raised:  # no renaming
        class_matching.tested_places("x", "test", "ab", "w.pth")
    assert "CLASSES_BY_ORDER" not in str(raised.value)


# ---- class layers


def predictor(classes, agnostic, seed):
    torch.manual_seed(seed)
    layers = Predictor(5, classes, agnostic)
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter)
    return layers


@pytest.mark.parametrize("agnostic", [False, True])
def test_shared_classes_answer_as_before(agnostic):
    """The logits and boxes of a detector of other classes, for the classes that both have."""
    before, after = predictor(4, agnostic, 0), predictor(3, agnostic, 1)
    fresh = {k: v.clone() for k, v in after.state_dict().items()}
    prefix = "roi_heads.box_predictor."
    own, file = ({prefix + k: v for k, v in x.state_dict().items()} for x in (after, before))
    state = class_matching.keep_shared_classes(
        own, file, {"classes": list("abcd")}, list("dxb"), "w.pth"
    )
    after.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
    x = torch.randn(7, 5)
    (old, old_boxes), (new, new_boxes) = before(x), after(x)  # the background first
    for new_place, old_place in ((0, 0), (1, 4), (3, 2)):
        torch.testing.assert_close(new[:, new_place], old[:, old_place])
        at = [slice(4 * place, 4 * place + 4) for place in (new_place, old_place)]
        torch.testing.assert_close(new_boxes[:, at[0]], old_boxes[:, at[1]])
    assert torch.equal(after.cls_score.weight[1], fresh["cls_score.weight"][1])
    if agnostic:
        assert torch.equal(after.bbox_pred.weight, before.bbox_pred.weight)
    else:
        assert torch.equal(after.bbox_pred.weight[4:8], fresh["bbox_pred.weight"][4:8])


def test_without_a_shared_class_all_starts_fresh():
    own = {f"box_predictor.{k}": v for k, v in predictor(2, False, 0).state_dict().items()}
    file = {f"box_predictor.{k}": v for k, v in predictor(2, False, 1).state_dict().items()}
    state = class_matching.keep_shared_classes(own, file, {"classes": ["x", "y"]}, "ab", "w.pth")
    assert all(torch.equal(state[key], value) for key, value in own.items())


def test_names_and_rows_of_a_file_must_agree(caplog):
    """More names than rows are an error; no names are believed, with a warning."""
    own = {f"predictor.{k}": v for k, v in predictor(2, False, 0).state_dict().items()}
    with pytest.raises(WeightsError, match="w.pth: names 3 classes, but its .* has 3 rows"):
        class_matching.keep_shared_classes(own, own, {"classes": list("abc")}, "ab", "w.pth")
    assert class_matching.keep_shared_classes(own, own, {}, "ab", "w.pth") is own
    assert "w.pth does not name its classes" in caplog.text


@pytest.mark.detectron2
def test_the_class_layers_of_detectron2():
    """RetinaNet's and a mask head's, as the real modules compute with them."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.meta_arch.retinanet import RetinaNetHead, permute_to_N_HWA_K
    from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead

    specs = [ShapeSpec(channels=4)]

    def retina(classes):
        return RetinaNetHead(input_shape=specs, num_classes=classes, num_anchors=2,
                             conv_dims=[4])  # fmt: skip

    def masks(classes):
        return MaskRCNNConvUpsampleHead(specs[0], num_classes=classes, conv_dims=[4])

    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 3)
    for build, prefix, answer in (
        (retina, "head.", lambda m, k: permute_to_N_HWA_K(m([x])[0][0], k)[0].T),
        (masks, "roi_heads.mask_head.", lambda m, k: m.layers(x)[0]),
    ):
        before, after = build(3), build(2)
        own, file = ({prefix + k: v for k, v in m.state_dict().items()} for m in (after, before))
        state = class_matching.keep_shared_classes(own, file, {"classes": list("abc")}, "xa", "w")
        after.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
        old, new = answer(before, 3), answer(after, 2)
        torch.testing.assert_close(new[1], old[0])
        assert not torch.allclose(new[0], old[1]) and not torch.allclose(new[0], old[2])


@pytest.mark.detectron2
def test_the_names_are_detectron2s():
    from detectron2.data import MetadataCatalog

    assert list(COCO) == MetadataCatalog.get("coco_2017_val").thing_classes
    assert list(VOC) == MetadataCatalog.get("voc_2007_test").thing_classes


@pytest.mark.parametrize("rows, expected", [(81, COCO), (21, VOC), (9, None)])
def test_the_format_of_detectron2s_zoo_says_the_classes(tmp_path, rows, expected):
    import pickle

    weight = np.zeros((rows, 4), np.float32)
    content = {"roi_heads.box_predictor.cls_score.weight": weight}
    for author, names in (("Detectron2 Model Zoo", expected), ("somebody", None)):
        path = tmp_path / "zoo.pkl"
        path.write_bytes(pickle.dumps({"model": content, "__author__": author}))
        facts = read(path)[1]
        assert facts.get("classes") == (None if names is None else list(names))
        assert ("classes" in facts.get("guessed", ())) is (names is not None)


# ---- evaluations


class Imperfect(torch.nn.Module):
    """Detects what the records say, moved and scored at random, in the classes of the records."""

    def __init__(self, records):
        super().__init__()
        self.found = {}
        rng = np.random.default_rng(0)
        for record in records:
            objects = [a for a in record["annotations"] for _ in range(3)]
            boxes = np.array([a["bbox"] for a in objects], float).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            boxes += rng.normal(0, 2, boxes.shape)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            scores = rng.choice([0.3, 0.6, 0.9], len(objects))  # ties
            classes = [a["category_id"] for a in objects]
            self.found[record["image_id"]] = tuple(map(torch.tensor, (boxes, scores, classes)))

    def forward(self, batch):
        keys = ("boxes", "scores", "classes")
        return [dict(zip(keys, self.found[sample["image_id"]])) for sample in batch]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_scenes(str(root), trainval=4, test=12, train_crops=8, val_crops=8, size=(48, 64))
    return root


def reverse(content):
    """The same categories with the ids reversed."""
    ids = [c["id"] for c in content["categories"]]
    other = dict(zip(ids, ids[::-1]))
    for entry in content["categories"]:
        entry["id"] = other[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = other[entry["category_id"]]


def rename(content):
    for entry in content["categories"]:
        entry["name"] = f"my {entry['name']}"


def halve(content):
    """Keep every second category and its objects."""
    content["categories"] = content["categories"][1::2]
    kept = {entry["id"] for entry in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in kept]


@pytest.fixture(params=["embedded", pytest.param("detectron2", marks=pytest.mark.detectron2)])
def evaluate(request, scenes, tmp_path, monkeypatch):
    """``evaluate(change, KEY, VALUE...)``: metrics of a detector on the changed test set."""
    path = tmp_path / "config.yaml"
    small = DETECTOR | {"DATASETS": {"TRAIN": ["scenes_coco_train"], "TEST": ["scenes_coco_test"]}}
    path.write_text(yaml.safe_dump(small))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    dataset = load_dataset("scenes_coco_test")
    trained = dataset.metadata.classes
    model = Imperfect(dataset.records)
    facts = {"classes": list(trained)}
    if request.param == "embedded":
        engine = embedded
        monkeypatch.setattr(engine, "load_trained", lambda cfg, device: (model, facts))
    else:
        from detectron2.structures import Boxes, Instances

        from resnet_det.engines.on_detectron2 import engine

        class Theirs(torch.nn.Module):
            def forward(self, batch):
                return [{"instances": self.instances(s, f)} for s, f in zip(batch, model(batch))]

            def instances(self, sample, found):
                size = sample["height"], sample["width"]
                return Instances(size, pred_boxes=Boxes(found["boxes"].float()),
                                 scores=found["scores"], pred_classes=found["classes"])  # fmt: skip

        monkeypatch.setattr(engine, "load_trained", lambda cfg: (Theirs(), facts))

    def run(change=None, *overrides, run=engine.evaluate):
        root = tmp_path / (change.__name__ if change else "plain")
        if not root.exists():
            shutil.copytree(scenes, root)
            file = root / "scenes/coco/instances_test.json"
            content = json.loads(file.read_text())
            if change:
                change(content)
            file.write_text(json.dumps(content))
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        keys = ["MODEL.WEIGHTS", "w.pth", "OUTPUT_DIR", str(tmp_path / "out"), *overrides]
        return run(engine.load_config(path, list(map(str, keys))))

    run.engine, run.facts, run.output, run.classes = engine, facts, tmp_path / "out", trained
    return run


def test_the_same_classes_in_another_order_score_the_same(evaluate):
    """The scores are equal to the last bit, and the server's file has the dataset's own ids."""
    expected = evaluate()
    assert 20 < expected["bbox/AP"] < 80
    plain = json.loads((evaluate.output / "inference/scenes_coco_test/detections.json").read_text())
    found = evaluate(reverse)
    assert {k: repr(v) for k, v in found.items()} == {k: repr(v) for k, v in expected.items()}
    turned = json.loads(
        (evaluate.output / "inference/scenes_coco_test/detections.json").read_text()
    )
    count = len(evaluate.classes)
    assert len(turned) == len(plain) > 0
    for one, other in zip(plain, turned):
        assert other["category_id"] == count + 1 - one["category_id"]
        assert other["bbox"] == one["bbox"]


def test_a_subset_is_scored_on_the_subset(evaluate, caplog):
    expected, found = evaluate(), evaluate(halve)
    names = evaluate.classes[1::2]
    for name in names:
        np.testing.assert_equal(found[f"bbox/AP-{name}"], expected[f"bbox/AP-{name}"])
    assert {k for k in found if "AP-" in k} == {f"bbox/AP-{name}" for name in names}
    mean = np.nanmean([expected[f"bbox/AP-{name}"] for name in names])
    assert found["bbox/AP"] == pytest.approx(mean, abs=1e-9)


def test_other_names_are_an_error_that_can_be_overruled(evaluate):
    first = evaluate.classes[0]
    words = f"only scenes_coco_test has my {first}, .*; only w.pth has {first}, .*BY_ORDER True"
    with pytest.raises(ConfigError, match=words):
        evaluate(rename)
    found = evaluate(rename, "RESNET_DET.CLASSES_BY_ORDER", True)
    assert found["bbox/AP"] == evaluate()["bbox/AP"]
    assert f"bbox/AP-my {first}" in found
    with pytest.raises(ConfigError, match="BY_ORDER: True: 8 and 4 classes"):
        evaluate(halve, "RESNET_DET.CLASSES_BY_ORDER", True)


def test_a_file_without_names_is_believed(evaluate):
    expected = evaluate()
    del evaluate.facts["classes"]
    assert evaluate()["bbox/AP"] == expected["bbox/AP"]
    with pytest.raises(ConfigError, match="NUM_CLASSES: 8, but scenes_coco_test has 4 classes"):
        evaluate(halve)


def test_a_run_compares_its_own_sets(evaluate):
    """Before the training: names that are not trained are refused, another order is not."""
    for run in (evaluate.engine.check, evaluate.engine.train):
        words = "only scenes_coco_test has my .*; only scenes_coco_train has"
        with pytest.raises(ConfigError, match=words):
            evaluate(rename, "MODEL.WEIGHTS", "", run=run)
    evaluate(reverse, "MODEL.WEIGHTS", "", run=evaluate.engine.check)
    evaluate(halve, "MODEL.WEIGHTS", "", run=evaluate.engine.check)


def test_a_run_is_not_resumed_on_other_classes(evaluate):
    def swap(content):
        a, b = content["categories"][:2]
        a["name"], b["name"] = b["name"], a["name"]

    keys = ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", (), "DATASETS.TEST", (),
            "DATASETS.TRAIN", ("scenes_coco_test",)]  # fmt: skip
    evaluate(None, *keys, run=evaluate.engine.train)
    keys += ["SOLVER.MAX_ITER", 2]
    words = "the run to resume has other classes than DATASETS.TRAIN: their order differs"
    with pytest.raises(ConfigError, match=words):
        evaluate(swap, *keys, run=lambda cfg: evaluate.engine.train(cfg, resume=True))
