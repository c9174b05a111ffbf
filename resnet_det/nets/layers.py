"""Convolution with its normalisation, frozen batch normalisation, and the He initialisation."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation as a constant affine map (appendix A: "fixed" BN).

    Weight, bias, mean and variance are buffers with the names of ``nn.BatchNorm2d``. They have no
    gradients and are never updated. A new layer is the identity (up to ``eps``); see
    :func:`without_statistics`.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        # Caffe's models hold an affine map without statistics.
        if prefix + "weight" in state_dict:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,  # Detectron2 has both names
    "FrozenBN": FrozenBatchNorm2d,
    "GN": partial(nn.GroupNorm, 32),
}
Norm = str | Callable[[int], nn.Module]  # a key of NORMS, or channels -> layer


def build_norm(norm: Norm, channels: int) -> nn.Module:
    """Build a normalisation layer for so many channels.

    Raises:
        ValueError: there is no norm of this name, or the channels are too few for it.
    """
    if not isinstance(norm, str):
        return norm(channels)
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r}: use one of {', '.join(NORMS)}, or a callable")
    if norm == "GN" and channels % 32:
        raise ValueError(f"norm 'GN': has 32 groups, which do not divide {channels} channels")
    return NORMS[norm](channels)


def freeze(module: nn.Module) -> nn.Module:
    """Disable all gradients in ``module`` and replace its batch norms by frozen ones, in place.

    Returns:
        The module, or its replacement if the module itself is a batch norm.
    """
    if isinstance(module, _BatchNorm) and module.running_mean is not None:
        frozen = FrozenBatchNorm2d(module.num_features, module.eps).to(module.running_mean)
        frozen.load_state_dict(module.state_dict(), strict=module.affine)
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze(child))
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    return module


def without_statistics(module: nn.Module) -> list[str]:
    """Names of the frozen batch norms in ``module`` into which nothing was loaded.

    Caffe's models have their statistics folded into weight and bias. Their norms have mean 0 and
    variance 1, and count as loaded.
    """
    return [
        name
        for name, m in module.named_modules()
        if isinstance(m, FrozenBatchNorm2d)
        and not (m.running_mean.any() or m.bias.any())
        and bool((m.running_var == 1).all() and (m.weight == 1).all())
    ]


class Conv2d(nn.Conv2d):
    """Convolution, followed by its normalisation if it has one. The caller applies the ReLU.

    The normalisation (section 3.4: right after the convolution) is the child module ``norm``, as in
    Detectron2. With a norm, the convolution has no bias, as in the authors' networks.

    If ``fold`` is set (see :mod:`.fast`), a batch norm that is a constant affine map is multiplied
    into the convolution's weight. This saves one pass over the map and gives the same gradients.
    What does not change in training is cached until one of its tensors changes: the folded weight
    or, while the weight needs a gradient, the norm's scale and bias. A change in place through
    ``.data`` goes unnoticed: make it under ``torch.no_grad()`` instead, or call ``train()`` or
    ``eval()`` afterwards. A trace and an export compute the folded weight in their graph;
    TorchScript by ``torch.jit.script`` keeps the norm apart.

    Args:
        cin, cout: input and output channels.
        kernel: side of the kernel, an odd number. The padding keeps the size of the map.
        norm: a key of ``NORMS``, a callable that builds a norm for a number of channels, or ""
            for none.
    """

    fold = False
    if TYPE_CHECKING:  # TorchScript would take these annotations at their word
        norm: Any  # a module, or None
        _cached: Any  # ((address and version of each source), sources, weight or scale, bias)
    else:
        _cached = None

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int = 1, norm: Norm = "", dilation: int = 1
    ) -> None:
        super().__init__(
            cin, cout, kernel, stride, dilation * (kernel // 2), dilation, bias=not norm
        )
        self.norm = build_norm(norm, cout) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript does not compile this branch)
            if self.fold and self._norm_is_constant():
                return self._conv_forward(x, *self._fold_or_reuse())
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x

    def _norm_is_constant(self) -> bool:
        if type(self.norm) in (nn.BatchNorm2d, nn.SyncBatchNorm):  # a subclass may compute more
            if not (self.norm.affine and self.norm.track_running_stats):
                return False
            # A trace is checked without gradients, even if it was made with them.
            with_grad = torch.is_grad_enabled() and not torch.jit.is_tracing()
            return not (self.norm.training or with_grad)
        return isinstance(self.norm, FrozenBatchNorm2d)

    def _scale_and_bias(self) -> tuple[Tensor, Tensor]:
        scale = self.norm.weight * (self.norm.running_var + self.norm.eps).rsqrt()
        bias = self.norm.bias - self.norm.running_mean * scale
        return scale[:, None, None, None], bias

    def _fold(self) -> tuple[Tensor, Tensor]:
        scale, bias = self._scale_and_bias()
        return self.weight * scale, bias

    def _fold_or_reuse(self) -> tuple[Tensor, Tensor]:
        norm, weight = self.norm, self.weight
        sources = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if (
            torch.compiler.is_compiling()  # which torch.export does too
            or torch.jit.is_tracing()
            or any(t.is_inference() for t in (weight, *sources))  # these have no version counter
        ):
            return self._fold()
        trained = torch.is_grad_enabled() and weight.requires_grad
        if not trained:
            sources.append(weight)
        state = [(t.data_ptr(), t._version) for t in sources]
        if self._cached is None or self._cached[0] != state:
            # Keeping the sources alive ensures that no other tensor gets their addresses. The
            # cache must not hold inference tensors, which later training could not use.
            with torch.inference_mode(False), torch.no_grad():
                result = self._scale_and_bias() if trained else self._fold()
                self._cached = state, [t.detach() for t in sources], *result
        cached, bias = self._cached[2:]
        return (weight * cached if trained else cached), bias

    def merge_norm(self) -> None:
        """Merge the norm into weight and bias if it is constant, for good: to export the net."""
        if self._norm_is_constant():
            self.weight, self.bias = (nn.Parameter(x, requires_grad=False) for x in self._fold())
            self.norm = None

    def _forget(self) -> None:
        self.__dict__.pop("_cached", None)

    def train(self, mode: bool = True) -> "Conv2d":
        self._forget()
        return super().train(mode)

    # to(), cuda(), half(), ... do not change the versions.
    def _apply(self, *args: Any, **kwargs: Any) -> "Conv2d":
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        return super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles do not contain the cache
        return {k: v for k, v in self.__dict__.items() if k != "_cached"}


class FullyConnected(nn.Linear):
    """Flatten, fully connected layer, ReLU, dropout: (N, ...) -> (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__(inputs, outputs)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(super().forward(x.flatten(1))), self.dropout, self.training)


def init_weights(net: nn.Module) -> None:
    """Initialise as in section 3.4 (He et al., the PReLU paper): weights from N(0, 2 / fan), biases
    0.

    Convolutions use fan_out, linear layers fan_in; the PReLU paper allows either. Norms keep
    their own initialisation, weight 1 and bias 0.
    """
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(m, nn.Linear):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
            nn.init.zeros_(m.bias)


def rename_parameters(module: nn.Module, names: Mapping[str, str]) -> None:
    """Save and load a module's parameters under other names.

    Args:
        names: prefix of the names in the module -> prefix of the names in its state dict.
    """

    def rename(state: dict[str, Any], prefix: str, pairs: Iterable[tuple[str, str]]) -> None:
        for old, new in pairs:
            for key in [k for k in state if k.startswith(prefix + old)]:
                state[prefix + new + key[len(prefix + old) :]] = state.pop(key)

    module.register_state_dict_post_hook(
        lambda _, state, prefix, *__: rename(state, prefix, names.items())
    )
    module.register_load_state_dict_pre_hook(
        lambda _, state, prefix, *__: rename(state, prefix, [(b, a) for a, b in names.items()])
    )
