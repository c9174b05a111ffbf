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

    With ``fold`` (see :mod:`.fast`) a batch norm that is a constant affine map goes into the
    weight of the convolution: one pass over the map less, the same gradients. Where nothing here
    wants a gradient the folded weight is kept until a tensor of it changes. A change in place
    through ``.data`` cannot be seen: make it under ``torch.no_grad()`` instead, or call
    ``train()`` or ``eval()`` behind it.
    """

    fold = False
    _folded = None  # ((storage and version of each source), sources, weight, bias)

    def __init__(self, cin, cout, kernel, stride=1, norm="", dilation=1):
        if norm and norm not in NORMS:
            raise ValueError(f"norm {norm!r}: use one of {', '.join(NORMS)}")
        super().__init__(
            cin, cout, kernel, stride, dilation * (kernel // 2), dilation, bias=not norm
        )
        self.norm = NORMS[norm](cout) if norm else None

    def forward(self, x):
        if self.fold and self._norm_is_constant():
            return self._conv_forward(x, *self._fold_or_reuse())
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)

    def _norm_is_constant(self):
        if isinstance(self.norm, nn.modules.batchnorm._BatchNorm):
            return not (self.norm.training or torch.is_grad_enabled())
        return isinstance(self.norm, FrozenBatchNorm2d)

    def _fold(self):
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        bias = self.norm.bias - self.norm.running_mean * scale
        return self.weight * scale[:, None, None, None], bias

    def _fold_or_reuse(self):
        norm = self.norm
        sources = (self.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        if (
            (torch.is_grad_enabled() and self.weight.requires_grad)
            or torch.compiler.is_compiling()
            or any(t.is_inference() for t in sources)  # they count no versions
        ):
            return self._fold()
        state = [(t.data_ptr(), t._version) for t in sources]
        if self._folded is None or self._folded[0] != state:
            # The sources are held, so that no other tensor can come to lie where they do. Not an
            # inference tensor, which could never serve in training again.
            with torch.inference_mode(False), torch.no_grad():
                self._folded = state, [t.detach() for t in sources], *self._fold()
        return self._folded[2:]

    def _forget(self):
        self.__dict__.pop("_folded", None)

    def train(self, mode=True):
        self._forget()
        return super().train(mode)

    def _apply(self, *args, **kwargs):  # to(), cuda(), half()... change no version
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._forget()
        return super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self):  # a copy, or a file, begins without what is kept
        return {k: v for k, v in self.__dict__.items() if k != "_folded"}


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
