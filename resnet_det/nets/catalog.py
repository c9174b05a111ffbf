"""The catalog of all nets, by name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from ..hints import did_you_mean
from .classifier import Classifier
from .layers import Norm
from .resnet import DEPTHS, cifar_resnet, imagenet_resnet
from .vgg import CONVOLUTIONS, VGG


@dataclass(frozen=True)
class NetSpec:
    """One net of the catalog. Facts that the built net states itself, such as its strides, are not
    repeated here; see :func:`meta_net`.

    Attributes:
        build: builds the net. It receives those options of :func:`build_net` that are its keyword
            parameters, or all of them if it takes ``**options``.
        depth: number of layers with weights, as in the net's name.
        image_size: height and width of the training images: 224 for ImageNet, 32 for CIFAR-10.
        paper_gflops: multiply-adds per image in 10^9, as printed in the paper; "" if the paper does
            not state them. (Its errors are in the tables of :mod:`resnet_det.reproduce.paper`.)
        paper_mparams: parameters in 10^6, as printed in the paper, or "".
        torchvision: name of the same architecture in torchvision and timm, or "".
    """

    build: Callable[..., Classifier]
    depth: int
    image_size: int = 224
    paper_gflops: str = ""
    paper_mparams: str = ""
    torchvision: str = ""


# Multiply-adds in 10^9 by depth: Table 1 (the plain nets, and shortcuts A and B, share them), and
# section 3.3 and 4.1 for VGG.
RESNET_GFLOPS = {18: "1.8", 34: "3.6", 50: "3.8", 101: "7.6", 152: "11.3"}
VGG_GFLOPS = {16: "15.3", 19: "19.6"}
# Parameters in 10^6 by depth: Table 6.
CIFAR_MPARAMS = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4"}


def _imagenet(depth: int, shortcut: str, torchvision: str = "") -> NetSpec:
    gflops = "" if shortcut == "C" else RESNET_GFLOPS[depth]  # Table 1 does not cover option C
    build = partial(imagenet_resnet, depth, shortcut)
    return NetSpec(build, depth, paper_gflops=gflops, torchvision=torchvision)


def _cifar(depth: int, shortcut: str) -> NetSpec:
    build = partial(cifar_resnet, depth, shortcut)
    return NetSpec(build, depth, 32, paper_mparams=CIFAR_MPARAMS[depth])


def _vgg(depth: int) -> NetSpec:
    gflops = VGG_GFLOPS.get(depth, "")
    build = partial(VGG, depth)
    return NetSpec(build, depth, paper_gflops=gflops, torchvision=f"vgg{depth}")


NETS: dict[str, NetSpec] = {
    **{f"paper_resnet{d}": _imagenet(d, "B", f"resnet{d}") for d in DEPTHS},
    "paper_resnet18_a": _imagenet(18, "A"),
    **{f"paper_resnet34_{o}": _imagenet(34, o.upper()) for o in "abc"},
    **{f"paper_plain{d}": _imagenet(d, "none") for d in (18, 34)},
    **{f"paper_vgg{d}": _vgg(d) for d in CONVOLUTIONS},
    **{f"cifar_resnet{d}": _cifar(d, "A") for d in CIFAR_MPARAMS},
    **{f"cifar_plain{d}": _cifar(d, "none") for d in CIFAR_MPARAMS if d != 1202},
}


def check_name(name: str) -> None:
    """Raise ValueError, with similar names, if there is no net ``name``."""
    if name not in NETS:
        raise ValueError(f"unknown net {name!r}{did_you_mean(name, NETS, list_all=True)}")


def build_net(
    name: str,
    num_classes: int | None = None,
    *,
    norm: Norm = "BN",
    stride_in_1x1: bool = True,
    res5_dilation: int = 1,
    in_channels: int = 3,
) -> Classifier:
    """Build the net ``name`` of ``NETS`` with He-initialised weights.

    Args:
        num_classes: outputs of ``linear``. The default is 1000, or 10 for a CIFAR net.
        norm: "BN", "SyncBN", "nnSyncBN" (the same), "FrozenBN", "GN", or a callable that builds a
            layer for a number of channels. Ignored by VGG, which has no normalisation.
        stride_in_1x1: whether a bottleneck has its stride on the first 1x1 convolution (the
            paper) or on the 3x3 (torchvision). Ignored by nets without bottlenecks.
        res5_dilation: 2 keeps conv5_x at stride 16 and dilates it. Only the ImageNet residual and
            plain nets have this option.
        in_channels: channels of the images: 1 for grey ones.

    Returns:
        The net, in training mode. It takes normalised images (N, in_channels, H, W) and returns
        logits (N, num_classes).

    Raises:
        ValueError: the name is unknown, or the net does not support an option.
    """
    check_name(name)
    build = NETS[name].build
    options: dict[str, Any] = {
        "norm": norm,
        "stride_in_1x1": stride_in_1x1,
        "res5_dilation": res5_dilation,
        "in_channels": in_channels,
    }
    if num_classes is not None:
        options["num_classes"] = num_classes
    parameters = inspect.signature(build).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return build(**options)  # passed on to a function that raises for unknown options
    if res5_dilation != 1 and "res5_dilation" not in parameters:
        raise ValueError(f"res5_dilation {res5_dilation}: {name} has no conv5_x to dilate")
    if in_channels != 3 and "in_channels" not in parameters:
        raise ValueError(f"in_channels {in_channels}: {name} takes images of 3 channels")
    return build(**{k: v for k, v in options.items() if k in parameters})


@cache
def meta_net(name: str, num_classes: int | None = None, **options: Any) -> Classifier:
    """Build a net as :func:`build_net` does, on the meta device.

    Such a net needs no memory for its weights. Use it to look up properties of the net: its shapes,
    ``trunk_names``, ``strides``, ``has_batch_norm``, ... The same call returns the same net, so do
    not change it.
    """
    with torch.device("meta"):
        return build_net(name, num_classes, **options)
