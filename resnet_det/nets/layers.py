"""Convolution with its normalisation, frozen batch normalisation, and the He initialisation."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation as a constant affine map (appendix A: "fixed" BN).

    Weight, bias, mean and variance are buffers: no gradient, no update, the same names as
    ``nn.BatchNorm2d``. A fresh one changes nothing: see :func:`without_statistics`.
    """

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self):
        return f"{len(self.weight)}, eps={self.eps}"


NORMS = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": partial(nn.GroupNorm, 32),
}


def freeze(module):
    """Turn off every gradient in ``module`` and replace its batch norms by frozen ones.

    Returns the module, or its replacement where the module is itself a batch norm.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen.to(module.weight.device)
    for name, child in module.named_children():
        setattr(module, name, freeze(child))
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    return module


def without_statistics(module):
    """Names of the frozen batch norms in ``module`` that are still as they were made.

    (Caffe's models, folded into weight and bias, keep mean 0 and variance 1 and are complete.)
    """
    return [
        name
        for name, m in module.named_modules()
        if isinstance(m, FrozenBatchNorm2d)
        and not (m.running_mean.any() or m.bias.any())
        and bool((m.running_var == 1).all() and (m.weight == 1).all())
    ]


class Conv2d(nn.Conv2d):
    """Convolution, then its normalisation if it has one; the output is before any nonlinearity.

    With ``norm`` (a key of ``NORMS``) the convolution has no bias (section 3.4 of the paper).
    The normalisation is a child called ``norm``, as in Detectron2's parameter names.
    """

    def __init__(self, cin, cout, kernel, stride=1, norm="", dilation=1):
        if norm and norm not in NORMS:
            raise ValueError(f"norm {norm!r}: use one of {', '.join(NORMS)}")
        super().__init__(
            cin, cout, kernel, stride, dilation * (kernel // 2), dilation, bias=not norm
        )
        self.norm = NORMS[norm](cout) if norm else None

    def forward(self, x):
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


class FullyConnected(nn.Linear):
    """Flatten, fully connected, ReLU, dropout: (N, ...) -> (N, outputs)."""

    def __init__(self, inputs, outputs, dropout=0.0):
        super().__init__(inputs, outputs)
        self.dropout = dropout

    def forward(self, x):
        return F.dropout(F.relu(super().forward(x.flatten(1))), self.dropout, self.training)


def init_weights(net):
    """He initialisation (section 3.4): N(0, 2 / fan), biases 0, BN at weight 1 and bias 0.

    Convolutions take fan_out, linear layers fan_in; the PReLU paper allows either.
    """
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
            nn.init.zeros_(m.bias)
