"""What weights and checkpoints the embedded engine starts from, takes over and refuses."""

import os
from pathlib import Path

import pytest
import torch
from embedded_runs import final_weights

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.detector.build import build_model
from resnet_det.detector.weights import fit_detector, new_layers
from resnet_det.engines import embedded
from resnet_det.nets import build_net
from resnet_det.weights.loading import WeightsError, read


def test_new_layers_start_fresh(pretrained):
    """A file may lack them; what is in it is not read; no other may be missing."""
    weights = Path("output/classifier/model_final.pth")
    whole = read(weights)[0]
    without = {k: v for k, v in whole.items() if not k.startswith("res4.2.")}
    torch.save({"model": without}, "part.pth")
    model = build_model(load_config("detector.yaml"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match="res4.2.conv1.weight"):
        fit_detector(model, *read("part.pth"), "part.pth")
    for file in ("part.pth", weights):
        model.load_state_dict(before)
        cfg = load_config("detector.yaml", ["RESNET_DET.NEW_LAYERS", ("res4.2",)])
        match = fit_detector(model, *read(file), file, new_layers(model, cfg))
        assert "roi_heads.res4.2.conv1.weight" in match.missing
        after = model.state_dict()
        for key in whole:
            name = ("roi_heads." if key.startswith("res4.") else "backbone.") + key
            if name in after:
                expected = before[name] if key.startswith("res4.2.") else whole[key]
                assert torch.equal(after[name], expected), key
    with pytest.raises(ConfigError, match="NEW_LAYERS: res9"):
        new_layers(model, load_config("detector.yaml", ["RESNET_DET.NEW_LAYERS", ("res9",)]))


def test_fine_tuning_keeps_the_rows_of_shared_classes(pretrained, caplog):
    """Rows are kept in any order, other rows start fresh. Without names, the order is assumed to
    match."""
    still = ["SOLVER.BASE_LR", 0.0, "SOLVER.MAX_ITER", 1, "DATASETS.TEST", ()]
    embedded.train(load_config("detector.yaml", [*still, "OUTPUT_DIR", "output/first"]))
    content = torch.load("output/first/model_final.pth", weights_only=True)
    start, names = content["model"], content["meta"].pop("classes")
    layers = {key for key in start if "box_predictor." in key and key.endswith("weight")}
    assert len(layers) == 2
    score, box = "roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred."
    caplog.set_level("INFO")
    renamed = [f"my {name}" for name in names]
    for classes, by_order in (
        (names, False), (None, False), (renamed, True), (renamed, False),
        ([*names[:0:-1], "dragon"], False),
    ):  # fmt: skip
        meta = content["meta"] | ({"classes": classes} if classes else {})
        torch.save({"model": start, "meta": meta}, "start.pth")
        output = f"output/{len(os.listdir('output'))}"
        cfg = load_config("detector.yaml", [
            *still, "MODEL.WEIGHTS", "start.pth", "OUTPUT_DIR", output, "SEED", 7,
            "RESNET_DET.CLASSES_BY_ORDER", by_order,
        ])  # fmt: skip
        caplog.clear()
        embedded.train(cfg)
        after = final_weights(cfg.OUTPUT_DIR)
        changed = {key for key in after if not torch.equal(after[key], start[key])}
        kept = classes in (None, names) or by_order
        assert changed == (set() if kept else layers), classes
        assert ("start.pth: has other classes" in caplog.text) != kept
    for to, name in enumerate(names):
        if name not in classes:
            assert not torch.equal(after[score + "weight"][to], start[score + "weight"][to])
            continue
        at = classes.index(name)
        for key, rows in ((score + "weight", 1), (score + "bias", 1), (box + "weight", 4)):
            kept = after[key][rows * to : rows * (to + 1)]
            assert torch.equal(kept, start[key][rows * at : rows * (at + 1)]), (key, name)
    assert torch.equal(after[score + "weight"][-1], start[score + "weight"][-1])  # background
    told = f"7 classes keep their rows ({', '.join(names[1:])}), 1 start fresh ({names[0]})"
    assert told in caplog.text


def test_frozen_norms_without_statistics_are_refused(folder):
    cfg = load_config("detector.yaml", ["MODEL.WEIGHTS", "", "RESNET_DET.PRETRAIN", ""])
    with pytest.raises(ConfigError, match="frozen batch norms have no statistics"):
        embedded.train(cfg)


@pytest.mark.parametrize("rest", [{"iteration": 3, "trainer": {}}, {}], ids=["detectron2", "bare"])
@pytest.mark.parametrize("name", ["model_0000002.pth", "model_final.pth"])
def test_a_file_without_the_state_of_a_run_is_not_resumed(pretrained, rest, name):
    """Not even one that another program put there, and that no ``last_checkpoint`` names."""
    path = Path("output/detector", name)
    path.parent.mkdir()
    torch.save({"model": {}, **rest}, path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="output/detector: .*no state to resume.*MODEL.WEIGHTS"):
        embedded.train(load_config("detector.yaml"), resume=True)
    assert path.read_bytes() == content


def test_dilated_conv5_in_the_trunk_starts_from_a_classifier(folder):
    """StandardROIHeads on a dilated res5: the whole classifier but its linear layer is used."""
    from resnet_det.config.defaults import get_cfg

    torch.save(build_net("paper_resnet18").state_dict(), "net.pth")
    cfg = get_cfg()
    cfg.merge_from_list([
        "MODEL.BACKBONE.NAME", "paper_resnet18", "MODEL.RESNETS.RES5_DILATION", 2,
        "MODEL.RESNETS.OUT_FEATURES", ["res5"], "MODEL.RPN.IN_FEATURES", ["res5"],
        "MODEL.ROI_HEADS.IN_FEATURES", ["res5"], "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 2, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    ])  # fmt: skip
    match = fit_detector(build_model(cfg), *read("net.pth"), "net.pth")
    assert set(match.unused) == {"linear.weight", "linear.bias"}
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "Res5ROIHeads", 0
    with pytest.raises(ConfigError, match="OUT_FEATURES|IN_FEATURES"):
        build_model(cfg)
