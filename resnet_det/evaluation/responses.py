"""Layer responses (section 4.2, Fig. 7): how strongly each 3x3 layer answers."""

import torch
from torch import nn


@torch.no_grad()
def layer_responses(net, batches):
    """Standard deviation of each 3x3 layer's output, after BN, before nonlinearity and addition.

    One number a layer, over all images, channels and positions; the net runs in evaluation mode.
    The paper does not say over what it was taken; this is the plainest reading.

    Args:
        net: a classifier whose convolutions carry their norm (6n+1 layers in a CIFAR net).
        batches: of images.

    Returns:
        dict layer's name -> float, in the order in which they run.
    """
    sums = {}

    def add(name):
        def hook(module, inputs, output):
            x = output.double()
            count, total, squares = sums.get(name, (0, 0.0, 0.0))
            sums[name] = count + x.numel(), total + x.sum(), squares + x.square().sum()

        return hook

    layers = [
        (name, m)
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    handles = [module.register_forward_hook(add(name)) for name, module in layers]
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
