"""The engine on the real Detectron2: training, resuming, several processes, precision."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision

from resnet_det.training import distributed, precision
from resnet_det.weights.loading import read

detectron2 = pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from resnet_det.engines.on_detectron2 import engine, trainer
from resnet_det.engines.on_detectron2.evaluation import Detector, as_tested
from resnet_det.engines.on_detectron2.trainer import Trainer

pytestmark = pytest.mark.detectron2


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
    for path in (out / "last_checkpoint", *out.glob("model_*.pth")):
        path.unlink()
    engine.train(config("SOLVER.MAX_ITER", "1"))
    assert [line["iteration"] for line in lines(cfg)] == [0, 1]


def test_a_resumed_run_trains_by_the_current_settings(config, tmp_path):
    """Detectron2 would keep those of the checkpoint. Nothing moves at a learning rate of 0."""
    decay = ["SOLVER.WARMUP_ITERS", "0", "SOLVER.GAMMA", "0.5", "SOLVER.STEPS", "(1,)"]
    engine.train(config(*decay, "SOLVER.BASE_LR", "0.02", "SOLVER.MAX_ITER", "2"))
    final = tmp_path / "out/model_final.pth"
    before = torch.load(final, weights_only=True)
    engine.train(config(*decay, "SOLVER.BASE_LR", "0.0", "SOLVER.MAX_ITER", "3"), resume=True)
    still = torch.load(final, weights_only=True)
    assert still["iteration"] == 2
    moved = [
        key for key in before["model"] if not torch.equal(before["model"][key], still["model"][key])
    ]
    assert moved and not any(key.endswith(("weight", "bias")) for key in moved)  # statistics alone
    new = ["SOLVER.BASE_LR", "0.4", "SOLVER.WEIGHT_DECAY", "0.03", "SOLVER.WEIGHT_DECAY_NORM",
           "0.04", "SOLVER.MOMENTUM", "0.6", "SOLVER.NESTEROV", "True"]  # fmt: skip
    cfg = config(*decay, *new, "SOLVER.MAX_ITER", "4")
    engine.train(cfg, resume=True)
    saved = torch.load(final, weights_only=True)["trainer"]
    groups = saved["_trainer"]["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.03, 0.04}
    for group in groups:
        assert (group["momentum"], group["nesterov"], group["initial_lr"]) == (0.6, True, 0.4)
    assert [line["lr"] for line in lines(cfg) if "lr" in line][-1] == pytest.approx(0.2)
    # A shorter run has nothing left to train.
    engine.train(config(*decay, "SOLVER.MAX_ITER", "2"), resume=True)


MAIN = """
import json, sys
from pathlib import Path
from resnet_det.engines import classifier
from resnet_det.engines.on_detectron2 import engine
from resnet_det.training import distributed

def main(args):
    cfg = engine.load_config(args[0], args[1:])
    metrics = engine.train(cfg)
    print("metrics", sorted(metrics)[:1])

if __name__ == "__main__":
    distributed.launch(main, sys.argv[2:], **json.loads(sys.argv[1]))
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print("threads of gloo", [name for name in threads if "gloo" in name])
"""


@pytest.mark.parametrize("how", ["torchrun", "num_gpus", "machines"])
def test_two_processes_on_the_cpu(how, config, tmp_path):
    """Started by torchrun, as two processes on one machine and as two machines (on loopback).

    Their evaluations, without and with TEST.AUG, find what one process finds."""
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
    keys = ["SOLVER.MAX_ITER", "2", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
            "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(32, 56)"]  # fmt: skip
    rest = [config.path, "OUTPUT_DIR", out, *keys]
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
        assert "threads of gloo []" in told and "threads of gloo ['" not in told
        printed += [line for line in told.splitlines() if line.startswith("metrics")]
    assert sorted(printed) == ["metrics ['bbox/AP']", "metrics []"]
    assert "World size: 2" in (out / "log.txt").read_text()
    assert (out / "report.html").exists()
    one = tmp_path / "one"
    engine.evaluate(
        config("MODEL.WEIGHTS", str(out / "model_final.pth"), *keys, "OUTPUT_DIR", str(one))
    )
    for folder in ("inference", "inference_TTA"):
        for name in ("results", "detections"):
            found, expected = (
                json.loads((output / folder / f"scenes_voc_test/{name}.json").read_text())
                for output in (out, one)
            )
            assert found == expected and found


def test_an_iteration_exchanges_tensors_alone(config, tmp_path, monkeypatch):
    """Objects travel through pickle and gloo: for checkpoints, but not in each iteration."""
    counts, gather = [], distributed.all_gather_objects

    def counted(obj):
        counts[-1] += 1
        return gather(obj)

    monkeypatch.setattr(distributed, "all_gather_objects", counted)
    for iterations in (2, 5):
        counts.append(0)
        short = ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 9, "DATASETS.TEST", ()]
        engine.train(config(*short, "OUTPUT_DIR", str(tmp_path / str(iterations))))
    assert counts[0] == counts[1] > 0


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


def test_a_run_goes_on_in_float16(config, tmp_path, monkeypatch):
    """Its checkpoint has no loss scale yet; that of the next one is restored."""
    engine.train(config("SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"))
    monkeypatch.setattr(trainer, "amp_dtype", lambda device: torch.float16)
    monkeypatch.setattr(torch.cuda.amp, "GradScaler", lambda: torch.amp.GradScaler("cpu"))
    cfg = config("SOLVER.MAX_ITER", "3", "DATASETS.TEST", "()", "SOLVER.AMP.ENABLED", "True")
    running = Trainer(cfg, *engine.prepare(cfg))
    running.load(tmp_path / "out/model_final.pth")
    assert running.iter == 1
    state = running._trainer.state_dict()
    state["grad_scaler"]["scale"] = 8.0
    running._trainer.load_state_dict(state)
    assert running._trainer.state_dict()["grad_scaler"]["scale"] == 8.0


def test_regions_keep_their_corners_in_tests_in_mixed_precision(config, monkeypatch):
    """Detectron2's own poolers, too, which round them to the type of the maps."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    cfg = config("RESNET_DET.TEST_AMP", "True", "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
                 "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
                 "MODEL.ROI_BOX_HEAD.NUM_FC", "1")  # fmt: skip
    seen = []

    def roi_align(x, rois, *grid):
        seen.append((x.dtype, torch.equal(rois, rois.bfloat16().to(rois))))
        return torchvision.ops.roi_align(x, rois, *grid)

    monkeypatch.setattr(sys.modules["detectron2.layers.roi_align"], "roi_align", roi_align)
    detector = Detector(as_tested(build_model(cfg), cfg), cfg, ("a",) * 8)
    detector([np.zeros((48, 64, 3), np.uint8)])
    assert seen == [(torch.float32, False)]  # the maps in bfloat16, pooled in float32


def test_gradients_are_averaged_as_in_the_embedded_engine(config, monkeypatch):
    """So the GPU is that of the model; Detectron2 takes the local rank, even of a hidden GPU."""
    wrapped = []
    monkeypatch.setattr(distributed, "wrap", lambda model: wrapped.append(model) or model)
    cfg = config()
    assert [Trainer(cfg, *engine.prepare(cfg))._trainer.model] == wrapped
