"""The memory format of weights, and of the optimizer's state beside them."""

import torch
from torch import nn


def to_fastest_layout(model: nn.Module, device: torch.device, *, mixed: bool, tf32: bool) -> None:
    """Store the weights of convolutions in channels-last format, in place, where this is faster.

    That is where convolutions run on tensor cores: in mixed precision, or in TF32 from Ampere on.
    The maps have this format there, so otherwise each backward pass copies every gradient to its
    weight's format.

    Args:
        device: the model's device.
        mixed: whether it trains in mixed precision.
        tf32: whether float32 convolutions may use TF32.
    """
    if device.type != "cuda":
        return
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    if mixed or (ampere and tf32):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Copy the optimizer's state to the memory format of its parameters.

    Call this after loading a checkpoint, which may come from a device with another format: fused
    optimizers read both by the same offsets, and on a CPU they do not check that these fit.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
