"""What a table's runs need before they start: data, time and memory (tools/reproduce.py --dry-run)."""

import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from ..config import embedded_part, load_config, parse_config
from ..data import missing
from ..training import read_metrics
from .common import device_name
from .faster_rcnn import build_model
from .reproduce import ROOT, last_line

WARM_UP = 12  # iterations that a prediction measures
LONG = 10  # seconds of a detector's steps after which no further one is measured


def predict(plan, runner):
    """Measure the first iterations of each run that is not finished.

    Returns:
        rows (name, iterations, seconds or None, remark, data); runs of one step are measured
        once, a detector on a random image of its config's size.
    """
    rows, measured = [], {}
    made = {str(run.weights) for chain in plan.values() for run in chain}
    for run in dict.fromkeys(run for chain in plan.values() for run in chain):
        if run.metrics() is not None:
            rows.append([run.folder.name, run.iterations, 0.0, "finished", "–"])
            continue
        if run.tested:
            rows.append([run.folder.name, 0, None, f"a test of {run.tested.folder.name}", "–"])
            continue
        cfg = load_config(ROOT / run.step.config, run.command[4:])
        if run.step not in measured:
            runner.say(f"measuring {run.folder.name}")
            detector = cfg.MODEL.META_ARCHITECTURE != "Classifier"
            measured[run.step] = _measure_detector(cfg) if detector else _measure(run, runner)
        seconds, remark = measured[run.step]
        total = None if seconds is None else seconds * run.iterations
        rows.append([run.folder.name, run.iterations, total, remark, needs(cfg, made)])
    return rows


def needs(cfg, made=()):
    """What a run reads and does not find: datasets, and weights but for those that are ``made`` first."""
    absent = []
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        path = missing(name)
        if path:
            absent.append(f"{name} lacks {path}")
    weights, pretrain = cfg.MODEL.WEIGHTS, cfg.RESNET_DET.PRETRAIN
    if weights and weights not in made and not Path(weights).exists():
        if pretrain and (ROOT / pretrain).exists():
            absent.append(f"{weights}: {pretrain} trains it first (not counted here)")
        else:
            absent.append(f"lacks {weights}")
    return "; ".join(absent) or "there (tools/check_dataset.py says whether it is sound)"


def _measure_detector(cfg):
    """(seconds an iteration, what it rests on), in a process of its own for its memory's sake."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        seconds, memory = pool.submit(measure, embedded_part(cfg)).result()
    images = cfg.SOLVER.IMS_PER_BATCH
    return seconds * images, (
        f"{seconds:.2f} s and {memory / 2**30:.1f} GiB for one image, {images} an iteration"
    )


def measure(config):
    """Seconds and peak bytes of a training step on one random image, the median of three at most.

    Args:
        config: of a detector, as YAML. The image has the sides 4 : 3 and five objects.
    """
    cfg = parse_config(config, "config", ["MODEL.DEVICE", "cuda"])
    device = torch.device(device_name(cfg))
    model = build_model(cfg).to(device).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.0)
    short = max(cfg.INPUT.MIN_SIZE_TRAIN)
    size = short, min(short * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)
    corner = torch.rand(5, 2) * torch.tensor([size[1] / 2, size[0] / 2])
    sample = {
        "image": torch.randint(256, (3, *size), dtype=torch.uint8),
        "boxes": torch.cat((corner, corner + short / 3), 1),
        "classes": torch.arange(5) % cfg.MODEL.ROI_HEADS.NUM_CLASSES,
    }
    times = []
    while len(times) < 2 or (len(times) < 4 and sum(times) < LONG):  # the first one warms up
        begin = time.perf_counter()
        sum(model([sample]).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(times[1:]), memory


def _measure(run, runner):
    """(seconds an iteration or None, what it rests on)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [x for x in run.command if x != "--resume"]
        short = ["SOLVER.MAX_ITER", WARM_UP, "SOLVER.STEPS", (), "DATASETS.TEST", ()]
        short += ["TEST.PRECISE_BN.ENABLED", False, "OUTPUT_DIR", f"{folder}/run"]
        if not runner.execute([*command, *map(str, short)], f"{folder}/log"):
            return None, last_line(f"{folder}/log")
        lines = read_metrics(Path(folder) / "run/metrics.json")
        seconds = lines[-1]["time"]
    return seconds, f"{seconds:.3f} s an iteration"
