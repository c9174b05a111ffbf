"""Predict what a plan needs: data, time and memory (``resnet-det reproduce --dry-run``)."""

import resource
import statistics
import time
from collections.abc import Container, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..config.defaults import flatten
from ..config.loading import load_config
from ..data import missing, shortfall
from ..detector.build import build_model
from ..engines import classifier_nets
from ..engines.run import torch_settings
from ..weights.published import is_address, place_of
from .planning import Plan

FEW = 4  # images in the first step of a classifier's measurement
TIME_LIMIT = 20.0  # seconds of a measurement after which no further step begins
# The keys that the time of a step depends on, apart from MODEL.WEIGHTS.
MATTERS = (
    "MODEL.", "INPUT.", "SOLVER.IMS_PER_BATCH", "RESNET_DET.GLOBAL_CONTEXT", "RESNET_DET.FAST",
    "RESNET_DET.DETERMINISTIC", "CUDNN_BENCHMARK", "FLOAT32_PRECISION",
)  # fmt: skip


class Cost(NamedTuple):
    """The cost of one run.

    Attributes:
        name: name of the run's folder.
        iterations: number of training iterations.
        seconds: training time, or None if it is not known.
        remark: what ``seconds`` was computed from, or why it is not known.
        data: the missing datasets and weights that the run needs.
    """

    name: str
    iterations: int
    seconds: float | None
    remark: str
    data: str


def predict(plan: Plan) -> Iterator[Cost]:
    """Measure the cost of each run of a plan on random images. Yields each cost at once.

    A pretraining that a run would start with has its own cost. Runs that differ only in data,
    schedule or seed are measured once.
    """
    measured: dict[str, tuple[float | None, str]] = {}
    made = {str(run.weights) for chain in plan.values() for run in chain}
    for run in dict.fromkeys(run for chain in plan.values() for run in chain):
        name = run.folder.name
        if run.metrics() is not None:
            yield Cost(name, run.iterations, 0.0, "finished", "–")
            continue
        if run.tested:
            yield Cost(name, 0, None, f"a test of {run.tested.folder.name}", "–")
            continue
        cfg = run.load_config()
        weights, pretrain = cfg.MODEL.WEIGHTS, cfg.RESNET_DET.PRETRAIN
        if pretrain and weights not in made and not Path(weights).exists():
            yield _training_cost(Path(weights).parent.name, load_config(pretrain), made, measured)
            made.add(weights)
        yield _training_cost(name, cfg, made, measured)


def _training_cost(
    name: str, cfg: CfgNode, made: Container[str], measured: dict[str, tuple[float | None, str]]
) -> Cost:
    """The cost of one training.

    Args:
        name: name of its folder.
        made: paths of weights that earlier runs produce.
        measured: results of :func:`measure_apart` by the keys that matter. New ones are added.
    """
    keys = {k: v for k, v in flatten(cfg).items() if k.startswith(MATTERS)}
    key = str(keys | {"MODEL.WEIGHTS": ""})
    if key not in measured:
        measured[key] = measure_apart(cfg)
    per_image, remark = measured[key]
    images, iterations, data = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, needs(cfg, made)
    if per_image is None:
        return Cost(name, iterations, None, remark, data)
    remark += f" of the {images} images of an iteration"
    return Cost(name, iterations, per_image * images * iterations, remark, data)


def needs(cfg: CfgNode, made: Container[str] = ()) -> str:
    """Describe the datasets and weights that a run needs and that are missing or incomplete.

    Args:
        made: paths of weights that earlier runs produce.
    """
    absent = []
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        path = missing(name)
        lack = f"{name} lacks {path}" if path else shortfall(name)
        if lack:
            absent.append(lack)
    weights = cfg.MODEL.WEIGHTS
    if is_address(weights):
        if not place_of(weights).exists():
            absent.append(f"downloads {weights}")
    elif weights and weights not in made and not Path(weights).exists():
        absent.append(f"lacks {weights}")
    return "; ".join(absent) or "present (check it with resnet-det check-dataset)"


def measure_apart(cfg: CfgNode) -> tuple[float | None, str]:
    """Run :func:`measure` in a subprocess, so that its memory is freed afterwards.

    Returns:
        (seconds per image or None, a description of the measurement or the reason for None).
    """
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            images, seconds, memory = pool.submit(measure, cfg, TIME_LIMIT).result()
    except RuntimeError as error:  # out of memory: torch raised it, or the process was killed
        return None, f"cannot be measured: {str(error).splitlines()[0]}"
    return seconds / images, f"{seconds:.2f} s and {memory / 2**30:.1f} GiB for {images}"


def measure(cfg: CfgNode, limit: float) -> tuple[int, float, int]:
    """Time training steps, without AMP, on random images. The time is the median of at most three.

    A detector's step has one image. A classifier's has ``FEW`` at first, doubled up to its batch
    size while time allows: small batches are inefficient on a GPU, and large ones take minutes on a
    CPU.

    Args:
        cfg: a config of the embedded engine.
        limit: seconds after which no further step begins; at least two steps run.

    Returns:
        (images per step, seconds per step, peak memory in bytes).
    """
    with torch_settings(cfg):
        steps = _Steps(cfg)
        images, end = steps.fewest, time.perf_counter() + limit
        steps.time(images)  # warms up
        times = [steps.time(images)]
        while images < steps.most and time.perf_counter() + 4 * times[0] < end:
            images = min(2 * images, steps.most)
            times = [steps.time(images)]
        while len(times) < 3 and time.perf_counter() < end:
            times.append(steps.time(images))
        return images, statistics.median(times), steps.peak_memory()


class _Steps:
    """Training steps of a config's model on ``fewest`` to ``most`` random images per step."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, self.device = cfg, torch.device(cfg.MODEL.DEVICE)
        self.fewest = self.most = 1
        self.is_classifier = cfg.MODEL.META_ARCHITECTURE == "Classifier"
        if self.is_classifier:
            self.fewest, self.most = min(FEW, cfg.SOLVER.IMS_PER_BATCH), cfg.SOLVER.IMS_PER_BATCH
            model: nn.Module = classifier_nets.ClassifierLoss(classifier_nets.build(cfg))
        else:
            model = build_model(cfg)
        self.model = model.to(self.device).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, 0.0, 0.9, weight_decay=1e-4, fused=True)

    def time(self, images: int) -> float:
        """Seconds per step.

        On a CPU, this is the processor time divided by the number of threads. It does not depend on
        the machine's other load, but it is a lower bound: it assumes that every operation keeps all
        threads busy.
        """
        batch = self._crops(images) if self.is_classifier else self._scenes(images)
        begin = self._clock()
        sum(self.model(batch).values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._clock() - begin

    def peak_memory(self) -> int:
        """Peak memory in bytes: of the GPU, or of this process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _clock(self) -> float:
        if self.device.type == "cpu":
            return time.process_time() / torch.get_num_threads()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _crops(self, count: int) -> tuple[Tensor, Tensor]:
        """A classifier's batch, in channels-last format like the loader's."""
        side = self.cfg.INPUT.CROP.SIZE[0]
        images = torch.rand(count, side, side, 3, device=self.device).permute(0, 3, 1, 2)
        return images, torch.arange(count, device=self.device) % 10

    def _scenes(self, count: int) -> list[dict[str, Any]]:
        """A detector's batch: images with the aspect ratio 4:3 and five objects each."""
        short = max(self.cfg.INPUT.MIN_SIZE_TRAIN)
        size = short, min(short * 4 // 3, self.cfg.INPUT.MAX_SIZE_TRAIN)
        corner = torch.rand(5, 2) * torch.tensor([size[1] / 2, size[0] / 2])
        sample = {
            "image": torch.randint(256, (3, *size), dtype=torch.uint8),
            "boxes": torch.cat((corner, corner + short / 3), 1),
            "classes": torch.arange(5) % self.cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        }
        return [sample] * count
