"""Every net by its name: the only list."""

import difflib
import inspect
from functools import partial

from .resnet import cifar_resnet, imagenet_resnet
from .vgg import VGG16

CIFAR_DEPTHS = (20, 32, 44, 56, 110)

NETS = {
    **{f"paper_resnet{d}": partial(imagenet_resnet, d, "B") for d in (18, 34, 50, 101, 152)},
    "paper_resnet18_a": partial(imagenet_resnet, 18, "A"),
    **{f"paper_resnet34_{o}": partial(imagenet_resnet, 34, o.upper()) for o in "abc"},
    **{f"paper_plain{d}": partial(imagenet_resnet, d, "none") for d in (18, 34)},
    "paper_vgg16": VGG16,
    **{f"cifar_resnet{d}": partial(cifar_resnet, d, "A") for d in (*CIFAR_DEPTHS, 1202)},
    **{f"cifar_plain{d}": partial(cifar_resnet, d, "none") for d in CIFAR_DEPTHS},
}

# Those whose shortcuts pad channels with zeros. Their tensors are named as a plain net's.
OPTION_A_NETS = (
    "paper_resnet18_a",
    "paper_resnet34_a",
    *(f"cifar_resnet{d}" for d in (*CIFAR_DEPTHS, 1202)),
)
# Those whose stride has two places.
BOTTLENECK_NETS = ("paper_resnet50", "paper_resnet101", "paper_resnet152")


def check_name(name):
    """
    Raises:
        ValueError: there is no such net; names the nearest ones.
    """
    if name not in NETS:
        near = difflib.get_close_matches(name, NETS, n=3, cutoff=0.4)
        raise ValueError(f"net {name!r} does not exist; near it: {', '.join(near or NETS)}")


def build_net(name, num_classes=None, *, norm="BN", stride_in_1x1=True, res5_dilation=1):
    """Build the classifier ``name`` of ``NETS`` with He-initialised weights.

    Args:
        num_classes: outputs of ``linear``; default 1000, or 10 for a CIFAR net.
        norm: "BN", "SyncBN", "FrozenBN" or "GN"; VGG-16 has none.
        stride_in_1x1: stride of a bottleneck on its first 1x1 (the paper) or on its 3x3
            (torchvision); the other nets have no such choice.
        res5_dilation: 2 for a conv5_x at stride 16, in the ImageNet residual and plain nets.

    Returns:
        Classifier: ``trunk``, ``head``, ``linear``, ``features``, ``split``.

    Raises:
        ValueError: for an unknown name or an option that the net cannot honour.
    """
    check_name(name)
    options = {"norm": norm, "stride_in_1x1": stride_in_1x1, "res5_dilation": res5_dilation}
    if num_classes is not None:
        options["num_classes"] = num_classes
    taken = inspect.signature(NETS[name]).parameters
    if res5_dilation != 1 and "res5_dilation" not in taken:
        raise ValueError(f"res5_dilation {res5_dilation}: {name} has no conv5_x to dilate")
    return NETS[name](**{k: v for k, v in options.items() if k in taken})
