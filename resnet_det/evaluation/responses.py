"""Layer responses (section 4.2, Fig. 7): the magnitude of each 3x3 layer's output."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def layer_responses(net: nn.Module, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Standard deviation of each 3x3 layer's output, after BN, before nonlinearity and addition.

    The paper does not state what the standard deviation is taken over. Here it is one number per
    layer, over all images, channels and positions, with the net in evaluation mode.

    Args:
        net: a classifier whose convolutions contain their norm (6n+1 layers in a CIFAR net). Its
            mode is restored afterwards.
        batches: batches of images (N, 3, h, w).

    Returns:
        Layer name -> standard deviation, in the order in which the layers run.
    """
    sums: dict[str, tuple[int, Any, Any]] = {}  # count, sum, sum of squares

    def count_into(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            x = output.double()
            count, total, squares = sums.get(name, (0, 0.0, 0.0))
            sums[name] = count + x.numel(), total + x.sum(), squares + x.square().sum()

        return hook

    handles = [
        module.register_forward_hook(count_into(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    training = net.training
    net.eval()
    try:
        for images in batches:
            net(images)
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    return {
        name: float((squares / count - (total / count) ** 2).clamp(min=0).sqrt())
        for name, (count, total, squares) in sums.items()
    }
