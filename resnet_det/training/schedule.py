"""Optimizer, learning rate schedule and gradient clipping, as Detectron2 defines them.

The trainer calls a schedule's ``observe(values)`` and ``step()`` after each iteration. Checkpoints
use its ``state_dict()`` and ``load_state_dict()``.
"""

import contextlib
import functools
import logging
import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LayerNorm,
)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of ``model`` for an optimizer. Each occurs exactly once.

    As in Detectron2, the weight decay of normalisation layers is ``weight_decay_norm``. Every
    parameter named ``bias``, including those of normalisation layers, has the weight decay
    ``weight_decay_bias`` unless that is None, and the learning rate ``lr * bias_lr_factor``.

    Raises:
        ValueError: no parameter is trainable.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            is_bias = name == "bias"
            decay = weight_decay_norm if isinstance(module, _NORMS) else weight_decay
            if is_bias and weight_decay_bias is not None:
                decay = weight_decay_bias
            key = (lr * bias_lr_factor if is_bias else lr, decay)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("the model has no trainable parameter: everything is frozen")
    return [
        {"params": parameters, "lr": lr, "weight_decay": decay}
        for (lr, decay), parameters in groups.items()
    ]


def build_optimizer(
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_bias: float | None = None,
    bias_lr_factor: float = 1.0,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """Build SGD over :func:`parameter_groups`: ``v <- momentum * v + g``, ``w <- w - lr * v``.

    ``fused`` gives the same numbers with one pass over the memory instead of five. It skips the
    update if ``optimizer.found_inf`` is set, which needs momentum that is initialised.
    """
    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        weight_decay_bias=weight_decay_bias,
        bias_lr_factor=bias_lr_factor,
    )
    optimizer = torch.optim.SGD(
        groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )
    initialise_momentum(optimizer)
    return optimizer


def initialise_momentum(optimizer: torch.optim.SGD) -> None:
    """Set the momentum of the parameters that have none yet to zero, if the optimizer uses it."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


@contextlib.contextmanager
def keep_settings(
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    saved: Mapping[str, Any],
) -> Iterator[None]:
    """Keep learning rates, weight decay and momentum as built while a checkpoint is loaded.

    ``load_state_dict`` of an optimizer and of a schedule would replace them by those of the
    checkpoint, and a resumed run would ignore the current config. On exit, the learning rates are
    those of the current schedule at the checkpoint's iteration.

    Args:
        schedule: computes its rates from ``base_lrs`` and ``last_epoch`` alone.
        saved: the state of the checkpoint's optimizer.

    Raises:
        ValueError: the parameters are grouped in another way than in the checkpoint.
    """
    groups = [len(group["params"]) for group in optimizer.param_groups]
    before = [len(group["params"]) for group in saved["param_groups"]]
    if groups != before:
        raise ValueError(
            f"the optimizer of the checkpoint has groups of {before} parameters, but that of this "
            f"config has groups of {groups}. SOLVER.WEIGHT_DECAY, WEIGHT_DECAY_NORM, "
            "WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR and MODEL.BACKBONE.FREEZE_AT determine the groups: "
            "resume with the values that the run had, or give its checkpoint as MODEL.WEIGHTS, and "
            "another OUTPUT_DIR"
        )
    built = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    rates = schedule.base_lrs
    yield
    schedule.base_lrs = rates
    for group, settings, lr in zip(optimizer.param_groups, built, schedule.get_lr()):
        group.update(settings | {"lr": lr})


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """Multiply learning rates by ``multiplier(iteration)``, optionally after an error-based
    warm-up.

    This is the warm-up of the 110-layer net (section 4.2): every learning rate is multiplied by
    ``factor`` until the training error, here the mean over the last 20 batches, is below
    ``until_error`` per cent. From the next iteration on, the schedule continues as if there had
    been no warm-up. An ``until_error`` of 0 disables the warm-up.
    """

    BATCHES = 20

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        multiplier: Callable[[int], float],
        until_error: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        self.until_error = until_error
        self.recent_errors: list[float] = []
        super().__init__(optimizer, lambda i: factor if self.until_error > 0 else multiplier(i))

    def get_lr(self) -> list[float | torch.Tensor]:
        """The learning rates of iteration ``last_epoch``. (torch's method warns outside a step.)"""
        pairs = zip(self.base_lrs, self.lr_lambdas)
        return [base * multiplier(self.last_epoch) for base, multiplier in pairs]

    def observe(self, values: Mapping[str, float]) -> None:
        """Record the values of the iteration that just ran; the warm-up reads ``top1_error``."""
        if self.until_error > 0:
            self.recent_errors = [*self.recent_errors, values["top1_error"]][-self.BATCHES :]
            enough = len(self.recent_errors) == self.BATCHES
            if enough and statistics.fmean(self.recent_errors) < self.until_error:
                self.until_error = 0.0
                logger.info("warm-up ends after iteration %d", self.last_epoch)


Decay = Callable[[int], float]  # iteration from 0 -> factor of the learning rate


def multi_step(*, steps: Sequence[int], gamma: float, max_iter: int, **_: Any) -> Decay:
    """``gamma ** (number of steps <= iteration)``. Steps from ``max_iter`` on have no effect.

    Raises:
        ValueError: the steps are not ascending iterations from 1.
    """
    if any(later <= earlier for earlier, later in pairwise((0, *steps))):
        raise ValueError(f"SOLVER.STEPS: {steps}: give ascending iterations from 1")
    if steps and steps[-1] >= max_iter:
        _warn_of_late_steps(tuple(step for step in steps if step >= max_iter), max_iter)
    return lambda iteration: gamma ** bisect_right(steps, iteration)


@functools.cache  # a schedule is built to check it, and again to train by it
def _warn_of_late_steps(late: tuple[int, ...], max_iter: int) -> None:
    logger.warning(
        "SOLVER.STEPS: %s are not before SOLVER.MAX_ITER, %d, and have no effect",
        list(late),
        max_iter,
    )


def cosine(*, base_lr: float, base_lr_end: float, max_iter: int, **_: Any) -> Decay:
    """Half a cosine from 1 at iteration 0 to ``base_lr_end / base_lr`` at ``max_iter``.

    Raises:
        ValueError: ``base_lr_end`` is not between 0 and ``base_lr``.
    """
    if not 0 <= base_lr_end <= base_lr:
        raise ValueError(
            f"SOLVER.BASE_LR_END: {base_lr_end}: must be between 0 and SOLVER.BASE_LR, {base_lr}"
        )
    end = base_lr_end / base_lr if base_lr else 0.0
    return lambda iteration: end + (1 - end) / 2 * (1 + math.cos(math.pi * iteration / max_iter))


# Each SOLVER.LR_SCHEDULER_NAME without its warm-up. A further schedule is a function that takes
# what `build_schedule` passes and ignores what it does not need (as Detectron2's do), an entry
# here, and its name among the choices of the key in config/defaults.py.
SCHEDULES: dict[str, Callable[..., Decay]] = {
    "WarmupMultiStepLR": multi_step,
    "WarmupCosineLR": cosine,
}


def build_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    name: str = "WarmupMultiStepLR",
    steps: Sequence[int],
    gamma: float,
    max_iter: int,
    base_lr_end: float = 0.0,
    warmup_iters: int = 0,
    warmup_factor: float = 0.001,
    warmup_method: str = "linear",
    until_error: float = 0.0,
) -> Schedule:
    """Build one of ``SCHEDULES`` with Detectron2's warm-up; all times are in iterations.

    In iteration i (from 0) each group's learning rate is multiplied by the decay at i. In the first
    ``warmup_iters`` iterations the multiplier is ``warmup_factor`` ("constant"), or rises from it
    to the decay at ``warmup_iters`` ("linear"). With ``until_error``, the warm-up runs at
    ``warmup_factor`` and ends by the rule of :class:`Schedule` instead.

    Args:
        name: a key of ``SCHEDULES``.
        steps, gamma: as for :func:`multi_step`.
        base_lr_end: as for :func:`cosine`, whose ``base_lr`` is the optimizer's.

    Raises:
        ValueError: unknown ``warmup_method``, two warm-ups, or as the decay's function.
    """
    if until_error and warmup_iters:
        raise ValueError(
            f"RESNET_DET.WARMUP_UNTIL_ERROR {until_error} and SOLVER.WARMUP_ITERS {warmup_iters} "
            "are two warm-ups: set one of them to 0"
        )
    if warmup_method not in ("linear", "constant"):
        raise ValueError(f"SOLVER.WARMUP_METHOD: {warmup_method!r}: give 'linear' or 'constant'")
    decay = SCHEDULES[name](
        steps=steps,
        gamma=gamma,
        max_iter=max_iter,
        base_lr=optimizer.defaults["lr"],
        base_lr_end=base_lr_end,
    )
    warmup_iters = min(warmup_iters, max_iter)

    def multiplier(iteration):
        if iteration >= warmup_iters:
            return decay(iteration)
        if warmup_method == "constant":
            return warmup_factor
        done = iteration / warmup_iters
        return warmup_factor * (1 - done) + decay(warmup_iters) * done

    return Schedule(optimizer, multiplier, until_error, warmup_factor)


def clip_gradients(
    parameters: Iterable[nn.Parameter], *, kind: str, value: float, norm_type: float = 2.0
) -> None:
    """Clip the gradient of each parameter separately, as Detectron2's CLIP_GRADIENTS does.

    Args:
        kind: "value" clamps every element to [-value, value]; "norm" scales a gradient whose
            ``norm_type`` norm exceeds ``value`` down to that norm.
    """
    if kind not in ("value", "norm"):
        raise ValueError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE: {kind!r}: give 'value' or 'norm'")
    for parameter in parameters:
        if kind == "value":
            nn.utils.clip_grad_value_(parameter, value)
        else:
            nn.utils.clip_grad_norm_(parameter, value, norm_type)
