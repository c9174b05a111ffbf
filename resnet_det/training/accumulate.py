"""Gradient accumulation (``RESNET_DET.ACCUMULATE``): a batch that runs in several parts."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Outputs = dict[str, torch.Tensor]


def check_parts(total_batch: int, world: int, parts: int) -> None:
    """Raise ValueError if a process's share of a batch cannot be cut into equal parts."""
    if total_batch // world % parts:
        raise ValueError(
            f"RESNET_DET.ACCUMULATE: {parts}: the {total_batch // world} images of a process per "
            "batch (SOLVER.IMS_PER_BATCH divided by the number of processes) cannot be cut into "
            f"{parts} equal parts"
        )


def split(batch: Any, parts: int) -> list[Any]:
    """Cut a batch into equal parts, in order: a list of samples, or a sequence of tensors with one
    row per sample."""
    if isinstance(batch[0], torch.Tensor):
        return list(zip(*(tensor.chunk(parts) for tensor in batch), strict=True))
    size = len(batch) // parts
    return [batch[i : i + size] for i in range(0, len(batch), size)]


def forward(
    model: nn.Module,
    batch: Any,
    parts: int,
    backward: Callable[[Outputs], Any],
    run: Callable[[Any], Outputs] | None = None,
) -> Outputs:
    """Run a batch in parts, and the backward pass of all of them but the last.

    The caller zeroes the gradients before, and runs the last part's backward pass on the result.
    The gradients are then those of the mean of the parts' losses. Processes exchange them once.

    Args:
        model: returns the outputs of a part, scalars. :func:`.distributed.wrap` may have wrapped it.
        backward: runs the backward pass of outputs.
        run: called instead of the model, by a caller that has replaced its forward pass.

    Returns:
        The mean of each output over the parts. Its backward pass is the last part's.
    """
    run = run or model
    if parts == 1:
        return run(batch)
    *first, last = split(batch, parts)
    done: Outputs = {}
    for part in first:
        with getattr(model, "no_sync", contextlib.nullcontext)():
            outputs = {name: value / parts for name, value in run(part).items()}
            device = next(iter(outputs.values())).device.type
            with torch.autocast(device, enabled=False):
                backward(outputs)
        done = {name: v.detach() + done.get(name, 0) for name, v in outputs.items()}
    return {name: value / parts + done[name] for name, value in run(last).items()}
