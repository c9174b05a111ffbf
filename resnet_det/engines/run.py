"""Code that the engines' runs share: device, processes, seed, datasets, trainer, replay.

The engine on Detectron2 uses the datasets, PyTorch's settings and the replay; device, seed and
trainer are for the detectors and the classifiers of the embedded engine.
"""

import contextlib
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from .. import training
from ..config.defaults import ConfigError, with_values
from ..data import ensure_made
from ..files import whole_file, write_whole
from ..training import Checkpointer, Plan, Trainer, distributed
from ..training.layout import match_layout, to_fastest_layout
from ..training.numerics import numerics
from ..training.precision import mixed_precision
from .checks import build_schedule, check_output
from .provenance import say_changes
from .results import check_expected
from .scaling import for_processes


def start(cfg: CfgNode) -> torch.device:
    """Join the processes of the run and log to the terminal.

    Returns:
        ``MODEL.DEVICE``, or this process's own GPU among several.
    """
    device = distributed.init(cfg.MODEL.DEVICE)
    package_logger = logging.getLogger("resnet_det")
    if not package_logger.hasHandlers():  # an earlier run in this process, or Detectron2, may log
        terminal = logging.StreamHandler()
        terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        package_logger.addHandler(terminal)
        package_logger.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    return device


@contextlib.contextmanager
def running(cfg: CfgNode, resume: bool = True) -> Iterator[tuple[torch.device, int]]:
    """Join the processes, seed their random generators, and lock ``OUTPUT_DIR``.

    Yields (device, seed of the run). If ``SEED`` is negative, a seed is drawn, the same in every
    process.

    Raises:
        FolderInUse: another process runs in ``OUTPUT_DIR``.
        ConfigError: ``OUTPUT_DIR`` holds checkpoints, and the run does not resume.
    """
    device = start(cfg)
    with torch_settings(cfg), training.alone_in(cfg.OUTPUT_DIR):
        check_output(cfg, resume)  # again: a run that we waited for may have saved checkpoints
        yield device, _seeded(cfg)


def _seeded(cfg):
    """Seed the random generators of every process; return the run's seed."""
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    seed = distributed.all_gather_objects(seed)[0]
    own = seed + distributed.get_rank()
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    return seed


def torch_settings(cfg: CfgNode) -> contextlib.AbstractContextManager[None]:
    """How PyTorch computes in a run of either engine; see :func:`.numerics.numerics`."""
    return numerics(
        benchmark=cfg.CUDNN_BENCHMARK,
        float32_precision=cfg.get("FLOAT32_PRECISION", ""),  # Detectron2 has it since 2023
        deterministic=cfg.RESNET_DET.DETERMINISTIC,
    )


@contextlib.contextmanager
def evaluation_settings(cfg: CfgNode) -> Iterator[None]:
    """How PyTorch computes while a run tests, in either engine. Call it in every process.

    With ``RESNET_DET.TEST_AMP``, it uses mixed precision. With ``TEST.AUG``, cuDNN benchmarks
    nothing, since it would time its algorithms again for every size of image.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, cudnn.benchmark and not cfg.TEST.AUG.ENABLED
    try:
        with precision_of_tests(cfg):
            yield
    finally:
        cudnn.benchmark = before


def precision_of_tests(cfg: CfgNode, *, shared: bool = True) -> torch.autocast:
    """The context of ``RESNET_DET.TEST_AMP``.

    Args:
        shared: all processes call this, and use the same type; False for a detector that a program
            may load in one of its processes.
    """
    enabled = cfg.RESNET_DET.TEST_AMP
    return mixed_precision(cfg.MODEL.DEVICE, "RESNET_DET.TEST_AMP", enabled, shared=shared)


def make_datasets(*names: str) -> None:
    """Draw the synthetic datasets among ``names`` that do not exist yet, in the main process."""
    if distributed.is_main():
        ensure_made(names, workers=min(os.cpu_count() or 1, 4))
    distributed.barrier()


def last_checkpoint(cfg: CfgNode, resume: bool, seed: int) -> tuple[dict[str, Any] | None, int]:
    """Read the checkpoint to resume from, and log the config keys that changed since.

    Returns:
        (its state, the seed that its run began with). (None, ``seed``) if there is no checkpoint or
        the run does not resume.
    """
    state = Checkpointer(cfg.OUTPUT_DIR).load_latest() if resume else None
    if state is None:
        return None, seed
    facts = state.get("meta", {})
    say_changes(facts, cfg, cfg.OUTPUT_DIR)
    return state, facts.get("seed", seed)


def build_trainer(
    cfg: CfgNode, model: nn.Module, meta: Mapping[str, Any], state: Mapping[str, Any] | None
) -> Trainer:
    """Write ``config.yaml`` and build the trainer that ``SOLVER`` describes.

    Args:
        model: a model on its device that returns a dict of losses per batch.
        meta: facts that each checkpoint carries.
        state: state of the checkpoint to resume from, or None.
    """
    if distributed.is_main():
        write_whole(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    solver = cfg.SOLVER
    to_fastest_layout(
        model,
        next(model.parameters()).device,
        mixed=solver.AMP.ENABLED,
        tf32=cfg.FLOAT32_PRECISION != "highest",
    )
    optimizer = training.build_optimizer(
        model,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
    )
    schedule = build_schedule(cfg, optimizer)
    clip = partial(
        training.clip_gradients,
        kind=solver.CLIP_GRADIENTS.CLIP_TYPE,
        value=solver.CLIP_GRADIENTS.CLIP_VALUE,
        norm_type=solver.CLIP_GRADIENTS.NORM_TYPE,
    )
    plan = Plan(
        max_iter=solver.MAX_ITER,
        checkpoint_period=solver.CHECKPOINT_PERIOD,
        eval_period=cfg.TEST.EVAL_PERIOD,
        amp=solver.AMP.ENABLED,
        clip=clip if solver.CLIP_GRADIENTS.ENABLED else None,
        best_metric=cfg.RESNET_DET.BEST.METRIC,
        patience=cfg.RESNET_DET.BEST.PATIENCE,
        images=solver.IMS_PER_BATCH,
        accumulate=cfg.RESNET_DET.ACCUMULATE,
        cuda_graph=cfg.RESNET_DET.CUDA_GRAPH,
    )
    trainer = Trainer(model, optimizer, schedule, cfg.OUTPUT_DIR, plan, meta)
    if state is not None:
        trainer.resume(state)
        match_layout(optimizer)
    return trainer


def final_results(cfg: CfgNode, trainer: Trainer) -> dict[str, float]:
    """The metrics of a run's last evaluation, checked against ``TEST.EXPECTED_RESULTS``.

    If the run was already finished and evaluated nothing, they are read from ``metrics.json``.
    """
    results = trainer.results
    if distributed.is_main():
        if not results:
            lines = training.read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
            results = next((line for line in reversed(lines) if "total_loss" not in line), {})
            results.pop("iteration", None)
        check_expected(cfg, results)
    return results


def replayed(cfg: CfgNode, path: str | Path) -> CfgNode:
    """Return a config with which ``resume`` runs the iteration of ``not_finite_<iteration>.pth``
    again.

    Its output goes to a folder beside the file. Start as many processes as the original run had.

    Raises:
        ConfigError: the path does not name such a file.
    """
    path = Path(path).resolve()
    number = re.fullmatch(r"not_finite_(\d+)", path.stem)
    if not number or not path.is_file():
        raise ConfigError(f"--replay {path}: give a file not_finite_<iteration>.pth of a run")
    output = path.with_suffix(".replay")
    result = with_values(
        for_processes(cfg, resume=True),
        {
            "SOLVER.REFERENCE_WORLD_SIZE": 0,  # the schedule is final
            "OUTPUT_DIR": str(output),
            "SOLVER.MAX_ITER": int(number[1]) + 1,
            "DATASETS.TEST": (),  # nothing is evaluated
            "DATASETS.PROPOSAL_FILES_TEST": (),
            "TEST.PRECISE_BN.ENABLED": False,
            "RESNET_DET.BEST.METRIC": "",
            "RESNET_DET.BEST.PATIENCE": 0,
            "RESNET_DET.VAL_LOSS": False,
        },
    )
    output.mkdir(exist_ok=True)
    # Every process writes this file while others may read it, so it must never appear empty.
    own = f".last_checkpoint.{distributed.launch_info().rank}"
    with whole_file(output / "last_checkpoint", own) as file:
        file.write_text(str(path))
    return result
