"""Optimizer, learning rate by iteration and gradient clipping, with Detectron2's meaning of them.

What the loop asks of a schedule is ``observe(values)`` and ``step()`` after each iteration,
``state_dict()`` and ``load_state_dict()``.
"""

import logging
import statistics
from bisect import bisect_right

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
    model, *, lr, weight_decay, weight_decay_norm, weight_decay_bias=None, bias_lr_factor=1.0
):
    """Trainable parameters of ``model``, each exactly once, as groups for an optimizer.

    As in Detectron2: parameters of normalisation layers decay by ``weight_decay_norm``; every
    parameter named ``bias``, of normalisation layers too, by ``weight_decay_bias`` unless that is
    None, and its learning rate is ``lr * bias_lr_factor``.
    """
    groups, seen = {}, set()
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
    model,
    *,
    lr,
    momentum,
    weight_decay,
    weight_decay_norm,
    weight_decay_bias=None,
    bias_lr_factor=1.0,
    nesterov=False,
):
    """SGD over :func:`parameter_groups`: ``v <- momentum * v + g``, ``w <- w - lr * v``.

    In one pass over the memory (``fused``) instead of five, which gives the same numbers.
    """
    groups = parameter_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        weight_decay_norm=weight_decay_norm,
        weight_decay_bias=weight_decay_bias,
        bias_lr_factor=bias_lr_factor,
    )
    return torch.optim.SGD(
        groups, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning rates by ``multiplier(iteration)``; before that, where asked for, a warm-up by a rule.

    The rule is the paper's for 110 layers (section 4.2): every learning rate is multiplied by
    ``factor`` until the training error is below ``until_error`` per cent, here the mean over the
    last 20 batches. From the next iteration on it is as if there had been no warm-up.
    """

    BATCHES = 20

    def __init__(self, optimizer, multiplier, until_error=0.0, factor=1.0):
        self.until_error, self.recent_errors = until_error, []
        super().__init__(optimizer, lambda i: factor if self.until_error > 0 else multiplier(i))

    def observe(self, values):
        """Take the ``top1_error`` (per cent) of the iteration that has just run."""
        if self.until_error > 0:
            self.recent_errors = [*self.recent_errors, values["top1_error"]][-self.BATCHES :]
            enough = len(self.recent_errors) == self.BATCHES
            if enough and statistics.fmean(self.recent_errors) < self.until_error:
                self.until_error = 0.0
                logger.info("warm-up ends after iteration %d", self.last_epoch)


def check_steps(steps):
    """Raises ValueError where the iterations of SOLVER.STEPS do not rise from 1."""
    if any(later <= earlier for earlier, later in zip((0, *steps), steps)):
        raise ValueError(f"SOLVER.STEPS: {steps}: give iterations from 1 that rise")


def build_schedule(
    optimizer,
    *,
    steps,
    gamma,
    max_iter,
    warmup_iters=0,
    warmup_factor=0.001,
    warmup_method="linear",
    until_error=0.0,
):
    """Detectron2's WarmupMultiStepLR, in iterations: what multiplies each group's learning rate.

    Iteration i (from 0) runs at ``gamma ** (number of steps <= i)``. The first ``warmup_iters``
    iterations run at ``warmup_factor`` ("constant") or climb from it to the value at
    ``warmup_iters`` ("linear"). Steps at or after ``max_iter`` have no effect: warned about.
    With ``until_error`` the warm-up is at ``warmup_factor`` and ends by the rule of
    :class:`Schedule` instead.

    Raises:
        ValueError: unknown ``warmup_method``, two warm-ups, or as :func:`check_steps`.
    """
    if until_error and warmup_iters:
        raise ValueError(
            f"warm-up until the training error is below {until_error} % and for {warmup_iters} "
            "iterations: set RESNET_DET.WARMUP_UNTIL_ERROR or SOLVER.WARMUP_ITERS to 0"
        )
    if warmup_method not in ("linear", "constant"):
        raise ValueError(f"warm-up method {warmup_method!r} is not one of 'linear', 'constant'")
    check_steps(steps)
    if steps and steps[-1] >= max_iter:
        late = [step for step in steps if step >= max_iter]
        logger.warning(
            "SOLVER.STEPS: %s are not before SOLVER.MAX_ITER, %d, and have no effect",
            late,
            max_iter,
        )
    warmup_iters = min(warmup_iters, max_iter)

    def decay(iteration):
        return gamma ** bisect_right(steps, iteration)

    def multiplier(iteration):
        if iteration >= warmup_iters:
            return decay(iteration)
        if warmup_method == "constant":
            return warmup_factor
        done = iteration / warmup_iters
        return warmup_factor * (1 - done) + decay(warmup_iters) * done

    return Schedule(optimizer, multiplier, until_error, warmup_factor)


def clip_gradients(parameters, *, kind, value, norm_type=2.0):
    """Clip each parameter's gradient on its own, as Detectron2's CLIP_GRADIENTS.

    ``kind`` "value" clamps every element to [-value, value]; "norm" scales a gradient whose
    ``norm_type`` norm exceeds ``value`` down to it.
    """
    if kind not in ("value", "norm"):
        raise ValueError(f"gradient clipping {kind!r} is not one of 'value', 'norm'")
    for parameter in parameters:
        if kind == "value":
            nn.utils.clip_grad_value_(parameter, value)
        else:
            nn.utils.clip_grad_norm_(parameter, value, norm_type)
