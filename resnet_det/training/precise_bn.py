"""Compute batch normalisation statistics as true averages, not moving ones (appendix A).

The means and variances of the released models were computed after training, over many training
images. Detectors freeze them.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from . import distributed

with warnings.catch_warnings():  # fvcore scripts a function that is not used here
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats


def update(
    model: nn.Module, batches: Iterable[Any], num_batches: int, *, progress: bool = True
) -> None:
    """Replace the running statistics of every batch normalisation layer in training mode.

    Calls ``model(batch)`` for ``num_batches`` batches, without gradients, and stores the mean and
    the (biased) variance of each layer's input over all of them. The mode of the model and of its
    layers does not change.

    Each process runs its own batches. The processes' statistics are averaged with equal weights,
    which is exact if every process sees equally many values.

    Args:
        model: a model in training mode. Layers in evaluation mode (frozen ones) keep their
            statistics.
        batches: at least ``num_batches`` inputs of ``model``.
        progress: show a progress bar in the main process.

    Raises:
        ValueError: ``batches`` ends early, or no layer is in training mode.
    """
    layers = get_bn_modules(model)
    if not layers:
        raise ValueError(
            "no batch normalisation layer is in training mode: call model.train(), "
            "and do not freeze them before their statistics are computed"
        )
    bar = "tqdm" if progress and distributed.is_main() else None
    try:
        update_bn_stats(model, batches, num_batches, progress=bar)
    except AssertionError as error:
        raise ValueError(str(error)) from error
    with torch.no_grad():
        for layer in layers:
            mean = distributed.mean_over_ranks(layer.running_mean)
            square = distributed.mean_over_ranks(layer.running_var + layer.running_mean**2)
            if distributed.get_world_size() > 1:
                layer.running_mean.copy_(mean)
                layer.running_var.copy_(square - mean**2)
            # For a constant channel, E[x^2] - E[x]^2 can round below zero, whose root is NaN.
            layer.running_var.clamp_(min=0)
