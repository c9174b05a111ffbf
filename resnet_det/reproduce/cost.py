"""What a table's runs need before they start: data, time and memory (tools/reproduce.py --dry-run)."""

import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from ..config.defaults import flatten
from ..config.loading import load_config
from ..data import missing, shortfall
from ..detector.build import build_model
from ..engines import classifier
from .planning import ROOT

FEW = 4  # images of a classifier that a measurement begins with
LONG = 20  # seconds of a measurement after which no further step begins
# Keys that a step's time depends on.
MATTERS = (
    "MODEL.", "INPUT.", "SOLVER.IMS_PER_BATCH", "RESNET_DET.GLOBAL_CONTEXT", "RESNET_DET.FAST",
)  # fmt: skip
WEIGHTS = "MODEL.WEIGHTS"  # but this one


def predict(plan):
    """Yield a row for each run of a plan as soon as it is measured, on random images.

    A pretraining that a run would begin with has a row of its own. What differs in data, schedule
    or seed alone is measured once.

    Yields:
        (name, iterations, seconds or None, remark, data)
    """
    measured = {}
    made = {str(run.weights) for chain in plan.values() for run in chain}

    def row(name, cfg, iterations):
        key = str({k: v for k, v in flatten(cfg).items() if k.startswith(MATTERS) and k != WEIGHTS})
        if key not in measured:
            measured[key] = _measured(cfg)
        seconds, remark = measured[key]
        total = seconds and seconds * cfg.SOLVER.IMS_PER_BATCH * iterations
        if seconds:
            remark += f" of the {cfg.SOLVER.IMS_PER_BATCH} images of an iteration"
        return name, iterations, total, remark, needs(cfg, made)

    for run in dict.fromkeys(run for chain in plan.values() for run in chain):
        name = run.folder.name
        if run.metrics() is not None:
            yield name, run.iterations, 0.0, "finished", "–"
            continue
        if run.tested:
            yield name, 0, None, f"a test of {run.tested.folder.name}", "–"
            continue
        cfg = load_config(ROOT / run.step.config, run.command[4:])
        weights, pretrain = cfg.MODEL.WEIGHTS, cfg.RESNET_DET.PRETRAIN
        if pretrain and weights not in made and not Path(weights).exists():
            first = load_config(ROOT / pretrain)
            yield row(Path(weights).parent.name, first, first.SOLVER.MAX_ITER)
            made.add(weights)
        yield row(name, cfg, run.iterations)


def needs(cfg, made=()):
    """What a run reads and does not find whole: datasets, and weights but those ``made`` before."""
    absent = []
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        path = missing(name)
        lack = f"{name} lacks {path}" if path else shortfall(name)
        if lack:
            absent.append(lack)
    weights = cfg.MODEL.WEIGHTS
    if weights and weights not in made and not Path(weights).exists():
        absent.append(f"lacks {weights}")
    return "; ".join(absent) or "there (tools/check_dataset.py says whether it is sound)"


def _measured(cfg):
    """(seconds an image or None, what it rests on), in a process of its own for its memory's sake."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            images, seconds, memory = pool.submit(measure, cfg, LONG).result()
    except RuntimeError as error:  # out of memory: torch's error, or the process was killed
        return None, f"cannot be measured: {str(error).splitlines()[0]}"
    return seconds / images, f"{seconds:.2f} s and {memory / 2**30:.1f} GiB for {images}"


def measure(cfg, long):
    """Time training steps in float32 on random images: the median of three at most.

    On a CPU the processor's time is taken, by the number of threads: what else it does now does
    not count, and it is the least time, with all threads busy in every operation.

    A detector's step has one image. A classifier's has FEW, and twice as many for as long as there
    is time, up to its batch: small batches are slow on a GPU, and large ones take minutes on a CPU.

    Args:
        cfg: of the embedded engine.
        long: seconds after which no further step begins; two are made in any case.

    Returns:
        (images of a step, its seconds, peak bytes of all).
    """
    device = torch.device(cfg.MODEL.DEVICE)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.MODEL.META_ARCHITECTURE == "Classifier":
        model, sample = classifier.ClassifierLoss(classifier.build(cfg)), _crops
        images, most = min(FEW, cfg.SOLVER.IMS_PER_BATCH), cfg.SOLVER.IMS_PER_BATCH
    else:
        model, sample, images, most = build_model(cfg), _scenes, 1, 1
    model.to(device).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.0, 0.9, weight_decay=1e-4, fused=True
    )

    def clock():
        if device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    def step():
        batch = sample(cfg, images, device)
        begin = clock()
        sum(model(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return clock() - begin

    end = time.perf_counter() + long
    step()  # warms up
    times = [step()]
    while images < most and time.perf_counter() + 4 * times[0] < end:
        images = min(2 * images, most)
        times = [step()]
    while len(times) < 3 and time.perf_counter() < end:
        times.append(step())
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return images, statistics.median(times), memory


def _crops(cfg, count, device):
    """A classifier's batch; channels last, as the data's."""
    side = cfg.INPUT.CROP.SIZE[0]
    images = torch.rand(count, side, side, 3, device=device).permute(0, 3, 1, 2)
    return images, torch.arange(count, device=device) % 10


def _scenes(cfg, count, device):
    """A detector's batch: images with the sides 4 : 3 and five objects."""
    short = max(cfg.INPUT.MIN_SIZE_TRAIN)
    size = short, min(short * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)
    corner = torch.rand(5, 2) * torch.tensor([size[1] / 2, size[0] / 2])
    sample = {
        "image": torch.randint(256, (3, *size), dtype=torch.uint8),
        "boxes": torch.cat((corner, corner + short / 3), 1),
        "classes": torch.arange(5) % cfg.MODEL.ROI_HEADS.NUM_CLASSES,
    }
    return [sample] * count
