"""The engine on the real Detectron2: configs, weights, data, training, several processes."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from small_configs import CLASSIFIER

from resnet_det import data
from resnet_det.config.defaults import flatten
from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.evaluation import voc_ap
from resnet_det.nets import build_net
from resnet_det.training import distributed, precision
from resnet_det.weights.loading import WeightsError, classifier_name, read

detectron2 = pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_configs import TINY

from resnet_det.detector.weights import check_statistics, new_layers
from resnet_det.engines import classifier, pick, pretrain
from resnet_det.engines.class_matching import match_test_sets
from resnet_det.engines.on_detectron2 import engine
from resnet_det.engines.on_detectron2.checkpointer import Checkpointer
from resnet_det.engines.on_detectron2.data import load_test_sets
from resnet_det.engines.on_detectron2.evaluation import evaluate_model
from resnet_det.engines.on_detectron2.trainer import Trainer

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_scenes(str(root), trainval=6, test=3, train_crops=8, val_crops=8, size=(48, 64))
    return root


@pytest.fixture(autouse=True)
def datasets(monkeypatch, scenes):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))

    def load(*overrides):
        return engine.load_config(path, ["OUTPUT_DIR", str(tmp_path / "out"), *overrides])

    load.path = path
    return load


# ---- configuration


def test_base_overrides_and_pretrain(config, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: tiny.yaml\nRESNET_DET: {PRETRAIN: cifar.yaml}\nSEED: 5\n")
    cfg = engine.load_config(child, ["SOLVER.MAX_ITER", "7"])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (5, 7, 8)
    assert cfg.RESNET_DET.PRETRAIN == "cifar.yaml"
    assert cfg.is_frozen()
    again = tmp_path / "config.yaml"
    again.write_text(cfg.dump())
    assert engine.load_config(again).SOLVER == cfg.SOLVER


@pytest.mark.parametrize(
    "text, overrides, named",
    [
        ("MODEL: {RPM: {LOSS_WEIGHT: 1.0}}", [], r"bad\.yaml.*MODEL\.RPM.*did you mean .*MODEL\."),
        (
            "SOLVER: {BASE_LRR: 1.0}",
            [],
            r"bad\.yaml.*SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR",
        ),
        ("SOLVER: {BASE_LR: [1]}", [], r"bad\.yaml.*SOLVER\.BASE_LR"),
        ("MODEL: [", [], r"bad\.yaml.*not a readable YAML"),
        ("SEED: !!python/object/apply:eval ['1 + 1']", [], r"bad\.yaml.*write out values"),
        ("- 1", [], r"bad\.yaml"),
        ("_BASE_: nowhere.yaml", [], r"bad\.yaml"),
        ("SEED: 1", ["SOLVER.BASE_LRR", "1"], r"command line.*SOLVER\.BASE_LRR.*SOLVER\.BASE_LR"),
        ("SEED: 1", ["SEED"], "pairs"),
        ("SEED: 1", ["SEED", "x"], "command line"),
        ("MODEL: {META_ARCHITECTURE: Classifier}", [], "META_ARCHITECTURE"),
    ],
)
def test_bad_config_is_refused_by_name(tmp_path, text, overrides, named):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        engine.load_config(path, overrides)


def test_missing_config_file(tmp_path):
    with pytest.raises(ValueError, match="none.yaml: no such config file"):
        engine.load_config(tmp_path / "none.yaml")


# ---- training


def lines(cfg):
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        return [json.loads(line) for line in file]


def test_train_resume_and_evaluate(config, tmp_path):
    cfg = config()
    metrics = engine.train(cfg)
    assert 0 <= metrics["bbox/AP50"] <= 100
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"config.yaml", "metrics.json", "report.html", "model_final.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    assert [line["iteration"] for line in lines(cfg)] == [3, 4]
    assert lines(cfg)[1]["bbox/AP50"] == metrics["bbox/AP50"]

    # A checkpoint says how its pixels were made, and evaluates to the same numbers.
    _, facts = read(out / "model_final.pth")
    assert facts["format"] == "BGR" and facts["classes"][0] == "ball" and facts["seed"] == 3
    final = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "eval")]
    again = engine.evaluate(config(*final))
    assert again == pytest.approx(metrics, nan_ok=True)
    page = (tmp_path / "eval/report.html").read_text()
    assert f"<dt>weights</dt><dd>{final[1]}</dd>" in page and "<dt>iterations</dt>" not in page
    assert "<dt>weights: seed</dt><dd>3</dd>" in page
    with pytest.raises(ValueError, match="INPUT.FORMAT"):
        engine.evaluate(config(*final, "INPUT.FORMAT", "RGB"))
    with pytest.raises(RuntimeError, match="EXPECTED_RESULTS.*bbox/AP"):
        engine.evaluate(config(*final, "TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 99.0, 0.5]]"))

    # Resuming goes on at iteration 4, with the optimizer's state and the seed of its beginning.
    precise = ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
    longer = config("SOLVER.MAX_ITER", "6", "SEED", "8", *precise)
    engine.train(longer, resume=True)
    assert read(out / "model_final.pth")[1]["seed"] == 3
    assert [line["iteration"] for line in lines(longer)] == [3, 4, 5, 6]
    before, after = (
        torch.load(out / name, weights_only=True)["model"]
        for name in ("model_0000003.pth", "model_final.pth")
    )
    key = "backbone.stem.conv1.weight"
    assert not torch.equal(before[key], after[key])
    changed = (after[key] - before[key]).abs().max()
    assert changed < 0.1

    # A new run does not write over it; without a checkpoint its metrics are not mixed with ours.
    with pytest.raises(ValueError, match="OUTPUT_DIR.*--resume"):
        engine.train(config("SOLVER.MAX_ITER", "1"))
    (out / "last_checkpoint").unlink()
    engine.train(config("SOLVER.MAX_ITER", "1"))
    assert [line["iteration"] for line in lines(cfg)] == [0, 1]


MAIN = """
import json, sys
from resnet_det.engines import classifier
from resnet_det.engines.on_detectron2 import engine

def main(args):
    cfg = engine.load_config(args[0], args[1:])
    metrics = engine.train(cfg)
    print("metrics", sorted(metrics)[:1])

if __name__ == "__main__":
    engine.launch(main, sys.argv[2:], **json.loads(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["torchrun", "num_gpus", "machines"])
def test_two_processes_on_the_cpu(how, config, tmp_path):
    """By torchrun, as two of one machine, and as two machines (on the loopback device)."""
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    start, processes = [sys.executable, "-W", "ignore"], [{"num_gpus": 2}]
    if how == "torchrun":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    if how == "machines":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        processes = [{"num_machines": 2, "machine_rank": rank, "dist_url": url} for rank in (0, 1)]
    out = tmp_path / "out"
    rest = [config.path, "OUTPUT_DIR", out, "SOLVER.MAX_ITER", "2"]
    running = [
        subprocess.Popen(
            [str(x) for x in (*start, script, json.dumps(options), *rest)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for options in processes
    ]  # fmt: skip
    printed = []
    for each in running:
        told, faults = each.communicate()
        assert each.returncode == 0, faults[-3000:]
        printed += [line for line in told.splitlines() if line.startswith("metrics")]
    assert sorted(printed) == ["metrics ['bbox/AP']", "metrics []"]
    assert "World size: 2" in (out / "log.txt").read_text()
    assert (out / "report.html").exists()


def test_amp_is_bfloat16_where_the_cpu_has_it(config, monkeypatch):
    cfg = config("SOLVER.AMP.ENABLED", "True", "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
                 "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
                 "MODEL.ROI_BOX_HEAD.NUM_FC", "1")  # fmt: skip
    seen, rounded = [], []

    def roi_align(x, rois, *grid):
        rounded.append(torch.equal(rois, rois.bfloat16().to(rois)))
        return torchvision.ops.roi_align(x, rois, *grid)

    monkeypatch.setattr(sys.modules["detectron2.layers.roi_align"], "roi_align", roi_align)
    for hardware in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device, has=hardware: has)
        trainer = Trainer(cfg, *engine.prepare(cfg))
        trainer.model.backbone.res2.register_forward_hook(lambda *a: seen.append(a[2].dtype))
        sample = next(iter(trainer.data_loader))
        with EventStorage():
            losses = trainer.model(sample)
        assert all(value.isfinite() for value in losses.values())
        trainer.model.eval()(sample)
    assert seen == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    assert rounded == [False] * 4


# ---- weights


def test_new_layers_start_fresh(config, tmp_path):
    """Of a detector's file and of a classifier's; all the rest comes from the file."""
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
    """Wherever they stand; the other rows start fresh. A file that says no names is believed."""
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
    with pytest.raises(WeightsError, match="net.pth: holds cifar_plain20, .*something else"):
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
        (lambda: {"backbone.foo": torch.zeros(1)}, "no tensor of the file fits"),
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


# ---- data and evaluation


def test_wrong_class_count_and_names_are_refused(config):
    with pytest.raises(ValueError, match="NUM_CLASSES: 20, but scenes_voc_trainval has 8"):
        engine.train(config("MODEL.ROI_HEADS.NUM_CLASSES", "20"))
    with pytest.raises(data.UnknownDataset, match="scenes_voc_trainval"):
        engine.train(config("DATASETS.TRAIN", "('scenes_voc_trainvall',)"))
    with pytest.raises(ValueError, match="TEST.AUG.ENABLED"):
        engine.train(config("TEST.AUG.ENABLED", "True"))
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        engine.train(config("DATASETS.TRAIN", "()"))
    for key in ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME"):
        name = flatten(config())[key]
        with pytest.raises(ValueError, match=f"{key}: .*no '{name}x'; did you mean {name}"):
            engine.train(config(key, f"{name}x"))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["DATASETS.TEST", "('scenes_voc_tset',)"], "did you mean scenes_voc_test"),
        (["DATASETS.TRAIN", "('scenes_voc_trainvaal',)"], "did you mean scenes_voc_trainval"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN: name at least one"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "20"], "NUM_CLASSES: 20, but scenes_voc_trainval"),
        (["MODEL.BACKBONE.NAME", "cifar_resnet32"], "cifar_resnet32, but .* trains cifar_resnet20"),
        (["RESNET_DET.NEW_LAYERS", "('fc6',)"], "NEW_LAYERS: fc6"),
        (["SOLVER.STEPS", "(3, 2)"], r"schedule of .*STEPS \(3, 2\)"),
        (["SOLVER.LR_SCHEDULER_NAME", "Foo"], "Unknown LR scheduler: Foo"),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "3", "SOLVER.IMS_PER_BATCH", "16"],
            "REFERENCE_WORLD_SIZE",
        ),
        (["SOLVER.STEPS", "(1, 4)"], r"schedule of .*STEPS \(1, 4\), MAX_ITER 4"),
        (["MODEL.MASK_ON", "True", "RESNET_DET.SKIP_BAD_DATA", "True"], "SKIP_BAD_DATA: is for"),
    ],
)
def test_mistakes_are_known_before_pretraining(config, tmp_path, monkeypatch, overrides, words):
    monkeypatch.setattr(classifier, "train", lambda *_, **__: pytest.fail("it was pretrained"))
    first = CLASSIFIER | {"OUTPUT_DIR": str(tmp_path / "first")}
    (tmp_path / "classifier.yaml").write_text(yaml.safe_dump(first))
    start = ["MODEL.WEIGHTS", str(tmp_path / "first/model_final.pth")]
    cfg = config(*start, "RESNET_DET.PRETRAIN", str(tmp_path / "classifier.yaml"), *overrides)
    with pytest.raises(ValueError, match=words):
        assert pretrain.needed(cfg) is not None
        engine.check(cfg)


@pytest.mark.parametrize("name", ["torchvision", "detectron2"])
def test_a_batch_that_cannot_be_shared_is_known_before(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(distributed, "launch_info", lambda: distributed.Launch(0, 3, 0))
    keys = ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.STEPS", "()"]
    with pytest.raises(ValueError, match="16 images .*cannot be shared equally by 3"):
        pick(name).check_schedule(config(*keys))
    pick(name).check_schedule(config(*keys, "SOLVER.IMS_PER_BATCH", "6"))
    if name == "detectron2":  # 16 images of 8 processes are 6 of 3
        engine.check_schedule(config(*keys, "SOLVER.REFERENCE_WORLD_SIZE", "8"))


def test_schedules_that_do_not_read_the_steps(config):
    steps = ["SOLVER.STEPS", "(3, 2)"]
    engine.check_schedule(config(*steps, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"))
    with pytest.raises(ValueError, match=r"schedule of .*STEPS \(3, 2\)"):
        engine.check_schedule(config(*steps))


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.EXPECTED_RESULTS", "['bbox', 'AP', 38, 1]"),
        ("MODEL.FPN.IN_FEATURES", "[2]"),
        ("TEST.KEYPOINT_OKS_SIGMAS", "['a']"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "['a']"),
        ("SOLVER.STEPS", "(1e3,)"),
    ],
)
def test_what_a_list_holds_is_checked(config, key, value):
    with pytest.raises(ValueError, match=key):
        config(key, value)


def test_one_list_of_anchors_is_for_all_levels(config):
    assert config("MODEL.ANCHOR_GENERATOR.SIZES", "[16, 32.5]").MODEL.ANCHOR_GENERATOR.SIZES == [
        [16, 32.5]
    ]


def seen_images(loader, count):
    """Mapped samples by file name, from enough batches to have seen each image."""
    found = {}
    for batch in loader:
        found |= {sample["file_name"]: sample for sample in batch}
        count -= 1
        if not count:
            return found


def test_difficult_objects_are_left_out_if_asked(config):
    difficult = {
        r["file_name"]: [a["difficult"] for a in r["annotations"]]
        for r in data.load_dataset("scenes_voc_trainval").records
    }
    assert any(any(flags) for flags in difficult.values())
    for use in (True, False):
        cfg = config("RESNET_DET.USE_DIFFICULT", str(use))
        trainer = Trainer(cfg, *engine.prepare(cfg))
        found = seen_images(trainer.build_train_loader(trainer.cfg), 12)
        expected = {f: sum(use or not d for d in flags) for f, flags in difficult.items()}
        assert {f: len(s["instances"]) for f, s in found.items()} == {
            f: n for f, n in expected.items() if n
        }


def test_a_broken_image_is_named_or_left_out(config, monkeypatch, tmp_path):
    write_scenes(str(tmp_path), trainval=4, test=2, train_crops=8, val_crops=8, size=(48, 64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = data.load_dataset("scenes_voc_trainval").records
    broken = records[0]["file_name"]
    with open(broken, "r+b") as file:
        file.truncate(300)
    with pytest.raises(data.ImageError, match=records[0]["image_id"]):
        engine.train(config())
    cfg = config("RESNET_DET.SKIP_BAD_DATA", "True")
    trainer = Trainer(cfg, *engine.prepare(cfg))
    found = seen_images(trainer.data_loader, 8)
    assert set(found) == {r["file_name"] for r in records[1:] if r["annotations"]}
    assert len(found) > 1


@pytest.mark.parametrize("before_pretraining", [True, False])
def test_unusable_test_images_are_named_before_training(
    config, monkeypatch, tmp_path, before_pretraining
):
    write_scenes(str(tmp_path), trainval=4, test=3, train_crops=8, val_crops=8, size=(48, 64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    files = [record["file_name"] for record in data.load_dataset("scenes_coco_test").records]
    Path(files[0]).unlink()
    Image.new("RGB", (9, 9)).save(files[2])
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("it was trained"))
    cfg = config("DATASETS.TEST", "('scenes_coco_test',)")
    with pytest.raises(data.DatasetError, match="scenes_coco_test: 2 images cannot") as caught:
        engine.check(cfg) if before_pretraining else engine.train(cfg)
    assert f"{files[0]}: missing image file" in str(caught.value)
    assert f"{files[2]}: is 9 x 9 pixels" in str(caught.value)


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_an_unknown_name_is_told_before_the_scenes_are_drawn(config, monkeypatch, tmp_path, key):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    cfg = config(key, "('scenes_voc_tst',)")
    for run in (engine.check, engine.train):
        with pytest.raises(data.UnknownDataset, match="did you mean scenes_voc_test"):
            run(cfg)
    assert not (tmp_path / "none").exists()


def test_an_evaluation_makes_no_training_set(config, monkeypatch):
    made = []
    monkeypatch.setattr(engine, "make_datasets", lambda *names: made.extend(names))
    monkeypatch.setattr(engine, "trained", lambda cfg: (None, {}))
    monkeypatch.setattr(engine, "evaluate_model", lambda *_: {})
    engine.evaluate(config("MODEL.WEIGHTS", "x", "DATASETS.TRAIN", "('miniature_voc_trainval',)"))
    assert made == ["scenes_voc_test"]


class Perfect(torch.nn.Module):
    """Detects what the records say, in the original image."""

    def __init__(self, records):
        super().__init__()
        self.records = {r["image_id"]: r for r in records}

    def forward(self, batch):
        return [{"instances": self.detect(sample)} for sample in batch]

    def detect(self, sample):
        objects = self.records[sample["image_id"]]["annotations"]
        found = Instances((sample["height"], sample["width"]))
        found.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in objects]))
        found.scores = torch.ones(len(objects))
        found.pred_classes = torch.tensor([a["category_id"] for a in objects])
        return found


def evaluated(cfg, model):
    """A detector whose file does not name its classes."""
    return evaluate_model(cfg, model, match_test_sets(load_test_sets(cfg), None, "the model", cfg))


def test_a_perfect_detector_scores_100(config):
    model = Perfect(data.load_dataset("scenes_voc_test").records)
    metrics = evaluated(config(), model)
    assert metrics["bbox/AP"] == metrics["bbox/AP50"] == 100
    both = evaluated(config("DATASETS.TEST", "('scenes_voc_test', 'scenes_voc_test')"), model)
    assert both == metrics or both["bbox/AP"] == 100


def test_detectron2s_own_evaluator_agrees(config, tmp_path):
    """On boxes with a decimal and scores with three, which is what it keeps."""
    records = data.load_dataset("scenes_voc_test").records
    rng = np.random.default_rng(0)

    class Imperfect(Perfect):
        def detect(self, sample):
            found = super().detect(sample)
            moved = found.pred_boxes.tensor + torch.from_numpy(rng.integers(-30, 30, (1, 4)) / 10)
            found.pred_boxes = Boxes(moved.round(decimals=1))
            found.scores = torch.from_numpy(rng.integers(1, 1000, len(found)) / 1000)
            return found

    model, meta = Imperfect(records), MetadataCatalog.get("scenes_voc_test")
    DatasetCatalog.get("scenes_voc_test")  # its metadata come with it
    theirs = PascalVOCDetectionEvaluator("scenes_voc_test")
    theirs.reset()
    predictions = []
    for record in records:
        found = model.detect(record)
        theirs.process([record], [{"instances": found}])
        predictions.append(
            {
                "image_id": record["image_id"],
                "boxes": found.pred_boxes.tensor.numpy(),
                "scores": found.scores.numpy(),
                "classes": found.pred_classes.numpy(),
            }
        )
    ours = voc_ap.evaluate(records, predictions, tuple(meta.thing_classes)).metrics
    present = [name for name in meta.thing_classes if ours[f"AP50-{name}"] == ours[f"AP50-{name}"]]
    theirs = theirs.evaluate()["bbox"]
    # Detectron2 counts a class without objects as 0 in its mean.
    assert 0 < theirs["AP50"] < 100
    assert ours["AP50"] * len(present) / 8 == pytest.approx(theirs["AP50"], abs=1e-6)


@pytest.mark.parametrize("files", [(), ("a.pkl", "b.pkl")])
def test_proposals_need_a_file_for_each_dataset(config, files):
    keys = ["MODEL.LOAD_PROPOSALS", "True", "MODEL.PROPOSAL_GENERATOR.NAME",
            "PrecomputedProposals", "DATASETS.PROPOSAL_FILES_TEST", str(files)]  # fmt: skip
    with pytest.raises(ValueError, match=f"PROPOSAL_FILES_TEST: {len(files)} files for 1"):
        load_test_sets(config(*keys))


def test_a_foreign_dataset_is_evaluated_the_coco_way(config):
    records = data.load_dataset("scenes_coco_test").records
    name = "foreign_scenes"
    DatasetCatalog.register(name, lambda: records)
    try:
        MetadataCatalog.get(name).set(thing_classes=[f"class {i}" for i in range(8)])
        plain = [dict(r, annotations=[voc_box(a) for a in r["annotations"]]) for r in records]
        metrics = evaluated(config("DATASETS.TEST", f"('{name}',)"), Perfect(plain))
        assert metrics["bbox/AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def voc_box(annotation):
    x, y, w, h = annotation["bbox"]
    return annotation | {"bbox": [x, y, x + w, y + h]}


# ---- across the engines


def test_the_demo_reads_a_checkpoint_of_this_engine(config):
    from resnet_det.engines.embedded import predictor

    cfg = config("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    engine.train(cfg)
    predict, classes = predictor(f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert len(classes) == 8
    picture = data.load_datasets(cfg.DATASETS.TRAIN).records[0]["file_name"]
    assert set(predict(picture)) == {"boxes", "scores", "classes"}


def test_a_run_of_the_embedded_engine_is_not_resumed_here(config, tmp_path):
    cfg = config("OUTPUT_DIR", str(tmp_path / "embedded"))
    model = detector(config)
    (tmp_path / "embedded").mkdir()
    state = {"model": model.state_dict(), "schedule": {}, "iteration": 3}
    torch.save(state, tmp_path / "embedded/model_0000002.pth")
    (tmp_path / "embedded/last_checkpoint").write_text("model_0000002.pth")
    with pytest.raises(ValueError, match="embedded engine.*MODEL.WEIGHTS"):
        engine.train(cfg, resume=True)


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
