"""Scale a config's batch and schedule to the number of processes (``REFERENCE_WORLD_SIZE``)."""

import logging
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError, flatten, with_values
from ..config.loading import parse_text
from ..training import Checkpointer, distributed

logger = logging.getLogger(__name__)

# The keys that hold numbers of iterations; 0 means never.
ITERATIONS = (
    "SOLVER.MAX_ITER",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
    "RESNET_DET.ALTERNATING",
)


def scaled(cfg: CfgNode, processes: int) -> CfgNode:
    """Return the config that trains the same way in ``processes`` processes.

    ``SOLVER.REFERENCE_WORLD_SIZE`` is the number of processes that the config is written for; 0
    switches scaling off. By the linear scaling rule, as in Detectron2, ``IMS_PER_BATCH`` and
    ``BASE_LR`` are multiplied by ``processes / REFERENCE_WORLD_SIZE``, and all numbers of
    iterations are divided by it. ``RESNET_DET.ALTERNATING`` is scaled too.

    Raises:
        ConfigError: the reference number of processes cannot share the batch equally.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, processes):
        return cfg
    images = cfg.SOLVER.IMS_PER_BATCH
    if images % reference:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH: {images} images cannot be shared equally by the {reference} "
            "processes of SOLVER.REFERENCE_WORLD_SIZE: change one of them, or set "
            "SOLVER.REFERENCE_WORLD_SIZE 0 to train with this batch on any number of processes"
        )
    flat = flatten(cfg)
    return with_values(
        cfg,
        {
            "SOLVER.IMS_PER_BATCH": images // reference * processes,
            "SOLVER.BASE_LR": cfg.SOLVER.BASE_LR * (processes / reference),
            "SOLVER.REFERENCE_WORLD_SIZE": processes,
            **scaled_iterations({key: flat[key] for key in ITERATIONS}, reference, processes),
        },
    )


def scaled_iterations(values: Mapping[str, Any], written: int, wanted: int) -> dict[str, Any]:
    """Scale the values of ``ITERATIONS`` among those of dotted keys.

    Args:
        written, wanted: the numbers of processes that the values given and those returned are for.
            If one of them is 0, nothing is scaled.
    """
    if 0 in (written, wanted):
        return dict(values)
    factor = wanted / written

    def scale(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(scale, value))
        return max(1, round(value / factor)) if value else 0

    return {key: scale(v) if key in ITERATIONS else v for key, v in values.items()}


def for_processes(cfg: CfgNode, resume: bool) -> CfgNode:
    """:func:`scaled` to the number of processes of this run, which the log states.

    A resumed run keeps the schedule of its checkpoint, whatever its number of processes is now.

    Raises:
        ConfigError: see :func:`scaled`.
    """
    result = _for_processes(cfg, resume)
    if result is not cfg and distributed.launch_info().rank == 0:
        now, file = result.SOLVER, cfg.SOLVER
        keys = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")
        logger.warning(
            "SOLVER is scaled from %d processes (REFERENCE_WORLD_SIZE) to %d: %s",
            file.REFERENCE_WORLD_SIZE,
            now.REFERENCE_WORLD_SIZE,
            ", ".join(f"{key} {file[key]} -> {now[key]}" for key in keys),
        )
    return result


def max_iter(cfg: CfgNode, resume: bool) -> int:
    """The ``SOLVER.MAX_ITER`` of :func:`for_processes`, without a line in the log."""
    return _for_processes(cfg, resume).SOLVER.MAX_ITER


def _for_processes(cfg: CfgNode, resume: bool) -> CfgNode:
    processes = _resumed_size(cfg.OUTPUT_DIR) if resume else None
    if processes == 0 and cfg.SOLVER.REFERENCE_WORLD_SIZE:
        return with_values(cfg, {"SOLVER.REFERENCE_WORLD_SIZE": 0})
    return scaled(cfg, processes or distributed.launch_info().world)


def _resumed_size(output: str) -> int | None:
    """The number of processes whose schedule the run in ``output`` has: 0 if it was not scaled,
    None if there is no run to resume.

    The checkpoint states it, not ``config.yaml``, which an evaluation on Detectron2 overwrites.
    """
    facts = Checkpointer(output).facts()
    if "config" not in facts:
        return None
    return parse_text(facts["config"], output).get("SOLVER.REFERENCE_WORLD_SIZE", 0)
