"""A run: its device, processes and seed, its training, and one iteration run again.

Both engines share `make_datasets` and `replayed`; the rest serves the embedded engine.
"""

import logging
import os
import random
import re
from pathlib import Path

import numpy as np
import torch

from .. import training
from ..config.defaults import ConfigError
from ..data import ensure_made
from ..files import whole_file
from ..training import distributed
from .provenance import checkpoint_facts, say_changes
from .results import check_expected

logger = logging.getLogger(__name__)


def start(cfg):
    """Join the processes, and log to the terminal.

    Returns:
        torch.device: ``MODEL.DEVICE``, and the process's own index of several GPUs.
    """
    device = distributed.init(cfg.MODEL.DEVICE)
    ours = logging.getLogger("resnet_det")
    if not ours.hasHandlers():  # an earlier run in this process, or Detectron2, may have added one
        terminal = logging.StreamHandler()
        terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        ours.addHandler(terminal)
        ours.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    return device


def make_datasets(*names):
    """Draw the sets among ``names`` that programs draw, where they are absent, in one process."""
    if distributed.is_main():
        ensure_made(names, workers=min(os.cpu_count() or 1, 4))
    distributed.barrier()


def setup(cfg):
    """Start and seed.

    Returns:
        (torch.device, the seed: drawn where ``SEED`` is negative, the same in every process).
    """
    device = start(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    seed = distributed.all_gather_objects(seed)[0]
    own = seed + distributed.get_rank()
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return device, seed


def run_training(
    cfg,
    model,
    batches,
    state,
    checkpointer,
    device,
    seed,
    *,
    evaluate,
    classes,
    finish=None,
    facts=None,
):
    """Write ``config.yaml``, build optimizer and schedule from ``SOLVER``, and train.

    Args:
        model: takes a batch and returns a dict of losses; on ``device``.
        batches: function of the first iteration and the seed -> iterator.
        seed: from :func:`setup`; a resumed run keeps the seed that it began with.
        state: of the checkpoint to resume from, or None.
        evaluate: function of the model -> flat dict of metrics, or None.
        finish: called with the model and the run's seed after the last iteration, before the model
            is saved.
        facts: dict of tensors and plain values that each checkpoint carries in its "meta", beside
            :func:`checkpoint_facts`.

    Returns:
        dict of the final metrics, checked against ``TEST.EXPECTED_RESULTS``.
    """
    if distributed.is_main():
        output = Path(cfg.OUTPUT_DIR)
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(cfg.dump())
    solver = cfg.SOLVER
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
    schedule = training.build_schedule(
        optimizer,
        steps=solver.STEPS,
        gamma=solver.GAMMA,
        max_iter=solver.MAX_ITER,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
        until_error=cfg.RESNET_DET.WARMUP_UNTIL_ERROR,
    )
    clip = None
    if solver.CLIP_GRADIENTS.ENABLED:

        def clip(parameters):
            training.clip_gradients(
                parameters,
                kind=solver.CLIP_GRADIENTS.CLIP_TYPE,
                value=solver.CLIP_GRADIENTS.CLIP_VALUE,
                norm_type=solver.CLIP_GRADIENTS.NORM_TYPE,
            )

    if state:
        seed = state.get("meta", {}).get("seed", seed)
        say_changes(state.get("meta", {}), cfg, cfg.OUTPUT_DIR)
    final = {}

    def evaluate_and_keep(model):
        final.clear()
        final.update(evaluate(model))
        return final

    training.train(
        distributed.wrap(model),
        batches(state["iteration"] if state else 0, seed),
        optimizer,
        schedule,
        max_iter=solver.MAX_ITER,
        checkpointer=checkpointer,
        checkpoint_period=solver.CHECKPOINT_PERIOD,
        output_dir=cfg.OUTPUT_DIR,
        device=device,
        resume_from=state,
        evaluate=evaluate_and_keep if cfg.DATASETS.TEST else None,
        eval_period=cfg.TEST.EVAL_PERIOD,
        finish=None if finish is None else lambda model: finish(model, seed),
        clip=clip,
        amp=solver.AMP.ENABLED,
        meta=checkpoint_facts(cfg, classes, seed) | (facts or {}),
    )
    if not final and distributed.is_main():  # everything was done before
        lines = training.read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
        final = next((line for line in reversed(lines) if "total_loss" not in line), {})
        final.pop("iteration", None)
    if distributed.is_main():
        check_expected(cfg, final)
    return final


def replayed(cfg, path):
    """The config that, resumed, runs again the one iteration of a ``not_finite_<iteration>.pth``.

    Its output goes to a folder beside the file. Give as many processes as the run had.

    Raises:
        ConfigError: not such a file.
    """
    path = Path(path).resolve()
    number = re.fullmatch(r"not_finite_(\d+)", path.stem)
    if not number or not path.is_file():
        raise ConfigError(f"--replay {path}: give a file not_finite_<iteration>.pth of a run")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(path.with_suffix(".replay"))
    cfg.SOLVER.MAX_ITER = int(number[1]) + 1
    cfg.DATASETS.TEST = cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    cfg.TEST.PRECISE_BN.ENABLED = False
    cfg.freeze()
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(exist_ok=True)
    # Every process writes it, and another may read it by now: it must never be seen empty.
    own = f".last_checkpoint.{distributed.launch_info().rank}"
    with whole_file(output / "last_checkpoint", own) as file:
        file.write_text(str(path))
    return cfg
