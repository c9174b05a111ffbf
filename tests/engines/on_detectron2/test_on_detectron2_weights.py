"""The engine on Detectron2: the weights that it starts from, loads and rejects."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_det import data
from resnet_det.nets import build_net
from resnet_det.weights.loading import WeightsError, classifier_name, read

detectron2 = pytest.importorskip("detectron2")

from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from resnet_det.data.synthetic.drawing import CLASSES
from resnet_det.detector.weights import check_statistics, new_layers
from resnet_det.engines.on_detectron2 import engine
from resnet_det.engines.on_detectron2.checkpointer import Checkpointer
from resnet_det.engines.predictor import Predictor

pytestmark = pytest.mark.detectron2


def test_new_layers_start_fresh(config, tmp_path):
    """With a detector's and a classifier's file; all other layers are loaded."""
    source = detector(config)
    torch.save({"model": source.state_dict()}, tmp_path / "detector.pth")
    net = build_net("cifar_resnet20", 10, norm="FrozenBN").state_dict()
    without = {k: v for k, v in net.items() if not k.startswith(("res4.", "linear."))}
    torch.save({"model": without}, tmp_path / "classifier.pth")
    for file, layer in (("detector", "roi_heads.box_predictor"), ("classifier", "res4")):
        cfg = config("RESNET_DET.NEW_LAYERS", f"('{layer}',)")
        model = detector(config)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        fresh = new_layers(model, cfg)
        assert fresh == {k for k in before if f"{layer}." in k}
        loaded = Checkpointer(model, fresh=fresh)
        loaded.load(str(tmp_path / f"{file}.pth"), checkpointables=[])
        after, given = model.state_dict(), torch.load(tmp_path / f"{file}.pth")["model"]
        assert all(torch.equal(after[k], before[k]) for k in fresh)
        rest = [k for k in after if (k not in fresh and classifier_name(k) in given) or k in given]
        assert len(rest) > 50
        for key in set(rest) - fresh:
            assert torch.equal(after[key], given.get(key, given.get(classifier_name(key)))), key


def test_fine_tuning_keeps_the_rows_of_shared_classes(config, tmp_path, caplog):
    """Rows are kept in any order, other rows start fresh. Without names, the order is assumed to
    match."""
    still = ["SOLVER.BASE_LR", "0.0", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    engine.train(config(*still))
    content = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    start, names = content["model"], content["meta"].pop("classes")
    layers = {key for key in start if "box_predictor." in key and key.endswith("weight")}
    assert len(layers) == 2
    score, box = "roi_heads.box_predictor.cls_score.", "roi_heads.box_predictor.bbox_pred."
    for number, classes in enumerate((names, None, [*names[:0:-1], "dragon"])):
        meta = content["meta"] | ({"classes": classes} if classes else {})
        file = tmp_path / "start.pth"
        torch.save({"model": start, "meta": meta}, file)
        output = ["OUTPUT_DIR", str(tmp_path / f"{number}")]
        engine.train(config(*still, "MODEL.WEIGHTS", str(file), "SEED", "7", *output))
        after = read(tmp_path / f"{number}/model_final.pth")[0]
        parameters = [key for key in after if key.endswith(("weight", "bias"))]
        changed = {key for key in parameters if not torch.equal(after[key], start[key])}
        if number < 2:
            assert not changed
            continue
        assert changed == layers
        for to, name in enumerate(names):
            if name not in classes:
                assert not torch.equal(after[score + "weight"][to], start[score + "weight"][to])
                continue
            at = classes.index(name)
            for key, rows in ((score + "weight", 1), (score + "bias", 1), (box + "weight", 4)):
                kept = after[key][rows * to : rows * (to + 1)]
                assert torch.equal(kept, start[key][rows * at : rows * (at + 1)]), (key, name)
        assert torch.equal(after[score + "weight"][-1], start[score + "weight"][-1])  # background
        assert (
            f"7 classes keep their rows ({', '.join(names[1:])}), 1 start fresh ({names[0]})"
            in (caplog.text)
        )


def detector(config, *overrides):
    return build_model(config(*overrides))


def same(model, state, prefix):
    own = model.state_dict()
    return all(torch.equal(own[prefix[k.split(".")[0]] + k], v) for k, v in state.items())


def test_a_classifiers_file_fills_trunk_and_head(config, tmp_path):
    net = build_net("cifar_resnet20")
    torch.save({"model": net.state_dict(), "meta": {"format": "BGR"}}, tmp_path / "net.pth")
    model = detector(config)
    Checkpointer(model).load(str(tmp_path / "net.pth"), checkpointables=[])
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("linear")}
    where = dict.fromkeys(("stem", "res2", "res3"), "backbone.") | {"res4": "roi_heads."}
    assert same(model, state, where)


@pytest.mark.parametrize("prefixed", [False, True])
def test_a_plain_nets_file_is_refused_by_a_residual_net(prefixed, config, tmp_path):
    """The names and shapes of their tensors are the same."""
    source = detector(config, "MODEL.BACKBONE.NAME", "cifar_plain20")
    state = (source if prefixed else build_net("cifar_plain20")).state_dict()
    file = tmp_path / "net.pth"
    torch.save({"model": state, "meta": {"net": "cifar_plain20"}}, file)
    Checkpointer(source).load(str(file), checkpointables=[])
    with pytest.raises(WeightsError, match="net.pth: holds cifar_plain20, .*different outputs"):
        Checkpointer(detector(config)).load(str(file), checkpointables=[])


def test_torchvisions_file_fills_a_pyramid(config, tmp_path):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    state, _ = read(tmp_path / "resnet18.pth")
    keys = {
        "MODEL.BACKBONE.NAME": "paper_resnet18_fpn",
        "MODEL.RESNETS.OUT_FEATURES": "['res2', 'res3', 'res4', 'res5']",
        "MODEL.FPN.IN_FEATURES": "['res2', 'res3', 'res4', 'res5']",
        "MODEL.RPN.IN_FEATURES": "['p5']",
        "MODEL.ROI_HEADS.IN_FEATURES": "['p5']",
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": "1",
    }
    model = detector(config, *(x for pair in keys.items() for x in pair))
    Checkpointer(model).load(str(tmp_path / "resnet18.pth"), checkpointables=[])
    state = {k: v for k, v in state.items() if not k.startswith("linear")}
    assert len(state) > 100
    assert same(model, state, {k.split(".")[0]: "backbone.bottom_up." for k in state})


@pytest.mark.parametrize(
    "content, named",
    [
        (lambda: build_net("cifar_resnet32").state_dict(), "res2.3"),
        (lambda: {"backbone.foo": torch.zeros(1)}, "no tensor in the file fits"),
        (lambda: {"model": 1}, "no dictionary of tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(config, tmp_path, content, named):
    path = tmp_path / "weights.pth"
    torch.save(content(), path)
    with pytest.raises(WeightsError, match=named):
        engine.train(config("MODEL.WEIGHTS", str(path)))


def test_missing_weights_are_refused(config, tmp_path):
    with pytest.raises(WeightsError, match="none.pth: no such file"):
        engine.train(config("MODEL.WEIGHTS", str(tmp_path / "none.pth")))
    with pytest.raises(ValueError, match="MODEL.WEIGHTS"):
        engine.evaluate(config())


def test_a_classifier_is_no_detector_to_evaluate(config, tmp_path):
    torch.save(build_net("cifar_resnet20").state_dict(), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="not a checkpoint of this detector"):
        engine.evaluate(config("MODEL.WEIGHTS", str(tmp_path / "net.pth")))


def test_a_detector_without_statistics_does_not_fill_frozen_norms(config, tmp_path):
    """Such as one with group norms. Frozen norms would be affine maps, and the AP wrong."""
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN")
    state = detector(config, *frozen).state_dict()
    without = {key: value + 0.5 for key, value in state.items() if "running_" not in key}
    torch.save({"model": without}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"it lacks .*norm\.running_mean"):
        engine.evaluate(config(*frozen, "MODEL.WEIGHTS", str(tmp_path / "other.pth")))


def test_frozen_norms_without_statistics_are_refused(config):
    with pytest.raises(ValueError, match="frozen batch norms.*NORM: BN"):
        engine.train(config("MODEL.RESNETS.NORM", "FrozenBN"))
    with pytest.raises(ValueError, match="frozen batch norms"):
        engine.train(config("MODEL.BACKBONE.FREEZE_AT", "1"))


def test_caffes_folded_norms_count_as_filled(config):
    model = detector(config, "MODEL.RESNETS.NORM", "FrozenBN")
    for name, value in model.state_dict().items():
        if name.endswith("norm.weight"):
            value.fill_(0.5)
    check_statistics(model)


def test_a_predictor_of_either_engine_reads_a_checkpoint_of_this_one(config):
    cfg = config("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    engine.train(cfg)
    picture = data.load_datasets(cfg.DATASETS.TRAIN).records[0]["file_name"]
    weights, keys = f"{cfg.OUTPUT_DIR}/model_final.pth", ["MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0]
    found = [
        Predictor(weights, name, "cpu", 0, overrides=keys)(picture)
        for name in ("detectron2", "torchvision")
    ]
    assert [len(each) for each in found] == [80, 80]  # 10 regions of 8 classes
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-4)
    assert set(found[0].names) == set(CLASSES)


@pytest.mark.parametrize("rest", [{"schedule": {}, "iteration": 3}, {}], ids=["embedded", "bare"])
@pytest.mark.parametrize("name", ["model_0000002.pth", "model_final.pth"])
def test_a_file_without_the_state_of_a_run_is_not_resumed(config, tmp_path, rest, name):
    """Not even one that another program put there, and that no ``last_checkpoint`` names."""
    cfg, path = config("OUTPUT_DIR", str(tmp_path / "out")), tmp_path / "out" / name
    path.parent.mkdir()
    torch.save({"model": detector(config).state_dict(), **rest}, path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=f"{name}: holds no state to resume.*MODEL.WEIGHTS"):
        engine.train(cfg, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize("fresh", [(), ("fc.weight",)])
def test_frozen_norms_of_detectron2_keep_the_statistics_of_the_file(tmp_path, fresh):
    norm = FrozenBatchNorm2d(4)
    net = torch.nn.ModuleDict({"norm": norm, "fc": torch.nn.Linear(2, 2)})
    file = {key: value + 0.5 for key, value in net.state_dict().items()}
    torch.save({"model": file}, tmp_path / "net.pth")
    before = net["fc"].weight.clone()
    Checkpointer(net, fresh=fresh).load(str(tmp_path / "net.pth"), checkpointables=[])
    for key, value in norm.state_dict(prefix="norm.").items():
        assert torch.equal(value, file[key]), key
    assert torch.equal(net["fc"].weight, before) == bool(fresh)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def test_a_hostile_pickle_runs_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pkl").write_bytes(pickle.dumps({"model": Hostile()}))
    model = detector(config)
    with pytest.raises(WeightsError, match="weights.pkl"):
        Checkpointer(model).load("weights.pkl", checkpointables=[])
    # As before torch 2.6, where a file that was to be resumed or replayed could run code.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"model": {}, "trainer": Hostile()}, "not_finite_0000001.pth")
    with pytest.raises(RuntimeError, match="not_finite_0000001.pth"):
        Checkpointer(model).load("not_finite_0000001.pth")
    assert not Path("hostile-code-ran").exists()
