"""Batch normalisation statistics as true averages, not moving ones (section 3 of the paper).

The released models' means and variances were computed after training over a large set of
training images; the detectors freeze them.
"""

import warnings

import torch

from . import distributed

with warnings.catch_warnings():  # fvcore scripts a function that is not used here
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats


def update(model, batches, num_batches, *, progress=True):
    """Replace the running statistics of every batch normalisation layer in training mode.

    Runs ``model(batch)`` in training mode over ``num_batches`` batches, without gradients, and
    stores the population mean and (biased) variance of each layer's input over all of them. The
    layers stay in the mode they were in, and so does ``model``.

    In several processes each runs its own batches and the statistics are pooled with equal
    weights, which is exact when every process sees equally many values.

    Args:
        model: layers in evaluation mode (frozen ones) are left alone.
        batches: iterable with at least ``num_batches`` items, each what ``model`` takes.
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
            # E[x^2] - E[x]^2 of a constant channel can round below zero, whose root is NaN.
            layer.running_var.clamp_(min=0)
