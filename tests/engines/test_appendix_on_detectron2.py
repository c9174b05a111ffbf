"""The appendix's improvements in Detectron2; what they compute is held by test_appendix.py."""

import json

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("detectron2")

from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2_models import losses, picture, small_cfg
from golden import fill
from tiny_configs import TINY

from resnet_det.config.defaults import ConfigError, add_resnet_det_config
from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.engines import embedded, embedded_data
from resnet_det.engines.on_detectron2 import engine
from resnet_det.engines.on_detectron2.data import Mapper, load_any
from resnet_det.engines.on_detectron2.evaluation import as_tested
from resnet_det.engines.provenance import checkpoint_facts
from resnet_det.plugin.roi_heads import PaperROIHeads

pytestmark = pytest.mark.detectron2

SIDES = (32, 48, 64)
CLASSES = [f"kind{i}" for i in range(8)]


@pytest.fixture
def config(tmp_path, monkeypatch):
    write_scenes(str(tmp_path), trainval=6, test=3, train_crops=8, val_crops=8, size=(48, 64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return lambda *keys: engine.load_config(path, ["OUTPUT_DIR", str(tmp_path / "out"), *keys])


def test_train_and_evaluate_with_all_of_them(config, tmp_path):
    """The results equal the embedded engine's with the same checkpoint and files."""
    context = ["RESNET_DET.GLOBAL_CONTEXT", "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    engine.train(config(*context, "SOLVER.MAX_ITER", "2"))
    weights = str(tmp_path / "out/model_final.pth")
    improved = [
        *context, "MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "eval"),
        "RESNET_DET.BOX_REFINEMENT", "True", "RESNET_DET.MULTI_SCALE_TEST", str(SIDES),
        "RESNET_DET.ENSEMBLE", f"('{weights}',)",
    ]  # fmt: skip
    metrics = engine.evaluate(config(*improved))
    keys = [*improved, "OUTPUT_DIR", str(tmp_path / "embedded")]
    other = embedded.evaluate(embedded.load_config(tmp_path / "tiny.yaml", keys))
    assert metrics == pytest.approx(other, nan_ok=True, abs=1e-3)
    found = [
        (tmp_path / folder / "inference/scenes_voc_test").iterdir() for folder in ("eval", "embedded")
    ]  # fmt: skip
    assert [p.name for p in sorted(found[0])] == [p.name for p in sorted(found[1])]

    with pytest.raises(
        ValueError, match="RESNET_DET.GLOBAL_CONTEXT True, but the config says False"
    ):
        engine.evaluate(config("MODEL.WEIGHTS", weights))
    with pytest.raises(ValueError, match="RESNET_DET.ENSEMBLE: is only for testing"):
        engine.train(config("RESNET_DET.ENSEMBLE", f"('{weights}',)", "OUTPUT_DIR", "new"))


def test_both_engines_augment_tests_alike(config, tmp_path):
    """Trained, then evaluated by each engine: with and without TEST.AUG, as Detectron2 names it."""
    augment = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(32, 56)", "TEST.EVAL_PERIOD", "1",
               "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.MAX_ITER", "2"]  # fmt: skip
    trained = engine.train(config(*augment))
    with open(tmp_path / "out/metrics.json") as file:
        lines = [json.loads(line) for line in file]
    assert ["bbox_TTA/AP" in line for line in lines if "bbox/AP" in line] == [False, True]
    assert (tmp_path / "out/inference_TTA/scenes_voc_test/results.json").exists()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "out/model_final.pth")]
    keys = [*augment, *weights, "OUTPUT_DIR", str(tmp_path / "theirs")]
    theirs = engine.evaluate(config(*keys))
    keys[-1] = str(tmp_path / "ours")
    ours = embedded.evaluate(embedded.load_config(tmp_path / "tiny.yaml", keys))
    assert trained == pytest.approx(theirs, nan_ok=True, abs=1e-3)
    assert ours == pytest.approx(theirs, nan_ok=True, abs=1e-3)
    assert {key.partition("/")[0] for key in ours} == {"bbox", "bbox_TTA"}
    assert "scenes_voc_test (bbox_TTA)" in (tmp_path / "ours/report.html").read_text()
    expected = [*keys, "TEST.EXPECTED_RESULTS", "[['bbox_TTA', 'AP', 99.0, 0.5]]"]
    with pytest.raises(RuntimeError, match="EXPECTED_RESULTS: bbox_TTA/AP"):
        embedded.evaluate(embedded.load_config(tmp_path / "tiny.yaml", expected))


def test_the_mapper_gives_the_embedded_engines_scales(config, tmp_path):
    keys = ("RESNET_DET.MULTI_SCALE_TEST", str(SIDES), "INPUT.MAX_SIZE_TEST", "60")
    cfg = config(*keys)
    (record, *_) = load_any(cfg.DATASETS.TEST).records
    theirs = Mapper(cfg, False)(record)
    ours = embedded_data.test_mapper(embedded.load_config(tmp_path / "tiny.yaml", keys))
    ours = ours(record, np.random.default_rng(0))
    assert len(theirs["scales"]) == 3
    for a, b in zip([theirs["image"], *theirs["scales"]], [ours["image"], *ours["scales"]]):
        assert torch.equal(a, b)
    assert "scales" not in Mapper(cfg, True)(record)
    assert "scales" not in Mapper(config(), False)(record)


def own_cfg(**keys):
    cfg = small_cfg("paper_resnet18")
    add_resnet_det_config(cfg)
    for key, value in keys.items():
        cfg.RESNET_DET[key] = value
    return cfg


def test_context_equals_two_runs_of_the_head():
    """Compares vectors, losses and gradients in another project with the node RESNET_DET."""
    model = build_model(own_cfg(GLOBAL_CONTEXT=True))
    heads, seen, vectors = model.roi_heads, [], []
    channels = heads.box_predictor.cls_score.in_features // 2
    assert channels == 512
    heads.box_predictor.register_forward_pre_hook(lambda _, args: vectors.append(args[0]))
    pool = heads.pooler.forward
    heads.pooler.forward = lambda maps, boxes: seen.append((maps, boxes)) or pool(maps, boxes)
    found = losses(model, picture())
    assert set(found) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    (maps, (boxes,)), (x,) = seen[0], vectors
    heads.pooler.forward = pool
    assert boxes.tensor[-1].tolist() == [0, 0, 96, 64] and len(boxes) == len(x) + 1
    regions, whole = (
        heads._shared_roi_transform(maps, [Boxes(b)]).mean((2, 3))
        for b in (boxes.tensor[:-1], boxes.tensor[-1:])
    )
    torch.testing.assert_close(x[:, :channels], regions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x[:, channels:], whole.expand_as(regions), rtol=1e-4, atol=1e-5)
    sum(found.values()).backward()
    halves = heads.box_predictor.cls_score.weight.grad.split(channels, 1)
    assert all(half.abs().sum() > 0 for half in halves)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("ROI_HEADS.NAME", "Res5ROIHeads", "BOX_REFINEMENT: needs MODEL.ROI_HEADS.NAME"),
        ("ROI_HEADS.NAME", "StandardROIHeads", "BOX_REFINEMENT: needs MODEL.ROI_HEADS.NAME"),
        ("MASK_ON", True, "BOX_REFINEMENT.*MASK_ON"),
    ],
)
def test_what_they_cannot_stand_on_is_refused(key, value, words):
    cfg = own_cfg(BOX_REFINEMENT=True)
    cfg.MODEL.BACKBONE.NAME = "paper_resnet50"  # which Res5ROIHeads would fit
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=words):
        build_model(cfg)


@pytest.fixture
def member(config, tmp_path):
    """``member(name, KEY, VALUE, ...)``: the file of a detector with weights by their names."""

    def write(name, *keys):
        cfg = config(*keys)
        state = fill(build_model(cfg)).state_dict()
        torch.save({"model": state, "meta": checkpoint_facts(cfg, CLASSES)}, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_a_member_with_detectron2s_own_head_is_tested_as_ours(config, member):
    """Res5ROIHeads of ResNet-50 and PaperROIHeads are the same head, under the same names."""
    keys = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "50",
            "MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']",
            "MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
            "14", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]  # fmt: skip
    stock, ours = (
        member(f"{name}.pth", *keys, "MODEL.ROI_HEADS.NAME", name)
        for name in ("Res5ROIHeads", "PaperROIHeads")
    )
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    found = [
        engine.load_detector(ours, overrides=["RESNET_DET.ENSEMBLE", (file,)], score_thresh=0.0)(
            [image]
        )[0]
        for file in (stock, ours)
    ]
    for one, other in zip(*found, strict=True):
        assert len(one) and np.array_equal(one, other)


def test_a_member_with_another_head_is_named(config, member):
    heads = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME",
             "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"]  # fmt: skip
    other = member("other.pth", *heads)
    words = "RESNET_DET.ENSEMBLE: .*other.pth: .*ROI_HEADS.NAME StandardROIHeads: give"
    with pytest.raises(ConfigError, match=words):
        engine.load_detector(
            member("one.pth"), overrides=["RESNET_DET.ENSEMBLE", (other,)], score_thresh=0.0
        )


def test_off_is_the_very_model(config):
    model = build_model(config())
    assert as_tested(model, config()) is model
    assert not model.roi_heads.context


def test_a_lazy_head_with_context_has_no_masks():
    """A YAML config raises earlier; without the error, this head would silently skip masks."""
    cfg = own_cfg()
    cfg.MODEL.MASK_ON = True
    parts = PaperROIHeads.from_config(cfg, {"res4": ShapeSpec(channels=256, stride=16)})
    with pytest.raises(ValueError, match="mask_head: .*only predict boxes"):
        PaperROIHeads(**parts | {"context": True})
